"""The memory of a run as the kernel counts it, where this machine lets us have a group for it.

A control group counts what no list of processes shows: pages of files in memory, buffers of pipes
and sockets, page tables. Root has one on most machines; another user where the session gives it one
(`systemd-run --user --scope kdcourse grade ...`).
"""

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

MOUNTS = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")
PREFIX = "kdcourse-"
MIB = 2**20


class MemoryGroup:
    """One control group, of either version of the kernel's interface.

    Args:
        folder: its folder below /sys/fs/cgroup.
        limit_mib: beyond this the kernel itself ends a process of the group.

    Raises:
        OSError: when the group may not be made or bounded.
    """

    def __init__(self, folder: Path, limit_mib: int) -> None:
        self._folder = folder
        self._new = (folder / "memory.max").exists()
        names = ("memory.max", "memory.swap.max") if self._new else ("memory.limit_in_bytes",)
        for name, value in zip(names, (limit_mib * MIB, 0), strict=False):
            with contextlib.suppress(FileNotFoundError):  # a kernel without swap
                (folder / name).write_text(str(value))

    def add(self, pid: int) -> None:
        """Count a process from now on, and all that it starts."""
        (self._folder / "cgroup.procs").write_text(str(pid))

    def used_mib(self) -> float:
        """Everything that the group holds but copies of files on a disk, which can be dropped."""
        usage = "memory.current" if self._new else "memory.usage_in_bytes"
        statistics = self._table("memory.stat")
        prefix = "" if self._new else "total_"
        cached = sum(statistics.get(f"{prefix}{kind}_file", 0) for kind in ("active", "inactive"))
        return max(0, int((self._folder / usage).read_text()) - cached) / MIB

    def overflowed(self) -> bool:
        """Whether the kernel has ended a process of the group for lack of memory."""
        name = "memory.events" if self._new else "memory.oom_control"
        return self._table(name).get("oom_kill", 0) > 0

    def _table(self, name: str) -> dict[str, int]:
        lines = (self._folder / name).read_text().splitlines()
        return {key: int(value) for key, value in (line.split() for line in lines)}


@contextlib.contextmanager
def memory_group(limit_mib: int) -> Iterator[MemoryGroup | None]:
    """A new group for one run, or None where this machine gives us none; gone afterwards."""
    for parent in _parents(OWN.read_text() if OWN.exists() else ""):
        try:
            _remove_left(parent)
            folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=parent))
        except OSError:
            continue
        try:
            group = MemoryGroup(folder, limit_mib)
        except OSError:
            folder.rmdir()
            continue
        try:
            yield group
        finally:
            _remove(folder)
        return
    yield None


def _parents(own: str) -> Iterator[Path]:
    """Where a group may stand: below our own, or the nearest above that passes memory on."""
    for line in own.splitlines():
        _, controllers, name = line.split(":", 2)
        relative = name.lstrip("/")
        if "memory" in controllers.split(","):
            yield MOUNTS / "memory" / relative
            yield MOUNTS / "memory"
        elif not controllers:
            folder = MOUNTS / relative
            for parent in (folder, *folder.parents):
                with contextlib.suppress(OSError):
                    if "memory" in (parent / "cgroup.subtree_control").read_text().split():
                        yield parent
                if parent == MOUNTS:
                    break


def _remove_left(parent: Path) -> None:
    """Remove the groups that a killed grader left."""
    for folder in parent.glob(f"{PREFIX}*"):
        grader = folder.name.split("-")[1]
        if not Path(f"/proc/{grader}").exists():
            with contextlib.suppress(OSError):
                folder.rmdir()


def _remove(folder: Path) -> None:
    """An empty group can be removed; its last process may take a moment to be gone."""
    for _ in range(100):
        try:
            folder.rmdir()
            return
        except OSError:
            time.sleep(0.05)


def oom_kills() -> int:
    """How many processes the kernel has ended for lack of memory since the machine started."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/vmstat").read_text(encoding="ascii").splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))
    return 0
