import pandas as pd
import pytest
import torch

from kdcourse.experiments import read_study
from kdcourse.search import FINALISTS, SEEDS, choose, finalists, grid, recipes, steady, tune

AXES = {"lr": [0.1, 0.2, 0.4], "weight": [1.0, 10.0, 100.0]}
SIDES = {"labels, many": {"size": 9}, "soft": {}}


def tried(best: dict[str, tuple[float, float]]) -> tuple[pd.DataFrame, dict]:
    """A table in which each side has one best combination, on two seeds."""
    points = grid(SIDES, AXES)
    rows = []
    for name, settings in points.items():
        side = "labels, many" if name.startswith("labels, many") else "soft"
        top = (settings["lr"], settings["weight"]) == best[side]
        rows += [
            {"configuration": name, "seed": s, "validation": 10.0 * top + s} for s in SEEDS[:2]
        ]
    return pd.DataFrame(rows), points


def test_every_side_meets_every_combination() -> None:
    points = grid(SIDES, AXES)
    assert len(points) == 18
    assert points["labels, many, lr 0.2, weight 100"] == {"size": 9, "lr": 0.2, "weight": 100.0}


def test_recipes_leave_out_what_forgets_faster_than_it_learns() -> None:
    pairs = {(s["lr"], s["weight_decay"]) for s in recipes({"labels": {}}).values()}
    assert len(pairs) == 29
    assert {(0.01, 3.0), (0.1, 1.0), (1.0, 0.1)} < pairs
    assert not {(0.1, 3.0), (0.3, 1.0), (1.0, 0.3)} & pairs


def test_each_side_gets_its_own_best() -> None:
    best = {"labels, many": (0.2, 10.0), "soft": (0.2, 10.0)}
    found = choose(*tried(best), axes=AXES)
    assert found == {side: {"lr": 0.2, "weight": 10.0} for side in SIDES}


@pytest.mark.parametrize("at", [(0.1, 10.0), (0.4, 10.0), (0.2, 1.0), (0.2, 100.0)])
def test_a_best_value_at_the_edge_is_no_best_value(at) -> None:
    best = {"labels, many": (0.2, 10.0), "soft": at}
    with pytest.raises(ValueError, match=r"soft: the best (lr|weight) must lie inside"):
        choose(*tried(best), axes=AXES)


def test_nothing_lies_beyond_zero() -> None:
    points = grid({"labels": {}}, {"smoothing": [0.0, 0.1, 0.2]})
    table = pd.DataFrame({"configuration": list(points), "validation": [3.0, 2.0, 1.0]})
    assert choose(table, points, axes=["smoothing"]) == {"labels": {"smoothing": 0.0}}


def test_a_corner_that_was_left_out_is_an_edge() -> None:
    points = recipes({"labels": {}})
    values = [
        10.0 * ((s["lr"], s["weight_decay"]) == (0.3, 0.3)) for s in points.values()
    ]  # both lie inside their own range, but nothing beyond was tried with the other
    table = pd.DataFrame({"configuration": list(points), "validation": values})
    with pytest.raises(ValueError, match=r"best lr must lie inside .* 0.3 is at the edge"):
        choose(table, points)


def test_unequal_effort_is_refused() -> None:
    table, points = tried({"labels, many": (0.2, 10.0), "soft": (0.2, 10.0)})
    fewer = {name: points[name] for name in list(points)[:-1]}
    with pytest.raises(ValueError, match=r"same number of trials, got .*'soft': 8"):
        choose(table, fewer, axes=AXES)


def test_seeds_for_choosing_are_not_those_of_the_pages() -> None:
    assert not set(SEEDS) & {*range(20), *range(200, 220), *range(400, 420)}


def test_only_what_was_tried_on_most_seeds_is_chosen() -> None:
    points = grid({"labels": {}}, {"lr": [0.1, 0.2, 0.3, 0.4]})
    luck = [("labels, lr 0.2", 99.0), ("labels, lr 0.3", 70.0), ("labels, lr 0.3", 71.0)]
    rest = [(name, 50.0) for name in points if name not in dict(luck)]
    table = pd.DataFrame([*luck, *rest], columns=["configuration", "validation"])
    assert choose(table, points, axes=["lr"]) == {"labels": {"lr": 0.3}}


def test_every_side_has_as_many_finalists() -> None:
    points = recipes(SIDES)
    table = pd.DataFrame(
        {"configuration": list(points), "validation": [s["lr"] for s in points.values()]}
    )
    best = finalists(table, points)
    sides = [name.rpartition(", lr ")[0] for name in best]
    assert sides == ["labels, many"] * FINALISTS + ["soft"] * FINALISTS
    assert min(settings["lr"] for settings in best.values()) == 0.3  # 4 pairs have 1, 5 have 0.3


def run_one(seed: int, size: int = 0, lr: float = 0.0, weight_decay: float = 0.0) -> dict:
    """Best at 0.1 and 0.1, with a size at 0.03 and 0.3; the first seed has another pair ahead."""
    goal = (0.03, 0.3) if size else (0.1, 0.1)
    steps = abs(torch.tensor([lr / goal[0], (weight_decay + 1e-3) / goal[1]]).log()).sum()
    luck = 1.5 if (seed, lr, weight_decay) == (SEEDS[0], 0.3, 0.1) else 0.0
    return {"validation": -steps.item() + luck}


def test_tune_tries_all_on_one_seed_and_the_best_on_two_more(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("KDCOURSE_STUDIES", str(tmp_path))
    found = tune("sums", run_one, SIDES, repeat=True, jobs=1)
    assert found == {
        "labels, many": {"lr": 0.03, "weight_decay": 0.3},
        "soft": {"lr": 0.1, "weight_decay": 0.1},
    }
    first, second = (read_study(f"sums_{part}").table for part in ("recipes", "finalists"))
    trials = [
        table["configuration"].str.rpartition(", lr ")[0].value_counts().to_dict()
        for table in (first, second)
    ]
    assert trials == [dict.fromkeys(SIDES, 39), dict.fromkeys(SIDES, 2 * FINALISTS)]
    assert {*first["seed"]} == {SEEDS[0]}
    assert {*second["seed"]} == {*SEEDS[1:3]}


def run_lucky(seed: int, lr: float = 0.0, weight_decay: float = 0.0) -> dict:
    """Fails at 0.3 and above, but for one pair, which seems the best of all."""
    if lr >= 0.3:
        return {"validation": 90.0 if (lr, weight_decay) == (0.3, 0.1) else 0.0}
    return {"validation": 50.0 - abs(lr - 0.03) - abs(weight_decay - 0.3)}


@pytest.mark.parametrize("least, lr", [(None, 0.3), (1, 0.03)])
def test_a_rate_at_which_most_pairs_fail_is_left_out(least, lr, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("KDCOURSE_STUDIES", str(tmp_path))
    options = {"least": least, "seeds": SEEDS, "repeat": True, "jobs": 1}
    assert tune("luck", run_lucky, {"labels": {}}, **options)["labels"]["lr"] == lr
    assert {*read_study("luck_finalists").table["seed"]} == {*SEEDS[1:]}


def test_a_rate_stays_in_where_half_of_the_pairs_work() -> None:
    points = grid({"labels": {}}, {"lr": [0.1, 0.2], "weight_decay": [0.0, 0.1]})
    table = pd.DataFrame({"configuration": list(points), "validation": [5.0, 0.0, 0.0, 0.0]})
    assert [s["lr"] for s in steady(table, points, least=1).values()] == [0.1, 0.1]
