"""Detection: finding objects, and what a small detector can learn from a large one.

Chapter: "Task-specific: detection". The detector (`kdcourse.models.Detector`) answers at every
position of a few feature maps, the *levels*, which differ in resolution: which class is here, and
how far are the left, top, right and bottom of its box. A box is left, top, right and bottom in
pixels.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ._checks import (
    check_count,
    check_floating,
    check_frozen,
    check_mask,
    check_same_batch,
    check_same_shape,
    check_temperature,
    check_weight,
    require,
    shape,
    widen,
)
from .metrics import average_precision
from .training import FrozenTeacher

Levels = Mapping[str, Tensor]


class DetectorOutput(NamedTuple):
    """What a detector says about a batch of images, by level, the finest first.

    Attributes:
        classes: logits of each class, apart from the others, `[B, C, H, W]`.
        boxes: distances to left, top, right and bottom in pixels, positive, `[B, 4, H, W]`.
        features: the maps that the answers come from, `[B, F, H, W]`.
        strides: pixels from one position to the next.
    """

    classes: dict[str, Tensor]
    boxes: dict[str, Tensor]
    features: dict[str, Tensor]
    strides: dict[str, int]


class Detections(NamedTuple):
    """The objects found in one image, the surest first.

    Attributes:
        boxes: `[N, 4]`.
        scores: in [0, 1], `[N]`.
        labels: `[N]`.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor


# What is compared


def detection_classification_loss(
    student: Tensor, teacher: Tensor, *, temperature: float = 2.0
) -> Tensor:
    r"""Soft targets where every class is a yes or no of its own.

    .. math:: T^2 \cdot \mathrm{mean} \, \mathrm{BCE}\big(\sigma(z^t / T), \sigma(z^s / T)\big)

    Computed from logits: through the sigmoid first, the gradient at ±200 would be exactly 0. At its
    least, where both agree, the loss is the teacher's own uncertainty, not 0.

    Args:
        student: logits, any shape.
        teacher: the same shape; receives no gradient.
        temperature: `T > 0`; larger values soften both.

    Returns:
        A 0-d tensor, at least 0.

    Raises:
        ValueError: for unequal shapes or `temperature <= 0`.

    Reference:
        Hinton, Vinyals and Dean (2015), arXiv:1503.02531, for the softening; Chen et al. (2017),
        "Learning Efficient Object Detection Models with Knowledge Distillation", NIPS 2017.

    Example:
        >>> student, teacher = torch.tensor([[0.0]]), torch.tensor([[4.0]])
        >>> round(detection_classification_loss(student, teacher).item(), 4)
        2.7726
    """
    student, teacher = check_same_shape(student, teacher)
    check_temperature(temperature)
    target = (teacher / temperature).sigmoid()
    loss = F.binary_cross_entropy_with_logits(student / temperature, target)
    return loss * temperature**2


