"""Grade a folder of submissions: one result file each, in parallel, resumable."""

import csv
import hashlib
import importlib.metadata
import io
import json
import os
import platform
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from . import exports, feedback
from .execute import executed_for
from .files import write_atomic
from .key import Key
from .sandbox import Limits, Sandbox, check_bubblewrap
from .score import nothing, score_parts
from .submission import (
    InvalidSubmission,
    Submission,
    find_submissions,
    parse_cells,
    read_bytes,
    rebuild,
)


@dataclass(frozen=True)
class Settings:
    """How a class is graded; all of it is part of what makes two results the same."""

    key: Path
    seconds: float
    memory_mib: int
    isolation: Sandbox


def grade_all(
    submissions_folder: Path,
    out: Path,
    settings: Settings,
    *,
    roster: list[str] | None = None,
    jobs: int = 1,
    scheduler: str | None = None,
    resume: bool = True,
    progress: Callable[[int, int, dict[str, Any]], None] | None = None,
) -> list[dict[str, Any]]:
    """Grade every submission that has no result yet, and write the class's files.

    Args:
        submissions_folder: one file or one folder per student.
        out: gets `results/*.json`, `feedback/*.html`, `gradescope/*.json`, `grades.csv` and
            `canvas.csv`.
        settings: key and limits.
        roster: students who must have a row.
        jobs: how many runs at the same time.
        scheduler: address of a Dask scheduler whose workers share this file system.
        resume: keep results whose submission, key and environment are the same.
        progress: called with done, total and the new result.

    Returns:
        The results, one per student, sorted by name.

    Raises:
        RuntimeError: when the grader itself failed on some submissions; all others have a result,
            and the same call tries the rest again.
    """
    if settings.isolation == "bwrap":
        check_bubblewrap()
    key = Key(settings.key)
    submissions = find_submissions(submissions_folder, roster)
    results: dict[str, dict[str, Any]] = {}
    waiting, faults = [], []
    for submission in submissions:
        fingerprint = fingerprint_of(submission, key, settings)
        kept = _kept(result_path(out, submission.student), fingerprint) if resume else None
        if kept is None:
            waiting.append((submission, fingerprint))
        else:
            results[submission.student] = kept
    try:
        for result in _graded(waiting, settings, jobs, scheduler):
            if "fault" in result:
                faults.append(result)
                continue
            save(result, out)
            results[result["student"]] = result
            if progress is not None:
                progress(len(results), len(submissions), result)
    finally:
        done = [results[student] for student in sorted(results)]
        write_grades(done, key, out / "grades.csv")
        write_atomic(out / "canvas.csv", exports.canvas(done, key.exercise.name).encode())
    if faults:
        words = "\n".join(f"{fault['student']}:\n{fault['fault']}" for fault in faults)
        raise RuntimeError(f"the grader failed on {len(faults)} submissions:\n{words}")
    return done


def grade_one(submission: Submission, fingerprint: str, settings: Settings) -> dict[str, Any]:
    """The result of one submission; whatever is in it, this returns."""
    key = _key(settings.key)
    result: dict[str, Any] = {
        "student": submission.student,
        "submission": ", ".join(_shown(path) for path in submission.files),
        "fingerprint": fingerprint,
        "sandbox": settings.isolation,
        "status": "graded",
        "note": "",
        "errors": [],
        "outputs": [],
        "seconds": {},
        "peak_mib": 0,
    }
    notes = {
        "missing": "nothing was handed in",
        "duplicate": "more than one notebook was handed in; tell your instructor which one counts",
    }
    parts = nothing(key)
    if submission.problem:
        result |= {"status": submission.problem, "note": notes[submission.problem]}
    else:
        try:
            notebook = rebuild(key.master, parse_cells(read_bytes(submission.files[0])))
        except InvalidSubmission as problem:
            result |= {"status": "invalid", "note": str(problem)}
        else:
            limits = Limits(settings.seconds, settings.memory_mib)
            isolation = settings.isolation
            with executed_for(key, notebook, limits=limits, isolation=isolation) as run:
                parts = score_parts(run.answers, key)
                result |= {name: value for name, value in vars(run).items() if name != "answers"}
    result["parts"] = [asdict(part) for part in parts]
    result["score"] = round(sum(part.score for part in parts), 4)
    result["max_score"] = key.exercise.max_score
    return result


