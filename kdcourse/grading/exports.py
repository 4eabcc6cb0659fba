"""The class's scores in the forms that Gradescope and Canvas read."""

import csv
import io
import json
from typing import Any


def gradescope(result: dict[str, Any]) -> str:
    """One student's `results.json` as Gradescope's autograder writes it."""
    tests = [
        {
            "name": part["title"],
            "score": part["score"],
            "max_score": part["points"],
            "output": part["message"],
            "visibility": "visible",
        }
        for part in result["parts"]
    ]
    status = f"{result['status']}: {result['note']}" if result["note"] else result["status"]
    content = {"score": result["score"], "output": status, "tests": tests}
    return json.dumps(content, indent=1, sort_keys=True) + "\n"


def canvas(results: list[dict[str, Any]], exercise: str) -> str:
    """The class as a CSV file for Canvas's gradebook; students are known by their login."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["Student", "ID", "SIS User ID", "SIS Login ID", "Section", exercise])
    most = results[0]["max_score"] if results else 0
    table.writerow(["Points Possible", "", "", "", "", f"{most:.10g}"])
    for result in results:
        student = result["student"]
        table.writerow([student, "", "", student, "", f"{result['score']:.10g}"])
    return text.getvalue()
