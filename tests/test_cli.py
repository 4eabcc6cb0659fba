"""The command line's answers to wrong calls; what it does right is in test_grading."""

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kdcourse.cli import app

DOUBLE = str(Path(__file__).parent / "grading" / "double.md")


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["grade", "nothing-like-this", ".", "--out", "{out}"], "no exercise 'nothing-like-this'"),
        (["grade", "temperature", "no-folder", "--out", "{out}"], "does not exist"),
        (["grade", "temperature", "."], "--out"),
        (["grade", "temperature", ".", "--out", "{out}", "--jobs", "0"], "jobs"),
        (["grade", "temperature", ".", "--out", "{out}", "--sandbox", "maybe"], "maybe"),
        (["grade", DOUBLE, ".", "--out", "{out}", "--key", "{out}"], "not an answer key"),
        (["grade", DOUBLE, ".", "--out", "{out}", "--deadline", "soon"], "a time looks like"),
        (["grade", DOUBLE, ".", "--out", "{out}", "--late-cap", "101"], "late-cap"),
        (["grade", DOUBLE, ".", "--out", "{out}", "--manual", "no-file.csv"], "does not exist"),
        (["similar", "nothing-like-this", "."], "no exercise 'nothing-like-this'"),
        (["similar", DOUBLE, ".", "--threshold", "60"], "threshold"),
        (["assign", DOUBLE, "--out", "{out}/new", "--update"], "not an answer key"),
        (["assign", "nothing-like-this", "--out", "{out}"], "no exercise 'nothing-like-this'"),
        (["check", "no-file.ipynb"], "does not exist"),
        (["report", "{out}"], "holds no results"),
        (["unknown"], "No such command"),
    ],
)
def test_a_wrong_call_ends_with_2_and_says_why(arguments, message, tmp_path):
    done = call(*[argument.format(out=tmp_path) for argument in arguments])
    assert done.exit_code == 2
    assert message in " ".join(done.output.split())
    assert not list(tmp_path.iterdir())


def test_help_names_every_command():
    done = call("--help")
    assert done.exit_code == 0
    for command in ("assign", "grade", "check", "report", "similar"):
        assert command in done.output


def test_the_command_line_starts_without_heavy_libraries():
    code = (
        "import kdcourse.cli, sys; "
        "print([name for name in ('torch', 'pandas', 'papermill') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
