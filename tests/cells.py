"""An exercise's cells, run in this process: what a submission is told, and what it earns.

No sandbox and no kernel, so that many slips can be tried in seconds.
"""

import contextlib
import io
import json
import linecache
import os
import re
import warnings
from collections.abc import Collection, Iterator, Sequence
from functools import cache
from pathlib import Path
from unittest import mock

import nbformat
import numpy as np

from kdcourse import data, notebooks
from kdcourse.grading.key import FORMAT, Key, find_master
from kdcourse.grading.score import score_parts
from kdcourse.grading.submission import rebuild

Edits = Sequence[tuple[str, str]]
NOT_RUN = {"setup", "plot", "hand-in"}
# Drawn once for all cells that are run in this process.
PICTURES = {name: cache(getattr(data, name)) for name in ("textured_shapes", "digit_scenes")}


def replace(cells, edits: Edits) -> None:
    """Replace text in cells, in place; each old text must stand there exactly once."""
    for old, new in edits:
        found = sum(cell["source"].count(old) for cell in cells)
        assert found == 1, f"the master contains {old!r} {found} times"
        for cell in cells:
            cell["source"] = cell["source"].replace(old, new)


def edited(master, edits: Edits):
    """The master's own solution with some text replaced, as a run has it: with the probes."""
    cells = [
        {"ids": [cell.id], "type": cell.cell_type, "source": cell.source}
        for cell in notebooks.solution_version(master).cells
    ]
    replace(cells, edits)
    return rebuild(master, cells).cells


def named(cell, ids: Collection[str]) -> bool:
    """Whether a cell has one of these ids, or one made of it: `check-loss-2` of `check-loss`."""
    return any(cell.id == each or cell.id.startswith(f"{each}-") for each in ids)


@cache
def read_master(exercise: str):
    """An exercise's master, which nobody changes."""
    return notebooks.read_source(find_master(exercise), explicit_ids=True)


def run_cell(cell, namespace: dict) -> None:
    """Run one cell, of the parameters with the small values; messages can quote its lines."""
    quick = re.search(notebooks.QUICK, cell.source, re.M)
    source = f"{cell.source}\n{quick[1]}" if quick else cell.source
    file = f"<{cell.id}>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    exec(compile(source, file, "exec"), namespace)


@contextlib.contextmanager
def quietly(printed: io.StringIO) -> Iterator[None]:
    """Cells run in here warn of nothing, print elsewhere, and get the pictures without waiting."""
    with (
        contextlib.redirect_stdout(printed),
        warnings.catch_warnings(),
        mock.patch.multiple(data, **PICTURES),
    ):
        warnings.simplefilter("ignore")
        yield


def told(exercise: str, edits: Edits = (), skip: Collection[str] = ()) -> list[str]:
    """The lines that the public checks print for a submission, in order.

    Args:
        exercise: its name.
        edits: of the master's solution, (old text, new text).
        skip: ids of cells that are not run.
    """
    master = read_master(exercise)
    namespace: dict = {"__name__": "__main__"}
    printed = io.StringIO()
    with quietly(printed):
        for cell in edited(master, edits):
            hidden = "probe" in notebooks.tags(cell) or named(cell, {*NOT_RUN, *skip})
            if cell.cell_type == "code" and not hidden:
                run_cell(cell, namespace)
    return [line for line in printed.getvalue().splitlines() if line[:1] in "✓✗–"]


def make_key(exercise: str, folder: Path, skip: Collection[str] = (), small: Edits = ()) -> Key:
    """The answer key of an exercise, with fixed seeds.

    Args:
        exercise: its name, or its master's path.
        folder: a new folder for it.
        skip: ids of probes that are left out.
        small: edits of the master.
    """
    folder.mkdir()
    content = {"format": FORMAT, "exercise": Path(exercise).stem, "seed": 1, "held_out_seed": 2}
    (folder / "key.json").write_text(json.dumps(content), encoding="utf-8")
    master = notebooks.read_source(find_master(exercise), explicit_ids=True)
    master.cells = [cell for cell in master.cells if not named(cell, skip)]
    replace(master.cells, small)
    nbformat.write(master, folder / "master.ipynb")
    key = Key(folder)
    np.savez(folder / "inputs.npz", **key.arrays("hidden_inputs", key.seed))
    run_probes(key, folder / "reference")
    return key


def run_probes(key: Key, answers: Path, edits: Edits = (), skip: Collection[str] = ()) -> None:
    """Run answers and probes as grading does: what a cell raises ends only this cell."""
    answers.mkdir()
    namespace: dict = {"__name__": "__main__"}
    os.environ.update(KDCOURSE_JOB=str(key.folder), KDCOURSE_ANSWERS=str(answers))
    try:
        with quietly(io.StringIO()):
            for cell in edited(key.master, edits):
                left_out = named(cell, {*NOT_RUN, *skip}) or cell.id.startswith(("check-", "run-"))
                if cell.cell_type == "code" and not left_out:
                    with contextlib.suppress(Exception):
                        run_cell(cell, namespace)
    finally:
        del os.environ["KDCOURSE_JOB"], os.environ["KDCOURSE_ANSWERS"]


def earned(
    key: Key, answers: Path, edits: Edits = (), skip: Collection[str] = ()
) -> dict[str, float]:
    """The points that a submission earns, by part.

    Args:
        key: what `make_key` made.
        answers: a new folder for what the probes return.
        edits: of the master's solution, (old text, new text).
        skip: ids of cells that are not run; their parts earn nothing.
    """
    run_probes(key, answers, edits, skip)
    return {part.part: part.score for part in score_parts(answers, key)}


def tried(
    key: Key, answers: Path, edits: Edits, left_out: Collection[str] = ()
) -> tuple[str, set[str]]:
    """What a learner reads where a check fails, and the parts that lose points.

    Parts whose probe is left out do not count. Arguments as for `earned`.
    """
    read = [line for line in told(key.exercise.name, edits, left_out) if line[0] != "✓"]
    points = earned(key, answers, edits, left_out)
    asked = [part for part in key.exercise.parts if f"probe-{part.part}" not in left_out]
    return "\n".join(read), {part.part for part in asked if points[part.part] < part.points}
