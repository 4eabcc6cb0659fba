"""The command line: `kdcourse assign`, `grade`, `check`, `report` and `similar`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

app = typer.Typer(
    help="Hand out, grade and check the course's exercises.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


class Missing(StrEnum):
    """What a student without a submission gets."""

    ZERO = "zero"
    BLANK = "blank"


class Isolation(StrEnum):
    """How submissions are kept away from everything else."""

    BWRAP = "bwrap"
    NONE = "none"


Exercise = Annotated[str, typer.Argument(help="The stem of the exercise's notebook: temperature")]


@app.command()
def assign(
    exercise: Exercise,
    out: Annotated[Path, typer.Option(help="Folder for student.ipynb, solution.ipynb and key/")],
    update: Annotated[
        bool, typer.Option("--update", help="Renew OUT/key from the master; hidden inputs stay")
    ] = False,
) -> None:
    """Make the student's notebook, its solution and a private answer key."""
    import shutil

    from .grading.assign import assign as make
    from .grading.key import find_master

    try:
        # The master is our own code: it runs without bubblewrap where there is none.
        isolation: Any = "bwrap" if shutil.which("bwrap") else "none"
        made = make(find_master(exercise), out, isolation=isolation, update=update)
    except ValueError as error:
        _stop(error)
    typer.echo(f"{out}/student.ipynb    hand this out")
    typer.echo(f"{out}/solution.ipynb   earns {made.exercise.max_score:g} points")
    typer.echo(f"{out}/key/             keep this private; `grade --key` needs it")


