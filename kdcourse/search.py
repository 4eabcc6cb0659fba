"""A fair search: every side of a comparison gets the same trials for its settings.

A control that was never searched makes any method look good. So each side, the control first, is
tried on the same grid, judged on validation data, and trained on seeds that are not reported.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ._checks import require

if TYPE_CHECKING:
    import pandas as pd

SEEDS = range(100, 105)  # for choosing; what is reported is trained on others
LEARNING_RATES = (0.01, 0.03, 0.1, 0.3, 1.0)
WEIGHT_DECAYS = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
LARGEST_STEP = 0.1  # of weight decay: the share of itself that a weight may lose in one step


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


def recipes(sides: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The search that every side in the course gets: 29 pairs of learning rate and weight decay.

    AdamW takes the share `lr * weight_decay` off every weight in each step, at most. Pairs in which
    that is more than a tenth are left out: nothing is learned with them.

    Args:
        sides: name → its fixed settings.

    Returns:
        Configurations as of `grid`, with `lr` and `weight_decay`.

    Example:
        >>> len(recipes({"labels": {}}))
        29
    """
    everything = grid(sides, {"lr": LEARNING_RATES, "weight_decay": WEIGHT_DECAYS})
    return {
        name: settings
        for name, settings in everything.items()
        if settings["lr"] * settings["weight_decay"] <= LARGEST_STEP * (1 + 1e-9)
    }


def choose(
    table: "pd.DataFrame",
    configurations: Mapping[str, Mapping[str, Any]],
    value: str = "validation",
    axes: Iterable[str] = ("lr", "weight_decay"),
) -> dict[str, dict[str, float]]:
    """The best combination of each side: the one with the highest mean.

    Args:
        table: results of configurations made by `grid`, one row a configuration and seed.
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
    means = table.groupby("configuration", sort=False)[value].mean()
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
