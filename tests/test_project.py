"""The project's files agree with each other, and the package stays light to import."""

import hashlib
import json
import os
import re
import runpy
import subprocess
import sys
import tomllib
import zipfile
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
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
        ".github",
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


HOSTED = sorted((ROOT / ".github").rglob("*.yml"))
WORKFLOWS = {path.stem: read_yaml(str(path)) for path in HOSTED if path.parent.name == "workflows"}
ACTIONS = [path for path in HOSTED if path.name == "action.yml"]
JOBS = {
    f"{name}/{key}": job
    for name, workflow in WORKFLOWS.items()
    for key, job in workflow["jobs"].items()
}
STEPS = [step for job in JOBS.values() for step in job["steps"]]
STEPS += [step for path in ACTIONS for step in read_yaml(str(path))["runs"]["steps"]]
SCRIPTS = [step["run"] for step in STEPS if "run" in step]


def step_of(job: str, text: str) -> dict:
    """The one step of a job that uses or runs this."""
    steps = JOBS[job]["steps"]
    (step,) = [step for step in steps if text in step.get("uses", "") + step.get("run", "")]
    return step


def test_workflows_have_the_form_that_github_reads() -> None:
    workflows = [path for path in HOSTED if path not in ACTIONS]
    for schema, paths in (("workflows", workflows), ("actions", ACTIONS)):
        check = ["-m", "check_jsonschema", "--builtin-schema", f"vendor.github-{schema}"]
        checked = subprocess.run(
            [sys.executable, *check, *paths], capture_output=True, text=True, check=False
        )
        assert checked.returncode == 0, checked.stdout + checked.stderr
    for name, job in JOBS.items():
        assert f"{name.split('/')[0]}/{job.get('needs')}" in JOBS or "needs" not in job
        assert 0 < job["timeout-minutes"] <= 360, "what a hosted job may take"


def test_scripts_pass_shellcheck(tmp_path: Path) -> None:
    scripts = [ROOT / ".ci" / "install", ROOT / ".ci" / "run"]
    for number, text in enumerate(SCRIPTS):
        assert "${{" not in text, "what GitHub fills in comes by the environment, never as code"
        scripts.append(tmp_path / f"step_{number}")
        scripts[-1].write_text(f"#!/bin/bash\n{text}", encoding="utf-8")
    shellcheck = Path(sys.executable).with_name("shellcheck")
    checked = subprocess.run([shellcheck, *scripts], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_workflows_call_what_exists() -> None:
    rules = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    targets = {target for text in SCRIPTS for target in re.findall(r"^make ([a-z-]+)", text, re.M)}
    assert targets == {"book", "dist", "test", "verify"}
    assert targets <= set(rules)
    files = {name for text in SCRIPTS for name in re.findall(r"\.ci/[\w.]+", text)}
    assert files == {".ci/dist.py", ".ci/run"}
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_when_workflows_run() -> None:
    events = {name: workflow[True] for name, workflow in WORKFLOWS.items()}  # YAML 1.1's `on`
    on_main = {"branches": [read_yaml("_config.yml")["repository"]["branch"]]}
    (weekly,) = events["verify"].pop("schedule")
    assert re.fullmatch(r"\d+ \d+ \* \* [0-6]", weekly["cron"])
    assert events == {
        "test": {"push": on_main, "pull_request": None},
        "pages": {"push": on_main},
        "release": {"push": {"tags": ["v*"]}},
        "verify": {"workflow_dispatch": None},
    }
    ended = {name for name in WORKFLOWS if WORKFLOWS[name]["concurrency"]["cancel-in-progress"]}
    assert ended == {"test"}


def test_actions_are_pinned_to_one_version_each() -> None:
    versions = {}
    for path in HOSTED:
        for action, comment in re.findall(r"uses: (\S+)(.*)", path.read_text(encoding="utf-8")):
            if action.startswith("./"):
                assert ROOT / action / "action.yml" in ACTIONS
                continue
            assert re.fullmatch(r"actions/[\w/-]+@[0-9a-f]{40}", action), "GitHub's own, by commit"
            assert re.fullmatch(r" # v\d+\.\d+\.\d+", comment)
            name, commit = action.split("@")
            versions.setdefault(name.split("/")[1], set()).add((commit, comment))
    assert all(len(found) == 1 for found in versions.values()), versions


def test_code_of_the_project_runs_without_the_right_to_write() -> None:
    may_write = {
        "pages/publish": {"pages", "id-token"},
        "release/publish": {"contents"},
        "verify/report": {"issues"},
    }
    assert all(workflow["permissions"] == {} for workflow in WORKFLOWS.values())
    assert not any("secrets" in path.read_text(encoding="utf-8") for path in HOSTED)
    for name, job in JOBS.items():
        writes = {right for right, level in job["permissions"].items() if level != "read"}
        assert writes == may_write.get(name, set())
        checkouts = [s for s in job["steps"] if s.get("uses", "").startswith("actions/checkout@")]
        assert len(checkouts) == (0 if writes else 1)
        assert all(step["with"]["persist-credentials"] is False for step in checkouts)


def test_hosted_python_is_one_that_the_package_allows() -> None:
    python = [step["with"]["python-version"] for step in STEPS if "setup-python" in str(step)]
    assert python
    assert all(isinstance(version, str) for version in python), "3.10 as a number is 3.1"
    assert all(version in SpecifierSet(PROJECT["requires-python"]) for version in python)


def test_published_site_is_taken_as_it_is() -> None:
    upload = step_of("pages/build", "upload-pages-artifact")["with"]
    assert step_of("pages/build", "touch ")["run"].startswith(f"touch {upload['path']}/.nojekyll")
    assert upload["include-hidden-files"] is True


def test_long_check_goes_on_where_it_stopped() -> None:
    restore = step_of("verify/verify", "actions/cache/restore@")["with"]
    prefix = restore.pop("restore-keys")
    save = step_of("verify/verify", "actions/cache/save@")
    assert save["with"] == restore
    assert save["if"] == "always()"
    assert save["with"]["key"].startswith(prefix)
    assert "${{ github.run_id }}" in save["with"]["key"], "a key can be written only once"
    verify = step_of("verify/verify", "make verify")
    assert verify["timeout-minutes"] < JOBS["verify/verify"]["timeout-minutes"]
    emptied = step_of("verify/verify", "-delete")
    assert "if" not in emptied, "only after a whole check"
    steps = JOBS["verify/verify"]["steps"]
    upload = step_of("verify/verify", "upload-artifact")
    stale = step_of("verify/verify", "rm -f ")
    assert stale["run"].split()[2:] == upload["with"]["path"].split()
    assert steps[-5:] == [stale, verify, upload, emptied, save]


@pytest.mark.parametrize("table", [None, "| what | result |\n|---|---|\n| studies | **wrong** |\n"])
@pytest.mark.parametrize(
    ("open_issue", "call"),
    [
        ("", "issue create --title make verify failed --label verify --body-file issue.md"),
        ("7", "issue comment 7 --body-file issue.md"),
    ],
)
def test_failed_long_check_is_told_in_one_issue(
    tmp_path: Path, table: str | None, open_issue: str, call: str
) -> None:
    gh = tmp_path / "gh"
    gh.write_text('#!/bin/sh\necho "$*" >>calls\n[ "$2" != list ] || echo "$OPEN_ISSUE"\n')
    gh.chmod(0o755)
    if table:
        (tmp_path / "report.md").write_text(table, encoding="utf-8")
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "OPEN_ISSUE": open_issue}
    environment["RUN"] = "https://example.org/runs/1"
    script = step_of("verify/report", "gh ")["run"]
    subprocess.run(["bash", "-e", "-c", script], cwd=tmp_path, env=environment, check=True)
    calls = (tmp_path / "calls").read_text().splitlines()
    assert [line.split(" -")[0] for line in calls[:-1]] == ["label create verify", "issue list"]
    assert calls[-1] == call
    said = (tmp_path / "issue.md").read_text(encoding="utf-8")
    assert "https://example.org/runs/1" in said
    assert said.endswith(f"\n\n{table or 'It ended before there was a table.'}".rstrip() + "\n")


