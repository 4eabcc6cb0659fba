"""A whole class through the command line: every submission ends in a status and a score."""

import json
import os
import shutil

import psutil
import pytest
from classroom import (
    DOUBLE,
    FIT,
    MASTER,
    RIGHT_DOUBLE,
    RIGHT_FIT,
    call,
    kdcourse,
    kdcourse_each,
    printed,
    result,
    rows,
)

SLEEP = "2718281"

SPY = """
import importlib, json, os, pathlib, socket, subprocess, sys
found = []
def tried(what, action):
    try:
        if action():
            found.append(what)
    except BaseException:
        pass
secret = pathlib.Path({key!r})
tried("key", lambda: list(secret.iterdir()))
tried("submissions", lambda: list(pathlib.Path({submissions!r}).iterdir()))
tried("environment", lambda: "SECRET" in str(os.environ) + open("/proc/1/environ").read())
tried("home", lambda: list(pathlib.Path("/home").iterdir()))
tried("course", lambda: list(pathlib.Path({course!r}).iterdir()))
tried("network", lambda: socket.create_connection(("127.0.0.1", {port}), timeout=2))
for folder in ("/", "/dev", "/usr", "/job", sys.prefix):
    tried("write " + folder, lambda: open(folder + "/x", "w").write("x"))
tried("processes", lambda: sum(name.isdigit() for name in os.listdir("/proc")) > 30)
status = open("/proc/self/status").read()
tried("capabilities", lambda: int(status.split("CapEff:")[1].split()[0], 16))
quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
tried("unmount", lambda: not subprocess.call(["umount", "/job"], **quiet))
tried("namespace", lambda: not subprocess.call(["unshare", "-Ur", "true"], **quiet))
print("found:", found)
"""

USES_PACKAGE = """
import importlib, inspect, subprocess, sys
class cell: metadata = dict(tags=["a"])
def tried(action):
    try:
        return action()
    except BaseException as error:
        return type(error).__name__
import kdcourse.notebooks as module
from kdcourse.notebooks import tags
fresh = "import kdcourse.notebooks as m; m.tags(None)"
print(tried(lambda: tags(cell)), tried(lambda: importlib.reload(module).tags(cell)))
print("metadata.get" in inspect.getsource(module.tags))
run = subprocess.run([sys.executable, "-c", fresh], capture_output=True, text=True)
print("switched off" in run.stderr)
print(len(list(__import__("pathlib").Path(module.__file__).parent.rglob("*.pyc"))))
"""

ALWAYS_EQUAL = """
class Same(float):
    __eq__ = lambda self, other: True
    __ne__ = lambda self, other: False
    __array__ = lambda self, *a, **k: self
    __float__ = lambda self: self
    def __getattr__(self, name): return self
    def __call__(self, *a): return self
    def __iter__(self): return iter([])
def double(x): return {value}
def fit(x, y): return {{"slope": {value}}}
"""


