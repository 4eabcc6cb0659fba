"""What of the packages a run may use: the notebook's own imports, what these need, nothing else."""

import ast
import json
import py_compile
import subprocess
import sys
from pathlib import Path

import pytest

from kdcourse import _ROOMS, notebooks, soft_targets
from kdcourse.grading import available

SOURCES = Path(__file__).resolve().parents[1] / "book" / "sources" / "exercises"
EXERCISES = sorted(path.stem for path in SOURCES.glob("*.md"))


# Runs programs, each in a process of its own that has a folder before all others; PyTorch, which
# takes long, is imported once.
SERVER = """
import json, os, sys, traceback
import torch
for line in sys.stdin:
    folder, program = json.loads(line)
    reading, writing = os.pipe()
    if os.fork() == 0:
        os.dup2(writing, 1)
        os.dup2(writing, 2)
        sys.path.insert(0, folder)
        for name in [name for name in sys.modules if name.split(".")[0] in os.listdir(folder)]:
            del sys.modules[name]
        try:
            exec(program, {})
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        print(json.dumps(pipe.read()), flush=True)
    os.wait()
"""


@pytest.fixture(scope="module")
def inside():
    """Runs a program with the copies in place of the package: the last line that it prints."""
    command = [sys.executable, "-P", "-c", SERVER]
    pipe = subprocess.PIPE
    environment = {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment) as server:

        def run(folder, program):
            print(json.dumps([str(folder), program]), file=server.stdin, flush=True)
            return json.loads(server.stdout.readline()).strip().splitlines()[-1]

        yield run
        server.stdin.close()


def working(folder):
    """The functions and classes of each module of the copies that are not switched off."""
    return {
        f"kdcourse.{path.stem}.{node.name}"
        for path in (folder / "kdcourse").glob("*.py")
        if path.stem not in available.ALWAYS
        for node in ast.parse(path.read_text()).body
        if isinstance(node, (ast.FunctionDef, ast.ClassDef))
        and "is switched off" not in ast.unparse(node)
    }


def cell(source, *tags):
    return {"cell_type": "code", "source": source, "metadata": {"tags": list(tags)}}


def notebook(*cells):
    import nbformat

    made = nbformat.v4.new_notebook()
    made.cells = [nbformat.from_dict(each) for each in cells]
    return made


def test_what_locked_cells_import_counts_and_answers_and_keys_do_not():
    made = notebook(
        cell("%matplotlib inline\nfrom kdcourse.claims import interval as spread, claim"),
        cell("# BEGIN SOLUTION\nfrom kdcourse import fit\n# END SOLUTION"),
        cell("from kdcourse import evaluate", "key"),
        cell("import kdcourse.data\nfrom numpy import pi", "probe"),
        cell("!ls ("),
    )
    assert available.imported_names(made) == (
        *("kdcourse.claims.claim", "kdcourse.claims.interval", "kdcourse.data"),
    )


def test_only_what_is_imported_works_with_all_that_it_needs(tmp_path, inside):
    py_compile.compile(soft_targets.__file__)  # compiled code would give the answer away
    available.package_copies(
        tmp_path, available=["kdcourse.soft_target_loss", "kdcourse.models.load_teacher"]
    )
    assert not list(tmp_path.rglob("*.pyc"))
    assert "F.kl_div" in (tmp_path / "kdcourse/soft_targets.py").read_text()
    for call, message in {
        "from kdcourse.models import load_teacher as f; f('digits'); print('works')": "works",
        "import torch, kdcourse; z = torch.zeros(2, 3); "
        "print(float(kdcourse.soft_target_loss(z, z)))": "0.0",
        "from kdcourse.models import small_convnet; small_convnet(3)": "small_convnet is switched",
        "from kdcourse import SoftTargetDistillation; SoftTargetDistillation()": "switched off",
        "from kdcourse import chunked_soft_target_loss as f; f()": "loss is switched off",
        "from kdcourse import pkt_loss": "kdcourse.relations is switched off",
        "from kdcourse import nothing": "cannot import name 'nothing'",
    }.items():
        assert message in inside(tmp_path, call), call


@pytest.mark.parametrize("exercise", EXERCISES)
def test_no_method_of_the_package_is_left_to_a_submission(exercise, tmp_path, inside):
    master = notebooks.read_source(SOURCES / f"{exercise}.md", explicit_ids=True)
    names = available.imported_names(master)
    available.package_copies(tmp_path, available=names)
    left = {name.rpartition(".")[2] for name in working(tmp_path)}
    methods = {name for room in _ROOMS for name in _ROOMS[room]}
    imported = {name.rpartition(".")[2] for name in names}
    assert methods & left <= imported
    allowed = {"HintRegressor", "hard_target_loss", "soft_target_loss"}
    assert methods & imported <= allowed
    imports = "\n".join(f"from {n.rpartition('.')[0]} import {n.rpartition('.')[2]}" for n in names)
    assert inside(tmp_path, f"{imports}\nprint('imported')") == "imported"


def test_solutions_and_studies_are_not_in_the_copy(tmp_path):
    available.package_copies(tmp_path)
    everything = "".join(
        path.read_text(encoding="utf-8", errors="replace") for path in tmp_path.rglob("*.*")
    )
    assert "BEGIN SOLUTION\n    student = F.log_softmax" not in everything
    assert {path.name for path in (tmp_path / "kdcourse").iterdir() if path.is_dir()} <= {
        *("grading", "pictures", "weights"),
    }
    assert not (tmp_path / "kdcourse" / "ledger.json").exists()


def test_what_a_master_blocks_raises_in_any_package_even_if_it_is_imported(tmp_path, inside):
    names = ["kdcourse.soft_targets.soft_target_loss", "json.decoder.JSONDecoder"]
    available.package_copies(tmp_path, available=names[:1], blocked=names)
    text = (tmp_path / "kdcourse" / "soft_targets.py").read_text()
    assert "F.kl_div" not in text
    assert "write it yourself" in inside(
        tmp_path, "from kdcourse.soft_targets import soft_target_loss as f; f()"
    )
    assert "JSONDecoder is switched off" in inside(tmp_path, "import json; json.JSONDecoder()")
    assert json.JSONDecoder().decode("1") == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("kdcourse.soft_targets.nothing", "no function or class named"),
        ("no_such_package.module.f", "module.function of a package"),
    ],
)
def test_a_blocked_name_must_exist(tmp_path, name, message):
    with pytest.raises(ValueError, match=message):
        available.package_copies(tmp_path, available=["kdcourse.soft_targets"], blocked=[name])


@pytest.mark.parametrize("room", ["detection", "features", "self_distillation", "soft_targets"])
def test_a_whole_room_can_be_made_available(room, tmp_path, inside):
    """What its names need is found, in whatever module that is: its own examples run."""
    available.package_copies(tmp_path, available=[f"kdcourse.{room}"])
    examples = (
        f"import doctest, kdcourse.{room} as room; "
        "flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS; "
        "print(doctest.testmod(room, optionflags=flags))"
    )
    assert "failed=0" in inside(tmp_path, examples)
