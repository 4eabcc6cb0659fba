"""Comparing what a submission returned with the reference; the only reader of its files.

Answers are untrusted: they are opened without following links, bounded in size before they are
read, never unpickled, and compared by value. No torch here.
"""

import json
import math
from pathlib import Path
from typing import Any

from .files import FileProblem, read_regular

MISSING = "not answered"
SUFFIXES = (".json", ".npy", ".safetensors")


class BadAnswer(Exception):  # noqa: N818 - a finding, not a fault of ours
    """Why an answer cannot be right, in words for the student."""


def read_answer(folder: Path, name: str, *, max_bytes: int = 2**26) -> Any:
    """One answer: plain JSON data, an array, or a dictionary of arrays.

    Args:
        folder: where the run wrote its answers.
        name: the answer's name.
        max_bytes: larger files are refused unread.

    Raises:
        BadAnswer: when it is missing, too large, or not what its name says.
    """
    present = []
    for suffix in SUFFIXES:
        try:
            file = Path(name + suffix)
            present.append((suffix, read_regular(file, max_bytes=max_bytes, inside=folder)))
        except FileProblem as problem:
            if str(problem) != "missing":
                raise BadAnswer(f"the answer's file is {problem}") from None
    if len(present) != 1:
        raise BadAnswer("answered in two forms at once" if present else MISSING)
    suffix, data = present[0]
    try:
        return _decode(data, suffix)
    except Exception as error:
        raise BadAnswer(f"the answer cannot be read ({type(error).__name__})") from None


def check_like(answer: Any, reference: Any) -> None:
    """An answer must have the reference's kind, names, shape and number type, and be finite.

    Raises:
        BadAnswer: in words that tell what was expected but not the value.
    """
    import numpy as np

    if _is_numeric(reference):
        if not _is_numeric(answer):
            raise BadAnswer(f"expected numbers, got {_kind(answer)}")
        got, expected = np.asarray(answer), np.asarray(reference)
        if got.shape != expected.shape:
            raise BadAnswer(f"expected shape {list(expected.shape)}, got {list(got.shape)}")
        if not np.isfinite(got.astype(float)).all():
            raise BadAnswer("the answer contains NaN or infinity")
    elif type(answer) is not type(reference):
        raise BadAnswer(f"expected {_kind(reference)}, got {_kind(answer)}")
    elif isinstance(reference, dict):
        if set(answer) != set(reference):
            raise BadAnswer(f"expected the names {sorted(reference)[:10]}")
        for key in reference:
            check_like(answer[key], reference[key])


def close(answer: Any, reference: Any, *, rtol: float, atol: float) -> bool:
    """Equal in value: numbers within the tolerance, all else exactly; `check_like` came before.

    >>> close([1.0, 2.0], [1.0, 2.0 + 1e-9], rtol=1e-6, atol=0.0)
    True
    >>> close("a", "b", rtol=1e-6, atol=0.0)
    False
    """
    import numpy as np

    if _is_numeric(reference):
        got, expected = np.asarray(answer, float), np.asarray(reference, float)
        return bool(np.allclose(got, expected, rtol=rtol, atol=atol))
    if isinstance(reference, dict):
        return all(close(answer[k], reference[k], rtol=rtol, atol=atol) for k in reference)
    return bool(answer == reference)


def _decode(data: bytes, suffix: str) -> Any:
    import io

    import numpy as np

    if suffix == ".json":
        return json.loads(data.decode("utf-8"), parse_constant=lambda _: math.nan)
    if suffix == ".npy":
        stream = io.BytesIO(data)
        version = np.lib.format.read_magic(stream)
        readers = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }
        shape, _, dtype = readers[version](stream)
        if dtype.hasobject or math.prod(shape) * dtype.itemsize != len(data) - stream.tell():
            raise ValueError("header and size disagree")
        array = np.load(io.BytesIO(data), allow_pickle=False)
        if array.dtype.kind not in "biuf":
            raise ValueError("not numbers")
        return array
    from safetensors.numpy import load

    return load(data)


def _is_numeric(value: Any) -> bool:
    """True for numbers, arrays of numbers, and (nested) lists of numbers of a regular shape."""
    import numpy as np

    if isinstance(value, (bool, str, dict)) or value is None:
        return False
    if isinstance(value, (list, np.ndarray)):
        try:
            return np.asarray(value).dtype.kind in "iuf" and np.asarray(value).size > 0
        except (ValueError, OverflowError):
            return False
    return isinstance(value, (int, float)) and not _too_large(value)


def _too_large(value: int | float) -> bool:
    try:
        float(value)
    except OverflowError:
        return True
    return False


def _kind(value: Any) -> str:
    if isinstance(value, dict):
        return "named values"
    return "nothing" if value is None else type(value).__name__
