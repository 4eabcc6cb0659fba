"""The programs behind `make studies` and `make verify`, on a page of a few lines."""

import json
import re
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import studies
import verify
from nbclient.exceptions import CellExecutionError

from kdcourse import best_practices, experiments

PARAMETERS = """\
seeds = 5
first_seed = 0
jobs = 1
budget = "standard"
"""
PAGE = """\
from pathlib import Path
from kdcourse.claims import claim
from kdcourse.experiments import confirm, run, study, summarize
all_seeds = range(first_seed, first_seed + seeds)

def run_one(seed, slope):
    with Path("DIARY").open("a") as file:
        file.write(f"{seed} ")
    return {"y": slope + seed % 10}

table, about = study("slopes", run_one, {"a": {"slope": 3}}, all_seeds, repeat=budget, jobs=jobs)
confirm(table, table, "y")
"""
CLAIMS = """\
for sentence in ("It holds.", "It holds."):
    _ = claim(sentence, table["y"] - first_seed / 100, at_least=SLACK)
_ = claim("Too few.", [1.0], at_most=0)
"""


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(experiments, "STUDIES", tmp_path / "package")
    monkeypatch.setattr(studies, "STUDIES", tmp_path / "package")
    monkeypatch.setattr(verify, "STUDIES", tmp_path / "package")
    (tmp_path / "package").mkdir()
    return write(tmp_path / "slopes.ipynb", CLAIMS.replace("SLACK", "2"))


def write(path: Path, claims: str) -> Path:
    parameters = nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})
    body = PAGE.replace("DIARY", str(path.with_name("diary")))
    cells = [parameters, *map(nbformat.v4.new_code_cell, (body, claims))]
    notebook = nbformat.v4.new_notebook(cells=cells)
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "", "language": "python"}
    nbformat.write(notebook, path)
    return path


def runs(page: Path) -> int:
    diary = page.with_name("diary")
    return len(diary.read_text().split()) if diary.exists() else 0


def test_pages_with_studies_are_found() -> None:
    found = {page.stem for page in studies.with_studies()}
    stored = {path.stem for path in experiments.STUDIES.glob("*.json")}
    assert found
    assert found <= {page.stem for page in verify.claiming()}
    texts = {page.stem: page.read_text(encoding="utf-8") for page in studies.PAGES}
    for study in stored:
        tuned = re.sub("_(recipes|finalists)$", "", study)  # named by `tune`
        words = [f'\\"{name}\\"' for name in (study, tuned)]
        assert [name for name, text in texts.items() if any(w in text for w in words)], study
    for name, text in texts.items():
        assert bool(re.search(r"\bstudy\(", text)) == (name in found), name


def test_a_page_with_studies_reads_only_those_of_pages_that_are_run_before_it() -> None:
    made: set[str] = set()
    lent = {study for study, _ in best_practices.BORROWED.values()}
    for page in studies.PAGES:
        text = page.read_text(encoding="utf-8")
        own = set(re.findall(r'\b(?:study|tune)\([\s\\n",]*(\w+)\\"', text))
        made |= own | {f"{name}_{part}" for name in own for part in ("recipes", "finalists")}
        read = set(re.findall(r'read_study\(\\"(\w+)', text))
        if "borrowed()" in text:
            read |= lent
        if own:
            assert read <= made, page.stem
    assert lent <= made


def test_every_set_of_seeds_is_run_once_and_its_claims_are_collected(page, tmp_path) -> None:
    state = tmp_path / "verify"
    for _ in range(2):  # the second time, everything is there
        claims, failures = verify.run_pages([page], [0, 100], state, None)
        assert failures == []
        assert runs(page) == 10
    assert [claim["sentence"] for claim in claims] == ["It holds.", "It holds.", "Too few."]
    first = claims[0]
    assert (first["page"], first["needs"], first["unit"]) == ("slopes", "at least +2", "points")
    assert first["sets"]["0"]["holds"] is True
    assert first["sets"]["0"]["mean"] == 5
    assert first["sets"]["100"] == first["sets"]["0"] | {
        "mean": 4, "holds": first["sets"]["100"]["low"] >= 2,
        "low": first["sets"]["0"]["low"] - 1, "high": first["sets"]["0"]["high"] - 1,
    }  # fmt: skip
    assert claims[2]["sets"]["0"]["holds"] is None
    assert json.loads(json.dumps(claims, allow_nan=False)) == claims


def test_a_claim_that_fails_is_told_and_does_not_stop_the_page(page, tmp_path) -> None:
    write(page, CLAIMS.replace("SLACK", "4"))
    claims, failures = verify.run_pages([page], [0], tmp_path / "verify", None)
    assert failures == []
    text, well = verify.report(claims, [], {}, failures)
    assert not well
    assert "| slopes | 0 | 3 | 0 | 2 | 1 |" in text
    assert "- slopes, seeds from 0: It holds. +5.0 [+3.0, +7.0] points, needs at least +4" in text


