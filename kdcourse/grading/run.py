"""Run one prepared notebook; this is the first process inside the sandbox.

Started as a script (`python run.py JOB SCRATCH`), so that it costs no import of the package. It
reads `JOB/{notebook.ipynb,job.json}` and writes `SCRATCH/{executed.ipynb,run.json}`. Everything
here shares the sandbox with the submission: the grader believes nothing of it but the labels it
shows in the feedback.
"""

import contextlib
import ctypes
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

START = time.monotonic()


def elapsed() -> float:
    """Seconds since this process began."""
    return time.monotonic() - START


def run(job: Path, scratch: Path) -> None:
    """Execute the notebook with papermill; every cell runs, whatever the others raise.

    A cell may take 60 % of the time that is left and is interrupted then, so that one endless loop
    leaves time for the other parts.
    """
    settings = json.loads((job / "job.json").read_text(encoding="utf-8"))
    limits = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: settings["file_bytes"],
        resource.RLIMIT_DATA: settings["data_bytes"],
    }
    for limit, value in limits.items():
        resource.setrlimit(limit, (value, value))
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: detached processes stay ours

    import papermill
    import psutil
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager
    from nbclient.exceptions import DeadKernelError
    from papermill.clientwrap import PapermillNotebookClient
    from papermill.engines import Engine, papermill_engines

    report: dict[str, Any] = {"finished": False, "died": False, "failure": None, "timed_out": []}
    report["import_seconds"] = elapsed()

    class Manager(AsyncKernelManager):
        """Our kernel over sockets in the file system: there is no network here."""

        transport = "ipc"

        @property
        def kernel_spec(self) -> KernelSpec:
            kernel = [sys.executable, "-P", str(Path(__file__).with_name("kernel.py"))]
            return KernelSpec(argv=[*kernel, "-f", "{connection_file}"], language="python")

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

        async def _async_handle_timeout(self, timeout: int, cell: Any = None) -> Any:
            report["timed_out"].append(cell.id if cell is not None else None)
            return await super()._async_handle_timeout(timeout, cell)

    class SandboxEngine(Engine):
        """Papermill's own engine with the client and manager above."""

        @classmethod
        def execute_managed_notebook(cls, nb_man: Any, kernel_name: str, **_: Any) -> None:
            client = Client(
                nb_man,
                kernel_name=kernel_name,
                kernel_manager_class=Manager,
                allow_errors=True,
                interrupt_on_timeout=True,
                timeout_func=lambda cell: max(1, int(0.6 * (settings["seconds"] - elapsed()))),
                startup_timeout=60,
                shutdown_kernel="immediate",
            )
            client.execute()

    papermill_engines.register("sandbox", SandboxEngine)
    try:
        papermill.execute_notebook(
            str(job / "notebook.ipynb"),
            str(scratch / "executed.ipynb"),
            parameters=settings["parameters"],
            engine_name="sandbox",
            kernel_name="python3",
            language="python",
            progress_bar=False,
            cwd=str(scratch / "work"),
        )
    except papermill.PapermillExecutionError:
        pass  # a cell raised: what it raised is in the executed notebook
    except DeadKernelError:
        report["died"] = True
    except Exception as error:
        report["failure"] = f"{type(error).__name__}: {error}"
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            child.kill()
    report["finished"] = not report["died"] and report["failure"] is None
    report["seconds"] = elapsed()
    (scratch / "run.json").write_text(json.dumps(report), encoding="utf-8")


if __name__ == "__main__":
    run(Path(sys.argv[1]), Path(sys.argv[2]))
