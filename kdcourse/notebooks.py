"""From text sources to notebooks, and from package code to the page.

`python -m kdcourse.notebooks` writes every notebook of the book from its source, `--check` only
compares. The format of a source is described in CONTRIBUTING.md, section "Notebook sources".
"""

import argparse
import ast
import copy
import importlib.metadata
import inspect
import re
import sys
import textwrap
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SETUP = """\
try:
    import kdcourse  # already here on your own machine: nothing to do
except ImportError:  # on Colab: fetch the course's package; its PyTorch stays as it is
    from importlib.util import find_spec

    %pip install -qqq "kdcourse @ git+{{repository}}@{{tag}}"
    if find_spec("kdcourse") is None:
        raise SystemExit(
            "kdcourse could not be installed, which takes the internet and git. Connect and run "
            "this cell again, or install it beforehand: {{repository}}"
        ) from None"""
STUB = 'raise NotImplementedError("not answered yet")'
QUICK = r"^# kdcourse check uses: (.+)$"
PRIVATE_TAGS = {"probe", "key", "solution"}
_METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"name": "python", "pygments_lexer": "ipython3"},
}
_BEGIN = re.compile(r"^(?P<indent>\s*)# BEGIN SOLUTION(?::(?P<stub>.*))?$")
_END = re.compile(r"^\s*# END SOLUTION$")


def fill_placeholders(text: str, root: Path = ROOT) -> str:
    """Replace `{{setup}}`, `{{repository}}` and `{{tag}}`.

    Repository and version are what `root`'s pyproject.toml says, or the installed package itself
    where there is no copy of the repository.
    """
    text = text.replace("{{setup}}", SETUP)
    if not any(name in text for name in ("{{repository}}", "{{tag}}")):
        return text
    repository, version = _published(root)
    return text.replace("{{repository}}", repository).replace("{{tag}}", f"v{version}")


def _published(root: Path) -> tuple[str, str]:
    """Repository and version."""
    if (root / "book").is_dir():
        project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        return project["urls"]["Repository"], project["version"]
    about = importlib.metadata.metadata("kdcourse")
    links = dict(line.split(", ", 1) for line in about.get_all("Project-URL", []))
    return links["Repository"], about["Version"]


def read_source(path: Path, *, explicit_ids: bool = False, root: Path = ROOT) -> Any:
    """The notebook that a MyST Markdown source describes, complete and without outputs.

    Cell ids come from the cells' `id` option, or from the heading above and the position below it,
    so that the same text always gives the same bytes.

    Args:
        path: the source, `*.md`.
        explicit_ids: every code cell must carry an `id` (exercise masters).
        root: the repository, for `fill_placeholders`.

    Raises:
        ValueError: without exactly one `parameters` cell, for a repeated or missing id, for
            solution marks that do not pair up, or for front matter that a notebook cannot hold.
    """
    import jupytext
    import nbformat

    text = fill_placeholders(path.read_text(encoding="utf-8"), root)
    notebook = jupytext.reads(text, fmt="md:myst")
    kept = {k: v for k, v in notebook.metadata.items() if k not in {"jupytext", *_METADATA}}
    _check_plain(kept, str(path))
    notebook.metadata = nbformat.from_dict({**kept, **copy.deepcopy(_METADATA)})

    parameters = sum("parameters" in tags(cell) for cell in notebook.cells)
    if parameters != 1:
        raise ValueError(f"{path} needs exactly one cell tagged 'parameters', got {parameters}")
    seen: set[str] = set()
    heading, position = "top", 0
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and (found := re.search(r"^#+ +(.+)$", cell.source, re.M)):
            heading, position = _slug(found[1]), 0
        position += 1
        explicit = cell.metadata.pop("id", None)
        if explicit_ids and explicit is None and cell.cell_type == "code":
            raise ValueError(f"{path}: a code cell has no id: {cell.source[:60]!r}")
        cell.id = str(explicit) if explicit is not None else f"{heading}-{position}"
        while explicit is None and cell.id in seen:  # the same heading twice
            position += 1
            cell.id = f"{heading}-{position}"
        if cell.id in seen or not re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", cell.id):
            raise ValueError(f"{path}: cell id {cell.id!r} is repeated or not a plain name")
        seen.add(cell.id)
        if cell.cell_type == "code":
            _split_solution(cell.source, str(path))
    nbformat.validate(notebook)
    return notebook


def tags(cell: Any) -> list[str]:
    """The tags of a notebook cell."""
    return list(cell.metadata.get("tags", []))


def is_answer(cell: Any) -> bool:
    """True for a master's code cell with a solution in it: the cells a learner fills in."""
    return cell.cell_type == "code" and "# BEGIN SOLUTION" in cell.source


def student_version(master: Any) -> Any:
    """What the learner gets: solutions become stubs, private cells and grading details are gone.

    Every code cell keeps its id in the metadata as well, because some editors rewrite `cell.id`;
    an answer cell also its stub, by which `kdcourse check` knows what the learner wrote.
    """
    return _public_version(master, solved=False)


def solution_version(master: Any) -> Any:
    """The student's notebook with the master's solutions filled in."""
    return _public_version(master, solved=True)


