"""Rules of thumb of the field, each tied to the experiments that test it.

Chapter: "Best practices, measured". `train_student` trains one student of any configuration;
`CONFIGURATIONS` are all those of the study; a rule in `BEST_PRACTICES` says which two of them to
compare, and `judge` says what the comparison came to.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn
from torch.utils.data import TensorDataset

from ._checks import require
from .advanced import Ensemble
from .claims import LITTLE, Interval, interval
from .data import ImageData, digits, glyphs, shift, subset, textured_shapes
from .experiments import paired, train
from .features import FeatureDistillation, FeatureExtractingModel, FeatureObjective
from .models import MLP, ConvNet, load_teacher, new_teacher, small_convnet
from .soft_targets import SoftTargetDistillation
from .training import (
    DistillationObjective,
    FrozenTeacher,
    SupervisedObjective,
    evaluate,
    predict,
)

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

Verdict = Literal["holds here", "does not hold here", "depends", "open"]


# One student


@dataclass(frozen=True)
class Trained:
    """A teacher trained anew in every run; without one, the shipped teacher is used.

    Attributes:
        epochs: over all training images; the shipped teachers had ten.
        members: networks whose probabilities are averaged.
    """

    epochs: int = 10
    members: int = 1


@dataclass(frozen=True)
class Lesson:
    """What a student learns from its teacher.

    Attributes:
        temperature: of the soft targets.
        alpha: weight of the soft targets, in [0, 1]; the rest is that of the labels.
        features: the method of `FeatureDistillation`, None for none.
        weight: of the feature term.
        decisions: the teacher gives its most likely class in place of the labels, nothing else.
        teacher: None: the shipped one.
        logit_noise: standard deviation of the noise on the teacher's logits.
        fixed: the teacher is asked once, about the images as they are, not as they are augmented.
    """

    temperature: float = 4.0
    alpha: float = 0.9
    features: Literal["fitnet", "attention"] | None = None
    weight: float = 0.0
    decisions: bool = False
    teacher: Trained | None = None
    logit_noise: float = 0.0
    fixed: bool = False


def train_student(
    seed: int,
    *,
    lesson: Lesson | None = None,
    images: Callable[[], ImageData] = textured_shapes,
    size: int | None = 1500,
    epochs: int = 12,
    student: Callable[[int], nn.Module] = small_convnet,
    augment: bool = False,
    label_noise: float = 0.0,
    carry_to: Callable[[], ImageData] | None = None,
) -> dict[str, float]:
    """Train one student and see what it knows.

    Args:
        seed: of the images chosen, the initial weights, and everything random in training.
        lesson: what the teacher gives; None: labels only.
        images: makes the data set.
        size: training images of the student; None: all.
        epochs: over those.
        student: makes an untrained network for a number of classes.
        augment: move the images by up to a pixel, anew in every epoch.
        label_noise: share of the training labels that are replaced by a random class; a teacher
            trained anew sees the same.
        carry_to: another data set on which a linear classifier is fitted to the embeddings.

    Returns:
        `accuracy` on the test images (%): of the student, or of the classifier on its embeddings.
    """
    data = _drawn(images)
    classes = len(data.class_names)
    everything = _with_label_noise(data.train, label_noise, classes, seed)
    chosen = everything if size is None else subset(everything, size, seed=seed)
    torch.manual_seed(seed)
    network = student(classes)
    objective: nn.Module = SupervisedObjective(network)
    if lesson is not None:
        teacher = _teacher(lesson.teacher, data.name, everything, seed)
        changed = lesson.decisions or lesson.fixed or lesson.logit_noise > 0
        require(
            not (changed and lesson.features),
            "a lesson with features asks the teacher anew: it must have no decisions, fixed or "
            f"logit_noise, got {lesson}",
        )
        if changed or not (augment or lesson.features):
            chosen = _answered(lesson, teacher, chosen, seed)
        if not lesson.decisions:
            objective = _objective(lesson, network, teacher)
    moves = shift if augment else None
    train(objective, chosen, seed=seed, epochs=epochs, augment=moves)
    if carry_to is not None:
        if not isinstance(network, ConvNet):
            raise ValueError(f"carry_to needs a ConvNet as student, got {type(network).__name__}")
        return {"accuracy": 100 * _linear_accuracy(network, _drawn(carry_to))}
    return {"accuracy": 100 * evaluate(network, data.test)["accuracy"]}


@lru_cache(maxsize=2)
def _drawn(images: Callable[[], ImageData]) -> ImageData:
    return images()


def _with_label_noise(
    dataset: TensorDataset, share: float, classes: int, seed: int
) -> TensorDataset:
    if share == 0:
        return dataset
    inputs, labels = dataset.tensors
    drawn = torch.Generator().manual_seed(seed)
    wrong = torch.rand(len(labels), generator=drawn) < share
    other = torch.randint(classes, (len(labels),), generator=drawn)
    return TensorDataset(inputs, torch.where(wrong, other, labels))


def _teacher(how: Trained | None, name: str, dataset: TensorDataset, seed: int) -> nn.Module:
    if how is None:
        return load_teacher(name)
    members = []
    for member in range(how.members):
        own = 1000 * (member + 1) + seed  # never the student's
        torch.manual_seed(own)
        network = new_teacher(name)
        train(SupervisedObjective(network), dataset, seed=own, epochs=how.epochs, weight_decay=0.3)
        members.append(network)
    return Ensemble(members) if len(members) > 1 else members[0]


def _answered(
    lesson: Lesson, teacher: nn.Module, dataset: TensorDataset, seed: int
) -> TensorDataset:
    """The images with the teacher's logits, or with its decisions as labels."""
    inputs, labels = dataset.tensors
    logits = predict(teacher, dataset)
    if lesson.decisions:
        return TensorDataset(inputs, logits.argmax(1))
    noise = torch.randn(logits.shape, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(inputs, labels, logits + lesson.logit_noise * noise)


def _objective(lesson: Lesson, student: nn.Module, teacher: nn.Module) -> nn.Module:
    soft = SoftTargetDistillation(lesson.temperature, alpha=lesson.alpha)
    if lesson.features is None:
        return DistillationObjective(student=student, teacher=teacher, objective=soft)
    # The pairs of layers are those of the chapter on features.
    last = "stages.2" if lesson.features == "fitnet" else "stages.1"
    return FeatureObjective(
        student=FeatureExtractingModel(student, ["stages.0", "stages.1"]),
        teacher=FrozenTeacher(FeatureExtractingModel(teacher, ["stages.0", last])),
        features=FeatureDistillation(
            student_channels=[16, 32],
            teacher_channels=[24, 96 if last == "stages.2" else 48],
            method=lesson.features,
        ),
        weight=lesson.weight,
        soft=soft if lesson.alpha > 0 else None,
    )


def _linear_accuracy(network: ConvNet, data: ImageData, shots: int = 520) -> float:
    """Of a linear classifier on the network's embeddings of other images."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    embed = nn.Sequential(network.stages, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    parts = (subset(data.train, shots, seed=0), data.test)
    embeddings = [predict(embed, part).numpy() for part in parts]
    labels = [part.tensors[1].numpy() for part in parts]
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    return probe.fit(embeddings[0], labels[0]).score(embeddings[1], labels[1])


# All students of the study


def small_mlp(num_classes: int) -> MLP:
    """The student for 8×8 images."""
    return MLP(64, [32], num_classes)


SIZES = {  # share of the teacher's parameters → channels of its three stages
    "1/2": (17, 34, 68),
    "1/3": (14, 28, 55),
    "1/10": (8, 15, 30),
    "1/30": (4, 9, 17),
}


def _configurations() -> dict[str, dict[str, Any]]:
    soft, few, all_images = Lesson(), {"size": 500, "epochs": 20}, {"size": 4000, "epochs": 10}
    made: dict[str, dict[str, Any]] = {
        "labels, 1,500": {},
        "soft, 1,500": {"lesson": soft},
        "labels, 500": few,
        "soft, 500": few | {"lesson": soft},
        "labels, 4,000": all_images,
        "soft, 4,000": all_images | {"lesson": soft},
        "labels, letters": all_images | {"images": glyphs},
        "soft, letters": all_images | {"images": glyphs, "lesson": soft},
    }
    scans = {"images": digits, "student": small_mlp, "size": None, "epochs": 30}
    made |= {"labels, digits": scans, "soft, digits": scans | {"lesson": soft}}
    for temperature in (1.0, 8.0):
        for name, settings in (("500", few), ("1,500", {})):
            lesson = Lesson(temperature=temperature)
            made[f"T = {temperature:g}, {name}"] = settings | {"lesson": lesson}
    for alpha in (0.5, 1.0):
        for name, settings in (("500", few), ("1,500", {})):
            made[f"α = {alpha:g}, {name}"] = settings | {"lesson": Lesson(alpha=alpha)}
    for noise in (4.0, 8.0):
        for alpha in (0.3, 0.9):
            lesson = Lesson(alpha=alpha, logit_noise=noise)
            made[f"noise {noise:g}, α = {alpha:g}"] = {"lesson": lesson}
    for share, widths in SIZES.items():
        student = partial(ConvNet, widths, depth=2)
        made[f"labels, size {share}"] = {"student": student}
        made[f"soft, size {share}"] = {"student": student, "lesson": soft}
    made |= {
        "labels, long": {"epochs": 36},
        "soft, long": {"epochs": 36, "lesson": soft},
        "labels, moved": {"epochs": 36, "augment": True},
        "soft, moved": {"epochs": 36, "augment": True, "lesson": soft},
        "soft, moved, asked once": {"epochs": 36, "augment": True, "lesson": Lesson(fixed=True)},
        # The same 400 images as often as there are steps with all 4,000.
        "soft, 400": {"size": 400, "epochs": 90, "lesson": Lesson(alpha=1.0)},
        "soft, no labels": all_images | {"lesson": Lesson(alpha=1.0)},
        "decisions, no labels": all_images | {"lesson": Lesson(decisions=True)},
        "teacher, one epoch": {"lesson": Lesson(teacher=Trained(epochs=1))},
        "teacher, good": {"lesson": Lesson(teacher=Trained())},
        "teacher, ensemble": {"lesson": Lesson(teacher=Trained(members=3))},
        "labels, noisy": all_images | {"label_noise": 0.4},
        "soft, noisy": all_images | {"label_noise": 0.4, "lesson": Lesson(teacher=Trained())},
        "hints": {"lesson": Lesson(alpha=0.0, features="fitnet", weight=100.0)},
        "hints and soft": {"lesson": Lesson(features="fitnet", weight=100.0)},
        "attention": {"lesson": Lesson(alpha=0.0, features="attention", weight=100.0)},
        "attention and soft": {"lesson": Lesson(features="attention", weight=100.0)},
    }
    for name in ("labels, 1,500", "soft, 1,500", "hints"):
        made[f"{name}, carried to letters"] = made[name] | {"carry_to": glyphs}
    made["untrained, carried to letters"] = {"epochs": 0, "carry_to": glyphs}
    return made


CONFIGURATIONS = _configurations()


# The rules

HEARSAY = "a rule we have heard; we know no source that measured it"


@dataclass(frozen=True)
class Contrast:
    """One test of a rule: the paired difference `treatment` minus `control`.

    Attributes:
        setting: what is compared, for the reader.
        treatment: a configuration that the rule recommends.
        control: the one it advises against, or the plain one.
        beyond: a second pair; its difference is subtracted from the first.
    """

    setting: str
    treatment: str
    control: str
    beyond: tuple[str, str] | None = None

    def differences(self, table: "pd.DataFrame") -> "np.ndarray":
        """In points of accuracy, one a seed."""
        first = paired(table, "accuracy", self.treatment, self.control)
        return first if self.beyond is None else first - paired(table, "accuracy", *self.beyond)


@dataclass(frozen=True)
class Rule:
    """A rule of thumb and what tests it.

    Attributes:
        name: short, for the table and the figure.
        advice: as one reads it.
        source: a place where one reads it.
        contrasts: what the rule promises is a difference above zero.
    """

    name: str
    advice: str
    source: str
    contrasts: tuple[Contrast, ...] = field(repr=False)


def speaks(effect: Interval) -> Literal["for", "against", "open"]:
    """What one contrast says of its rule.

    For it, if the whole 95 % interval lies above zero; against it, if it lies below zero or holds
    no difference of a size that matters (`kdcourse.claims.LITTLE`); open otherwise.

    Example:
        >>> [speaks(Interval(1, low, high, 5)) for low, high in ((0.1, 1.9), (-0.1, 1.9), (-1, 3))]
        ['for', 'against', 'open']
    """
    if effect.low > 0:
        return "for"
    return "against" if effect.high < 0 or max(-effect.low, effect.high) <= LITTLE else "open"


def judge(rule: Rule, table: "pd.DataFrame") -> tuple[Verdict, list[Interval]]:
    """What the study says about a rule.

    That one contrast is clear and another one open does not make them different: an open one says
    nothing, so it cannot make a rule "depend" on anything.

    Args:
        rule: its contrasts are looked up in the table.
        table: one row for every configuration and seed, with the column `accuracy` (%).

    Returns:
        The verdict, and the interval of each contrast. "holds here": at least one contrast speaks
        for the rule and none against it; "does not hold here": the other way round; "depends":
        some speak for it, some against it; "open": all are open.
    """
    effects = [interval(contrast.differences(table)) for contrast in rule.contrasts]
    said = {speaks(effect) for effect in effects} - {"open"}
    verdicts: dict[frozenset[str], Verdict] = {
        frozenset({"for"}): "holds here",
        frozenset({"against"}): "does not hold here",
        frozenset({"for", "against"}): "depends",
        frozenset(): "open",
    }
    return verdicts[frozenset(said)], effects


BEST_PRACTICES = (
    Rule(
        "Temperature",
        "Soften: a temperature of 3 to 10, not 1.",
        HEARSAY,
        (
            Contrast("T = 4 against 1, 500 images", "soft, 500", "T = 1, 500"),
            Contrast("T = 4 against 1, 1,500 images", "soft, 1,500", "T = 1, 1,500"),
            Contrast("T = 8 against 1, 500 images", "T = 8, 500", "T = 1, 500"),
            Contrast("T = 8 against 1, 1,500 images", "T = 8, 1,500", "T = 1, 1,500"),
        ),
    ),
    Rule(
        "Weight of the soft targets",
        "Let soft targets weigh far more than labels: α near 0.9.",
        "after Hinton, Vinyals and Dean (2015), arXiv:1503.02531",
        (
            Contrast("α = 0.9 against 0.5, 500 images", "soft, 500", "α = 0.5, 500"),
            Contrast("α = 0.9 against 0.5, 1,500 images", "soft, 1,500", "α = 0.5, 1,500"),
        ),
    ),
    Rule(
        "Labels beside soft targets",
        "Keep some weight on the labels: α below 1.",
        "Hinton, Vinyals and Dean (2015), arXiv:1503.02531",
        (
            Contrast("α = 0.9 against 1, 500 images", "soft, 500", "α = 1, 500"),
            Contrast("α = 0.9 against 1, 1,500 images", "soft, 1,500", "α = 1, 1,500"),
        ),
    ),
    Rule(
        "Noisy teacher",
        "The noisier the teacher, the more weight for the labels.",
        HEARSAY,
        (
            *(
                Contrast(
                    f"α = 0.3 against 0.9, noise {noise} on the logits",
                    f"noise {noise}, α = 0.3",
                    f"noise {noise}, α = 0.9",
                )
                for noise in (4, 8)
            ),
            Contrast(
                "that gain at noise 8 against noise 4",
                "noise 8, α = 0.3",
                "noise 8, α = 0.9",
                beyond=("noise 4, α = 0.3", "noise 4, α = 0.9"),
            ),
        ),
    ),
    Rule(
        "Student of a third",
        "A student of a third to half the teacher's size learns well from it.",
        HEARSAY,
        tuple(
            Contrast(
                f"soft targets against labels, {share}",
                f"soft, size {share}",
                f"labels, size {share}",
            )
            for share in ("1/2", "1/3")
        ),
    ),
    Rule(
        "Student below a tenth",
        "Below a tenth of the teacher's size distillation gains less.",
        HEARSAY,
        tuple(
            Contrast(
                f"gain at 1/3 against gain at {share}",
                "soft, size 1/3",
                "labels, size 1/3",
                beyond=(f"soft, size {share}", f"labels, size {share}"),
            )
            for share in ("1/10", "1/30")
        ),
    ),
    Rule(
        "Patience",
        "Distil for longer than you would train on labels.",
        "Beyer et al. (2022), arXiv:2106.05237",
        (
            Contrast("36 epochs against 12, soft targets", "soft, long", "soft, 1,500"),
            Contrast(
                "that gain against the same with labels",
                "soft, long",
                "soft, 1,500",
                beyond=("labels, long", "labels, 1,500"),
            ),
        ),
    ),
    Rule(
        "Augmentation",
        "Augment, and ask the teacher about the very images the student sees.",
        "Beyer et al. (2022), arXiv:2106.05237",
        (
            Contrast("moved images against the same ones", "soft, moved", "soft, long"),
            Contrast(
                "that gain against the same with labels",
                "soft, moved",
                "soft, long",
                beyond=("labels, moved", "labels, long"),
            ),
            Contrast("asked anew against asked once", "soft, moved", "soft, moved, asked once"),
        ),
    ),
    Rule(
        "Unlabelled images",
        "Let the teacher answer for all the unlabelled images you have.",
        "Buciluǎ, Caruana and Niculescu-Mizil (2006), Model Compression",
        (Contrast("4,000 images against 400, no labels", "soft, no labels", "soft, 400"),),
    ),
    Rule(
        "Soft pseudo-labels",
        "On unlabelled images take the teacher's probabilities, not its decisions.",
        HEARSAY,
        (Contrast("4,000 images, no labels", "soft, no labels", "decisions, no labels"),),
    ),
    Rule(
        "Better teacher",
        "A better teacher makes a better student.",
        "Cho and Hariharan (2019), arXiv:1910.01348, find exceptions",
        (
            Contrast("ten epochs against one", "teacher, good", "teacher, one epoch"),
            Contrast("three teachers against one", "teacher, ensemble", "teacher, good"),
        ),
    ),
    Rule(
        "Noisy labels",
        "A teacher shields its student from wrong labels.",
        "Li et al. (2017), arXiv:1703.02391, with a teacher that saw clean labels",
        (Contrast("4,000 images, 40 % random labels", "soft, noisy", "labels, noisy"),),
    ),
    Rule(
        "Always logits",
        "Soft targets are worth having everywhere.",
        HEARSAY,
        (
            Contrast("shapes, 500 images", "soft, 500", "labels, 500"),
            Contrast("shapes, 1,500 images", "soft, 1,500", "labels, 1,500"),
            Contrast("shapes, 4,000 images", "soft, 4,000", "labels, 4,000"),
            Contrast("letters, 4,000 images", "soft, letters", "labels, letters"),
            Contrast("digits, all images", "soft, digits", "labels, digits"),
        ),
    ),
    Rule(
        "Often features",
        "Add hints to soft targets.",
        "Romero et al. (2015), arXiv:1412.6550",
        (
            Contrast("hints against labels", "hints", "labels, 1,500"),
            Contrast("hints and soft against soft", "hints and soft", "soft, 1,500"),
        ),
    ),
    Rule(
        "Sometimes attention",
        "Add attention transfer to soft targets.",
        "Zagoruyko and Komodakis (2017), arXiv:1612.03928",
        (
            Contrast("attention against labels", "attention", "labels, 1,500"),
            Contrast("attention and soft against soft", "attention and soft", "soft, 1,500"),
            Contrast("attention and soft against attention", "attention and soft", "attention"),
        ),
    ),
    Rule(
        "Carrying over",
        "What is distilled carries over to other data.",
        "Tian, Krishnan and Isola (2020), arXiv:1910.10699",
        tuple(
            Contrast(
                f"linear classifier on letters, {name} against labels",
                f"{configuration}, carried to letters",
                "labels, 1,500, carried to letters",
            )
            for name, configuration in (("soft", "soft, 1,500"), ("hints", "hints"))
        ),
    ),
)
