"""The command line: `kdcourse assign`, `grade`, `check`, `report` and `similar`.

`check` is for learners and needs nothing beyond the package itself; the others need its extra
`grading`, and say so where that is not installed.
"""

import argparse
import contextlib
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


def main(arguments: list[str] | None = None) -> int:
    """The entry point `kdcourse`; returns its exit code.

    That is 0 when all went well, 1 when grading could not be finished, 2 for a wrong call, and 130
    when it was interrupted.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # A console that cannot show ✓ shows ?, and lines come in the order they are said in.
            stream.reconfigure(errors="replace", line_buffering=True)
    options = _parser().parse_args((sys.argv[1:] if arguments is None else arguments) or ["--help"])
    try:
        options.run(options)
    except ModuleNotFoundError as error:
        return _say(2, _missing(str(error.name)))
    except (RuntimeError, OSError) as error:  # a full disk, say
        return _say(1, error)
    except KeyboardInterrupt:
        return _say(130, "interrupted: what is done is kept; the same command goes on")
    return 0


def assign(options: argparse.Namespace) -> None:
    """Make the student's notebook, its solution and a private answer key."""
    from .grading.assign import assign as make
    from .grading.key import find_master
    from .grading.sandbox import check_bubblewrap

    out = options.out
    with _wrong_call():
        isolation: Any = "bwrap"
        try:
            check_bubblewrap()
        except RuntimeError:  # the master is our own code: here it runs without
            isolation = "none"
        made = make(find_master(options.exercise), out, isolation=isolation, update=options.update)
    print(f"{out}/student.ipynb    hand this out")
    print(f"{out}/solution.ipynb   earns {made.exercise.max_score:g} points")
    print(f"{out}/key/             keep this private; `grade --key` needs it")


def grade(options: argparse.Namespace) -> None:
    """Grade a folder of submissions: STUDENT.ipynb, or one folder per student."""
    from .grading.grade import Settings, grade_all
    from .grading.gradebook import moment, read_terms
    from .grading.sandbox import check_bubblewrap
    from .grading.submission import find_submissions, read_roster, strangers

    with _wrong_call():
        if options.sandbox == "bwrap":
            check_bubblewrap()
        until = moment(options.deadline) if options.deadline is not None else None
        key = _open_key(options)
        settings = Settings(
            key=key.folder.resolve(),
            seconds=options.timeout or key.exercise.seconds,
            memory_mib=options.memory or key.exercise.memory,
            isolation=options.sandbox,
        )
        students = read_roster(options.roster) if options.roster else None
        found = find_submissions(options.submissions, students)
        terms = read_terms(
            found,
            key.exercise,
            deadline=until,
            per_day=options.late_per_day,
            cap=options.late_cap,
            missing_is_blank=options.missing == "blank",
            times=options.times,
            manual=options.manual,
        )
    if students is not None and (extra := strangers(found, students)):
        _note(f"not in the roster, but graded: {', '.join(extra)}")
    with _progress() as advance:
        results = grade_all(
            options.submissions,
            options.out,
            settings,
            roster=students,
            terms=terms,
            jobs=options.jobs,
            scheduler=options.scheduler,
            resume=options.resume,
            progress=advance,
            announce=print,
        )
    print(f"{len(results)} results in {options.out}/grades.csv, pages in {options.out}/feedback/")


def check(options: argparse.Namespace) -> None:
    """Run your own notebook afresh, with short runs, and show its public checks."""
    from .grading.public import check_file

    with _wrong_call():
        lines = check_file(options.notebook, seconds=options.timeout)
    for line in lines:
        print(line, flush=True)


def report(options: argparse.Namespace) -> None:
    """Show the class at a glance, as text, as a picture and as a page."""
    from .grading import report as room

    folder = options.folder
    with _wrong_call():
        summary = room.summarize(room.load_results(folder), room.load_finals(folder))
    room.print_report(summary)
    print(f"the same as a page: {room.write_report(summary, folder, folder.resolve().name)}")


def similar(options: argparse.Namespace) -> None:
    """Show submissions that look alike, or like the published solution: a flag, not a verdict."""
    from .grading.key import find_master
    from .grading.similar import find_similar, print_pairs, to_csv
    from .grading.submission import find_submissions
    from .notebooks import read_source

    with _wrong_call():
        master = read_source(find_master(options.exercise), explicit_ids=True)
        found = find_submissions(options.submissions)
        pairs = find_similar(found, master, threshold=options.threshold)
        if options.out is not None:
            options.out.write_text(to_csv(pairs), encoding="utf-8")
    print_pairs(pairs, len(found), options.threshold)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kdcourse", description="Hand out, grade and check the course's exercises."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for run, arguments in (
        (assign, _for_assign),
        (grade, _for_grade),
        (check, _for_check),
        (report, _for_report),
        (similar, _for_similar),
    ):
        words = str(run.__doc__)
        made = commands.add_parser(run.__name__, help=words, description=words, allow_abbrev=False)
        made.set_defaults(run=run)
        arguments(made.add_argument)
    return parser


def _for_assign(add: Callable[..., Any]) -> None:
    _exercise(add)
    add("--out", **_OUT, help="folder for student.ipynb, solution.ipynb and key/")
    add("--update", action="store_true", help="renew OUT/key from the master; hidden inputs stay")


