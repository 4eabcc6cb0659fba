"""Run a notebook's code cells one after another; the process that `check` starts.

Started as a script (`python check_run.py CELLS`), so that it costs no import of the package and
needs no more than IPython. It writes one line of JSON a cell to standard output; what the cells
themselves print goes into these lines.
"""

import contextlib
import io
import json
import linecache
import os
import sys
import traceback
from pathlib import Path
from typing import Any

LIMIT = 1_000_000  # characters that one cell may print; the rest is dropped


class Printed(io.StringIO):
    """What a cell prints, up to `LIMIT`."""

    def write(self, text: str) -> int:
        """Keep what still fits."""
        super().write(text[: max(0, LIMIT - self.tell())])
        return len(text)


def run(sources: list[str], report: Any) -> None:
    """Run every cell, whatever the others raise, and report what each printed and raised."""
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config

    config = Config()
    config.HistoryManager.enabled = False
    shell = InteractiveShell.instance(config=config, colors="nocolor")
    cell_of: dict[str, int] = {}
    for number, source in enumerate(sources):
        known = set(linecache.cache)
        printed = Printed()
        print(json.dumps({"cell": number}), file=report, flush=True)
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            outcome = shell.run_cell(source)
        cell_of |= dict.fromkeys(set(linecache.cache) - known, number)
        error = outcome.error_before_exec or outcome.error_in_exec
        done = {
            "cell": number,
            "printed": printed.getvalue(),
            "error": None if error is None else described(error, cell_of),
        }
        print(json.dumps(done), file=report, flush=True)


def described(error: BaseException, cell_of: dict[str, int]) -> dict[str, Any]:
    """What was raised, and the innermost line of the notebook that led to it."""
    place: dict[str, Any] = {"in": None, "line": None, "code": ""}
    if isinstance(error, SyntaxError) and error.filename in cell_of:
        place = {"in": cell_of[error.filename], "line": error.lineno, "code": error.text or ""}
    for frame in traceback.extract_tb(error.__traceback__):
        if frame.filename in cell_of:
            place = {"in": cell_of[frame.filename], "line": frame.lineno, "code": frame.line or ""}
    message = error.msg if isinstance(error, SyntaxError) else str(error)
    return {"name": type(error).__name__, "message": message, **place}


if __name__ == "__main__":
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as report:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what child processes print
        run(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), report)
