"""What several test files ask of a loss."""

from collections.abc import Callable
from typing import Any

import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

seeds = st.integers(0, 2**32 - 1)
property_test = settings(max_examples=25, deadline=None)


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Normal numbers from a seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def gradients(loss: Callable[..., Tensor], student: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    """The loss and its gradient with respect to the student; both must be finite."""
    student = student.detach().clone().requires_grad_()
    value = loss(student, *rest)
    assert value.shape == ()
    (gradient,) = torch.autograd.grad(value, student)
    assert value.isfinite()
    assert gradient.isfinite().all()
    return value.detach(), gradient


class LargestTensor(TorchDispatchMode):
    """Records how many elements the largest tensor made inside the block has."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):  # an expanded view holds no more than its storage
                held = leaf.untyped_storage().nbytes() // leaf.element_size()
                self.numel = max(self.numel, min(leaf.numel(), held))
        return result
