"""CSV files that a person made: read with their line numbers, and refused in words."""

import csv
import io
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

MOST_SHOWN = 10


def read_rows(
    path: Path, needed: Sequence[str], *, also: Sequence[str] = ()
) -> list[tuple[int, dict[str, str]]]:
    """The rows of a CSV file with a header, each with its line number; cells are stripped text.

    Commas or semicolons may separate the columns, as spreadsheets write them. Columns that are
    neither needed nor known are left alone.

    Args:
        path: the file, in UTF-8.
        needed: columns that must be there.
        also: columns that may be there; a row without one has an empty text.

    Raises:
        ValueError: when it is not such a file.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text: save it as CSV in UTF-8") from None
    text = unicodedata.normalize("NFC", text)
    header = text.partition("\n")[0]
    separator = ";" if header.count(";") > header.count(",") else ","
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator)
    names = {name.strip() for name in reader.fieldnames or []}
    if missing := [name for name in needed if name not in names]:
        raise ValueError(
            f"{path} needs the columns {', '.join(needed)} in its first line; "
            f"missing: {', '.join(missing)}"
        )
    rows = []
    for row in reader:
        if any(row.pop(None, ())):
            raise ValueError(
                f"{path}: line {reader.line_num} has more cells than the first line: put text that "
                f"holds {separator!r} in double quotes"
            )
        cells = {name.strip(): (value or "").strip() for name, value in row.items()}
        if any(cells.values()):
            rows.append((reader.line_num, {name: cells.get(name, "") for name in [*needed, *also]}))
    return rows


def refuse(path: Path, problems: Iterable[str]) -> None:
    """One error for all that is wrong with a file; none when nothing is.

    Raises:
        ValueError: with every problem, up to a screenful.
    """
    listed = list(problems)
    if listed:
        more = [f"and {len(listed) - MOST_SHOWN} more"] if len(listed) > MOST_SHOWN else []
        words = "\n- ".join([*listed[:MOST_SHOWN], *more])
        raise ValueError(f"{path} was not used, and nothing was changed:\n- {words}")