@pytest.fixture(scope="module")
def classroom(assigned, student, tmp_path_factory):
    """A class with every kind of student, graded once: the folders of the results.

    What computes without end has a class of its own, with less time.
    """
    base = tmp_path_factory.mktemp("classroom")
    folder, slow, out, slow_out = (base / name for name in ("in", "slow-in", "out", "slow-out"))
    folder.mkdir()
    slow.mkdir()
    key = assigned / "key"
    spy = SPY.format(
        key=str(key), submissions=str(folder), port=_listen(), course=str(MASTER.parents[1])
    )
    daemon = f"subprocess.Popen(['sleep', '{SLEEP}'], start_new_session=True)"
    link = (
        "import os, pathlib\n"
        "folder = pathlib.Path(os.environ['KDCOURSE_ANSWERS'])\n"
        "for name in ('small', 'large', 'slope'):\n"
        "    (folder / f'{name}.json').unlink(missing_ok=True)\n"
        f"    (folder / f'{{name}}.json').symlink_to('{key}/reference/' + f'{{name}}.json')"
    )
    reordered = student().solved()
    reordered.notebook["cells"].reverse()
    stripped = student().solved()
    stripped.notebook["cells"] = [
        cell for cell in stripped.notebook["cells"] if cell.get("id") in (DOUBLE, FIT)
    ]
    no_parameters_tag = student().answer(double=RIGHT_DOUBLE.replace("2", "(repeats - 1)"))
    no_parameters_tag.cell("parameters").update(source="repeats = 7", metadata={})
    repeated = student().solved()
    repeated.notebook["cells"].append(repeated.cell(DOUBLE) | {"source": "def double(x): ..."})
    class_ = {
        "right": student().solved(),
        "unchanged": student(),
        "half": student().answer(double=RIGHT_DOUBLE),
        "partly": student().solved().answer(double="def double(x): return [2 * abs(v) for v in x]"),
        "loop": student().solved().add("while True: pass", after=DOUBLE),
        "deaf": student()
        .solved()
        .add("import signal; signal.signal(2, signal.SIG_IGN)\nwhile True: pass", "check-double"),
        "crash": student().solved().add("import os; os._exit(0)", after=FIT),
        "exits": student().solved().add("import sys; sys.exit(1)", after="tools"),
        "raises": student().answer(double=RIGHT_DOUBLE, fit="1 / 0"),
        "syntax": student().answer(double="def double(x) return", fit=RIGHT_FIT),
        "equal": student().answer(double=ALWAYS_EQUAL.format(value="Same()")),
        "equal-list": student().answer(double=ALWAYS_EQUAL.format(value="[Same()] * len(x)")),
        "not-finite": student().answer(double="def double(x): return [float('nan')] * len(x)"),
        "bomb": student()
        .solved()
        .add("x = [bytearray(2**20) for _ in range(10**4)]", after=DOUBLE),
        "flood": student().solved().add("for _ in range(200): print('x' * 10**6)"),
        "asks": student().solved().add("input('Name: ')"),
        "daemon": student().solved().add(f"import subprocess; {daemon}"),
        "spy": student().add(spy),
        "package": student().add(USES_PACKAGE),
        "links": student().solved().add(link),
        "reordered": reordered,
        "stripped": stripped,
        "parameters": no_parameters_tag,
        "repeated": repeated,
        "braces {x} 'q' <b>": student().solved(),
    }
    for name, made in class_.items():
        into = slow if EXPECTED[name][0] == "timeout" else folder
        (into / f"{name}.ipynb").write_text(json.dumps(made.notebook))
    (folder / "broken.ipynb").write_text("{")
    (folder / "empty.ipynb").write_text("")
    (folder / "list.ipynb").write_text("[]")
    (folder / "old.ipynb").write_text('{"nbformat": 3, "worksheets": []}')
    (folder / "other.ipynb").write_text('{"nbformat": 4, "cells": [], "metadata": {}}')
    (folder / "text.txt").write_text("my answers")
    (folder / "linked.ipynb").symlink_to(assigned / "solution.ipynb")
    (folder / "twice").mkdir()
    for name in ("a.ipynb", "b.ipynb"):
        shutil.copy(assigned / "solution.ipynb", folder / "twice" / name)
    (folder / "folder").mkdir()
    shutil.copy(assigned / "solution.ipynb", folder / "folder" / "homework.ipynb")
    roster = base / "roster.csv"
    roster.write_text("student,email\nright,r@example.org\nabsent,a@example.org\n")
    limits = ("--key", key, "--memory", 700, "--timeout")
    done = kdcourse_each(
        ("grade", MASTER, slow, "--out", slow_out, *limits, 3),
        ("grade", MASTER, folder, "--out", out, *limits, 90, "--roster", roster),
        env={**os.environ, "SECRET": "SECRET"},
    )
    assert done.returncode == 0, done.stderr
    return out, slow_out


@pytest.fixture(scope="module")
def graded(classroom):
    """The folder of all who did not compute without end."""
    return classroom[0]


