"""The book's build executes a notebook when something that it depends on has changed, only then."""

import importlib
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from sphinx.cmd.build import main as sphinx

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "book" / "_ext"))
execution_cache = importlib.import_module("execution_cache")

PACKAGE = {
    "__init__.py": """
from importlib import import_module
_ROOMS = {
    "losses": ["one_loss"],
}
def __getattr__(name):
    return getattr(import_module(f"kdcourse.{_ROOMS and 'losses'}"), name)
""",
    "_checks.py": "",
    "losses.py": """
from typing import TYPE_CHECKING
from ._checks import *
if TYPE_CHECKING:
    from .slow import Slow
one_loss = "one"
def measured():
    from .metrics import accuracy
""",
    "metrics.py": "import packaging",
    "slow.py": "",
    "rooms/__init__.py": "",
    "rooms/deep.py": "from ..losses import one_loss\nfrom . import page",
    "rooms/page.py": "FOLDER = 'templates'",
    "rooms/templates/page.html": "",
    "experiments.py": """
from pathlib import Path
def study(name):
    return Path(__file__).parent.joinpath("studies", f"{name}.json").read_text()
""",
    "search.py": """
from .experiments import study
def tune(name):
    return study(f"{name}_recipes"), study(f"{name}_finalists")
""",
    "studies/first.json": "1",
    "studies/first_recipes.json": "1",
    "studies/second.json": "2",
    "models.py": "def load_teacher(name): return 'recipes.json'",
    "weights/large.safetensors": "",
    "weights/small.safetensors": "",
    "weights/recipes.json": "",
}
LOSSES = {"__init__.py", "_checks.py", "losses.py", "metrics.py"}
DEEP = {"rooms/__init__.py", "rooms/deep.py", "rooms/page.py", "rooms/templates/page.html"}
STUDY = {"__init__.py", "experiments.py", "studies/first.json"}
STUDIES = {name for name in PACKAGE if name.startswith("studies/")}
TUNED = {"__init__.py", "experiments.py", "search.py", "studies/first_recipes.json"}
WEIGHTS = {"weights/large.safetensors", "weights/small.safetensors"}
MODELS = {"__init__.py", "models.py", "weights/recipes.json"}
ANY = {name for name in PACKAGE if name.endswith(".py")} | {
    "rooms/templates/page.html",
    "weights/recipes.json",
}


@pytest.fixture
def package(tmp_path: Path) -> Path:
    for name, text in PACKAGE.items():
        path = tmp_path / "kdcourse" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return tmp_path / "kdcourse"


@pytest.mark.parametrize(
    ("cells", "files"),
    [
        (["1 + 1"], set()),
        (['if missing:\n    %pip install -q "kdcourse @ git+https://example.org"'], set()),
        (["import kdcourse"], {"__init__.py"}),
        (["from kdcourse import one_loss"], LOSSES),
        (["import kdcourse", "kdcourse.one_loss"], LOSSES),
        (["def late():\n    import kdcourse.losses"], LOSSES),
        (["from kdcourse.losses import *"], LOSSES),
        (["from kdcourse import rooms"], {"__init__.py", "rooms/__init__.py"}),
        (["from kdcourse.rooms.deep import one_loss"], LOSSES | DEEP),
        (["import_module('kdcourse.slow')"], {"__init__.py", "slow.py"}),
        (["from kdcourse.experiments import study", "study('first')"], STUDY),
        (["from kdcourse import experiments", "experiments.study('first')"], STUDY),
        (["from kdcourse.experiments import study", "study(f'{it}')"], STUDY | STUDIES),
        (["from kdcourse.experiments import study as s", "s('first')"], STUDY | STUDIES),
        (["from kdcourse.search import tune", "tune('first')"], TUNED),
        (["from kdcourse.search import tune", "tune(name)"], TUNED),
        (
            ["from kdcourse.models import load_teacher", "load_teacher('large')"],
            MODELS | {"weights/large.safetensors"},
        ),
        (
            ["from kdcourse.models import load_teacher", "map(load_teacher, names)"],
            MODELS | WEIGHTS,
        ),
        (["from kdcourse import models"], MODELS),
        # Who knows what these import?
        (["import kdcourse as course"], ANY),
        (["import kdcourse", "getattr(kdcourse, name)"], ANY),
        (["from kdcourse import unknown"], ANY),
        (["import_module(name)"], ANY),
        (["import_module('.slow', 'kdcourse')"], ANY),
        (["import subprocess"], ANY),
        (["import os", "os.system('kdcourse')"], ANY),
        (["!kdcourse"], ANY),
        (["lines = !kdcourse"], ANY),
        (["%%bash\nkdcourse"], ANY),
        (["%run other.py"], ANY),
        (["this is no Python"], ANY),
    ],
)
def test_files_that_cells_can_reach(package: Path, cells: list[str], files: set[str]) -> None:
    found = execution_cache.dependencies(cells, package)
    assert {name for name in found if "." in name} == files


