"""What the tests of the exercises share: a class of right, unchanged and wrong submissions."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import nbformat
import pytest
from classroom import kdcourse, rows

from kdcourse.grading.assign import assign
from kdcourse.grading.key import find_master

Edits = Sequence[tuple[str, str]]
Slips = Mapping[str, tuple[Edits, set[str]]]


def run(*arguments):
    """Run the command line, which must succeed."""
    done = kdcourse(*arguments)
    assert done.returncode == 0, done.stderr


def graded_class(exercise: str, slips: Slips, folder: Path, seeds: tuple[int, int] | None = (1, 2)):
    """Assign an exercise and grade a class: each student's row of the grades, by name.

    Args:
        exercise: its name.
        slips: for each further student, edits of the master's solution (old text, new text) and
            the parts that they cost.
        folder: an empty one, for everything written.
        seeds: of the answer key, the same for every run of the tests; with None they are drawn.

    Returns:
        The rows of `right` (the master), `unchanged` (the student's notebook) and of each slip.
    """
    assert shutil.which("bwrap"), "these tests need bubblewrap: apt install bubblewrap"
    assigned, submissions = folder / "assigned", folder / "submissions"
    assign(find_master(exercise), assigned, isolation="bwrap", seeds=seeds)
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


def exercise_tests(exercise: str, parts: Mapping[str, float], slips: Slips):
    """The fixture and the two tests that every exercise has.

    Args:
        exercise: its name.
        parts: the points of each part.
        slips: as for `graded_class`.

    Returns:
        The graded class by student, a test of master and unchanged notebook, and one of the slips.
    """

    @pytest.fixture(scope="module")
    def table(tmp_path_factory):
        return graded_class(exercise, slips, tmp_path_factory.mktemp(exercise))

    def test_the_master_earns_everything_and_an_untouched_notebook_nothing(table):
        right, unchanged = table["right"], table["unchanged"]
        assert {part: float(right[part]) for part in parts} == dict(parts)
        assert float(right["score"]) == float(right["max_score"]) == sum(parts.values())
        assert unchanged["score"] == "0"
        assert right["status"] == unchanged["status"] == "graded"

    @pytest.mark.parametrize("name", slips)
    def test_a_slip_costs_the_parts_concerned_and_only_these(table, name):
        row = table[name]
        assert row["status"] == "graded"
        assert {part for part in parts if float(row[part]) < parts[part]} == slips[name][1]

    return (
        table,
        test_the_master_earns_everything_and_an_untouched_notebook_nothing,
        test_a_slip_costs_the_parts_concerned_and_only_these,
    )
