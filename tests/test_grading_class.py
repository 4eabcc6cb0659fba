"""What instructors and learners do: mend a check, hand back grades, look for copies, check."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import psutil
import pytest
from axe_playwright_python.sync_playwright import Axe
from classroom import call
from playwright.sync_api import sync_playwright
from programs import launch_chromium

from kdcourse import notebooks
from kdcourse.grading import (
    exports,
    gradebook,
    key,
    notes,
    public,
    report,
    similar,
    submission,
    submit,
)
from kdcourse.grading.tables import read_rows

MASTER = Path(__file__).parent / "grading" / "double.md"
TEMPERATURE = MASTER.parents[2] / "book" / "sources" / "exercises" / "temperature.md"
RIGHT_DOUBLE = "def double(x):\n    return [2 * value for value in x]\n"
RIGHT_FIT = 'def fit(x, y):\n    return {"slope": (x * y).sum() / (x * x).sum()}\n'
SHIFTED_FIT = 'def fit(x, y):\n    return {"slope": (x * y).sum() / (x * x).sum() + 0.4}\n'


def kdcourse(*arguments, code=0):
    """Call the command line in this process; returns what it printed."""
    ended, printed = call(*arguments)
    assert ended == code, printed
    return printed


def table(out):
    with (out / "grades.csv").open(newline="") as file:
        return {row["student"]: row for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def assigned(warm, tmp_path_factory):
    """A copy of the small exercise, handed out."""
    assert shutil.which("bwrap"), "these tests need bubblewrap: apt install bubblewrap"
    folder = tmp_path_factory.mktemp("assigned")
    shutil.copy(MASTER, folder / "double.md")
    kdcourse("assign", folder / "double.md", "--out", folder)
    return folder


@pytest.fixture(scope="module")
def answered(assigned):
    """The text of a student's notebook with the given answers: `answered(double=..., fit=...)`."""

    def made(**answers):
        notebook = json.loads((assigned / "student.ipynb").read_text())
        for cell in notebook["cells"]:
            name = cell.get("id", "").removeprefix("answer-")
            cell["source"] = answers.get(name, cell["source"])
        return json.dumps(notebook)

    return made


@pytest.fixture(scope="module")
def submissions(answered, tmp_path_factory):
    """Three students: everything right, a slope that is a little off, and a broken file."""
    folder = tmp_path_factory.mktemp("submissions")
    (folder / "anna.ipynb").write_text(answered(double=RIGHT_DOUBLE, fit=RIGHT_FIT))
    (folder / "ben.ipynb").write_text(answered(double=RIGHT_DOUBLE, fit=SHIFTED_FIT))
    (folder / "cleo.ipynb").write_text("{")
    return folder


@pytest.fixture(scope="module")
def graded(assigned, submissions, tmp_path_factory):
    out = tmp_path_factory.mktemp("graded")
    kdcourse("grade", assigned / "double.md", submissions, "--out", out, "--key", assigned / "key")
    return out


# Mending a check


@pytest.fixture
def copied(assigned, graded, tmp_path):
    """The exercise and its graded class, to change as one likes."""
    shutil.copytree(assigned, tmp_path / "exercise")
    shutil.copytree(graded, tmp_path / "graded")
    return tmp_path


def mend(folder, old, new):
    """Change the master and bring its key up to date."""
    master = folder / "exercise" / "double.md"
    text = master.read_text()
    assert old in text
    master.write_text(text.replace(old, new))
    return kdcourse("assign", master, "--out", master.parent, "--update")


def grade_again(folder, submissions):
    exercise = folder / "exercise"
    return kdcourse(
        *("grade", exercise / "double.md", submissions),
        *("--out", folder / "graded", "--key", exercise / "key"),
    )


def test_a_mended_check_judges_the_stored_answers_and_runs_nothing(
    copied, submissions, monkeypatch
):
    assert table(copied / "graded")["ben"]["fit"] == "0"
    seeds = json.loads((copied / "exercise" / "key" / "key.json").read_text())
    mend(copied, "float(error < 0.2)", "float(error < 0.9)")
    assert json.loads((copied / "exercise" / "key" / "key.json").read_text()) == seeds
    monkeypatch.setattr("kdcourse.grading.grade.executed_for", None)  # a run would raise
    said = grade_again(copied, submissions)
    assert "0 results kept, 2 to judge again from stored answers, 1 to grade" in said
    rows = table(copied / "graded")
    assert [row["fit"] for row in rows.values()] == ["2", "2", "0"]
    assert [row["double"] for row in rows.values()] == ["4", "4", "0"]
    assert "3 results kept, 0 to judge again" in grade_again(copied, submissions)


def test_judging_again_gives_what_running_again_gives(copied, submissions):
    mend(copied, "points: 4, answers: [small, large]", "points: 8, answers: [small]")
    assert "2 to judge again" in grade_again(copied, submissions)
    judged = (copied / "graded" / "grades.csv").read_bytes()
    assert table(copied / "graded")["anna"]["score"] == "10"
    shutil.rmtree(copied / "graded" / "results")
    assert "0 to judge again from stored answers, 3 to grade" in grade_again(copied, submissions)
    assert (copied / "graded" / "grades.csv").read_bytes() == judged


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("generator.normal(size=100) * 1e6", "generator.normal(size=100) * 2e6"),
        ('answer("small", double(', 'answer("small", double(2 * '),
        ("repeats = 1", "repeats = 2"),
        ("parameters: {repeats: 3}", "parameters: {repeats: 4}"),
        ("got == [4]", "got == [2 + 2]"),
    ],
)
def test_what_changes_a_run_is_run_again(copied, submissions, old, new):
    mend(copied, old, new)
    assert "0 to judge again from stored answers, 3 to grade" in grade_again(copied, submissions)


def test_stored_answers_that_were_touched_are_not_believed(copied, submissions):
    mend(copied, "float(error < 0.2)", "float(error < 0.9)")
    anna, ben = sorted((copied / "graded" / "answers").iterdir())
    shutil.copy(anna, ben)
    assert "1 to judge again from stored answers, 2 to grade" in grade_again(copied, submissions)


