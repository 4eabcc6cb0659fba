"""The public checks of an exercise: what a learner sees while working."""

import linecache
import traceback
from collections.abc import Mapping
from types import TracebackType

MARKS = {"right": "✓", "wrong": "✗", "open": "–"}


class check:  # noqa: N801 - reads as a statement: `with check("..."):`
    """A block of assertions that reports in words and never stops the notebook.

    Args:
        title: what is checked.

    Example:
        >>> with check("Twice two"):
        ...     assert 2 + 2 == 5, "expected 4; look at your addition"
        ✗ Twice two: expected 4; look at your addition
        >>> with check("Twice three"):
        ...     raise NotImplementedError
        – Twice three: not answered yet
        >>> with check("Twice one"):
        ...     assert 1 + 1 == 2
        ✓ Twice one
    """

    def __init__(self, title: str) -> None:
        self.title = title

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> bool:
        """Report, and swallow every ordinary exception."""
        if error is None:
            print(f"{MARKS['right']} {self.title}")
        elif _unanswered(error):
            print(f"{MARKS['open']} {self.title}: not answered yet")
        elif isinstance(error, AssertionError) and str(error):
            print(f"{MARKS['wrong']} {self.title}: {error}")
        elif isinstance(error, Exception):
            words = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            print(f"{MARKS['wrong']} {self.title}: {words}{_at(error)}")
        else:
            return False
        return True


def expect(
    found: float, expected: float, slips: Mapping[float, str], *, tolerance: float = 1e-3
) -> None:
    """Fail unless a number is the expected one, and say which slip leads to the one that is found.

    Args:
        found: what the learner's function returns.
        expected: what it should.
        slips: a wrong number → what makes it.
        tolerance: how far a number may be off; twice as far from a slip's, which is rounded.

    Raises:
        AssertionError: for a `check` to show.

    Example:
        >>> with check("Twice two"):
        ...     expect(5.0, 4.0, {5.0: "that is one more than asked for"})
        ✗ Twice two: expected 4.0, got 5.0000: that is one more than asked for
    """
    slip = next((f": {slips[wrong]}" for wrong in slips if abs(found - wrong) < 2 * tolerance), "")
    if not abs(found - expected) < tolerance:  # nan, too
        raise AssertionError(f"expected {expected}, got {found:.4f}{slip}")


def _unanswered(error: BaseException) -> bool:
    """Whether it is the notebook's own `raise NotImplementedError`; libraries have theirs."""
    if not isinstance(error, NotImplementedError):
        return False
    *_, (filename, line, name) = _lines(error)
    return name in {"__main__", __name__} and "raise NotImplementedError" in _text(filename, line)


def _at(error: BaseException) -> str:
    """The innermost line of the notebook that led to an exception, as words.

    Where that is in another cell than the check, the cell is named by its first line.
    """
    own = [(filename, line) for filename, line, name in _lines(error) if name == "__main__"]
    if not own or not (code := _text(*own[-1])):
        return ""
    if own[-1][0] == own[0][0]:
        return f", in the line: {code}"
    cell = (line.strip() for line in linecache.getlines(own[-1][0]))
    return f", in the line: {code} (in the cell ‘{next(filter(None, cell))[:60]}’)"


def _lines(error: BaseException) -> list[tuple[str, int, str]]:
    """File, line and module of every frame that an exception came through, the outermost first."""
    return [
        (frame.f_code.co_filename, number, frame.f_globals.get("__name__", ""))
        for frame, number in traceback.walk_tb(error.__traceback__)
    ]


def _text(filename: str, line: int) -> str:
    return linecache.getline(filename, line).strip()
