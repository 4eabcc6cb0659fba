"""From raw scores to grades: lateness, missing files, and what a person adds; and `grades.csv`.

A result file holds what the submission earned by itself and never changes here. What is said in
this room comes on top, in columns of its own.
"""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, time, timedelta
from pathlib import Path
from typing import Any

from .key import COLUMNS, LATE, Exercise
from .submission import Submission
from .tables import read_rows, refuse


@dataclass(frozen=True)
class Manual:
    """What a person decided: points for a part, or added to the whole; a comment; or both."""

    part: str
    points: float | None
    comment: str


@dataclass(frozen=True)
class Handed:
    """When one student handed in, and until when that was in time."""

    submitted: datetime
    deadline: datetime


@dataclass(frozen=True)
class Terms:
    """What turns a raw score into a grade.

    Attributes:
        per_day: percent of the possible points that each started day after the deadline costs.
        cap: at most so many percent.
        missing_is_blank: a student without a submission gets no grade at all instead of 0.
        handed: by student; empty where there is no deadline.
        manual: by student.
    """

    per_day: float = 10.0
    cap: float = 100.0
    missing_is_blank: bool = False
    handed: Mapping[str, Handed] = field(default_factory=dict)
    manual: Mapping[str, Sequence[Manual]] = field(default_factory=dict)

    @property
    def columns(self) -> list[str]:
        """The columns of `grades.csv` that these terms fill."""
        late = LATE if self.handed else ()
        manual = ["manual"] if self.manual else []
        final = ["final"] if late or manual or self.missing_is_blank else []
        return [*late, *manual, *final, *(["comment"] if manual else [])]


AS_EARNED = Terms()


@dataclass(frozen=True)
class Grade:
    """One student's grade and how it came about.

    Attributes:
        days_late: started days after the deadline.
        penalty: points lost by that.
        manual: points a person added (or took).
        final: the grade; None for no grade.
        comments: what a person wrote, with the title of the part it is about.
        submitted: when the file was handed in.
    """

    days_late: int
    penalty: float
    manual: float
    final: float | None
    comments: tuple[tuple[str, str], ...] = ()
    submitted: str = ""

    @property
    def lateness(self) -> str:
        """How late, in words; a started day is a day."""
        return f"handed in {self.days_late} day{'s' * (self.days_late != 1)} late"

    @property
    def comment(self) -> str:
        """All comments in one line."""
        return "; ".join(f"{title}: {text}" if title else text for title, text in self.comments)


def grade_of(result: Mapping[str, Any], terms: Terms) -> Grade:
    """Apply the terms to one result.

    The penalty is a share of the possible points, and never takes a grade below 0. Points that a
    person adds to the whole come after it, so that a late student gets all of them.
    """
    raw = {part["part"]: part for part in result["parts"]}
    rows = terms.manual.get(result["student"], ())
    in_parts = sum(
        row.points - raw[row.part]["score"] for row in rows if row.part and row.points is not None
    )
    added = sum(row.points for row in rows if not row.part and row.points is not None)
    earned = result["score"] + in_parts

    handed, days, penalty = terms.handed.get(result["student"]), 0, 0.0
    if handed is not None and result["status"] != "missing":
        days = days_late(handed.submitted, handed.deadline)
        share = min(terms.cap, days * terms.per_day) / 100
        penalty = min(earned, share * result["max_score"])
    blank = result["status"] == "missing" and terms.missing_is_blank and not rows
    comments = [
        (raw[row.part]["title"] if row.part else "", row.comment) for row in rows if row.comment
    ]
    return Grade(
        days_late=days,
        penalty=round(penalty, 4),
        manual=round(in_parts + added, 4),
        final=None if blank else round(max(0.0, earned - penalty + added), 4),
        comments=tuple(comments),
        submitted=handed.submitted.isoformat(" ", "seconds") if handed is not None else "",
    )


def days_late(submitted: datetime, deadline: datetime) -> int:
    """Started days after the deadline.

    >>> deadline = datetime(2026, 3, 2, 12, 0)
    >>> [days_late(datetime(2026, 3, day, 12, 1), deadline) for day in (1, 2, 3)]
    [0, 1, 2]
    """
    return max(0, math.ceil((submitted - deadline) / timedelta(days=1)))


def moment(text: str) -> datetime:
    """A time in ISO 8601; without a zone it is local, and a day alone means its last second.

    >>> moment("2026-03-02").strftime("%d %H:%M:%S")
    '02 23:59:59'

    Raises:
        ValueError: for anything else.
    """
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"a time looks like 2026-03-02T18:00, got {text!r}") from None
    if len(text) <= len("2026-03-02"):
        found = datetime.combine(found, time(23, 59, 59))
    return found.astimezone() if found.tzinfo is None else found


