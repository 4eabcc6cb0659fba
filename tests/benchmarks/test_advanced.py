from functools import partial

import pytest
import textbook
import torch
from cost import Step, pair, step
from torch import Tensor

from kdcourse.advanced import decoupled_loss, dist_loss, standardize_logits
from kdcourse.soft_targets import soft_target_loss

SHAPE = (128, 100)


def standardized_loss(student: Tensor, teacher: Tensor) -> Tensor:
    student, teacher = standardize_logits(student), standardize_logits(teacher)
    return soft_target_loss(student, teacher, temperature=2.0)


def with_labels(loss, shape: tuple[int, int]) -> Step:
    torch.manual_seed(0)
    students, teacher = [torch.randn(shape, requires_grad=True)], torch.randn(shape)
    return partial(step, loss, students, teacher, torch.randint(shape[1], shape[:1]))


@pytest.mark.parametrize("name", [f"DKD {list(SHAPE)}"])
def test_decoupled(compare, name: str) -> None:
    compare(
        partial(with_labels, decoupled_loss, SHAPE), partial(with_labels, textbook.decoupled, SHAPE)
    )


@pytest.mark.parametrize(
    ("ours", "naive"),
    [
        pytest.param(dist_loss, textbook.dist, id=f"DIST {list(SHAPE)}"),
        pytest.param(
            standardized_loss, textbook.standardized_soft_target, id=f"standardized {list(SHAPE)}"
        ),
    ],
)
def test_losses_on_logits(compare, ours, naive) -> None:
    compare(partial(pair, ours, [SHAPE], [SHAPE]), partial(pair, naive, [SHAPE], [SHAPE]))