def _grade_safely(submission: Submission, fingerprint: str, settings: Settings) -> dict[str, Any]:
    """What `grade_one` returns, or the fault of ours that must not stop the other students."""
    try:
        return grade_one(submission, fingerprint, settings)
    except Exception:
        return {"student": submission.student, "fault": traceback.format_exc()}


def fingerprint_of(submission: Submission, key: Key, settings: Settings) -> str:
    """A hash of all that a result depends on: submission, key and environment."""
    total = hashlib.sha256()
    for path in submission.files:
        try:
            content = hashlib.sha256(read_bytes(path)).hexdigest()
        except InvalidSubmission as problem:
            content = str(problem)
        total.update(f"{_shown(path)}\0{content}\0".encode())
    limits = f"{settings.seconds}\0{settings.memory_mib}\0{settings.isolation}"
    total.update(f"{key.digest}\0{environment_digest()}\0{limits}".encode())
    return total.hexdigest()


@lru_cache(maxsize=1)
def environment_digest() -> str:
    """A hash of Python, the installed packages and this package's own files."""
    total = hashlib.sha256(f"{sys.version}\0{platform.machine()}".encode())
    for item in sorted(
        f"{dist.metadata['Name']}=={dist.version}" for dist in importlib.metadata.distributions()
    ):
        total.update(item.encode())
    package = Path(__file__).resolve().parents[1]
    for path in sorted(package.rglob("*")):
        if path.is_file() and path.suffix != ".pyc":
            total.update(path.read_bytes())
    return total.hexdigest()


def result_path(out: Path, student: str) -> Path:
    """Where a student's result is kept; the name is safe whatever the student is called."""
    return out / "results" / f"{safe_name(student)}.json"


def safe_name(student: str) -> str:
    """A file name for a student.

    >>> safe_name("../{x} 'y'")
    'x-y-3146984b'
    """
    plain = re.sub(r"[^A-Za-z0-9]+", "-", student).strip("-")[:40]
    return f"{plain or 'student'}-{hashlib.sha256(student.encode()).hexdigest()[:8]}"


def save(result: dict[str, Any], out: Path) -> None:
    """Write one result, last of all, after what is made from it."""
    name = safe_name(result["student"])
    write_atomic(out / "feedback" / f"{name}.html", feedback.page(result).encode())
    write_atomic(out / "gradescope" / f"{name}.json", exports.gradescope(result).encode())
    data = json.dumps(result, indent=1, sort_keys=True) + "\n"
    write_atomic(result_path(out, result["student"]), data.encode())


def write_grades(results: list[dict[str, Any]], key: Key, path: Path) -> None:
    """The class as CSV: one row per student, one column per part."""
    names = [part.part for part in key.exercise.parts]
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["student", "submission", "status", "score", "max_score", *names])
    for result in results:
        scores = {part["part"]: part["score"] for part in result["parts"]}
        row = [result["student"], result["submission"], result["status"]]
        numbers = [result["score"], result["max_score"], *(scores[name] for name in names)]
        table.writerow([*row, *(f"{number:.10g}" for number in numbers)])
    write_atomic(path, text.getvalue().encode())


def _graded(
    waiting: list[tuple[Submission, str]], settings: Settings, jobs: int, scheduler: str | None
) -> Iterator[dict[str, Any]]:
    """The results as they come, from this process, from others, or from a cluster."""
    if scheduler is not None:
        from distributed import Client, as_completed

        with Client(scheduler) as client:
            futures = [
                client.submit(_grade_safely, *item, settings, pure=False) for item in waiting
            ]
            for future in as_completed(futures):
                yield future.result()
    elif jobs == 1 or len(waiting) < 2:
        for item in waiting:
            yield _grade_safely(*item, settings)
    else:
        from joblib import Parallel, delayed

        pool = Parallel(n_jobs=min(jobs, len(waiting)), return_as="generator_unordered")
        yield from pool(delayed(_grade_safely)(*item, settings) for item in waiting)


@lru_cache(maxsize=4)
def _key(folder: Path) -> Key:
    return Key(folder)


def _kept(path: Path, fingerprint: str) -> dict[str, Any] | None:
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return result if result.get("fingerprint") == fingerprint else None


def _shown(path: Path) -> str:
    return os.fsencode(path.name).decode("utf-8", "backslashreplace")
