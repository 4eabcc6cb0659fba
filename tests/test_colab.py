"""The notebook host shaped like Colab holds what it should, and no more; see colab.py."""

import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from colab import (
    GRADING,
    NOTEBOOKS,
    PROJECT,
    ROOT,
    SMALL_SECONDS,
    build_wheel,
    closure,
    folder_for_hosts,
    make_quick_host,
    make_repository,
    parameters,
    place,
    redirect,
    small_values,
)
from papermill.iorw import load_notebook_node

FROM_EXTRAS = ["distributed", "jupytext", "papermill", "rich", "transformers"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def host(wheel: Path) -> Iterator[Path]:
    with folder_for_hosts() as hosts:
        yield make_quick_host(hosts / "host", wheel)


def ask(python: Path, program: str) -> str:
    isolated = [python, "-I", "-c", program]  # without the folder the tests run in
    done = subprocess.run(isolated, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def found_by(python: Path, modules: list[str]) -> list[str]:
    program = f"print(*(m for m in {modules} if importlib.util.find_spec(m)))"
    return ask(python, f"import importlib.util; {program}").split()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_notebook_declares_small_values_of_its_own_parameters(path: Path) -> None:
    notebook = load_notebook_node(str(path))
    small = small_values(notebook)
    assert small, f"{path.name} declares no small values: see CONTRIBUTING.md"
    assert small.keys() <= parameters(notebook)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_notebook_leaves_the_other_cores_alone(path: Path) -> None:
    """On a shared machine, small networks on all threads take many times as long."""
    source = "\n".join(cell.source for cell in load_notebook_node(str(path)).cells)
    assert "import torch\n" not in source or "torch.set_num_threads(1)" in source


def test_the_wheel_holds_all_data_of_the_package(wheel: Path) -> None:
    kinds = {".json", ".safetensors", ".html", ".svg"}
    data = [path for path in (ROOT / "kdcourse").rglob("*") if path.suffix in kinds]
    assert any(path.parent.name == "studies" for path in data)
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {path.relative_to(ROOT).as_posix() for path in data} <= names


def test_the_host_imports_the_package_from_the_wheel_and_nothing_of_an_extra(host: Path) -> None:
    assert found_by(Path(sys.executable), FROM_EXTRAS) == FROM_EXTRAS
    assert found_by(host, FROM_EXTRAS) == []
    everything = "kdcourse, kdcourse.data, kdcourse.experiments, kdcourse.plotting, ipykernel"
    folder = ask(host, f"import {everything}; print(kdcourse.__file__)")
    assert Path(folder).is_relative_to(host.parents[1])


def test_the_host_has_every_study(host: Path) -> None:
    program = (
        "from kdcourse.experiments import STUDIES; print(*(p.stem for p in STUDIES.iterdir()))"
    )
    stored = {path.stem for path in (ROOT / "kdcourse" / "studies").glob("*.json")}
    assert set(ask(host, program).split()) == stored


def test_an_extra_is_there_only_where_it_was_asked_for() -> None:
    plain = closure(PROJECT["dependencies"])
    assert {"torch", "numpy", "sympy"} <= plain.keys()
    assert "rich" not in plain
    assert "rich" in closure(PROJECT["optional-dependencies"]["grading"])
    assert "psutil" in closure(["dask[distributed]"])
    assert "psutil" not in closure(["dask"])


def test_a_notebook_is_alone_in_its_folder_and_has_its_small_values(tmp_path: Path) -> None:
    (path,) = [path for path in NOTEBOOKS if path.stem == "introduction"]
    placed = place(path, tmp_path, "host")
    assert list(placed.parent.iterdir()) == [placed]
    notebook = load_notebook_node(str(placed))
    (injected,) = [c for c in notebook.cells if "injected-parameters" in c.metadata["tags"]]
    namespace: dict = {}
    exec(injected.source, namespace)
    assert small_values(notebook).items() <= namespace.items()
    assert notebook.metadata["kernelspec"]["name"] == "host"


def test_a_small_run_that_takes_long_fails_by_processor_time(tmp_path: Path) -> None:
    (path,) = [path for path in NOTEBOOKS if path.stem == "introduction"]
    last = load_notebook_node(str(place(path, tmp_path, "host", SMALL_SECONDS))).cells[-1]
    child = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'sum(range(10**7))'])\n"
    for seconds, fine in ((SMALL_SECONDS, True), (0.001, False)):
        program = child + last.source.replace(f"<= {SMALL_SECONDS}", f"<= {seconds}")
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        assert (done.returncode == 0) == fine
    assert "at its small values it takes" in done.stderr


def test_git_takes_the_working_tree_in_place_of_the_published_repository(tmp_path: Path) -> None:
    address, tag = PROJECT["urls"]["Repository"], f"v{PROJECT['version']}"
    environment = redirect(address, make_repository(tmp_path / "repository"))
    command = ["git", "ls-remote", address, tag]
    listed = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, check=True
    )
    assert listed.stdout.split()[1] == f"refs/tags/{tag}"


def test_the_one_notebook_with_an_extra_is_there() -> None:
    asking = [path.stem for path in NOTEBOOKS if "kdcourse[grading] @" in path.read_text("utf-8")]
    assert asking == [GRADING]
