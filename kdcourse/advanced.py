"""Advanced distillation: schedules, curricula, learning together, chains, and losses on logits.

Chapter: "Advanced: progressive and online". The losses here are drop-in alternatives to
`soft_target_loss`; the recipes (`train_chain`) are plain loops over the ordinary `fit`.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from ._checks import (
    check_count,
    check_floating,
    check_labels,
    check_same_shape,
    check_temperature,
    check_weight,
    require,
    shape,
    widen,
)
from .metrics import accuracy
from .soft_targets import SoftTargetDistillation, hard_target_loss, soft_target_loss

if TYPE_CHECKING:
    import pandas as pd

LOGITS = ("student_logits", "teacher_logits")


# Losses on logits


def decoupled_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    temperature: float = 4.0,
    alpha: float = 1.0,
    beta: float = 8.0,
) -> Tensor:
    r"""Decoupled distillation (DKD): the target class and the other classes, weighted apart.

    .. math:: T^2 (\alpha \cdot \mathrm{TCKD} + \beta \cdot \mathrm{NCKD})

    TCKD is the divergence between the two-way distributions "the label, or not"; NCKD is the one
    between the distributions over the other classes alone. The soft-target loss is
    :math:`T^2 (\mathrm{TCKD} + (1 - p^t_y) \, \mathrm{NCKD})`: a confident teacher silences what
    it knows about the other classes, and DKD gives it its voice back. Both terms are computed from
    differences of logits, so that they stay finite where `log(softmax)` is NaN.

    Args:
        student_logits: `[..., C]`, C >= 2.
        teacher_logits: the same shape; receives no gradient.
        labels: integer classes in `[0, C)`, `[...]`.
        temperature: `T > 0`.
        alpha: weight of TCKD, at least 0.
        beta: weight of NCKD, at least 0. With two classes NCKD is 0.

    Returns:
        A 0-d tensor, at least 0.

    Raises:
        ValueError: for unequal shapes, fewer than two classes, labels that do not fit,
            `temperature <= 0` or a negative weight.

    Reference:
        Zhao, Cui, Song, Qiu and Liang (2022), "Decoupled Knowledge Distillation",
        arXiv:2203.08679.

    Example:
        >>> student, teacher = torch.tensor([[1.0, 2.0, 0.0]]), torch.tensor([[3.0, 1.0, 0.0]])
        >>> round(decoupled_loss(student, teacher, torch.tensor([0]), temperature=2.0).item(), 4)
        1.7683
    """
    check_weight("alpha", alpha)
    check_weight("beta", beta)
    target, others = _decoupled_terms(student_logits, teacher_logits, labels, temperature)
    return alpha * target + beta * others


def _decoupled_terms(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """T² · TCKD and T² · NCKD."""
    student, teacher = check_same_shape(student_logits, teacher_logits, names=LOGITS)
    check_temperature(temperature)
    classes = student.shape[-1]
    require(classes >= 2, f"student_logits must hold at least 2 classes, got {shape(student)}")
    check_labels(labels, student)
    label = labels.long().unsqueeze(-1)
    other = torch.arange(classes - 1, device=label.device)
    other = other + (other >= label)  # [..., C - 1], every class but the label

    def split(logits: Tensor) -> tuple[Tensor, Tensor]:
        scaled = logits / temperature
        rest = scaled.gather(-1, other)
        margin = scaled.gather(-1, label) - rest.logsumexp(-1, keepdim=True)
        return F.pad(margin, (0, 1)), rest  # logits of (the label, or not) and of the others

    (student_binary, student_rest), (teacher_binary, teacher_rest) = split(student), split(teacher)
    target = soft_target_loss(student_binary, teacher_binary, temperature=1.0)
    others = soft_target_loss(student_rest, teacher_rest, temperature=1.0)
    return temperature**2 * target, temperature**2 * others


class DecoupledDistillation(nn.Module):
    """Decoupled distillation and the labels: `decoupled_loss` with its terms named.

    Args:
        temperature: `T > 0`.
        alpha: weight of the term on the label's class, at least 0.
        beta: weight of the term on the other classes, at least 0.
        hard: weight of the cross-entropy, at least 0.

    Called with `(student_logits [..., C], teacher_logits [..., C], labels [...])`. Returns the
    weighted terms `{"target", "others", "hard"}`. The authors' code raises the weight of the first
    two from 0 over the first epochs; this does not.

    Reference:
        Zhao et al. (2022), arXiv:2203.08679.

    Example:
        >>> student, teacher = torch.tensor([[1.0, 2.0, 0.0]]), torch.tensor([[3.0, 1.0, 0.0]])
        >>> terms = DecoupledDistillation(temperature=2.0)(student, teacher, torch.tensor([0]))
        >>> {name: round(term.item(), 4) for name, term in terms.items()}
        {'target': 0.8737, 'others': 0.8946, 'hard': 1.4076}
    """

    def __init__(
        self, temperature: float = 4.0, alpha: float = 1.0, beta: float = 8.0, hard: float = 1.0
    ) -> None:
        super().__init__()
        check_temperature(temperature)
        for name, weight in {"alpha": alpha, "beta": beta, "hard": hard}.items():
            check_weight(name, weight)
        self.temperature = temperature
        self.alpha = alpha
        self.beta = beta
        self.hard = hard

    def forward(
        self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor
    ) -> dict[str, Tensor]:
        """The weighted terms for one batch."""
        target, others = _decoupled_terms(student_logits, teacher_logits, labels, self.temperature)
        return {
            "target": self.alpha * target,
            "others": self.beta * others,
            "hard": self.hard * hard_target_loss(student_logits, labels),
        }


def dist_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 1.0,
    beta: float = 1.0,
    gamma: float = 1.0,
) -> Tensor:
    r"""DIST: predictions need only correlate with the teacher's, not equal them.

    .. math:: T^2 \Big[ \beta \big(1 - \tfrac1B \sum_b \rho(P^s_{b\cdot}, P^t_{b\cdot})\big)
        + \gamma \big(1 - \tfrac1C \sum_c \rho(P^s_{\cdot c}, P^t_{\cdot c})\big) \Big]

    :math:`P = \mathrm{softmax}(z / T)` and :math:`\rho` is Pearson's correlation: over the classes
    of one example (the rows), and over the examples of the batch for one class (the columns). Where
    one side is constant, up to rounding, the correlation counts as 0 and has no gradient; in
    float32 that includes probabilities that differ by less than about 1e-10.

    Args:
        student_logits: `[B, C]`, B >= 2 and C >= 2.
        teacher_logits: the same shape; receives no gradient.
        temperature: `T > 0`.
        beta: weight of the rows, at least 0.
        gamma: weight of the columns, at least 0.

    Returns:
        A 0-d tensor between 0 and 2 T² (β + γ).

    Raises:
        ValueError: for unequal shapes, fewer than two examples or classes, `temperature <= 0` or a
            negative weight.

    Reference:
        Huang, You, Wang, Qian and Xu (2022), "Knowledge Distillation from A Stronger Teacher",
        arXiv:2205.10536.

    Example:
        >>> student = torch.tensor([[1.0, 2.0, 0.0], [0.0, 1.0, 1.0]])
        >>> teacher = torch.tensor([[3.0, 1.0, 0.0], [0.0, 2.0, 1.0]])
        >>> round(dist_loss(student, teacher).item(), 4)
        1.4019
    """
    check_weight("beta", beta)
    check_weight("gamma", gamma)
    rows, columns = _dist_terms(student_logits, teacher_logits, temperature)
    return beta * rows + gamma * columns


def _dist_terms(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """T² (1 − mean correlation) over the rows and over the columns."""
    student, teacher = check_same_shape(student_logits, teacher_logits, names=LOGITS)
    check_temperature(temperature)
    require(
        student.dim() == 2 and min(student.shape) >= 2,
        "student_logits must be [B, C] with at least 2 examples and 2 classes, "
        f"got {shape(student)}",
    )
    student, teacher = (student / temperature).softmax(1), (teacher / temperature).softmax(1)
    rows, columns = (_correlation(student, teacher, dim).mean() for dim in (1, 0))
    return temperature**2 * (1 - rows), temperature**2 * (1 - columns)


def _correlation(first: Tensor, second: Tensor, dim: int) -> Tensor:
    """Pearson's correlation along `dim`; 0, without gradient, where one side is constant."""
    sides = []
    for values in (first, second):
        mean = values.mean(dim, keepdim=True)
        centred = values - mean
        square = (centred * centred).sum(dim)
        rounding = 8 * torch.finfo(values.dtype).eps * mean.detach().squeeze(dim)
        underflow = (
            torch.finfo(values.dtype).tiny ** 0.5
        )  # below it the gradient of rsqrt overflows
        varied = square > (rounding**2 * values.shape[dim]).clamp_min(underflow)
        sides.append((centred, torch.where(varied, torch.where(varied, square, 1).rsqrt(), 0)))
    (first, first_scale), (second, second_scale) = sides
    return (first * second).sum(dim) * first_scale * second_scale


