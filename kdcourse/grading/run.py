"""Run one prepared notebook; this is the first process inside the sandbox.

It reads `JOB/{notebook.ipynb,job.json}` and writes `SCRATCH/report/{executed.ipynb,run.json}`.
Everything here shares the sandbox with the submission: the grader believes nothing of it but the
labels it shows in the feedback.
"""

import asyncio
import contextlib
import ctypes
import json
import os
import resource
import sys
from pathlib import Path
from typing import Any


class TooMuchMemory(Exception):  # noqa: N818 - a finding
    """A cell held more than the run may use, and gave it back before the grader saw it."""


class ForkedProcess:
    """What a kernel's manager wants to know of a process, for one that was not started by Popen."""

    stdin = stdout = stderr = None

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Its exit code, or None while it runs."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Pass a signal on."""
        os.kill(self.pid, number)


def run(job: Path, scratch: Path) -> None:
    """Execute the notebook with papermill; every cell runs, whatever the others raise.

    A cell may take 60 % of the time that is left and is interrupted then, so that one endless loop
    leaves time for the other parts. None runs after one that held too much memory: which cells
    would, depends on how fast the grader is with ending them.
    """
    from kdcourse.grading import clock, doors, watch

    ours = clock.Clock()

    settings = json.loads((job / "job.json").read_text(encoding="utf-8"))
    limits = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: settings["file_bytes"],
        resource.RLIMIT_DATA: settings["data_bytes"],
        resource.RLIMIT_NPROC: settings["processes"],
        resource.RLIMIT_NOFILE: settings["descriptors"],
    }
    for limit, value in limits.items():
        if value is not None:
            resource.setrlimit(limit, (value, value))
    if settings["closed"]:
        doors.close()
    Path("/proc/self/oom_score_adj").write_text("1000")  # short of memory? not the grader
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: detached processes stay ours

    import papermill
    import psutil
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager
    from jupyter_client.provisioning import LocalProvisioner
    from jupyter_core.utils import run_sync
    from nbclient.exceptions import DeadKernelError
    from papermill.clientwrap import PapermillNotebookClient
    from papermill.engines import Engine, papermill_engines

    from kdcourse.grading import kernel

    report_folder = scratch / "report"
    report_folder.mkdir()
    kernel_pid, waiting = kernel.fork()
    own, cells = psutil.Process(), psutil.Process(kernel_pid)
    report: dict[str, Any] = {
        **{"finished": False, "died": False, "failure": None, "timed_out": []},
        "too_much_memory": False,
    }

    class Provisioner(LocalProvisioner):
        """Gives the kernel that waits the file it waits for."""

        async def launch_kernel(self, cmd: list[str], **_: Any) -> Any:
            self.process = ForkedProcess(kernel_pid)  # type: ignore[assignment]
            self.pid = self.pgid = kernel_pid
            assert self.parent is not None
            os.write(waiting, self.parent.connection_file.encode())
            os.close(waiting)
            return self.connection_info

        async def wait(self) -> int | None:  # the original looks ten times a second
            while self.process is not None and self.process.poll() is None:
                await asyncio.sleep(0.005)
            code = None if self.process is None else self.process.returncode
            self.process = None
            return code

    class Manager(AsyncKernelManager):
        """Our kernel over sockets in the file system: there is no network here."""

        transport = "ipc"

        @property
        def kernel_spec(self) -> KernelSpec:
            return KernelSpec(argv=["{connection_file}"], language="python")

        async def _async_pre_start_kernel(self, **options: Any) -> Any:
            self.provisioner = Provisioner(
                kernel_id=self.kernel_id, kernel_spec=self.kernel_spec, parent=self
            )
            return await super()._async_pre_start_kernel(**options)

    def elapsed() -> float:
        return ours.look(each.pid for each in [own, *own.children(recursive=True)])

    class Client(PapermillNotebookClient):
        """Keeps a bounded amount of output and no widget state."""

        left = settings["output_bytes"]

        def process_message(self, msg: dict, cell: Any, cell_index: int) -> Any:
            kind = msg["msg_type"]
            if kind.startswith("comm_"):
                return None
            if kind in {"stream", "display_data", "execute_result", "update_display_data", "error"}:
                self.left -= len(repr(msg["content"]))
                if self.left < 0:
                    return None
            return super().process_message(msg, cell, cell_index)

        async def async_execute_cell(self, cell: Any, *arguments: Any, **options: Any) -> Any:
            timer = asyncio.create_task(self.interrupt(cell))
            try:
                return await super().async_execute_cell(cell, *arguments, **options)
            finally:
                timer.cancel()
                if watch.held_mib(cells) > settings["memory_mib"]:
                    raise TooMuchMemory

        execute_cell = run_sync(async_execute_cell)

        async def interrupt(self, cell: Any) -> None:
            """Interrupt a cell that has had its share of the time, and again."""
            while True:
                end = elapsed() + max(1, 0.6 * (settings["seconds"] - ours.seconds))
                while elapsed() < end:
                    await asyncio.sleep(0.2)
                report["timed_out"].append(cell.id)
                await self.km.interrupt_kernel()

    class SandboxEngine(Engine):
        """Papermill's own engine with the client and manager above."""

        @classmethod
        def execute_managed_notebook(cls, nb_man: Any, kernel_name: str, **_: Any) -> None:
            client = Client(
                nb_man,
                kernel_name=kernel_name,
                kernel_manager_class=Manager,
                allow_errors=True,
                startup_timeout=60,
                shutdown_kernel="immediate",
            )
            client.execute()

    papermill_engines.register("sandbox", SandboxEngine)
    try:
        papermill.execute_notebook(
            str(job / "notebook.ipynb"),
            str(report_folder / "executed.ipynb"),
            parameters=settings["parameters"],
            engine_name="sandbox",
            kernel_name="python3",
            language="python",
            progress_bar=False,
            cwd=str(scratch / "work"),
        )
    except papermill.PapermillExecutionError:
        pass  # a cell raised: what it raised is in the executed notebook
    except TooMuchMemory:
        report["too_much_memory"] = True
    except DeadKernelError:
        report["died"] = True
    except Exception as error:
        report["failure"] = f"{type(error).__name__}: {error}"
    for child in own.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            child.kill()
    report["finished"] = not any(report[name] for name in ("died", "failure", "too_much_memory"))
    (report_folder / "run.json").write_text(json.dumps(report), encoding="utf-8")


def wait_for_go() -> None:
    """Wait until the grader counts this process; it has no further word for it.

    Raises:
        SystemExit: when the grader has gone.
    """
    if not os.read(0, 1):
        raise SystemExit(1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)


if __name__ == "__main__":
    os.write(1, os.read(0, 1))  # here we are
    os.dup2(2, 1)
    wait_for_go()
    run(Path(sys.argv[1]), Path(sys.argv[2]))