def test_a_changed_master_without_an_update_is_noticed(copied, submissions):
    master = copied / "exercise" / "double.md"
    assert "has changed" not in grade_again(copied, submissions)
    master.write_text(master.read_text().replace("Look at the sign", "Look at it"))
    assert "double.md has changed since" in grade_again(copied, submissions)


def test_an_update_that_was_stopped_between_two_steps_loses_no_key(copied):
    exercise = copied / "exercise"
    before = (exercise / "key" / "key.json").read_bytes()
    (exercise / "key").rename(exercise / ".key.previous")
    kdcourse("assign", exercise / "double.md", "--out", exercise, "--update")
    assert (exercise / "key" / "key.json").read_bytes() == before
    assert not (exercise / ".key.previous").exists()


@pytest.mark.parametrize("name", ["final", "score", "comment"])
def test_no_part_is_called_like_a_column_of_the_grades(name, tmp_path):
    text = MASTER.read_text().replace("part: fit", f"part: {name}")
    (tmp_path / "double.md").write_text(text)
    master = notebooks.read_source(tmp_path / "double.md", explicit_ids=True)
    with pytest.raises(ValueError, match="needs a plain part"):
        key.declared(master, "double")


def test_an_update_needs_the_key_of_the_same_exercise(copied):
    exercise = copied / "exercise"
    (exercise / "student.ipynb").unlink()
    kdcourse("assign", exercise / "double.md", "--out", exercise, code=2)
    assert not (exercise / "student.ipynb").exists()  # what is handed out fits the key
    said = kdcourse("assign", MASTER, "--out", copied / "new", "--update", code=2)
    assert "not an answer key" in said
    shutil.copy(exercise / "double.md", copied / "other.md")
    said = kdcourse("assign", copied / "other.md", "--out", exercise, "--update", code=2)
    assert "is the key of 'double', not 'other'" in said


# Lateness, missing files, points and comments by a person


@pytest.fixture
def again(assigned, submissions, graded, tmp_path):
    """Grade the same class with other terms: every result is kept, nothing runs."""
    shutil.copytree(graded, tmp_path / "graded")
    roster = tmp_path / "roster.csv"
    roster.write_text("student\nanna\nben\ncleo\ndora\n")

    def call(*options, code=0):
        return kdcourse(
            *("grade", assigned / "double.md", submissions, "--roster", roster),
            *("--out", tmp_path / "graded", "--key", assigned / "key", *options),
            code=code,
        )

    call.out = tmp_path / "graded"
    return call


def written(folder, text):
    path = folder / "table.csv"
    path.write_text(text)
    return path


TIMES = """student,submitted,deadline
anna,2026-03-01T18:00+00:00,
ben,2026-03-03T19:00+00:00,2026-03-02T18:00+00:00
cleo,2026-03-20T18:00+00:00,
"""


def test_a_day_late_costs_its_share_of_the_possible_points(again, tmp_path):
    times = written(tmp_path, TIMES)
    again("--times", times, "--deadline", "2026-03-01T17:59+00:00", "--late-per-day", 25)
    rows = table(again.out)
    assert list(rows["anna"]) == [
        *("student", "submission", "status", "score", "max_score", "double", "fit"),
        *("submitted", "days_late", "penalty", "final"),
    ]
    got = {
        name: tuple(row[column] for column in ("score", "days_late", "penalty", "final"))
        for name, row in rows.items()
    }
    assert got == {
        "anna": ("6", "1", "1.5", "4.5"),
        "ben": ("4", "2", "3", "1"),
        "cleo": ("0", "20", "0", "0"),
        "dora": ("0", "0", "0", "0"),
    }
    assert rows["ben"]["submitted"].startswith("2026-03-03 19:00:00")
    page = next((again.out / "feedback").glob("ben-*")).read_text()
    assert "handed in 2 days late, at 2026-03-03 19:00:00" in page
    assert "1 of 6 points" in " ".join(page.split())


def test_the_penalty_has_a_cap(again, tmp_path):
    times = written(tmp_path, TIMES.replace("03-01", "02-01"))
    deadline = ("--deadline", "2026-01-01T00:00+00:00")
    again("--times", times, *deadline, "--late-per-day", 25, "--late-cap", 50)
    assert table(again.out)["anna"]["final"] == "3"


def test_without_a_table_of_times_the_files_own_times_count(again, submissions):
    at = 1_772_400_000
    for name in ("anna", "ben", "cleo"):
        os.utime(submissions / f"{name}.ipynb", (at, at))
    seconds = {"same": 0, "day": -24 * 3600, "moment": -24 * 3600 - 1}
    days = {}
    for name, shift in seconds.items():
        again("--deadline", datetime.fromtimestamp(at + shift).isoformat())
        days[name] = table(again.out)["anna"]["days_late"]
    assert days == {"same": "0", "day": "1", "moment": "2"}


def test_terms_come_on_top_and_leave_no_trace(again, tmp_path):
    again()
    before = {path: path.read_bytes() for path in sorted(again.out.rglob("*.*"))}
    manual = written(tmp_path, "student,part,points,comment\nanna,,1,Nice\n")
    again("--manual", manual, "--deadline", "2020-01-01", "--missing", "blank")
    assert (again.out / "grades.csv").read_bytes() != before[again.out / "grades.csv"]
    for path in (again.out / "results").iterdir():
        assert path.read_bytes() == before[path]
    again()
    assert {path: path.read_bytes() for path in sorted(again.out.rglob("*.*"))} == before


MANUAL = """student;part;points;comment
anna;double;1.5;Only positive numbers; see above
ben;fit;2;<b>Close</b> enough
ben;;0.5;A clear plot
cleo;;;Please hand in the notebook itself
"""


