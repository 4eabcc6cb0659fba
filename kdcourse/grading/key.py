"""The private answer key: what an exercise asks, its hidden inputs and the reference answers."""

import hashlib
import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from kdcourse import notebooks

from .compare import read_answer

FORMAT = 2
MASTERS = Path(__file__).with_name("masters")  # only in a wheel: see pyproject.toml
# What `grades.csv` calls its other columns; no part may be called so.
COLUMNS = ("student", "submission", "status", "score", "max_score")
LATE = ("submitted", "days_late", "penalty")
RESERVED = {*COLUMNS, *LATE, "manual", "final", "comment"}


@dataclass(frozen=True)
class Part:
    """One part of an exercise, as the `grading` metadata of its probe cell declares it.

    Attributes:
        part: short name, also the column in `grades.csv`.
        title: what it asks, in words.
        points: its share of the scale.
        answers: names of the answers its probe returns.
        rtol: relative tolerance of the comparison with the reference.
        atol: absolute tolerance.
        judge: a function of the master's key cells that decides instead of the comparison.
        hint: where to look when it is not right.
    """

    part: str
    title: str
    points: float
    answers: tuple[str, ...]
    rtol: float = 1e-4
    atol: float = 1e-6
    judge: str | None = None
    hint: str = ""


@dataclass(frozen=True)
class Exercise:
    """What a master notebook declares about its grading."""

    name: str
    parts: tuple[Part, ...]
    seconds: int = 120
    memory: int = 2048
    parameters: tuple[tuple[str, Any], ...] = ()
    seed_parameter: str | None = None
    blocked: tuple[str, ...] = ()

    @property
    def max_score(self) -> float:
        """The sum of the parts' points."""
        return sum(part.points for part in self.parts)


def find_master(exercise: str, root: Path | None = None) -> Path:
    """The source of an exercise, from its path, or from its name.

    A name is looked for in the copy of the repository this is called in, then in the one that the
    package lies in, then among the masters that an installed package brings along.

    Raises:
        ValueError: when there is none; the message lists those that exist.
    """
    given = Path(exercise)
    if given.suffix == ".md" and given.is_file():
        return given
    repositories = [root or Path.cwd(), notebooks.ROOT]
    folders = [*(base / "book" / "sources" / "exercises" for base in repositories), MASTERS]
    for folder in folders:
        if (folder / f"{exercise}.md").is_file():
            return folder / f"{exercise}.md"
    known = sorted({path.stem for folder in folders for path in folder.glob("*.md")})
    raise ValueError(
        f"there is no exercise {exercise!r}; known are: {', '.join(known) or 'none'}. "
        "A master of your own is named by its path: folder/mine.md"
    )


def declared(master: Any, name: str) -> Exercise:
    """Read and check what a master notebook declares.

    Raises:
        ValueError: for a declaration that cannot be graded.
    """
    settings = dict(master.metadata.get("grading", {}))
    settings.pop("quick", None)  # for the learner: see `notebooks.student_version`
    parts = []
    code = key_code(master)
    for cell in master.cells:
        if "probe" not in notebooks.tags(cell):
            continue
        fields = dict(cell.metadata.get("grading", {}))
        try:
            part = Part(**{**fields, "answers": tuple(fields["answers"])})
        except (TypeError, KeyError) as error:
            raise ValueError(f"{name}: probe {cell.id}: {error}") from None
        plain = re.fullmatch(r"[a-z0-9_]+", part.part) and part.part not in RESERVED
        if not plain or part.points <= 0 or not part.answers:
            raise ValueError(f"{name}: probe {cell.id} needs a plain part, points and answers")
        if part.judge is not None and f"def {part.judge}(" not in code:
            raise ValueError(f"{name}: no key cell defines {part.judge}")
        parts.append(part)
    names = [part.part for part in parts]
    if not parts or len(set(names)) != len(names):
        raise ValueError(f"{name} needs probe cells with one part each, got {names}")
    parameters = tuple(sorted(dict(settings.pop("parameters", {})).items()))
    blocked = tuple(settings.pop("blocked", ()))
    try:
        return Exercise(name, tuple(parts), parameters=parameters, blocked=blocked, **settings)
    except TypeError as error:
        raise ValueError(f"{name}: front matter `grading`: {error}") from None