def write_notebooks(root: Path = ROOT, *, check: bool = False) -> list[Path]:
    """Write every notebook that has a source below `root`; return those that changed.

    Args:
        root: the repository, with `book/sources/*.md` and `book/sources/exercises/*.md`.
        check: only compare; nothing is written.
    """
    changed = []
    for source in sorted((root / "book" / "sources").rglob("*.md")):
        target = root / "book" / source.relative_to(root / "book" / "sources").with_suffix(".ipynb")
        data = render(source, root=root).encode()
        if not target.exists() or target.read_bytes() != data:
            changed.append(target)
            if not check:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(data)
    return changed


def render(source: Path, *, root: Path = ROOT) -> str:
    """The text of the published notebook: an exercise's is the student's version."""
    import nbformat

    exercise = source.parent.name == "exercises"
    notebook = read_source(source, explicit_ids=exercise, root=root)
    if exercise:
        notebook = student_version(notebook)
    return nbformat.writes(notebook, version=4).rstrip("\n") + "\n"


def show_source(*objects: Any, docstring: bool = False) -> None:
    """Display the source of package objects as highlighted code.

    A chapter shows code with this and never by copying it, so that text and code cannot drift.

    Args:
        objects: functions, classes or modules.
        docstring: keep the docstrings, which are left out by default.
    """
    from IPython.display import Markdown, display

    code = "\n\n".join(source_text(item, docstring=docstring) for item in objects)
    display(Markdown(f"```python\n{code}\n```"))


def source_text(item: Any, *, docstring: bool = False) -> str:
    """The source of one object, without docstrings unless asked for; comments stay.

    >>> print(source_text(tags))
    def tags(cell: Any) -> list[str]:
        return list(cell.metadata.get("tags", []))
    """
    source = textwrap.dedent(inspect.getsource(item)).strip()
    if docstring:
        return source
    lines = source.split("\n")
    documented = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Module)
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, documented) or ast.get_docstring(node) is None:
            continue
        first = node.body[0]
        start, end = first.lineno - 1, first.end_lineno or first.lineno
        alone = len(node.body) == 1
        lines[start] = " " * first.col_offset + "..." if alone else "\0"
        lines[start + 1 : end] = ["\0"] * (end - start - 1)
        if not alone and end < len(lines) and not lines[end].strip():
            lines[end] = "\0"
    return "\n".join(line for line in lines if line != "\0").strip()


def main(arguments: list[str] | None = None) -> int:
    """Write all notebooks, or with `--check` list those that differ from their source."""
    parser = argparse.ArgumentParser(prog="python -m kdcourse.notebooks", description=main.__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail on a difference")
    parser.add_argument("--root", type=Path, default=ROOT, help="the repository")
    options = parser.parse_args(arguments)
    changed = write_notebooks(options.root, check=options.check)
    for path in changed:
        print(f"{'differs from its source' if options.check else 'wrote'}: {path}")
    if options.check and changed:
        print("run: make notebooks")
        return 1
    return 0


def _public_version(master: Any, *, solved: bool) -> Any:
    notebook = copy.deepcopy(master)
    quick = notebook.metadata.pop("grading", {}).get("quick", {})
    notebook.cells = [cell for cell in notebook.cells if not PRIVATE_TAGS & set(tags(cell))]
    for cell in notebook.cells:
        cell.metadata.pop("grading", None)
        if cell.cell_type == "code":
            stub, solution = _split_solution(cell.source, cell.id)
            if is_answer(cell):
                cell.metadata["stub"] = stub
            cell.source = solution if solved else stub
            if quick and "parameters" in tags(cell):
                values = "; ".join(f"{name} = {value!r}" for name, value in quick.items())
                cell.source += f"\n# kdcourse check uses: {values}"
            cell.metadata["id"] = cell.id
            cell.metadata["deletable"] = False
    return notebook


def _check_plain(value: Any, where: str) -> None:
    """Front matter may say more than JSON: a date, above all."""
    if isinstance(value, dict):
        for name, inner in value.items():
            _check_plain(inner, f"{where}: {name}")
    elif isinstance(value, list):
        for inner in value:
            _check_plain(inner, where)
    elif value is not None and not isinstance(value, str | int | float):
        raise ValueError(f"{where}: a notebook cannot hold {value!r}; put it in quotes")


def _split_solution(source: str, where: str) -> tuple[str, str]:
    """A cell's text with stubs in place of its solutions, and with the solutions but no marks."""
    stubbed, solved = [], []
    inside = False
    for line in source.split("\n"):
        begin, end = _BEGIN.match(line), _END.match(line)
        if (begin and inside) or (end and not inside):
            raise ValueError(f"{where}: BEGIN SOLUTION and END SOLUTION do not pair up")
        if begin:
            inside = True
            stub = (begin["stub"] or STUB).strip()
            stubbed += [f"{begin['indent']}# Your code here.", f"{begin['indent']}{stub}"]
        elif end:
            inside = False
        else:
            solved.append(line)
            if not inside:
                stubbed.append(line)
    if inside:
        raise ValueError(f"{where}: BEGIN SOLUTION without END SOLUTION")
    return "\n".join(stubbed), "\n".join(solved)


def _slug(heading: str) -> str:
    words = re.sub(r"[^a-z0-9]+", "-", heading.lower()).strip("-")
    return words[:48].rstrip("-") or "section"


if __name__ == "__main__":
    sys.exit(main())