def test_points_and_comments_by_a_person_are_merged(again, tmp_path):
    again("--manual", written(tmp_path, MANUAL.replace("numbers; see", "numbers, see")))
    rows = table(again.out)
    assert list(rows["anna"])[-3:] == ["manual", "final", "comment"]
    got = {name: (row["double"], row["manual"], row["final"]) for name, row in rows.items()}
    assert got == {
        "anna": ("4", "-2.5", "3.5"),
        "ben": ("4", "2.5", "6.5"),
        "cleo": ("0", "0", "0"),
        "dora": ("0", "0", "0"),
    }
    assert rows["ben"]["comment"] == "A slope that predicts: <b>Close</b> enough; A clear plot"
    page = next((again.out / "feedback").glob("ben-*")).read_text()
    assert "&lt;b&gt;Close&lt;/b&gt; enough" in page and "6.5 of 6 points" in " ".join(page.split())
    assert "notebook itself" in next((again.out / "feedback").glob("cleo-*")).read_text()


def test_late_students_keep_what_a_person_adds_to_the_whole(again, tmp_path):
    manual = written(tmp_path, "student,part,points\nben,fit,1\nben,,0.5\ncleo,,2\n")
    again("--manual", manual, "--deadline", "2020-01-01", "--late-per-day", 100)
    rows = table(again.out)
    assert [rows[name]["final"] for name in ("anna", "ben", "cleo")] == ["0", "0.5", "2"]


@pytest.mark.parametrize(
    ("option", "text", "problems"),
    [
        ("--manual", "student,part\nanna,fit\n", ["needs the columns student, part, points"]),
        (
            "--manual",
            "student,part,points\nemil,fit,1\nanna,fitt,1\nben,fit,3\nben,double,\nben,double,x\n",
            [
                "line 2: no student 'emil'",
                "line 3: no part 'fitt'; the parts are double, fit",
                "line 4: fit has 0 to 2 points, got 3",
                "line 6: points are a number like 2.5, got 'x'",
                "nothing was changed",
            ],
        ),
        (
            "--manual",
            "student,part,points\nanna,fit,1\nanna,fit,2\n",
            ["line 3: 'anna' has a row for 'fit' already"],
        ),
        ("--manual", "student,part,points\nanna,fit,nan\n", ["a number like 2.5, got 'nan'"]),
        (
            "--times",
            "student,submitted\nanna,2026-03-01\nemil,2026-03-01\n",
            ["line 2: no deadline", "line 3: no student 'emil'"],
        ),
        (
            "--times",
            "student,submitted,deadline\nanna,yesterday,2026-03-01\n",
            ["line 2: a time looks like 2026-03-02T18:00, got 'yesterday'"],
        ),
        (
            "--times",
            "student,submitted,deadline\nanna,2026-03-01,2026-03-01\n",
            ["no time for 'ben'", "no time for 'cleo'"],
        ),
    ],
)
def test_a_table_that_does_not_fit_is_one_error_and_changes_nothing(
    again, tmp_path, option, text, problems
):
    before = (again.out / "grades.csv").read_bytes()
    said = again(option, written(tmp_path, text), code=2)
    for problem in problems:
        assert problem in said
    assert (again.out / "grades.csv").read_bytes() == before


def test_a_long_list_of_problems_is_cut(tmp_path):
    lines = "".join(f"unknown{number},,1\n" for number in range(40))
    exercise = SimpleNamespace(parts=())
    with pytest.raises(ValueError, match="and 30 more") as raised:
        gradebook.read_manual(written(tmp_path, f"student,part,points\n{lines}"), [], exercise)
    assert len(str(raised.value).splitlines()) == 12


def test_a_table_in_another_encoding_is_refused_in_words(tmp_path):
    (tmp_path / "table.csv").write_bytes("student,part,points\nJörg,,1\n".encode("latin-1"))
    with pytest.raises(ValueError, match="not UTF-8 text: save it as CSV in UTF-8"):
        read_rows(tmp_path / "table.csv", ["student"])


def test_a_comment_is_never_cut(tmp_path):
    path = written(tmp_path, 'student,points,comment\nanna,1,"good, and\nshort"\n')
    rows = read_rows(path, ["student"], also=["comment"])
    assert rows == [(3, {"student": "anna", "comment": "good, and\nshort"})]
    path = written(tmp_path, "student,points,comment\nanna,1,good, but short\n")
    with pytest.raises(ValueError, match="line 2 has more cells than the first line: put text"):
        read_rows(path, ["student"])


def test_names_are_the_same_in_every_unicode_form(tmp_path):
    path = written(tmp_path, "\ufeffstudent,note\n e\u0301va ,x\n\n,,\n")
    assert read_rows(path, ["student"], also=["more"]) == [(2, {"student": "éva", "more": ""})]


def test_a_missing_file_may_mean_no_grade(again):
    again("--missing", "blank")
    row = table(again.out)["dora"]
    assert (row["status"], row["score"], row["final"]) == ("missing", "0", "")
    assert "\ndora,,\n" not in (again.out / "moodle.csv").read_text()
    assert "\ndora,,missing" in (again.out / "moodle.csv").read_text()
    assert (again.out / "canvas.csv").read_text().splitlines()[-1] == "dora,,,dora,,"
    assert "No grade" in next((again.out / "feedback").glob("dora-*")).read_text()


def test_who_is_not_in_the_roster_is_named_and_graded(again, tmp_path):
    (tmp_path / "roster.csv").write_text("name,student\nAnna,anna\nBen,\nCleo,cleo\n")
    assert "not in the roster, but graded: ben" in again()
    assert list(table(again.out)) == ["anna", "ben", "cleo"]
    (tmp_path / "roster.csv").write_text("\n\n")
    assert "names no students" in again(code=2)


# Other systems


def test_the_exports_hold_the_final_grade(again, tmp_path):
    manual = written(tmp_path, "student,part,points,comment\nben,fit,1,Half\n")
    times = tmp_path / "times.csv"
    times.write_text(TIMES)
    deadline = ("--deadline", "2026-03-02T18:00+00:00", "--late-per-day", 5)
    again("--manual", manual, "--times", times, *deadline)
    assert (again.out / "canvas.csv").read_text().splitlines() == [
        "Student,ID,SIS User ID,SIS Login ID,Section,double",
        "Points Possible,,,,,6",
        "anna,,,anna,,6",
        "ben,,,ben,,4.4",
        "cleo,,,cleo,,0",
        "dora,,,dora,,0",
    ]
    with (again.out / "moodle.csv").open(newline="") as file:
        lines = list(csv.reader(file))
    assert lines[0] == ["username", "double", "double (feedback)"]
    assert lines[2] == [
        "ben",
        "4.4",
        "Double every value: 4 of 4; A slope that predicts: 0 of 2; "
        "handed in 2 days late: -0.6; from your instructor: +1 A slope that predicts: Half",
    ]
    content = json.loads(next((again.out / "gradescope").glob("ben-*")).read_text())
    assert content["score"] == 4.4
    assert sum(test["score"] for test in content["tests"]) == pytest.approx(4.4)
    assert [test.get("max_score") for test in content["tests"]] == [4, 2, None, None]
    assert [test.get("status") for test in content["tests"][:2]] == ["passed", "failed"]


