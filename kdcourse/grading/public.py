"""`kdcourse check`: the learner's own notebook, run on the learner's own machine."""

from pathlib import Path

from .execute import executed
from .sandbox import Limits
from .selfcheck import MARKS
from .submission import parse_cells, read_bytes


def run_checks(notebook: Path, *, seconds: float) -> list[str]:
    """Run a notebook and collect the lines its checks print, and what its cells raised.

    Raises:
        InvalidSubmission: when the file is not a notebook.
    """
    import nbformat

    built = nbformat.v4.new_notebook()
    for number, cell in enumerate(parse_cells(read_bytes(notebook)), start=1):
        if cell["type"] == "code":
            built.cells.append(nbformat.v4.new_code_cell(cell["source"], id=f"cell-{number}"))
    limits = Limits(seconds, memory_mib=8192)
    with executed(built, limits=limits, isolation="none", parameters={}, inputs={}) as run:
        printed = [line for output in run.outputs for line in output["text"].splitlines()]
        lines = [line for line in printed if line.startswith(tuple(MARKS.values()))]
        lines += [f"{MARKS['wrong']} {e['cell']}: {e['name']}: {e['message']}" for e in run.errors]
        if run.note and not run.errors:
            lines.append(f"{MARKS['wrong']} {run.note}")
    return lines or ["this notebook has no checks"]
