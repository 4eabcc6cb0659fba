"""The project's files agree with each other, and the package stays light to import."""

import json
import re
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import kdcourse

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REPOSITORY = PROJECT["urls"]["Repository"]
EXTRAS = PROJECT["optional-dependencies"]


def read_yaml(name: str) -> dict:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def pinned() -> dict[str, str]:
    """Package → version, from the constraints file."""
    lines = (ROOT / ".ci" / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pairs}


def requirements() -> list[Requirement]:
    """What the package asks for, its extras included."""
    texts = [*PROJECT["dependencies"], *(text for extra in EXTRAS.values() for text in extra)]
    return [Requirement(text) for text in texts if not text.startswith("kdcourse[")]


def project_files() -> list[Path]:
    """What git tracks; in a copy without git's folder, what .gitignore does not name."""
    if (ROOT / ".git").exists():
        list_files = ["git", "-c", "safe.directory=*", "ls-files", "-z"]
        listed = subprocess.run(list_files, cwd=ROOT, capture_output=True, text=True, check=True)
        paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    else:
        ignored = [
            line.strip("/") for line in (ROOT / ".gitignore").read_text("utf-8").splitlines()
        ]
        paths = [
            path
            for path in ROOT.rglob("*")
            if not any(
                fnmatch(part, pattern) or path.is_relative_to(ROOT / pattern)
                for pattern in ignored
                for part in path.relative_to(ROOT).parts
            )
        ]
    return [path for path in paths if path.is_file()]


def test_one_version() -> None:
    assert kdcourse.__version__ == PROJECT["version"]
    assert str(read_yaml("CITATION.cff")["version"]) == PROJECT["version"]


def test_one_repository_address() -> None:
    assert read_yaml("_config.yml")["repository"]["url"] == REPOSITORY
    assert read_yaml("CITATION.cff")["repository-code"] == REPOSITORY


def test_notebooks_install_this_release() -> None:
    addresses = {
        address
        for notebook in (ROOT / "book").rglob("*.ipynb")
        for address in re.findall(r"git\+(https://[^\s\"\\]+)", notebook.read_text("utf-8"))
    }
    assert addresses <= {f"{REPOSITORY}@v{PROJECT['version']}"}


def test_pinned_set_satisfies_the_ranges() -> None:
    versions = pinned()
    for requirement in requirements():
        version = versions.get(canonicalize_name(requirement.name))
        assert version, f"{requirement.name} is not pinned in .ci/constraints.txt"
        assert version in requirement.specifier, f"{requirement} does not allow {version}"


def test_package_asks_for_ranges_with_lower_bounds_only() -> None:
    for text in PROJECT["dependencies"]:
        operators = {specifier.operator for specifier in Requirement(text).specifier}
        assert operators == {">="}, f"{text}: a notebook host must be able to keep its own version"


def test_conda_environment_installs_the_pinned_set() -> None:
    dependencies = read_yaml("environment.yml")["dependencies"]
    (python,) = [Requirement(d.replace("=", "==", 1)) for d in dependencies if "python=" in str(d)]
    lowest = Requirement(f"python{PROJECT['requires-python']}").specifier
    assert all(specifier.version in lowest for specifier in python.specifier)
    (pip_section,) = [entry["pip"] for entry in dependencies if isinstance(entry, dict)]
    options = dict(line.split(" ", 1) for line in pip_section)
    assert (ROOT / options["--constraint"]).is_file()
    assert options["--editable"].removeprefix(".[").removesuffix("]") in EXTRAS


def test_browser_libraries_are_pinned() -> None:
    package = json.loads((ROOT / "book" / "assets" / "package.json").read_text(encoding="utf-8"))
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", v) for v in package["dependencies"].values())
    assert package["integrity"].keys() == package["dependencies"].keys()


def test_the_book_installs_what_its_notebooks_run() -> None:
    """`make book` installs the extra `book` alone, and the notebooks name the extras they need."""
    sources = (ROOT / "book" / "sources").rglob("*.md")
    named = {
        extra
        for path in sources
        for extra in re.findall(r"\[(grading|language)\]", path.read_text(encoding="utf-8"))
    }
    assert named == {"grading", "language"}
    (own,) = [Requirement(text) for text in EXTRAS["book"] if text.startswith("kdcourse[")]
    assert named <= own.extras


# What torch itself does not import, and the package must not import before it is used.
HEAVY = ["IPython", "distributed", "ipywidgets", "joblib", "jupytext", "matplotlib", "nbformat"]
HEAVY += ["pandas", "papermill", "pycocotools", "rich", "scipy", "sklearn", "transformers"]
METHODS = "from kdcourse import *; import kdcourse.data, kdcourse.models, kdcourse.claims"


@pytest.mark.parametrize(
    ("imports", "forbidden"),
    [
        ("import kdcourse", [*HEAVY, "torch", "numpy"]),
        (METHODS, HEAVY),
        ("import kdcourse.cli", [*HEAVY, "torch", "numpy"]),
    ],
)
def test_imports_stay_light(imports: str, forbidden: list[str]) -> None:
    program = f"import sys; {imports}; print(*(m for m in {forbidden} if m in sys.modules))"
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert run.stdout.split() == []


def test_top_level_holds_what_a_newcomer_expects() -> None:
    expected = {
        ".ci",
        ".gitignore",
        ".pre-commit-config.yaml",
        "CHANGELOG.md",
        "CITATION.cff",
        "CONTRIBUTING.md",
        "LICENSE",
        "Makefile",
        "README.md",
        "_config.yml",
        "_toc.yml",
        "book",
        "environment.yml",
        "kdcourse",
        "pyproject.toml",
        "tests",
    }
    assert {path.relative_to(ROOT).parts[0] for path in project_files()} == expected


def test_no_file_knows_the_machine_it_was_written_on() -> None:
    private = re.compile(r"(?<![\w.])/(?:work|root|home/\w+|Users/\w+)/|\bfile:///[a-z]")
    own = Path(__file__).resolve()
    found = []
    for path in project_files():
        if path == own or path.suffix in {".npz", ".png", ".safetensors"}:
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if private.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}")
    assert not found
