"""Every loss beside its textbook formula, in the same run: `make bench` prints the table."""

from collections.abc import Callable

import pytest
import torch
from cost import Case, peak_mib, seconds

ROWS = pytest.StashKey[list[str]]()
COLUMNS = {
    "textbook_ms": ("ms textbook", 2),
    "ours_ms": ("ms ours", 2),
    "ratio": ("ratio", 2),
    "textbook_mib": ("MiB textbook", 0),
    "ours_mib": ("MiB ours", 0),
}


@pytest.fixture
def compare(benchmark, request: pytest.FixtureRequest) -> Callable[[Case, Case | None], None]:
    """Measure our case and the textbook's; without one, where it needs too much, ours alone."""

    def measure(ours: Case, textbook: Case | None = None) -> None:
        torch.set_num_threads(1)
        run, naive = ours(), textbook() if textbook else lambda: None
        warm_up = seconds(run) + seconds(naive)
        naive_times: list[float] = []
        benchmark.pedantic(  # by turns, so that whatever slows the machine slows both
            run,
            setup=lambda: naive_times.append(seconds(naive)),
            rounds=int(min(max(2 / warm_up, 3), 200)),
        )
        ours_ms = 1e3 * benchmark.stats.stats.min
        textbook_ms = 1e3 * min(naive_times) if textbook else float("nan")
        row = {
            "textbook_ms": textbook_ms,
            "ours_ms": ours_ms,
            "ratio": textbook_ms / ours_ms,
            "textbook_mib": peak_mib(textbook) if textbook else float("nan"),
            "ours_mib": peak_mib(ours),
        }
        benchmark.extra_info.update(row)
        cells = (f"{row[key]:14.{digits}f}" for key, (_, digits) in COLUMNS.items())
        line = f"{request.node.callspec.id:40}" + "".join(cells)
        request.config.stash.setdefault(ROWS, []).append(line)

    return measure


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """The table: forward and backward on one thread, memory beyond the inputs."""
    rows = config.stash.get(ROWS, [])
    if rows:
        terminalreporter.section("each method beside its textbook formula, one thread")
        header = " " * 40 + "".join(f"{title:>14}" for title, _ in COLUMNS.values())
        for line in (header, *rows):
            terminalreporter.write_line(line)
