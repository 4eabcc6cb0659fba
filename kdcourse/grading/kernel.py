"""The notebook kernel of a graded run: an IPython kernel whose printed output is bounded.

Started as a script, so that it costs no import of the package.
"""

import os
import sys

from ipykernel.iostream import OutStream
from ipykernel.kernelapp import IPKernelApp

LIMIT = int(os.environ.get("KDCOURSE_OUTPUT_LIMIT", "1000000"))


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


if __name__ == "__main__":
    sys.modules["kdcourse_kernel"] = sys.modules[__name__]
    IPKernelApp.launch_instance(outstream_class="kdcourse_kernel.LimitedStream")