def read_terms(
    submissions: Sequence[Submission],
    exercise: Exercise,
    *,
    deadline: datetime | None = None,
    per_day: float = Terms.per_day,
    cap: float = Terms.cap,
    missing_is_blank: bool = False,
    times: Path | None = None,
    manual: Path | None = None,
) -> Terms:
    """The terms, with what the CSV files say checked against class and exercise.

    Args:
        submissions: all students, with or without a file.
        exercise: knows its parts.
        deadline: without `times`, the files' own times count.
        per_day: see `Terms`.
        cap: see `Terms`.
        missing_is_blank: see `Terms`.
        times: for `read_times`.
        manual: for `read_manual`.

    Raises:
        ValueError: for anything that does not fit; nothing has happened then.
    """
    handed: Mapping[str, Handed] = {}
    if times is not None:
        handed = read_times(times, submissions, deadline)
    elif deadline is not None:
        handed = file_times(submissions, deadline)
    students = [item.student for item in submissions]
    by_hand = read_manual(manual, students, exercise) if manual is not None else {}
    return Terms(per_day, cap, missing_is_blank, handed, by_hand)


def file_times(submissions: Sequence[Submission], deadline: datetime) -> dict[str, Handed]:
    """When each student's file was last changed, as the file system has it."""
    newest = {
        item.student: max(path.lstat().st_mtime for path in item.files)
        for item in submissions
        if item.files
    }
    return {
        student: Handed(datetime.fromtimestamp(seconds).astimezone(), deadline)
        for student, seconds in newest.items()
    }


def read_times(
    path: Path, submissions: Sequence[Submission], deadline: datetime | None
) -> dict[str, Handed]:
    """When each student handed in: columns `student`, `submitted`, and `deadline` for extensions.

    Args:
        path: the CSV file.
        submissions: all that were found; each one that holds a file needs a row.
        deadline: for everybody whose row names no other.

    Raises:
        ValueError: once, for everything that is wrong with the file.
    """
    known = {item.student for item in submissions}
    handed: dict[str, Handed] = {}
    problems = []
    for line, row in read_rows(path, ("student", "submitted"), also=("deadline",)):
        student = row["student"]
        try:
            until = moment(row["deadline"]) if row["deadline"] else deadline
            if student not in known:
                problems.append(_unknown(line, student))
            elif student in handed:
                problems.append(f"line {line}: {student!r} has a row already")
            elif until is None:
                problems.append(f"line {line}: no deadline: give one here or by --deadline")
            elif row["submitted"]:
                handed[student] = Handed(moment(row["submitted"]), until)
        except ValueError as error:
            problems.append(f"line {line}: {error}")
    if not problems:
        without = [item.student for item in submissions if item.files]
        problems += [
            f"no time for {name!r}, who handed in" for name in without if name not in handed
        ]
    refuse(path, problems)
    return handed


def read_manual(
    path: Path, students: Sequence[str], exercise: Exercise
) -> dict[str, tuple[Manual, ...]]:
    """What a person decided: columns `student`, `part`, `points`, and `comment`.

    Points of a row with a part replace what the part earned; those of a row without one are added
    to the whole, and may be negative. A row may hold a comment alone.

    Args:
        path: the CSV file.
        students: everybody who has a row in the grades.
        exercise: knows its parts.

    Raises:
        ValueError: once, for everything that is wrong with the file.
    """
    most = {part.part: part.points for part in exercise.parts}
    found: dict[str, tuple[Manual, ...]] = {}
    problems = []
    for line, row in read_rows(path, ("student", "part", "points"), also=("comment",)):
        student, part = row["student"], row["part"]
        points = _number(row["points"])
        earlier = found.get(student, ())
        if student not in students:
            problems.append(_unknown(line, student))
        elif part and part not in most:
            problems.append(f"line {line}: no part {part!r}; the parts are {', '.join(most)}")
        elif row["points"] and points is None:
            problems.append(f"line {line}: points are a number like 2.5, got {row['points']!r}")
        elif part and points is not None and not 0 <= points <= most[part]:
            problems.append(f"line {line}: {part} has 0 to {most[part]:g} points, got {points:g}")
        elif part and any(row.part == part for row in earlier):
            problems.append(f"line {line}: {student!r} has a row for {part!r} already")
        else:
            found[student] = (*earlier, Manual(part, points, row["comment"]))
    refuse(path, problems)
    return found


def grades(results: Sequence[Mapping[str, Any]], exercise: Exercise, terms: Terms) -> str:
    """The class as CSV: one row per student, one column per part, then what the terms add."""
    names = [part.part for part in exercise.parts]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*COLUMNS, *names, *terms.columns])
    for result in results:
        scores = {part["part"]: part["score"] for part in result["parts"]}
        row = [result["student"], result["submission"], result["status"]]
        numbers = [result["score"], result["max_score"], *(scores[name] for name in names)]
        grade = grade_of(result, terms)
        extra = [_text(getattr(grade, column)) for column in terms.columns]
        writer.writerow([*row, *map(_text, numbers), *extra])
    return text.getvalue()


def _text(value: Any) -> str:
    if isinstance(value, (int, float)):
        return f"{value:.10g}"
    return value or ""


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _unknown(line: int, student: str) -> str:
    return f"line {line}: no student {student!r} among the submissions and in the roster"
