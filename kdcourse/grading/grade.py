"""Grade a folder of submissions: one result file each, in parallel, resumable."""

import ctypes
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import signal
import site
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from . import archive, exports, feedback
from .execute import MachineFailure, executed_for
from .files import locked, remove_drafts, write_atomic, write_if_new
from .gradebook import AS_EARNED, Terms, grade_of, grades
from .key import Key
from .sandbox import WARM, Limits, Sandbox, check_bubblewrap
from .score import PartScore, nothing, score_parts
from .submission import (
    InvalidSubmission,
    Submission,
    find_submissions,
    parse_cells,
    read_bytes,
    rebuild,
)

_PR_SET_PDEATHSIG = 1
FEW = 5


@dataclass(frozen=True)
class Settings:
    """How a class is graded; all of it is part of what makes two results the same."""

    key: Path
    seconds: float
    memory_mib: int
    isolation: Sandbox


@dataclass(frozen=True)
class Fingerprint:
    """Hashes of what a result depends on.

    Attributes:
        run: all that the run depends on: submission, cells, hidden inputs, environment, limits.
        key: the answer key, with everything that judges answers.
        whole: both.
    """

    run: str
    key: str
    whole: str


@dataclass(frozen=True)
class Work:
    """What is to do for one submission: a run, or only to judge an earlier run's answers again."""

    submission: Submission
    fingerprint: Fingerprint
    earlier: dict[str, Any] | None = None
    answers: Path | None = None


def grade_all(
    submissions_folder: Path,
    out: Path,
    settings: Settings,
    *,
    roster: list[str] | None = None,
    terms: Terms = AS_EARNED,
    jobs: int = 1,
    scheduler: str | None = None,
    resume: bool = True,
    progress: Callable[[int, int, dict[str, Any] | None], None] | None = None,
    announce: Callable[[str], None] | None = None,
) -> list[dict[str, Any]]:
    """Grade every submission that has no result yet, and write the class's files.

    Args:
        submissions_folder: one file or one folder per student.
        out: gets `results/*.json`, `answers/*.zip`, `feedback/*.html`, `gradescope/*.json`,
            `grades.csv`, `canvas.csv` and `moodle.csv`.
        settings: key and limits.
        roster: students who must have a row.
        terms: what turns a score into a grade.
        jobs: how many runs at the same time.
        scheduler: address of a Dask scheduler whose workers share this file system.
        resume: keep results whose submission, key and environment are the same, and only judge
            again the answers of runs to which only the key's judging has changed.
        progress: called with done, total and a result, kept or new; first with none.
        announce: called once, with how much will be kept, judged again and graded.

    Returns:
        The results, one per student, sorted by name.

    A submission that the machine failed (no disk or memory left, a worker dead, a fault of the
    grader's) has no result. Each such run is repeated once, when nothing else runs.

    Raises:
        RuntimeError: when another grader is at work in `out`; or when the machine or the grader
            failed on some submissions twice: all others have a result, and the same call tries the
            rest again.
    """
    if settings.isolation == "bwrap":
        check_bubblewrap()
    key = Key(settings.key)
    submissions = find_submissions(submissions_folder, roster)
    results: dict[str, dict[str, Any]] = {}
    waiting: list[Work] = []
    faults: dict[str, str] = {}
    for submission in submissions:
        fingerprint = fingerprint_of(submission, key, settings)
        earlier = _earlier(out, submission.student) if resume else {}
        if earlier.get("fingerprint") == fingerprint.whole:
            results[submission.student] = earlier
        else:
            waiting.append(_work(submission, fingerprint, earlier, out))
    if announce is not None:
        again = sum(work.earlier is not None for work in waiting)
        announce(
            f"{len(results)} results kept, {again} to judge again from stored answers, "
            f"{len(waiting) - again} to grade"
        )
    if progress is not None:
        progress(0, len(submissions), None)
        for number, kept in enumerate(results.values(), start=1):
            progress(number, len(submissions), kept)
    with locked(out):
        remove_drafts(out)

        def finish(works: list[Work], jobs: int, scheduler: str | None, alone: bool) -> None:
            for result in _graded(works, settings, jobs, scheduler, alone):
                if "fault" in result:
                    faults[result["student"]] = result["fault"]
                    continue
                try:
                    save(result, terms, out)
                except (OSError, ValueError) as error:  # a full disk, or words no file can hold
                    faults[result["student"]] = f"{type(error).__name__}: {str(error)[:300]}"
                    continue
                faults.pop(result["student"], None)
                results[result["student"]] = result
                if progress is not None:
                    progress(len(results), len(submissions), result)

        try:
            finish(waiting, jobs, scheduler, alone=False)
            repeated = [work for work in waiting if work.submission.student in faults]
            if repeated:
                if announce is not None:
                    announce(_told(faults, "; they are graded once more, one by one"))
                finish(repeated, 1, None, alone=True)
        finally:
            done = [results[student] for student in sorted(results)]
            write_class(done, key, terms, out)
    if faults:
        raise RuntimeError(
            _told(faults, " twice, so that they have no result; the same command tries them again")
        )
    return done


