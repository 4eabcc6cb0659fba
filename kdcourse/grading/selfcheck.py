"""The public checks of an exercise: what a learner sees while working."""

import linecache
import traceback
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
        elif isinstance(error, NotImplementedError):
            print(f"{MARKS['open']} {self.title}: not answered yet")
        elif isinstance(error, AssertionError):
            print(f"{MARKS['wrong']} {self.title}: {error}")
        elif isinstance(error, Exception):
            print(f"{MARKS['wrong']} {self.title}: {type(error).__name__}: {error}{_at(error)}")
        else:
            return False
        return True


def _at(error: BaseException) -> str:
    """The innermost line of the notebook that led to an exception, as words."""
    code = ""
    for frame, number in traceback.walk_tb(error.__traceback__):
        if frame.f_globals.get("__name__") == "__main__":
            code = linecache.getline(frame.f_code.co_filename, number).strip()
    return f", in the line: {code}" if code else ""
