"""Soft targets: the student learns the teacher's whole output distribution.

Chapter: "Soft targets". Source: Hinton, Vinyals and Dean (2015), "Distilling the Knowledge in a
Neural Network", arXiv:1503.02531.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from ._checks import (
    check_floating,
    check_labels,
    check_mask,
    check_same_shape,
    check_temperature,
    check_weight,
    require,
    shape,
    widen,
)


def soft_target_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 4.0,
    mask: Tensor | None = None,
) -> Tensor:
    r"""Kullback-Leibler divergence from teacher to student at a temperature, times :math:`T^2`.

    .. math:: T^2 \cdot \frac{1}{N} \sum_n
        \mathrm{KL}\big(\mathrm{softmax}(z^t_n / T) \,\|\, \mathrm{softmax}(z^s_n / T)\big)

    The mean runs over all `N` leading positions, or over those that `mask` keeps. The factor
    :math:`T^2` keeps the size of the gradient comparable as the temperature grows.

    Args:
        student_logits: unnormalised scores, `[..., C]`.
        teacher_logits: the same shape; receives no gradient.
        temperature: `T > 0`; larger values soften both distributions.
        mask: boolean, `[...]`, true where a position counts. What is masked out may hold anything,
            also NaN. An empty mask gives 0.

    Returns:
        A 0-d tensor, at least 0; float32 for half-precision input, else the input's type.

    Raises:
        ValueError: for unequal shapes, a mask that does not fit, or `temperature <= 0`.

    Reference:
        Hinton, Vinyals and Dean (2015), "Distilling the Knowledge in a Neural Network",
        arXiv:1503.02531.

    Example:
        >>> import torch
        >>> student, teacher = torch.tensor([[1.0, 2.0, 0.0]]), torch.tensor([[3.0, 1.0, 0.0]])
        >>> round(soft_target_loss(student, teacher, temperature=2.0).item(), 4)
        0.9153
    """
    student, teacher = check_same_shape(
        student_logits, teacher_logits, names=("student_logits", "teacher_logits")
    )
    check_temperature(temperature)
    if mask is not None:
        check_mask(mask, student.shape[:-1])
        student, teacher = student[mask], teacher[mask]
    positions = max(student.shape[:-1].numel(), 1)
    divergence = F.kl_div(
        F.log_softmax(student / temperature, dim=-1),
        F.log_softmax(teacher / temperature, dim=-1),
        reduction="sum",
        log_target=True,
    )
    return divergence * (temperature**2 / positions)


class SoftTargetDistillation(nn.Module):
    r"""Hinton's objective: soft targets from the teacher, hard targets from the labels.

    .. math:: \alpha \cdot \mathrm{soft} + (1 - \alpha) \cdot \mathrm{CE}(z^s, y)

    Args:
        temperature: `T > 0` of the soft term.
        alpha: weight of the *soft* term, in [0, 1]. Other texts weigh the hard term with it.

    Called with `(student_logits [..., C], teacher_logits [..., C], labels [...] or None)`. Returns
    the weighted terms `{"soft", "hard"}`; without labels `{"soft"}` alone, unweighted.

    Raises:
        ValueError: for `temperature <= 0`, `alpha` outside [0, 1], or shapes that do not fit.

    Reference:
        Hinton, Vinyals and Dean (2015), arXiv:1503.02531.

    Example:
        >>> import torch
        >>> objective = SoftTargetDistillation(temperature=2.0, alpha=0.5)
        >>> student, teacher = torch.tensor([[1.0, 2.0, 0.0]]), torch.tensor([[3.0, 1.0, 0.0]])
        >>> terms = objective(student, teacher, torch.tensor([0]))
        >>> {name: round(term.item(), 4) for name, term in terms.items()}
        {'soft': 0.4576, 'hard': 0.7038}
    """

    def __init__(self, temperature: float = 4.0, alpha: float = 0.7) -> None:
        super().__init__()
        check_temperature(temperature)
        check_weight("alpha", alpha, high=1.0)
        self.temperature = temperature
        self.alpha = alpha

    def forward(
        self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The weighted terms for one batch."""
        soft = soft_target_loss(student_logits, teacher_logits, temperature=self.temperature)
        if labels is None:
            return {"soft": soft}
        return {
            "soft": self.alpha * soft,
            "hard": (1 - self.alpha) * hard_target_loss(student_logits, labels),
        }

    def extra_repr(self) -> str:
        """The settings, for `print(objective)`."""
        return f"temperature={self.temperature}, alpha={self.alpha}"


def hard_target_loss(student_logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy with the labels, over all leading positions.

    Args:
        student_logits: `[..., C]`.
        labels: integer classes in `[0, C)`, `[...]`.

    Returns:
        A 0-d tensor.

    Raises:
        ValueError: for empty logits, or labels of the wrong shape, type or range.

    Example:
        >>> import torch
        >>> round(hard_target_loss(torch.tensor([[2.0, 0.0]]), torch.tensor([0])).item(), 4)
        0.1269
    """
    check_floating("student_logits", student_logits)
    require(
        student_logits.dim() >= 1 and student_logits.numel() > 0,
        f"student_logits must be a non-empty [..., C], got {shape(student_logits)}",
    )
    check_labels(labels, student_logits)
    logits = widen(student_logits).reshape(-1, student_logits.shape[-1])
    return F.cross_entropy(logits, labels.long().reshape(-1))


def logit_terms(
    soft: nn.Module | None, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor
) -> dict[str, Tensor]:
    """The terms on logits of an objective that also compares something else.

    Args:
        soft: a loss module such as `SoftTargetDistillation`; None: the labels alone.
        student_logits: `[B, C]`.
        teacher_logits: `[B, C]`.
        labels: integer classes, `[B]`.

    Returns:
        The module's named terms, or `{"hard"}`.

    Example:
        >>> import torch
        >>> logits, labels = torch.zeros(2, 3), torch.tensor([0, 1])
        >>> list(logit_terms(None, logits, logits, labels))
        ['hard']
    """
    if soft is None:
        return {"hard": hard_target_loss(student_logits, labels)}
    return soft(student_logits, teacher_logits, labels)
