"""A submission's process: what it sees, what it may use, and that nothing of it stays.

Bubblewrap gives the run a file system with only what it needs, no network, no capabilities, no
environment and a process namespace of its own, which dies with it. What it writes goes into file
systems of bounded size in memory, which die with it too. Outside, `watch` bounds time,
memory, number of processes and files over the whole process tree.
"""

import contextlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal, Self

from . import doors
from .cgroup import MIB, MemoryGroup, memory_group, oom_kills
from .warm import CannotEnter, WarmProcess
from .watch import Limits, Outcome, Places, Processes, watch

Sandbox = Literal["bwrap", "none"]
NOBODY = 65534
ISOLATION = (
    *("--unshare-user", "--unshare-all", "--disable-userns", "--die-with-parent", "--new-session"),
    *("--uid", "65534", "--gid", "65534", "--cap-drop", "ALL"),
)
WARM = WarmProcess()
SYSTEM = ("/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache", "/etc/localtime", "/etc/fonts")
WRITABLE = ("/scratch", "/tmp", "/dev/shm")
TEMPORARY_MIB = 64  # /tmp and /dev/shm
# A file system holds somewhat more than a run may use, so that using it up is seen as that.
MARGIN_MIB = 64
FOLDER = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0)
PYTHON = (sys.executable, "-P", "-m", "kdcourse.grading.run")


def find_bubblewrap() -> str:
    """The path of bubblewrap.

    Raises:
        RuntimeError: when it is not installed; the message names the package and the way around.
    """
    path = shutil.which("bwrap")
    if path is None:
        raise RuntimeError(
            "grading runs submissions inside bubblewrap, and `bwrap` was not found. Install the "
            "package `bubblewrap` (Debian, Ubuntu: apt install bubblewrap; Fedora: dnf install "
            "bubblewrap), or choose `--sandbox none`, which lets submissions read and change your "
            "files, and is written into every result."
        )
    return path


def check_bubblewrap() -> None:
    """Make sure that bubblewrap is there and works on this machine.

    Raises:
        RuntimeError: with what to do about it.
    """
    command = [find_bubblewrap(), *ISOLATION, "--ro-bind", "/", "/", "--", "/bin/true"]
    tried = subprocess.run(command, capture_output=True, text=True, check=False, **identity())
    if tried.returncode:
        raise RuntimeError(
            f"bubblewrap cannot make a sandbox here: {tried.stderr.strip()} (version 0.8 or newer "
            "is needed, and user namespaces must be allowed). `--sandbox none` grades without."
        )
    if not doors.known():
        raise RuntimeError(
            f"on {platform.machine()} the system calls that hide memory are not known here; "
            f"known are {', '.join(doors.MACHINES)}. `--sandbox none` grades without a sandbox."
        )


@lru_cache(maxsize=1)
def identity() -> dict[str, Any]:
    """Whom submissions run as, for `Popen`: nobody, when the grader is root.

    Linux does not limit the number of root's processes. Where nobody may not read the installed
    packages, as below /root, submissions stay root, in a user namespace without capabilities.
    """
    if os.geteuid() != 0:
        return {}
    nobody: dict[str, Any] = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
    reads = "import os, sys, kdcourse; os.stat(sys.argv[1])"
    command = [sys.executable, "-c", reads, f"{tempfile.gettempdir()}/."]
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        subprocess.run(command, cwd="/", check=True, stderr=subprocess.DEVNULL, **nobody)
        return nobody
    return {}


@contextlib.contextmanager
def run(
    job: Path,
    scratch: Path,
    *,
    copies: dict[Path, Path],
    limits: Limits,
    sandbox: Sandbox,
    warm: bool = True,
) -> Iterator[tuple[Outcome, Path]]:
    """Run the notebook in `job` and wait until it and everything it started is gone.

    Args:
        job: notebook, settings and hidden inputs; read-only for the run.
        scratch: an empty folder, where the run writes if there is no sandbox.
        copies: what `available.package_copies` returned.
        limits: when to stop it.
        sandbox: "bwrap", or "none" for no isolation at all.
        warm: start from the warm process, where this machine lets it; a single run is cheaper
            without.

    Returns:
        How it ended, and the folder of what it wrote, which is gone when the block ends.
    """
    import psutil

    killed = oom_kills()
    room = psutil.virtual_memory().available > limits.memory_mib * MIB
    with contextlib.ExitStack() as stack:
        messages = stack.enter_context(_Messages())
        group = stack.enter_context(memory_group(_most_mib(limits)))
        begin = partial(_started, job, scratch, copies, sandbox, messages, limits)
        try:
            started = stack.enter_context(begin(warm))
        except CannotEnter:
            started = stack.enter_context(begin(False))
        if group is not None and not _joined(group, started.processes):
            group = None
        started.go()
        try:
            reason, seconds, peak = watch(started.processes, started.places, limits, group)
        finally:
            started.processes.alive()
            started.processes.end()
        starved = oom_kills() > killed and not (group is not None and group.overflowed())
        yield Outcome(reason, seconds, round(peak), messages.text(), starved, room), started.written


