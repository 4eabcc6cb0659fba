"""The bibliography has what the pages and the code cite, and little else."""

import re
from collections import Counter
from pathlib import Path

from pybtex.database import parse_file

ROOT = Path(__file__).resolve().parents[1]
ENTRIES = dict(parse_file(ROOT / "book" / "references.bib").entries)
EPRINTS = [entry.fields["eprint"] for entry in ENTRIES.values() if "eprint" in entry.fields]
CITED_ID = re.compile(r"arxiv(?::\s*|\.org/\w+/)(\d{4}\.\d{4,5})", re.IGNORECASE)


def cited_ids() -> dict[str, str]:
    """ArXiv id → one of the files that cite it."""
    book = ROOT / "book"
    pages = [*book.glob("*.md"), *(book / "sources").rglob("*.md")]
    return {
        found: str(path.relative_to(ROOT))
        for path in sorted([*pages, *(ROOT / "kdcourse").rglob("*.py")])
        for found in CITED_ID.findall(path.read_text(encoding="utf-8"))
    }


def test_every_cited_work_has_an_entry() -> None:
    missing = {found: path for found, path in cited_ids().items() if found not in EPRINTS}
    assert not missing


def test_every_entry_is_cited() -> None:
    assert not set(EPRINTS) - set(cited_ids())


def test_no_work_has_two_entries() -> None:
    titles = [re.sub(r"[{}]", "", entry.fields["title"]).lower() for entry in ENTRIES.values()]
    assert not [name for name, count in Counter(EPRINTS + titles).items() if count > 1]


def test_every_entry_says_who_what_and_when() -> None:
    for key, entry in ENTRIES.items():
        assert entry.persons.get("author"), key
        assert entry.fields.get("title"), key
        assert re.fullmatch(r"\d{4}", entry.fields.get("year", "")), key
