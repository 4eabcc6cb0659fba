"""Sphinx extension: what this build of the book ran on, for the page on reproducibility.

Gives the text the substitutions ``{{ python }}``, ``{{ torch }}``, ``{{ numpy }}``,
``{{ scikit_learn }}``, ``{{ kdcourse }}``, ``{{ system }}`` and ``{{ processor }}``;
``{{ studies }}``, a table of the stored studies; and ``{{ claims }}``, the number of claims in the
ledger, rounded to tens.
"""

from __future__ import annotations

import json
import os
import platform
from importlib.metadata import version
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.config import Config

import kdcourse

PACKAGE = Path(kdcourse.__file__).parent


def processor() -> str:
    """Name of the processor and number of its cores that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    name = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                name = line.split(":", 1)[1].strip()
                break
    return f"{name}, {cores} cores"


def studies() -> str:
    """The stored studies as a table."""
    rows = ["| study | runs | seeds | date | PyTorch |", "|---|---|---|---|---|"]
    for path in sorted(PACKAGE.glob("studies/*.json")):
        about = json.loads(path.read_text(encoding="utf-8"))
        first, last = about["seeds"][0], about["seeds"][-1]
        runs = len({(row["configuration"], row["seed"]) for row in about["rows"]})
        rows.append(
            f"| {path.stem} | {runs:,} | {first} to {last} | {about['date']} | "
            f"{about['versions']['torch']} |"
        )
    return "\n".join(rows)


def claims() -> int:
    """How many claims the ledger holds, rounded to tens."""
    return round(len(json.loads((PACKAGE / "ledger.json").read_text(encoding="utf-8"))), -1)


def add_facts(app: Sphinx, config: Config) -> None:
    """Make the facts available to every page."""
    config.myst_substitutions = {
        **config.myst_substitutions,
        "python": platform.python_version(),
        "torch": version("torch"),
        "numpy": version("numpy"),
        "scikit_learn": version("scikit-learn"),
        "kdcourse": version("kdcourse"),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "studies": studies(),
        "claims": claims(),
    }


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the step."""
    app.connect("config-inited", add_facts)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
