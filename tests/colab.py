"""A notebook host shaped like Colab, and every notebook run there, alone, at its small values.

The host has a PyTorch of its own, no extras of the package, and nothing of the repository but the
notebook. In the quick form it is made in seconds and without network, of packages that are
installed here; with `--whole` it is a real one, the newest versions that the package's ranges
admit, and each notebook's own set-up cell installs the package, from a repository made of this
working tree.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import tomllib
import venv
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import Distribution, distribution
from pathlib import Path
from typing import Any

import nbformat
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from kdcourse.notebooks import QUICK

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NOTEBOOKS = sorted((ROOT / "book").glob("*.ipynb")) + sorted((ROOT / "book").glob("*/*.ipynb"))
GRADING = "instructors"  # the one notebook whose set-up cell asks for an extra
CONSTRAINTS = (ROOT / ".ci" / "constraints.txt").read_text(encoding="utf-8").splitlines()

# Processor time, in seconds of a machine that does a fixed piece of work in `WORK_SECONDS`: no test
# may depend on how fast or how busy a machine is.
SMALL_SECONDS = 20
WORK_SECONDS = 0.12
LIMIT = """\
import resource, time

kinds = resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN
spent = sum(sum(resource.getrusage(kind)[:2]) for kind in kinds)
start = time.process_time()
sum(number * number for number in range(2_000_000))
spent *= min(1, {work} / (time.process_time() - start))
assert spent <= {seconds}, f"at its small values it takes {{spent:.0f}} s, more than {seconds}"
"""


# What a notebook declares


def parameters_cell(notebook: Any) -> str:
    """The source of the cell tagged `parameters`."""
    (cell,) = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    return cell.source


def parameters(notebook: Any) -> set[str]:
    """The names that the parameters cell assigns."""
    body = ast.parse(parameters_cell(notebook)).body
    return {node.targets[0].id for node in body if isinstance(node, ast.Assign)}


def small_values(notebook: Any) -> dict[str, Any]:
    """The values at which a quick run goes through all cells: none, where none are declared.

    A chapter has them in its metadata, an exercise in the line that `kdcourse check` obeys, too.
    """
    quick = re.search(QUICK, parameters_cell(notebook), re.MULTILINE)
    assignments = ast.parse(quick[1]).body if quick else []
    named = {node.targets[0].id: ast.literal_eval(node.value) for node in assignments}
    return named | notebook.metadata.get("small", {})


def place(path: Path, folder: Path, kernel: str, seconds: float | None = None) -> Path:
    """Put a notebook into an empty folder of its own, its small values injected.

    Args:
        path: the notebook.
        folder: for all of them.
        kernel: its name.
        seconds: of processor time, its children's included, that a last cell allows.
    """
    notebook = load_notebook_node(str(path))
    small = small_values(notebook)
    if not small:
        raise SystemExit(f"{path.name} declares no small values: see CONTRIBUTING.md")
    notebook = parameterize_notebook(notebook, small)
    notebook.metadata["kernelspec"]["name"] = kernel
    if seconds is not None:
        notebook.cells.append(
            nbformat.v4.new_code_cell(LIMIT.format(seconds=seconds, work=WORK_SECONDS))
        )
    target = folder / path.stem / path.name
    target.parent.mkdir(parents=True)
    nbformat.write(notebook, target)
    return target


# The host


def build_wheel(folder: Path) -> Path:
    """The package's wheel, built without network."""
    options = ["--no-deps", "--no-build-isolation", "--wheel-dir", folder]
    pip(sys.executable, "wheel", *options, ROOT)
    (wheel,) = folder.glob("*.whl")
    return wheel


def pip(python: Path | str, *arguments: str | Path) -> None:
    """Run pip for one interpreter; what goes wrong is printed."""
    command = [sys.executable, "-m", "pip", "--python", python, *arguments]
    quiet = ["-qq", "--disable-pip-version-check"]
    subprocess.run([*command, *quiet], check=True)


def closure(texts: Iterable[str]) -> dict[str, Distribution]:
    """What these requirements pull in, by name, as installed here; extras only where asked for."""
    found: dict[str, Distribution] = {}
    todo, seen = [Requirement(text) for text in texts], set()
    while todo:
        wanted = todo.pop()
        name = canonicalize_name(wanted.name)
        found[name] = distribution(wanted.name)
        for extra in {"", *wanted.extras} - {extra for known, extra in seen if known == name}:
            seen.add((name, extra))
            asked = map(Requirement, found[name].requires or [])
            todo += [r for r in asked if not r.marker or r.marker.evaluate({"extra": extra})]
    return found


def make_quick_host(folder: Path, wheel: Path, extras: Iterable[str] = ()) -> Path:
    """An interpreter that sees the package and its mandatory dependencies, and nothing else.

    Args:
        folder: where it is made.
        wheel: the package's.
        extras: of the package, whose dependencies are there as well.

    Returns:
        The interpreter.
    """
    python = make_environment(folder)
    packages = Path(sysconfig.get_path("purelib", "venv", vars={"base": str(folder)}))
    texts = [*PROJECT["dependencies"], "ipykernel"]  # a host of notebooks has a kernel
    texts += [text for extra in extras for text in PROJECT["optional-dependencies"][extra]]
    for found in closure(texts).values():
        link(found, packages)
    pip(python, "install", "--no-deps", "--no-index", wheel)
    return python


def make_environment(folder: Path, *, with_pip: bool = False) -> Path:
    """An empty virtual environment; its interpreter."""
    venv.create(folder, symlinks=True, with_pip=with_pip)
    return Path(sysconfig.get_path("scripts", "venv", vars={"base": str(folder)})) / "python"