def _listen():
    """The port of a server outside the sandbox, open as long as the tests run."""
    import socket

    server = socket.create_server(("127.0.0.1", 0))
    _SERVERS.append(server)
    return server.getsockname()[1]


_SERVERS = []

EXPECTED = {
    "right": ("graded", 4, 2),
    "unchanged": ("graded", 0, 0),
    "half": ("graded", 4, 0),
    "partly": ("graded", 2, 2),
    "loop": ("timeout", 4, 2),
    "deaf": ("timeout", 0, 0),
    "crash": ("killed", 4, 0),
    "exits": ("error", 4, 2),
    "raises": ("error", 4, 0),
    "syntax": ("error", 0, 2),
    "equal": ("graded", 0, 0),
    "equal-list": ("graded", 0, 0),
    "not-finite": ("graded", 0, 0),
    "bomb": ("memory", 0, 0),
    "flood": ("graded", 4, 2),
    "asks": ("error", 4, 2),
    "daemon": ("graded", 4, 2),
    "spy": ("graded", 0, 0),
    "package": ("graded", 0, 0),
    "links": ("graded", 0, 0),
    "reordered": ("graded", 4, 2),
    "stripped": ("graded", 4, 2),
    "parameters": ("graded", 4, 0),
    "repeated": ("graded", 4, 2),
    "braces {x} 'q' <b>": ("graded", 4, 2),
    "broken": ("invalid", 0, 0),
    "empty": ("invalid", 0, 0),
    "list": ("invalid", 0, 0),
    "old": ("invalid", 0, 0),
    "other": ("invalid", 0, 0),
    "text": ("invalid", 0, 0),
    "linked": ("invalid", 0, 0),
    "twice": ("duplicate", 0, 0),
    "folder": ("graded", 4, 2),
    "absent": ("missing", 0, 0),
}


def test_every_student_has_exactly_the_expected_status_and_score(classroom):
    got = {
        name: (row["status"], float(row["double"]), float(row["fit"]))
        for out in classroom
        for name, row in rows(out).items()
    }
    assert got == EXPECTED


def test_grades_csv_has_the_agreed_columns_and_sums(graded):
    table = rows(graded)
    assert list(table) == sorted(table)
    for row in table.values():
        assert list(row) == [
            *("student", "submission", "status", "score", "max_score"),
            *("double", "fit"),
        ]
        assert float(row["score"]) == float(row["double"]) + float(row["fit"])
        assert row["max_score"] == "6"
    assert table["folder"]["submission"] == "homework.ipynb"


def test_the_sandbox_shows_nothing_it_should_not(graded):
    assert printed(graded, "spy").splitlines()[-1] == "found: []"


def test_functions_asked_for_raise_inside_the_sandbox(graded):
    assert printed(graded, "package").splitlines() == [
        "– Twice two is four: not answered yet",
        "RuntimeError RuntimeError",
        "False",
        "True",
        "0",
    ]


def test_nothing_of_a_run_is_left(graded):
    running = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
    assert not [line for line in running if SLEEP in line]


def test_output_is_bounded(graded):
    assert len(json.dumps(result(graded, "flood"))) < 10_000
    assert result(graded, "flood")["peak_mib"] <= 700  # shared pages may count twice


def test_every_result_names_its_sandbox(graded):
    for path in (graded / "results").glob("*.json"):
        assert json.loads(path.read_text())["sandbox"] == "bwrap"


def test_feedback_is_escaped_and_tells_no_secrets(graded):
    pages = list((graded / "feedback").glob("*.html"))
    assert len(pages) == len(rows(graded))
    everything = "".join(path.read_text() for path in pages)
    assert "braces {x} &#39;q&#39; &lt;b&gt;" in everything
    assert "<b>" not in everything
    assert "hidden()" not in everything
    assert "Look at the sign." in everything


