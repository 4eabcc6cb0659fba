"""The class's grades in the forms that Gradescope, Canvas and Moodle read."""

import csv
import io
import json
from collections.abc import Sequence
from typing import Any

from .gradebook import Grade

Graded = tuple[dict[str, Any], Grade]


def gradescope(result: dict[str, Any], grade: Grade) -> str:
    """One student's `results.json` as Gradescope's autograder writes it.

    Lateness and points given by a person are entries of their own, so that the parts add up.
    """
    tests = [
        _test(part["title"], part["score"], part["message"], of=part["points"])
        for part in result["parts"]
    ]
    if grade.penalty:
        tests.append(_test("Lateness", -grade.penalty, grade.lateness))
    if grade.manual or grade.comments:
        tests.append(_test("From your instructor", grade.manual, grade.comment))
    status = f"{result['status']}: {result['note']}" if result["note"] else result["status"]
    content = {
        "score": 0 if grade.final is None else grade.final,
        "output": status,
        "output_format": "text",
        "visibility": "visible",
        "tests": tests,
    }
    return json.dumps(content, indent=1, sort_keys=True) + "\n"


def canvas(graded: Sequence[Graded], exercise: str) -> str:
    """The class for Canvas's gradebook; students are known by their login."""
    most = graded[0][0]["max_score"] if graded else 0
    return _csv(
        ["Student", "ID", "SIS User ID", "SIS Login ID", "Section", exercise],
        ["Points Possible", "", "", "", "", f"{most:.10g}"],
        *(
            [result["student"], "", "", result["student"], "", _final(grade)]
            for result, grade in graded
        ),
    )


def moodle(graded: Sequence[Graded], exercise: str) -> str:
    """The class for Moodle's grade import; students are known by their user name.

    Grade and feedback come together, because Moodle empties the grade of whoever gets feedback
    without one.
    """
    return _csv(
        ["username", exercise, f"{exercise} (feedback)"],
        *([result["student"], _final(grade), _feedback(result, grade)] for result, grade in graded),
    )


def _test(name: str, score: float, output: str, *, of: float | None = None) -> dict[str, Any]:
    test = {"name": name, "score": score, "output": output, "output_format": "text"}
    if of is not None:
        test |= {"max_score": of, "status": "passed" if score >= of else "failed"}
    return test | {"visibility": "visible"}


def _feedback(result: dict[str, Any], grade: Grade) -> str:
    """What a student sees beside the grade, in one line."""
    words = [
        f"{part['title']}: {part['score']:.10g} of {part['points']:g}" for part in result["parts"]
    ]
    if result["status"] != "graded":
        words.insert(0, f"{result['status']} ({result['note']})")
    if grade.penalty:
        words.append(f"{grade.lateness}: -{grade.penalty:.10g}")
    if grade.manual or grade.comments:
        words.append(f"from your instructor: {grade.manual:+.10g} {grade.comment}".rstrip())
    return "; ".join(words)


def _final(grade: Grade) -> str:
    return "" if grade.final is None else f"{grade.final:.10g}"


def _csv(*rows: Sequence[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
