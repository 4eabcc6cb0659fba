"""A submission's process: what it sees, what it may use, and that nothing of it stays.

Bubblewrap gives the run a file system with only what it needs, no network, no capabilities, no
environment and a process namespace of its own, which dies with it. A watcher outside bounds wall
clock, memory, number of processes and disk over the whole process tree.
"""

import ast
import contextlib
import importlib.util
import json
import math
import os
import select
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, Literal

from .warm import CannotEnter, WarmProcess

Sandbox = Literal["bwrap", "none"]
Reason = Literal["ended", "timeout", "memory", "processes", "disk"]
MAX_DEPTH = 100
NOBODY = 65534
MANY = 16
_PARSING = threading.Lock()  # Python 3.11's ast is not safe in a Dask worker's threads
ISOLATION = (
    *("--unshare-user", "--unshare-all", "--disable-userns", "--die-with-parent", "--new-session"),
    *("--uid", "65534", "--gid", "65534", "--cap-drop", "ALL"),
)
WARM = WarmProcess()
SYSTEM = ("/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache", "/etc/localtime", "/etc/fonts")


@dataclass(frozen=True)
class Limits:
    """What one run may use."""

    seconds: float
    memory_mib: int
    processes: int = 64
    disk_mib: int = 512
    output_bytes: int = 5_000_000


@dataclass(frozen=True)
class Outcome:
    """How a run ended, seen from outside: `reason` is what stopped it, or "ended" by itself."""

    reason: Reason
    seconds: float
    peak_mib: int
    messages: str


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


def package_copies(blocked: Sequence[str], destination: Path) -> dict[Path, Path]:
    """Copies of the packages a run may import, in which the `blocked` functions only raise.

    The run sees these files instead of the installed ones, so that reloading, a fresh process or
    reading the source gives no more than importing does.

    Args:
        blocked: dotted names such as `kdcourse.soft_targets.soft_target_loss`.
        destination: an existing folder for the copies.

    Returns:
        The copy of each installed package folder.

    Raises:
        ValueError: for a name that is not a function or class at the top level of its module.
    """
    copies = {}
    for package in sorted({"kdcourse", *(name.split(".")[0] for name in blocked)}):
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise ValueError(f"blocked names are module.function of a package, got {package!r}")
        original = Path(spec.submodule_search_locations[0])
        copies[original] = destination / package
        shutil.copytree(original, copies[original], ignore=shutil.ignore_patterns("__pycache__"))
    by_module: dict[str, set[str]] = {}
    for name in blocked:
        module, _, function = name.rpartition(".")
        by_module.setdefault(module, set()).add(function)
    for module, functions in by_module.items():
        stem = destination.joinpath(*module.split("."))
        path = stem / "__init__.py" if stem.is_dir() else stem.with_suffix(".py")
        with _PARSING:
            text = _switch_off(path.read_text(encoding="utf-8"), module, functions)
        path.write_text(text, encoding="utf-8")
    return copies


def run(
    job: Path,
    scratch: Path,
    *,
    copies: dict[Path, Path],
    limits: Limits,
    sandbox: Sandbox,
    warm: bool = True,
) -> Outcome:
    """Run the notebook in `job` and wait until it and everything it started is gone.

    Args:
        job: notebook, settings and hidden inputs; read-only for the run.
        scratch: the only place the run may write to.
        copies: what `package_copies` returned.
        limits: when to stop it.
        sandbox: "bwrap", or "none" for no isolation at all.
        warm: begin with the libraries imported, where that can be done.
    """
    (scratch / "work").mkdir()
    if sandbox == "bwrap" and identity():
        for path in (scratch.parent, *scratch.parent.rglob("*")):
            os.chown(path, NOBODY, NOBODY)
    with (scratch.parent / "messages").open("w+b") as messages:
        warm = warm and sandbox == "bwrap" and _may_be_warm(copies)
        begin = _warm if warm else _cold
        try:
            with begin(job, scratch, copies, sandbox, messages) as processes:
                reason, seconds, peak = _watch(processes, scratch, limits)
        except CannotEnter:
            with _cold(job, scratch, copies, sandbox, messages) as processes:
                reason, seconds, peak = _watch(processes, scratch, limits)
        messages.seek(0)
        text = messages.read(4000).decode(errors="replace")
    return Outcome(reason, seconds, round(peak), text)