DIST = ROOT / ".ci" / "dist.py"
release_notes = runpy.run_path(str(DIST))["release_notes"]


def test_release_files(tmp_path: Path) -> None:
    site, out = tmp_path / "site", tmp_path / "out"
    pages = {
        "index.html": '<a href="book/intro.html">',
        "book/intro.html": '<link href="../_static/book.css"><a href="../index.html">',
        "_static/book.css": "",
    }
    for name, text in pages.items():
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_text(text, encoding="utf-8")
    command = [sys.executable, DIST, "--site", site, "--out", out]
    subprocess.run(command, capture_output=True, check=True)

    release = f"kdcourse-{PROJECT['version']}"
    files = {f"{release}-py3-none-any.whl", f"{release}.tar.gz", f"{release}-site.zip"}
    assert {path.name for path in out.iterdir()} == {*files, "SHA256SUMS"}
    sums = (out / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
    assert {name: digest for digest, name in (line.split("  ") for line in sums)} == {
        name: hashlib.sha256((out / name).read_bytes()).hexdigest() for name in files
    }

    zipfile.ZipFile(out / f"{release}-site.zip").extractall(tmp_path / "unpacked")
    (folder,) = (tmp_path / "unpacked").iterdir()
    assert folder.name == f"{release}-site"
    for name in pages:
        for link in re.findall(r'href="([^"]+)"', (folder / name).read_text(encoding="utf-8")):
            target = (folder / name).parent / link
            assert target.resolve().is_relative_to(folder.resolve())
            assert target.is_file()


def test_no_release_files_without_a_book(tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, DIST, "--site", tmp_path, "--out", out]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert run.stderr == f"There is no built book in {tmp_path}: make book\n"
    assert not out.exists()


def test_release_notes_are_the_changelogs_part_for_the_tag() -> None:
    version = PROJECT["version"]
    changelog = (
        "# Changelog\n\n## [Unreleased]\n\n- later\n\n"
        f"## [{version}] - 2026-01-31\n\n### Added\n\n- this\n\n## [0.0.1]\n\n- earlier\n"
    )
    assert release_notes(f"v{version}", changelog) == "### Added\n\n- this"
    with pytest.raises(SystemExit, match=rf"v9\.9\.9, but .* {re.escape(version)}"):
        release_notes("v9.9.9", changelog)
    for without in (changelog.replace(f"[{version}]", "[0.0.2]"), f"## [{version}]\n\n## [0.0.1]"):
        with pytest.raises(SystemExit, match="says nothing"):
            release_notes(f"v{version}", without)
