"""How long a run has run, however busy the machine is."""

import contextlib
import os
import time
from collections.abc import Iterable
from pathlib import Path


class Clock:
    """The processor seconds of a run, and all time in which it wanted no processor.

    It stands still while a process of the run is ready to compute and other programs are given the
    processors instead, so that a run has the same time on a busy machine as on an idle one. It does
    not stand still for a run that sleeps.

    Attributes:
        seconds: what has passed until the last look.
        waited: the same on the wall.
    """

    def __init__(self) -> None:
        self.seconds = self.waited = self._had = 0.0
        self._last = time.monotonic()

    def look(self, pids: Iterable[int]) -> float:
        """Look at the processes of the run; what has passed so far.

        The process that looks may be one of them: it is busy with that, and waits for nothing.
        """
        states = {pid: _state(pid) for pid in pids}
        # What a child has had goes to its parent when it ends: between two of these readings it
        # can be missed, but not be counted twice.
        had = max(self._had, sum(seconds for _, seconds in states.values()))
        now = time.monotonic()
        passed, computed = now - self._last, had - self._had
        doing = {letter for pid, (letter, _) in states.items() if pid != os.getpid()}
        ready = "R" in doing or (doing and doing <= {"X", "Z"})  # or they have ended
        self.seconds += computed if ready else max(computed, passed)
        self.waited += passed
        self._had, self._last = had, now
        return self.seconds


def _state(pid: int) -> tuple[str, float]:
    """What a process does, and the processor seconds that it and its ended children have had."""
    with contextlib.suppress(OSError):
        # The name of the program, in parentheses, may hold anything.
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        letter, threads = fields[0].decode(), int(fields[17])
        if letter == "Z" and threads > 1:
            letter = "S"  # only its first thread has ended
        return letter, sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    return "X", 0.0