def _for_grade(add: Callable[..., Any]) -> None:
    _exercise(add)
    add("submissions", type=_folder, help="a folder: STUDENT.ipynb, or one folder per student")
    add("--out", **_OUT, help="folder for results, feedback and grades.csv")
    add("--key", type=Path, help="made by assign; else one in OUT/key")
    add("--roster", type=_file, help="CSV: student")
    add("--jobs", type=_number(int, 1), default=1, help="runs at the same time")
    add("--scheduler", help="address of a Dask scheduler")
    add("--timeout", type=_number(float, 1), help="seconds for one run")
    add("--memory", type=_number(int, 256), help="MiB for one run")
    add("--resume", action="store_true", default=True, help="keep finished work; the default")
    add("--fresh", dest="resume", action="store_false", help="grade everything again")
    add("--sandbox", choices=["bwrap", "none"], default="bwrap", help="none: no isolation")
    add("--deadline", help="2026-03-02T18:00, local time")
    percent = _number(float, 0, 100)
    add("--late-per-day", type=percent, default=10.0, help="percent lost a started day; else 10")
    add("--late-cap", type=percent, default=100.0, help="at most so many percent; else 100")
    times = "CSV: student, submitted, and deadline for extensions; else the files' own times"
    add("--times", type=_file, help=times)
    add("--missing", choices=["zero", "blank"], default="zero", help="the grade where no file is")
    add("--manual", type=_file, help="CSV: student, part, points, comment")


def _for_check(add: Callable[..., Any]) -> None:
    add("notebook", type=_file, help="your notebook, as you saved it")
    add("--timeout", type=_number(float, 1), default=600.0, help="seconds for all of it; else 600")


def _for_report(add: Callable[..., Any]) -> None:
    add("folder", type=_folder, help="the folder that `grade` wrote")


def _for_similar(add: Callable[..., Any]) -> None:
    _exercise(add)
    add("submissions", type=_folder, help="the folder that `grade` graded")
    add("--threshold", type=_number(float, 0, 1), default=0.6, help="show pairs from here on")
    add("--out", type=Path, help="also write the pairs to this CSV file")


def _exercise(add: Callable[..., Any]) -> None:
    add("exercise", help="the stem of a notebook of the course: temperature; or your own MASTER.md")


def _folder(text: str) -> Path:
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"the folder {text!r} does not exist")
    return Path(text)


def _file(text: str) -> Path:
    if not Path(text).is_file():
        raise argparse.ArgumentTypeError(f"the file {text!r} does not exist")
    return Path(text)


def _number(kind: type, least: float, most: float = math.inf) -> Callable[[str], Any]:
    """Reads a number between two bounds."""

    def number(text: str) -> Any:
        value = kind(text)
        if not least <= value <= most:
            limit = f"at most {most:g}" if value > most else f"at least {least:g}"
            raise argparse.ArgumentTypeError(f"{limit}, got {text}")
        return value

    return number


def _open_key(options: argparse.Namespace) -> Any:
    """The answer key to grade with; where none was named, one of its own is kept in OUT."""
    from .grading.assign import write_key
    from .grading.key import Key, find_master
    from .notebooks import read_source

    master = find_master(options.exercise)
    source = read_source(master, explicit_ids=True)
    folder = options.key or options.out / "key"
    if options.key is None and not folder.exists():
        print("drawing a new answer key from the master's own run")
        return write_key(source, master.stem, folder, isolation=options.sandbox)
    made = Key(folder)
    if made.exercise.name != master.stem:
        raise ValueError(f"{folder} is the key of {made.exercise.name!r}, not {options.exercise!r}")
    if made.is_older_than(source):
        _note(
            f"{master.name} has changed since {folder} was made, which grades as before; "
            "`assign --update` renews the key"
        )
    return made


def _note(message: str) -> None:
    print(f"kdcourse: note: {message}", file=sys.stderr)


def _say(code: int, message: object) -> int:
    print(f"kdcourse: {message}", file=sys.stderr)
    return code


@contextlib.contextmanager
def _wrong_call() -> Iterator[None]:
    """Whatever is wrong in here is told, and ends the command with 2."""
    from .grading.submission import InvalidSubmission

    try:
        yield
    except (ValueError, RuntimeError, OSError, InvalidSubmission) as error:
        raise SystemExit(_say(2, error)) from None


def _missing(module: str) -> str:
    """What to do where a module is not installed."""
    from .notebooks import fill_placeholders

    if module == "fcntl":
        return "this works on Linux only; on Windows, in WSL. `kdcourse check` works everywhere"
    package = fill_placeholders('"kdcourse[grading] @ git+{{repository}}@{{tag}}"')
    return (
        f"this needs the module {module!r}, which is not here. What kdcourse itself needs for it "
        f"comes with: python -m pip install {package}"
    )


def _progress() -> Any:
    """A context that gives a callback, which shows done, left and failures."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    @contextlib.contextmanager
    def showing() -> Iterator[Callable[[int, int, dict[str, Any] | None], None]]:
        columns = (TextColumn("grading"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, TextColumn("{task.description}")) as bar:
            task = bar.add_task("", total=None)
            failures = 0

            def advance(done: int, total: int, result: dict[str, Any] | None) -> None:
                nonlocal failures
                failures += result is not None and result["status"] != "graded"
                words = f"{total - done} left, {failures} not graded to the end"
                bar.update(task, completed=done, total=total, description=words)

            yield advance

    return showing()


_OUT: dict[str, Any] = {"type": Path, "required": True}

if __name__ == "__main__":
    sys.exit(main())
