"""The ledger of claims: what the built book says, sentence by sentence, and the long check.

`make ledger` reads the notebooks that `make book` has executed and writes `kdcourse/ledger.json`.
What `make verify` found on other sets of seeds stays, as long as sentence and bound do.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jupyter_cache import get_cache
from verify import claims_of, ledger

from kdcourse.claims import LEDGER

ROOT = Path(__file__).resolve().parents[1]
EXECUTED = ROOT / "_build" / ".jupyter_cache"


def built(folder: Path = EXECUTED) -> list[dict[str, Any]]:
    """The claims of the book as it was last built, with their numbers on its own seeds."""
    cache = get_cache(folder)
    last = {}  # of each page, the record that the last build used
    for record in sorted(cache.list_cache_records(), key=lambda record: record.accessed):
        last[Path(record.uri).stem] = record.pk
    pages = {
        (page, 0): list(claims_of(cache.get_cache_bundle(last[page]).nb)) for page in sorted(last)
    }
    return ledger(pages)


def merged(
    claims: Iterable[dict[str, Any]], *others: Iterable[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Claims with the further sets of seeds that other ledgers know of the same sentence and bound.

    A sentence may stand several times on a page: its place in the order tells which is which.
    """
    known: list[dict[tuple[str, str, str], list[dict[str, Any]]]] = []
    for other in others:
        known.append({})
        for entry in other:
            known[-1].setdefault(_key(entry), []).append(entry["sets"])
    result = []
    for entry in claims:
        sets: dict[str, Any] = {}
        for sentences in known:
            same = sentences.get(_key(entry), [])
            sets |= same.pop(0) if same else {}
        result.append({**entry, "sets": {**sets, **entry["sets"]}})
    return result


def _key(entry: dict[str, Any]) -> tuple[str, str, str]:
    return entry["page"], entry["sentence"], entry["needs"]


def write(claims: list[dict[str, Any]], path: Path = LEDGER) -> None:
    """The ledger, numbers rounded to three places."""
    for entry in claims:
        entry["sets"] = {
            first: {k: round(v, 3) if isinstance(v, float) else v for k, v in numbers.items()}
            for first, numbers in entry["sets"].items()
        }
    path.write_text(json.dumps(claims, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> int:
    """Write the ledger anew from the built book and the files that are named."""
    others = [path for path in (LEDGER, *map(Path, sys.argv[1:])) if path.exists()]
    claims = merged(built(), *(json.loads(path.read_text("utf-8")) for path in others))
    write(claims)
    sets = sorted({first for entry in claims for first in entry["sets"]}, key=int)
    print(f"{len(claims)} claims, on the seeds from {', '.join(sets)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
