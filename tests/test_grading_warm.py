"""The warm process: what it knows, and that grading goes on without it."""

import os
from pathlib import Path

import psutil
import pytest

from kdcourse.grading import execute, sandbox, score, submission, warm
from kdcourse.grading.key import Key


@pytest.fixture
def graded(assigned):
    """Runs the solution and returns its status, score and seconds."""
    key = Key(assigned / "key")
    cells = submission.parse_cells((assigned / "solution.ipynb").read_bytes())
    notebook = submission.rebuild(key.master, cells)
    limits = sandbox.Limits(30, 700)

    def run():
        with execute.executed_for(key, notebook, limits=limits, isolation="bwrap") as done:
            points = sum(part.score for part in score.score_parts(done.answers, key))
            return done.status, points

    return run


@pytest.fixture
def process(monkeypatch):
    """A warm process of our own."""
    made = warm.WarmProcess()
    monkeypatch.setattr(sandbox, "WARM", made)
    yield made
    made.close()


def child(made):
    """The warm process itself."""
    return psutil.Process(made._process.pid)


def test_it_serves_many_runs_knows_no_secrets_and_comes_back(graded, process, monkeypatch):
    monkeypatch.setenv("SECRET", "of the grader")
    assert graded() == ("graded", 6)
    first = child(process)
    assert set(first.environ()) <= {
        *("PATH", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "LANG", "LC_CTYPE"),
        *("OMP_NUM_THREADS", "MKL_NUM_THREADS"),
    }
    assert first.num_threads() == 1
    assert first.cwd() == "/"
    assert len(os.listdir(f"/proc/{first.pid}/fd")) < 8  # noqa: PTH208
    assert not first.children()
    assert graded() == ("graded", 6)
    assert child(process) == first
    first.kill()
    assert graded() == ("graded", 6)
    last = child(process)
    assert last != first
    process.close()
    assert not last.is_running()


def test_where_it_cannot_enter_the_run_starts_anew(graded, process, monkeypatch):
    def enter(*arguments):
        process.usable = False
        raise warm.CannotEnter

    monkeypatch.setattr(process, "enter", enter)
    assert graded() == ("graded", 6)
    monkeypatch.setattr(process, "enter", None)
    assert graded() == ("graded", 6)


def test_it_does_not_serve_where_a_library_has_functions_switched_off():
    assert sandbox._may_be_warm({Path("a"): Path("copies/kdcourse")})
    assert not sandbox._may_be_warm(
        {Path("a"): Path("copies/kdcourse"), Path("b"): Path("copies/torch")}
    )