def test_exports_of_nobody_and_of_odd_names():
    part = {"title": "One", "message": "right", "points": 2, "score": 1.5, "part": "one"}
    result = {"student": "a,1", "score": 1.5, "max_score": 2, "parts": [part], "status": "error"}
    result["note"] = "a cell raised"
    grade = gradebook.grade_of(result, gradebook.AS_EARNED)
    assert exports.canvas([(result, grade)], "x").splitlines()[-1] == '"a,1",,,"a,1",,1.5'
    assert exports.moodle([(result, grade)], "x").splitlines()[-1].startswith('"a,1",1.5,error')
    assert json.loads(exports.gradescope(result, grade))["output"] == "error: a cell raised"
    assert exports.canvas([], "x").count("\n") == 2
    assert exports.moodle([], "x").count("\n") == 1


# Submissions that look alike

PARTS_OF_AN_ANSWER = {
    "answer-loss": """\
def soft_target_loss(student_logits, teacher_logits, temperature):
    log_p = F.log_softmax(student_logits / temperature, dim=1)
    q = F.softmax(teacher_logits.detach() / temperature, dim=1)
    return F.kl_div(log_p, q, reduction="batchmean") * temperature**2
""",
    "answer-sweep": """\
def sweep(train, validation, *, temperatures, seeds, loss, epochs):
    images, teacher_logits = train
    accs = torch.empty(len(temperatures), len(seeds))
    students = {}
    for i, T in enumerate(temperatures):
        for j, s in enumerate(seeds):
            net = make_student(s)
            net = distil(
                net, images, teacher_logits, temperature=T, loss=loss, epochs=epochs, seed=s
            )
            students[(T, s)] = net
            accs[i, j] = accuracy(net, validation[0], validation[1])
    return accs, students
""",
    "answer-best": """\
def best_temperature(temperatures, accuracies):
    acc = torch.as_tensor(accuracies)
    b = acc.mean(1).argmax().item()
    undecided = []
    for i in range(len(temperatures)):
        iv = interval((acc[b] - acc[i]).tolist())
        if iv.low <= 0 and iv.high >= 0:
            undecided.append(temperatures[i])
    return temperatures[b], undecided
""",
}
ANOTHER_ANSWER = {
    "answer-loss": """\
def soft_target_loss(student_logits, teacher_logits, temperature):
    with torch.no_grad():
        wanted = torch.log_softmax(teacher_logits / temperature, -1)
    got = torch.log_softmax(student_logits / temperature, -1)
    divergence = torch.sum(torch.exp(wanted) * (wanted - got), dim=-1)
    return divergence.mean() * temperature * temperature
""",
    "answer-sweep": """\
def sweep(train, validation, *, temperatures, seeds, loss, epochs):
    students = {
        (t, s): distil(make_student(s), *train, temperature=t, loss=loss, epochs=epochs, seed=s)
        for t in temperatures
        for s in seeds
    }
    rows = [[accuracy(students[t, s], *validation) for s in seeds] for t in temperatures]
    return torch.tensor(rows), students
""",
    "answer-best": """\
def best_temperature(temperatures, accuracies):
    averages = [float(torch.as_tensor(row).mean()) for row in accuracies]
    top = averages.index(max(averages))
    open_ones = []
    for t, row in zip(temperatures, accuracies):
        low, high = interval([float(a) - float(b) for a, b in zip(accuracies[top], row)])[1:3]
        if low > 0 or high < 0:
            continue
        open_ones.append(t)
    return temperatures[top], open_ones
""",
}


@pytest.fixture
def essays(tmp_path):
    """A folder of submissions to the real exercise, and a function that adds one."""
    master = notebooks.read_source(TEMPERATURE, explicit_ids=True)
    blank = notebooks.student_version(master)

    def add(name, answers, change=lambda text: text):
        made = json.loads(json.dumps(blank))
        for cell in made["cells"]:
            cell["source"] = change(answers.get(cell["id"], cell["source"]))
        (tmp_path / f"{name}.ipynb").write_text(json.dumps(made))

    add("blank", {})
    add("anna", PARTS_OF_AN_ANSWER)
    add("ben", ANOTHER_ANSWER)
    (tmp_path / "broken.ipynb").write_text("{")
    add.master, add.folder = master, tmp_path
    return add


def alike(essays, **options):
    found = submission.find_submissions(essays.folder)
    return {
        (pair.first, pair.second): pair.similarity
        for pair in similar.find_similar(found, essays.master, **options)
    }


def disguised(text):
    """Other names, blanks and quotes; comments and docstrings."""
    for old, new in {"log_p": "mine", "accs": "results", "net": "pupil", "iv": "found"}.items():
        text = re.sub(rf"\b{old}\b", new, text)
    text = text.replace('"', "'").replace(" / ", "/").replace("\n    return", "\n\n    return")
    return re.sub(r"(def .*:)\n", r"\1\n    '''My own work.'''  # really\n", text)


def test_independent_answers_are_not_flagged(essays):
    assert alike(essays) == {}
    everything = alike(essays, threshold=0)
    assert 0 < everything["anna", "ben"] < 0.4


def test_a_disguised_copy_is_flagged(essays):
    essays("copy", PARTS_OF_AN_ANSWER, disguised)
    assert alike(essays) == {("anna", "copy"): 1.0}


