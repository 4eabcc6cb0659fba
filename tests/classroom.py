"""A small exercise, students who hand it in, and the command line that grades them."""

import contextlib
import csv
import io
import json
import subprocess
import sys
from pathlib import Path

from kdcourse.cli import main

MASTER = Path(__file__).parent / "grading" / "double.md"
DOUBLE, FIT = "answer-double", "answer-fit"
RIGHT_DOUBLE = "def double(x):\n    return [2 * value for value in x]\n"
RIGHT_FIT = 'def fit(x, y):\n    return {"slope": (x * y).sum() / (x * x).sum()}\n'


class Student:
    """Edits the student's notebook as a student would."""

    def __init__(self, notebook):
        self.notebook = json.loads(json.dumps(notebook))

    def cell(self, name):
        return next(cell for cell in self.notebook["cells"] if cell.get("id") == name)

    def answer(self, **sources):
        """Fill in answers: `double=` and `fit=`."""
        for name, source in sources.items():
            self.cell(f"answer-{name}")["source"] = source
        return self

    def add(self, source, after=None):
        """Add a code cell, at the end or after another."""
        cells = self.notebook["cells"]
        at = len(cells) if after is None else cells.index(self.cell(after)) + 1
        extra = {"cell_type": "code", "execution_count": None, "metadata": {}, "outputs": []}
        cells.insert(at, {**extra, "id": f"extra{at}", "source": source})
        return self

    def solved(self):
        return self.answer(double=RIGHT_DOUBLE, fit=RIGHT_FIT)


def kdcourse(*arguments, **options):
    """Run the command line in a process of its own."""
    command = [sys.executable, "-m", "kdcourse.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


EACH = """
import json, sys
from kdcourse import cli
from kdcourse.grading.sandbox import WARM
close, WARM.close = WARM.close, lambda: None
code = max(cli.main(arguments) for arguments in json.loads(sys.argv[1]))
close()
sys.exit(code)
"""


def kdcourse_each(*calls, **options):
    """Run several command lines in one process of its own, which has one warm process for all."""
    lines = json.dumps([[str(argument) for argument in call] for call in calls])
    command = [sys.executable, "-c", EACH, lines]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def call(*arguments):
    """Call the command line in this process: its exit code, and all that it printed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as end:
            code = end.code
    return code, " ".join(printed.getvalue().split())


def rows(out):
    with (out / "grades.csv").open(newline="") as file:
        return {row["student"]: row for row in csv.DictReader(file)}


def result(out, student):
    found = [json.loads(path.read_text()) for path in (out / "results").glob("*.json")]
    return next(item for item in found if item["student"] == student)


def printed(out, student):
    return "".join(output["text"] for output in result(out, student)["outputs"])
