"""What the shipped teachers say, kept in the process."""

import pytest
import torch

from kdcourse.answers import answered
from kdcourse.models import load_teacher
from kdcourse.training import predict


@pytest.mark.parametrize(("name", "part"), [("digits", "validation"), ("mnist", "unlabelled")])
def test_answers_are_those_of_the_shipped_teacher(name: str, part: str) -> None:
    images, pictures = answered(name, part)
    whole = getattr(images, part)
    assert images.name == name
    assert torch.equal(pictures.tensors[0], whole.tensors[0])
    assert torch.equal(pictures.tensors[1], whole.tensors[1])
    torch.testing.assert_close(pictures.tensors[2], predict(load_teacher(name), whole))
    assert answered(name, part)[1] is pictures  # asked once
