"""The real exercise, graded: full score for the master, and each slip costs its own part only."""

import csv
import json
import shutil
import subprocess
import sys

import pytest

PARTS = {
    "divergence": 5,
    "scale": 3,
    "gradients": 2,
    "students": 4,
    "accuracies": 2,
    "best": 2,
    "undecided": 2,
}
FACTOR = ("return temperature**2 * ", "return ")
REVERSED = ("(teacher.exp() * (teacher - student))", "(student.exp() * (student - teacher))")
MEAN_OVER_CLASSES = (".sum(dim=-1)", ".mean(dim=-1)")
TEACHER_GETS_GRADIENTS = ("teacher_logits.detach()", "teacher_logits")
HARD_LABELS = (
    "value = loss(student(images[batch]), teacher_logits[batch], temperature)",
    "value = F.cross_entropy(student(images[batch]), teacher_logits[batch].argmax(1))",
)
UNPAIRED = (
    "interval((accuracies[top] - row).tolist())",
    "interval((accuracies[top] - row.flip(0)).tolist())",
)
PACKAGE = (
    "student = F.log_softmax(student_logits / temperature, dim=-1)",
    "import kdcourse; return kdcourse.soft_target_loss(student_logits, teacher_logits)",
)
# Slips (in the master's solution → in the submission) and the parts that they cost.
SLIPS = {
    "factor": ([FACTOR, UNPAIRED], {"scale", "undecided"}),
    "reversed": ([REVERSED, HARD_LABELS], {"divergence", "students"}),
    "mean": ([MEAN_OVER_CLASSES, TEACHER_GETS_GRADIENTS], {"divergence", "gradients"}),
    "package": ([PACKAGE], {"divergence", "scale", "gradients"}),
}


def kdcourse(*arguments):
    command = [sys.executable, "-m", "kdcourse.cli", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """The graded class, by student."""
    assert shutil.which("bwrap"), "these tests need bubblewrap: apt install bubblewrap"
    assigned, out = tmp_path_factory.mktemp("assigned"), tmp_path_factory.mktemp("graded")
    kdcourse("assign", "temperature", "--out", assigned)
    folder = out / "submissions"
    folder.mkdir()
    shutil.copy(assigned / "solution.ipynb", folder / "right.ipynb")
    shutil.copy(assigned / "student.ipynb", folder / "unchanged.ipynb")
    text = (assigned / "solution.ipynb").read_text()
    for name, (edits, _) in SLIPS.items():
        changed = text
        for old, new in edits:
            quoted = [json.dumps(part)[1:-1] for part in (old, new)]
            assert text.count(quoted[0]) == 1, f"the master no longer contains {old!r} once"
            changed = changed.replace(*quoted)
        (folder / f"{name}.ipynb").write_text(changed)
    key = assigned / "key"
    kdcourse("grade", "temperature", folder, "--out", out, "--key", key, "--jobs", 2)
    with (out / "grades.csv").open(newline="") as file:
        return {row["student"]: row for row in csv.DictReader(file)}


def lost(row):
    return {part for part, points in PARTS.items() if float(row[part]) < points}


def test_the_master_earns_everything_and_an_untouched_notebook_nothing(table):
    assert table["right"]["score"] == table["right"]["max_score"] == "20"
    assert table["unchanged"]["score"] == "0"
    assert table["unchanged"]["status"] == table["right"]["status"] == "graded"
    assert {part: float(table["right"][part]) for part in PARTS} == PARTS


@pytest.mark.parametrize("name", SLIPS)
def test_a_slip_costs_the_parts_concerned_and_only_these(table, name):
    assert lost(table[name]) == SLIPS[name][1]
    assert table[name]["status"] == "graded"
