from functools import partial

import pytest
import textbook
import torch
from cost import Case, Step, pair, step
from torch import Tensor, nn

from kdcourse.features import (
    VIDLoss,
    attention_transfer_loss,
    contrastive_feature_loss,
    cwd_loss,
    fsp_loss,
    hint_loss,
    nst_loss,
)

MAP = (64, 256, 16, 16)


def fsp(one: Tensor, two: Tensor, teacher_one: Tensor, teacher_two: Tensor) -> Tensor:
    return fsp_loss((one, two), (teacher_one, teacher_two))


class TextbookVID(nn.Module):
    """Convolutions on maps, the likelihood written out."""

    def __init__(self, student_channels: int, teacher_channels: int) -> None:
        super().__init__()
        self.regressor = nn.Sequential(
            nn.Conv2d(student_channels, teacher_channels, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(teacher_channels, teacher_channels, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(teacher_channels, teacher_channels, 1, bias=False),
        )
        self.raw = nn.Parameter(torch.full((teacher_channels,), 5.0))

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        variance = (torch.log(1 + torch.exp(self.raw)) + 1e-5).view(1, -1, 1, 1)
        error = (self.regressor(student) - teacher) ** 2
        return (0.5 * (error / variance + torch.log(variance))).mean()


def textbook_vid() -> Step:
    return partial(
        step, TextbookVID(256, 256), [torch.randn(MAP, requires_grad=True)], torch.randn(MAP)
    )


def vid_loss(module: VIDLoss, student: Tensor, teacher: Tensor) -> Tensor:
    return module(student, teacher)["vid"]


def our_vid() -> Step:
    module = VIDLoss(student_channels=256, teacher_channels=256)
    students = [torch.randn(MAP, requires_grad=True)]
    return partial(step, partial(vid_loss, module), students, torch.randn(MAP))


def both(ours, naive, *shapes) -> tuple[Case, Case]:
    return partial(pair, ours, *shapes), partial(pair, naive, *shapes)


CASES = {
    "hint [64, 256, 16, 16]": both(hint_loss, textbook.hint, [MAP], [MAP]),
    "attention transfer [64, 256, 16, 16]": both(
        attention_transfer_loss, textbook.attention_transfer, [MAP], [MAP]
    ),
    "contrastive [256, 512]": both(
        contrastive_feature_loss, textbook.contrastive, [(256, 512)], [(256, 512)]
    ),
    "FSP [64, 64, 16, 16]": both(fsp, textbook.fsp, [(64, 64, 16, 16)] * 2, [(64, 64, 16, 16)] * 2),
    "NST [16, 64, 16, 16]": both(nst_loss, textbook.nst, [(16, 64, 16, 16)], [(16, 64, 16, 16)]),
    "NST [16, 64, 4, 4]": both(nst_loss, textbook.nst, [(16, 64, 4, 4)], [(16, 64, 4, 4)]),
    "NST [64, 256, 16, 16]": (partial(pair, nst_loss, [MAP], [MAP]), None),
    "VID [64, 256, 16, 16]": (our_vid, textbook_vid),
    "CWD [64, 256, 16, 16]": both(cwd_loss, textbook.cwd, [MAP], [MAP]),
}


@pytest.mark.parametrize(("ours", "naive"), CASES.values(), ids=CASES.keys())
def test_features(compare, ours: Case, naive: Case | None) -> None:
    compare(ours, naive)