class _Messages:
    """What a run's own processes write, of which the beginning is kept.

    A pipe and no file: a file on this machine's disk would grow as the run pleases.
    """

    def __init__(self) -> None:
        self._reading, self._writing = os.pipe()
        self._kept = b""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.text()

    def fileno(self) -> int:
        """Where to write to, for `Popen`."""
        return self._writing

    def text(self) -> str:
        """The beginning of it all, once every writer has gone; then nothing more is taken."""
        if self._writing >= 0:
            os.close(self._writing)
            self._writing = -1
            self._reader.join(timeout=5)
        return self._kept.decode(errors="replace")

    def _read(self) -> None:
        with open(self._reading, "rb", buffering=0) as pipe:  # noqa: PTH123 - a descriptor
            while data := pipe.read(2**16):
                self._kept += data[: 4000 - len(self._kept)]


@dataclass(frozen=True)
class _Started:
    """A run that waits for its first cell until `go` is called."""

    processes: Processes
    places: Places
    written: Path
    go: Callable[[], Any]


def _started(
    job: Path,
    scratch: Path,
    copies: dict[Path, Path],
    sandbox: Sandbox,
    messages: _Messages,
    limits: Limits,
    warm: bool,
) -> contextlib.AbstractContextManager[_Started]:
    if sandbox == "none":
        return _unprotected(job, scratch, copies, messages)
    if identity():
        for path in (scratch.parent, *scratch.parent.rglob("*")):
            os.chown(path, NOBODY, NOBODY)
    command = _bubblewrap(job, copies, limits)
    if warm and _may_be_warm(copies):
        return _warm(command, copies, messages)
    return _cold(command, messages)


def _may_be_warm(copies: dict[Path, Path]) -> bool:
    """Not where a library has functions switched off: the warm process knows it with them."""
    return WARM.usable and all(copy.name == "kdcourse" for copy in copies.values())


@contextlib.contextmanager
def _unprotected(
    job: Path, scratch: Path, copies: dict[Path, Path], messages: _Messages
) -> Iterator[_Started]:
    """No sandbox: an ordinary process in an ordinary folder."""
    (scratch / "work").mkdir()
    environment = _environment(job, scratch, [next(iter(copies.values())).parent])
    command = [*PYTHON, str(job), str(scratch)]
    with (
        _answering(command, messages, env=environment, cwd=scratch / "work") as process,
        _closing(os.pidfd_open(process.pid)) as ended,
    ):
        processes = Processes([process.pid], ended)
        yield _Started(processes, Places(folder=scratch), scratch, partial(_go, process))


@contextlib.contextmanager
def _cold(command: list[str], messages: _Messages) -> Iterator[_Started]:
    """Start Python anew inside bubblewrap."""
    with (
        _inside(command, [*PYTHON, "/job", "/scratch"], messages) as (process, first),
        _written(first) as places,
        _closing(os.pidfd_open(process.pid)) as ended,
    ):
        processes = Processes([process.pid], ended)
        yield _Started(processes, Places(places), _folder(places), partial(_go, process))


@contextlib.contextmanager
def _warm(command: list[str], copies: dict[Path, Path], messages: _Messages) -> Iterator[_Started]:
    """Let bubblewrap make the sandbox around a `cat`, and a copy of the warm process enter it.

    Raises:
        CannotEnter: where that is not possible.
    """
    with (
        _inside(command, ["cat"], messages) as (process, first),
        _written(first) as places,
        _entered(first, copies, messages) as (pid, ended, go),
    ):
        processes = Processes([process.pid, pid], ended)
        yield _Started(processes, Places(places), _folder(places), partial(os.write, go, b"\n"))


@contextlib.contextmanager
def _entered(
    first: int, copies: dict[Path, Path], messages: _Messages
) -> Iterator[tuple[int, int, int]]:
    pid, ended, go = WARM.enter(first, _variables(copies), messages, identity())
    with _closing(ended), _closing(go):
        yield pid, ended, go


@contextlib.contextmanager
def _inside(
    sandbox: list[str], program: list[str], messages: _Messages
) -> Iterator[tuple[subprocess.Popen, int]]:
    """A complete sandbox: bubblewrap, and the first process in it as seen from here."""
    reading, writing = os.pipe()
    calls, filled = os.pipe()
    os.write(filled, doors.program())  # what a pipe holds at least is much larger
    os.close(filled)
    command = [*sandbox, "--info-fd", str(writing), "--seccomp", str(calls), "--", *program]
    environment = {"PATH": os.environ.get("PATH", os.defpath)}
    with _closing(reading), contextlib.ExitStack() as stack:
        given: dict[str, Any] = {"env": environment, "pass_fds": [writing, calls]}
        try:
            process = stack.enter_context(_answering(command, messages, **given, **identity()))
        finally:
            os.close(writing)
            os.close(calls)
        yield process, json.loads(os.read(reading, 4096))["child-pid"]


