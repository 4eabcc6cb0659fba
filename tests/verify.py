"""The long check, for a week or a release; it may be stopped and goes on where it was.

Every page is run with its full budget on three sets of seeds, so all its studies are made again and
all its claims are judged; then all wrong submissions to all exercises are graded, and all notebooks
run in an environment of the newest versions that the package's ranges admit. What is finished stays
in `_build/verify` until code or pages change. The end is a table, `report.md`, and the ledger of
claims, `claims.json`: for each its sentence, page and bound, and for each set of seeds its effect
with the interval.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from colab import parameters
from nbclient.exceptions import CellExecutionError
from papermill.iorw import load_notebook_node
from studies import PAGES, ROOT, execute, moved

from kdcourse.claims import RECORD
from kdcourse.experiments import STUDIES
from kdcourse.search import SEEDS as SEARCH_SEEDS

STATE = ROOT / "_build" / "verify"
SEEDS = (0, 200, 400)  # what is chosen is chosen on seeds from 100 on
PROGRAMS = {
    "wrong submissions": ["-m", "pytest", "-q", "-n", "2", "--dist", "loadfile", "tests/long"],
    "newest versions": ["tests/colab.py", "--whole"],
}


def claiming(pages: Iterable[Path] = PAGES) -> list[Path]:
    """The notebooks that can be run on other seeds."""
    return [page for page in pages if "first_seed" in parameters(load_notebook_node(str(page)))]


def claims_of(notebook: Any) -> Iterator[dict[str, Any]]:
    """The records of the claims in an executed notebook, in order."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            record = output.get("metadata", {}).get(RECORD, {})
            if "sentence" in record:
                yield record


