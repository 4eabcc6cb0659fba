"""The notebook kernel of a graded run: an IPython kernel whose printed output is bounded."""

import os
import sys

sys.modules["debugpy"] = None  # type: ignore[assignment] # nobody debugs here, and it is slow to load

from ipykernel.iostream import OutStream  # noqa: E402
from ipykernel.kernelapp import IPKernelApp  # noqa: E402

LIMIT = 1_000_000


class LimitedStream(OutStream):
    """Standard output or error up to `LIMIT` characters; the rest never leaves the kernel."""

    left = LIMIT

    def write(self, string: str) -> int:
        """Pass on what still fits, and say once that the rest is dropped."""
        if not isinstance(string, str) or len(string) <= self.left:
            self.left -= len(string)
            super().write(string)
        elif self.left >= 0:
            kept, self.left = string[: self.left], -1
            super().write(f"{kept}\n[more than {LIMIT} characters: the rest is not shown]\n")
        return len(string)


def fork() -> tuple[int, int]:
    """Start the kernel in a copy of this process, before anything here has threads or sockets.

    Returns:
        Its process id, and a pipe on which it waits for the path of its connection file.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(reading)
        return pid, writing
    try:
        os.close(writing)
        os.setsid()  # interrupts go to the whole group
        if connection := os.read(reading, 4096).decode():
            os.environ["JPY_PARENT_PID"] = str(os.getppid())
            sys.argv = [__file__, "-f", connection, "--HistoryManager.enabled=False"]
            IPKernelApp.launch_instance(outstream_class=f"{__name__}.LimitedStream")
    finally:
        os._exit(0)