def test_versions_that_count(package: Path) -> None:
    found = execution_cache.dependencies(["import kdcourse.losses", "import nbformat.v4"], package)
    assert set(found) - LOSSES == {"python", "packaging", "nbformat"}
    assert found["nbformat"] == nbformat.__version__
    found = execution_cache.dependencies(["import missing_module"], package)
    assert found["missing_module"] == "not installed"


def test_the_table_of_lazy_names_counts_by_what_it_leads_to(package: Path) -> None:
    def found() -> dict[str, str]:
        return execution_cache.dependencies(["from kdcourse import one_loss"], package)

    entry, before = package / "__init__.py", found()
    text = entry.read_text(encoding="utf-8")
    entry.write_text(text.replace('["one_loss"]', '["one_loss", "two_loss"]'), encoding="utf-8")
    assert found() == before
    entry.write_text(text.replace('"losses":', '"slow":'), encoding="utf-8")
    assert found().keys() == {"__init__.py", "slow.py", "python"}
    entry.write_text(text + "changed = True\n", encoding="utf-8")
    assert found() != before and found().keys() == before.keys()


# The book itself


@pytest.fixture(scope="module")
def book() -> dict[str, dict[str, str]]:
    """For each notebook, what it depends on."""
    found = {}
    for path in [*ROOT.glob("book/*.ipynb"), *ROOT.glob("book/exercises/*.ipynb")]:
        cells = nbformat.read(path, as_version=4).cells
        code = [cell.source for cell in cells if cell.cell_type == "code"]
        found[path.stem] = execution_cache.dependencies(code, ROOT / "kdcourse")
    return found


EXERCISES = {path.stem for path in ROOT.glob("book/exercises/*.ipynb")}


@pytest.mark.parametrize(
    ("changed", "pages"),
    [
        ("grading/watch.py", {"instructors"}),
        ("grading/templates/report.html", {"instructors"}),
        ("cli.py", {"instructors"}),
        ("grading/selfcheck.py", {"instructors", *EXERCISES}),
        ("relations.py", {"best_practices", "instructors", "relations"}),
        ("studies/relations_weights.json", {"relations"}),
        ("studies/best_practices.json", {"best_practices"}),
        ("studies/advanced_stages_finalists.json", {"advanced"}),
        ("studies/best_practices_elsewhere_recipes.json", {"best_practices"}),
        (
            "studies/soft_targets_gains.json",
            {"best_practices", "instructors", "self_distillation", "soft_targets"},
        ),
        ("torch", None),
        ("python", None),
    ],
)
def test_pages_of_the_book_that_a_change_executes(book, changed: str, pages: set | None) -> None:
    executed = {page for page in book if changed in book[page]}
    assert executed == (set(book) if pages is None else pages)


def test_pages_depend_on_the_weights_that_they_load(book) -> None:
    def loaded(page: str) -> list[str]:
        return sorted(Path(name).stem for name in book[page] if name.endswith(".safetensors"))

    assert loaded("relations") == ["textured_shapes"]
    assert loaded("detection") == ["digit_scenes"]
    assert loaded("self_distillation") == []
    every = sorted(path.stem for path in (ROOT / "kdcourse" / "weights").glob("*.safetensors"))
    assert loaded("soft_targets") == every  # one of its loads has a computed name


