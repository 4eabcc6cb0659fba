"""What can be said about a learner's notebook without running it."""

import ast
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from kdcourse.notebooks import STUB

from .available import ALWAYS, PACKAGE, imported_names

RAISES = ast.unparse(ast.parse(STUB))


def notes(notebook: bytes, code: Sequence[Mapping[str, Any]], places: Sequence[str]) -> list[str]:
    """Stubs that still stand beside an answer, and imports that grading switches off.

    Args:
        notebook: the file's content, a valid notebook; `notebooks.student_version` left the stubs
            in it. Where they are not there, there is nothing to say.
        code: its code cells, as `submission.parse_cells` gives them.
        places: for each of them the words that help to find it.
    """
    found = [cell.get("metadata") for cell in json.loads(notebook)["cells"]]
    kept = [data for data in found if isinstance(data, dict) and {"id", "stub"} <= data.keys()]
    stubs = {str(data["id"]): str(data["stub"]) for data in kept}
    lines = []
    for cell, place in zip(code, places, strict=True):
        for number in _standing(cell["source"], stubs.get(str(cell["ids"][0]), "")):
            lines.append(
                "note: the line `raise NotImplementedError` still stands in this cell: delete it\n"
                f"  Look {place}, line {number}"
            )
    if off := _switched_off(code, stubs):
        lines.append(
            "note: grading has of kdcourse only what the exercise's own cells import, and what "
            f"that needs; your cells also import {', '.join(off)}"
        )
    return lines


def _standing(source: str, stub: str) -> Iterator[int]:
    """The lines of a stub's `raise` where the statements beside it are not those handed out."""
    handed_out = {beside for _, beside in _raises(stub)}
    for line, beside in _raises(source):
        if handed_out and beside not in handed_out:
            yield line


def _raises(source: str) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Each stub that raises: its line, and how the statements of its block begin."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # a magic, say, or something that `check` tells anyway
        return
    for node in ast.walk(tree):
        for name in ("body", "orelse", "finalbody"):
            block = getattr(node, name, None)
            if isinstance(block, list):
                said = [ast.unparse(each).split("\n")[0] for each in block]
                beside = tuple(text for text in said if text[0] not in "'\"")  # no docstrings
                for each, text in zip(block, said, strict=True):
                    if text == RAISES:
                        yield each.lineno, beside


def _switched_off(code: Sequence[Mapping[str, Any]], stubs: Mapping[str, str]) -> list[str]:
    """What the learner's cells import of the package and the exercise's own cells do not."""
    if not stubs:
        return []
    mine = [cell for cell in code if cell["ids"][0] is None or str(cell["ids"][0]) in stubs]
    wanted = _imported(mine)
    given = {*_imported(cell for cell in code if cell not in mine), PACKAGE}
    rooms = tuple(f"{PACKAGE}.{room}" for room in ALWAYS)
    return sorted(name for name in wanted - given if not name.startswith(rooms))


def _imported(code: Iterable[Mapping[str, Any]]) -> set[str]:
    cells = [SimpleNamespace(cell_type="code", source=each["source"], metadata={}) for each in code]
    return set(imported_names(SimpleNamespace(cells=cells)))
