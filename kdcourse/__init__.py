"""Knowledge distillation, by doing: the package behind the course.

The methods are re-exported here; everything around them has a room of its own: `training`,
`experiments`, `claims`, `data`, `models`, `plotting`, `notebooks`, `grading`. A name is imported
when it is first used, so that the command line and the grader start without PyTorch.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_ROOMS = {
    "advanced": [
        "Curriculum",
        "DISTDistillation",
        "DecoupledDistillation",
        "Ensemble",
        "OnlineDistillation",
        "OnlineObjective",
        "ProgressiveDistillation",
        "StandardizedDistillation",
        "decoupled_loss",
        "dist_loss",
        "example_difficulty",
        "standardize_logits",
        "train_chain",
    ],
    "detection": [
        "CachedDetector",
        "DetectionDistillation",
        "DetectionObjective",
        "FPNImitation",
        "detect",
        "detection_box_loss",
        "detection_classification_loss",
        "evaluate_detector",
        "importance_map",
        "pkd_loss",
        "supervised_detection_loss",
    ],
    "best_practices": ["BEST_PRACTICES"],
    "features": [
        "FeatureDistillation",
        "FeatureExtractingModel",
        "FeatureObjective",
        "HintRegressor",
        "VIDLoss",
        "attention_transfer_loss",
        "contrastive_feature_loss",
        "cwd_loss",
        "fsp_loss",
        "hint_loss",
        "nst_loss",
    ],
    "language": [
        "DistilBERTObjective",
        "DistilBERTTrainer",
        "HiddenStateProjector",
        "NLPDistillation",
        "attention_loss",
        "chunked_soft_target_loss",
        "cosine_loss",
        "distilbert_loss",
        "embedding_loss",
        "generalized_jsd_loss",
        "hidden_state_loss",
        "initialize_from_layers",
        "sentence_embedding",
        "skip_layer_map",
        "top_k_soft_target_loss",
        "top_k_targets",
        "uniform_layer_map",
        "value_relation_loss",
    ],
    "relations": [
        "CRDLoss",
        "InstanceCRDLoss",
        "RelationDistillation",
        "RelationObjective",
        "angle_loss",
        "correlation_congruence_loss",
        "cosine_similarity_loss",
        "distance_loss",
        "gram_loss",
        "pkt_loss",
        "similarity_preserving_loss",
    ],
    "self_distillation": [
        "BeYourOwnTeacher",
        "BornAgainNetworks",
        "ExitDistillation",
        "SelfDistillation",
        "SelfDistillationObjective",
        "TeacherFreeObjective",
        "ViewConsistencyObjective",
        "early_exit",
        "expected_calibration_error",
        "label_smoothing_loss",
        "reliability",
        "self_distillation_loss",
        "uniform_teacher_loss",
        "view_consistency_loss",
        "virtual_teacher_loss",
    ],
    "soft_targets": ["SoftTargetDistillation", "hard_target_loss", "soft_target_loss"],
    "training": [
        "DistillationObjective",
        "DistillationTrainer",
        "FrozenTeacher",
        "SupervisedObjective",
        "cache_teacher_logits",
        "evaluate",
        "fit",
    ],
}

__all__ = [name for names in _ROOMS.values() for name in names]


def __getattr__(name: str) -> Any:
    for room, names in _ROOMS.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{room}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
