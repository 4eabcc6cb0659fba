"""The ledger of claims, from a built page to the package."""

import json
from pathlib import Path

import nbformat
from jupyter_cache import get_cache
from ledger import built, merged, write

from kdcourse.claims import LEDGER, RECORD

RECORDED = {
    "sentence": "It works.",
    "mean": 2.00049,
    "low": 1.0,
    "high": 3.0,
    "n": 5,
    "unit": "points",
    "over": "seeds",
    "needs": "at least +1",
    "holds": True,
}


def book(folder: Path, **changed: object) -> Path:
    """The cache of a book of one page, which was executed twice."""
    cache = get_cache(folder / f"cache{len(list(folder.iterdir()))}")
    page = folder / "page.ipynb"
    for text, record in (("old", RECORDED | {"sentence": "It worked."}), ("", RECORDED | changed)):
        output = nbformat.v4.new_output(
            "display_data", {"text/plain": ""}, metadata={RECORD: record}
        )
        cell = nbformat.v4.new_code_cell(text, outputs=[output], execution_count=1)
        nbformat.write(nbformat.v4.new_notebook(cells=[cell]), page)
        cache.cache_notebook_file(page, overwrite=False, check_validity=False)
    return Path(cache.path)


def test_a_built_page_gives_its_claims(tmp_path: Path) -> None:
    (entry,) = built(book(tmp_path))
    assert entry["page"] == "page"
    assert entry["sets"] == {"0": {k: RECORDED[k] for k in ("mean", "low", "high", "n", "holds")}}


def test_other_sets_stay_with_the_same_sentence_and_bound(tmp_path: Path) -> None:
    claims = built(book(tmp_path))
    far = {"mean": 9.0}
    before = [{**claims[0], "sets": {"0": {"mean": 7.0}, "200": far}}]
    assert merged(claims, before)[0]["sets"] == {**claims[0]["sets"], "200": far}
    assert merged(built(book(tmp_path, needs="at least +2")), before)[0]["sets"].keys() == {"0"}


def test_a_sentence_that_stands_twice_keeps_its_order(tmp_path: Path) -> None:
    (claim,) = built(book(tmp_path))
    twice = [{**claim, "sets": {"200": {"mean": mean}}} for mean in (1.0, 2.0)]
    assert [e["sets"]["200"]["mean"] for e in merged([claim, claim], twice)] == [1.0, 2.0]


def test_several_ledgers_each_add_their_sets(tmp_path: Path) -> None:
    (claim,) = built(book(tmp_path))
    others = [[{**claim, "sets": {first: {"mean": 1.0}}}] for first in ("0", "200", "400")]
    assert [*merged([claim], *others)[0]["sets"]] == ["0", "200", "400"]
    assert merged([claim], *others)[0]["sets"]["0"] == claim["sets"]["0"]


def test_numbers_are_rounded(tmp_path: Path) -> None:
    write(built(book(tmp_path)), tmp_path / "ledger.json")
    (entry,) = json.loads((tmp_path / "ledger.json").read_text())
    assert entry["sets"]["0"]["mean"] == 2.0


def test_every_claim_of_the_ledger_held() -> None:
    claims = json.loads(LEDGER.read_text(encoding="utf-8"))
    assert len(claims) > 100
    assert all(numbers["holds"] for e in claims for numbers in e["sets"].values())
