"""The rules, what they compare, and how they are judged."""

from collections.abc import Iterator

import pandas as pd
import pytest
import torch
from torch.utils.data import TensorDataset

from kdcourse import best_practices
from kdcourse.best_practices import (
    BEST_PRACTICES,
    BORROWED,
    CONFIGURATIONS,
    IMITATIONS,
    PLACES,
    Contrast,
    Lesson,
    Rule,
    Trained,
    borrowed,
    carried_over,
    imitating,
    judge,
    nine_places,
    train_student,
)
from kdcourse.data import ImageData, digits, glyphs, textured_shapes
from kdcourse.experiments import read_study
from kdcourse.models import MLP, ConvNet, count_parameters, load_teacher
from kdcourse.training import SupervisedObjective


def test_every_configuration_is_used_and_every_contrast_known() -> None:
    used = set()
    for rule in BEST_PRACTICES:
        for contrast in rule.contrasts:
            used |= {contrast.treatment, contrast.control, *(contrast.beyond or ())}
    there = {f"{name}, {place}" for name in IMITATIONS for place in PLACES}
    known = {*CONFIGURATIONS, *BORROWED, *carried_over(), *there}
    assert known - used == {"untrained, carried to letters"}  # only shown
    assert used <= known
    assert not set(CONFIGURATIONS) & set(BORROWED)


def test_the_stored_study_is_of_these_configurations() -> None:
    own = read_study("best_practices").table
    assert own.groupby("configuration")["seed"].nunique().to_dict() == dict.fromkeys(
        [*CONFIGURATIONS, *carried_over()], 10
    )
    there = read_study("best_practices_elsewhere").table
    assert set(there["configuration"]) == {f"{a}, {b}" for a in IMITATIONS for b in PLACES}
    assert set(there["seed"]) == set(own["seed"])
    lent = borrowed().groupby("configuration")["seed"].agg(set)
    assert set(lent.index) == set(BORROWED)
    assert all(set(own["seed"]) <= seeds for seeds in lent)


def test_what_is_carried_over_was_trained_as_in_its_chapter() -> None:
    hints = carried_over()["hints, carried to letters"]
    there = read_study("features_methods").about["settings"]["fitnet"]
    assert hints["lesson"].weight == there["strength"]
    assert (hints["lr"], hints["weight_decay"]) == (there["lr"], there["weight_decay"])


def test_names_are_unique() -> None:
    names = [rule.name for rule in BEST_PRACTICES]
    assert len(set(names)) == len(names)
    for rule in BEST_PRACTICES:
        settings = [contrast.setting for contrast in rule.contrasts]
        assert len(set(settings)) == len(settings)


def test_student_sizes_are_what_they_are_called() -> None:
    teacher = count_parameters(load_teacher("textured_shapes"))
    for share, widths in best_practices.SIZES.items():
        student = count_parameters(ConvNet(widths, 20, depth=2))
        whole, part = share.split("/")
        assert student / teacher == pytest.approx(int(whole) / int(part), rel=0.06)


class TestJudge:
    """Five seeds; the interval is the mean ± 1.96 times the step between neighbours."""

    @staticmethod
    def verdict(*means: float, step: float = 1.0) -> str:
        rows = []
        for name, mean in {"control": 0.0, **{f"{i}": m for i, m in enumerate(means)}}.items():
            for seed in range(5):
                spread = 0 if name == "control" else step * (seed - 2)
                rows.append({"configuration": name, "seed": seed, "accuracy": mean + spread})
        contrasts = tuple(Contrast(str(i), str(i), "control") for i in range(len(means)))
        return judge(Rule("name", "advice", "source", contrasts), pd.DataFrame(rows))[0]

    @pytest.mark.parametrize(
        ("means", "step", "expected"),
        [
            ((3.0, 2.5), 1.0, "holds here"),
            ((3.0, 2.0, 2.5), 1.2, "holds here"),  # one is clear, the others are open
            ((3.0, 0.0), 1.0, "depends"),
            ((3.0, -5.0), 1.0, "depends"),
            ((-5.0,), 1.0, "does not hold here"),
            ((0.0,), 1.0, "does not hold here"),  # no more than 1.4 either way
            ((0.0, 0.5), 2.0, "open"),
            ((0.0, -5.0), 2.0, "does not hold here"),
            ((0.8,), 0.3, "holds here"),
        ],
    )
    def test_verdicts(self, means, step, expected) -> None:
        assert self.verdict(*means, step=step) == expected

    def test_a_gain_beyond_another(self) -> None:
        values = {"a": [5, 7], "b": [1, 2], "c": [3, 3], "d": [2, 1]}
        table = pd.DataFrame(
            [
                {"configuration": name, "seed": seed, "accuracy": value}
                for name, row in values.items()
                for seed, value in enumerate(row)
            ]
        )
        contrast = Contrast("a − b against c − d", "a", "b", beyond=("c", "d"))
        assert contrast.differences(table).tolist() == [3, 3]


def small_mlp(num_classes: int) -> MLP:
    return MLP(64, [32], num_classes)


@pytest.fixture
def seen(monkeypatch) -> Iterator[list[dict]]:
    """What the loop was asked to train, instead of training it."""
    calls: list[dict] = []
    best_practices._teacher.cache_clear()

    def record(objective, dataset, **options) -> None:
        calls.append({"objective": objective, "dataset": dataset, **options})

    monkeypatch.setattr(best_practices, "train", record)
    yield calls
    best_practices._teacher.cache_clear()  # of teachers that nobody trained


def some_shapes() -> ImageData:
    return textured_shapes(train_size=200, validation_size=20, test_size=60)


