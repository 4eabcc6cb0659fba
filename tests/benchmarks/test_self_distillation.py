from functools import partial
from itertools import pairwise

import pytest
import textbook
import torch
from cost import Step, step
from torch import Tensor, nn

from kdcourse.self_distillation import SelfDistillation, early_exit, self_distillation_loss

EXITS = 4


def exits(loss, shape: tuple[int, int]) -> Step:
    """The final logits and those of the exits stacked, the labels beside them."""
    torch.manual_seed(0)
    logits = [torch.randn(EXITS + 1, *shape, requires_grad=True)]
    return partial(step, partial(unstacked, loss), logits, torch.randint(shape[1], shape[:1]))


def unstacked(loss, logits: Tensor, labels: Tensor) -> Tensor:
    final, *rest = logits.unbind()
    return loss(final, rest, labels)


@pytest.mark.parametrize("shape", [(128, 100)], ids=lambda shape: f"{EXITS} exits {list(shape)}")
def test_exits(compare, shape: tuple[int, int]) -> None:
    compare(
        partial(exits, self_distillation_loss, shape),
        partial(exits, textbook.self_distillation, shape),
    )


def network() -> tuple[SelfDistillation, Tensor]:
    torch.manual_seed(0)
    widths = [1, 16, 32, 64]
    stages = [
        nn.Sequential(nn.Conv2d(a, b, 3, stride=2, padding=1), nn.BatchNorm2d(b), nn.ReLU())
        for a, b in pairwise(widths)
    ]
    return SelfDistillation(stages, 20, widths[1:]).eval(), torch.randn(256, 1, 32, 32)


def leave_at_the_first_exit() -> Step:
    model, x = network()
    return partial(early_exit, model, x, threshold=0.0)


def everything() -> Step:
    model, x = network()
    return partial(torch.no_grad()(model), x)


@pytest.mark.parametrize("name", ["early exit at the first of 3"])
def test_early_exit(compare, name: str) -> None:
    compare(leave_at_the_first_exit, everything)