class _Processes:
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


def _may_be_warm(copies: dict[Path, Path]) -> bool:
    """Not where a library has functions switched off: the warm process knows it with them."""
    return WARM.usable and all(copy.name == "kdcourse" for copy in copies.values())


@contextlib.contextmanager
def _cold(
    job: Path, scratch: Path, copies: dict[Path, Path], sandbox: Sandbox, messages: IO[bytes]
) -> Iterator[_Processes]:
    """Start Python anew, inside bubblewrap or not."""
    python = [sys.executable, "-P", "-m", "kdcourse.grading.run"]
    if sandbox == "bwrap":
        command = [*_bubblewrap(job, scratch, copies), "--", *python, "/job", "/scratch"]
        environment, user = {"PATH": os.environ.get("PATH", os.defpath)}, identity()
    else:
        command, user = [*python, str(job), str(scratch)], {}
        environment = _environment(job, scratch, [next(iter(copies.values())).parent])
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=messages,
        stderr=messages,
        env=environment,
        cwd=scratch / "work",
        start_new_session=True,
        **user,
    )
    with process, _closing(os.pidfd_open(process.pid)) as ended:
        processes = _Processes([process.pid], ended)
        try:
            yield processes
        finally:
            processes.end()


@contextlib.contextmanager
def _warm(
    job: Path, scratch: Path, copies: dict[Path, Path], sandbox: Sandbox, messages: IO[bytes]
) -> Iterator[_Processes]:
    """Let bubblewrap make the sandbox around a `cat`, and a copy of the warm process enter it."""
    reading, writing = os.pipe()
    process = subprocess.Popen(
        [*_bubblewrap(job, scratch, copies), "--info-fd", str(writing), "--", "cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=messages,
        env={"PATH": os.environ.get("PATH", os.defpath)},
        pass_fds=[writing],
        start_new_session=True,
        bufsize=0,
        **identity(),
    )
    os.close(writing)
    with process, _closing(reading):
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(b"\n")
        if process.stdout.read(1) != b"\n":  # it answers when the sandbox is complete
            messages.seek(0)
            raise RuntimeError(f"bubblewrap: {messages.read(1000).decode(errors='replace')}")
        first = json.loads(os.read(reading, 4096))["child-pid"]
        processes = _Processes([process.pid], -1)
        try:
            pid, ended = WARM.enter(first, _inside(copies), messages, identity())
            with _closing(ended):
                processes = _Processes([process.pid, pid], ended)
                yield processes
        finally:
            processes.alive()
            processes.end()


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


def _inside(copies: dict[Path, Path]) -> dict[str, str]:
    """The environment in bubblewrap, where the copies lie over the original packages."""
    packages = list(dict.fromkeys(original.parent for original in copies))
    return _environment(Path("/job"), Path("/scratch"), packages)


def _bubblewrap(job: Path, scratch: Path, copies: dict[Path, Path]) -> list[str]:
    command = [find_bubblewrap(), *ISOLATION, "--hostname", "sandbox"]
    command += ["--clearenv", "--dev", "/dev", "--proc", "/proc"]
    for name in ("sys", "sysrq-trigger", "irq", "bus", "fs", "mtrr", "pressure"):  # root may write
        command += ["--ro-bind-try", f"/proc/{name}", f"/proc/{name}"]
    for folder in ("/dev/shm", "/tmp"):
        command += ["--size", str(64 * 2**20), "--tmpfs", folder]
    for name in dict.fromkeys([*SYSTEM, sys.base_prefix, sys.prefix]):
        path = Path(name)
        if name in SYSTEM and path.is_symlink() and path.is_dir():  # /lib -> usr/lib
            command += ["--symlink", str(path.readlink()), name]
        else:
            command += ["--ro-bind-try", name, name]
    for original, copy in copies.items():
        command += ["--ro-bind", str(copy), str(original)]
    command += ["--ro-bind", str(job), "/job", "--bind", str(scratch), "/scratch"]
    command += ["--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/scratch/work"]
    for name, value in _inside(copies).items():
        command += ["--setenv", name, value]
    return command


def _watch(processes: _Processes, scratch: Path, limits: Limits) -> tuple[Reason, float, float]:
    """Wait for the end of a run, or for the first limit that it breaks.

    Returns the reason, the seconds, and the highest memory use in MiB.
    """
    start = time.monotonic()
    used, peak, turn = 0.0, 0.0, 0
    tree: list[Any] = []
    reason: Reason | None = None
    while reason is None:
        pause = 0.05 if turn < 20 or len(tree) > MANY else 0.2
        if select.select([processes.ended], [], [], pause)[0]:
            reason = "ended"
            break
        turn += 1
        tree = processes.alive()
        if time.monotonic() - start > limits.seconds:
            reason = "timeout"
        elif len(tree) > limits.processes:
            reason = "processes"
        elif (used := _memory_mib(tree, limits.memory_mib)) > limits.memory_mib:
            reason = "memory"
        elif turn % 5 == 0 and _disk_mib(scratch) > limits.disk_mib:
            reason = "disk"
        peak = max(peak, used)
    return reason, time.monotonic() - start, peak


def _memory_mib(tree: Sequence[Any], limit: float) -> float:
    """Resident memory of all processes; above the limit, shared pages are counted once (PSS).

    Counting pages waits for processes that fork. Where there are many, each counts with what it
    has more than the one that runs the notebook, of which they are copies.
    """
    import psutil

    resident = []
    for process in tree:
        with contextlib.suppress(psutil.Error, OSError):
            resident.append(process.memory_info().rss / 2**20)
    if sum(resident) <= limit:
        return sum(resident)
    if len(tree) > MANY:
        return sum(max(0.0, each - max(resident[:2])) for each in resident)
    total = 0.0
    for process in tree:
        with contextlib.suppress(psutil.Error, OSError):
            total += process.memory_full_info().pss / 2**20
    return total


def _disk_mib(folder: Path) -> float:
    """What a run has written; infinite when it hides files deeper than `MAX_DEPTH` folders."""
    total, waiting = 0, [(folder, 0)]
    while waiting:
        parent, depth = waiting.pop()
        if depth > MAX_DEPTH:
            return math.inf
        with contextlib.suppress(OSError), os.scandir(parent) as entries:
            for entry in entries:
                total += 4096  # the entry itself costs too
                if entry.is_dir(follow_symlinks=False):
                    waiting.append((Path(entry.path), depth + 1))
                else:
                    with contextlib.suppress(OSError):
                        total += entry.stat(follow_symlinks=False).st_blocks * 512
    return total / 2**20


@contextlib.contextmanager
def _closing(descriptor: int) -> Iterator[int]:
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _alive(process: Any) -> bool:
    """Still running; a zombie is not, whoever may be late to collect it."""
    import psutil

    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _switch_off(source: str, module: str, names: set[str]) -> str:
    """`source` with the bodies of the named functions and classes replaced by an error."""
    tree = ast.parse(source)
    found = set()
    for node in tree.body:
        if not isinstance(node, (ast.FunctionDef, ast.ClassDef)) or node.name not in names:
            continue
        found.add(node.name)
        message = (
            f"this exercise asks you to write {node.name} yourself: "
            f"while grading, {module}.{node.name} is switched off"
        )
        error = ast.parse(f"raise RuntimeError({message!r})").body
        if isinstance(node, ast.FunctionDef):
            node.body = error
        else:
            init = ast.parse("def __init__(self, *args, **kwargs): ...").body[0]
            init.body = error  # type: ignore[attr-defined]
            node.body = [init]
    if found != names:
        raise ValueError(f"{module} has no function or class named {sorted(names - found)}")
    return ast.unparse(tree) + "\n"