def test_no_file_of_the_package_is_overlooked(book) -> None:
    """Each counts for some page; modules that import by a computed name are known."""
    package = ROOT / "kdcourse"
    files = {path for path in package.rglob("*") if path.is_file()}
    parts = {path.relative_to(package) for path in files if path.parent.name != "__pycache__"}
    names = {path.as_posix() for path in parts}
    assert {
        name for name in names - execution_cache.NOT_READ if not name.startswith("studies/")
    } <= set().union(*book.values())
    computed = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if re.search(r"(import_module|__import__)\((?![\"'])", path.read_text(encoding="utf-8"))
    }
    # The lazy table; the digest of a study's code, which imports what that code does; what a
    # notebook under grading imports.
    assert computed <= {"__init__.py", "provenance.py", "grading/available.py", "grading/warm.py"}


# A small book, built


@pytest.fixture
def build(tmp_path: Path, package: Path, monkeypatch, capfd) -> Callable:
    """Builds a book of two notebooks; returns what ran, the exit status and the log."""
    monkeypatch.setattr(execution_cache, "package_folder", lambda: package)
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    monkeypatch.setenv("JUPYTER_PATH", "")
    source = tmp_path / "book"
    source.mkdir()
    (source / "conf.py").write_text(
        "extensions, nb_execution_mode = ['myst_nb', 'execution_cache'], 'cache'\n"
    )
    (source / "index.md").write_text("# Book\n\n```{toctree}\none\ntwo\n```\n")
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    ran = source / "ran.txt"
    for name, code in {
        "one": "import kdcourse; print('value', kdcourse.one_loss)",
        "two": "from kdcourse.experiments import study; print(study('first'))",
    }.items():
        cells = [
            nbformat.v4.new_markdown_cell(f"# Page {name}"),
            nbformat.v4.new_code_cell(f"print('{name}', file=open('ran.txt', 'a'))"),
            nbformat.v4.new_code_cell(code),
        ]
        notebook = nbformat.v4.new_notebook(metadata={"kernelspec": kernel}, cells=cells)
        nbformat.write(notebook, source / f"{name}.ipynb")

    def build() -> tuple[list[str], int, str]:
        ran.write_text("")
        out = tmp_path / "_build" / "html"
        status = sphinx(["-W", "--keep-going", "-b", "html", str(source), str(out)])
        if status:
            shutil.rmtree(out / ".doctrees")  # as `make book` does
        return ran.read_text().split(), status, "".join(capfd.readouterr())

    return build


def test_a_build_executes_what_changed(build, tmp_path: Path, package: Path, monkeypatch) -> None:
    page = tmp_path / "_build" / "html" / "one.html"
    losses = PACKAGE["losses.py"]

    def change(name: str, text: str) -> None:
        (package / name).write_text(text, encoding="utf-8")

    ran, status, log = build()
    assert (ran, status) == (["one", "two"], 0), log
    told = re.findall(r"^.*(?:executed in|Executing|encryption|Config).*$", log, re.MULTILINE)
    assert [re.sub(r"\d+ s$", "… s", line) for line in told] == [
        "one: executed in … s",
        "two: executed in … s",
    ]
    ran, status, log = build()
    assert (ran, status) == ([], 0) and "executed in" not in log

    change("losses.py", losses.replace('"one"', '"changed"'))
    assert build()[:2] == (["one"], 0)
    assert "value changed" in page.read_text(encoding="utf-8")
    change("studies/first.json", "3")
    change("studies/second.json", "3")
    assert build()[:2] == (["two"], 0)
    with monkeypatch.context() as patch:
        installed = execution_cache.versions
        patch.setattr(execution_cache, "versions", lambda name: {**installed(name), name: "new"})
        assert build()[:2] == (["one"], 0)  # the module of its module imports `packaging`

    change("losses.py", losses)  # an earlier state: its outputs are still there
    ran, status, log = build()
    assert (ran, status) == ([], 0) and "executed in" not in log
    assert "value one" in page.read_text(encoding="utf-8")

    change("losses.py", losses.replace('"one"', "1 / 0"))
    for _ in range(2):  # a failure is not remembered
        ran, status, log = build()
        assert (ran, status) == (["one"], 1)
        assert "one.ipynb: WARNING: Executing notebook failed: CellExecutionError" in log
