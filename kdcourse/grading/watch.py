"""What a run uses, seen from outside while it runs, and the first limit that it breaks."""

import contextlib
import math
import os
import select
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .cgroup import MIB, MemoryGroup
from .clock import Clock

Reason = Literal["ended", "timeout", "memory", "processes", "disk"]
MAX_DEPTH = 100
MANY = 16
USUAL_CHANNELS = 64  # a kernel at rest has about fifty
CHANNEL_MIB = 0.25  # what a pipe or a socket may hold in the kernel's own memory
ENTRY_BYTES = 4096  # a file without content costs something too
PATIENCE = 10  # how many times its seconds a run may take where others have the processors


@dataclass(frozen=True)
class Limits:
    """What one run may use.

    Attributes:
        seconds: of its clock, which stands still while the run waits for a processor.
        memory_mib: of its whole process tree, at any moment.
        processes: how many at the same time.
        disk_mib: of all files.
        output_bytes: of what is kept of printed and shown output.
        descriptors: of open files, for each process.
    """

    seconds: float
    memory_mib: int
    processes: int = 64
    disk_mib: int = 512
    output_bytes: int = 5_000_000
    descriptors: int = 512


@dataclass(frozen=True)
class Outcome:
    """How a run ended, seen from outside.

    Attributes:
        reason: what stopped it, or "ended" by itself.
        seconds: how long it ran, by its clock.
        peak_mib: the most memory it was seen to hold.
        messages: what the run's own processes, not the notebook, wrote.
        starved: whether the kernel ended some process of this machine meanwhile for lack of memory.
        room: whether there was as much memory as the run may use when it began.
    """

    reason: Reason
    seconds: float
    peak_mib: int
    messages: str
    starved: bool = False
    room: bool = True


class Processes:
    """All that was seen of a run, and a descriptor that is readable when its first one ends."""

    def __init__(self, pids: Sequence[int], ended: int) -> None:
        import psutil

        self.ended = ended
        self.roots = []
        for pid in pids:
            with contextlib.suppress(psutil.NoSuchProcess):
                self.roots.append(psutil.Process(pid))
        self.seen = {root.pid: root for root in self.roots}

    def alive(self) -> list[Any]:
        """The run's processes at this moment."""
        import psutil

        tree = list(self.roots)
        for root in self.roots:
            with contextlib.suppress(psutil.NoSuchProcess):
                tree += root.children(recursive=True)
        self.seen.update((member.pid, member) for member in tree)
        return tree

    def end(self) -> None:
        """End them and wait until they are gone.

        With bubblewrap the first process of the namespace is among them, and takes along the rest.
        """
        import psutil

        for member in self.seen.values():
            with contextlib.suppress(psutil.Error):
                member.kill()
        deadline = time.monotonic() + 10
        while any(map(_alive, self.seen.values())) and time.monotonic() < deadline:
            time.sleep(0.005)


class Places:
    """Where a run may write: open folders of file systems of their own, or one ordinary folder.

    Of a file system the kernel says how full it is, which counts files that have no name any more.

    Attributes:
        pause: after how many looks at the run it is time to look here; walking a folder is slow.
    """

    def __init__(self, descriptors: Sequence[int] = (), folder: Path | None = None) -> None:
        self._descriptors = descriptors
        self._folder = folder
        self.pause = 1 if folder is None else 5

    def held_mib(self) -> float:
        """What the file systems hold in memory."""
        states = map(os.fstatvfs, self._descriptors)
        return sum((s.f_blocks - s.f_bfree) * s.f_frsize for s in states) / MIB

    def used_mib(self) -> float:
        """The size of all files, with what their mere number costs."""
        if self._folder is not None:
            return _folder_mib(self._folder)
        states = map(os.fstatvfs, self._descriptors)
        files = sum(state.f_files - state.f_ffree for state in states)
        return self.held_mib() + files * ENTRY_BYTES / MIB


def watch(
    processes: Processes, places: Places, limits: Limits, group: MemoryGroup | None
) -> tuple[Reason, float, float]:
    """Wait for the end of a run, or for the first limit that it breaks.

    Returns the reason, the seconds, and the highest memory use in MiB.
    """
    clock, used, peak, turn = Clock(), 0.0, 0.0, 0
    tree: list[Any] = []
    reason: Reason | None = None
    while reason is None:
        pause = 0.05 if turn < 20 or len(tree) > MANY else 0.2
        ended = bool(select.select([processes.ended], [], [], pause)[0])
        turn += 1
        tree = processes.alive()
        clock.look(process.pid for process in tree)
        if len(tree) > limits.processes and not ended:
            reason = "processes"
            break
        disk = places.used_mib() if turn % places.pause == 0 or ended else 0.0
        used = 0.0 if ended else _memory_mib(tree, limits.memory_mib)
        if group is not None:  # what is written is counted as files
            used = max(used, group.used_mib() - places.held_mib())
        peak = max(peak, used)
        if used > limits.memory_mib or (group is not None and group.overflowed()):
            reason = "memory"
        elif disk > limits.disk_mib:
            reason = "disk"
        elif ended:
            reason = "ended"
        elif clock.seconds > limits.seconds or clock.waited > PATIENCE * limits.seconds:
            reason = "timeout"
    return reason, clock.seconds, peak


