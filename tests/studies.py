"""All studies again: every page that stores one is run with its full budget, and may be stopped.

`make studies` leaves what is finished in `_build/studies`; the next call goes on from there. When a
page is done, its studies replace those of the package, and a table says by how much they moved.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import yaml
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from kdcourse.claims import interval
from kdcourse.experiments import STUDIES

ROOT = Path(__file__).resolve().parents[1]
STATE = ROOT / "_build" / "studies"
TOC = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
DASK = """\
import joblib
from dask.distributed import Client

client = Client({address!r})
joblib.parallel_config("dask")"""


def pages_of(entry: dict) -> list[str]:
    """The pages that a part of the table of contents names, in order."""
    own = [entry[key] for key in ("root", "file") if key in entry]
    inner = [child for key in ("parts", "chapters", "sections") for child in entry.get(key, [])]
    return own + [page for child in inner for page in pages_of(child)]


# In the book's order: a page reads studies of those before it, which are made again first.
CHAPTERS = [ROOT / f"{name}.ipynb" for name in pages_of(TOC)]
PAGES = [page for page in CHAPTERS if page.exists() and page.parent == ROOT / "book"]


def with_studies(pages: Iterable[Path] = PAGES) -> list[Path]:
    """The notebooks that store a study."""
    return [page for page in pages if "budget" in page.read_text(encoding="utf-8")]


def fingerprint(page: Path, parameters: Mapping[str, Any]) -> str:
    """Of everything that decides a page's studies: the notebook and the package's code."""
    digest = hashlib.sha256(page.read_bytes() + repr(sorted(parameters.items())).encode())
    for module in sorted((ROOT / "kdcourse").rglob("*.py")):
        digest.update(module.read_bytes())
    return digest.hexdigest()[:16]


@contextmanager
def environment(**values: str):
    """Set environment variables, which kernels inherit, for a while."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def execute(
    page: Path,
    parameters: Mapping[str, Any],
    state: Path,
    *,
    scheduler: str | None = None,
    claims: str = "stop",
) -> Any:
    """Run a notebook whose studies are stored in a folder; the executed notebook.

    What is finished there already, from the same code and with the same parameters, is only read.

    Args:
        page: the notebook.
        parameters: injected as papermill does.
        state: the folder, for studies and for the executed notebook.
        scheduler: of a Dask cluster that takes the runs; else they go to this machine's cores.
        claims: `stop` or `tell`, what a claim does that does not hold.

    Raises:
        CellExecutionError: from the first cell that fails.
    """
    done = state / f"{page.stem}-{fingerprint(page, parameters)}.ipynb"
    if done.exists():
        return nbformat.read(done, as_version=4)
    state.mkdir(parents=True, exist_ok=True)
    notebook = parameterize_notebook(load_notebook_node(str(page)), dict(parameters))
    if scheduler is not None:
        cell = nbformat.v4.new_code_cell(DASK.format(address=scheduler))
        notebook.cells.insert(0, cell)
    client = NotebookClient(notebook, timeout=None, resources={"metadata": {"path": page.parent}})
    quiet = str(ROOT / "book" / "_ext")  # the book's kernel, without a warning for each page
    with environment(KDCOURSE_STUDIES=str(state), KDCOURSE_CLAIMS=claims, JUPYTER_PATH=quiet):
        client.execute()
    for old in state.glob(f"{page.stem}-*.ipynb"):
        old.unlink()
    unfinished = done.with_suffix(".writing")
    nbformat.write(notebook, unfinished)
    unfinished.rename(done)
    return notebook


def moved(stored: Path, again: Path) -> dict[str, Any]:
    """Compare a study with its repetition on the same seeds, configuration by configuration.

    A configuration has moved when the 95 % interval of its differences, seed by seed, leaves out 0
    in some column of numbers.
    """
    old, new = (json.loads(path.read_text(encoding="utf-8")) for path in (stored, again))
    tables = [pd.DataFrame(each["rows"]).assign(round=i) for i, each in enumerate((old, new))]
    numbers = tables[0].select_dtypes("number").columns.intersection(tables[1].columns)
    both, gone = pd.concat(tables), []
    for name, rows in both.groupby("configuration", sort=False):
        means = rows.groupby(["round", "seed"])[list(numbers.drop(["seed", "round"]))].mean()
        if set(rows["round"]) == {0, 1} and _differs(means.loc[1] - means.loc[0]):
            gone.append(name)
    return {
        "study": again.stem,
        "runs": len(new["rows"]),
        "seconds": new["seconds"],
        "before": old["date"],
        "moved": len(gone),
        "of": both["configuration"].nunique(),
        "which": ", ".join(gone),
    }


def _differs(differences: pd.DataFrame) -> bool:
    """Whether the interval of some column leaves out 0."""
    for column in differences:
        values = differences[column].dropna()
        if len(values) > 1:
            effect = interval(values)
            if not effect.low <= 0 <= effect.high:
                return True
    return False


def adopt(state: Path) -> list[dict[str, Any]]:
    """Let the finished studies of a folder replace those of the package; what has moved."""
    found = []
    for again in sorted(state.glob("*.json")):
        stored = STUDIES / again.name
        if stored.exists():
            found.append(moved(stored, again))
        shutil.move(again, stored)
    return found


def main() -> int:
    """Repeat all studies, or those of some pages."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    known = {page.stem: page for page in with_studies()}
    parser.add_argument("pages", nargs="*", metavar="PAGE", help=f"one of {', '.join(known)}")
    parser.add_argument("--only", metavar="STUDY", help="of one page: this study alone")
    parser.add_argument("--scheduler", metavar="ADDRESS", help="a Dask cluster takes the runs")
    options = parser.parse_args()
    if wrong := [page for page in options.pages if page not in known]:
        parser.error(f"{', '.join(wrong)}: not one of {', '.join(known)}")
    table, failed = [], []
    for name in options.pages or known:
        start = time.perf_counter()
        try:
            execute(
                known[name],
                {"budget": options.only or "full"},
                STATE,
                scheduler=options.scheduler,
            )
        except CellExecutionError as error:
            failed.append(name)
            print(f"{name}: {error}")
            continue
        print(f"{name}: done in {time.perf_counter() - start:.0f} s", flush=True)
        table += adopt(STATE)
    if table:
        print(pd.DataFrame(table).to_string(index=False))
    if not failed and not options.pages:
        shutil.rmtree(STATE)  # the round is complete: the next one begins anew
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
