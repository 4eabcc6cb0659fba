"""The class at a glance, from its result files: as text, as a picture, and as a page."""

import csv
import json
import statistics
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .files import write_atomic

BINS = 10
MOST_NOTED = 100


@dataclass(frozen=True)
class PartSummary:
    """How one part went, over all who handed in."""

    title: str
    points: float
    mean: float
    full: int
    some: int
    none: int


@dataclass(frozen=True)
class Summary:
    """A class in numbers.

    Attributes:
        students: how many have a row.
        handed_in: how many of them handed something in; all that follows is about these.
        scores: each one's share of the possible points, in percent, lowest first.
        adjusted: whether lateness and points by hand are in the scores.
        statuses: status → how many, for all students.
        parts: how each part went.
        seconds: the time of each run.
        noted: student, status and note of everybody whose notebook did not run to its end.
    """

    students: int
    handed_in: int
    scores: list[float]
    adjusted: bool
    statuses: dict[str, int]
    parts: list[PartSummary]
    seconds: list[float]
    noted: list[tuple[str, str, str]]

    @property
    def bins(self) -> list[int]:
        """How many scores lie in each tenth of the scale; full marks belong to the last."""
        counts = Counter(min(int(score * BINS / 100), BINS - 1) for score in self.scores)
        return [counts[number] for number in range(BINS)]

    @property
    def headline(self) -> str:
        """The class in one sentence."""
        plural = "s" * (self.students != 1)
        who = f"{self.students} student{plural}, {self.handed_in} handed in"
        if not self.scores:
            return who
        kind = "grade" if self.adjusted else "score"
        mean, median = statistics.fmean(self.scores), statistics.median(self.scores)
        return f"{who}; mean {kind} {mean:.0f} %, median {median:.0f} %"


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


def load_finals(out: Path) -> dict[str, float]:
    """The column `final` of `grades.csv`, if there is one; who has no grade is left out."""
    try:
        with (out / "grades.csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except FileNotFoundError:
        return {}
    return {row["student"]: float(row["final"]) for row in rows if row.get("final")}


def summarize(results: list[dict[str, Any]], finals: dict[str, float]) -> Summary:
    """A class in numbers.

    Args:
        results: what `load_results` returned.
        finals: what `load_finals` returned; empty for raw scores.
    """
    handed = [result for result in results if result["status"] != "missing"]
    earned = [finals.get(result["student"], result["score"]) for result in handed]
    noted = [
        (result["student"], result["status"], result["note"])
        for result in results
        if result["status"] != "graded"
    ]
    statuses = Counter(result["status"] for result in results)
    return Summary(
        students=len(results),
        handed_in=len(handed),
        scores=sorted(
            100 * score / result["max_score"] for score, result in zip(earned, handed, strict=True)
        ),
        adjusted=bool(finals),
        statuses=dict(statuses.most_common()),
        parts=[
            _part(part, [result["parts"][number]["score"] for result in handed])
            for number, part in enumerate(results[0]["parts"])
        ],
        seconds=[result["seconds"]["total"] for result in handed if result["seconds"]],
        noted=noted,
    )


def print_report(summary: Summary) -> None:
    """Print statuses, the distribution of scores, and how hard each part was."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    console.print(summary.headline)
    table = Table("status", "students")
    for status, count in summary.statuses.items():
        table.add_row(status, str(count))
    console.print(table)
    table = Table("grade" if summary.adjusted else "score", "students", "")
    for number, count in enumerate(summary.bins):
        low = number * 100 // BINS
        bar = "█" * round(30 * count / max(1, summary.handed_in))
        table.add_row(f"{low}-{low + 100 // BINS} %", str(count), bar)
    console.print(table)
    table = Table("part", "points", "mean", "full", "some", "none")
    for part in summary.parts:
        counts = (str(part.full), str(part.some), str(part.none))
        table.add_row(escape(part.title), f"{part.points:.10g}", f"{part.mean:.0f} %", *counts)
    console.print(table)


def write_report(summary: Summary, out: Path, name: str) -> Path:
    """Write `report.svg`, the picture, and `report.html`, the page that holds it; return the page.

    Args:
        summary: the class.
        out: the folder that was graded into.
        name: the exercise, or what else the page should be called.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
    )
    environment.globals |= {"number": lambda value: f"{value:.10g}", "most": MOST_NOTED}
    picture = environment.get_template("report.svg").render(summary=summary)
    page = environment.get_template("report.html").render(
        summary=summary, name=name, picture=picture, median=statistics.median
    )
    write_atomic(out / "report.svg", picture.encode())
    write_atomic(out / "report.html", page.encode())
    return out / "report.html"


def _part(part: dict[str, Any], scores: list[float]) -> PartSummary:
    points = part["points"]
    full = sum(score >= points for score in scores)
    none = sum(score == 0 for score in scores)
    mean = 100 * sum(scores) / (points * len(scores)) if scores else 0.0
    return PartSummary(part["title"], points, mean, full, len(scores) - full - none, none)
