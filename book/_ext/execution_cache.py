"""Sphinx extension: a notebook is executed again when something that it depends on has changed.

MyST-NB keeps executed notebooks in jupyter-cache, which knows each by its code cells and the
specification of its kernel and by nothing else: after a change in the package it would go on
showing results of the old code. Here a digest of what else decides the outputs becomes part of that
specification. So a record stands for one state of everything, is written only after a successful
execution, and is found again when the state comes back. What counts:

* the modules of the package that the cells import, and those that these import, read from their
  text. A page that starts programs or imports by a computed name may use any of them;
* data of the package: what is loaded by name (a study, a teacher's weights), and files that these
  modules name;
* the installed versions of Python and of all that the cells and these modules import.

Notebooks read no files beside them: each also runs alone, in Colab.

The log has one line for each notebook that was executed.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import os
import platform
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatch
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import nbformat
from docutils import nodes
from IPython.core.inputtransformer2 import TransformerManager
from myst_nb.sphinx_ import NbMetadataCollector
from nbclient import NotebookClient
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.environment import BuildEnvironment
from sphinx.util import logging

PACKAGE = "kdcourse"
ANYTHING = f"{PACKAGE}.*"  # stands for an import of who knows what
# Functions that read files of the package, by name.
LOADERS = {
    "study": "studies/{}.json",
    "read_study": "studies/{}.json",
    "tune": "studies/{}_*.json",
    "load_teacher": "weights/{}.safetensors",
}
# Files that decide no output: the ledger is read when a claim fails, for the book's own number.
NOT_READ = {"ledger.json"}
LOGGER = logging.getLogger(__name__)


def digest(notebook: nbformat.NotebookNode) -> str:
    """Hash what a notebook's outputs depend on besides its own text."""
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    found = dependencies(cells, package_folder())
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def package_folder() -> Path:
    """Where kernels import the package from."""
    return Path(importlib.util.find_spec(PACKAGE).origin).parent


def dependencies(cells: Iterable[str], package: Path) -> dict[str, str]:
    """What the outputs of a notebook depend on.

    Args:
        cells: the text of its code cells.
        package: the folder of the package.

    Returns:
        The hash of each file, named as in that folder, and the version of each distribution.
    """
    shell = TransformerManager()  # magics become Python
    pieces = [read("\n".join(shell.transform_cell(cell) for cell in cells), "")]
    rooms, entry = read_entry((package / "__init__.py").read_text(encoding="utf-8"))
    contents: dict[Path, bytes] = {}
    for piece in pieces:  # grows
        for path in sorted({p for name in piece.imports for p in modules(name, package, rooms)}):
            if path not in contents:
                contents[path] = path.read_bytes()
                home = ".".join([PACKAGE, *path.relative_to(package).parts[:-1]])
                pieces.append(read(contents[path].decode(), home))
    if contents:
        contents[package / "__init__.py"] = entry.encode()
    contents |= {path: path.read_bytes() for path in data(pieces, package)}
    found = {
        path.relative_to(package).as_posix(): hashlib.sha256(content).hexdigest()
        for path, content in contents.items()
    }
    for name in {name.partition(".")[0] for piece in pieces for name in piece.imports}:
        if name != PACKAGE and name not in sys.stdlib_module_names:
            found.update(versions(name))
    return found | {"python": platform.python_version()}


class Piece(NamedTuple):
    """What some code names."""

    imports: set[str]  # in full, "kdcourse.data.subset"
    words: set[str]  # text constants
    loads: set[str]  # patterns of files, from LOADERS


@cache
def read(text: str, home: str) -> Piece:
    """What a module of the package `home` names, or the cells of a notebook, which have no home."""
    reader = _Reader(home)
    try:
        reader.visit(ast.parse(text))
    except SyntaxError:
        reader.piece.imports.add(ANYTHING)
    return reader.piece


class _Reader(ast.NodeVisitor):
    """Collects what code names; where that cannot be known, the worst case."""

    def __init__(self, home: str) -> None:
        self.home = home
        self.piece = Piece(set(), set(), set())
        self.known: set[ast.expr] = set()  # where a loader stands with the name it loads

    def visit_If(self, node: ast.If) -> None:
        if ast.unparse(node.test).endswith("TYPE_CHECKING"):
            node.body = []
        self.generic_visit(node)

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self._import(ANYTHING if alias.name == PACKAGE and alias.asname else alias.name)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        source = importlib.util.resolve_name("." * node.level + (node.module or ""), self.home)
        for alias in node.names:
            self._import(f"{source}.{alias.name}")
            if alias.asname:
                self._use(node, alias.name)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        if node.name in LOADERS:  # which file it loads, its callers say
            self.known.update(part for part in ast.walk(node) if isinstance(part, ast.expr))
        self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> None:
        if node.id == PACKAGE:
            self._import(ANYTHING)
        self._use(node, node.id)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if isinstance(node.value, ast.Name) and node.value.id == PACKAGE:
            self._import(f"{PACKAGE}.{node.attr}")
        else:
            self.visit(node.value)
        self._use(node, node.attr)

    def visit_Call(self, node: ast.Call) -> None:
        function = ast.unparse(node.func)
        name = function.rpartition(".")[2]
        first = node.args[0] if node.args else None
        text = first.value if isinstance(first, ast.Constant) else None
        if name in LOADERS and text is not None:
            self.known.add(node.func)
            self.piece.loads.add(LOADERS[name].format(text))
        elif name in ("import_module", "__import__"):
            # In the package a computed name repeats what other imports say; a test looks after it.
            named = isinstance(text, str) and not text.startswith(".")
            self._import(text if named else PACKAGE if self.home else ANYTHING)
        elif function == "os.system" or (function.startswith("get_ipython().") and text != "pip"):
            self._import(ANYTHING)
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, str):
            self.piece.words.add(node.value)

    def _import(self, name: str) -> None:
        self.piece.imports.add(name)
        if name.partition(".")[0] in ("subprocess", "runpy"):
            self.piece.imports.add(ANYTHING)

    def _use(self, node: ast.AST, name: str) -> None:
        if name in LOADERS and node not in self.known:
            self.piece.loads.add(LOADERS[name].format("*"))