def detection_box_loss(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    r"""Smooth-L1 between boxes, the mean over the coordinates of the boxes that count.

    Below 1 pixel the error counts as half its square, above as itself less a half. A division by
    the number of all boxes is easily written: with one of ten kept, 0.05 where 0.5 is right.

    Args:
        student: `[..., 4]`.
        teacher: the same shape; receives no gradient.
        mask: boolean, `[...]`, true where a box counts. What is masked out may hold anything. None:
            all.

    Returns:
        A 0-d tensor, at least 0; 0 for an empty mask.

    Raises:
        ValueError: for unequal shapes, a last dimension other than 4, or a mask that does not fit.

    Reference:
        Girshick (2015), "Fast R-CNN", arXiv:1504.08083 (smooth-L1); Chen et al. (2017), NIPS 2017.

    Example:
        >>> mask = torch.arange(10) == 3
        >>> detection_box_loss(torch.zeros(10, 4), torch.ones(10, 4), mask).item()
        0.5
    """
    student, teacher = check_same_shape(student, teacher)
    require(student.shape[-1] == 4, f"student and teacher must be [..., 4], got {shape(student)}")
    if mask is not None:
        check_mask(mask, student.shape[:-1])
        student, teacher = student[mask], teacher[mask]
    return F.smooth_l1_loss(student, teacher, reduction="sum") / max(student.numel(), 1)


def importance_map(teacher: Tensor) -> Tensor:
    """Where the teacher's features are strong: mean absolute value, the largest of each image 1.

    Args:
        teacher: feature map `[B, F, H, W]`.

    Returns:
        `[B, 1, H, W]` in [0, 1]; 0 everywhere for an image whose features are all 0.

    Raises:
        ValueError: for what is not a map.

    Example:
        >>> importance_map(torch.tensor([[[[1.0, -4.0]], [[1.0, 0.0]]]]))
        tensor([[[[0.5000, 1.0000]]]])
    """
    check_floating("teacher", teacher)
    require(
        teacher.dim() == 4 and teacher.numel() > 0,
        f"teacher must be a non-empty map [B, F, H, W], got {shape(teacher)}",
    )
    strength = widen(teacher).abs().mean(1, keepdim=True)
    largest = strength.amax((2, 3), keepdim=True)
    return torch.where(largest > 0, strength / torch.where(largest > 0, largest, 1), 0)


def pkd_loss(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Half the mean squared difference of features standardised channel by channel.

    .. math:: \frac12 \, \mathrm{mean} \, (\hat f^s - \hat f^t)^2, \qquad
        \hat f_c = \frac{f_c - \mu_c}{\sigma_c}

    Mean and standard deviation are those of a channel over batch and positions, so only the
    correlation counts, not how large one network's features are. Where the sizes differ, the
    student's map is resized to the teacher's.

    Args:
        student: feature map `[B, F, H, W]`.
        teacher: the same batch and channels; receives no gradient.

    Returns:
        A 0-d tensor, at least 0. A channel that does not vary counts as 0 everywhere, without
        gradient.

    Raises:
        ValueError: for unequal batches or channels, or what is not a map.

    Reference:
        Cao et al. (2022), "PKD: General Distillation Framework for Object Detectors via Pearson
        Correlation Coefficient", arXiv:2207.02039.

    Example:
        >>> features = torch.tensor([[[[1.0, 2.0, 4.0]]]])
        >>> abs(round(pkd_loss(5 * features + 3, features).item(), 4))
        0.0
        >>> round(pkd_loss(-features, features).item(), 4)
        1.3333
    """
    student, teacher = _resized(*check_same_batch(student, teacher, min_dims=4))
    check_same_shape(student, teacher)
    return F.mse_loss(_standardized(student), _standardized(teacher)) / 2


def _standardized(features: Tensor) -> Tensor:
    channels = features.transpose(0, 1).flatten(1)
    centred = channels - channels.mean(1, keepdim=True)
    norm = torch.linalg.vector_norm(centred, dim=1, keepdim=True)
    # What is left of a constant channel is rounding, in proportion to its size.
    rounding = 4 * torch.finfo(channels.dtype).eps * channels.shape[1] ** 0.5
    varies = norm > rounding * channels.detach().abs().amax(1, keepdim=True)
    scale = max(channels.shape[1] - 1, 1) ** 0.5  # the standard deviation divides by n - 1
    centred = torch.where(varies, centred * (scale / torch.where(varies, norm, 1)), 0)
    return centred.unflatten(1, (features.shape[0], *features.shape[2:])).transpose(0, 1)


def _resized(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """The student's map in the teacher's height and width, bilinearly."""
    require(
        student.dim() == teacher.dim() == 4,
        f"student and teacher must be maps [B, F, H, W], got {shape(student)} and {shape(teacher)}",
    )
    if student.shape[2:] != teacher.shape[2:]:
        student = F.interpolate(student, teacher.shape[2:], mode="bilinear", align_corners=False)
    return student, teacher


class FPNImitation(nn.Module):
    r"""The student's feature pyramid imitates the teacher's, level by level.

    .. math:: \mathrm{mean}\big((w \, (g(f^s) - f^t))^2\big), \qquad
        w = \frac{\mathrm{mean}_c |f^t|}{\max_{h,w} \mathrm{mean}_c |f^t|}

    `g` is a 1×1 convolution into the teacher's channels, for every level its own, then a bilinear
    resize where the sizes differ. The weight, see `importance_map`, spares the background, most of
    an image. The result is the mean over the levels.

    Args:
        student_channels: level → channels.
        teacher_channels: level → channels; must have every level of the student.
        method: `"importance"` as above, or `"pkd"`: `pkd_loss` instead.

    Called with the features of student and teacher, level → `[B, F, H, W]`. Returns
    `{"fpn": loss}`. Levels beyond those named at the start are not looked at.

    Raises:
        ValueError: for no level, a level that one side lacks, features that do not fit, or another
            method.

    Reference:
        Chen et al. (2017), NIPS 2017, for imitation through an adapting layer; Wang, Yuan, Zhang
        and Feng (2019), "Distilling Object Detectors with Fine-grained Feature Imitation",
        arXiv:1906.03609, for imitation where objects are; Cao et al. (2022), arXiv:2207.02039.

    Example:
        >>> imitation = FPNImitation({"p3": 8}, {"p3": 16})
        >>> teacher = {"p3": torch.zeros(2, 16, 6, 6)}
        >>> imitation({"p3": torch.ones(2, 8, 12, 12)}, teacher)["fpn"].item()
        0.0
    """

    def __init__(
        self,
        student_channels: Mapping[str, int],
        teacher_channels: Mapping[str, int],
        *,
        method: Literal["importance", "pkd"] = "importance",
    ) -> None:
        super().__init__()
        require(
            isinstance(student_channels, Mapping) and len(student_channels) > 0,
            "student_channels must be a dict from level to channels with at least one level, "
            f"got {student_channels!r}",
        )
        _check_levels("teacher_channels", teacher_channels, student_channels)
        require(
            method in ("importance", "pkd"), f"method must be importance or pkd, got {method!r}"
        )
        for level in student_channels:
            check_count(f"student_channels[{level!r}]", student_channels[level])
            check_count(f"teacher_channels[{level!r}]", teacher_channels[level])
        self.method = method
        self.adapters = nn.ModuleDict(
            {
                level: nn.Conv2d(channels, teacher_channels[level], 1)
                for level, channels in student_channels.items()
            }
        )

    def forward(self, student: Levels, teacher: Levels) -> dict[str, Tensor]:
        """The loss of one batch's feature pyramids."""
        _check_levels("student", student, self.adapters)
        _check_levels("teacher", teacher, self.adapters)
        losses = [
            self._compare(level, adapter, student[level], teacher[level])
            for level, adapter in self.adapters.items()
        ]
        return {"fpn": torch.stack(losses).mean()}

    def _compare(self, level: str, adapter: nn.Module, student: Tensor, teacher: Tensor) -> Tensor:
        student, teacher = check_same_batch(
            student, teacher, names=(f"student[{level!r}]", f"teacher[{level!r}]"), min_dims=4
        )
        require(
            student.shape[1] == adapter.in_channels and teacher.shape[1] == adapter.out_channels,
            f"level {level!r} must have {adapter.in_channels} channels in the student and "
            f"{adapter.out_channels} in the teacher, got {shape(student)} and {shape(teacher)}",
        )
        student, teacher = _resized(widen(adapter(student)), teacher)
        if self.method == "pkd":
            return pkd_loss(student, teacher)
        return (importance_map(teacher) * (student - teacher)).square().mean()


def _check_levels(name: str, given: Mapping, needed: Mapping | nn.ModuleDict) -> None:
    require(
        isinstance(given, Mapping), f"{name} must be a dict by level, got {type(given).__name__}"
    )
    missing = [level for level in needed if level not in given]
    require(
        not missing,
        f"{name} must have the levels {list(needed)}, got {list(given)}: lacks {missing}",
    )


class DetectionDistillation(nn.Module):
    """The terms of one batch between two detectors, on the levels that the student has.

    Args:
        classification: weight of `detection_classification_loss` over all positions.
        box: weight of `detection_box_loss` at the positions where the teacher sees an object, that
            is, its surest class reaches `confidence`.
        fpn: a loss module on both feature pyramids such as `FPNImitation`; None: none. Its
            adapters train with the student.
        fpn_weight: of the terms of `fpn`.
        temperature: `T > 0` of the classification term.
        confidence: probability in [0, 1].

    Called with two `DetectorOutput`; the teacher must have every level of the student, with as many
    positions. Returns the weighted terms `{"classification", "box", ...}`; one of weight 0 is left
    out. Each is the mean over all positions of all levels.

    Raises:
        ValueError: for a negative weight, a level that the teacher lacks, or shapes that differ.

    Reference:
        Chen et al. (2017), "Learning Efficient Object Detection Models with Knowledge
        Distillation", NIPS 2017.

    Example:
        >>> student = DetectorOutput(
        ...     {"p3": torch.zeros(1, 2, 3, 3)}, {"p3": torch.ones(1, 4, 3, 3)}, {}, {"p3": 8}
        ... )
        >>> terms = DetectionDistillation(temperature=1.0)(student, student)
        >>> {name: round(term.item(), 4) for name, term in terms.items()}
        {'classification': 0.6931, 'box': 0.0}
    """

    def __init__(
        self,
        *,
        classification: float = 1.0,
        box: float = 1.0,
        fpn: nn.Module | None = None,
        fpn_weight: float = 1.0,
        temperature: float = 2.0,
        confidence: float = 0.3,
    ) -> None:
        super().__init__()
        check_weight("classification", classification)
        check_weight("box", box)
        check_weight("fpn_weight", fpn_weight)
        check_weight("confidence", confidence, high=1.0)
        check_temperature(temperature)
        self.classification = classification
        self.box = box
        self.fpn = fpn
        self.fpn_weight = fpn_weight
        self.temperature = temperature
        self.confidence = confidence

    def forward(self, student: DetectorOutput, teacher: DetectorOutput) -> dict[str, Tensor]:
        """The weighted terms of one batch's outputs."""
        levels = list(student.classes)
        _check_levels("teacher", teacher.classes, student.classes)
        for level in levels:
            check_same_shape(
                student.classes[level],
                teacher.classes[level],
                names=(f"the student's {level} classes", f"the teacher's {level} classes"),
                min_dims=4,
            )
        classes_s, classes_t = (_by_position(x.classes, levels) for x in (student, teacher))
        boxes_s, boxes_t = (_by_position(x.boxes, levels) for x in (student, teacher))
        terms = {}
        if self.classification:
            terms["classification"] = self.classification * detection_classification_loss(
                classes_s, classes_t, temperature=self.temperature
            )
        if self.box:
            sure = classes_t.detach().sigmoid().amax(-1) >= self.confidence
            terms["box"] = self.box * detection_box_loss(boxes_s, boxes_t, sure)
        if self.fpn is not None and self.fpn_weight:
            imitated = self.fpn(student.features, teacher.features)
            terms |= {name: self.fpn_weight * term for name, term in imitated.items()}
        return terms


# Training from boxes, and finding them again


def detection_targets(
    boxes: Tensor, labels: Tensor, positions: Tensor, strides: Tensor, *, num_classes: int
) -> tuple[Tensor, Tensor, Tensor]:
    """What a detector should say at each position, by the rules of FCOS.

    A position is responsible for an object if it lies in its box, near its middle (within 1.5
    strides), and the object's size suits the level: the farthest side of the box is at most two
    strides away on the finest level, between two of the level before and two of its own on the
    others, without limit on the coarsest. Of several objects the smallest counts.

    Args:
        boxes: `[B, M, 4]`.
        labels: `[B, M]`; -1 where there is no object.
        positions: x and y in pixels, `[P, 2]`, see `detector_positions`.
        strides: of the level of each position, `[P]`.
        num_classes: `C`.

    Returns:
        `classes [B, P, C]`, 1 at the object's class, else 0; `distances [B, P, 4]` to its left,
        top, right and bottom; and which positions have an object, boolean `[B, P]`.

    Reference:
        Tian, Shen, Chen and He (2019), "FCOS: Fully Convolutional One-Stage Object Detection",
        arXiv:1904.01355.

    Example:
        >>> boxes, labels = torch.tensor([[[0.0, 0.0, 8.0, 8.0]]]), torch.tensor([[1]])
        >>> positions, strides = torch.tensor([[6.0, 4.0], [20.0, 4.0]]), torch.tensor([4, 4])
        >>> targets = detection_targets(boxes, labels, positions, strides, num_classes=2)
        >>> [target[0, 0].tolist() for target in targets]
        [[0.0, 1.0], [6.0, 4.0, 2.0, 4.0], True]
    """
    corner, opposite = boxes[:, None, :, :2], boxes[:, None, :, 2:]
    point = positions[None, :, None]
    distances = torch.cat([point - corner, opposite - point], -1)  # [B, P, M, 4]
    farthest = distances.amax(-1)
    levels = strides.unique()  # in ascending order
    upper = 2.0 * levels
    lower = torch.cat([upper.new_zeros(1), upper[:-1]])
    upper[-1] = torch.inf
    level = torch.searchsorted(levels, strides)
    fits = (farthest > lower[level][:, None]) & (farthest <= upper[level][:, None])
    middle = (point - (corner + opposite) / 2).abs().amax(-1) <= 1.5 * strides[:, None]
    responsible = (distances.amin(-1) > 0) & fits & middle & (labels >= 0)[:, None]
    area = (opposite - corner).prod(-1).expand_as(farthest)
    smallest, chosen = torch.where(responsible, area, torch.inf).min(-1)  # [B, P]
    found = smallest < torch.inf
    own = labels[:, None].expand_as(area).gather(-1, chosen[..., None])[..., 0]
    classes = F.one_hot(own.clamp_min(0), num_classes) * found[..., None]
    distances = distances.gather(2, chosen[..., None, None].expand(-1, -1, 1, 4))[:, :, 0]
    return classes.to(boxes.dtype), distances, found


def detector_positions(output: DetectorOutput) -> tuple[Tensor, Tensor]:
    """The middle of every position of every level in pixels, `[P, 2]`, and its stride, `[P]`.

    Example:
        >>> maps = {"p3": torch.zeros(1, 2, 1, 2)}
        >>> detector_positions(DetectorOutput(maps, maps, maps, {"p3": 8}))
        (tensor([[ 4.,  4.],
                [12.,  4.]]), tensor([8, 8]))
    """
    positions, strides = [], []
    for level, logits in output.classes.items():
        stride, (height, width) = output.strides[level], logits.shape[2:]
        y, x = torch.meshgrid(
            torch.arange(height, device=logits.device),
            torch.arange(width, device=logits.device),
            indexing="ij",
        )
        positions.append((torch.stack([x, y], -1).flatten(0, 1) + 0.5) * stride)
        strides.append(torch.full((height * width,), stride, device=logits.device))
    return torch.cat(positions), torch.cat(strides)


def supervised_detection_loss(
    output: DetectorOutput, boxes: Tensor, labels: Tensor
) -> dict[str, Tensor]:
    r"""Training from labelled boxes: focal loss on classes, and minus the log of IoU on boxes.

    .. math:: -(1 - p)^2 \, a \log p

    is the focal loss where `p` is the probability of what is right, and `a` is 0.25 for a yes and
    0.75 for a no; its sum is divided by the number of positions that have an object.

    Args:
        output: of the detector.
        boxes: `[B, M, 4]`.
        labels: `[B, M]` in `[0, C)`; -1 where there is no object.

    Returns:
        The terms `{"objects", "outlines"}`.

    Raises:
        ValueError: for boxes and labels that do not fit each other or the output.

    Reference:
        Tian, Shen, Chen and He (2019), arXiv:1904.01355; Lin, Goyal, Girshick, He and Dollár
        (2017), "Focal Loss for Dense Object Detection", arXiv:1708.02002; Yu et al. (2016),
        "UnitBox: An Advanced Object Detection Network", arXiv:1608.01471.
    """
    levels = list(output.classes)
    logits = widen(_by_position(output.classes, levels))
    distances = widen(_by_position(output.boxes, levels))
    require(
        boxes.dim() == 3
        and boxes.shape[2] == 4
        and labels.shape == boxes.shape[:2]
        and len(boxes) == len(logits),
        f"boxes and labels must be [B, M, 4] and [B, M] for a batch of {len(logits)}, "
        f"got {shape(boxes)} and {shape(labels)}",
    )
    require(
        boxes.shape[1] > 0 and int(labels.max()) < logits.shape[-1],
        f"labels must hold at least one column and lie below {logits.shape[-1]}, got "
        f"{shape(labels)}" + (f" up to {int(labels.max())}" if labels.numel() else ""),
    )
    positions, strides = detector_positions(output)
    classes, right_distances, found = detection_targets(
        boxes, labels, positions, strides, num_classes=logits.shape[-1]
    )
    count = max(int(found.sum()), 1)
    error = F.binary_cross_entropy_with_logits(logits, classes, reduction="none")
    wrong = torch.where(classes > 0, 1 - logits.sigmoid(), logits.sigmoid())
    balance = torch.where(classes > 0, 0.25, 0.75)
    objects = (balance * wrong.square() * error).sum() / count
    own, right = distances[found], right_distances[found]
    meet = torch.minimum(own, right)
    common = (meet[:, 0] + meet[:, 2]) * (meet[:, 1] + meet[:, 3])
    areas = [(x[:, 0] + x[:, 2]) * (x[:, 1] + x[:, 3]) for x in (own, right)]
    overlap = common / (areas[0] + areas[1] - common)
    outlines = -overlap.clamp_min(1e-6).log().sum() / count
    return {"objects": objects, "outlines": outlines}


class DetectionObjective(nn.Module):
    """Joins a detector with its labelled boxes and, where there is one, with its teacher.

    Called with a batch `(images, boxes, labels)`. Returns the terms of `supervised_detection_loss`
    and those of the distillation.

    Args:
        student: maps images to a `DetectorOutput`; trained, together with `distillation`.
        teacher: the same of the teacher, frozen: `FrozenTeacher(model)`. None: boxes alone.
        distillation: called with both outputs, for instance `DetectionDistillation`.

    Raises:
        ValueError: for a teacher that would be trained, or one of the two without the other.
    """

    def __init__(
        self,
        *,
        student: nn.Module,
        teacher: nn.Module | None = None,
        distillation: nn.Module | None = None,
    ) -> None:
        super().__init__()
        require(
            (teacher is None) == (distillation is None),
            "teacher and distillation must be given together, got only one of them",
        )
        if teacher is not None:
            check_frozen(teacher, "FrozenTeacher(model)")
        self.student = student
        self.teacher = teacher
        self.distillation = distillation

    def forward(self, batch: Sequence[Tensor]) -> dict[str, Tensor]:
        """Loss terms of one batch."""
        images, boxes, labels = batch
        output = self.student(images)
        terms = supervised_detection_loss(output, boxes, labels)
        if self.teacher is not None and self.distillation is not None:
            terms |= self.distillation(output, self.teacher(images))
        return terms


class CachedDetector(nn.Module):
    """A detector's answers to known images, worked out once and found again image by image.

    For a frozen teacher whose images are never augmented: a student then trains almost as fast
    with it as without.

    Args:
        detector: maps images to a `DetectorOutput`; asked once, in eval mode.
        images: all that will be asked for, `[N, ...]`.

    Called with any of these images, in any order and number; returns a `DetectorOutput`.

    Raises:
        ValueError: for an image that is none of these, such as an augmented one.
    """

    def __init__(self, detector: nn.Module, images: Tensor) -> None:
        super().__init__()
        with FrozenTeacher(detector) as frozen:
            self.output: DetectorOutput = frozen(images)
        self.rows = {pixels: row for row, pixels in enumerate(_pixels(images))}

    def forward(self, images: Tensor) -> DetectorOutput:
        """The answers to these images."""
        asked = _pixels(images)
        unknown = [place for place, pixels in enumerate(asked) if pixels not in self.rows]
        require(
            not unknown,
            f"images must be among the {len(self.rows)} whose answers were worked out, got others "
            f"at {unknown}: for augmented images ask the detector itself",
        )
        rows = torch.tensor([self.rows[pixels] for pixels in asked])
        classes, boxes, features = (
            {level: values[rows].to(images.device) for level, values in maps.items()}
            for maps in self.output[:3]
        )
        return DetectorOutput(classes, boxes, features, self.output.strides)


def _pixels(images: Tensor) -> list[bytes]:
    """What each image consists of, to know it again."""
    return [image.numpy().tobytes() for image in images.cpu()]


def box_iou(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union of every box in `first [N, 4]` with every one in `second [M, 4]`.

    >>> box_iou(torch.tensor([[0.0, 0, 2, 2]]), torch.tensor([[1.0, 0, 3, 2], [5.0, 5, 6, 6]]))
    tensor([[0.3333, 0.0000]])
    """
    a, b = first[:, None], second[None]
    meet = torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])
    common = meet.clamp_min(0).prod(-1)
    union = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - common
    return torch.where(union > 0, common / torch.where(union > 0, union, 1), 0)


@torch.no_grad()
def detect(
    output: DetectorOutput, *, threshold: float = 0.05, overlap: float = 0.5, most: int = 20
) -> list[Detections]:
    """The objects that a detector found in each image.

    Of the surest answers above `threshold`, those go that overlap a surer one of the same class by
    more than `overlap` (non-maximum suppression).

    Args:
        output: of the detector, `B` images.
        threshold: lowest probability, in [0, 1].
        overlap: largest intersection over union of two objects of one class, in [0, 1].
        most: objects an image.

    Returns:
        One `Detections` for each image.

    Raises:
        ValueError: for a threshold or an overlap outside [0, 1], or `most` below 1.
    """
    check_weight("threshold", threshold, high=1.0)
    check_weight("overlap", overlap, high=1.0)
    check_count("most", most)
    levels = list(output.classes)
    scores = _by_position(output.classes, levels).sigmoid()
    distances = _by_position(output.boxes, levels)
    positions, _ = detector_positions(output)
    boxes = torch.cat([positions - distances[..., :2], positions + distances[..., 2:]], -1)
    candidates = min(10 * most, scores[0].numel())
    found = []
    for image_scores, image_boxes in zip(scores, boxes, strict=True):
        best, index = image_scores.flatten().topk(candidates)
        index = index[best >= threshold]
        best = best[best >= threshold]
        where, label = index // image_scores.shape[1], index % image_scores.shape[1]
        box = image_boxes[where]
        rivals = (box_iou(box, box) > overlap) & (label[:, None] == label)
        kept: list[int] = []
        for i in range(len(best)):
            if len(kept) < most and not rivals[i, kept].any():
                kept.append(i)
        found.append(Detections(box[kept], best[kept], label[kept]))
    return found


def evaluate_detector(model: nn.Module, dataset: Dataset) -> dict[str, float]:
    """Mean average precision over a data set, in eval mode; see `kdcourse.metrics`.

    Args:
        model: maps images to a `DetectorOutput`; left as it came.
        dataset: of `(image, boxes, labels)`, as a part of `kdcourse.data.SceneData`.

    Returns:
        `map50` and `map`, both in [0, 1].
    """
    found, boxes, labels = [], [], []
    with FrozenTeacher(model) as frozen:
        for images, image_boxes, image_labels in DataLoader(dataset, batch_size=256):
            found += detect(frozen(images))
            boxes.append(image_boxes)
            labels.append(image_labels)
    return average_precision(found, torch.cat(boxes), torch.cat(labels))


def _by_position(maps: Levels, levels: Sequence[str]) -> Tensor:
    """`[B, C, H, W]` of each level as `[B, P, C]`, the positions of all levels in a row."""
    return torch.cat([maps[level].flatten(2).transpose(1, 2) for level in levels], 1)
