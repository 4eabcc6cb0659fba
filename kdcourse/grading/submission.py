"""A submitted file: found, read with suspicion, and rebuilt on the master's locked cells."""

import copy
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdcourse import notebooks

from .files import FileProblem, parse_json, read_regular

MAX_BYTES = 20 * 2**20


class InvalidSubmission(Exception):  # noqa: N818 - a status, not a fault of ours
    """What is wrong with a file, in words for the student."""


@dataclass(frozen=True)
class Submission:
    """One student's files; exactly one of them can be graded."""

    student: str
    files: tuple[Path, ...]

    @property
    def problem(self) -> str | None:
        """Either "missing" or "duplicate", or None when there is one file to grade."""
        return {0: "missing", 1: None}.get(len(self.files), "duplicate")


def find_submissions(folder: Path, roster: list[str] | None = None) -> list[Submission]:
    """The submissions in `folder`: `STUDENT.ipynb`, or one folder for each student.

    Args:
        folder: hidden files are ignored; other files than notebooks count only for a student who
            handed in no notebook.
        roster: students who must have a row, whether or not they handed something in.

    Returns:
        One entry per student, sorted by name.
    """
    found: dict[str, list[Path]] = {_plain(name): [] for name in roster or []}
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir() and not path.is_symlink():
            files = [item for item in sorted(path.iterdir()) if not item.name.startswith(".")]
            found.setdefault(_plain(path.name), []).extend(files)
        else:
            found.setdefault(_plain(path.stem), []).append(path)
    submissions = []
    for student, files in sorted(found.items()):
        graded = [path for path in files if path.suffix == ".ipynb"]
        submissions.append(Submission(student, tuple(graded or files[:1])))
    return submissions


def read_roster(path: Path) -> list[str]:
    """The students of a class: the column `student` of a CSV file, or else its first column.

    Raises:
        ValueError: when the file names nobody.
    """
    import csv

    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = [[cell.strip() for cell in row] for row in csv.reader(file)]
    rows = [row for row in rows if any(row)]
    headed = bool(rows) and "student" in rows[0]
    column = rows[0].index("student") if headed else 0
    names = [row[column] for row in rows[headed:] if len(row) > column and row[column]]
    if not names:
        raise ValueError(f"{path} names no students: give one a line, or a column `student`")
    return names


def strangers(submissions: list[Submission], roster: list[str]) -> list[str]:
    """Who handed something in, but is not in the roster; often a misspelt file name."""
    known = {_plain(name) for name in roster}
    return [item.student for item in submissions if item.student not in known]


def read_bytes(path: Path) -> bytes:
    """A submitted file's bytes.

    Raises:
        InvalidSubmission: for anything but a regular file of moderate size.
    """
    if path.suffix != ".ipynb":
        raise InvalidSubmission("this is not a notebook: the file must end in .ipynb")
    try:
        return read_regular(path, max_bytes=MAX_BYTES)
    except FileProblem as problem:
        raise InvalidSubmission(
            f"the file was not read: {problem}. Hand in one notebook of at most "
            f"{MAX_BYTES // 2**20} MiB, saved without outputs."
        ) from None


def parse_cells(data: bytes) -> list[dict[str, Any]]:
    """The cells of a submitted notebook as `{"id", "type", "source"}`, without outputs.

    Raises:
        InvalidSubmission: unless the bytes are a notebook of format 4.
    """
    try:
        content = parse_json(data)
    except ValueError as error:
        raise InvalidSubmission(f"this is not valid JSON: {str(error)[:200]}") from None
    if not isinstance(content, dict) or "nbformat" not in content:
        raise InvalidSubmission("this is not a Jupyter notebook")
    if content["nbformat"] != 4 or isinstance(content["nbformat"], bool):
        raise InvalidSubmission(
            f"notebook format {str(content['nbformat'])[:20]} is not accepted, only format 4: "
            "open the file in a current Jupyter and save it again"
        )
    if not isinstance(content.get("cells"), list):
        raise InvalidSubmission("this notebook has no list of cells")
    cells = []
    for number, cell in enumerate(content["cells"], start=1):
        source = cell.get("source") if isinstance(cell, dict) else None
        if isinstance(source, list) and all(isinstance(line, str) for line in source):
            source = "".join(source)
        if not isinstance(source, str) or not isinstance(cell.get("cell_type"), str):
            raise InvalidSubmission(f"cell {number} of this notebook is malformed")
        metadata = cell.get("metadata")
        metadata = metadata if isinstance(metadata, dict) else {}
        identity = [metadata.get("id"), cell.get("id")]
        labels = metadata.get("tags")
        if isinstance(labels, list) and "injected-parameters" in labels:
            continue  # left behind by an earlier papermill run
        cells.append({"ids": identity, "type": cell["cell_type"], "source": encodable(source)})
    return cells


def rebuild(master: Any, cells: list[dict[str, Any]], *, solved: bool = False) -> Any:
    """The notebook that is run: the master's cells in its order, with the student's answers.

    A cell that holds no answer is the master's, whatever the student made of it. A missing answer
    is the unfilled one. Cells the student added stay behind the cell they followed. Probes stand
    where the master has them, so that what was answered before a crash still counts.

    Args:
        master: the whole master notebook.
        cells: what `parse_cells` returned.
        solved: fill in the master's own solutions (for reference answers).

    Raises:
        InvalidSubmission: when no cell of the exercise is in the notebook.
    """
    import nbformat

    public = notebooks.solution_version(master) if solved else notebooks.student_version(master)
    known = {cell.id: cell for cell in public.cells}
    answers: dict[str, str] = {}
    added: dict[str | None, list[str]] = {}
    seen: set[str] = set()
    anchor = None
    for cell in cells:
        identity = next((i for i in cell["ids"] if isinstance(i, str) and i in known), None)
        if identity is not None and identity not in seen:
            anchor = identity
            seen.add(identity)
            answers[identity] = cell["source"]
        elif cell["type"] == "code":
            added.setdefault(anchor, []).append(cell["source"])
    if not solved and not any(known[identity].cell_type == "code" for identity in seen):
        raise InvalidSubmission("none of this exercise's cells is in the notebook")

    built = nbformat.v4.new_notebook(metadata=copy.deepcopy(public.metadata))
    built.cells += _added(None, added)
    for cell in master.cells:
        if "key" in notebooks.tags(cell):
            continue
        if cell.cell_type == "code":
            source = known[cell.id].source if cell.id in known else cell.source
            if not solved and notebooks.is_answer(cell):
                source = answers.get(cell.id, source)
            fresh = nbformat.v4.new_code_cell(source, id=cell.id)
            fresh.metadata["tags"] = notebooks.tags(cell)
            built.cells.append(fresh)
        built.cells += _added(cell.id, added)
    nbformat.validate(built)
    return built


def _added(anchor: str | None, added: dict[str | None, list[str]]) -> Iterator[Any]:
    import nbformat

    for number, source in enumerate(added.get(anchor, []), start=1):
        name = f"{(anchor or 'top')[:50]}-added-{number}"
        yield nbformat.v4.new_code_cell(source, id=name)


def _plain(name: str) -> str:
    """A student's name from a file name: one Unicode form, and always encodable."""
    return unicodedata.normalize("NFC", encodable(name))


def encodable(text: str) -> str:
    """Text that every file can hold: half of a surrogate pair becomes its escape."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
