"""`kdcourse check`: the learner's own notebook, run afresh on the learner's own machine.

It needs nothing but IPython, so that it works in Colab too, and knows nothing of grading's hidden
inputs. An exercise says in its `quick` parameters how its long cells become short ones.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from kdcourse.notebooks import QUICK

from .notes import notes
from .selfcheck import MARKS
from .submission import parse_cells, read_bytes
from .submit import this_notebook

CHECKING = "KDCOURSE_CHECKING"
HINTS = {
    "NameError": "Is it defined further up? The cells run from top to bottom, in a fresh process.",
    "EOFError": "Nobody is there to answer input(): grading runs without a keyboard.",
    "ModuleNotFoundError": "Grading has only what the exercise itself imports.",
}


def check_notebook(seconds: float = 600) -> None:
    """Run the public checks of the notebook this is called in, as it was last saved.

    In Colab it need not be saved. Inside a check, and while grading, it does nothing.

    Args:
        seconds: for the whole notebook.
    """
    if os.environ.get(CHECKING) or os.environ.get("KDCOURSE_JOB"):
        return
    notebook = this_notebook()
    if notebook is None:
        print("Save this notebook (Ctrl+S), then run in a terminal: kdcourse check NOTEBOOK")
        return
    for line in run_checks(json.dumps({"nbformat": 4, **notebook}).encode(), seconds=seconds):
        print(line, flush=True)


def check_file(path: Path, *, seconds: float) -> Iterator[str]:
    """The lines of `run_checks` for a file.

    Raises:
        InvalidSubmission: when the file is not a notebook.
    """
    return run_checks(read_bytes(path), seconds=seconds)


def run_checks(notebook: bytes, *, seconds: float) -> Iterator[str]:
    """Run a notebook and say, line by line, what its checks say and what its cells raise.

    Args:
        notebook: the file's content.
        seconds: for the whole notebook.

    Raises:
        InvalidSubmission: when it is not a notebook.
    """
    cells = parse_cells(notebook)
    code = [cell for cell in cells if cell["type"] == "code"]
    places = _places(cells)
    told = _told(_quick([cell["source"] for cell in code]), places, seconds)
    return chain(notes(notebook, code, places), told)


def _told(code: list[str], places: list[str], seconds: float) -> Iterator[str]:
    """The lines for the learner, as they come, and a summary."""
    seen: Counter[str] = Counter()
    done, current = 0, 0
    for event in _events(code, seconds):
        current = event.get("cell", current)
        done += "printed" in event
        for kind, line in _lines(event, places):
            seen[kind] += 1
            yield line
        if event.get("timeout"):
            break
    if done < len(code):
        ended = "is still running" if event.get("timeout") else "ended the whole process"
        seen["wrong"] += 1
        yield f"{MARKS['wrong']} A cell {ended}\n  Look {places[current]}"
        if left := len(code) - current - 1:
            yield f"  Cells below it that were not run: {left}."
    yield ""
    yield _summary(seen)


def _summary(seen: Counter[str]) -> str:
    total = sum(seen.values())
    if not total:
        return "This notebook has no checks."
    unanswered = f", {seen['open']} not answered yet" if seen["open"] else ""
    return (
        f"{seen['right']} of {total} pass, {seen['wrong']} fail{unanswered}. "
        "These are examples: grading asks the same with other inputs."
    )


def _lines(event: dict[str, Any], places: list[str]) -> Iterator[tuple[str, str]]:
    """What one finished cell has to say: the checks in it, then what it raised."""
    if "printed" not in event:
        return
    where = places[event["cell"]]
    for line in event["printed"].splitlines():
        kind = next((kind for kind, mark in MARKS.items() if line.startswith(f"{mark} ")), None)
        if kind is not None:
            yield kind, line if kind != "wrong" else f"{line}\n  Look {where}"
    error = event["error"]
    if error is None:
        return
    if error["open"]:
        yield "open", f"{MARKS['open']} A cell is not answered yet\n  Look {where}"
        return
    place = places[error["in"]] if error["in"] is not None else where
    line = f", line {error['line']}: {error['code'].strip()}" if error["line"] else ""
    said = f"{error['name']}: {error['message']}" if error["message"] else error["name"]
    words = f"{MARKS['wrong']} {said}\n  Look {place}{line}"
    hint = HINTS.get(error["name"])
    yield "wrong", f"{words}\n  {hint}" if hint else words


def _events(code: list[str], seconds: float) -> Iterator[dict[str, Any]]:
    """What `check_run` reports, and an event of our own when time is up."""
    with tempfile.TemporaryDirectory(prefix="kdcourse-") as folder:
        cells = Path(folder) / "cells.json"
        cells.write_text(json.dumps(code), encoding="utf-8")
        # The copy is not the notebook: its last cell must not write a submission.
        kept = {name: value for name, value in os.environ.items() if name != "JPY_SESSION_NAME"}
        child = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("check_run.py")), str(cells)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
            env={**kept, CHECKING: "1", "MPLBACKEND": "agg", "IPYTHONDIR": folder},
            start_new_session=True,
        )
        late = threading.Event()

        def stop() -> None:
            late.set()
            _end(child)

        timer = threading.Timer(seconds, stop)
        timer.start()
        try:
            assert child.stdout is not None
            for line in child.stdout:
                yield json.loads(line)
            if late.is_set():
                yield {"timeout": True}
        finally:
            timer.cancel()
            _end(child)


def _end(child: subprocess.Popen) -> None:
    """End the process and what it started."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
    else:
        child.kill()
    child.wait()


def _quick(code: list[str]) -> list[str]:
    """The cells, with the small values that the exercise names put after its parameters."""
    return [
        f"{source}\n{found[1]}" if (found := re.search(QUICK, source, re.M)) else source
        for source in code
    ]


def _places(cells: list[dict[str, Any]]) -> list[str]:
    """For each code cell the words that help to find it: the heading above, and how it begins."""
    heading, places = "at the top", []
    for cell in cells:
        if cell["type"] == "markdown":
            titles = re.findall(r"^#+ +(.+)$", cell["source"], re.M)
            heading = f"under “{titles[-1]}”" if titles else heading
        elif cell["type"] == "code":
            lines = [line for line in cell["source"].splitlines() if line.strip()]
            places.append(f"{heading}, at the cell ‘{lines[0].strip()[:60]}’" if lines else heading)
    return places
