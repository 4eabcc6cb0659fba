"""Claims: a sentence of the text, tied to the numbers that make it true."""

import json
import math
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ._checks import require

FEWEST_SEEDS = 5
LITTLE = 2.0  # points of accuracy: the smallest difference of interest; a smaller one is "little"
LEDGER = Path(__file__).parent / "ledger.json"  # every claim of the book, with its numbers there
RECORD = "kdcourse"  # the key of a verdict's record in the metadata of a notebook's output


class Interval(NamedTuple):
    """A mean and its 95 % confidence interval over `n` seeds."""

    mean: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        if self.n < 2:
            return f"{self.mean:+.1f} (n = {self.n})"
        return f"{self.mean:+.1f} [{self.low:+.1f}, {self.high:+.1f}]"


class ClaimError(AssertionError):
    """A sentence of the text is not true of the numbers."""


def interval(values: Iterable[float]) -> Interval:
    """Mean and 95 % interval from Student's t distribution.

    Args:
        values: one number a seed. With a single one the interval is unbounded.

    Raises:
        ValueError: for no values, or values that are not finite.

    Example:
        >>> print(interval([1.0, 2.0, 3.0]))
        +2.0 [-0.5, +4.5]
    """
    numbers = np.asarray(list(values), dtype=float)
    require(
        numbers.size > 0 and bool(np.isfinite(numbers).all()),
        f"values must be finite numbers, at least one, got {numbers.tolist()}",
    )
    mean, n = float(numbers.mean()), numbers.size
    if n == 1:
        return Interval(mean, -math.inf, math.inf, 1)
    from scipy.special import stdtrit

    half = float(stdtrit(n - 1, 0.975) * numbers.std(ddof=1) / math.sqrt(n))
    return Interval(mean, mean - half, mean + half, n)


def claim(
    sentence: str,
    differences: Iterable[float],
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    within: float | None = None,
    unit: str = "points",
    over: str = "seeds",
) -> Interval:
    """Check a sentence of the text against its numbers.

    The sentence holds if the *whole* 95 % interval does what it says. Below five seeds nothing is
    judged. A sentence that does not hold is said not to be reproduced on this machine, beside the
    numbers of the book, and the notebook goes on: another processor or another version computes
    other digits. With the environment variable `KDCOURSE_CLAIMS` set to `stop` it is an error;
    the book is built and tested that way.

    Args:
        sentence: what the text says.
        differences: one number a seed, usually paired differences.
        at_least: the interval must lie at or above this.
        at_most: the interval must lie at or below this.
        within: the interval must lie inside ± this: no difference of a size that matters.
        unit: of the differences, for the printed line.
        over: what the numbers are repetitions over, for the printed line.

    Returns:
        The interval.

    Raises:
        ClaimError: if the sentence does not hold, and `KDCOURSE_CLAIMS` is `stop`.
        ValueError: unless exactly one of the three bounds is given; for an `Interval` in place of
            the differences.

    Example:
        >>> _ = claim("Practice helps.", [4.0, 5.0, 6.0, 5.0, 5.0], at_least=2)
        Holds: Practice helps.
          effect +5.0 [+4.1, +5.9] points over 5 seeds; the claim needs at least +2
    """
    bounds = {"at least": at_least, "at most": at_most, "within ±": within}
    given = [(words, bound) for words, bound in bounds.items() if bound is not None]
    require(
        len(given) == 1,
        f"claim needs exactly one of at_least, at_most and within, got {len(given)} of them",
    )
    require(
        not isinstance(differences, Interval),
        "claim works out the interval itself: give it the differences, one number a seed, not an "
        "Interval",
    )
    words, bound = given[0]
    effect = interval(differences)
    holds = {
        "at least": effect.low >= bound,
        "at most": effect.high <= bound,
        "within ±": -bound <= effect.low and effect.high <= bound,
    }[words]
    needs = f"within ±{bound:g}" if within is not None else f"{words} {bound:+g}"
    detail = f"effect {effect} {unit} over {effect.n} {over}; the claim needs {needs}"
    judged = effect.n >= FEWEST_SEEDS
    record = {"sentence": sentence, **effect._asdict(), "unit": unit, "over": over, "needs": needs}
    if not judged:
        sentence = f"Not judged, too few {over} to judge: {sentence}"
    elif holds:
        sentence = f"Holds: {sentence}"
    else:
        detail += _in_the_book(sentence)
        sentence = f"Not reproduced on this machine: {sentence}"
    pronounce(f"{sentence}\n  {detail}", holds if judged else None, record)
    return effect


def _in_the_book(sentence: str) -> str:
    """What the book's own run says of a sentence; nothing where it has none like it."""
    known = json.loads(LEDGER.read_text(encoding="utf-8")) if LEDGER.exists() else []
    for entry in known:
        if entry["sentence"] == sentence and (at_home := entry["sets"].get("0")):
            effect = Interval(*(at_home[key] for key in Interval._fields))
            return f"; in the book {effect} over {effect.n}"
    return ""


def pronounce(text: str, holds: bool | None, record: dict[str, Any]) -> None:
    """Show a verdict; in a notebook its record, plain JSON, is kept beside the text.

    Args:
        text: what the reader sees.
        holds: None if it was not judged.
        record: what a program wants to know; numbers that are not finite become None.

    Raises:
        ClaimError: if it does not hold, and `KDCOURSE_CLAIMS` is `stop`.
    """
    if holds is False and os.environ.get("KDCOURSE_CLAIMS") == "stop":
        raise ClaimError(text)
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is None:
        print(text)
        return
    from IPython.display import display

    finite = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in record.items()
    }
    metadata = {RECORD: finite | {"holds": holds}}
    display({"text/plain": text}, raw=True, metadata=metadata)
