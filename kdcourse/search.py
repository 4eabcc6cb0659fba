"""A fair search: every side of a comparison gets the same trials for its settings.

A control that was never searched makes any method look good. So each side, the control first, is
tried on the same grid, judged on validation data, and trained on seeds that are not reported.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ._checks import require
from .experiments import study

if TYPE_CHECKING:
    import pandas as pd

SEEDS = range(100, 105)  # for choosing; what is reported is trained on others
LEARNING_RATES = (0.01, 0.03, 0.1, 0.3, 1.0)
WEIGHT_DECAYS = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
WIDER_RATES = (0.003, *LEARNING_RATES)  # where students differ more than on one page
FINALISTS = 5  # pairs of each side that `tune` tries on two further seeds
LARGEST_STEP = 0.1  # of weight decay: the share of itself that a weight may lose in one step
WIDER_STEP = 0.3


def grid(
    sides: Mapping[str, Mapping[str, Any]], axes: Mapping[str, Sequence[float]]
) -> dict[str, dict[str, Any]]:
    """Configurations for `run` or `study`: every side with every combination of the values.

    Args:
        sides: name → its fixed settings.
        axes: name of a setting → the values to try, in ascending order.

    Example:
        >>> list(grid({"labels": {}}, {"lr": [0.1, 0.2], "weight_decay": [1.0]}))
        ['labels, lr 0.1, weight_decay 1', 'labels, lr 0.2, weight_decay 1']
    """
    made = {}
    for side, fixed in sides.items():
        for values in itertools.product(*axes.values()):
            chosen = dict(zip(axes, values, strict=True))
            words = [f"{name} {value:g}" for name, value in chosen.items()]
            made[", ".join([side, *words])] = {**fixed, **chosen}
    return made


def recipes(
    sides: Mapping[str, Mapping[str, Any]],
    rates: Sequence[float] = LEARNING_RATES,
    largest_step: float = LARGEST_STEP,
) -> dict[str, dict[str, Any]]:
    """The search that every side of a comparison gets: 29 pairs of learning rate and weight decay.

    AdamW takes the share `lr * weight_decay` off every weight in each step, at most. Pairs in which
    that is more than a tenth are left out: little is learned with them.

    Args:
        sides: name → its fixed settings.
        rates: the learning rates, in ascending order.
        largest_step: pairs with a greater product are left out.

    Returns:
        Configurations as of `grid`, with `lr` and `weight_decay`.

    Example:
        >>> len(recipes({"labels": {}}))
        29
    """
    everything = grid(sides, {"lr": rates, "weight_decay": WEIGHT_DECAYS})
    return {
        name: settings
        for name, settings in everything.items()
        if settings["lr"] * settings["weight_decay"] <= largest_step * (1 + 1e-9)
    }


def choose(
    table: "pd.DataFrame",
    configurations: Mapping[str, Mapping[str, Any]],
    value: str = "validation",
    axes: Iterable[str] = ("lr", "weight_decay"),
) -> dict[str, dict[str, float]]:
    """The best combination of each side: the one with the highest mean.

    Args:
        table: results of configurations made by `grid`, one row a configuration and seed. Where
            some were tried on more seeds than others, one of these is chosen.
        configurations: those, name → settings.
        value: the column that decides, measured on validation data.
        axes: the settings that were searched.

    Returns:
        Side → the best value of each axis, in the order of the configurations.

    Raises:
        ValueError: if the sides had unequal numbers of trials, or a best value is the smallest or
            the largest that was tried with the other best ones, so that a better one may lie
            beyond. (Nothing lies beyond a 0.)

    Example:
        >>> import pandas as pd
        >>> tried = grid({"labels": {}}, {"lr": [0.1, 0.2, 0.4]})
        >>> table = pd.DataFrame({"configuration": list(tried), "validation": [60.0, 70.0, 65.0]})
        >>> choose(table, tried, axes=["lr"])
        {'labels': {'lr': 0.2}}
    """
    axes = list(axes)
    grouped = table.groupby("configuration", sort=False)[value]
    means = grouped.mean().where(grouped.size() == grouped.size().max())
    sides: dict[str, dict[str, dict[str, float]]] = {}
    for name, settings in configurations.items():
        side = name.partition(f", {axes[0]} ")[0]
        sides.setdefault(side, {})[name] = {axis: settings[axis] for axis in axes}
    counts = {side: len(tried) for side, tried in sides.items()}
    require(
        len(set(counts.values())) == 1,
        f"every side must have the same number of trials, got {counts}",
    )
    chosen = {}
    for side, tried in sides.items():
        best = tried[means[list(tried)].idxmax()]
        for axis in axes:
            # The values tried beside the best ones of the other axes.
            others = {key: value for key, value in best.items() if key != axis}
            values = sorted(s[axis] for s in tried.values() if others.items() <= s.items())
            constant = len({settings[axis] for settings in tried.values()}) == 1
            above_least = best[axis] == 0 or values[0] < best[axis]
            require(
                constant or (above_least and best[axis] < values[-1]),
                f"{side}: the best {axis} must lie inside the values tried, {best[axis]:g} is at "
                f"the edge of {', '.join(f'{v:g}' for v in values)}: try further ones",
            )
        chosen[side] = best
    return chosen


def finalists(
    table: "pd.DataFrame",
    configurations: Mapping[str, Mapping[str, Any]],
    value: str = "validation",
    keep: int = FINALISTS,
) -> dict[str, Mapping[str, Any]]:
    """The best combinations of each side, which deserve more seeds.

    Args:
        table: results of the configurations, one row a configuration and seed.
        configurations: made by `recipes`, name → settings.
        value: the column that decides, measured on validation data.
        keep: combinations of each side.

    Example:
        >>> import pandas as pd
        >>> tried = grid({"labels": {}}, {"lr": [0.1, 0.2, 0.4]})
        >>> table = pd.DataFrame({"configuration": list(tried), "validation": [60.0, 70.0, 65.0]})
        >>> list(finalists(table, tried, keep=2))
        ['labels, lr 0.2', 'labels, lr 0.4']
    """
    means = table.groupby("configuration", sort=False)[value].mean()
    left: dict[str, int] = {}
    best = []
    for name in means[list(configurations)].sort_values(ascending=False, kind="stable").index:
        side = name.partition(", lr ")[0]
        left[side] = left.get(side, keep) - 1
        if left[side] >= 0:
            best.append(name)
    return {name: settings for name, settings in configurations.items() if name in best}


def steady(
    table: "pd.DataFrame",
    configurations: Mapping[str, Mapping[str, Any]],
    least: float,
    value: str = "validation",
) -> dict[str, Mapping[str, Any]]:
    """The combinations of each side at learning rates that work more often than not.

    Where most weight decays fail at a rate, one that does not may be lucky in its seeds.

    Args:
        table: results of the configurations, one row a configuration and seed.
        configurations: made by `recipes`, name → settings.
        least: what has a lower mean has failed.
        value: the column that decides, measured on validation data.

    Example:
        >>> import pandas as pd
        >>> tried = grid({"labels": {}}, {"lr": [0.1, 0.2], "weight_decay": [0.0, 0.1, 0.3]})
        >>> results = [60.0, 61.0, 62.0, 0.0, 70.0, 0.0]
        >>> table = pd.DataFrame({"configuration": list(tried), "validation": results})
        >>> [settings["lr"] for settings in steady(table, tried, least=10).values()]
        [0.1, 0.1, 0.1]
    """
    means = table.groupby("configuration", sort=False)[value].mean()
    failed: dict[tuple[str, float], list[bool]] = {}
    at = {name: (name.partition(", lr ")[0], s["lr"]) for name, s in configurations.items()}
    for name, place in at.items():
        failed.setdefault(place, []).append(bool(means[name] < least))
    return {
        name: settings
        for name, settings in configurations.items()
        if 2 * sum(failed[at[name]]) <= len(failed[at[name]])
    }


def tune(
    name: str,
    function: Callable[..., Any],
    sides: Mapping[str, Mapping[str, Any]],
    *,
    rates: Sequence[float] = WIDER_RATES,
    seeds: Sequence[int] = SEEDS[:3],
    least: float | None = None,
    value: str = "validation",
    repeat: bool | str = False,
    jobs: int | None = None,
) -> dict[str, dict[str, float]]:
    """The recipe of each side: 39 pairs on one seed, the best five of them on two more.

    The pairs are those of `recipes`, with a learning rate more below and, for each of the three
    highest rates, a weight decay more above. Such a search in rounds costs less than half of all
    pairs on three seeds, and every side still gets the same. It is two studies, `name_recipes` and
    `name_finalists`.

    Args:
        name: of the studies.
        function: returns a row with the value, see `run`; gets `lr` and `weight_decay`.
        sides: name → its fixed settings.
        rates: the learning rates, in ascending order.
        seeds: the first is that of all pairs, the others are those of the best.
        least: what stays below it has failed, and a learning rate at which more than half of a
            side's pairs failed is left out, see `steady`. None: all stay in.
        value: the column that decides, measured on validation data.
        repeat: see `study`.
        jobs: processes at a time.

    Returns:
        Side → its learning rate and weight decay.

    Raises:
        ValueError: if a best value lies at an edge, see `choose`.

    Reference:
        Jamieson and Talwalkar (2016), "Non-stochastic Best Arm Identification and Hyperparameter
        Optimization", arXiv:1502.07943.
    """
    import pandas as pd

    points = recipes(sides, rates, WIDER_STEP)
    options: Any = {"repeat": repeat, "jobs": jobs}
    first = study(f"{name}_recipes", function, points, seeds[:1], **options).table
    sound = points if least is None else steady(first, points, least, value)
    best = finalists(first, sound, value)
    second = study(f"{name}_finalists", function, best, seeds[1:], **options).table
    return choose(pd.concat([first, second]), points, value)
