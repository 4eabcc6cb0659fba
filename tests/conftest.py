"""What all tests share: under continuous integration nothing is skipped."""

import os

import pytest


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Let a run with skipped tests fail when the variable CI is set."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("CI") and reporter is not None and reporter.stats.get("skipped"):
        reporter.ensure_newline()
        reporter.write_line("Skipped tests are failures when CI is set.", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
