"""Rules of thumb of the field, each tied to the experiments that test it.

Chapter: "Best practices, measured". `train_student` trains one student of any configuration;
`CONFIGURATIONS` are those of the chapter's own study, `BORROWED` those that other chapters' studies
hold; a rule in `BEST_PRACTICES` says which two to compare, and `judge` says what the comparison
came to.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from ._checks import require
from .advanced import Ensemble
from .claims import LITTLE, Interval, interval
from .data import ImageData, glyphs, mnist, subset, textured_shapes
from .experiments import Study, paired, read_study, train
from .features import FeatureDistillation, FeatureExtractingModel, FeatureObjective
from .models import ConvNet, load_teacher, new_teacher, small_convnet
from .relations import RelationDistillation, RelationObjective, pkt_loss
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
        features: what the student imitates beside them: layers, by a method of
            `FeatureDistillation`; the relations of embeddings, by PKT or RKD; None: nothing.
        weight: of that term.
        decisions: the teacher gives its most likely class in place of the labels, nothing else.
        teacher: None: the shipped one.
        logit_noise: standard deviation of the noise on the teacher's logits.
        fixed: the teacher is asked once, about the images as they are, not as they are moved.
    """

    temperature: float = 4.0
    alpha: float = 1.0
    features: Literal["fitnet", "attention", "pkt", "rkd"] | None = None
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
    batch_size: int = 64,
    lr: float = 0.03,
    weight_decay: float = 0.3,
    student: Callable[[int], nn.Module] = small_convnet,
    moved: bool = False,
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
        batch_size: images a step.
        lr: highest learning rate of the cycle.
        weight_decay: decoupled.
        student: makes an untrained network for a number of classes.
        moved: each image in nine places, moved by up to a pixel.
        label_noise: share of the training labels that are replaced by a random class; a teacher
            trained anew sees the same.
        carry_to: another data set on which a linear classifier is fitted to the embeddings.

    Returns:
        `validation` and `accuracy`, on the validation and the test images (%); the latter of the
        student, or of the classifier on its embeddings.
    """
    data = _drawn(images)
    classes = len(data.class_names)
    everything = _with_label_noise(data.train, label_noise, classes, seed)
    chosen = everything if size is None else subset(everything, size, seed=seed)
    asked_about = chosen
    if moved:
        chosen = nine_places(chosen)
    teacher = None if lesson is None else _teacher(lesson.teacher, images, label_noise, seed)
    torch.manual_seed(seed)  # after the teacher, which may be made now or have been kept
    network = student(classes)
    objective: nn.Module = SupervisedObjective(network)
    if lesson is not None and teacher is not None:
        changed = lesson.decisions or lesson.fixed or lesson.logit_noise > 0
        require(
            not (changed and lesson.features),
            "a lesson with features asks the teacher anew: it must have no decisions, fixed or "
            f"logit_noise, got {lesson}",
        )
        if not lesson.features:
            logits = predict(teacher, asked_about if lesson.fixed else chosen)
            places = len(chosen) // len(logits)
            chosen = _answered(lesson, chosen, logits.repeat(places, 1), seed)
        if not lesson.decisions:
            objective = _objective(lesson, network, teacher)
    train(
        objective,
        chosen,
        seed=seed,
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        weight_decay=weight_decay,
    )
    if carry_to is None:
        accuracy = evaluate(network, data.test)["accuracy"]
    elif isinstance(network, ConvNet):
        accuracy = _linear_accuracy(network, _drawn(carry_to))
    else:
        raise ValueError(f"carry_to needs a ConvNet as student, got {type(network).__name__}")
    validation = evaluate(network, data.validation)["accuracy"]
    return {"validation": 100 * validation, "accuracy": 100 * accuracy}


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


@lru_cache(maxsize=8)  # a search asks the same ones many times
def _teacher(
    how: Trained | None, images: Callable[[], ImageData], label_noise: float, seed: int
) -> nn.Module:
    data = _drawn(images)
    if how is None:
        return load_teacher(data.name)
    dataset = _with_label_noise(data.train, label_noise, len(data.class_names), seed)
    members = []
    for member in range(how.members):
        own = 1000 * (member + 1) + seed  # never the student's
        torch.manual_seed(own)
        network = new_teacher(data.name)
        train(SupervisedObjective(network), dataset, seed=own, epochs=how.epochs, weight_decay=0.3)
        members.append(network)
    return Ensemble(members) if len(members) > 1 else members[0]


def nine_places(dataset: TensorDataset) -> TensorDataset:
    """Each image `[C, H, W]` where it is and moved by a pixel in eight directions, round the edge.

    Example:
        >>> images = TensorDataset(torch.zeros(2, 1, 16, 16), torch.tensor([3, 4]))
        >>> [list(tensor.shape) for tensor in nine_places(images).tensors]
        [[18, 1, 16, 16], [18]]
    """
    inputs, labels = dataset.tensors
    places = [(row, column) for row in (-1, 0, 1) for column in (-1, 0, 1)]
    moved = torch.cat([inputs.roll(place, (2, 3)) for place in places])
    return TensorDataset(moved, labels.repeat(len(places)))


def _answered(lesson: Lesson, dataset: TensorDataset, logits: Tensor, seed: int) -> TensorDataset:
    """The images with the teacher's logits, or with its decisions as labels."""
    inputs, labels = dataset.tensors
    if lesson.decisions:
        return TensorDataset(inputs, logits.argmax(1))
    noise = torch.randn(logits.shape, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(inputs, labels, logits + lesson.logit_noise * noise)


def _objective(lesson: Lesson, student: nn.Module, teacher: nn.Module) -> nn.Module:
    soft = SoftTargetDistillation(lesson.temperature, alpha=lesson.alpha)
    if lesson.features is None:
        return DistillationObjective(student=student, teacher=teacher, objective=soft)
    beside = soft if lesson.alpha > 0 else None
    if lesson.features == "pkt" or lesson.features == "rkd":
        related = RelationDistillation(distance=1.0, angle=2.0)
        return RelationObjective(
            student=student,
            teacher=FrozenTeacher(teacher),
            relation=pkt_loss if lesson.features == "pkt" else related,
            weight=lesson.weight,
            soft=beside,
        )
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
        soft=beside,
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


SIZES = {  # share of the teacher's parameters → channels of its three stages
    "1/2": (17, 34, 68),
    "1/3": (14, 28, 55),
    "1/10": (8, 15, 30),
    "1/30": (4, 9, 17),
}


def _configurations() -> dict[str, dict[str, Any]]:
    soft = Lesson()
    few, all_images = {"size": 500, "epochs": 20, "batch_size": 32}, {"size": 4000, "epochs": 5}
    made: dict[str, dict[str, Any]] = {}
    for temperature in (1.0, 8.0):
        made[f"T = {temperature:g}, 1,500"] = {"lesson": Lesson(temperature=temperature)}
    for alpha in (0.5, 0.9):
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
    return made | {
        "labels, letters": all_images | {"images": glyphs},
        "soft, letters": all_images | {"images": glyphs, "lesson": soft},
        # As many steps as the moved images have.
        "labels, long": {"epochs": 27},
        "soft, long": {"epochs": 27, "lesson": soft},
        "soft, moved, asked once": {"epochs": 3, "moved": True, "lesson": Lesson(fixed=True)},
        # The same 400 images as often as there are steps with all 4,000.
        "soft, 400": {"size": 400, "epochs": 45, "lesson": soft},
        "decisions, 4,000": all_images | {"lesson": Lesson(decisions=True)},
        "teacher, one epoch": {"lesson": Lesson(teacher=Trained(epochs=1))},
        "teacher, good": {"lesson": Lesson(teacher=Trained())},
        "teacher, ensemble": {"lesson": Lesson(teacher=Trained(members=3))},
        "labels, noisy": all_images | {"label_noise": 0.4},
        "soft, noisy": all_images | {"label_noise": 0.4, "lesson": Lesson(teacher=Trained())},
    }


CONFIGURATIONS = _configurations()

BORROWED = {  # name → the study of another chapter that holds it, and its name there
    "labels, 500": ("soft_targets_gains", "500 shapes: labels"),
    "soft, 500": ("soft_targets_gains", "500 shapes: soft targets"),
    "T = 1, 500": ("soft_targets_gains", "500 shapes: T = 1"),
    "T = 8, 500": ("soft_targets_gains", "500 shapes: T = 8"),
    "labels, 1,500": ("soft_targets_gains", "1,500 shapes: labels"),
    "soft, 1,500": ("soft_targets_gains", "1,500 shapes: soft targets"),
    "labels, 100 digits": ("soft_targets_gains", "100 digits: labels"),
    "soft, 100 digits": ("soft_targets_gains", "100 digits: soft targets"),
    "labels, 500 digits": ("soft_targets_gains", "500 digits: labels"),
    "soft, 500 digits": ("soft_targets_gains", "500 digits: soft targets"),
    "labels, 4,000": ("soft_targets_amounts", "4,000 shapes: labels"),
    "soft, 4,000": ("soft_targets_amounts", "4,000 shapes: soft targets"),
    "labels, moved": ("soft_targets_amounts", "1,500 shapes, moved: labels"),
    "soft, moved": ("soft_targets_amounts", "1,500 shapes, moved: soft targets"),
    "soft, 2,000 new digits": ("soft_targets_amounts", "2,000 new digits: soft targets"),
    "decisions, 2,000 new digits": ("soft_targets_amounts", "2,000 new digits: decisions"),
    "hints": ("features_methods", "fitnet"),
    "hints and soft": ("features_methods", "fitnet + soft targets"),
    "attention": ("features_methods", "attention"),
    "attention and soft": ("features_methods", "attention + soft targets"),
    "PKT": ("relations_methods", "PKT"),
    "RKD": ("relations_methods", "RKD"),
    "PKT and soft": ("relations_methods", "PKT + soft targets"),
}
CARRIED = "carried to letters"


def borrowed(names: Iterable[str] = BORROWED) -> "pd.DataFrame":
    """Rows of other chapters' studies under the names that they have here.

    Args:
        names: keys of `BORROWED`.

    Returns:
        The columns `configuration`, `seed` and `accuracy` (%).

    Example:
        >>> len(borrowed(["labels, 500", "soft, 500"]))
        40
    """
    import pandas as pd

    parts = []
    for name in names:
        lender, there = BORROWED[name]
        table = _lenders()[lender].table
        part = table[table["configuration"] == there].assign(configuration=name)
        parts.append(part[["configuration", "seed", "accuracy"]])
    return pd.concat(parts, ignore_index=True)


def _lenders() -> dict[str, Study]:
    return {
        "soft_targets_gains": read_study("soft_targets_gains"),
        "soft_targets_amounts": read_study("soft_targets_amounts"),
        "features_methods": read_study("features_methods"),
        "relations_methods": read_study("relations_methods"),
    }


def carried_over() -> dict[str, dict[str, Any]]:
    """Students by their own chapters' recipes, whose embeddings are tried on letters.

    Example:
        >>> list(carried_over())[0]
        'labels, 1,500, carried to letters'
    """
    made: dict[str, dict[str, Any]] = {}
    for name in ("labels, 1,500", "soft, 1,500", "hints"):
        lender, there = BORROWED[name]
        found = _lenders()[lender].about["settings"][there]
        made[name] = {key: found[key] for key in ("lr", "weight_decay")}
        if name == "hints":
            made[name]["lesson"] = Lesson(alpha=0.0, features="fitnet", weight=found["strength"])
    made["soft, 1,500"]["lesson"] = Lesson()
    made["untrained"] = {"epochs": 0}
    return {f"{name}, {CARRIED}": each | {"carry_to": glyphs} for name, each in made.items()}


PLACES: dict[str, dict[str, Any]] = {  # where students are tried that have another home
    "moved": {"epochs": 3, "moved": True},
    "100 digits": {"images": mnist, "size": 100, "epochs": 60, "batch_size": 32},
}
IMITATIONS: dict[str, tuple[Lesson, tuple[float, ...]]] = {  # name → lesson, weights to try
    "hints": (Lesson(alpha=0.0, features="fitnet"), (1, 10, 100, 1000, 10000)),
    "attention": (Lesson(alpha=0.0, features="attention"), (1, 10, 100, 1000, 10000)),
    "attention and soft": (Lesson(features="attention"), (1, 10, 100, 1000, 10000)),
    "PKT": (Lesson(alpha=0.0, features="pkt"), (31.25, 250, 2000, 16000, 128000)),
    "RKD": (Lesson(alpha=0.0, features="rkd"), (0.25, 1, 4, 16, 64)),
}


def imitating(name: str, place: str, weight: float) -> dict[str, Any]:
    """A student that imitates features or relations, on moved images or on real digits.

    Args:
        name: of a lesson in `IMITATIONS`.
        place: one of `PLACES`.
        weight: of the imitated term.

    Returns:
        Settings of `train_student`.

    Example:
        >>> imitating("hints", "moved", 10.0)["lesson"].weight
        10.0
    """
    return PLACES[place] | {"lesson": replace(IMITATIONS[name][0], weight=weight)}


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


def _there(*treatments: str, control: str = "labels") -> list[Contrast]:
    """Students away from home: each treatment against the control, in all places."""
    return [
        Contrast(f"{one} against {control}, {place}", f"{one}, {place}", f"{control}, {place}")
        for place in PLACES
        for one in treatments
    ]


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
        tuple(
            Contrast(
                f"α = 0.9 against 0.5, {images} images", f"α = 0.9, {images}", f"α = 0.5, {images}"
            )
            for images in ("500", "1,500")
        ),
    ),
    Rule(
        "Labels beside soft targets",
        "Keep some weight on the labels: α below 1.",
        "Hinton, Vinyals and Dean (2015), arXiv:1503.02531",
        tuple(
            Contrast(f"α = 0.9 against 1, {images} images", f"α = 0.9, {images}", f"soft, {images}")
            for images in ("500", "1,500")
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
            Contrast("27 epochs against 12, soft targets", "soft, long", "soft, 1,500"),
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
        (
            Contrast("4,000 shapes against 400", "soft, 4,000", "soft, 400"),
            Contrast("2,000 new digits against 100", "soft, 2,000 new digits", "soft, 100 digits"),
        ),
    ),
    Rule(
        "Soft pseudo-labels",
        "On unlabelled images take the teacher's probabilities, not its decisions.",
        HEARSAY,
        (
            Contrast("4,000 shapes", "soft, 4,000", "decisions, 4,000"),
            Contrast("2,000 new digits", "soft, 2,000 new digits", "decisions, 2,000 new digits"),
        ),
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
            Contrast("shapes, 1,500 moved images", "soft, moved", "labels, moved"),
            Contrast("letters, 4,000 images", "soft, letters", "labels, letters"),
            Contrast("real digits, 100 images", "soft, 100 digits", "labels, 100 digits"),
            Contrast("real digits, 500 images", "soft, 500 digits", "labels, 500 digits"),
        ),
    ),
    Rule(
        "Often features",
        "Add hints to soft targets.",
        "Romero et al. (2015), arXiv:1412.6550",
        (
            Contrast("hints against labels", "hints", "labels, 1,500"),
            Contrast("hints and soft against soft", "hints and soft", "soft, 1,500"),
            *_there("hints"),
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
            *_there("attention"),
            *_there("attention and soft", control="soft"),
        ),
    ),
    Rule(
        "Relations",
        "Let the student keep how the examples are related.",
        "Park et al. (2019), arXiv:1904.05068",
        (
            Contrast("PKT against labels", "PKT", "labels, 1,500"),
            Contrast("RKD against labels", "RKD", "labels, 1,500"),
            Contrast("PKT and soft against soft", "PKT and soft", "soft, 1,500"),
            *_there("PKT", "RKD"),
        ),
    ),
    Rule(
        "Carrying over",
        "What is distilled carries over to other data.",
        "Tian, Krishnan and Isola (2020), arXiv:1910.10699",
        tuple(
            Contrast(
                f"linear classifier on letters, {name} against labels",
                f"{configuration}, {CARRIED}",
                f"labels, 1,500, {CARRIED}",
            )
            for name, configuration in (("soft", "soft, 1,500"), ("hints", "hints"))
        ),
    ),
)