def _memory_mib(tree: Sequence[Any], limit: float) -> float:
    """What all processes hold, or one of them has held; above the limit, shared pages count once.

    The kernel keeps the most that a process has held: one that gave it back before anybody looked
    is seen as well. Of several it does not say whether they held it at the same time.
    """
    seen = [_Size(process.pid) for process in tree]
    channels = set[str]().union(*(size.channels for size in seen))
    hidden = CHANNEL_MIB * max(0, len(channels) - USUAL_CHANNELS)
    hidden += sum(size.tables for size in seen) + (_queued_mib(tree[-1].pid) if tree else 0)
    resident = sum(size.pages for size in seen)
    most = max((size.most for size in seen), default=0.0)
    if max(resident + hidden, most) <= limit:
        return max(resident + hidden, most)
    own = list(map(_proportional_mib, tree, seen))
    alone = (size.most - size.pages + mib for size, mib in zip(seen, own, strict=True))
    return max(hidden + sum(own), *alone)


def held_mib(process: Any) -> float:
    """The most that one process has held."""
    return _memory_mib([process], 0)


class _Size:
    """What one process holds at this moment, in MiB.

    Attributes:
        pages: in memory and in swap.
        most: of pages, until now.
        tables: that lead to the pages.
        channels: names of its pipes and sockets; of what the kernel holds for them, all that is
            known is their number.
    """

    def __init__(self, pid: int) -> None:
        self.pages = self.most = self.tables = 0.0
        self.channels: set[str] = set()
        for folder in (Path(f"/proc/{pid}"), *_threads(pid)):
            with contextlib.suppress(OSError):
                text = (folder / "status").read_text(encoding="utf-8", errors="replace")
                fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
                if "VmRSS" in fields:  # else its first thread has ended, and others go on
                    self.pages = _mib(fields, "VmRSS") + _mib(fields, "VmSwap")
                    self.most = max(self.pages, _mib(fields, "VmHWM"))
                    self.tables = _mib(fields, "VmPTE")
                    self.channels = _channels(folder)
                    return


def _mib(fields: Mapping[str, str], name: str) -> float:
    return int(fields.get(name, "0").split()[0]) / 1024


def _channels(folder: Path) -> set[str]:
    found = set()
    with contextlib.suppress(OSError):
        for path in (folder / "fd").iterdir():
            with contextlib.suppress(OSError):
                found.add(str(path.readlink()))
    return {name for name in found if name.startswith(("pipe:", "socket:"))}


def _threads(pid: int) -> Iterator[Path]:
    with contextlib.suppress(OSError):
        yield from Path(f"/proc/{pid}/task").iterdir()


def _proportional_mib(process: Any, size: _Size) -> float:
    import psutil

    try:
        full = process.memory_full_info()
        return (full.pss + full.swap) / MIB
    except (psutil.Error, OSError):  # it hides how much it shares: it counts with all
        return size.pages


def _queued_mib(pid: int) -> float:
    """What waits in the TCP connections that a process sees; each byte costs about two."""
    held = 0
    for name in ("tcp", "tcp6"):
        with contextlib.suppress(OSError, IndexError, ValueError):
            lines = Path(f"/proc/{pid}/net/{name}").read_text(encoding="ascii").splitlines()[1:]
            queues = (line.split()[4].split(":") for line in lines)
            held += 2 * sum(int(size, 16) for queue in queues for size in queue)
    return held / MIB


def _folder_mib(folder: Path) -> float:
    """What a run has written; infinite when it hides files deeper than `MAX_DEPTH` folders."""
    total, waiting = 0, [(folder, 0)]
    while waiting:
        parent, depth = waiting.pop()
        if depth > MAX_DEPTH:
            return math.inf
        with contextlib.suppress(OSError), os.scandir(parent) as entries:
            for entry in entries:
                total += ENTRY_BYTES
                if entry.is_dir(follow_symlinks=False):
                    waiting.append((Path(entry.path), depth + 1))
                else:
                    with contextlib.suppress(OSError):
                        total += entry.stat(follow_symlinks=False).st_blocks * 512
    return total / MIB


def _alive(process: Any) -> bool:
    """Still running; a zombie is not, whoever may be late to collect it."""
    import psutil

    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
