"""What a run may use of the packages: of `kdcourse` only what its notebook itself imports.

Whatever an exercise asks for, some function of the package computes it, or can be made to. To name
them all cannot be complete, so nothing is named: what the notebook's locked cells do not import,
and those imports do not need, only raises.
"""

import ast
import importlib.util
import shutil
import threading
from collections.abc import Iterator, Sequence, Set
from functools import lru_cache
from pathlib import Path
from typing import Any

from kdcourse import notebooks

PACKAGE = "kdcourse"
# Grading itself, and what it shares with the notebook's process; none of it knows distillation.
ALWAYS = ("grading", "notebooks", "cli", "__init__")
# Not for a run's eyes: masters hold the solutions.
WITHHELD = shutil.ignore_patterns("__pycache__", "__main__.py", "masters", "studies", "ledger.json")
WHY = (
    "while grading, only what the exercise's own notebook imports from kdcourse works: "
    "{} is switched off"
)
ASKED = "this exercise asks you to write it yourself: while grading, {} is switched off"
_PARSING = threading.Lock()  # Python 3.11's ast is not safe in a Dask worker's threads
_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def imported_names(master: Any) -> tuple[str, ...]:
    """What the locked cells of a master import from the package, as `module.name`.

    Answers are no locked cells, and cells that only run on the grader's side do not count.

    >>> from types import SimpleNamespace as Cell
    >>> code = "from kdcourse.claims import interval"
    >>> cell = Cell(cell_type="code", source=code, metadata={})
    >>> imported_names(Cell(cells=[cell]))
    ('kdcourse.claims.interval',)
    """
    found: set[str] = set()
    for cell in master.cells:
        private = {"key", "solution"} & set(notebooks.tags(cell))
        if cell.cell_type != "code" or private or notebooks.is_answer(cell):
            continue
        lines = [line for line in cell.source.splitlines() if not line.lstrip().startswith("%")]
        try:
            with _PARSING:
                tree = ast.parse("\n".join(lines))
        except SyntaxError:  # a cell that is nothing but a magic, say
            continue
        for node in ast.walk(tree):
            names = _imports(node, PACKAGE)
            found.update(name for name in names if name.startswith(f"{PACKAGE}."))
    return tuple(sorted(found))


def package_copies(
    destination: Path, *, available: Sequence[str] = (), blocked: Sequence[str] = ()
) -> dict[Path, Path]:
    """Copies of the packages a run may import, in which everything else only raises.

    The run sees these files instead of the installed ones, so that reloading, a fresh process or
    reading the source gives no more than importing does.

    Args:
        destination: an existing folder for the copies.
        available: what of the package works, with what it needs: `kdcourse.claims.interval`.
        blocked: functions and classes that raise all the same, of any package.

    Returns:
        The copy of each installed package folder.

    Raises:
        ValueError: for a blocked name that is not a function or class at the top level of its
            module.
    """
    copies = {}
    for package in sorted({PACKAGE, *(name.split(".")[0] for name in blocked)}):
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise ValueError(f"blocked names are module.function of a package, got {package!r}")
        original = Path(spec.submodule_search_locations[0])
        copies[original] = destination / package
        shutil.copytree(original, copies[original], ignore=WITHHELD)
    original = next(path for path in copies if path.name == PACKAGE)
    for module, text in _reduced(original, tuple(available)).items():
        _file(destination, module).write_text(text, encoding="utf-8")
    by_module: dict[str, set[str]] = {}
    for name in blocked:
        module, _, function = name.rpartition(".")
        by_module.setdefault(module, set()).add(function)
    for module, functions in by_module.items():
        path = _file(destination, module)
        with _PARSING:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        if missing := functions - _definitions(tree).keys():
            raise ValueError(f"{module} has no function or class named {sorted(missing)}")
        path.write_text(_switched_off(tree, module, functions, ASKED), encoding="utf-8")
    return copies


