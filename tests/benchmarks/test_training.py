"""An epoch of distillation beside an epoch of the student alone (in the textbook's columns)."""

from functools import partial

import pytest
from cost import Step

from kdcourse.data import subset, textured_shapes
from kdcourse.experiments import train
from kdcourse.models import load_teacher, small_convnet
from kdcourse.soft_targets import SoftTargetDistillation
from kdcourse.training import DistillationObjective, SupervisedObjective, cache_teacher_logits


def epoch(kind: str) -> Step:
    """One epoch over 512 images: "alone", "cached" teacher, or "asked" teacher."""
    images = subset(textured_shapes().train, 512, seed=0)
    student, teacher = small_convnet(20), load_teacher("textured_shapes")
    if kind == "alone":
        return partial(train, SupervisedObjective(student), images, seed=0, epochs=1)
    if kind == "cached":
        images = cache_teacher_logits(teacher, images)
    objective = DistillationObjective(
        student=student, teacher=teacher, objective=SoftTargetDistillation()
    )
    return partial(train, objective, images, seed=0, epochs=1)


@pytest.mark.parametrize("kind", ["cached", "asked"], ids=lambda kind: f"teacher {kind}/alone")
def test_epoch(compare, kind: str) -> None:
    compare(partial(epoch, kind), partial(epoch, "alone"))