def ledger(records: Mapping[tuple[str, int], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """One entry a claim, with what each set of seeds says of it.

    Args:
        records: of a page and a first seed, the claims in order.

    Returns:
        For each claim `page`, `sentence`, `needs`, `unit`, `over`, and `sets`: by first seed
        `mean`, `low`, `high`, `n` and `holds`, which is None where too few seeds were judged.
    """
    entries: dict[tuple[str, str, int], dict[str, Any]] = {}
    for (page, first), claims in records.items():
        met: dict[str, int] = {}
        for record in claims:
            sentence = record["sentence"]
            met[sentence] = met.get(sentence, 0) + 1
            words = {key: record[key] for key in ("sentence", "needs", "unit", "over")}
            key = page, sentence, met[sentence]
            entry = entries.setdefault(key, {"page": page, **words, "sets": {}})
            numbers = {key: record[key] for key in ("mean", "low", "high", "n", "holds")}
            entry["sets"][str(first)] = numbers
    return list(entries.values())


def run_pages(
    pages: Iterable[Path], seeds: Iterable[int], state: Path, scheduler: str | None
) -> tuple[list[dict[str, Any]], list[str]]:
    """Run pages on sets of seeds; the ledger of their claims, and the cells that failed."""
    records, failures = {}, []
    for first in seeds:
        share_searches(state, first)
        for page in pages:
            start = time.perf_counter()
            options = {"first_seed": first}
            if "budget" in parameters(load_notebook_node(str(page))):
                options["budget"] = "full"
            try:
                notebook = execute(
                    page, options, state / f"seeds-{first}", scheduler=scheduler, claims="tell"
                )
            except CellExecutionError as error:
                failures.append(f"{page.stem}, seeds from {first}: {error.ename}: {error.evalue}")
                told = "failed"
            else:
                records[page.stem, first] = list(claims_of(notebook))
                told = f"{len(records[page.stem, first])} claims"
            seconds = time.perf_counter() - start
            print(f"{page.stem}, seeds from {first}: {told}, {seconds:.0f} s", flush=True)
    return ledger(records), failures


def share_searches(state: Path, first: int) -> None:
    """Studies whose seeds do not depend on the set, the searches, are made once for all sets."""
    folder = state / f"seeds-{first}"
    folder.mkdir(parents=True, exist_ok=True)
    for made in sorted(state.glob("seeds-*/*.json")):
        seeds = json.loads(made.read_text(encoding="utf-8"))["seeds"]
        if set(seeds) <= {*SEARCH_SEEDS} and not (folder / made.name).exists():
            shutil.copy(made, folder / made.name)


def tree() -> str:
    """A digest of all that a program of the long check reads."""
    digest = hashlib.sha256()
    for folder in ("kdcourse", "tests", "book/sources"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in {".py", ".md", ".json"}:
                digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def run_programs(
    names: Iterable[str], state: Path, call: Callable[[list[str]], int]
) -> dict[str, bool]:
    """Run programs of the long check unless this tree has passed them; which passed."""
    passed = {}
    for name in names:
        note = state / f"{name.replace(' ', '-')}-{tree()}.passed"
        if not note.exists() and call(PROGRAMS[name]) == 0:
            note.parent.mkdir(parents=True, exist_ok=True)
            note.touch()
        passed[name] = note.exists()
    return passed


def call(arguments: list[str]) -> int:
    """Run a program of this project with its own Python; the exit code."""
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, check=False).returncode


def studies_moved(state: Path) -> list[dict[str, Any]]:
    """Each stored study beside its repetition on the same seeds."""
    again = sorted((state / "seeds-0").glob("*.json"))
    return [moved(STUDIES / path.name, path) for path in again if (STUDIES / path.name).exists()]


def has_moved(study: Mapping[str, Any]) -> bool:
    """More than chance does: another processor moves one configuration in twenty."""
    return study["moved"] > max(1, study["of"] / 5)


def report(
    claims: list[dict[str, Any]],
    studies: list[dict[str, Any]],
    passed: Mapping[str, bool],
    failures: list[str],
) -> tuple[str, bool]:
    """The table in Markdown, and whether everything is well."""
    pages = pd.DataFrame(
        [
            {"page": entry["page"], "seeds from": first, "holds": numbers["holds"]}
            for entry in claims
            for first, numbers in entry["sets"].items()
        ],
        columns=["page", "seeds from", "holds"],
    )
    broken = [
        f"{entry['page']}, seeds from {first}: {entry['sentence']} {numbers['mean']:+.1f} "
        f"[{numbers['low']:+.1f}, {numbers['high']:+.1f}] {entry['unit']}, needs {entry['needs']}"
        for entry in claims
        for first, numbers in entry["sets"].items()
        if numbers["holds"] is False
    ]
    parts = ["# The long check\n"]
    if len(pages):
        counted = pages.assign(
            claims=1,
            hold=pages["holds"].eq(True),
            fail=pages["holds"].eq(False),
            unjudged=pages["holds"].isna(),
        )
        sums = counted.groupby(["page", "seeds from"], sort=False)
        columns = ["claims", "hold", "fail", "unjudged"]
        parts.append(table(sums[columns].sum().reset_index()))
    if studies:
        parts.append(table(pd.DataFrame(studies)))
    if passed:
        parts.append("\n".join(f"- {k}: {'passed' if v else 'FAILED'}" for k, v in passed.items()))
    wrong = [*failures, *broken]
    wrong += [f"the study {s['study']} has moved: {s['which']}" for s in studies if has_moved(s)]
    wrong += [f"{name}: failed, see the log" for name, fine in passed.items() if not fine]
    parts.append(
        "\n".join(["What is wrong:\n", *(f"- {w}" for w in wrong)]) if wrong else "All well."
    )
    return "\n\n".join(parts) + "\n", not wrong


def table(frame: pd.DataFrame) -> str:
    """A table in Markdown."""
    rows = [frame.columns, ["---"] * len(frame.columns), *frame.itertuples(index=False)]
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in rows)


def main() -> int:
    """Run the long check, or a part of it; 0 if all is well."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    known = {page.stem: page for page in claiming()}
    parser.add_argument("--pages", action="append", choices=known, metavar="PAGE")
    parser.add_argument("--seeds", nargs="*", type=int, default=list(SEEDS), metavar="FIRST")
    parser.add_argument("--programs", nargs="*", choices=PROGRAMS, default=list(PROGRAMS))
    parser.add_argument("--scheduler", metavar="ADDRESS", help="a Dask cluster takes the runs")
    options = parser.parse_args()
    pages = [known[name] for name in options.pages or known]
    for old in ("report.md", "claims.json"):  # an interrupted run has no result
        (STATE / old).unlink(missing_ok=True)
    claims, failures = run_pages(pages, options.seeds, STATE, options.scheduler)
    passed = run_programs(options.programs, STATE, call)
    text, well = report(claims, studies_moved(STATE), passed, failures)
    STATE.mkdir(parents=True, exist_ok=True)
    (STATE / "claims.json").write_text(json.dumps(claims, indent=1, ensure_ascii=False) + "\n")
    (STATE / "report.md").write_text(text, encoding="utf-8")
    print(text)
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
