"""One graded run: a prepared notebook in, its answers and what became of it out."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdcourse import notebooks

from . import sandbox
from .available import imported_names, package_copies
from .files import FileProblem, parse_json, read_regular, scratch_folder
from .key import Key
from .submission import encodable

MAX_SHOWN = 100
MAX_SECONDS = 10**6


class MachineFailure(RuntimeError):  # noqa: N818 - a finding, not a fault of ours
    """Why a run says nothing about its submission."""


@dataclass
class Run:
    """What a run left behind: `answers` is a folder that only `compare` should read."""

    status: str
    answers: Path
    note: str = ""
    errors: list[dict[str, str]] = field(default_factory=list)
    outputs: list[dict[str, str]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    peak_mib: int = 0


@contextlib.contextmanager
def executed_for(
    key: Key,
    notebook: Any,
    *,
    limits: sandbox.Limits,
    isolation: sandbox.Sandbox,
    alone: bool = False,
    warm: bool = True,
) -> Iterator[Run]:
    """Run a notebook as an answer key says; its files are gone when the block ends.

    Args:
        key: knows the parameters, the hidden inputs and the functions that only raise.
        notebook: what `submission.rebuild` made.
        limits: when to stop it.
        isolation: how to keep it apart.
        alone: nothing else of ours runs, so that memory which runs out was used up by this.
        warm: see `sandbox.run`.

    Raises:
        MachineFailure: when the run was ended by what is no fault of its own.
    """
    import nbformat
    import numpy as np

    exercise = key.exercise
    parameters = dict(exercise.parameters)
    if exercise.seed_parameter:
        parameters[exercise.seed_parameter] = key.seed
    with scratch_folder() as base:
        job, scratch, packages = base / "job", base / "scratch", base / "packages"
        for folder in (job, scratch, packages):
            folder.mkdir()
        settings = {
            "parameters": parameters,
            "seconds": limits.seconds,
            "memory_mib": limits.memory_mib,
            "output_bytes": limits.output_bytes,
            # counted per sandbox; without one it would count all processes of the user
            "processes": 4 * limits.processes if isolation == "bwrap" else None,
            "file_bytes": limits.disk_mib * 2**20 // 4,
            "data_bytes": 2 * limits.memory_mib * 2**20,
            "descriptors": limits.descriptors,
            "closed": isolation == "bwrap",
        }
        (job / "job.json").write_text(json.dumps(settings), encoding="utf-8")
        nbformat.write(notebook, job / "notebook.ipynb")
        np.savez(job / "inputs.npz", **key.inputs)
        copies = package_copies(
            packages, available=imported_names(key.master), blocked=exercise.blocked
        )
        started = sandbox.run(
            job, scratch, copies=copies, limits=limits, sandbox=isolation, warm=warm
        )
        with started as (outcome, written):
            yield _describe(outcome, notebook, written, limits, alone)


def _describe(
    outcome: sandbox.Outcome, notebook: Any, written: Path, limits: sandbox.Limits, alone: bool
) -> Run:
    """Turn what is left of a run into a status and words; everything in `written` is untrusted."""
    report = _load(written / "report", "run.json", 2**20)
    report = report if isinstance(report, dict) else {}
    executed = _load(written / "report", "executed.ipynb", 2**26)
    errors, outputs, cell_seconds = _cells(executed, notebook)
    finished = report.get("finished") and not report.get("died")
    too_much = outcome.reason == "memory" or report.get("too_much_memory")
    starved = outcome.reason == "ended" and not finished and not too_much and outcome.starved
    if starved and not (alone and outcome.room):
        raise MachineFailure("the kernel ended the run because this machine had no memory left")
    status, note = "graded", ""
    if outcome.reason == "timeout":
        status, note = "timeout", f"stopped after {limits.seconds:g} seconds"
    elif too_much:
        status, note = "memory", f"stopped: more than {limits.memory_mib} MiB of memory"
    elif outcome.reason == "processes":
        status, note = "killed", f"stopped: more than {limits.processes} processes"
    elif outcome.reason == "disk":
        status, note = "killed", f"stopped: more than {limits.disk_mib} MiB of files"
    elif starved:
        status, note = "memory", "stopped: it used up this machine's memory"
    elif not finished:
        status, note = "killed", "the kernel died before the notebook's end"
    elif report.get("timed_out"):
        status, note = "timeout", "a cell ran too long and was interrupted"
    elif any(error["name"] == "MemoryError" for error in errors):
        status, note = "memory", "a cell asked for more memory than there is"
    elif errors:
        status, note = "error", "a cell raised an exception"
    seconds = {"total": round(outcome.seconds, 3), "cells": round(cell_seconds, 3)}
    return Run(
        status=status,
        answers=written / "answers",
        note=note,
        errors=errors,
        outputs=outputs,
        seconds=seconds,
        peak_mib=outcome.peak_mib,
    )


def _load(folder: Path, name: str, max_bytes: int) -> Any:
    try:
        return parse_json(read_regular(Path(name), max_bytes=max_bytes, inside=folder))
    except (FileProblem, ValueError):
        return None


def _cells(content: Any, notebook: Any) -> tuple[list[dict], list[dict], float]:
    """Errors and printed text of the learner's cells, by cell id, and the time of all cells.

    Both are cut at `MAX_SHOWN` entries: a page of feedback is to be read.
    """
    shown = {cell.id for cell in notebook.cells if "probe" not in notebooks.tags(cell)}
    errors: list[dict[str, str]] = []
    outputs: list[dict[str, str]] = []
    seconds = 0.0
    try:
        for cell in content["cells"]:
            duration = float(cell["metadata"].get("papermill", {}).get("duration") or 0)
            seconds += duration if 0 <= duration < MAX_SECONDS else 0
            for output in cell.get("outputs", []) if cell.get("id") in shown else []:
                if output["output_type"] == "error":
                    errors.append(
                        {
                            "cell": _plain(cell["id"], 100),
                            "name": _plain(output["ename"], 100),
                            "message": _plain(output["evalue"], 500),
                        }
                    )
                elif output["output_type"] == "stream":
                    text = _plain("".join(output["text"]), 2000)
                    outputs.append({"cell": _plain(cell["id"], 100), "text": text})
    except (TypeError, KeyError, AttributeError, ValueError, OverflowError):
        pass  # the submission tampered with the file: there is nothing to show
    return errors[:MAX_SHOWN], outputs[:MAX_SHOWN], seconds


def _plain(value: Any, length: int) -> str:
    """Somebody else's text, cut."""
    return encodable(str(value)[:length])
