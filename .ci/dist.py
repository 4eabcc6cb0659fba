"""Write a release's files into dist/: wheel, sdist, the site as a zip, and their checksums.

`make dist` runs it on the built book. With `--notes TAG` it only prints the changelog's part for
that tag, which must be the version in pyproject.toml.
"""

import argparse
import hashlib
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def release_notes(tag: str, changelog: str) -> str:
    """What the changelog says on the version that the tag names."""
    version = PROJECT["version"]
    if tag != f"v{version}":
        raise SystemExit(f"The tag is {tag}, but pyproject.toml has the version {version}.")
    heading = rf"^## \[{re.escape(version)}\].*\n"
    part = re.search(heading + r"((?:(?!## ).*\n?)*)", changelog, re.MULTILINE)
    if part is None or not part[1].strip():
        raise SystemExit(f"CHANGELOG.md says nothing under '## [{version}]'.")
    return part[1].strip()


def write_site(site: Path, out: Path) -> None:
    """Zip the site in one folder, whose index.html a double click opens."""
    folder = f"{PROJECT['name']}-{PROJECT['version']}-site"
    with zipfile.ZipFile(out / f"{folder}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(site.rglob("*")):
            archive.write(path, folder / path.relative_to(site))


def write_checksums(out: Path) -> None:
    """Write SHA256SUMS, in the form that `sha256sum --check` reads."""
    digests = {path.name: hashlib.sha256(path.read_bytes()) for path in sorted(out.iterdir())}
    lines = [f"{digest.hexdigest()}  {name}\n" for name, digest in digests.items()]
    (out / "SHA256SUMS").write_text("".join(lines), encoding="utf-8")


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--notes", metavar="TAG", help="only print the changelog's part for it")
    parser.add_argument("--site", type=Path, default=ROOT / "_build" / "html")
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="a folder to make")
    options = parser.parse_args()
    if options.notes:
        changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
        print(release_notes(options.notes, changelog))
        return
    if not (options.site / "index.html").is_file():
        raise SystemExit(f"There is no built book in {options.site}: make book")
    options.out.mkdir()  # never among files of an earlier version
    write_site(options.site, options.out)
    build = [sys.executable, "-m", "hatchling", "build", "--directory", str(options.out)]
    subprocess.run(build, cwd=ROOT, check=True)
    write_checksums(options.out)


if __name__ == "__main__":
    main()
