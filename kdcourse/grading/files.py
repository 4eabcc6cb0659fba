"""Reading files that somebody else wrote, and writing files that must never be torn."""

import contextlib
import json
import os
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MAX_VALUES = 2_000_000
SCRATCH = "kdcourse-run-"


class FileProblem(Exception):  # noqa: N818 - a finding, not a fault of ours
    """Why a file was not read, in words."""


def read_regular(path: Path, *, max_bytes: int, inside: Path | None = None) -> bytes:
    """The bytes of an ordinary file: no link is followed, nothing blocks, the size is bounded.

    Args:
        path: the file; with `inside`, a plain name in that folder, which must not be a link either.
        max_bytes: a larger file is refused unread.
        inside: a folder that a submission could write to.

    Raises:
        FileProblem: when it is missing, not an ordinary file, or too large.
    """
    flags, folder = os.O_RDONLY, None
    for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY"):  # Windows has only the last
        flags |= getattr(os, name, 0)
    try:
        if inside is not None:
            folder = os.open(inside, flags | os.O_DIRECTORY)
        descriptor = os.open(path, flags, dir_fd=folder)
    except FileNotFoundError:
        raise FileProblem("missing") from None
    except (OSError, ValueError) as error:
        raise FileProblem(f"not an ordinary file ({error})") from None
    finally:
        if folder is not None:
            os.close(folder)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise FileProblem("not an ordinary file")
        if status.st_size > max_bytes:
            raise FileProblem(f"too large: {status.st_size / 2**20:.1f} MiB")
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(max_bytes + 1)
    finally:
        os.close(descriptor)


def parse_json(data: bytes) -> Any:
    """Somebody else's JSON, read only if it cannot fill our memory: 20 MiB of `[],` make 500.

    Raises:
        ValueError: when it is not JSON, or holds more than `MAX_VALUES` values.
    """
    if sum(map(data.count, (b",", b"[", b"{"))) > MAX_VALUES:
        raise ValueError(f"more than {MAX_VALUES} values")
    try:
        return json.loads(data.decode("utf-8"))
    except RecursionError:
        raise ValueError("nested too deeply") from None


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """A private folder that is gone when the block ends, whatever was made of it.

    It stays locked as long as its maker lives, so that one that a killed grader left is known by
    its lock that is free, and goes when the next one is made.
    """
    import fcntl

    top = Path(tempfile.gettempdir())
    for path in top.glob(f"{SCRATCH}*"):
        with contextlib.suppress(OSError), _opened(path) as descriptor:
            if os.getuid() in (0, os.fstat(descriptor).st_uid):  # root's belong to nobody
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(path)
    made = Path(tempfile.mkdtemp(prefix="kdcourse-new-"))
    with _opened(made) as descriptor:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        folder = made.rename(top / made.name.replace("kdcourse-new-", SCRATCH))
        try:
            yield folder
        finally:
            _remove(folder)


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _remove(folder: Path) -> None:
    """Remove a folder that may be nested deeper than Python or a path can go, or be write-only."""
    for command in (["chmod", "-R", "u+rwX", "--"], ["rm", "-rf", "--"]):
        subprocess.run([*command, folder], capture_output=True, check=False)


def write_atomic(path: Path, data: bytes) -> None:
    """Write `path` completely or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.draft")
    with draft.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def remove_drafts(folder: Path) -> None:
    """Remove what `write_atomic` was writing when it was killed."""
    for path in folder.rglob(".*.draft"):
        if path.is_file():
            path.unlink()


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep a folder to ourselves; the lock ends with this process, however that ends.

    Raises:
        RuntimeError: when another process has it.
    """
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    with _opened(folder) as descriptor:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeError(f"another grader is at work in {folder}: wait for its end") from None
        yield


def write_if_new(path: Path, data: bytes) -> None:
    """Write `path` unless it holds just that already."""
    if not path.is_file() or path.read_bytes() != data:
        write_atomic(path, data)