def test_a_copy_that_was_added_to_is_still_flagged(essays):
    added = "def unused(n):\n    return [k * n - n**2 for k in range(n) if k % 3 == 1]\n"
    essays("copy", {**PARTS_OF_AN_ANSWER, "plot": added * 4 + "print('done')\n" * 20}, disguised)
    assert alike(essays)["anna", "copy"] == 1.0


def test_the_published_solution_is_recognised(essays):
    solved = notebooks.solution_version(essays.master)
    essays("pasted", {cell.id: cell.source for cell in solved.cells}, disguised)
    assert alike(essays) == {("pasted", similar.SOLUTION): 1.0}


def test_what_was_handed_out_makes_nobody_alike(essays):
    essays("blank-too", {})
    assert ("blank", "blank-too") not in alike(essays, threshold=0)


def test_the_command_shows_pairs_and_writes_them(essays, tmp_path):
    essays("[bold]copy", PARTS_OF_AN_ANSWER, disguised)
    table = tmp_path / "pairs.csv"
    said = kdcourse("similar", "temperature", essays.folder, "--out", table)
    assert "[bold]copy" in said and "100 %" in said
    assert "1 pairs of 5 submissions are at least 60 % alike" in said
    lines = table.read_text().splitlines()
    assert lines[0] == "first,second,similarity,shared"
    assert lines[1].startswith("[bold]copy,anna,1.000,")


# The class at a glance


def outcome(student, *scores, status="graded", note=""):
    points = (4, 2)
    parts = [
        {"part": f"p{number}", "title": f"<i>Part {number}</i>", "points": most, "score": score}
        for number, (most, score) in enumerate(zip(points, scores, strict=True))
    ]
    result = {"student": student, "status": status, "note": note, "parts": parts}
    seconds = {} if status == "missing" else {"total": 2.0}
    return {**result, "score": sum(scores), "max_score": 6, "seconds": seconds}


CLASS = [
    outcome("anna", 4, 2),
    outcome("ben", 4, 1),
    outcome("<script>alert(1)</script>", 1, 0, status="error", note="</td><img src=x>"),
    outcome("dora", 0, 0, status="missing", note="nothing was handed in"),
]


def test_a_summary_counts_who_handed_in():
    summary = report.summarize(CLASS, {})
    assert (summary.students, summary.handed_in) == (4, 3)
    assert summary.bins == [0, 1, 0, 0, 0, 0, 0, 0, 1, 1]
    assert [(p.full, p.some, p.none) for p in summary.parts] == [(2, 1, 0), (1, 1, 1)]
    assert [p.mean for p in summary.parts] == [75, 50]
    assert summary.headline == "4 students, 3 handed in; mean score 67 %, median 83 %"
    assert [name for name, *_ in summary.noted] == ["<script>alert(1)</script>", "dora"]


def test_a_summary_takes_final_grades_where_there_are_some():
    summary = report.summarize(CLASS, {"anna": 7.5, "ben": 2.0})
    assert summary.headline.endswith("mean grade 58 %, median 33 %")
    assert summary.bins[-1] == 1  # a bonus above full marks
    assert [part.mean for part in summary.parts] == [75, 50]


def test_a_class_in_which_nobody_handed_in(tmp_path):
    summary = report.summarize(CLASS[-1:], {})
    assert summary.headline == "1 student, 0 handed in"
    report.write_report(summary, tmp_path, "x")
    report.print_report(summary)