def key_code(master: Any) -> str:
    """The source of all cells that only run on the grader's side."""
    return "\n\n".join(cell.source for cell in master.cells if "key" in notebooks.tags(cell))


class Key:
    """An answer key on disk, made by `assign.write_key`.

    Args:
        folder: the private folder `DIR/key`.

    Raises:
        ValueError: when it is not an answer key.
    """

    def __init__(self, folder: Path) -> None:
        import nbformat

        self.folder = folder
        try:
            content = json.loads((folder / "key.json").read_text(encoding="utf-8"))
            self.master = nbformat.read(folder / "master.ipynb", as_version=4)
        except FileNotFoundError:
            raise ValueError(f"{folder} is not an answer key: make one with `assign`") from None
        if content.get("format") != FORMAT:
            raise ValueError(f"{folder} was made by another version: make it again with `assign`")
        self.exercise = declared(self.master, content["exercise"])
        self.seed: int = content["seed"]
        self.held_out_seed: int = content["held_out_seed"]

    def is_older_than(self, master: Any) -> bool:
        """Whether the master has changed since this key was made from it."""
        return json.dumps(self.master, sort_keys=True) != json.dumps(master, sort_keys=True)

    @cached_property
    def digest(self) -> str:
        """Changes whenever anything in the key changes."""
        total = hashlib.sha256()
        for path in sorted(self.folder.rglob("*")):
            if path.is_file():
                total.update(path.relative_to(self.folder).as_posix().encode() + b"\0")
                total.update(hashlib.sha256(path.read_bytes()).digest())
        return total.hexdigest()

    @cached_property
    def run_digest(self) -> str:
        """Changes whenever a run could turn out differently; how answers are judged is no part.

        Judges, tolerances, points, titles, hints, solutions and texts may change without it.
        """
        public = {cell.id: cell for cell in notebooks.student_version(self.master).cells}
        total = hashlib.sha256()
        for cell in self.master.cells:
            if "key" not in notebooks.tags(cell):
                source = public.get(cell.id, cell).source if cell.cell_type == "code" else ""
                answered = notebooks.is_answer(cell)
                total.update(repr((cell.id, notebooks.tags(cell), answered, source)).encode())
        exercise = self.exercise
        given = (exercise.parameters, exercise.seed_parameter, exercise.blocked, self.seed)
        total.update(repr(given).encode())
        total.update((self.folder / "inputs.npz").read_bytes())
        return total.hexdigest()

    @cached_property
    def functions(self) -> dict[str, Any]:
        """What the key cells define."""
        namespace: dict[str, Any] = {"__name__": f"key_of_{self.exercise.name}"}
        exec(compile(key_code(self.master), "<key cells>", "exec"), namespace)
        return namespace

    @cached_property
    def context(self) -> SimpleNamespace:
        """What a judge may use: `inputs`, `held_out`, `reference`, each by name."""
        folder = self.folder / "reference"
        names = [name for part in self.exercise.parts for name in part.answers]
        reference = {name: read_answer(folder, name) for name in names}
        return SimpleNamespace(
            inputs=self.inputs,
            held_out=self.arrays("held_out", self.held_out_seed),
            reference=reference,
        )

    @cached_property
    def inputs(self) -> dict[str, Any]:
        """The hidden inputs that a run gets to see, as they were when the key was made."""
        import numpy as np

        with np.load(self.folder / "inputs.npz", allow_pickle=False) as archive:
            return dict(archive)

    def max_bytes(self, name: str) -> int:
        """How large an answer may be: a little more than the reference."""
        path = next((self.folder / "reference").glob(f"{name}.*"))
        return 4 * path.stat().st_size + 4096

    def arrays(self, function: str, seed: int) -> dict[str, Any]:
        """What a key cell's `hidden_inputs(seed)` or `held_out(seed)` returns, as arrays."""
        import numpy as np

        if function not in self.functions:
            return {}
        made = self.functions[function](seed)
        return {name: np.asarray(value) for name, value in made.items()}