def test_a_cell_that_fails_is_told_and_its_page_is_run_again(page, tmp_path) -> None:
    write(page, "raise KeyError('lost')")
    for times in (1, 2):
        _, failures = verify.run_pages([page], [0], tmp_path / "verify", None)
        assert failures == ["slopes, seeds from 0: KeyError: 'lost'"]
        assert runs(page) == 5  # the study was done: only the page is run again
        assert times
    assert verify.report([], [], {}, failures)[1] is False


def test_studies_replace_those_of_the_package_and_what_moved_is_told(page, tmp_path) -> None:
    state, package = tmp_path / "state", tmp_path / "package"
    studies.execute(page, {"budget": "full"}, state)
    assert studies.adopt(state) == []
    (stored,) = package.glob("*.json")
    assert not list(state.glob("*.json"))
    studies.execute(page, {"budget": "full"}, state)  # done, only read
    assert runs(page) == 5
    about = json.loads(stored.read_text())
    for row in about["rows"]:
        row["y"] += 1 + row["seed"] / 10
    stored.write_text(json.dumps(about))
    studies.execute(page, {"budget": "slopes"}, state)
    (found,) = studies.adopt(state)
    assert (found["study"], found["runs"], found["moved"], found["of"]) == ("slopes", 5, 1, 1)
    assert found["which"] == "a"


def test_without_a_full_budget_nothing_is_stored(page, tmp_path) -> None:
    with pytest.raises(CellExecutionError, match="no study 'slopes'"):
        studies.execute(page, {}, tmp_path / "state")
    assert runs(page) == 0


def test_few_configurations_move_by_chance() -> None:
    study = {"study": "slopes", "which": "a, b"}
    assert not verify.has_moved(study | {"moved": 1, "of": 2})
    assert not verify.has_moved(study | {"moved": 4, "of": 20})
    assert verify.has_moved(study | {"moved": 2, "of": 9})
    text, well = verify.report([], [study | {"moved": 5, "of": 20}], {}, [])
    assert not well
    assert "- the study slopes has moved: a, b" in text


def test_programs_run_until_they_pass(tmp_path) -> None:
    codes = iter([1, 0])
    called = []

    def call(arguments: list[str]) -> int:
        called.append(arguments)
        return next(codes)

    outcomes = [verify.run_programs(["newest versions"], tmp_path, call) for _ in range(3)]
    assert outcomes == [{"newest versions": passed} for passed in (False, True, True)]
    assert called == [verify.PROGRAMS["newest versions"]] * 2
    assert "newest versions: FAILED" in verify.report([], [], outcomes[0], [])[0]
    assert verify.report([], [], outcomes[1], []) == (
        "# The long check\n\n\n- newest versions: passed\n\nAll well.\n",
        True,
    )


def test_what_the_long_check_runs_exists() -> None:
    for arguments in verify.PROGRAMS.values():
        paths = [a for a in arguments if a.startswith("tests/")]
        assert paths
        assert all((verify.ROOT / path).exists() for path in paths)


def test_a_column_that_only_one_side_has_does_not_matter(tmp_path) -> None:
    rows = [{"configuration": "a", "seed": seed, "y": float(seed)} for seed in range(3)]
    sides = {"old": rows, "new": [row | {"z": 1.0} for row in rows]}
    for name, side in sides.items():
        study = {"date": "2026-01-01", "seconds": 1, "rows": side}
        (tmp_path / f"{name}.json").write_text(json.dumps(study))
    found = studies.moved(tmp_path / "old.json", tmp_path / "new.json")
    assert (found["moved"], found["of"]) == (0, 1)
    assert isinstance(pd.DataFrame([found]), pd.DataFrame)


def test_a_search_is_made_once_for_all_sets_of_seeds(tmp_path: Path) -> None:
    made = tmp_path / "seeds-0"
    made.mkdir()
    (made / "recipes.json").write_text(json.dumps({"seeds": list(verify.SEARCH_SEEDS)}))
    (made / "report.json").write_text(json.dumps({"seeds": [0, 1, 2, 3, 4]}))
    verify.share_searches(tmp_path, 200)
    assert [path.name for path in (tmp_path / "seeds-200").iterdir()] == ["recipes.json"]


def test_no_set_of_seeds_meets_those_for_choosing() -> None:
    reported = {first + i for first in verify.SEEDS for i in range(20)}
    assert not reported & {*verify.SEARCH_SEEDS}
