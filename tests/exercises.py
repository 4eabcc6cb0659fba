"""What the tests of the exercises share: a class of right, unchanged and wrong submissions."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import nbformat
from classroom import kdcourse, rows

Edits = Sequence[tuple[str, str]]


def run(*arguments):
    """Run the command line, which must succeed."""
    done = kdcourse(*arguments)
    assert done.returncode == 0, done.stderr


def graded_class(exercise: str, slips: Mapping[str, tuple[Edits, set[str]]], folder: Path):
    """Assign an exercise and grade a class: each student's row of the grades, by name.

    Args:
        exercise: its name.
        slips: for each further student, edits of the master's solution (old text, new text) and
            the parts that they cost.
        folder: an empty one, for everything written.

    Returns:
        The rows of `right` (the master), `unchanged` (the student's notebook) and of each slip.
    """
    assert shutil.which("bwrap"), "these tests need bubblewrap: apt install bubblewrap"
    assigned, submissions = folder / "assigned", folder / "submissions"
    run("assign", exercise, "--out", assigned)
    submissions.mkdir()
    shutil.copy(assigned / "solution.ipynb", submissions / "right.ipynb")
    shutil.copy(assigned / "student.ipynb", submissions / "unchanged.ipynb")
    for name, (edits, _) in slips.items():
        notebook = nbformat.read(assigned / "solution.ipynb", as_version=4)
        for old, new in edits:
            found = sum(cell.source.count(old) for cell in notebook.cells)
            assert found == 1, f"the master contains {old!r} {found} times"
            for cell in notebook.cells:
                cell.source = cell.source.replace(old, new)
        nbformat.write(notebook, submissions / f"{name}.ipynb")
    out, key = folder / "graded", assigned / "key"
    run("grade", exercise, submissions, "--out", out, "--key", key, "--jobs", 2)
    return rows(out)


def lost(row: Mapping[str, str], parts: Mapping[str, float]) -> set[str]:
    """The parts of which a student did not get every point."""
    return {part for part, points in parts.items() if float(row[part]) < points}


def assert_full_and_nothing(table: Mapping[str, Mapping[str, str]], parts: Mapping[str, float]):
    """The master earns every point of every part, an untouched notebook none."""
    right, unchanged = table["right"], table["unchanged"]
    assert {part: float(right[part]) for part in parts} == dict(parts)
    assert float(right["score"]) == float(right["max_score"]) == sum(parts.values())
    assert unchanged["score"] == "0"
    assert right["status"] == unchanged["status"] == "graded"