def test_the_report_is_a_page_and_a_picture(again):
    again("--missing", "blank")
    said = kdcourse("report", again.out)
    assert "4 students, 3 handed in; mean grade 56 %" in said
    assert "report.html" in said
    page = (again.out / "report.html").read_text()
    assert (again.out / "report.svg").read_text().strip() in page
    ElementTree.parse(again.out / "report.svg")


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        chromium = launch_chromium(playwright)
        yield chromium
        chromium.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_of_the_class_in_a_browser(browser, tmp_path, scheme):
    path = report.write_report(report.summarize(CLASS, {}), tmp_path, "<b>double</b>")
    page = browser.new_context(
        viewport={"width": 375, "height": 700}, color_scheme=scheme
    ).new_page()
    seen = []
    page.on("request", lambda request: seen.append(request.url))
    page.on("dialog", lambda dialog: seen.append("a script ran"))
    page.on("console", lambda message: seen.append(message.text))
    page.goto(path.as_uri())
    assert seen == [path.as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    picture = page.locator("svg[role=img]")
    assert "0, 1, 0, 0, 0, 0, 0, 0, 1, 1" in picture.get_attribute("aria-label")
    assert "<i>Part 1</i>" in page.locator("th[scope=row]").nth(1).inner_text()
    assert page.locator("script, img, i, b").count() == 0
    found = Axe().run(page, options={"preload": False}).response["violations"]
    assert [rule["help"] for rule in found] == []
    page.context.close()


# What learners get


def checked(*cells, seconds=60):
    """The lines of `check` for a notebook of these cells; a heading begins with `#`."""
    types = {True: "markdown", False: "code"}
    made = [{"cell_type": types[text.startswith("# ")], "source": text} for text in cells]
    lines = public.run_checks(json.dumps({"nbformat": 4, "cells": made}).encode(), seconds=seconds)
    return "\n".join(lines).splitlines()


CHECK = "from kdcourse.grading.selfcheck import check"


def test_a_failed_check_says_what_was_expected_and_where_to_look():
    lines = checked(
        CHECK,
        "# Part 1: twice",
        "def double(x):\n    y = x\n    return x * 3",
        "with check('Twice two'):\n    assert double(2) == 4, f'expected 4, got {double(2)}'",
        "# Part 2: half",
        "def half(x):\n    return x / nothing",
        "with check('Half of two'):\n    half(2)",
        "with check('Half of four'):\n    raise NotImplementedError",
        "with check('One'):\n    assert True",
    )
    assert lines == [
        "✗ Twice two: expected 4, got 6",
        "  Look under “Part 1: twice”, at the cell ‘with check('Twice two'):’",
        "✗ Half of two: NameError: name 'nothing' is not defined, in the line: return x / nothing "
        "(in the cell ‘def half(x):’)",
        "  Look under “Part 2: half”, at the cell ‘with check('Half of two'):’",
        "– Half of four: not answered yet",
        "✓ One",
        "",
        "1 of 4 pass, 2 fail, 1 not answered yet. "
        "These are examples: grading asks the same with other inputs.",
    ]


def test_what_cells_raise_is_told_with_its_line_and_stops_nothing():
    lines = checked(
        "# Title",
        "def f(x):\n    y = x\n    return y / 0",
        "f(1)",
        "print(undefined)",
        "def g(:\n    pass",
        "raise NotImplementedError",
        "input()",
        "import sys; sys.exit(1)",
        f"{CHECK}\nwith check('The end'):\n    pass",
    )
    assert "  Look under “Title”, at the cell ‘def f(x):’, line 3: return y / 0" in lines
    assert (
        "  Is it defined further up? The cells run from top to bottom, in a fresh process." in lines
    )
    assert "✗ SyntaxError: invalid syntax" in lines
    assert "– A cell is not answered yet" in lines
    assert "  Nobody is there to answer input(): grading runs without a keyboard." in lines
    assert lines[-3] == "✓ The end"
    assert lines[-1].startswith("1 of 7 pass, 5 fail, 1 not answered yet.")


# A notebook's cells, then what is said of the last one, and where to look: cell and line.
PLACES = {
    "a word too many": (
        ["import math", "x = 1\ny = 2 3"],
        "✗ SyntaxError: invalid syntax",
        ("x = 1", 2, "y = 2 3"),
    ),
    "empty lines above": (
        ["\n\nx = 1\ny = = 2"],
        "✗ SyntaxError: invalid syntax",
        ("x = 1", 4, "y = = 2"),
    ),
    "a bracket that is not closed": (
        ["x = 1\ny = max(1,\n    2\nz = 3"],
        "✗ SyntaxError: '(' was never closed",
        ("x = 1", 2, "y = max(1,"),
    ),
    "a bracket that is not closed at the end": (
        ["x = 1\ny = max(1,\n    2"],
        "✗ SyntaxError: '(' was never closed",
        ("x = 1", 2, "y = max(1,"),
    ),
    "a missing indent": (
        ["for i in range(3):\nprint(i)"],
        "✗ IndentationError: expected an indented block after 'for' statement on line 1",
        ("for i in range(3):", 2, "print(i)"),
    ),
    "a string that is not closed": (
        ["x = 1\ny = 'two"],
        "✗ SyntaxError: unterminated string literal (detected at line 2)",
        ("x = 1", 2, "y = 'two"),
    ),
    "a syntax error of something else": (
        ["x = 1\nexec('y = = 2')"],
        "✗ SyntaxError: invalid syntax (<string>, line 1)",
        ("x = 1", 2, "exec('y = = 2')"),
    ),
    "a module that does not compile": (
        [
            "open('odd_one.py', 'w').write('y = = 2')",
            "import sys; sys.path.insert(0, '.')",
            "x = 1\nimport odd_one",
        ],
        "✗ SyntaxError: invalid syntax (odd_one.py, line 1)",
        ("x = 1", 2, "import odd_one"),
    ),
    "two cells that are the same": (
        ["def f(x):\n    return x", "f(1 / 1)", "def f(x):\n    return 1 / x", "f(0)", "f(1 / 1)"],
        "✗ ZeroDivisionError: division by zero",
        ("def f(x):", 2, "return 1 / x"),
    ),
    "a timed cell": (
        ["%%time\nx = 1\nx / 0"],
        "✗ ZeroDivisionError: division by zero",
        ("%%time", 3, "x / 0"),
    ),
    "a timed cell that does not compile": (
        ["%%time\nx = 1\nx = = 2"],
        "✗ SyntaxError: invalid syntax",
        ("%%time", 3, "x = = 2"),
    ),
    "a function from a timed cell": (
        ["%%time\ndef f(x):\n    return x / 0\n", "f(1)"],
        "✗ ZeroDivisionError: division by zero",
        ("%%time", 3, "return x / 0"),
    ),
    "below magics": (
        ["%load_ext autoreload\n!echo \\\n  two lines\nfiles = !ls\n1 / 0"],
        "✗ ZeroDivisionError: division by zero",
        ("%load_ext autoreload", 5, "1 / 0"),
    ),
    "a magic that does not exist": (
        ["x = 1\n%nothing 3"],
        "✗ UsageError: Line magic function `%nothing` not found.",
        ("x = 1", 2, "%nothing 3"),
    ),
    "an end by sys.exit": (
        ["import sys\nsys.exit('enough')"],
        "✗ SystemExit: enough",
        ("import sys", 2, "sys.exit('enough')"),
    ),
    "an end by exit": (["x = 1\nexit()"], "✗ SystemExit", ("x = 1", 2, "exit()")),
    "an interruption": (
        ["x = 1\nraise KeyboardInterrupt"],
        "✗ KeyboardInterrupt",
        ("x = 1", 2, "raise KeyboardInterrupt"),
    ),
    "a group": (
        ["x = [ValueError('a'), TypeError()]\nraise ExceptionGroup('two', x)"],
        "✗ ExceptionGroup: two (2 sub-exceptions): ValueError: a; TypeError: ",
        ("x = [ValueError('a'), TypeError()]", 2, "raise ExceptionGroup('two', x)"),
    ),
    "no end of calls": (
        ["def f(x):\n    return f(x + 1)", "f(0)"],
        "✗ RecursionError: maximum recursion depth exceeded",
        ("def f(x):", 2, "return f(x + 1)"),
    ),
    "an exception that cannot say what it is": (
        ["class Odd(Exception):\n    def __str__(self):\n        return 1 / 0\n\nraise Odd"],
        "✗ Odd",
        ("class Odd(Exception):", 5, "raise Odd"),
    ),
}


LIBRARIES = {
    "inside torch": (
        ["import torch\nx = torch.ones(3)", "x = x + 1\ntorch.nn.functional.one_hot(x)"],
        "✗ RuntimeError: one_hot is only applicable to index tensor",
        ("x = x + 1", 2, "torch.nn.functional.one_hot(x)"),
    ),
    "inside numpy": (
        ["import numpy as np", "def f(x):\n    return np.stack([\n        x, x[:1]])", "f([1, 2])"],
        "✗ ValueError: all input arrays must have the same shape",
        ("def f(x):", 2, "return np.stack(["),
    ),
    "inside pandas": (
        ["import pandas as pd", "x = pd.DataFrame({'a': [1]})\nx['b']"],
        "✗ KeyError: 'b'",
        ("x = pd.DataFrame({'a': [1]})", 2, "x['b']"),
    ),
    "inside matplotlib": (
        ["%matplotlib inline\nimport matplotlib.pyplot as plt", "plt.figure()\nplt.plot([1], [])"],
        "✗ ValueError: x and y must have same first dimension, but have shapes (1,) and (0,)",
        ("plt.figure()", 2, "plt.plot([1], [])"),
    ),
    "a library's own NotImplementedError": (
        ["class Loss(torch.nn.Module):\n    pass\n\nLoss()(1)"],
        '✗ NotImplementedError: Module [Loss] is missing the required "forward" function',
        ("class Loss(torch.nn.Module):", 4, "Loss()(1)"),
    ),
    "a NotImplementedError that no Python line raises": (
        ["x = torch.ones(2, dtype=torch.long)\nx.softmax(0)"],
        "✗ NotImplementedError: ",
        ("x = torch.ones(2, dtype=torch.long)", 2, "x.softmax(0)"),
    ),
}


@pytest.mark.parametrize("case", PLACES)
def test_what_is_wrong_is_told_with_its_cell_and_line(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cells, said, (cell, number, line) = PLACES[case]
    told, place, *hint = checked(*cells)[:-2]
    assert told.startswith(said)
    assert place == f"  Look at the top, at the cell ‘{cell}’, line {number}: {line}"
    assert not hint


def test_what_a_library_raises_is_told_at_the_line_that_led_there():
    cells = [text for name, (code, _, _) in LIBRARIES.items() for text in (f"# {name}", *code)]
    lines = checked(*cells)[:-2]
    assert len(lines) == 2 * len(LIBRARIES)
    told = zip(lines[::2], lines[1::2], strict=True)
    for (words, place), name in zip(told, LIBRARIES, strict=True):
        _, said, (cell, number, line) = LIBRARIES[name]
        assert words.startswith(said)
        assert place == f"  Look under “{name}”, at the cell ‘{cell}’, line {number}: {line}"


def test_magics_are_no_questions_and_break_nothing():
    lines = checked(
        f"{CHECK}\nimport matplotlib.pyplot as plt",
        "%matplotlib inline\nplt.plot([1, 2])",
        "%matplotlib widget\n%load_ext autoreload\n%autoreload 2\n%gui qt",
        "!ls",
        "%%time\nplt.show()",
        "%%capture seen\nprint('✗ not for the page')",
        "with check('The end'):\n    assert 'not for' in seen.stdout",
    )
    assert lines == [
        "✓ The end",
        "",
        "1 of 1 pass, 0 fail. These are examples: grading asks the same with other inputs.",
    ]


def test_a_check_tells_a_librarys_not_implemented_error_as_an_error():
    lines = checked(
        f"{CHECK}\nimport torch",
        "def answer(x):\n    return torch.nn.Module()(x)",
        "with check('One'):\n    answer(1)",
        "with check('Two'):\n    assert 1 + 1 == 3",
    )
    assert lines[0] == (
        '✗ One: NotImplementedError: Module [Module] is missing the required "forward" function, '
        "in the line: return torch.nn.Module()(x) (in the cell ‘def answer(x):’)"
    )
    assert lines[2] == "✗ Two: AssertionError, in the line: assert 1 + 1 == 3"


def small_exercise(answer, extra="x = 1"):
    """The small exercise's notebook, its first question answered so, and one more cell."""
    master = notebooks.read_source(MASTER, explicit_ids=True)
    made = json.loads(json.dumps(notebooks.student_version(master)))
    for each in made["cells"]:
        each["source"] = answer if each["id"] == "answer-double" else each["source"]
    made["cells"].append({"cell_type": "code", "metadata": {}, "source": extra})
    return json.dumps(made).encode()


def noted(*cells):
    """The notes of `check` for it."""
    notebook = small_exercise(*cells)
    parsed = submission.parse_cells(notebook)
    code = [cell for cell in parsed if cell["type"] == "code"]
    return "\n".join(notes.notes(notebook, code, public._places(parsed))).splitlines()


STUB = 'raise NotImplementedError("not answered yet")'


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        (f"def double(x):\n    {STUB}\n    return [2 * v for v in x]", 2),
        (f"def double(x):\n    y = [2 * v for v in x]\n    return y\n    # Mine\n    {STUB}", 5),
        (f"def double(x):\n    if x:\n        return x + x\n    {STUB}", 4),
    ],
)
def test_a_stub_that_still_stands_beside_an_answer_gets_a_word(answer, line):
    note, place = noted(answer)
    assert note == (
        "note: the line `raise NotImplementedError` still stands in this cell: delete it"
    )
    assert place == f"  Look under “Double a number”, at the cell ‘def double(x):’, line {line}"