@contextlib.contextmanager
def _answering(
    command: list[str], messages: _Messages, **options: Any
) -> Iterator[subprocess.Popen]:
    """Start a program that answers a line with that line, and wait until it does.

    Raises:
        RuntimeError: when it does not; the message says what it wrote instead.
    """
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command,
        stdin=pipe,
        stdout=pipe,
        stderr=messages.fileno(),
        start_new_session=True,
        bufsize=0,
        **options,
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(b"\n")
            if process.stdout.read(1) != b"\n":
                process.kill()
                process.wait()
                raise RuntimeError(f"{Path(command[0]).name} did not start: {messages.text()}")
            yield process
        finally:
            process.kill()


def _go(process: subprocess.Popen) -> None:
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(b"\n")


@contextlib.contextmanager
def _written(first: int) -> Iterator[list[int]]:
    """The places a run may write to, opened from outside: they last as long as they are open."""
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(_closing(os.open(f"/proc/{first}/root{place}", FOLDER)))
            for place in WRITABLE
        ]


def _folder(descriptors: Sequence[int]) -> Path:
    return Path(f"/proc/self/fd/{descriptors[0]}")


def _joined(group: MemoryGroup, processes: Processes) -> bool:
    """Whether the run is counted in its group from here on."""
    try:
        for member in processes.alive():
            with contextlib.suppress(ProcessLookupError):
                group.add(member.pid)
    except OSError:
        return False
    return True


def _most_mib(limits: Limits) -> int:
    """Where the kernel itself stops a run that is faster than the watcher: with its files."""
    return limits.memory_mib + limits.disk_mib + MARGIN_MIB + 2 * TEMPORARY_MIB


def _environment(job: Path, scratch: Path, packages: Sequence[Path]) -> dict[str, str]:
    """The whole environment of a run: nothing of the grader's own is passed on."""
    return {
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        "HOME": str(scratch / "work"),
        "TMPDIR": str(scratch / "work"),
        "IPYTHONDIR": str(scratch / "work" / ".ipython"),
        "MPLCONFIGDIR": str(scratch / "work" / ".matplotlib"),
        "JUPYTER_RUNTIME_DIR": str(scratch / "runtime"),
        "PYTHONPATH": ":".join(str(path) for path in packages),
        "PYTHONDONTWRITEBYTECODE": "1",
        "LANG": "C.UTF-8",
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "KDCOURSE_JOB": str(job),
        "KDCOURSE_ANSWERS": str(scratch / "answers"),
    }


def _variables(copies: dict[Path, Path]) -> dict[str, str]:
    """The environment in bubblewrap, where the copies lie over the original packages."""
    packages = list(dict.fromkeys(original.parent for original in copies))
    return _environment(Path("/job"), Path("/scratch"), packages)


def _bubblewrap(job: Path, copies: dict[Path, Path], limits: Limits) -> list[str]:
    command = [find_bubblewrap(), *ISOLATION, "--hostname", "sandbox"]
    command += ["--clearenv", "--dev", "/dev", "--proc", "/proc"]
    command += ["--dev-bind", "/dev/null", "/dev/zero"]  # mapped and shared, it holds memory
    for name in ("sys", "sysrq-trigger", "irq", "bus", "fs", "mtrr", "pressure"):  # root may write
        command += ["--ro-bind-try", f"/proc/{name}", f"/proc/{name}"]
    sizes = (limits.disk_mib + MARGIN_MIB, TEMPORARY_MIB, TEMPORARY_MIB)
    for folder, size in zip(WRITABLE, sizes, strict=True):
        command += ["--size", str(size * MIB), "--tmpfs", folder]
    for name in dict.fromkeys([*SYSTEM, sys.base_prefix, sys.prefix]):
        path = Path(name)
        if name in SYSTEM and path.is_symlink() and path.is_dir():  # /lib -> usr/lib
            command += ["--symlink", str(path.readlink()), name]
        else:
            command += ["--ro-bind-try", name, name]
    for original, copy in copies.items():
        command += ["--ro-bind", str(copy), str(original)]
    command += ["--ro-bind", str(job), "/job", "--dir", "/scratch/work"]
    command += ["--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/scratch/work"]
    for name, value in _variables(copies).items():
        command += ["--setenv", name, value]
    return command


@contextlib.contextmanager
def _closing(descriptor: int) -> Iterator[int]:
    try:
        yield descriptor
    finally:
        os.close(descriptor)
