"""What every loss asks of its arguments, in one place.

Each check returns what the caller goes on with, or raises a `ValueError` that names the argument,
says what it got and what it needs.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn


def shape(tensor: Tensor) -> str:
    """A tensor's shape as text for an error message.

    >>> shape(torch.zeros(2, 3))
    '[2, 3]'
    """
    return str(list(tensor.shape))


def require(condition: bool, message: str) -> None:
    """Raise `ValueError(message)` unless `condition` holds."""
    if not condition:
        raise ValueError(message)


def widen(tensor: Tensor) -> Tensor:
    """Half precision becomes float32; float32 and float64 stay as they are.

    >>> widen(torch.zeros(1, dtype=torch.float16)).dtype
    torch.float32
    """
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def unit(tensor: Tensor, dim: int = -1) -> Tensor:
    """Divide by the L2 norm along `dim`; a zero row stays zero and gets zero gradient.

    Dividing by `norm + eps` instead would give a zero row a gradient of the size of `1 / eps`.

    >>> unit(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    tensor([[0.6000, 0.8000],
            [0.0000, 0.0000]])
    """
    norm = torch.linalg.vector_norm(tensor, dim=dim, keepdim=True)
    positive = norm > torch.finfo(tensor.dtype).tiny ** 0.5
    return tensor * torch.where(positive, 1 / torch.where(positive, norm, 1), 0)


def inner_products(left: Tensor, right: Tensor) -> Tensor:
    """All inner products of the rows of `left` and `right`, in full precision under autocast too.

    >>> inner_products(torch.eye(2), torch.tensor([[1.0, 2.0]]))
    tensor([[1.],
            [2.]])
    """
    with torch.autocast(left.device.type, enabled=False):
        return left @ right.mT


def check_floating(name: str, tensor: Any) -> None:
    """`tensor` must be a floating-point tensor."""
    require(
        isinstance(tensor, Tensor) and tensor.is_floating_point(),
        f"{name} must be a floating-point tensor, got "
        f"{tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__}",
    )


def check_pair(
    student: Tensor, teacher: Tensor, *, names: tuple[str, str] = ("student", "teacher")
) -> tuple[Tensor, Tensor]:
    """Two floating-point tensors, widened, the teacher's detached; shapes may still differ."""
    check_floating(names[0], student)
    check_floating(names[1], teacher)
    return widen(student), widen(teacher.detach())


def check_same_shape(
    student: Tensor,
    teacher: Tensor,
    *,
    names: tuple[str, str] = ("student", "teacher"),
    min_dims: int = 1,
) -> tuple[Tensor, Tensor]:
    """A widened pair of equal, non-empty shape with at least `min_dims` dimensions.

    >>> check_same_shape(torch.zeros(2, 3), torch.zeros(2, 4))
    Traceback (most recent call last):
    ValueError: student and teacher must have the same shape, got [2, 3] and [2, 4]
    """
    student, teacher = check_pair(student, teacher, names=names)
    require(
        student.shape == teacher.shape,
        f"{names[0]} and {names[1]} must have the same shape, "
        f"got {shape(student)} and {shape(teacher)}",
    )
    require(
        student.dim() >= min_dims and student.numel() > 0,
        f"{names[0]} and {names[1]} must be non-empty with at least {min_dims} dimension(s), "
        f"got {shape(student)}",
    )
    return student, teacher


def check_same_batch(
    student: Tensor,
    teacher: Tensor,
    *,
    names: tuple[str, str] = ("student", "teacher"),
    min_dims: int = 2,
    minimum: int = 1,
) -> tuple[Tensor, Tensor]:
    """A widened, non-empty pair of the same `minimum` or more examples; widths may differ.

    >>> check_same_batch(torch.zeros(4, 3), torch.zeros(5, 3))
    Traceback (most recent call last):
    ValueError: student and teacher must have the same batch size, got [4, 3] and [5, 3]
    """
    student, teacher = check_pair(student, teacher, names=names)
    for name, tensor in zip(names, (student, teacher), strict=True):
        require(
            tensor.dim() >= min_dims and (tensor.numel() > 0 or len(tensor) == 0),
            f"{name} must be non-empty with at least {min_dims} dimension(s), got {shape(tensor)}",
        )
        check_batch(tensor, name=name, minimum=minimum)
    require(
        len(student) == len(teacher),
        f"{names[0]} and {names[1]} must have the same batch size, "
        f"got {shape(student)} and {shape(teacher)}",
    )
    return student, teacher


def check_batch(tensor: Tensor, *, name: str = "student", minimum: int = 2) -> None:
    """A method that compares examples needs at least `minimum` of them.

    >>> check_batch(torch.zeros(1, 8))
    Traceback (most recent call last):
    ValueError: student needs a batch of at least 2 examples, got [1, 8]
    """
    require(
        tensor.dim() >= 1 and len(tensor) >= minimum,
        f"{name} needs a batch of at least {minimum} examples, got {shape(tensor)}",
    )


def check_labels(labels: Tensor, logits: Tensor, *, name: str = "labels") -> None:
    """`labels` must be class indices in `[0, C)`, one for each row of `logits`.

    >>> check_labels(torch.tensor([3]), torch.zeros(1, 3))
    Traceback (most recent call last):
    ValueError: labels must lie between 0 and 2, got values from 3 to 3
    """
    require(
        isinstance(labels, Tensor)
        and not labels.is_floating_point()
        and labels.dtype != torch.bool
        and labels.shape == logits.shape[:-1],
        f"{name} must be integer class indices of shape {list(logits.shape[:-1])}, got "
        + (
            f"{labels.dtype} of shape {shape(labels)}"
            if isinstance(labels, Tensor)
            else type(labels).__name__
        ),
    )
    if labels.numel() > 0 and not torch.compiler.is_compiling():
        low, high, classes = int(labels.min()), int(labels.max()), logits.shape[-1]
        require(
            low >= 0 and high < classes,
            f"{name} must lie between 0 and {classes - 1}, got values from {low} to {high}",
        )


def check_mask(mask: Tensor, expected: torch.Size) -> None:
    """`mask` must be boolean and of the expected shape: it selects, it never broadcasts."""
    require(
        isinstance(mask, Tensor) and mask.dtype == torch.bool and mask.shape == expected,
        f"mask must be a boolean tensor of shape {list(expected)}, got "
        + (
            f"{mask.dtype} of shape {shape(mask)}"
            if isinstance(mask, Tensor)
            else type(mask).__name__
        ),
    )


def check_temperature(temperature: float, *, name: str = "temperature") -> None:
    """A temperature is a positive, finite number.

    >>> check_temperature(0)
    Traceback (most recent call last):
    ValueError: temperature must be a positive finite number, got 0
    """
    require(
        isinstance(temperature, (int, float)) and math.isfinite(temperature) and temperature > 0,
        f"{name} must be a positive finite number, got {temperature!r}",
    )


def check_weight(name: str, value: float, *, low: float = 0.0, high: float = math.inf) -> None:
    """A weight is a finite number between `low` and `high`.

    >>> check_weight("alpha", 1.5, high=1.0)
    Traceback (most recent call last):
    ValueError: alpha must be between 0.0 and 1.0, got 1.5
    """
    limits = f"between {low} and {high}" if math.isfinite(high) else f"at least {low}"
    require(
        isinstance(value, (int, float)) and math.isfinite(value) and low <= value <= high,
        f"{name} must be {limits}, got {value!r}",
    )


def check_count(name: str, value: int, *, minimum: int = 1) -> None:
    """A count (of channels, examples, rows) is a whole number of at least `minimum`.

    >>> check_count("num_negatives", 0)
    Traceback (most recent call last):
    ValueError: num_negatives must be a whole number of at least 1, got 0
    """
    require(
        isinstance(value, int) and not isinstance(value, bool) and value >= minimum,
        f"{name} must be a whole number of at least {minimum}, got {value!r}",
    )


def check_frozen(teacher: nn.Module, wrapped: str) -> None:
    """A teacher inside an objective has nothing to train; `wrapped` shows how to get there.

    >>> check_frozen(nn.Linear(1, 1), "FrozenTeacher(model)")
    Traceback (most recent call last):
    ValueError: teacher must be frozen, got one with ...
    """
    require(
        not any(parameter.requires_grad for parameter in teacher.parameters()),
        f"teacher must be frozen, got one with trainable parameters: wrap it, {wrapped}",
    )
