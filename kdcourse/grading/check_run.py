"""Run a notebook's code cells one after another; the process that `check` starts.

Started as a script (`python check_run.py CELLS`), so that it costs no import of the package and
needs no more than IPython. It writes one line of JSON a cell to standard output; what the cells
themselves print goes into these lines.
"""

import ast
import contextlib
import difflib
import io
import json
import linecache
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import CodeType
from typing import Any

from IPython.core.compilerop import CachingCompiler
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

LIMIT = 1_000_000  # characters that one cell may print; the rest is dropped
MOST_NAMED = 5  # of the exceptions in a group


class Printed(io.StringIO):
    """What a cell prints, up to `LIMIT`."""

    def write(self, text: str) -> int:
        """Keep what still fits."""
        super().write(text[: max(0, LIMIT - self.tell())])
        return len(text)


class CellCompiler(CachingCompiler):
    """IPython's compiler, which here remembers the cell that each piece of code came from.

    Attributes:
        cell_of: the number of the cell, by the file name that its code was compiled under.
        sources: the cells as they stand in the notebook.
    """

    def __init__(self, sources: Sequence[str]) -> None:
        super().__init__()
        self.reset_compiler_flags()  # otherwise "incomplete input" is all that an open bracket says
        self.sources = sources
        self.cell_of: dict[str, int] = {}
        self._now = 0

    def begin(self, cell: int) -> None:
        """What is compiled from here on belongs to this cell."""
        self._now = cell

    def get_code_name(self, raw_code: str, transformed_code: str, number: int) -> str:
        """A name of its own for every piece of code, even where two cells are the same."""
        name = f"<ipython-input-{self._now + 1}-{len(self.cell_of)}>"
        self.cell_of[name] = self._now
        return name

    def ast_parse(self, source: str, filename: str = "<unknown>", symbol: str = "exec") -> ast.AST:
        """Parse; what a magic such as `%%time` gives no name gets one."""
        return super().ast_parse(source, self._named(filename), symbol)

    def __call__(self, source: Any, filename: str, symbol: str, **options: Any) -> CodeType:
        """Compile; what a magic such as `%%time` gives a name of its own gets one of the cell."""
        return super().__call__(source, self._named(filename), symbol, **options)

    def place(self, filename: str | None, line: int | None) -> dict[str, Any] | None:
        """Where in the notebook a line of compiled code stands, or None if it is not from there.

        IPython drops empty lines at the top, and rewrites magics: the lines are matched by what
        they say.
        """
        if filename not in self.cell_of or line is None:
            return None
        cell = self.cell_of[filename]
        source = self.sources[cell].splitlines()
        compiled = [text.rstrip("\n") for text in linecache.getlines(filename)]
        index = min(line, len(compiled)) - 1
        matched = difflib.SequenceMatcher(None, compiled, source, autojunk=False).get_opcodes()
        for _, first, last, start, end in matched:
            if first <= index < last:
                at = min(start + index - first, max(start, end - 1), len(source) - 1)
                return {"in": cell, "line": at + 1, "code": source[at]}
        return {"in": cell, "line": None, "code": ""}

    def _named(self, filename: str) -> str:
        magic, _, body = self.sources[self._now].lstrip().partition("\n")
        if filename in self.cell_of or not magic.startswith("%%"):
            return filename
        return self.cache(body)


class Shell(InteractiveShell):
    """IPython without a window or a page to draw on."""

    def enable_gui(self, gui: str | None = None) -> None:
        """Do nothing: what `%gui` asks for is not here."""

    def ask_exit(self) -> None:
        """End the cell, when it calls `exit`."""
        sys.exit()


def run(sources: list[str], report: Any) -> None:
    """Run every cell, whatever the others raise, and report what each printed and raised."""
    config = Config()
    config.HistoryManager.enabled = False
    shell = Shell.instance(config=config, colors="nocolor")
    shell.magics_manager.register_function(lambda line: None, magic_name="matplotlib")
    shell.compile = compiler = CellCompiler(sources)
    for number, source in enumerate(sources):
        printed = Printed()
        print(json.dumps({"cell": number}), file=report, flush=True)
        compiler.begin(number)
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            outcome = shell.run_cell(source)
        error = outcome.error_before_exec or outcome.error_in_exec
        done = {
            "cell": number,
            "printed": printed.getvalue(),
            "error": None if error is None else described(error, compiler),
        }
        print(json.dumps(done), file=report, flush=True)


def described(error: BaseException, compiler: CellCompiler) -> dict[str, Any]:
    """What was raised, and the innermost line of the notebook that led to it.

    `open` says that it was the notebook's own `raise NotImplementedError`, not a library's.
    """
    frames = traceback.extract_tb(error.__traceback__)
    led = [place for frame in frames if (place := compiler.place(frame.filename, frame.lineno))]
    message = words(error)
    if isinstance(error, SyntaxError) and (at := compiler.place(error.filename, error.lineno)):
        led.append(at)
        message = error.msg
    place = led[-1] if led else {"in": None, "line": None, "code": ""}
    stub = isinstance(error, NotImplementedError) and "raise NotImplementedError" in place["code"]
    return {"name": type(error).__name__, "message": message, "open": stub, **place}


def words(error: BaseException) -> str:
    """An exception's message, if it has one; of a group, what is in it as well."""
    if not isinstance(error, BaseExceptionGroup):
        with contextlib.suppress(Exception):
            return str(error)
        return ""
    inner = [f"{type(each).__name__}: {words(each)}" for each in error.exceptions[:MOST_NAMED]]
    return f"{error}: {'; '.join(inner)}"


if __name__ == "__main__":
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as report:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what child processes print
        run(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), report)
