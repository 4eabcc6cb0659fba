"""Reading files that somebody else wrote, and writing files that must never be torn."""

import os
import stat
from pathlib import Path


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
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    folder = None
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


def write_atomic(path: Path, data: bytes) -> None:
    """Write `path` completely or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.draft")
    with draft.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def write_if_new(path: Path, data: bytes) -> None:
    """Write `path` unless it holds just that already."""
    if not path.is_file() or path.read_bytes() != data:
        write_atomic(path, data)
