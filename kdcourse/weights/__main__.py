"""Train the shipped teachers again: `make teachers`, or `python -m kdcourse.weights [NAME ...]`.

Weights and hashes are the same again on the same kind of machine with the same PyTorch; elsewhere
the accuracy is, up to chance.
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from kdcourse import data
from kdcourse.detection import DetectionObjective, evaluate_detector
from kdcourse.experiments import train
from kdcourse.models import WEIGHTS, count_parameters, new_teacher
from kdcourse.training import SupervisedObjective, evaluate

SETTINGS: dict[str, dict[str, Any]] = {
    "digits": {"seed": 0, "epochs": 30, "batch_size": 64, "lr": 3e-3, "weight_decay": 0.3},
    "mnist": {"seed": 0, "epochs": 10, "batch_size": 64, "lr": 1e-2, "weight_decay": 0.3},
    "textured_shapes": {"seed": 0, "epochs": 10, "batch_size": 64, "lr": 1e-2, "weight_decay": 0.3},
    "glyphs": {"seed": 0, "epochs": 10, "batch_size": 64, "lr": 1e-2, "weight_decay": 0.3},
    "digit_scenes": {"seed": 0, "epochs": 30, "batch_size": 32, "lr": 5e-3, "weight_decay": 0.3},
}


def train_teacher(name: str) -> tuple[torch.nn.Module, dict[str, Any]]:
    """A teacher trained from scratch, and its recipe without the file's hash."""
    images = getattr(data, name)()
    settings = SETTINGS[name]
    torch.manual_seed(settings["seed"])
    model = new_teacher(name)
    detects = isinstance(images, data.SceneData)
    objective = DetectionObjective(student=model) if detects else SupervisedObjective(model)
    train(objective, images.train, **settings)
    report = {
        "data": f"all {len(images.train)} training images of kdcourse.data.{name}()",
        "optimizer": "AdamW, one-cycle learning rate (kdcourse.experiments.train)",
        **settings,
        "parameters": count_parameters(model),
        "torch": torch.__version__.split("+")[0],
    }
    measure, judge = ("map50", evaluate_detector) if detects else ("accuracy", evaluate)
    for part in ("validation", "test"):
        report[f"{part}_{measure}"] = round(judge(model, getattr(images, part))[measure], 4)
    return model, report


def build(name: str, folder: Path = WEIGHTS) -> dict[str, Any]:
    """Train one teacher, write its file, and record its recipe in `teachers.json`."""
    model, report = train_teacher(name)
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    content = save(state)
    report["sha256"] = hashlib.sha256(content).hexdigest()
    (folder / f"{name}.safetensors").write_bytes(content)
    index = folder / "teachers.json"
    recipes = json.loads(index.read_text(encoding="utf-8")) if index.exists() else {}
    recipes[name] = report
    index.write_text(json.dumps(recipes, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return report


if __name__ == "__main__":
    torch.set_num_threads(1)
    for teacher in sys.argv[1:] or SETTINGS:
        report = build(teacher)
        print(teacher, {name: value for name, value in report.items() if "test" in name})
