"""Where the command line works, and its answers to wrong calls; what it does is in test_grading."""

import csv
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from classroom import call
from colab import ROOT, build_wheel, pip

MASTER = Path(__file__).parent / "grading" / "double.md"
DOUBLE = str(MASTER)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["grade", "nothing-like-this", ".", "--out", "{out}"], "no exercise 'nothing-like-this'"),
        (["grade", "temperature", "no-folder", "--out", "{out}"], "does not exist"),
        (["grade", "temperature", "."], "--out"),
        (["grade", "temperature", ".", "--out", "{out}", "--jobs", "0"], "--jobs: at least 1"),
        (["grade", "temperature", ".", "--out", "{out}", "--jobs", "two"], "'two'"),
        (["grade", "temperature", ".", "--out", "{out}", "--memory", "255"], "at least 256"),
        (["grade", "temperature", ".", "--out", "{out}", "--sandbox", "maybe"], "maybe"),
        (["grade", "temperature", ".", "--out", "{out}", "--time", "9"], "--time"),
        (["grade", DOUBLE, ".", "--out", "{out}", "--key", "{out}"], "not an answer key"),
        (["grade", DOUBLE, ".", "--out", "{out}", "--deadline", "soon"], "a time looks like"),
        (["grade", DOUBLE, ".", "--out", "{out}", "--late-cap", "101"], "late-cap: at most 100"),
        (["grade", DOUBLE, ".", "--out", "{out}", "--late-cap", "nan"], "late-cap"),
        (["grade", DOUBLE, ".", "--out", "{out}", "--manual", "no-file.csv"], "does not exist"),
        (["similar", "nothing-like-this", "."], "no exercise 'nothing-like-this'"),
        (["similar", DOUBLE, ".", "--threshold", "60"], "threshold: at most 1"),
        (["assign", DOUBLE, "--out", "{out}/new", "--update"], "not an answer key"),
        (["assign", "nothing-like-this", "--out", "{out}"], "no exercise 'nothing-like-this'"),
        (["check", "no-file.ipynb"], "does not exist"),
        (["report", "{out}"], "holds no results"),
        (["unknown"], "invalid choice: 'unknown'"),
    ],
)
def test_a_wrong_call_ends_with_2_and_says_why(arguments, message, tmp_path):
    code, printed = call(*[argument.format(out=tmp_path) for argument in arguments])
    assert code == 2
    assert message in printed
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [["--help"], []])
def test_help_names_every_command(arguments, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["kdcourse"])
    code, printed = call(*arguments)
    assert code == 0
    for command in ("assign", "grade", "check", "report", "similar"):
        assert command in printed


def test_help_names_every_option_of_a_command():
    printed = call("grade", "--help")[1]
    for option in ("--key", "--roster", "--late-per-day", "--missing", "--sandbox", "--fresh"):
        assert option in printed