@pytest.mark.parametrize(
    "answer",
    [
        f'def double(x):\n    """Other words."""\n    # A plan: add.\n    {STUB}',
        "def double(x):\n    return [2 * v for v in x]",
        "class Base:\n    def f(self):\n        raise NotImplementedError\n\ndef double(x): 1",
        f"def double(x:\n    1\n    {STUB}",
    ],
)
def test_nothing_else_gets_that_word(answer):
    assert noted(answer) == []


def test_what_grading_switches_off_is_told_before():
    answer = "def double(x):\n    from kdcourse.metrics import accuracy\n    return x + x"
    extra = "from kdcourse.grading.selfcheck import check\nimport kdcourse.soft_targets, json"
    assert noted(answer, extra) == [
        "note: grading has of kdcourse only what the exercise's own cells import, and what that "
        "needs; your cells also import kdcourse.metrics.accuracy, kdcourse.soft_targets"
    ]
    assert noted("def double(x):\n    return x + x") == []


def test_notes_come_first_and_are_no_checks():
    notebook = small_exercise(f"def double(x):\n    {STUB}\n    return [2 * v for v in x]")
    lines = list(public.run_checks(notebook, seconds=60))
    assert lines[0].startswith("note: the line") and lines[1].startswith("– Twice two is four")
    assert lines[-1].startswith("0 of 1 pass, 0 fail, 1 not answered yet.")


