"""A run's plain answers, kept beside its result, so that a mended check needs no second run."""

import contextlib
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

from .compare import SUFFIXES
from .files import FileProblem, read_regular, scratch_folder
from .key import Key


def pack(folder: Path, key: Key) -> bytes | None:
    """The files of all declared answers as one archive; None when one of them was not readable.

    The bytes are as untrusted as the folder: only `compare` looks into them.

    Args:
        folder: where the run wrote its answers.
        key: says which answers there are, and how large they may be.
    """
    names = dict.fromkeys(name for part in key.exercise.parts for name in part.answers)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            for suffix in SUFFIXES:
                file = Path(name + suffix)
                try:
                    data = read_regular(file, max_bytes=key.max_bytes(name), inside=folder)
                except FileProblem as problem:
                    if str(problem) != "missing":
                        return None
                else:
                    archive.writestr(zipfile.ZipInfo(str(file)), data)
    return buffer.getvalue()


@contextlib.contextmanager
def unpacked(data: bytes) -> Iterator[Path]:
    """A folder with what `pack` put together; it is gone when the block ends."""
    with scratch_folder() as folder:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            archive.extractall(folder)
        yield folder