def link(found: Distribution, packages: Path) -> None:
    """Give another environment an installed distribution, by hard links: a sandbox sees these."""
    tops = {file.parts[0] for file in found.files or []} - {"..", "__pycache__"}
    for top in sorted(top for top in tops if not top.endswith(".pth")):
        source, target = Path(found.locate_file(top)), packages / top
        if source.is_dir() and not target.exists():
            shutil.copytree(source, target, copy_function=os.link)
        elif not target.exists():
            os.link(source, target)


@contextmanager
def folder_for_hosts() -> Iterator[Path]:
    """A temporary folder inside this environment, on its file system, which hard links need."""
    folder = tempfile.mkdtemp(prefix="hosts-", dir=sys.prefix)
    try:
        yield Path(folder)
    finally:  # a hundred thousand links, for which Python takes fifteen times as long
        subprocess.run(["rm", "-rf", folder], check=True)


def add_kernel(folder: Path, name: str, python: Path, **environment: str) -> None:
    """Make a host's interpreter known to Jupyter under this name.

    At their small values notebooks do not come out as their studies: they say so and go on.
    """
    environment = {"KDCOURSE_CLAIMS": "tell", **environment}
    spec = folder / "kernels" / name / "kernel.json"
    spec.parent.mkdir(parents=True)
    argv = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec.write_text(
        json.dumps({"argv": argv, "display_name": name, "language": "python", "env": environment})
    )
    os.environ["JUPYTER_PATH"] = str(folder)


# Running


class Seconds:
    """A pytest plugin: the seconds of each notebook, its kernel's start included."""

    def __init__(self) -> None:
        self.of: dict[str, float] = defaultdict(float)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.of[Path(report.fspath).stem] += report.duration


def run(notebooks: Iterable[Path], *options: str) -> tuple[int, dict[str, float]]:
    """Run notebooks from top to bottom: pytest's exit code, and each one's seconds."""
    seconds = Seconds()
    lax = ["--nbval-lax", "--nbval-cell-timeout=900", "-p", "no:cacheprovider", "-c", os.devnull]
    code = pytest.main([*lax, *options, *map(str, notebooks)], plugins=[seconds])
    return int(code), dict(seconds.of)


def quick(folder: Path) -> int:
    """All notebooks in hosts of what is installed here; three at a time keep two cores busy."""
    with folder_for_hosts() as hosts:
        wheel = build_wheel(hosts)
        add_kernel(hosts, "host", make_quick_host(hosts / "host", wheel))
        add_kernel(hosts, "grading", make_quick_host(hosts / "grading", wheel, ["grading"]))
        kernels = {path: "grading" if path.stem == GRADING else "host" for path in NOTEBOOKS}
        placed = [place(path, folder, name, SMALL_SECONDS) for path, name in kernels.items()]
        code, seconds = run(placed, "-n", "3", "--dist", "loadfile", "-q")
    show(seconds)
    return code


def whole(folder: Path) -> int:
    """All notebooks in one real host, one after the other; each installs the package anew."""
    python = make_environment(folder / "host", with_pip=True)
    (pinned_torch,) = [line for line in CONSTRAINTS if line.startswith("torch==")]
    pip(python, "install", pinned_torch, "ipykernel")
    redirected = redirect(PROJECT["urls"]["Repository"], make_repository(folder / "repository"))
    add_kernel(folder, "host", python, **redirected)
    own_torch = version_of("torch", python)
    worst, seconds = 0, {}
    for path in sorted(NOTEBOOKS, key=lambda path: path.stem == GRADING):  # its extras come last
        pip(python, "uninstall", "--yes", "kdcourse")
        code, own = run([place(path, folder / "notebooks", "host")], "-q")
        worst, seconds = max(worst, code), seconds | own
        if (now := version_of("torch", python)) != own_torch:
            raise SystemExit(f"{path.name} replaced the host's PyTorch {own_torch} by {now}")
    show(seconds)
    print(f"The host's PyTorch was {own_torch} before and after.")
    return worst


def make_repository(folder: Path) -> Path:
    """A git repository with one commit, the working tree, that carries the release's tag."""
    ignored = shutil.ignore_patterns(".git", ".venv", "_build", "node_modules", ".*_cache")
    shutil.copytree(ROOT, folder, ignore=ignored)
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@example.org", "-C", folder]
    for arguments in (
        ["init", "--quiet"],
        ["add", "."],
        ["commit", "--quiet", "--message", "The working tree"],
        ["tag", f"v{PROJECT['version']}"],
    ):
        subprocess.run([*git, *arguments], check=True)
    return folder


def redirect(address: str, repository: Path) -> dict[str, str]:
    """The environment in which git takes a local repository in place of an address."""
    return {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.{repository.as_uri()}.insteadOf",
        "GIT_CONFIG_VALUE_0": address,
    }


def version_of(name: str, python: Path) -> str:
    """Of a distribution, as another interpreter sees it."""
    program = f"from importlib.metadata import version; print(version({name!r}))"
    done = subprocess.run([python, "-c", program], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def show(seconds: Mapping[str, float]) -> None:
    """Print the notebooks with their seconds, the slowest first."""
    for name, spent in sorted(seconds.items(), key=lambda item: -item[1]):
        print(f"{spent:7.1f} s  {name}")


def main() -> None:
    """Run all notebooks; the exit code is pytest's."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--whole", action="store_true", help="a real host, which needs the network")
    form = whole if parser.parse_args().whole else quick
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        code = form(Path(folder))
    print(f"{time.perf_counter() - start:7.1f} s  in all, the host's making included")
    sys.exit(code)


if __name__ == "__main__":
    main()
