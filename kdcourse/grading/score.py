"""From a run's answers to points, part by part."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .compare import MISSING, BadAnswer, check_like, close, read_answer
from .key import Key, Part


@dataclass(frozen=True)
class PartScore:
    """The points for one part and why, in words for the student."""

    part: str
    title: str
    points: float
    score: float
    message: str


def score_parts(answers: Path, key: Key) -> list[PartScore]:
    """Compare every answer with the reference, or ask the part's judge."""
    return [_score(part, answers, key) for part in key.exercise.parts]


def nothing(key: Key, message: str = MISSING) -> list[PartScore]:
    """No points at all, for a submission that was not run."""
    return [PartScore(p.part, p.title, p.points, 0.0, message) for p in key.exercise.parts]


def _score(part: Part, folder: Path, key: Key) -> PartScore:
    values: dict[str, Any] = {}
    problems = []
    for name in part.answers:
        try:
            value = read_answer(folder, name, max_bytes=key.max_bytes(name))
            check_like(value, key.context.reference[name])
            values[name] = value
        except BadAnswer as problem:
            problems.append(str(problem))
    if part.judge is not None:
        fraction, message = _judge(part, values, problems, key)
    else:
        right = sum(
            close(value, key.context.reference[name], rtol=part.rtol, atol=part.atol)
            for name, value in values.items()
        )
        fraction = right / len(part.answers)
        message = "; ".join(dict.fromkeys(problems))
        if len(values) > right:
            message = message or ("not the expected value" if right == 0 else "partly right")
    if fraction < 1 and part.hint and message != MISSING:
        message = f"{message}. {part.hint}"
    return PartScore(
        part.part, part.title, part.points, round(part.points * fraction, 4), message or "right"
    )


def _judge(part: Part, values: dict[str, Any], problems: list[str], key: Key) -> tuple[float, str]:
    """A judge sees only complete, well-formed answers; whatever it raises costs this part only."""
    if problems:
        return 0.0, "; ".join(dict.fromkeys(problems))
    try:
        fraction, message = key.functions[str(part.judge)](values, key.context)
        fraction = float(fraction)
    except Exception as error:
        return 0.0, f"the answer could not be evaluated ({type(error).__name__})"
    return (min(max(fraction, 0.0), 1.0) if fraction == fraction else 0.0), message