def _told(faults: dict[str, str], end: str) -> str:
    """What failed, and on whom; of many the first few, which say why."""
    words = [f"{student}:\n{fault}" for student, fault in sorted(faults.items())]
    if len(words) > FEW:
        words[FEW:] = [f"and {len(words) - FEW} more: {', '.join(sorted(faults)[FEW:])}"]
    listed = "\n".join(words)
    return f"the machine or the grader failed on {len(faults)} submissions{end}\n{listed}"


def grade_one(
    submission: Submission, fingerprint: Fingerprint, settings: Settings, *, alone: bool = False
) -> dict[str, Any]:
    """The result of one submission; whatever is in it, this returns.

    Beside the result there is `archive`, the run's answers, which `save` puts into their own file.
    """
    key = _key(settings.key, fingerprint.key)
    result: dict[str, Any] = {
        "student": submission.student,
        "submission": ", ".join(_shown(path) for path in submission.files),
        "fingerprint": fingerprint.whole,
        "run": fingerprint.run,
        "answers": None,
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
            with executed_for(
                key, notebook, limits=limits, isolation=settings.isolation, alone=alone
            ) as run:
                parts = score_parts(run.answers, key)
                packed = archive.pack(run.answers, key)
                result |= vars(run) | {"answers": packed and _sha256(packed), "archive": packed}
    return result | _points(parts, key)


def judge_again(work: Work, settings: Settings) -> dict[str, Any]:
    """The result of an earlier run, its answers judged by the key as it is now."""
    assert work.earlier is not None and work.answers is not None
    key = _key(settings.key, work.fingerprint.key)
    with archive.unpacked(work.answers.read_bytes()) as folder:
        parts = score_parts(folder, key)
    return work.earlier | {"fingerprint": work.fingerprint.whole} | _points(parts, key)


def _points(parts: list[PartScore], key: Key) -> dict[str, Any]:
    return {
        "parts": [asdict(part) for part in parts],
        "score": round(sum(part.score for part in parts), 4),
        "max_score": key.exercise.max_score,
    }


def _grade_safely(work: Work, settings: Settings, alone: bool = False) -> dict[str, Any]:
    """The result, or what failed that is not the student's and must not stop the others."""
    try:
        if work.earlier is None:
            return grade_one(work.submission, work.fingerprint, settings, alone=alone)
        return judge_again(work, settings)
    except (MachineFailure, OSError, MemoryError) as error:
        fault = f"{type(error).__name__}: {str(error)[:300]}"
    except Exception:
        fault = traceback.format_exc()
    return _fault(work, fault)


def _fault(work: Work, words: str) -> dict[str, Any]:
    return {"student": work.submission.student, "fault": words}


def fingerprint_of(submission: Submission, key: Key, settings: Settings) -> Fingerprint:
    """Hashes of all that a result depends on: submission, key and environment."""
    total = hashlib.sha256()
    for path in submission.files:
        try:
            content = hashlib.sha256(read_bytes(path)).hexdigest()
        except InvalidSubmission as problem:
            content = str(problem)
        total.update(f"{_shown(path)}\0{content}\0".encode())
    limits = f"{settings.seconds}\0{settings.memory_mib}\0{settings.isolation}"
    total.update(f"{key.run_digest}\0{environment_digest()}\0{limits}".encode())
    run = total.hexdigest()
    return Fingerprint(run, key.digest, _sha256(f"{run}\0{key.digest}".encode()))


@lru_cache(maxsize=1)
def environment_digest() -> str:
    """A hash of Python, the installed packages and this package's own files."""
    total = hashlib.sha256(f"{sys.version}\0{platform.machine()}".encode())
    for item in sorted(
        f"{dist.metadata['Name']}=={dist.version}"
        for dist in importlib.metadata.distributions(path=_installed())
    ):
        total.update(item.encode())
    package = Path(__file__).resolve().parents[1]
    # Not what Python compiles: while other programs start, it writes there under passing names.
    for path in sorted(package.rglob("*")):
        if path.is_file() and path.parent.name != "__pycache__":
            total.update(path.relative_to(package).as_posix().encode() + b"\0")
            total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def _installed() -> list[str]:
    """The folders of installed packages; to `sys.path`, libraries add folders of their own."""
    own = [site.getusersitepackages()] if site.ENABLE_USER_SITE else []
    return [*site.getsitepackages(), *own]


def result_path(out: Path, student: str) -> Path:
    """Where a student's result is kept; the name is safe whatever the student is called."""
    return out / "results" / f"{safe_name(student)}.json"


def answers_path(out: Path, student: str) -> Path:
    """Where the plain answers of a student's run are kept."""
    return out / "answers" / f"{safe_name(student)}.zip"


def safe_name(student: str) -> str:
    """A file name for a student.

    >>> safe_name("../{x} 'y'")
    'x-y-3146984b'
    """
    plain = re.sub(r"[^A-Za-z0-9]+", "-", student).strip("-")[:40]
    return f"{plain or 'student'}-{hashlib.sha256(student.encode()).hexdigest()[:8]}"


def save(result: dict[str, Any], terms: Terms, out: Path) -> None:
    """Write one result, last of all, after what is made from it."""
    if (packed := result.pop("archive", None)) is not None:
        write_atomic(answers_path(out, result["student"]), packed)
    write_pages(result, terms, out)
    data = json.dumps(result, indent=1, sort_keys=True) + "\n"
    write_atomic(result_path(out, result["student"]), data.encode())


def write_pages(result: dict[str, Any], terms: Terms, out: Path) -> None:
    """What a student sees: the feedback page, and Gradescope's file."""
    name, grade = safe_name(result["student"]), grade_of(result, terms)
    write_if_new(out / "feedback" / f"{name}.html", feedback.page(result, grade).encode())
    write_if_new(out / "gradescope" / f"{name}.json", exports.gradescope(result, grade).encode())


def write_class(results: list[dict[str, Any]], key: Key, terms: Terms, out: Path) -> None:
    """The files of the whole class."""
    for result in results:
        write_pages(result, terms, out)
    graded = [(result, grade_of(result, terms)) for result in results]
    name = key.exercise.name
    write_atomic(out / "grades.csv", grades(results, key.exercise, terms).encode())
    write_atomic(out / "canvas.csv", exports.canvas(graded, name).encode())
    write_atomic(out / "moodle.csv", exports.moodle(graded, name).encode())


def _graded(
    waiting: list[Work], settings: Settings, jobs: int, scheduler: str | None, alone: bool
) -> Iterator[dict[str, Any]]:
    """The results as they come, from this process, from others, or from a cluster."""
    if scheduler is not None:
        yield from _graded_on(scheduler, waiting, settings)
    elif jobs == 1 or len(waiting) < 2:
        try:
            for item in waiting:
                yield _grade_safely(item, settings, alone)
        finally:
            WARM.close()
    else:
        yield from _graded_in_workers(waiting, settings, jobs)


def _graded_on(scheduler: str, waiting: list[Work], settings: Settings) -> Iterator[dict[str, Any]]:
    from distributed import Client, as_completed

    with Client(scheduler) as client:
        submitted: dict[str, Work] = {}

        def futures() -> Iterator[Any]:
            for work in waiting:
                future = client.submit(_grade_safely, work, settings, pure=False)
                submitted[future.key] = work
                yield future

        # Only what is not here yet is held: of a worker that dies, no more is done again.
        for future in as_completed(futures()):
            try:
                yield future.result()
            except Exception:  # the workers died of it, again and again
                yield _fault(submitted[future.key], traceback.format_exc())


def _graded_in_workers(
    waiting: list[Work], settings: Settings, jobs: int
) -> Iterator[dict[str, Any]]:
    from joblib import Parallel, delayed
    from joblib.externals.loky import get_reusable_executor
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    left = {work.submission.student: work for work in waiting}
    pool = Parallel(n_jobs=min(jobs, len(waiting)), return_as="generator_unordered")
    try:
        for result in pool(
            delayed(_grade_in_worker)(item, settings, os.getpid()) for item in waiting
        ):
            del left[result["student"]]
            yield result
    except TerminatedWorkerError:
        for work in left.values():
            yield _fault(work, "a process that graded died; was this machine's memory used up?")
    finally:
        get_reusable_executor().shutdown()


def _grade_in_worker(work: Work, settings: Settings, grader: int) -> dict[str, Any]:
    """Grade in a process of joblib's, which must not outlive a grader that is killed."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != grader:
        os._exit(1)
    return _grade_safely(work, settings)


@lru_cache(maxsize=4)
def _key(folder: Path, digest: str) -> Key:
    """The key that the fingerprints were made for; a worker may have served another before."""
    key = Key(folder)
    if key.digest != digest:
        raise RuntimeError(f"the answer key {folder} changed while it was in use: grade again")
    return key


def _earlier(out: Path, student: str) -> dict[str, Any]:
    """The result that is there already, or nothing."""
    try:
        return json.loads(result_path(out, student).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _work(
    submission: Submission, fingerprint: Fingerprint, earlier: dict[str, Any], out: Path
) -> Work:
    """Judging is enough where the same run has left its answers and nobody touched them."""
    if earlier.get("run") == fingerprint.run and earlier.get("answers") is not None:
        path = answers_path(out, submission.student)
        if path.is_file() and _sha256(path.read_bytes()) == earlier["answers"]:
            return Work(submission, fingerprint, earlier, path.resolve())
    return Work(submission, fingerprint)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _shown(path: Path) -> str:
    return os.fsencode(path.name).decode("utf-8", "backslashreplace")
