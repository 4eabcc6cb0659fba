"""Trains small students; test_training.py runs this in one process and in two."""

import sys
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from kdcourse import (
    CRDLoss,
    DistillationObjective,
    FeatureDistillation,
    FeatureExtractingModel,
    FeatureObjective,
    FrozenTeacher,
    InstanceCRDLoss,
    RelationObjective,
    SoftTargetDistillation,
    fit,
)

EXAMPLES, WIDTH, CLASSES = 96, 6, 3


class Network(nn.Module):
    """An embedding, and a classifier on it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(WIDTH, width), nn.Tanh())
        self.classifier = nn.Linear(width, CLASSES)

    def embed(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.body(inputs)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.embed(inputs))


class KnownNegatives(InstanceCRDLoss):
    """The negatives of an example are the next 40, whichever process asks."""

    def _draw_negatives(
        self, indices: torch.Tensor, generator: torch.Generator | None
    ) -> torch.Tensor:
        return (indices[:, None] + torch.arange(1, 41)) % EXAMPLES


def objectives() -> dict[str, nn.Module]:
    """One of each kind: without state, with projections, with a queue, with banks."""
    torch.manual_seed(1)
    teacher = Network(8)
    made: dict[str, nn.Module] = {
        "soft targets": DistillationObjective(
            student=Network(4), teacher=teacher, objective=SoftTargetDistillation()
        ),
        "hint": FeatureObjective(
            student=FeatureExtractingModel(Network(4), ["body"]),
            teacher=FrozenTeacher(FeatureExtractingModel(teacher, ["body"])),
            features=FeatureDistillation(student_channels=[4], teacher_channels=[8]),
        ),
    }
    for name, loss in (
        ("queue", CRDLoss(4, 8, feature_dim=5, num_negatives=40)),
        ("banks", KnownNegatives(EXAMPLES, 4, 8, feature_dim=5, num_negatives=40)),
    ):
        made[name] = RelationObjective(
            student=Network(4), teacher=FrozenTeacher(teacher), relation=loss
        )
    return made


def train(
    objective: nn.Module, processes: int, *, examples: int = EXAMPLES, **options: Any
) -> pd.DataFrame:
    """Three epochs at a batch of 16 over all processes together."""
    drawn = torch.Generator().manual_seed(0)
    inputs = torch.randn(EXAMPLES, WIDTH, generator=drawn)
    labels = torch.randint(CLASSES, (EXAMPLES,), generator=drawn)
    columns = [inputs, labels]
    if isinstance(objective, RelationObjective):
        with torch.no_grad():
            columns += [objective.teacher.model.embed(inputs), torch.arange(EXAMPLES)]
    columns = [column[:examples] for column in columns]
    loader = DataLoader(
        TensorDataset(*columns), 16 // processes, shuffle=True, generator=torch.Generator()
    )
    optimizer = torch.optim.SGD(objective.parameters(), lr=0.05, momentum=0.9)
    options = {"epochs": 3, "seed": 5, "progress": False} | options
    return fit(objective, loader, optimizer, **options)


def main(folder: Path, precision: str) -> None:
    """Every objective; one again, interrupted and continued; one on a last batch too small."""
    accelerator = Accelerator(cpu=True, mixed_precision=precision)
    processes = accelerator.num_processes
    results = {}

    def keep(name: str, objective: nn.Module, **options) -> None:
        history = train(objective, processes, accelerator=accelerator, **options)
        state = {key: value.clone() for key, value in objective.state_dict().items()}
        results[name] = {"state": state, "history": history.drop(columns="seconds").to_dict("list")}

    for name, objective in objectives().items():
        keep(name, objective)
    checkpoint = folder / f"checkpoint-{processes}-{precision}.pt"
    for epochs in (1, 3):
        keep("continued", objectives()["banks"], epochs=epochs, checkpoint=checkpoint)
    keep("uneven", objectives()["soft targets"], examples=90)
    torch.save(results, folder / f"{processes}-{accelerator.process_index}-{precision}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