@app.command()
def grade(
    exercise: Exercise,
    submissions: Annotated[Path, typer.Argument(exists=True, file_okay=False)],
    out: Annotated[Path, typer.Option(help="Folder for results, feedback and grades.csv")],
    key: Annotated[Path | None, typer.Option(help="Made by assign; else one in OUT/key")] = None,
    roster: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="CSV: student")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at the same time")] = 1,
    scheduler: Annotated[str | None, typer.Option(help="Address of a Dask scheduler")] = None,
    timeout: Annotated[float | None, typer.Option(min=1, help="Seconds for one run")] = None,
    memory: Annotated[int | None, typer.Option(min=256, help="MiB for one run")] = None,
    resume: Annotated[bool, typer.Option("--resume/--fresh", help="Keep finished work")] = True,
    sandbox: Annotated[Isolation, typer.Option(help="none: no isolation")] = Isolation.BWRAP,
    deadline: Annotated[str | None, typer.Option(help="2026-03-02T18:00, local time")] = None,
    late_per_day: Annotated[
        float, typer.Option(min=0, max=100, help="Percent of the points lost a started day")
    ] = 10,
    late_cap: Annotated[float, typer.Option(min=0, max=100, help="At most so many percent")] = 100,
    times: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="CSV: student, submitted, and deadline for extensions; else the files' own times",
        ),
    ] = None,
    missing: Annotated[Missing, typer.Option(help="The grade where no file is")] = Missing.ZERO,
    manual: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="CSV: student, part, points, comment"),
    ] = None,
) -> None:
    """Grade a folder of submissions: STUDENT.ipynb, or one folder per student."""
    from .grading.grade import Settings, grade_all
    from .grading.gradebook import moment, read_terms
    from .grading.sandbox import check_bubblewrap
    from .grading.submission import find_submissions, read_roster, strangers

    try:
        if sandbox == Isolation.BWRAP:
            check_bubblewrap()
        until = moment(deadline) if deadline is not None else None
        made = _open_key(exercise, key, out, sandbox)
        settings = Settings(
            key=made.folder.resolve(),
            seconds=timeout or made.exercise.seconds,
            memory_mib=memory or made.exercise.memory,
            isolation=sandbox.value,
        )
        students = read_roster(roster) if roster else None
        found = find_submissions(submissions, students)
        terms = read_terms(
            found,
            made.exercise,
            deadline=until,
            per_day=late_per_day,
            cap=late_cap,
            missing_is_blank=missing == Missing.BLANK,
            times=times,
            manual=manual,
        )
    except (ValueError, RuntimeError, OSError) as error:
        _stop(error)
    if students is not None and (extra := strangers(found, students)):
        _warn(f"not in the roster, but graded: {', '.join(extra)}")
    try:
        with _progress() as advance:
            results = grade_all(
                submissions,
                out,
                settings,
                roster=students,
                terms=terms,
                jobs=jobs,
                scheduler=scheduler,
                resume=resume,
                progress=advance,
                announce=typer.echo,
            )
    except RuntimeError as error:
        typer.echo(f"kdcourse: {error}", err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        typer.echo("interrupted: what is done is kept; the same command goes on", err=True)
        raise typer.Exit(130) from None
    typer.echo(f"{len(results)} results in {out}/grades.csv, pages in {out}/feedback/")


@app.command()
def check(
    notebook: Annotated[Path, typer.Argument(exists=True, dir_okay=False)],
    timeout: Annotated[float, typer.Option(min=1, help="Seconds for the whole notebook")] = 600,
) -> None:
    """Run your own notebook afresh, with short runs, and show its public checks."""
    from .grading.public import check_file
    from .grading.submission import InvalidSubmission

    try:
        for line in check_file(notebook, seconds=timeout):
            typer.echo(line)
    except InvalidSubmission as problem:
        _stop(problem)


@app.command()
def report(folder: Annotated[Path, typer.Argument(exists=True, file_okay=False)]) -> None:
    """Show the class at a glance, as text, as a picture and as a page."""
    from .grading import report as room

    try:
        summary = room.summarize(room.load_results(folder), room.load_finals(folder))
    except ValueError as error:
        _stop(error)
    room.print_report(summary)
    typer.echo(f"the same as a page: {room.write_report(summary, folder, folder.resolve().name)}")


@app.command()
def similar(
    exercise: Exercise,
    submissions: Annotated[Path, typer.Argument(exists=True, file_okay=False)],
    threshold: Annotated[float, typer.Option(min=0, max=1, help="Show pairs from here on")] = 0.6,
    out: Annotated[Path | None, typer.Option(help="Also write the pairs to this CSV file")] = None,
) -> None:
    """Show submissions that look alike, or like the published solution: a flag, not a verdict."""
    from .grading.key import find_master
    from .grading.similar import find_similar, print_pairs, to_csv
    from .grading.submission import find_submissions
    from .notebooks import read_source

    try:
        master = read_source(find_master(exercise), explicit_ids=True)
        found = find_submissions(submissions)
        pairs = find_similar(found, master, threshold=threshold)
        if out is not None:
            out.write_text(to_csv(pairs), encoding="utf-8")
    except (ValueError, OSError) as error:
        _stop(error)
    print_pairs(pairs, len(found), threshold)


def main() -> None:
    """The entry point `kdcourse`."""
    app()


def _open_key(exercise: str, key: Path | None, out: Path, sandbox: Isolation) -> Any:
    """The answer key to grade with; where none was named, one of its own is kept in `out`."""
    from .grading.assign import write_key
    from .grading.key import Key, find_master
    from .notebooks import read_source

    master = find_master(exercise)
    folder = key or out / "key"
    if key is None and not folder.exists():
        typer.echo("drawing a new answer key from the master's own run")
        source = read_source(master, explicit_ids=True)
        return write_key(source, master.stem, folder, isolation=sandbox.value)
    made = Key(folder)
    if made.exercise.name != master.stem:
        raise ValueError(f"{folder} is the key of {made.exercise.name!r}, not {exercise!r}")
    if made.is_older_than(read_source(master, explicit_ids=True)):
        _warn(
            f"{master.name} has changed since {folder} was made, which grades as before; "
            "`assign --update` renews the key"
        )
    return made


def _warn(message: str) -> None:
    typer.echo(f"kdcourse: note: {message}", err=True)


def _stop(error: Exception) -> NoReturn:
    typer.echo(f"kdcourse: {error}", err=True)
    raise typer.Exit(2)


def _progress() -> Any:
    """A context that gives a callback, which shows done, left and failures."""
    import contextlib
    from collections.abc import Callable, Iterator

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


if __name__ == "__main__":
    main()
