"""Where numbers come from: a digest of the code that decides them, and what it ran on."""

import ast
import dis
import functools
import hashlib
import importlib
import inspect
import io
import os
import platform
import textwrap
import tokenize
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any

from .notebooks import source_text

PACKAGE = __name__.partition(".")[0]
_FROM_OUTSIDE = {"LOAD_GLOBAL", "LOAD_NAME"}  # functions; classes inside functions


def code_digest(function: Any, settings: Any = None) -> str | None:
    """Sixteen hexadecimal digits that change when code that decides a function's results changes.

    The code is that of the function, of what it calls, and so on, as far as it was defined in the
    function's own module (or notebook) or in this package; for a data set, that of its loader.
    Comments, docstrings and formatting do not count, nor where something is defined. Plain values
    that the code reads do; arrays and trained weights do not, see `files_behind`. What is reached
    only through an attribute of an instance is found when its class is.

    Args:
        function: what computes a row of a study.
        settings: its arguments; functions and classes in them count, too.

    Returns:
        The digest, or None where the source of the function is not to be had.

    Example:
        >>> from kdcourse.relations import pkt_loss, similarity_preserving_loss
        >>> len(code_digest(pkt_loss))
        16
        >>> code_digest(pkt_loss) == code_digest(similarity_preserving_loss)
        False
    """
    found = _walk(function, settings)[0]
    if not found:
        return None
    return hashlib.sha256("\0".join(sorted(found)).encode()).hexdigest()[:16]


def files_behind(function: Any, settings: Any = None) -> dict[str, str]:
    """The shipped teachers and pictures that a function may read, with a digest of each.

    Found are those of every data set, and of every name of one, that its code or its arguments
    hold.

    Args:
        function: what computes a row of a study.
        settings: its arguments.

    Returns:
        Path inside the package → the first sixteen hexadecimal digits of the file's SHA-256.

    Example:
        >>> from kdcourse.data import digits
        >>> list(files_behind(digits))
        ['weights/digits.safetensors']
    """
    names = _walk(function, settings)[1]
    return {file: digest for file, digest in _shipped().items() if Path(file).stem in names}


def file_digest(name: str) -> str | None:
    """Of one shipped file, as in `files_behind`; None if there is no such file."""
    return _shipped().get(name)


@functools.lru_cache(maxsize=1)
def _shipped() -> dict[str, str]:
    package = Path(__file__).parent
    files = [*package.glob("weights/*.safetensors"), *package.glob("pictures/*.npz")]
    return {
        f"{file.parent.name}/{file.name}": hashlib.sha256(file.read_bytes()).hexdigest()[:16]
        for file in sorted(files)
    }


def _walk(function: Any, settings: Any) -> tuple[set[str], set[str]]:
    """The texts that decide a function's results, and the names met on the way."""
    found: set[str] = set()
    names: set[str] = set()
    home = getattr(inspect.unwrap(_bare(function)), "__module__", "")
    waiting = [function, *_within(settings), *_loaders(_strings(settings), names)]
    seen: set[int] = set()
    while waiting:
        item = waiting.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if wrapped := getattr(item, "__wrapped__", None):  # a cached function, say
            waiting.append(wrapped)
        elif isinstance(item, functools.partial):
            waiting += [item.func, *_within(item.args), *_within(item.keywords)]
            found.add(f"partial {_plain(item.args)} {_plain(item.keywords)}")
        elif isinstance(item, FunctionType | type) and _is_ours(item, home):
            try:
                text, uses = _class(item) if isinstance(item, type) else _function(item)
            except OSError:
                if item is function:
                    return set(), set()
                continue
            found.add(f"{item.__qualname__}: {text}")
            strings = [item.__name__]
            if isinstance(item, FunctionType) and item.__module__ == home:
                strings += _strings(item.__code__.co_consts)
            for name, value in uses:
                waiting += _within(value)
                strings += _strings(value)
                if (words := _plain(value)) is not None:
                    found.add(f"{name} = {words}")
            waiting += _loaders(strings, names)
        elif not isinstance(item, FunctionType | type):
            waiting += [type(item), *_loaders([getattr(item, "name", "")], names)]
    return found, names


