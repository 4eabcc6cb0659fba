"""What all tests share: under continuous integration nothing is skipped; one small exercise."""

import json
import os
import shutil
from pathlib import Path

import pytest
from classroom import MASTER, Student, kdcourse

pytest.register_assert_rewrite("exercises")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Let a run with skipped tests fail when the variable CI is set."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("CI") and reporter is not None and reporter.stats.get("skipped"):
        reporter.ensure_newline()
        reporter.write_line("Skipped tests are failures when CI is set.", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(scope="session")
def assigned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `assign` made of the small exercise."""
    assert shutil.which("bwrap"), "these tests need bubblewrap: apt install bubblewrap"
    out = tmp_path_factory.mktemp("assigned")
    done = kdcourse("assign", MASTER, "--out", out)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="session")
def student(assigned: Path):
    """Makes a student who has the exercise's notebook."""
    blank = json.loads((assigned / "student.ipynb").read_text())
    return lambda: Student(blank)