def test_the_command_line_starts_without_heavy_libraries():
    code = (
        "import kdcourse.cli, sys; "
        "print([name for name in ('torch', 'pandas', 'papermill') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# Where less is installed than grading needs


def in_a_process(preparation, *arguments, **options):
    """Call the command line in a process of its own, after some lines of Python."""
    program = f"{preparation}\nimport kdcourse.cli, sys\nsys.exit(kdcourse.cli.main(sys.argv[1:]))"
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


EXTRA = ["jinja2", "jupytext", "nbformat", "papermill", "psutil", "rich"]
WITHOUT_EXTRA = f"import sys\nsys.modules |= dict.fromkeys({EXTRA})"
WITHOUT_UNIX = """
import os, subprocess, sys, tempfile
for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_DIRECTORY", "killpg", "getuid", "geteuid"):
    delattr(os, name)
sys.modules["fcntl"] = None
"""


@pytest.fixture
def learner(tmp_path):
    """A learner's notebook with one check that passes."""
    code = "from kdcourse.grading.selfcheck import check\\nwith check('One'):\\n    assert True"
    path = tmp_path / "mine.ipynb"
    path.write_text(f'{{"nbformat": 4, "cells": [{{"cell_type": "code", "source": "{code}"}}]}}')
    return path


@pytest.mark.parametrize("preparation", [WITHOUT_EXTRA, WITHOUT_UNIX])
def test_check_needs_no_extra_and_no_unix(preparation, learner):
    done = in_a_process(preparation, "check", learner)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("✓ One\n\n1 of 1 pass, 0 fail.")


def test_check_prints_where_the_console_has_no_such_signs(learner):
    done = in_a_process("", "check", learner, env={**os.environ, "PYTHONIOENCODING": "cp1252"})
    assert done.returncode == 0 and done.stdout.startswith("? One")


@pytest.mark.parametrize(
    "arguments",
    [
        ["assign", DOUBLE, "--out", "out"],
        ["grade", DOUBLE, ".", "--out", "out"],
        ["similar", DOUBLE, "."],
        ["report", "."],
    ],
)
def test_without_the_extra_one_line_says_what_to_install(arguments, tmp_path):
    (tmp_path / "results").mkdir()
    result = {"student": "anna", "status": "graded", "score": 1, "max_score": 1}
    result |= {"parts": [], "seconds": {}}
    (tmp_path / "results" / "anna.json").write_text(json.dumps(result))
    done = in_a_process(WITHOUT_EXTRA, *arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("kdcourse: this needs the module '")
    assert 'python -m pip install "kdcourse[grading] @ git+https://github.com/' in line
    assert not (tmp_path / "out").exists()


# From a wheel, in any folder


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The package as pip installs it, in a folder of its own that comes before the repository."""
    folder = tmp_path_factory.mktemp("installed")
    wheel = build_wheel(folder)
    pip(sys.executable, "install", "--no-deps", "--no-index", "--target", folder / "site", wheel)
    return folder / "site"


# A warm process pays from the third run on.
COLD = "from kdcourse.grading.sandbox import WARM\nWARM.usable = False"


@pytest.fixture
def elsewhere(installed, tmp_path):
    """Calls the installed package's command line from an unrelated folder."""

    def called(*arguments):
        environment = os.environ | {"PYTHONPATH": str(installed)}
        done = in_a_process(COLD, *arguments, cwd=tmp_path, env=environment)
        assert done.returncode == 0, done.stderr
        return " ".join(done.stdout.split())

    return called


def test_a_wheel_hands_out_and_grades_a_master_from_anywhere(elsewhere, tmp_path):
    assert shutil.which("bwrap"), "these tests need bubblewrap: apt install bubblewrap"
    text = MASTER.read_text()
    (tmp_path / "mine.md").write_text(f"{text}\n\nRelease {{{{tag}}}}, {{{{repository}}}}.\n")
    assert "earns 6 points" in elsewhere("assign", "mine.md", "--out", "made")
    assert "Release v0" in (tmp_path / "made" / "student.ipynb").read_text()
    (tmp_path / "class").mkdir()
    shutil.copy(tmp_path / "made" / "solution.ipynb", tmp_path / "class" / "anna.ipynb")
    shutil.copy(tmp_path / "made" / "student.ipynb", tmp_path / "class" / "ben.ipynb")
    elsewhere("grade", "mine.md", "class", "--out", "graded", "--key", "made/key")
    with (tmp_path / "graded" / "grades.csv").open(newline="") as file:
        scores = {row["student"]: row["score"] for row in csv.DictReader(file)}
    assert scores == {"anna": "6", "ben": "0"}
    assert "2 submissions" in elsewhere("similar", "mine.md", "class")
    assert "graded/report.html" in elsewhere("report", "graded")


def test_a_wheel_knows_the_exercises_of_the_course_by_name(elsewhere, installed, tmp_path):
    sources = ROOT / "book" / "sources" / "exercises"
    masters = installed / "kdcourse" / "grading" / "masters"
    assert {path.name for path in masters.iterdir()} == {path.name for path in sources.iterdir()}
    (tmp_path / "class").mkdir()
    assert "0 pairs of 0" in elsewhere("similar", "saturated", "class")


def test_the_source_archive_builds_the_same_wheel(installed, tmp_path):
    """What `pip install` does with an archive, or with a copy of the repository at a tag."""
    build = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", tmp_path]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    shutil.unpack_archive(archive, tmp_path / "unpacked", filter="data")
    (folder,) = (tmp_path / "unpacked").iterdir()
    pip(
        sys.executable,
        *("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path, folder),
    )
    (again,) = tmp_path.glob("*.whl")
    (first,) = installed.parent.glob("*.whl")
    assert zipfile.ZipFile(again).namelist() == zipfile.ZipFile(first).namelist()


def test_an_editable_installation_brings_no_masters(tmp_path):
    """The sandbox shows submissions what is installed."""
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel:editable", "-d", tmp_path]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert names and not [name for name in names if name.startswith("kdcourse/")]