def read_entry(text: str) -> tuple[dict[str, str], str]:
    """From the package's `__init__`: the module of each lazily imported name, and all other text.

    The table itself does not count, only the modules that it leads to.
    """
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_ROOMS":
            table, lines = ast.literal_eval(node.value), text.splitlines()
            rest = [*lines[: node.lineno - 1], *lines[node.end_lineno :]]
            return {name: room for room in table for name in table[room]}, "\n".join(rest)
    return {}, text


def modules(name: str, package: Path, rooms: Mapping[str, str]) -> Iterable[Path]:
    """The files of the package that run for an import; all, where it cannot be told which."""
    first, *parts = name.split(".")
    if first != PACKAGE:
        return []
    if parts and parts[0] in rooms:
        parts = [rooms[parts[0]]]
    folder, found = package, [package / "__init__.py"]
    for part in parts:
        if (folder / part / "__init__.py").is_file():
            folder /= part
            found.append(folder / "__init__.py")
        elif (folder / f"{part}.py").is_file():
            return [*found, folder / f"{part}.py"]
        elif folder == package:
            return package.rglob("*.py")
        else:
            break  # a name that this package defines
    return found


def data(pieces: Iterable[Piece], package: Path) -> Iterator[Path]:
    """The data files of the package that code can read."""
    loads = {pattern for piece in pieces for pattern in piece.loads}
    words = {word for piece in pieces for word in piece.words}
    for path in package.rglob("*"):
        if path.suffix == ".py" or path.parent.name == "__pycache__" or not path.is_file():
            continue
        name = path.relative_to(package).as_posix()
        if name in NOT_READ:
            continue
        if any(fnmatch(name, pattern.format("*")) for pattern in LOADERS.values()):
            counts = any(fnmatch(name, pattern) for pattern in loads)
        else:
            counts = not words.isdisjoint((path.name, path.parent.name))
        if counts:
            yield path


@cache
def versions(module: str) -> dict[str, str]:
    """The installed version of what provides a module."""
    found = {}
    for name in distributions().get(module, [module]):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


distributions = cache(metadata.packages_distributions)


def read_notebook(text: str) -> nbformat.NotebookNode:
    """Read a notebook for MyST-NB, what it depends on added to the specification of its kernel."""
    notebook = nbformat.reads(text, as_version=4)
    notebook.metadata.kernelspec["dependencies"] = digest(notebook)
    return notebook


def use_reader(app: Sphinx, config: Config) -> None:
    """Let MyST-NB read notebooks that way."""
    config.nb_custom_formats = {".ipynb": f"{__name__}.{read_notebook.__name__}"}


def outdated(
    app: Sphinx, env: BuildEnvironment, added: set[str], changed: set[str], removed: set[str]
) -> list[str]:
    """Pages that must be read again because of what their notebooks depend on."""
    pages = []
    for page in env.found_docs - added - changed:
        known = env.metadata[page].get("kernelspec", {}).get("dependencies")
        if known and known != digest(nbformat.read(env.doc2path(page), as_version=4)):
            pages.append(page)
    return pages


def begin_page(app: Sphinx, page: str, content: list[str]) -> None:
    """Silence what MyST-NB says about each step of an execution; its warnings stay."""
    logging.getLogger(f"mystnb-{page}").setLevel("WARNING")
    app.env.temp_data["began"] = time.time()


def end_page(app: Sphinx, doctree: nodes.document) -> None:
    """Say that a notebook has been executed, and in which time."""
    done = NbMetadataCollector.get_exec_data(app.env, app.env.docname)
    # From the cache, the time is that of the earlier execution.
    if done and done["succeeded"] and app.env.temp_data["began"] <= done["mtime"] <= time.time():
        LOGGER.info("%s: executed in %.0f s", app.env.docname, done["runtime"])


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the steps."""
    for name in ("myst_parser.sphinx_ext.main", "myst_nb.sphinx_ext"):
        logging.getLogger(name).setLevel("WARNING")  # they print their whole configuration
    # Kernels start as `kernels/python3` says: without a warning about the local connection.
    paths = [str(Path(__file__).parent), *os.environ.get("JUPYTER_PATH", "").split(os.pathsep)]
    os.environ["JUPYTER_PATH"] = os.pathsep.join(filter(None, paths))
    # Else each waits two seconds in vain for joblib's watcher, which ends only after its kernel.
    NotebookClient.shutdown_kernel.default_value = "immediate"
    app.connect("config-inited", use_reader)
    app.connect("env-get-outdated", outdated)
    app.connect("source-read", begin_page)
    app.connect("doctree-read", end_page)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
