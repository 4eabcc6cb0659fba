import json
import math
import sys

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

from kdcourse import claims
from kdcourse.claims import RECORD, ClaimError, claim, interval

finite = st.floats(-1e6, 1e6)


@given(st.lists(finite, min_size=2, max_size=20))
def test_interval_agrees_with_scipy(values: list[float]) -> None:
    ours = interval(values)
    error = scipy.stats.sem(values)
    assert ours.mean == pytest.approx(np.mean(values), abs=1e-6)
    if error > 0:
        low, high = scipy.stats.t.interval(0.95, len(values) - 1, np.mean(values), error)
        assert (ours.low, ours.high) == pytest.approx((low, high), rel=1e-6, abs=1e-6)


def test_one_seed_says_nothing() -> None:
    assert interval([3.0])[1:] == (-math.inf, math.inf, 1)


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf, 1.0]])
def test_values_must_be_finite(values: list[float]) -> None:
    with pytest.raises(ValueError, match="values must be finite numbers"):
        interval(values)


STRONG = [9.0, 10.0, 11.0, 10.0, 10.0]  # 10.0 [9.1, 10.9]
NOISY = [-8.0, 9.0, 12.0, -6.0, 13.0]


class TestClaim:
    @pytest.fixture(autouse=True)
    def stops(self, monkeypatch) -> None:
        monkeypatch.setenv("KDCOURSE_CLAIMS", "stop")

    @pytest.mark.parametrize("bound", [{"at_least": 9}, {"at_most": 11}, {"within": 11}])
    def test_holds(self, bound: dict, capsys) -> None:
        effect = claim("It works.", STRONG, **bound)
        assert effect.mean == 10
        printed = capsys.readouterr().out
        assert printed.startswith("Holds: It works.")
        assert "+10.0 [+9.1, +10.9] points over 5 seeds" in printed

    @pytest.mark.parametrize("bound", [{"at_least": 9.5}, {"at_most": 10.5}, {"within": 10.5}])
    def test_the_whole_interval_counts(self, bound: dict) -> None:
        with pytest.raises(ClaimError, match="Not reproduced on this machine: It works"):
            claim("It works.", STRONG, **bound)

    @pytest.mark.parametrize("bound", [{"at_least": 0}, {"at_most": 0}, {"within": 5}])
    def test_noise_proves_nothing(self, bound: dict) -> None:
        with pytest.raises(ClaimError):
            claim("It works.", NOISY, **bound)

    def test_zero_bounds_count_as_given(self) -> None:
        claim("It helps.", STRONG, at_least=0)
        with pytest.raises(ClaimError):
            claim("It hurts.", STRONG, at_most=0)

    def test_effect_that_vanished_fails(self) -> None:
        with pytest.raises(ClaimError):
            claim("It works.", [0.0] * 5, at_least=1)

    def test_too_few_seeds_are_not_judged(self, capsys) -> None:
        claim("It works.", [-5.0, -5.0, -5.0, -5.0], at_least=1)
        claim("It works.", [1.0], at_least=1)
        assert capsys.readouterr().out.count("too few seeds to judge") == 2

    @pytest.mark.parametrize("bounds", [{}, {"at_least": 1, "within": 2}])
    def test_exactly_one_bound(self, bounds: dict) -> None:
        with pytest.raises(ValueError, match="exactly one of at_least, at_most and within"):
            claim("It works.", STRONG, **bounds)

    def test_an_interval_is_not_the_differences(self) -> None:
        with pytest.raises(ValueError, match="give it the differences"):
            claim("It works.", interval(STRONG), at_least=1)

    @pytest.mark.parametrize("switch", [None, "tell"])
    def test_a_learner_is_told_and_goes_on(self, switch, monkeypatch, capsys) -> None:
        if switch is None:
            monkeypatch.delenv("KDCOURSE_CLAIMS")
        else:
            monkeypatch.setenv("KDCOURSE_CLAIMS", switch)
        effect = claim("It works.", STRONG, at_least=9.5)
        assert effect.mean == 10
        printed = capsys.readouterr().out
        assert printed.startswith("Not reproduced on this machine: It works.\n  effect +10.0")

    def test_beside_what_the_book_found(self, tmp_path, monkeypatch, capsys) -> None:
        monkeypatch.delenv("KDCOURSE_CLAIMS")
        book = {"mean": 11.0, "low": 10.0, "high": 12.0, "n": 20, "holds": True}
        ledger = tmp_path / "ledger.json"
        ledger.write_text(json.dumps([{"sentence": "It works.", "sets": {"0": book}}]))
        monkeypatch.setattr(claims, "LEDGER", ledger)
        claim("It works.", STRONG, at_least=9.5)
        assert capsys.readouterr().out.endswith("; in the book +11.0 [+10.0, +12.0] over 20\n")
        claim("It works.", STRONG, at_least=9)
        claim("Something else works.", STRONG, at_least=9.5)
        assert "in the book" not in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("values", "bound", "holds"),
        [(STRONG, 9, True), (STRONG, 9.5, False), (STRONG[:2], 9, None), ([1.0], 9, None)],
    )
    def test_a_notebook_keeps_the_record(self, values, bound, holds, monkeypatch) -> None:
        monkeypatch.setenv("KDCOURSE_CLAIMS", "tell")
        shell = InteractiveShell.instance()
        with capture_output() as captured:
            monkeypatch.setattr(sys.modules["IPython"], "get_ipython", lambda: shell)
            effect = claim("It works.", values, at_least=bound)
        (shown,) = captured.outputs
        assert "It works." in shown.data["text/plain"]
        record = shown.metadata[RECORD]
        assert json.loads(json.dumps(record, allow_nan=False)) == record
        assert record["holds"] is holds
        assert record["sentence"] == "It works."
        assert (record["mean"], record["n"]) == (effect.mean, len(values))
        assert record["needs"] == f"at least +{bound:g}"
