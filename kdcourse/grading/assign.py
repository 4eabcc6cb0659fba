"""From one master notebook: the student's notebook, its solution, and the private answer key."""

import json
import secrets
import shutil
from pathlib import Path
from typing import Any

from kdcourse import notebooks

from .execute import executed_for
from .files import write_atomic
from .key import FORMAT, Key, declared
from .sandbox import Limits, Sandbox
from .score import score_parts
from .selfcheck import MARKS
from .submission import rebuild


def assign(
    master_path: Path,
    out: Path,
    *,
    isolation: Sandbox,
    update: bool = False,
    seeds: tuple[int, int] | None = None,
) -> Key:
    """Write `out/student.ipynb`, `out/solution.ipynb` and the private key `out/key/`.

    The hidden seeds are drawn now, unless they are given. The master's own run gives the
    reference answers, and must earn every point; a master that does not is refused.

    Args:
        master_path: the exercise's source.
        out: folder for the three.
        isolation: how to keep the master's run apart.
        update: bring an existing key up to date with its master; its hidden seeds stay.
        seeds: of what the probes get and of what is held out, for a key that can be made again.
            Whoever knows them knows the answers: a class needs drawn ones.

    Raises:
        ValueError: for a faulty master, or unless `out/key` exists exactly when it is updated.
    """
    import nbformat

    master = notebooks.read_source(master_path, explicit_ids=True)
    name = master_path.stem
    key = write_key(master, name, out / "key", isolation=isolation, update=update, seeds=seeds)
    for kind, made in {
        "student": notebooks.student_version(master),
        "solution": notebooks.solution_version(master),
    }.items():
        write_atomic(out / f"{kind}.ipynb", (nbformat.writes(made) + "\n").encode())
    return key


def write_key(
    master: Any,
    name: str,
    folder: Path,
    *,
    isolation: Sandbox,
    update: bool = False,
    seeds: tuple[int, int] | None = None,
) -> Key:
    """Draw the hidden seeds, run the master for the reference answers, and check its score."""
    import nbformat
    import numpy as np

    exercise = declared(master, name)
    previous = folder.with_name(f".{folder.name}.previous")
    if previous.exists() and not folder.exists():  # an update was stopped between two steps
        previous.rename(folder)
    if update:
        earlier = Key(folder)
        if earlier.exercise.name != name:
            raise ValueError(f"{folder} is the key of {earlier.exercise.name!r}, not {name!r}")
        seeds = earlier.seed, earlier.held_out_seed
    elif folder.exists():
        raise ValueError(
            f"{folder} exists already: a new key would not match what it graded. Mended the "
            "master? `assign --update` keeps the hidden inputs."
        )
    elif seeds is None:
        seeds = secrets.randbelow(2**31), secrets.randbelow(2**31)
    draft = folder.with_name(f".{folder.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True, mode=0o700)
    content = {
        "format": FORMAT,
        "exercise": name,
        "seed": seeds[0],
        "held_out_seed": seeds[1],
    }
    (draft / "key.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    nbformat.write(master, draft / "master.ipynb")

    key = Key(draft)
    np.savez(draft / "inputs.npz", **key.arrays("hidden_inputs", key.seed))
    limits = Limits(3 * exercise.seconds, exercise.memory)
    solved = rebuild(master, [], solved=True)
    for cell in solved.cells:  # what a probe raises is told, to the author
        cell.metadata["tags"] = [tag for tag in notebooks.tags(cell) if tag != "probe"]
    with executed_for(key, solved, limits=limits, isolation=isolation, warm=False) as run:
        if run.status != "graded" or not run.answers.is_dir():
            errors = [f"{e['cell']}: {e['name']}: {e['message']}" for e in run.errors]
            words = "\n  in the cell ".join([run.note or "no probe returned anything", *errors])
            raise ValueError(f"the master of {name} does not run: {words}")
        failed = [out["text"] for out in run.outputs if MARKS["wrong"] in out["text"]]
        if failed:
            raise ValueError(f"the master of {name} fails its own public checks: {failed}")
        shutil.copytree(run.answers, draft / "reference")
        missing = [
            answer
            for part in exercise.parts
            for answer in part.answers
            if not list((draft / "reference").glob(f"{answer}.*"))
        ]
        if missing:
            raise ValueError(f"the master of {name} does not answer {missing}")
        lost = [found for found in score_parts(run.answers, key) if found.score < found.points]
        if lost:
            raise ValueError(f"the master of {name} does not earn its own points: {lost}")
    if update:
        shutil.rmtree(previous, ignore_errors=True)
        folder.rename(previous)
        draft.rename(folder)
        shutil.rmtree(previous)
    else:
        draft.rename(folder)
    return Key(folder)
