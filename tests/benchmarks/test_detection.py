from functools import partial

import pytest
import textbook
import torch
from cost import Case, Step, pair, step
from torch import Tensor

from kdcourse.detection import FPNImitation, detection_classification_loss, pkd_loss

MAP, LOGITS = (16, 64, 32, 32), (16, 1024, 80)


def imitation_loss(module: FPNImitation, student: Tensor, teacher: Tensor) -> Tensor:
    return module({"p3": student}, {"p3": teacher})["fpn"]


def imitation() -> Step:
    module = FPNImitation({"p3": 64}, {"p3": 64})
    students = [torch.randn(MAP, requires_grad=True)]
    return partial(step, partial(imitation_loss, module), students, torch.randn(MAP))


def adapted(adapter: torch.nn.Module, student: Tensor, teacher: Tensor) -> Tensor:
    return textbook.fpn_imitation(adapter(student), teacher)


def textbook_imitation() -> Step:
    students = [torch.randn(MAP, requires_grad=True)]
    adapter = torch.nn.Conv2d(64, 64, 1)
    return partial(step, partial(adapted, adapter), students, torch.randn(MAP))


CASES = {
    "classification [16, 1024, 80]": (
        partial(pair, detection_classification_loss, [LOGITS], [LOGITS]),
        partial(pair, textbook.detection_classification, [LOGITS], [LOGITS]),
    ),
    "FPN imitation [16, 64, 32, 32]": (imitation, textbook_imitation),
    "PKD [16, 64, 32, 32]": (
        partial(pair, pkd_loss, [MAP], [MAP]),
        partial(pair, textbook.pkd, [MAP], [MAP]),
    ),
}


@pytest.mark.parametrize(("ours", "naive"), CASES.values(), ids=CASES.keys())
def test_detection(compare, ours: Case, naive: Case) -> None:
    compare(ours, naive)