class DISTDistillation(nn.Module):
    """DIST and the labels: `dist_loss` with its terms named.

    Args:
        temperature: `T > 0`.
        beta: weight of the correlation over classes, at least 0.
        gamma: weight of the correlation over examples, at least 0.
        hard: weight of the cross-entropy, at least 0.

    Called with `(student_logits [B, C], teacher_logits [B, C], labels [B] or None)`. Returns the
    weighted terms `{"rows", "columns", "hard"}`; without labels the first two.

    Reference:
        Huang et al. (2022), arXiv:2205.10536.

    Example:
        >>> student = torch.tensor([[1.0, 2.0, 0.0], [0.0, 1.0, 1.0]])
        >>> terms = DISTDistillation()(student, student * 2, torch.tensor([1, 2]))
        >>> {name: round(term.item(), 4) for name, term in terms.items()}
        {'rows': 0.0059, 'columns': 0.0, 'hard': 0.6348}
    """

    def __init__(
        self, temperature: float = 1.0, beta: float = 1.0, gamma: float = 1.0, hard: float = 1.0
    ) -> None:
        super().__init__()
        check_temperature(temperature)
        for name, weight in {"beta": beta, "gamma": gamma, "hard": hard}.items():
            check_weight(name, weight)
        self.temperature = temperature
        self.beta = beta
        self.gamma = gamma
        self.hard = hard

    def forward(
        self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The weighted terms for one batch."""
        rows, columns = _dist_terms(student_logits, teacher_logits, self.temperature)
        terms = {"rows": self.beta * rows, "columns": self.gamma * columns}
        if labels is not None:
            terms["hard"] = self.hard * hard_target_loss(student_logits, labels)
        return terms


def standardize_logits(logits: Tensor, *, eps: float = 1e-7) -> Tensor:
    r"""Each example's logits with mean 0 and standard deviation 1 (z-scores).

    .. math:: \frac{z - \mathrm{mean}(z)}{\epsilon + \mathrm{sd}(z)}

    With both sides standardised, `soft_target_loss` no longer asks a small student to reach the
    size of the teacher's logits. The standard deviation is the unbiased one. Logits that are all
    equal, up to rounding, become 0 and get no gradient.

    Args:
        logits: `[..., C]`, C >= 2. Gradients flow through.
        eps: added to the standard deviation, at least 0.

    Returns:
        The shape of `logits`.

    Raises:
        ValueError: for fewer than two classes or a negative `eps`.

    Reference:
        Sun, Ren, Li, Wang and Cao (2024), "Logit Standardization in Knowledge Distillation",
        arXiv:2403.01427.

    Example:
        >>> standardize_logits(torch.tensor([[1.0, 2.0, 3.0], [5.0, 5.0, 5.0]]))
        tensor([[-1.0000,  0.0000,  1.0000],
                [ 0.0000,  0.0000,  0.0000]])
    """
    check_floating("logits", logits)
    check_weight("eps", eps)
    require(
        logits.dim() >= 1 and logits.shape[-1] >= 2,
        f"logits must hold at least 2 classes, got {shape(logits)}",
    )
    logits = widen(logits)
    deviation, mean = torch.std_mean(logits, -1, keepdim=True)
    varied = deviation > 8 * torch.finfo(logits.dtype).eps * mean.detach().abs()
    scale = torch.where(varied, 1 / (torch.where(varied, deviation, 1) + eps), 0)
    return (logits - mean) * scale


class StandardizedDistillation(SoftTargetDistillation):
    r"""Hinton's objective with the soft term on standardised logits.

    .. math:: \alpha \cdot T^2\,\mathrm{KL}\big(\mathrm{softmax}(\hat z^t / T) \,\|\,
        \mathrm{softmax}(\hat z^s / T)\big) + (1 - \alpha) \cdot \mathrm{CE}(z^s, y)

    :math:`\hat z` are the logits after `standardize_logits`; the labels see the raw ones.
    Arguments and terms are those of `SoftTargetDistillation`. z-scores are small, so a temperature
    that suits logits is too high for them; the paper uses 2.

    Reference:
        Sun et al. (2024), arXiv:2403.01427.

    Example:
        >>> student, teacher = torch.tensor([[1.0, 2.0, 0.0]]), torch.tensor([[3.0, 1.0, 0.0]])
        >>> terms = StandardizedDistillation(alpha=0.5)(student, 10 * teacher, torch.tensor([0]))
        >>> {name: round(term.item(), 4) for name, term in terms.items()}
        {'soft': 0.2588, 'hard': 0.7038}
    """

    def __init__(self, temperature: float = 2.0, alpha: float = 0.7) -> None:
        super().__init__(temperature, alpha)

    def forward(
        self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The weighted terms for one batch."""
        student, teacher = standardize_logits(student_logits), standardize_logits(teacher_logits)
        soft = soft_target_loss(student, teacher, temperature=self.temperature)
        if labels is None:
            return {"soft": soft}
        hard = hard_target_loss(student_logits, labels)
        return {"soft": self.alpha * soft, "hard": (1 - self.alpha) * hard}


# Schedules


class ProgressiveDistillation(nn.Module):
    """Hinton's objective whose temperature and α move linearly from stage to stage.

    The first values hold in the first stage and the last values in the last one. (A widely copied
    version divides by the number of stages instead of the number of steps between them: with five
    stages it ends at T = 2.8 and α = 0.9 where 1 and 1 were asked for.)

    Args:
        num_stages: how many stages, at least 1. With one stage the first values hold.
        temperature: `(first, last)`, both positive.
        alpha: `(first, last)` weight of the soft term, both in [0, 1].

    Called like `SoftTargetDistillation`, and returns its terms at the current stage, so it serves
    as the `objective` of a `DistillationTrainer`. The loop over stages is the caller's: fit, then
    `advance_stage()`. The stage is saved with the module's state.

    Attributes:
        current_stage: counts from 0.

    Raises:
        ValueError: for no stage, a temperature that is not positive, or α outside [0, 1].

    Example:
        >>> progressive = ProgressiveDistillation(num_stages=3)
        >>> for _ in range(4):
        ...     print(progressive.current_stage, progressive.temperature, progressive.alpha)
        ...     progressive.advance_stage()
        0 10.0 0.5
        1 5.5 0.75
        2 1.0 1.0
        2 1.0 1.0
    """

    def __init__(
        self,
        num_stages: int = 5,
        temperature: tuple[float, float] = (10.0, 1.0),
        alpha: tuple[float, float] = (0.5, 1.0),
    ) -> None:
        super().__init__()
        check_count("num_stages", num_stages)
        for name, ends in {"temperature": temperature, "alpha": alpha}.items():
            require(
                isinstance(ends, Sequence) and len(ends) == 2,
                f"{name} must be a pair (first, last), got {ends!r}",
            )
        for value in temperature:
            check_temperature(value)
        for value in alpha:
            check_weight("alpha", value, high=1.0)
        self.num_stages = num_stages
        self.temperatures = temperature
        self.alphas = alpha
        self.current_stage = 0

    @property
    def temperature(self) -> float:
        """The current stage's temperature."""
        return _between(self.temperatures, self.current_stage, self.num_stages)

    @property
    def alpha(self) -> float:
        """The current stage's weight of the soft term."""
        return _between(self.alphas, self.current_stage, self.num_stages)

    def advance_stage(self) -> None:
        """Go on to the next stage; the last stage stays."""
        self.current_stage = min(self.current_stage + 1, self.num_stages - 1)

    def forward(
        self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The current stage's weighted terms for one batch."""
        objective = SoftTargetDistillation(self.temperature, self.alpha)
        return objective(student_logits, teacher_logits, labels)

    def get_extra_state(self) -> int:
        """The stage, as part of `state_dict()`."""
        return self.current_stage

    def set_extra_state(self, state: int) -> None:
        """The stage, from `load_state_dict()`."""
        self.current_stage = state

    def extra_repr(self) -> str:
        """The settings, for `print(progressive)`."""
        return (
            f"stage {self.current_stage} of {self.num_stages} (from 0), "
            f"temperature={self.temperature}, alpha={self.alpha}"
        )


def _between(ends: Sequence[float], stage: int, num_stages: int) -> float:
    """Linear from the first end in stage 0 to the last end in stage `num_stages - 1`."""
    first, last = ends
    share = stage / max(num_stages - 1, 1)
    return (1 - share) * first + share * last


def example_difficulty(teacher_logits: Tensor, labels: Tensor | None = None) -> Tensor:
    """How hard the teacher finds each example.

    Args:
        teacher_logits: `[N, C]`.
        labels: integer classes, `[N]`. With labels the difficulty is the teacher's cross-entropy,
            in nats; without, one minus its confidence (its largest probability).

    Returns:
        `[N]`, larger is harder.

    Raises:
        ValueError: for logits that are not `[N, C]`, or labels that do not fit.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0], [1.0, 0.0]])
        >>> example_difficulty(logits)
        tensor([0.1192, 0.2689])
        >>> example_difficulty(logits, torch.tensor([1, 0]))
        tensor([2.1269, 0.3133])
    """
    check_floating("teacher_logits", teacher_logits)
    require(
        teacher_logits.dim() == 2 and teacher_logits.numel() > 0,
        f"teacher_logits must be a non-empty [N, C], got {shape(teacher_logits)}",
    )
    logits = widen(teacher_logits.detach())
    if labels is None:
        return 1 - logits.softmax(-1).amax(-1)
    check_labels(labels, logits)
    return F.cross_entropy(logits, labels.long(), reduction="none")


class Curriculum:
    r"""Which examples to train on: few at first, more with every stage, all in the last.

    .. math:: \mathrm{share}_k = f + (1 - f) \Big(\frac{k}{K - 1}\Big)^{\text{pacing}}

    Args:
        difficulty: `[N]`, larger is harder; `example_difficulty` makes it from a teacher's logits.
        num_stages: K, at least 2 (with one stage there is nothing to order).
        first_share: f, the share of examples in the first stage, in (0, 1].
        pacing: positive; 1 grows evenly, below 1 admits examples early, above 1 late.
        order: which examples come first, `"easy"`, `"hard"` (an anti-curriculum) or `"random"` (the
            control: the same growing share, without the ordering).
        seed: of the random order.

    The loop over stages is the caller's: train on `dataset` restricted to `indices`, then
    `advance_stage()`.

    Attributes:
        current_stage: counts from 0.

    Raises:
        ValueError: for difficulties that are not finite and `[N]`, or an option out of its range.

    Reference:
        Bengio, Louradour, Collobert and Weston (2009), "Curriculum Learning", ICML. Ordering by a
        teacher, and pacing: Hacohen and Weinshall (2019), "On The Power of Curriculum Learning in
        Training Deep Networks", arXiv:1904.03626.

    Example:
        >>> curriculum = Curriculum(torch.tensor([0.3, 0.1, 0.2, 0.9]), num_stages=3,
        ...                         first_share=0.5)
        >>> for _ in range(3):
        ...     print(curriculum.share, curriculum.indices.tolist())
        ...     curriculum.advance_stage()
        0.5 [1, 2]
        0.75 [1, 2, 0]
        1.0 [1, 2, 0, 3]
    """

    def __init__(
        self,
        difficulty: Tensor,
        *,
        num_stages: int = 5,
        first_share: float = 0.2,
        pacing: float = 1.0,
        order: Literal["easy", "hard", "random"] = "easy",
        seed: int = 0,
    ) -> None:
        check_floating("difficulty", difficulty)
        require(
            difficulty.dim() == 1 and len(difficulty) > 0 and bool(difficulty.isfinite().all()),
            f"difficulty must be finite and [N] with N >= 1, got {shape(difficulty)}",
        )
        check_count("num_stages", num_stages, minimum=2)
        check_weight("first_share", first_share, high=1.0)
        require(first_share > 0, f"first_share must be above 0, got {first_share}")
        check_temperature(pacing, name="pacing")
        require(
            order in ("easy", "hard", "random"),
            f"order must be 'easy', 'hard' or 'random', got {order!r}",
        )
        if order == "random":
            generator = torch.Generator().manual_seed(seed)
            self.order = torch.randperm(len(difficulty), generator=generator)
        else:
            self.order = difficulty.cpu().argsort(descending=order == "hard", stable=True)
        self.num_stages = num_stages
        self.first_share = first_share
        self.pacing = pacing
        self.current_stage = 0

    @property
    def share(self) -> float:
        """The share of all examples that the current stage admits."""
        progress = (self.current_stage / (self.num_stages - 1)) ** self.pacing
        return self.first_share + (1 - self.first_share) * progress

    @property
    def indices(self) -> Tensor:
        """The current stage's examples, first admitted first; at least one."""
        return self.order[: max(1, round(self.share * len(self.order)))]

    def advance_stage(self) -> None:
        """Go on to the next stage; the last stage, with all examples, stays."""
        self.current_stage = min(self.current_stage + 1, self.num_stages - 1)


# Learning together


class OnlineDistillation(nn.Module):
    r"""Deep mutual learning: students without a teacher, each learning from its peers.

    .. math:: \sum_i \Big[ \mathrm{CE}(z_i, y) + \frac{1}{K-1} \sum_{j \ne i}
        T^2\,\mathrm{KL}\big(\mathrm{softmax}(z_j / T) \,\|\, \mathrm{softmax}(z_i / T)\big) \Big]

    A peer's prediction is a target: no gradient flows into it from the others' terms. The paper
    updates the students in turn; here all are updated at once, from the same predictions. With
    `target="mean"` each student learns from one target, the average of its peers' *probabilities*
    (averaging logits would not be averaging predictions). With two students both are the same.

    Args:
        students: at least two different networks, of any architectures, over the same classes.
        temperature: `T > 0`; the paper uses 1.
        target: `"peers"`, the mean of the divergences from each peer, or `"mean"`.

    Called with `(x, labels [B])`. Returns `(terms, logits)`: the weighted terms `"hard_0"`,
    `"peers_0"`, `"hard_1"`, ... and each student's logits `[B, C]`. `OnlineObjective` turns this
    into an objective for `fit`.

    Raises:
        ValueError: for fewer than two students, the same one twice, an unknown target, or
            `temperature <= 0`; in a call, for students over different classes.

    Reference:
        Zhang, Xiang, Hospedales and Lu (2018), "Deep Mutual Learning", arXiv:1706.00384.

    Example:
        >>> online = OnlineDistillation([nn.Identity(), nn.Softplus()])
        >>> terms, logits = online(torch.tensor([[1.0, -1.0]]), torch.tensor([0]))
        >>> {name: round(term.item(), 4) for name, term in terms.items()}
        {'hard_0': 0.1269, 'peers_0': 0.0826, 'hard_1': 0.3133, 'peers_1': 0.0671}
    """

    def __init__(
        self,
        students: Iterable[nn.Module],
        temperature: float = 1.0,
        target: Literal["peers", "mean"] = "peers",
    ) -> None:
        super().__init__()
        students = list(students)
        require(
            len(students) >= 2 and len({id(student) for student in students}) == len(students),
            "students must be at least 2 different networks: alone there is no peer to learn from; "
            f"got {len({id(student) for student in students})} different of {len(students)}",
        )
        check_temperature(temperature)
        require(target in ("peers", "mean"), f"target must be 'peers' or 'mean', got {target!r}")
        self.students = nn.ModuleList(students)
        self.temperature = temperature
        self.target = target

    def forward(self, x: Tensor, labels: Tensor) -> tuple[dict[str, Tensor], list[Tensor]]:
        """The weighted terms, and each student's logits."""
        logits = [student(x) for student in self.students]
        terms = {}
        for i, own in enumerate(logits):
            targets = [peer.detach() for j, peer in enumerate(logits) if j != i]
            if self.target == "mean":
                targets = [self.temperature * _log_mean_probability(targets, self.temperature)]
            losses = [soft_target_loss(own, t, temperature=self.temperature) for t in targets]
            terms[f"hard_{i}"] = hard_target_loss(own, labels)
            terms[f"peers_{i}"] = torch.stack(losses).mean()
        return terms, logits


def _log_mean_probability(logits: Sequence[Tensor], temperature: float = 1.0) -> Tensor:
    """Log of the mean of softmax(z / T) over several sets of logits."""
    for other in logits[1:]:
        check_same_shape(logits[0], other, names=("the first network's logits", "another's"))
    log_probabilities = [F.log_softmax(widen(z) / temperature, dim=-1) for z in logits]
    stacked = torch.stack(log_probabilities)
    return stacked.logsumexp(0) - torch.tensor(float(len(logits))).log().to(stacked)


class OnlineObjective(nn.Module):
    """`OnlineDistillation` as an objective for `fit`.

    Args:
        online: the students that learn together.

    Called with a batch `(inputs, labels, ...)`; further elements are ignored. Returns the terms of
    `OnlineDistillation`, and as metrics each student's accuracy `"accuracy_0"`, ... in [0, 1].
    """

    def __init__(self, online: OnlineDistillation) -> None:
        super().__init__()
        self.online = online

    def forward(self, batch: Sequence[Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Loss terms and metrics of one batch."""
        inputs, labels = batch[:2]
        terms, logits = self.online(inputs, labels)
        return terms, {f"accuracy_{i}": accuracy(own, labels) for i, own in enumerate(logits)}


class Ensemble(nn.Module):
    r"""Several networks as one: the average of their *probabilities*.

    .. math:: z = \log \frac1K \sum_k \mathrm{softmax}(z_k)

    The output serves as logits: its softmax is the averaged prediction, so an ensemble can be
    evaluated, or be a teacher, like any network. (At T > 1 the softened average is not the average
    of softened predictions.)

    Args:
        models: at least one network, over the same classes.

    Called with whatever the networks take. Returns log-probabilities `[..., C]`.

    Raises:
        ValueError: for no network, or logits of different shapes.

    Example:
        >>> both = Ensemble([nn.Identity(), nn.Softplus()])
        >>> both(torch.tensor([[1.0, -1.0]])).softmax(-1)
        tensor([[0.8059, 0.1941]])
    """

    def __init__(self, models: Iterable[nn.Module]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)
        require(len(self.models) > 0, "models must hold at least one network, got none")

    def forward(self, *inputs: Tensor) -> Tensor:
        """The logarithm of the averaged probabilities."""
        return _log_mean_probability([model(*inputs) for model in self.models])


# One after another


@dataclass(frozen=True)
class Trained:
    """One network of a chain: the model, its training history, and its evaluation.

    Attributes:
        model: in the mode in which it was built.
        history: what `fit` returned, one row an epoch.
        evaluation: accuracy and loss on the validation data; empty without any.
    """

    model: nn.Module
    history: "pd.DataFrame"
    evaluation: dict[str, float]


def train_chain(
    model_fns: Sequence[Callable[[], nn.Module]],
    train_loader: Iterable,
    *,
    teacher: nn.Module | None = None,
    temperature: float | Sequence[float] = 4.0,
    alpha: float | Sequence[float] = 0.7,
    epochs: int = 10,
    lr: float = 1e-3,
    validation: Iterable | Dataset | None = None,
    directory: str | os.PathLike | None = None,
    seed: int = 0,
    progress: bool = True,
) -> list[Trained]:
    """Train networks one after another, each from the one before it.

    With large, middle and small networks this is teacher-assistant distillation; with equal ones
    it is born-again training. Every network starts from fresh weights and learns with
    `SoftTargetDistillation` and Adam.

    Args:
        model_fns: each builds one network when called without arguments, in the order of training.
        train_loader: batches `(inputs, labels)`.
        teacher: of the first network. Without one, the first learns from the labels alone.
        temperature: one for all, or one for each network that learns from another.
        alpha: the weight of the soft term, likewise.
        epochs: for each network.
        lr: learning rate.
        validation: data on which each finished network is evaluated.
        directory: where checkpoints are kept. The same call with the same directory continues at
            the epoch where it stopped, and ends with the weights of an uninterrupted run, bit for
            bit. Other settings make other files; other data or networks need another directory.
        seed: of initial weights and of the order of batches; each network gets seeds of its own.
        progress: show progress bars.

    Returns:
        The networks in order. If training is interrupted, up to and with the unfinished one.

    Raises:
        ValueError: for an empty chain, sequences of the wrong length, or a `model_fn` that returns
            a network it returned before or starts from the same weights again.

    Reference:
        Mirzadeh et al. (2020), "Improved Knowledge Distillation via Teacher Assistant",
        arXiv:1902.03393.

    Example:
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> data = TensorDataset(torch.randn(32, 4), torch.randint(3, (32,)))
        >>> chain = train_chain([lambda: nn.Linear(4, 3)] * 2, DataLoader(data, batch_size=8),
        ...                     epochs=2, validation=data)
        >>> [len(trained.history) for trained in chain], sorted(chain[1].evaluation)
        ([2, 2], ['accuracy', 'loss'])
    """
    # The losses know no loop. This is a recipe: a `for` around the ordinary loop.
    from .training import DistillationTrainer, SupervisedObjective, evaluate, fit

    require(len(model_fns) > 0, "model_fns must hold at least one function, got none")
    learners = len(model_fns) - (teacher is None)
    temperatures = _for_each("temperature", temperature, learners)
    alphas = _for_each("alpha", alpha, learners)
    settings_of_each = zip(temperatures, alphas, strict=True)
    objectives = iter([SoftTargetDistillation(*options) for options in settings_of_each])
    chain: list[Trained] = []
    initial: list[list[Tensor]] = []
    settings = [repr((seed, lr, epochs))]
    generator = torch.Generator().manual_seed(seed)
    for model_fn in model_fns:
        own_seed = int(torch.randint(2**62, (), generator=generator))
        torch.manual_seed(own_seed)
        model = model_fn()
        require(
            all(model is not other for other in [teacher, *(link.model for link in chain)]),
            "model_fn must build a new network at every call, got an earlier one again",
        )
        _check_fresh(model, initial)
        optimizer = torch.optim.Adam(model.parameters(), lr=lr)
        options: dict[str, Any] = {"epochs": epochs, "seed": own_seed, "progress": progress}
        source = chain[-1].model if chain else teacher
        if source is None:
            settings.append("labels")
            options["checkpoint"] = _checkpoint(directory, settings)
            history = fit(SupervisedObjective(model), train_loader, optimizer, **options)
        else:
            objective = next(objectives)
            settings.append(repr(objective))
            options["checkpoint"] = _checkpoint(directory, settings)
            trainer = DistillationTrainer(student=model, teacher=source, objective=objective)
            history = trainer.fit(train_loader, optimizer, **options)
        evaluation = {} if validation is None else evaluate(model, validation)
        chain.append(Trained(model, history, evaluation))
        if len(history) < epochs:  # interrupted: do not go on from a half-trained teacher
            break
    return chain


def _for_each(name: str, value: float | Sequence[float], number: int) -> list[float]:
    if not isinstance(value, Sequence):
        return [value] * number
    require(
        len(value) == number,
        f"{name} must be one number, or one for each of the {number} networks that learn from "
        f"another, got {list(value)}",
    )
    return list(value)


def _checkpoint(directory: str | os.PathLike | None, settings: list[str]) -> Path | None:
    """The last network's file; its name changes with every setting the network depends on."""
    if directory is None:
        return None
    digest = hashlib.sha256("\n".join(settings).encode()).hexdigest()[:12]
    return Path(directory) / f"{len(settings) - 2}-{digest}.pt"


def _check_fresh(model: nn.Module, initial: list[list[Tensor]]) -> None:
    """Compare with the initial weights of all networks before, then note this one's."""
    weights = [parameter.detach().clone() for parameter in model.parameters()]
    for earlier in initial:
        require(
            len(earlier) != len(weights)
            or any(
                a.shape != b.shape or not a.equal(b) for a, b in zip(earlier, weights, strict=True)
            ),
            "model_fn must build a network with fresh random weights at every call, got the "
            "initial weights of an earlier one again",
        )
    initial.append(weights)
