"""What instructors and learners do: mend a check, hand back grades, look for copies, check."""

import csv
import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kdcourse.cli import app

MASTER = Path(__file__).parent / "grading" / "double.md"
RIGHT_DOUBLE = "def double(x):\n    return [2 * value for value in x]\n"
RIGHT_FIT = 'def fit(x, y):\n    return {"slope": (x * y).sum() / (x * x).sum()}\n'
SHIFTED_FIT = 'def fit(x, y):\n    return {"slope": (x * y).sum() / (x * x).sum() + 0.4}\n'


def kdcourse(*arguments, code=0):
    """Call the command line in this process; returns what it printed."""
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == code, done.output
    return " ".join(done.output.split())


def table(out):
    with (out / "grades.csv").open(newline="") as file:
        return {row["student"]: row for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def assigned(tmp_path_factory):
    """A copy of the small exercise, handed out."""
    assert shutil.which("bwrap"), "these tests need bubblewrap: apt install bubblewrap"
    folder = tmp_path_factory.mktemp("assigned")
    shutil.copy(MASTER, folder / "double.md")
    kdcourse("assign", folder / "double.md", "--out", folder)
    return folder


@pytest.fixture(scope="module")
def answered(assigned):
    """The text of a student's notebook with the given answers: `answered(double=..., fit=...)`."""

    def made(**answers):
        notebook = json.loads((assigned / "student.ipynb").read_text())
        for cell in notebook["cells"]:
            name = cell.get("id", "").removeprefix("answer-")
            cell["source"] = answers.get(name, cell["source"])
        return json.dumps(notebook)

    return made


@pytest.fixture(scope="module")
def submissions(answered, tmp_path_factory):
    """Three students: everything right, a slope that is a little off, and a broken file."""
    folder = tmp_path_factory.mktemp("submissions")
    (folder / "anna.ipynb").write_text(answered(double=RIGHT_DOUBLE, fit=RIGHT_FIT))
    (folder / "ben.ipynb").write_text(answered(double=RIGHT_DOUBLE, fit=SHIFTED_FIT))
    (folder / "cleo.ipynb").write_text("{")
    return folder


@pytest.fixture(scope="module")
def graded(assigned, submissions, tmp_path_factory):
    out = tmp_path_factory.mktemp("graded")
    kdcourse("grade", assigned / "double.md", submissions, "--out", out, "--key", assigned / "key")
    return out


# Mending a check


@pytest.fixture
def copied(assigned, graded, tmp_path):
    """The exercise and its graded class, to change as one likes."""
    shutil.copytree(assigned, tmp_path / "exercise")
    shutil.copytree(graded, tmp_path / "graded")
    return tmp_path


def mend(folder, old, new):
    """Change the master and bring its key up to date."""
    master = folder / "exercise" / "double.md"
    text = master.read_text()
    assert old in text
    master.write_text(text.replace(old, new))
    return kdcourse("assign", master, "--out", master.parent, "--update")


def grade_again(folder, submissions):
    exercise = folder / "exercise"
    return kdcourse(
        *("grade", exercise / "double.md", submissions),
        *("--out", folder / "graded", "--key", exercise / "key"),
    )


def test_a_mended_check_judges_the_stored_answers_and_runs_nothing(
    copied, submissions, monkeypatch
):
    assert table(copied / "graded")["ben"]["fit"] == "0"
    seeds = json.loads((copied / "exercise" / "key" / "key.json").read_text())
    mend(copied, "float(error < 0.2)", "float(error < 0.9)")
    assert json.loads((copied / "exercise" / "key" / "key.json").read_text()) == seeds
    monkeypatch.setattr("kdcourse.grading.grade.executed_for", None)  # a run would raise
    said = grade_again(copied, submissions)
    assert "0 results kept, 2 to judge again from stored answers, 1 to run" in said
    rows = table(copied / "graded")
    assert [row["fit"] for row in rows.values()] == ["2", "2", "0"]
    assert [row["double"] for row in rows.values()] == ["4", "4", "0"]
    assert "3 results kept, 0 to judge again" in grade_again(copied, submissions)


def test_judging_again_gives_what_running_again_gives(copied, submissions):
    mend(copied, "points: 4, answers: [small, large]", "points: 8, answers: [small]")
    assert "2 to judge again" in grade_again(copied, submissions)
    judged = (copied / "graded" / "grades.csv").read_bytes()
    assert table(copied / "graded")["anna"]["score"] == "10"
    shutil.rmtree(copied / "graded" / "results")
    assert "0 to judge again from stored answers, 3 to run" in grade_again(copied, submissions)
    assert (copied / "graded" / "grades.csv").read_bytes() == judged


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("generator.integers(1, 9, size=5)", "generator.integers(1, 8, size=5)"),
        ('answer("small", double(', 'answer("small", double(2 * '),
        ("repeats = 1", "repeats = 2"),
        ("parameters: {repeats: 3}", "parameters: {repeats: 4}"),
        ("got == [4]", "got == [2 + 2]"),
    ],
)
def test_what_changes_a_run_is_run_again(copied, submissions, old, new):
    mend(copied, old, new)
    assert "0 to judge again from stored answers, 3 to run" in grade_again(copied, submissions)


def test_stored_answers_that_were_touched_are_not_believed(copied, submissions):
    mend(copied, "float(error < 0.2)", "float(error < 0.9)")
    anna, ben = sorted((copied / "graded" / "answers").iterdir())
    shutil.copy(anna, ben)
    assert "1 to judge again from stored answers, 2 to run" in grade_again(copied, submissions)


def test_a_changed_master_without_an_update_is_noticed(copied, submissions):
    master = copied / "exercise" / "double.md"
    assert "has changed" not in grade_again(copied, submissions)
    master.write_text(master.read_text().replace("Look at the sign", "Look at it"))
    assert "double.md has changed since" in grade_again(copied, submissions)


def test_an_update_needs_the_key_of_the_same_exercise(copied):
    exercise = copied / "exercise"
    kdcourse("assign", exercise / "double.md", "--out", exercise, code=2)
    said = kdcourse("assign", MASTER, "--out", copied / "new", "--update", code=2)
    assert "not an answer key" in said
    shutil.copy(exercise / "double.md", copied / "other.md")
    said = kdcourse("assign", copied / "other.md", "--out", exercise, "--update", code=2)
    assert "is the key of 'double', not 'other'" in said