class TestTrainStudent:
    def test_labels_only(self, seen) -> None:
        train_student(3, images=some_shapes, size=40, epochs=2)
        (call,) = seen
        assert isinstance(call["objective"], SupervisedObjective)
        assert (len(call["dataset"]), call["seed"], call["epochs"]) == (40, 3, 2)
        assert (call["lr"], call["weight_decay"]) == (0.03, 0.3)

    def test_soft_targets_are_stored_once_and_noise_is_added(self, seen) -> None:
        for noise in (0.0, 2.0):
            train_student(0, images=some_shapes, size=100, lesson=Lesson(logit_noise=noise))
        (clean, noisy) = (call["dataset"].tensors[2] for call in seen)
        assert torch.equal(clean, load_teacher("textured_shapes")(seen[0]["dataset"].tensors[0]))
        assert (noisy - clean).std().item() == pytest.approx(2.0, rel=0.1)

    def test_decisions_take_the_place_of_labels(self, seen) -> None:
        train_student(0, images=some_shapes, size=100, lesson=Lesson(decisions=True))
        inputs, labels = seen[0]["dataset"].tensors
        assert isinstance(seen[0]["objective"], SupervisedObjective)
        assert torch.equal(labels, load_teacher("textured_shapes")(inputs).argmax(1))

    def test_moved_images_are_asked_about_anew_unless_fixed(self, seen) -> None:
        for fixed in (False, True):
            train_student(0, images=some_shapes, size=40, moved=True, lesson=Lesson(fixed=fixed))
        anew, once = (call["dataset"] for call in seen)
        assert len(anew) == len(once) == 360
        teacher = load_teacher("textured_shapes")
        inputs, labels, logits = anew.tensors
        torch.testing.assert_close(logits, teacher(inputs))
        in_place = once.tensors[0][160:200]  # the fifth of nine places is where the image was
        torch.testing.assert_close(once.tensors[2], teacher(in_place).repeat(9, 1))
        assert torch.equal(labels, labels[:40].repeat(9))
        assert torch.equal(nine_places(TensorDataset(in_place, labels[:40])).tensors[0], inputs)

    @pytest.mark.parametrize(
        ("name", "terms"),
        [
            ("hints", {"hard", "fitnet"}),
            ("attention", {"hard", "attention"}),
            ("attention and soft", {"hard", "soft", "attention"}),
            ("PKT", {"hard", "relation"}),
            ("RKD", {"hard", "distance", "angle"}),
        ],
    )
    def test_imitations_add_their_term_to_the_labels(self, seen, name: str, terms: set) -> None:
        for weight in (2.0, 6.0):
            settings = imitating(name, "moved", weight) | {"images": some_shapes, "size": 40}
            train_student(0, **settings)
        light, heavy = (
            call["objective"]([x[:9] for x in call["dataset"].tensors])[0] for call in seen
        )
        assert set(light) == terms
        assert [len(call["dataset"]) for call in seen] == [360, 360]
        for term in terms:
            factor = 1.0 if term in ("hard", "soft") else 3.0
            torch.testing.assert_close(heavy[term], factor * light[term])

    def test_a_teacher_sees_the_same_wrong_labels(self, seen) -> None:
        train_student(
            0, images=some_shapes, size=None, label_noise=0.4, lesson=Lesson(teacher=Trained(2))
        )
        teacher, student = seen
        assert teacher["epochs"] == 2
        assert torch.equal(teacher["dataset"].tensors[1], student["dataset"].tensors[1])
        changed = (student["dataset"].tensors[1] != some_shapes().train.tensors[1]).double()
        assert changed.mean().item() == pytest.approx(0.4 * 19 / 20, abs=0.1)

    def test_an_ensemble_has_members_of_their_own(self, seen) -> None:
        train_student(5, images=some_shapes, size=40, lesson=Lesson(teacher=Trained(members=3)))
        seeds = [call["seed"] for call in seen]
        assert len(set(seeds)) == 4
        assert seeds[-1] == 5

    def test_hints_train_the_regressors_and_attention_has_none(self, seen) -> None:
        for method in ("fitnet", "attention"):
            lesson = Lesson(alpha=0.0, features=method, weight=7.0)
            train_student(0, images=some_shapes, size=40, lesson=lesson)
        terms = []
        for call in seen:
            batch = TensorDataset(*call["dataset"].tensors)[:8]
            terms.append(set(call["objective"](batch)[0]))
        assert terms == [{"hard", "fitnet"}, {"hard", "attention"}]

    def test_a_lesson_that_cannot_be_given(self, seen) -> None:
        for options in ({"decisions": True}, {"fixed": True}, {"logit_noise": 1.0}):
            lesson = Lesson(features="fitnet", weight=1.0, **options)
            with pytest.raises(ValueError, match="a lesson with features asks the teacher anew"):
                train_student(0, images=some_shapes, size=40, lesson=lesson)
        train_student(0, images=some_shapes, size=40, moved=True, lesson=Lesson(decisions=True))
        inputs, labels = seen[-1]["dataset"].tensors
        assert torch.equal(labels, load_teacher("textured_shapes")(inputs).argmax(1))

    def test_digits_and_a_classifier_on_letters(self) -> None:
        assert (
            train_student(0, images=digits, student=small_mlp, size=None, epochs=9)["accuracy"] > 50
        )
        settings = {"images": some_shapes, "size": 40, "epochs": 1, "carry_to": glyphs}
        found = train_student(0, **settings)
        assert 4 < found["accuracy"] < 60
        assert 0 <= found["validation"] <= 100
        with pytest.raises(ValueError, match="carry_to needs a ConvNet as student, got MLP"):
            train_student(0, **(settings | {"images": digits, "student": small_mlp}))