@lru_cache(maxsize=8)
def _reduced(package: Path, available: tuple[str, ...]) -> dict[str, str]:
    """The text of each module of the package, as a run sees it."""
    with _PARSING:
        trees = {
            f"{PACKAGE}.{path.stem}": ast.parse(path.read_text(encoding="utf-8"))
            for path in package.glob("*.py")
            if path.stem not in ALWAYS
        }
    needed = _Needed(trees)
    for name in available:
        needed.add(name)
    texts = {}
    for module, tree in trees.items():
        if module in needed.names:
            off = _definitions(tree).keys() - needed.names[module]
            texts[module] = _switched_off(tree, module, off, WHY)
        else:
            texts[module] = f"raise ImportError({WHY.format(module)!r})\n"
    return texts


class _Needed:
    """Which names of which modules are needed, followed from name to name.

    Attributes:
        names: for each module that must be importable, those of its names that must work.
    """

    def __init__(self, trees: dict[str, ast.Module]) -> None:
        self.names: dict[str, set[str]] = {}
        self._trees = trees
        self._rooms = importlib.import_module(PACKAGE)._ROOMS

    def add(self, name: str) -> None:
        """A name in full, or a whole module, with all that it leads to."""
        if name in self._trees:
            self._reach(name)
            for each in _definitions(self._trees[name]):
                self._follow(name, each)
            return
        module, _, last = name.rpartition(".")
        for room, names in self._rooms.items():
            if module == PACKAGE and last in names:
                module = f"{PACKAGE}.{room}"
        self._follow(module, last)

    def _reach(self, module: str) -> None:
        """Importing a module runs what stands outside its functions, and imports what it does."""
        if module in self.names or module not in self._trees:
            return
        self.names[module] = set()
        for node in self._trees[module].body:
            for name in _imports(node, module):
                self._reach(name.rpartition(".")[0])
        for node in _loose(self._trees[module]):
            self._read(module, node)

    def _follow(self, module: str, name: str) -> None:
        """A name that a module defines or imports."""
        self._reach(module)
        if module not in self.names or name in self.names[module]:
            return
        self.names[module].add(name)
        tree = self._trees[module]
        if name in (definitions := _definitions(tree)):
            self._read(module, definitions[name])
        for node in tree.body:
            for full in _imports(node, module, under=name):
                self.add(full)

    def _read(self, module: str, node: ast.AST) -> None:
        """Whatever a piece of a module names."""
        for inner in ast.walk(node):
            if isinstance(inner, ast.Name):
                self._follow(module, inner.id)
            for full in _imports(inner, module):
                self.add(full)


def _definitions(tree: ast.Module) -> dict[str, _Definition]:
    """The functions and classes at a module's top level."""
    return {
        node.name: node
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    }


def _loose(tree: ast.Module) -> list[ast.stmt]:
    """What runs when a module is imported: all but functions, classes and imports."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom)
    return [node for node in tree.body if not isinstance(node, kinds)]


def _imports(node: ast.AST, module: str, under: str | None = None) -> Iterator[str]:
    """What an import statement in `module` names, in full; only what it calls `under`, if given."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            if under in (None, alias.asname or alias.name.split(".")[0]):
                yield alias.name
    elif isinstance(node, ast.ImportFrom):
        parents = module.split(".")[: -node.level] if node.level else []
        home = ".".join([*parents, *([node.module] if node.module else [])])
        for alias in node.names:
            if under in (None, alias.asname or alias.name):
                yield f"{home}.{alias.name}"


def _switched_off(tree: ast.Module, module: str, names: Set[str], why: str) -> str:
    """A module's text in which the named functions and classes only raise."""
    body = [
        _raising(node, why.format(f"{module}.{node.name}"))
        if isinstance(node, _Definition) and node.name in names
        else node
        for node in tree.body
    ]
    return ast.unparse(ast.Module(body, type_ignores=[])) + "\n"


def _raising(node: _Definition, message: str) -> ast.stmt:
    """A function or class of which only the name is left."""
    error = f"raise RuntimeError({message!r})"
    text = f"def {node.name}(*args, **kwargs): {error}"
    if isinstance(node, ast.ClassDef):
        text = f"class {node.name}:\n    def __init__(self, *args, **kwargs): {error}"
    return ast.parse(text).body[0]


def _file(destination: Path, module: str) -> Path:
    stem = destination.joinpath(*module.split("."))
    return stem / "__init__.py" if stem.is_dir() else stem.with_suffix(".py")