def test_report_shows_the_class(graded):
    code, said = call("report", graded)
    assert code == 0
    students = len(rows(graded))
    assert f"{students} students, {students - 1} handed in" in said
    assert "A slope that predicts" in said


def test_only_what_is_new_or_changed_is_graded(assigned, student, tmp_path):
    folder, out = tmp_path / "submissions", tmp_path / "out"
    folder.mkdir()
    for name in ("a", "b"):
        (folder / f"{name}.ipynb").write_text(json.dumps(student().solved().notebook))
    arguments = ("grade", MASTER, folder, "--out", out, "--key", assigned / "key")
    assert call(*arguments)[0] == 0
    before = {path: path.stat().st_mtime_ns for path in (out / "results").glob("*.json")}
    table = (out / "grades.csv").read_bytes()
    assert [row["score"] for row in rows(out).values()] == ["6", "6"]
    (folder / "b.ipynb").write_text(json.dumps(student().answer(double=RIGHT_DOUBLE).notebook))
    shutil.copy(folder / "a.ipynb", folder / "c.ipynb")
    assert call(*arguments)[0] == 0
    changed = [path for path, when in before.items() if path.stat().st_mtime_ns != when]
    assert [path.name[0] for path in changed] == ["b"]
    assert [row["score"] for row in rows(out).values()] == ["6", "4", "6"]
    assert (out / "grades.csv").read_bytes() != table


def test_without_a_sandbox_it_says_so_and_still_cleans_up(assigned, student, tmp_path):
    (tmp_path / "in").mkdir()
    leaves = f"import subprocess; subprocess.Popen(['setsid', 'sleep', '{SLEEP}1'])"
    made = student().solved().add(leaves).add(USES_PACKAGE)
    (tmp_path / "in" / "one.ipynb").write_text(json.dumps(made.notebook))
    out = tmp_path / "out"
    arguments = ("grade", MASTER, tmp_path / "in", "--out", out, "--key", assigned / "key")
    assert call(*arguments, "--sandbox", "none")[0] == 0
    assert result(out, "one")["sandbox"] == "none"
    assert result(out, "one")["score"] == 6
    assert "RuntimeError RuntimeError" in printed(out, "one")
    assert "Run without a sandbox" in next((out / "feedback").glob("*.html")).read_text()
    running = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
    assert not [line for line in running if f"{SLEEP}1" in line]


def test_missing_bubblewrap_stops_with_the_package_name(assigned, tmp_path):
    arguments = ("grade", MASTER, tmp_path, "--out", tmp_path / "out", "--key", assigned / "key")
    done = kdcourse(*arguments, env={**os.environ, "PATH": str(tmp_path)})
    assert done.returncode == 2
    assert "bubblewrap" in done.stderr
    assert "--sandbox none" in done.stderr
    assert not (tmp_path / "out").exists()


def test_check_shows_the_public_checks_to_the_learner(student, tmp_path):
    notebook = tmp_path / "mine.ipynb"
    notebook.write_text(json.dumps(student().answer(double="def double(x): return x").notebook))
    code, said = call("check", notebook)
    assert code == 0
    assert "✗ Twice two is four: expected the list of doubled values, [4], got [2]" in said


def test_a_master_that_loses_points_is_refused(warm, tmp_path):
    faulty = tmp_path / "faulty.md"
    text = MASTER.read_text()
    faulty.write_text(text.replace('return {"slope": (x * y).sum()', 'return {"slope": (x).sum()'))
    code, said = call("assign", faulty, "--out", tmp_path / "out")
    assert code == 2
    assert "does not earn its own points" in said
    assert not (tmp_path / "out" / "key").exists()


def test_a_master_that_fails_its_own_checks_is_refused(warm, tmp_path):
    faulty = tmp_path / "faulty.md"
    faulty.write_text(MASTER.read_text().replace("got == [4]", "got == [5]"))
    code, said = call("assign", faulty, "--out", tmp_path / "out")
    assert code == 2
    assert "fails its own public checks" in said
