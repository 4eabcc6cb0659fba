"""The class at a glance, from its result files."""

import json
from collections import Counter
from pathlib import Path
from typing import Any


def load_results(out: Path) -> list[dict[str, Any]]:
    """All results below `out`, sorted by student.

    Raises:
        ValueError: when there are none.
    """
    paths = sorted((out / "results").glob("*.json"))
    if not paths:
        raise ValueError(f"{out} holds no results: grade into it first")
    results = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    return sorted(results, key=lambda result: result["student"])


def print_report(results: list[dict[str, Any]]) -> None:
    """Print statuses, the distribution of scores, and how hard each part was."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    shares = [result["score"] / result["max_score"] for result in results]
    mean = sum(shares) / len(shares)
    console.print(f"{len(results)} submissions, mean score {100 * mean:.0f} %")
    table = Table("status", "submissions")
    for status, count in Counter(result["status"] for result in results).most_common():
        table.add_row(status, str(count))
    console.print(table)
    table = Table("score", "submissions", "")
    for low in range(0, 100, 20):
        count = sum(low <= 100 * share < low + 20 or (low == 80 and share == 1) for share in shares)
        table.add_row(f"{low}-{low + 20} %", str(count), "█" * round(40 * count / len(results)))
    console.print(table)
    table = Table("part", "points", "mean share of points", "full points")
    for number, part in enumerate(results[0]["parts"]):
        scores = [result["parts"][number]["score"] / part["points"] for result in results]
        full = sum(score == 1 for score in scores)
        average = f"{100 * sum(scores) / len(scores):.0f} %"
        table.add_row(part["title"], f"{part['points']:.10g}", average, str(full))
    console.print(table)
