"""What the tests of the exercises share: a class of right, unchanged and wrong submissions."""

import re
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path

import nbformat
import pytest
from cells import Edits, earned, replace, tried
from classroom import call, rows

from kdcourse.grading.assign import assign
from kdcourse.grading.key import find_master

Slips = Mapping[str, tuple[Edits, set[str]]]
IN_THE_SANDBOX = "package"  # only there is the package's own solution switched off
# Cells that no probe needs: what a learner sees is tested without a sandbox.
SHOWN = r"^```\{code-cell\} ipython3\n:id: (?:check-|run-|plot|conclude).*?^```\n"


def small_master(exercise: str, edits: Edits, folder: Path) -> Path:
    """A copy of a master without public checks and plots, and with some other text replaced."""
    text = find_master(exercise).read_text(encoding="utf-8")
    cell = {"source": re.sub(SHOWN, "", text, flags=re.M | re.S)}
    replace([cell], edits)
    folder.mkdir()
    path = folder / f"{exercise}.md"
    path.write_text(cell["source"], encoding="utf-8")
    return path


def graded_class(master: Path, slips: Slips, folder: Path, seeds: tuple[int, int] | None = (1, 2)):
    """Assign an exercise and grade a class: each student's row of the grades, by name.

    Args:
        master: its source.
        slips: for each further student, edits of the master's solution (old text, new text) and
            the parts that they cost. To assign a master runs it, too, and asks it for full marks.
        folder: an empty one, for everything written.
        seeds: of the answer key, the same for every run of the tests; with None they are drawn.

    Returns:
        The rows of `unchanged` (the student's notebook) and of each slip.
    """
    assert shutil.which("bwrap"), "these tests need bubblewrap: apt install bubblewrap"
    assigned, submissions = folder / "assigned", folder / "submissions"
    assign(master, assigned, isolation="bwrap", seeds=seeds)
    submissions.mkdir()
    shutil.copy(assigned / "student.ipynb", submissions / "unchanged.ipynb")
    for name, (edits, _) in slips.items():
        notebook = nbformat.read(assigned / "solution.ipynb", as_version=4)
        replace(notebook.cells, edits)
        nbformat.write(notebook, submissions / f"{name}.ipynb")
    out, key = folder / "graded", assigned / "key"
    code, printed = call("grade", master, submissions, "--out", out, "--key", key)
    assert code == 0, printed
    return rows(out)


def check_class(table, parts: Mapping[str, float], slips: Slips) -> None:
    """An untouched notebook earns nothing, and a slip costs the parts concerned and only these."""
    for row in table.values():
        assert row["status"] == "graded"
        assert float(row["max_score"]) == sum(parts.values())
    lost = {
        name: {part for part in parts if float(row[part]) < parts[part]}
        for name, row in table.items()
    }
    assert lost == {"unchanged": set(parts), **{name: slips[name][1] for name in slips}}
    assert table["unchanged"]["score"] == "0"


def sandbox_test(exercise: str, parts: Mapping[str, float], slips: Slips, small: Edits = ()):
    """The test that every exercise has: master, unchanged notebook and one slip in the sandbox.

    The other slips are judged in the tests' own process; `long` has all of them in the sandbox, at
    the exercise's full budget.

    Args:
        exercise: its name.
        parts: the points of each part.
        slips: as for `graded_class`.
        small: edits of the master that let its probes train for less long.
    """

    def test(tmp_path, warm):
        master = small_master(exercise, small, tmp_path / "master")
        chosen = {IN_THE_SANDBOX: slips[IN_THE_SANDBOX]}
        check_class(graded_class(master, chosen, tmp_path), parts, chosen)

    return test


def slip_test(parts: Mapping[str, float], slips: Slips, trained: Collection[str] = ()):
    """The test that slips cost their own parts, judged in this process; it needs `key`.

    Args:
        parts: the points of each part.
        slips: as for `graded_class`.
        trained: parts that are left to `long`, because only long trainings tell good from bad.
    """

    @pytest.mark.parametrize("name", [name for name in slips if name != IN_THE_SANDBOX])
    def test(key, tmp_path, name):
        edits, lost = slips[name]
        points = earned(key, tmp_path / "answers", edits)
        judged = parts.keys() - set(trained)
        assert {part for part in judged if points[part] < parts[part]} == lost & judged

    return test


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