def test_a_check_is_quick_where_the_exercise_says_how():
    parameters = "epochs = 10**9\n# kdcourse check uses: epochs = 2; names = ['a', 'b']"
    lines = checked(
        parameters, f"{CHECK}\nwith check('Quick'):\n    assert [epochs, *names] == [2, 'a', 'b']"
    )
    assert lines[0] == "✓ Quick"


def test_the_master_says_how_a_check_is_quick(tmp_path):
    text = MASTER.read_text()
    master = tmp_path / "double.md"
    master.write_text(text.replace("grading:\n", "grading:\n  quick: {repeats: 2, names: [a]}\n"))
    read = notebooks.read_source(master, explicit_ids=True)
    cells = {cell.id: cell.source for cell in notebooks.student_version(read).cells}
    assert (
        cells["parameters"].splitlines()[-1] == "# kdcourse check uses: repeats = 2; names = ['a']"
    )
    assert "check uses" not in "".join(cell.source for cell in read.cells)
    assert key.declared(read, "double").parameters == (("repeats", 3),)


def test_the_real_exercise_passes_its_check(tmp_path):
    solved = notebooks.solution_version(notebooks.read_source(TEMPERATURE, explicit_ids=True))
    path = tmp_path / "mine.ipynb"
    path.write_text(json.dumps(solved))
    checks = TEMPERATURE.read_text().count("\nwith check(")
    assert f"{checks} of {checks} pass, 0 fail." in kdcourse("check", path)


def test_a_check_ends_what_does_not_end_by_itself():
    sleeper = f"9{os.getpid()}"
    starts = f"import subprocess; subprocess.Popen(['sleep', '{sleeper}'])"
    lines = checked(
        f"{CHECK}\nwith check('First'):\n    pass",
        f"{starts}\nwhile True: pass",
        "1",
        seconds=3,
    )
    assert lines[:4] == [
        "✓ First",
        "✗ A cell is still running",
        f"  Look at the top, at the cell ‘{starts}’",
        "  Cells below it that were not run: 1.",
    ]
    running = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
    assert not [line for line in running if sleeper in line]
    lines = checked("import os; os._exit(0)")
    assert lines[0] == "✗ A cell ended the whole process"


def test_a_notebook_without_checks_and_a_file_that_is_none(tmp_path):
    assert checked("1")[-1] == "This notebook has no checks."
    (tmp_path / "text.ipynb").write_text("text")
    assert "not valid JSON" in kdcourse("check", tmp_path / "text.ipynb", code=2)


def test_a_notebook_checks_itself_and_not_again_inside(tmp_path, monkeypatch, capsys):
    cells = [
        {"cell_type": "code", "source": f"{CHECK}\nwith check('One'):\n    pass"},
        {
            "cell_type": "code",
            "source": "from kdcourse.grading.public import check_notebook; check_notebook()",
        },
    ]
    (tmp_path / "mine.ipynb").write_text(json.dumps({"nbformat": 4, "cells": cells}))
    monkeypatch.setenv("JPY_SESSION_NAME", str(tmp_path / "mine.ipynb"))
    public.check_notebook()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "✓ One"
    assert lines[-1].startswith("1 of 1 pass")
    monkeypatch.setenv("JPY_SESSION_NAME", "")
    public.check_notebook()
    assert "Save this notebook" in capsys.readouterr().out


@pytest.mark.parametrize(("days", "day"), [(0, ""), (3, " on {:%Y-%m-%d}")])
def test_what_is_handed_in_says_when_it_was_saved(days, day, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    saved = datetime.now().replace(hour=0, minute=3) - timedelta(days=days)
    Path("mine.ipynb").write_text('{"nbformat": 4, "cells": []}')
    os.utime("mine.ipynb", (saved.timestamp(),) * 2)
    monkeypatch.setenv("JPY_SESSION_NAME", str(tmp_path / "mine.ipynb"))
    submit.write_submission("double")
    assert f"as saved at 00:03{day.format(saved)} (changed since?" in capsys.readouterr().out
    colab = SimpleNamespace(
        _message=SimpleNamespace(blocking_request=lambda *a, **k: {"ipynb": {"cells": []}}),
        files=SimpleNamespace(download=lambda path: None),
    )
    monkeypatch.setitem(sys.modules, "google", SimpleNamespace(colab=colab))
    monkeypatch.setitem(sys.modules, "google.colab", colab)
    submit.write_submission("double")  # in Colab it is the notebook as it stands
    assert "Wrote double-submission.ipynb: hand in this file" in capsys.readouterr().out


def test_checking_hands_nothing_in_and_bounds_what_is_printed(tmp_path, monkeypatch):
    cells = [
        "print('x' * 10**8)",
        "from kdcourse.grading.submit import write_submission; write_submission('mine')",
        f"{CHECK}\nwith check('One'):\n    pass",
    ]
    monkeypatch.chdir(tmp_path)
    saved = {"nbformat": 4, "cells": [{"cell_type": "code", "source": text} for text in cells]}
    Path("mine.ipynb").write_text(json.dumps(saved))
    monkeypatch.setenv("JPY_SESSION_NAME", str(tmp_path / "mine.ipynb"))
    events = list(public._events(cells, 60))
    assert len(events[1]["printed"]) == 1_000_000
    assert events[-1]["printed"].startswith("✓ One")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.ipynb"]


def test_checking_imports_only_what_a_notebook_host_has():
    program = (
        "import json, sys, kdcourse.grading.public as public; "
        "empty = json.dumps({'nbformat': 4, 'cells': []}).encode(); "
        "print(list(public.run_checks(empty, seconds=9))); "
        "print([name for name in ('papermill', 'jupytext', 'nbformat', 'torch', 'zmq') "
        "if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
