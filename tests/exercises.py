"""What the tests of the exercises share: a class of right, unchanged and wrong submissions."""

import shutil
from collections.abc import Collection, Mapping
from pathlib import Path

import nbformat
import pytest
from cells import Edits, replace, tried
from classroom import kdcourse, rows

from kdcourse.grading.assign import assign
from kdcourse.grading.key import find_master

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
        replace(notebook.cells, edits)
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


def told_test(slips: Mapping[str, tuple[Edits, Collection[str], set[str], str]]):
    """The test that a slip is told by the public checks and costs its own parts; it needs `key`.

    Args:
        slips: by name, edits of the master's solution, the ids of cells left out, the parts that
            lose points, and words that the learner reads.
    """

    @pytest.mark.parametrize("name", slips)
    def test(key, tmp_path, name):
        edits, left_out, lost, words = slips[name]
        read, found = tried(key, tmp_path / "answers", edits, left_out)
        assert words in read
        assert found == lost

    return test
