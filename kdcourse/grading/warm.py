"""A warm start: a process that has imported the libraries, copied into each new sandbox.

Bubblewrap makes the sandbox and keeps it alive; a fork of the warm process enters its namespaces,
gives up every capability, and runs the notebook there. The warm process itself never sees a
submission, an answer key, or the grader's environment, so there is nothing in its memory to read;
and it never runs anything of a student's, so that no run leaves anything to the next.
"""

import contextlib
import ctypes
import fcntl
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn, Protocol

PRELOADED = (
    *("kdcourse.grading.doors", "kdcourse.grading.kernel", "kdcourse.grading.run"),
    *("IPython.core.completerlib", "IPython.core.debugger", "IPython.core.logger"),
    *("IPython.core.oinspect", "IPython.extensions.storemagic", "ipykernel.debugger"),
    *("matplotlib.font_manager", "nbclient", "numpy", "pandas", "papermill.clientwrap"),
    *("papermill.engines", "psutil", "safetensors.torch", "torch", "torch._dynamo"),
    *("tornado.locks", "tornado.platform.asyncio", "tornado.queues"),
)
IDLE_SECONDS = 60.0
_NAMESPACES = ("ipc", "uts", "net", "pid", "cgroup", "mnt")
_NS_GET_PARENT = 0xB702
_PR_SET_DUMPABLE, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 4, 24, 38


class HasFileno(Protocol):
    """A file, or what can stand for one."""

    def fileno(self) -> int:
        """Its descriptor."""


class CannotEnter(Exception):  # noqa: N818 - a finding: there is the cold start
    """This machine does not let a process enter the sandbox."""


class WarmProcess:
    """The grader's end: starts the warm process, and again when it has gone.

    Attributes:
        usable: False once entering a sandbox has failed.
    """

    def __init__(self) -> None:
        self.usable = True
        self._lock = threading.Lock()
        self._process: subprocess.Popen | None = None
        self._control: socket.socket | None = None

    def enter(
        self,
        sandbox_pid: int,
        environment: Mapping[str, str],
        messages: HasFileno,
        identity: Mapping[str, Any],
    ) -> tuple[int, int, int]:
        """Run a notebook inside the sandbox of a process, with nothing but `environment`.

        Args:
            sandbox_pid: a process that bubblewrap has set up completely.
            environment: the whole environment of the run.
            messages: takes standard output and error.
            identity: whom bubblewrap was started as, for `Popen`.

        Returns:
            The id of the process inside, as seen here, and two descriptors to close: one that is
            readable when that process has ended, and one to write to for it to begin.

        Raises:
            CannotEnter: when that is not possible on this machine.
        """
        request = json.dumps(dict(environment)).encode()
        for _ in range(2):  # an idle warm process may end just when it is asked
            ended, done = os.pipe()
            waits, go = os.pipe()
            with contextlib.ExitStack() as stack:
                stack.callback(os.close, done)
                stack.callback(os.close, waits)
                user = stack.enter_context(_open_namespace(sandbox_pid, "user"))
                outer = fcntl.ioctl(user, _NS_GET_PARENT)
                stack.callback(os.close, outer)
                inner = [
                    stack.enter_context(_open_namespace(sandbox_pid, name)) for name in _NAMESPACES
                ]
                descriptors = [done, waits, messages.fileno(), outer, *inner, user]
                with self._lock, contextlib.suppress(OSError):
                    socket.send_fds(self._running(identity), [request], descriptors)
            pid = os.read(ended, 32)
            if pid:
                return int(pid), ended, go
            os.close(ended)
            os.close(go)
            self.close()  # it has gone, or is about to
        self.usable = False
        raise CannotEnter("a warm start is not possible here")

    def close(self) -> None:
        """End the warm process."""
        with self._lock:
            if self._control is not None:
                self._control.close()
            if self._process is not None:
                self._process.wait()
            self._process = self._control = None

    def _running(self, identity: Mapping[str, Any]) -> socket.socket:
        if self._control is not None and self._process is not None and self._process.poll() is None:
            return self._control
        if self._control is not None:
            self._control.close()
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        package = str(Path(__file__).resolve().parents[2])
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", __name__, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env={
                    "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
                    "PYTHONPATH": package,
                    "PYTHONDONTWRITEBYTECODE": "1",
                    "LANG": "C.UTF-8",
                    "OMP_NUM_THREADS": "1",
                    "MKL_NUM_THREADS": "1",
                },
                cwd="/",
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                **identity,
            )
        return self._control


@contextlib.contextmanager
def _open_namespace(pid: int, name: str) -> Iterator[int]:
    descriptor = os.open(f"/proc/{pid}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def serve(control: socket.socket) -> None:
    """The warm process: import, then copy itself into one sandbox after the other."""
    for name in PRELOADED:
        importlib.import_module(name)
    nbformat = importlib.import_module("nbformat")
    nbformat.validate(nbformat.v4.new_notebook())  # compiles its schema
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the copies need no farewell
    while select.select([control], [], [], IDLE_SECONDS)[0]:
        request, descriptors, _, _ = socket.recv_fds(control, 2**16, 16)
        if not request:
            return
        if os.fork() == 0:
            control.close()
            _enter(json.loads(request), descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


def _enter(environment: dict[str, str], descriptors: list[int]) -> NoReturn:
    """Enter the namespaces and let a child run in them: only a child is in the process namespace.

    This process stays outside that one, unseen from inside, and waits. It alone holds `done`.
    """
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        done, waits, messages, *namespaces = descriptors
        os.dup2(waits, 0)
        os.dup2(messages, 1)
        os.dup2(messages, 2)
        for namespace in namespaces:
            _call("setns", namespace, 0)
        child = os.fork()
        if child == 0:
            _run(environment)
        os.write(done, str(child).encode())
        os.waitpid(child, 0)
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def _run(environment: dict[str, str]) -> NoReturn:
    """Become what bubblewrap would have started, and run the notebook."""
    try:
        os.setsid()
        os.closerange(3, 2**20)
        _give_up_capabilities()
        os.environ.clear()
        os.environ.update(environment)
        os.umask(0o022)
        os.chdir("/scratch/work")
        importlib.invalidate_caches()
        sys.modules["numpy"].random.seed()

        from kdcourse.grading.run import run, wait_for_go

        wait_for_go()
        run(Path("/job"), Path("/scratch"))
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def _give_up_capabilities() -> None:
    """Entering a namespace gives all capabilities in it; none is left, and none can come back."""
    for capability in range(64):
        with contextlib.suppress(OSError):  # numbers that this kernel does not know
            _call("prctl", _PR_CAPBSET_DROP, capability, 0, 0, 0)
    version, nothing = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    _call("capset", version, nothing)
    _call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _call("prctl", _PR_SET_DUMPABLE, 1, 0, 0, 0)  # lets it read its own /proc/self


def _call(name: str, *arguments: object) -> None:
    """One call of the C library that Python 3.11 has no function for."""
    if getattr(_LIBC, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


_LIBC = ctypes.CDLL(None, use_errno=True)

if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
