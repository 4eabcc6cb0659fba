"""The two programs that the tests need and pip cannot install: Chromium and bubblewrap.

Run as a script, this fetches what is missing where it can, and otherwise names the package and
stops. With the argument `bubblewrap` it only tries to fetch that one, says nothing and never fails:
the book can be built without. As a module it starts the browser for the tests of the built pages.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Playwright

CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM_FLAGS = [
    "--no-sandbox",  # the pages are our own, and root cannot use Chromium's sandbox
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def launch_chromium(playwright: Playwright) -> Browser:
    """Start the machine's own Chromium, else the one that Playwright's installer fetched.

    Raises:
        playwright.sync_api.Error: when neither starts.
    """
    from playwright.sync_api import Error

    installed = [path for name in CHROMIUM_NAMES if (path := shutil.which(name))]
    for path in installed:
        try:
            return playwright.chromium.launch(executable_path=path, args=CHROMIUM_FLAGS)
        except Error as error:  # a snap that cannot start here, say
            print(f"{path} does not start: {error.message.splitlines()[0]}", file=sys.stderr)
    return playwright.chromium.launch(args=CHROMIUM_FLAGS)


def chromium_works() -> bool:
    """Whether a Chromium starts."""
    from playwright.sync_api import Error, sync_playwright

    try:
        with sync_playwright() as playwright:
            launch_chromium(playwright).close()
    except Error:
        return False
    return True


def bubblewrap_works() -> bool:
    """Whether bubblewrap is there and may make a sandbox."""
    command = ["bwrap", "--ro-bind", "/", "/", "--unshare-all", "true"]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def apt_install(package: str, **options: Any) -> None:
    """Install one package, if this is root on Debian or Ubuntu; `options` are for `run`."""
    if os.geteuid() == 0 and shutil.which("apt-get"):
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        install = ["apt-get", "install", "--yes", "--no-install-recommends", package]
        for command in (["apt-get", "update"], install):
            subprocess.run(command, env=environment, check=False, **options)


def try_bubblewrap() -> None:
    """Install bubblewrap where that is possible, without a word."""
    if shutil.which("bwrap") is None:
        apt_install("bubblewrap", capture_output=True, timeout=120)


def main() -> None:
    """Make sure that both programs work, or say what is missing and stop."""
    if not chromium_works():
        print("No working Chromium yet: fetching Playwright's.", flush=True)
        subprocess.run([sys.executable, "-m", "playwright", "install", "chromium"], check=False)
        if not chromium_works():
            apt_install("chromium")
    if shutil.which("bwrap") is None:
        apt_install("bubblewrap")

    missing = []
    if not chromium_works():
        missing.append("Chromium, for the tests of the pages. On Debian: apt install chromium")
    if shutil.which("bwrap") is None:
        missing.append("bubblewrap, for the tests of grading. On Debian: apt install bubblewrap")
    elif not bubblewrap_works():
        missing.append("bubblewrap may not make a sandbox here (are user namespaces switched off?)")
    if missing:
        raise SystemExit("The tests need:\n- " + "\n- ".join(missing))


if __name__ == "__main__":
    if sys.argv[1:] == ["bubblewrap"]:
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            try_bubblewrap()
    else:
        main()