def _loaders(strings: Iterable[str], names: set[str]) -> list[Any]:
    """What loads the data sets that are named; the names are added to a set."""
    stems = {Path(file).stem for file in _shipped()}
    known = {string for string in strings if isinstance(string, str) and string in stems}
    names |= known
    module = importlib.import_module(f"{PACKAGE}.data") if known else None
    return [getattr(module, name) for name in sorted(known) if hasattr(module, name)]


def _strings(value: Any) -> Iterator[str]:
    """The strings in plain values and containers."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in [*value.keys(), *value.values()]:
            yield from _strings(inner)
    elif isinstance(value, list | tuple | set | frozenset):
        for inner in value:
            yield from _strings(inner)


def _bare(function: Any) -> Any:
    while isinstance(function, functools.partial):
        function = function.func
    return function


def _within(value: Any) -> Iterator[Any]:
    """What counts in a value: itself, or what a container holds; modules lead nowhere."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple | set):
        for inner in value:
            yield from _within(inner)
    elif not isinstance(value, ModuleType | BuiltinFunctionType | str | int | float | type(None)):
        yield value


def _plain(value: Any) -> str | None:
    """The text of a plain value, the same in every process; None for any other."""
    if isinstance(value, str | int | float | bool | type(None)):
        return repr(value)
    if isinstance(value, Mapping):
        return str(sorted((str(key), _plain(inner)) for key, inner in value.items()))
    if isinstance(value, list | tuple | range):
        return str([_plain(inner) for inner in value])
    return None


def _is_ours(item: Any, home: str) -> bool:
    return item.__module__ == home or item.__module__.partition(".")[0] == PACKAGE


def _class(item: type) -> tuple[str, list[tuple[str, Any]]]:
    """Of a class: the names of its bases, and what it holds; notebooks cannot show its source."""
    bases = item.__mro__[1:]
    uses: list[tuple[str, Any]] = [(base.__name__, base) for base in bases]
    for name, value in vars(item).items():
        if isinstance(value, property):
            uses += [(name, part) for part in (value.fget, value.fset) if part is not None]
        elif not name.startswith("__") or inspect.isroutine(value):
            uses.append((name, getattr(value, "__func__", value)))
    return " ".join(base.__qualname__ for base in bases), uses


def _function(item: FunctionType) -> tuple[str, list[tuple[str, Any]]]:
    """Of a function: its text without comments, docstrings and line ends, and what it reads.

    The text is the same in every version of Python, which no dump of the syntax tree would be.
    """
    source = textwrap.dedent(inspect.getsource(item)).strip()
    try:
        tree, text = ast.parse(source), source_text(item)
    except SyntaxError:  # a lambda in the middle of something
        tree, text = ast.Module([], []), source
    else:
        lines = text.split("\n")
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.COMMENT:
                line, start = token.start
                lines[line - 1] = lines[line - 1][:start]
        text = " ".join(lines)
    scope = {**item.__globals__, **inspect.getclosurevars(item).nonlocals}
    scope = {name: value for name, value in scope.items() if not name.startswith("__")}
    uses = [("defaults", item.__defaults__), ("defaults", item.__kwdefaults__)]
    uses += [(name, scope[name]) for name in sorted(_names(item.__code__)) if name in scope]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            uses += _imported(node, item.__module__)
    return " ".join(text.split()), uses


def _names(code: CodeType) -> set[str]:
    """The names that a function and those inside it read from outside."""
    loads = [step for step in dis.get_instructions(code) if step.opname in _FROM_OUTSIDE]
    found = {step.argval for step in loads}.union(code.co_freevars)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            found |= _names(constant) - {*code.co_cellvars}
    return found


def _imported(node: ast.ImportFrom, module: str) -> Iterator[tuple[str, Any]]:
    """What an import inside a function brings in, if it comes from this package."""
    package = module.rpartition(".")[0]
    name = "." * node.level + (node.module or "")
    if not name.startswith((".", PACKAGE)) or (node.level and not package):
        return
    source = importlib.import_module(name, package)
    for alias in node.names:
        if hasattr(source, alias.name):
            yield alias.name, getattr(source, alias.name)


def machine() -> dict[str, Any]:
    """What numbers were computed on: versions and hardware."""
    import numpy as np
    import torch

    return {
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__.split("+")[0],
            "numpy": np.__version__,
        },
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores, one thread a run",
    }
