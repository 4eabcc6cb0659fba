"""Knowledge distillation, by doing: the package behind the course.

The methods are re-exported here; everything around them has a room of its own: `training`,
`experiments`, `claims`, `data`, `models`, `plotting`, `notebooks`, `grading`.
"""

from .soft_targets import SoftTargetDistillation, hard_target_loss, soft_target_loss
from .training import (
    DistillationObjective,
    DistillationTrainer,
    FrozenTeacher,
    SupervisedObjective,
    cache_teacher_logits,
    evaluate,
    fit,
)

__version__ = "0.1.0"

__all__ = [
    "DistillationObjective",
    "DistillationTrainer",
    "FrozenTeacher",
    "SoftTargetDistillation",
    "SupervisedObjective",
    "cache_teacher_logits",
    "evaluate",
    "fit",
    "hard_target_loss",
    "soft_target_loss",
]
