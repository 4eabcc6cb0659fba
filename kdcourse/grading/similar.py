"""Which submissions look alike: a flag for a person to look at, never a verdict.

Code becomes tokens: comments, layout and docstrings go, a variable is a variable whatever its
name, a number is a number; words of the language and attributes stay. Runs of `LENGTH` tokens are
hashed, and of every `WINDOW` neighbouring hashes the smallest is kept, which finds every common
run of `LENGTH + WINDOW - 1` tokens (winnowing: Schleimer, Wilkerson, Aiken 2003, "Winnowing: local
algorithms for document fingerprinting"). What was handed out does not count. Two submissions are
as similar as the share of the smaller one's fingerprints that the other has too.

Short answers with one natural form look alike without any copying; so do two students who learned
from the same page. Rewriting by hand, or by a language model, escapes.
"""

import csv
import hashlib
import io
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from typing import Any

from kdcourse import notebooks

from .submission import InvalidSubmission, Submission, parse_cells, read_bytes

LENGTH, WINDOW = 12, 6
MOST_SHOWN = 40
FEWEST = 15  # fingerprints; with less of its own, a submission says nothing
SOLUTION = "(the published solution)"


@dataclass(frozen=True)
class Pair:
    """Two that look alike.

    Attributes:
        first: a student.
        second: another, or `SOLUTION`.
        similarity: share of the smaller one's fingerprints that the other has too, 0 to 1.
        shared: how many fingerprints that is.
    """

    first: str
    second: str
    similarity: float
    shared: int


def find_similar(
    submissions: Sequence[Submission], master: Any, *, threshold: float = 0.6
) -> list[Pair]:
    """All pairs of students, and of a student and the solution, above the threshold.

    Args:
        submissions: what cannot be read is left out.
        master: the exercise's master; what it hands out does not count.
        threshold: of the similarity, 0 to 1.

    Returns:
        The most similar first.
    """
    handed_out = fingerprints(_code(notebooks.student_version(master)))
    prints = {SOLUTION: fingerprints(_code(notebooks.solution_version(master))) - handed_out}
    for item in submissions:
        if item.problem is None:
            try:
                cells = parse_cells(read_bytes(item.files[0]))
            except InvalidSubmission:
                continue
            code = (cell["source"] for cell in cells if cell["type"] == "code")
            prints[item.student] = fingerprints(code) - handed_out
    enough = {name: found for name, found in prints.items() if len(found) >= FEWEST}
    return sorted(
        (pair for pair in _pairs(enough) if pair.similarity >= threshold),
        key=lambda pair: (-pair.similarity, -pair.shared, pair.first, pair.second),
    )


def fingerprints(cells: Iterable[str]) -> set[int]:
    r"""The winnowed hashes of some code.

    >>> a = fingerprints(["total = 0\nfor x in values:\n    total += x ** 2 - len(values)"])
    >>> b = fingerprints(["s=0  # sum\nfor item in v:\n  s += item**2 - len(v)"])
    >>> len(a), a == b
    (1, True)
    """
    return set().union(*map(_fingerprints, cells))


@lru_cache(maxsize=4096)  # most cells of a class are the same ones
def _fingerprints(cell: str) -> frozenset[int]:
    words = tokens(cell)
    hashes = [_hash(words[i : i + LENGTH]) for i in range(max(1, len(words) - LENGTH + 1))]
    return frozenset(min(hashes[i : i + WINDOW]) for i in range(max(1, len(hashes) - WINDOW + 1)))


def tokens(code: str) -> list[str]:
    """The code without what does not matter.

    >>> tokens("loss = F.mse_loss(a, 2.5)  # squared")
    ['n', '=', 'n', '.', 'mse_loss', '(', 'n', ',', '0', ')']
    """
    from pygments.lexers import PythonLexer
    from pygments.token import Comment, Literal, Name, Number, String, Text

    words: list[str] = []
    for kind, text in PythonLexer().get_tokens(code):
        if kind in Comment or kind in String.Doc or kind in Text:
            continue
        if kind in Number:
            words.append("0")
        elif kind in Literal:
            words += ["s"] if words[-1:] != ["s"] else []
        elif kind in Name and kind not in Name.Builtin and words[-1:] != ["."]:
            words.append("n")
        else:
            words.append(text.strip())
    return words


def to_csv(pairs: Sequence[Pair]) -> str:
    """The pairs as a table."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["first", "second", "similarity", "shared"])
    for pair in pairs:
        table.writerow([pair.first, pair.second, f"{pair.similarity:.3f}", pair.shared])
    return text.getvalue()


def print_pairs(pairs: Sequence[Pair], submissions: int, threshold: float) -> None:
    """Print the pairs, and what they mean."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    if pairs:
        table = Table("first", "second", "similarity", "shared")
        for pair in pairs[:MOST_SHOWN]:
            share = f"{100 * pair.similarity:.0f} %"
            table.add_row(escape(pair.first), escape(pair.second), share, str(pair.shared))
        console.print(table)
    if len(pairs) > MOST_SHOWN:
        console.print(f"and {len(pairs) - MOST_SHOWN} more; --out writes them all")
    console.print(
        f"{len(pairs)} pairs of {submissions} submissions are at least {100 * threshold:.0f} % "
        "alike. Read both before you think of copying: short answers often look the same."
    )


def _pairs(prints: Mapping[str, set[int]]) -> Iterable[Pair]:
    """Every pair with anything in common, found through the fingerprints themselves."""
    owners: dict[int, list[str]] = defaultdict(list)
    for name, found in prints.items():
        for value in found:
            owners[value].append(name)
    shared: Counter[tuple[str, str]] = Counter()
    for names in owners.values():
        shared.update(combinations(sorted(names), 2))
    for (first, second), count in shared.items():
        share = count / min(len(prints[first]), len(prints[second]))
        if first == SOLUTION:
            first, second = second, first
        yield Pair(first, second, share, count)


def _hash(words: Sequence[str]) -> int:
    return int.from_bytes(hashlib.blake2b("\0".join(words).encode(), digest_size=8).digest())


def _code(notebook: Any) -> Iterable[str]:
    return (cell.source for cell in notebook.cells if cell.cell_type == "code")
