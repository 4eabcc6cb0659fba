"""What all tests share: under continuous integration nothing is skipped; one small exercise."""

import json
import os
import shutil
from pathlib import Path

import pytest
from classroom import MASTER, Student, call
from hypothesis import settings

# The same examples every time; --hypothesis-profile=default draws new ones.
settings.register_profile("fixed", derandomize=True)
settings.load_profile("fixed")

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
def warm():
    """Lets what is graded in this process share one warm process, which else ends every time."""
    from kdcourse.grading.sandbox import WARM

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WARM, "close", lambda: None)
        yield
    WARM.close()


@pytest.fixture(scope="session")
def assigned(warm, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `assign` made of the small exercise."""
    assert shutil.which("bwrap"), "these tests need bubblewrap: apt install bubblewrap"
    out = tmp_path_factory.mktemp("assigned")
    code, printed = call("assign", MASTER, "--out", out)
    assert code == 0, printed
    return out


@pytest.fixture(scope="session")
def student(assigned: Path):
    """Makes a student who has the exercise's notebook."""
    blank = json.loads((assigned / "student.ipynb").read_text())
    return lambda: Student(blank)
