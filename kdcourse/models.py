"""Small networks for the experiments, and the teachers that ship with the package."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ._checks import require

WEIGHTS = Path(__file__).parent / "weights"


class MLP(nn.Sequential):
    """Fully connected layers with ReLU, and dropout after each hidden layer where asked.

    Args:
        in_features: numbers an example; images are flattened.
        hidden: widths of the hidden layers.
        num_classes: `C`; the output is logits `[B, C]`.
        dropout: probability after each hidden layer; one for all, or one for each.

    Example:
        >>> count_parameters(MLP(64, [32], 10))
        2410
    """

    def __init__(
        self,
        in_features: int,
        hidden: Sequence[int],
        num_classes: int,
        *,
        dropout: float | Sequence[float] = 0.0,
    ) -> None:
        rates = [dropout] * len(hidden) if isinstance(dropout, (int, float)) else list(dropout)
        require(
            len(rates) == len(hidden),
            f"dropout must be one number or one for each of {len(hidden)} hidden layers, "
            f"got {len(rates)}",
        )
        layers: list[nn.Module] = [nn.Flatten()]
        for width, rate in zip(hidden, rates, strict=True):
            layers += [nn.Linear(in_features, width), nn.ReLU()]
            if rate > 0:
                layers.append(nn.Dropout(rate))
            in_features = width
        super().__init__(*layers, nn.Linear(in_features, num_classes))


class ConvNet(nn.Module):
    """Stages of 3×3 convolutions, each stage at half the resolution, then the mean over space.

    Args:
        widths: channels of each stage.
        num_classes: `C`; the output is logits `[B, C]`.
        in_channels: of the images `[B, in_channels, H, W]`.
        depth: convolutions a stage, the first of them strided; at least 1.

    Attributes:
        stages: `nn.Sequential`, one module a stage; `stages.0` is the first.
        classifier: the linear layer on the embedding.

    Example:
        >>> net = ConvNet([8, 16], num_classes=5)
        >>> net.embed(torch.zeros(2, 1, 16, 16)).shape, net(torch.zeros(2, 1, 16, 16)).shape
        (torch.Size([2, 16]), torch.Size([2, 5]))
    """

    def __init__(
        self, widths: Sequence[int], num_classes: int, *, in_channels: int = 1, depth: int = 1
    ) -> None:
        super().__init__()
        require(len(widths) >= 1, "widths must name at least one stage, got none")
        require(depth >= 1, f"depth must be at least 1, got {depth}")
        stages = []
        for width in widths:
            layers: list[nn.Module] = []
            for stride in [2] + [1] * (depth - 1):
                convolution = nn.Conv2d(in_channels, width, 3, stride=stride, padding=1, bias=False)
                layers += [convolution, nn.BatchNorm2d(width), nn.ReLU()]
                in_channels = width
            stages.append(nn.Sequential(*layers))
        self.stages = nn.Sequential(*stages)
        self.classifier = nn.Linear(in_channels, num_classes)
        for parameter in self.parameters():
            if parameter.dim() == 4:  # channels last: faster convolutions on a CPU
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)

    def embed(self, inputs: Tensor) -> Tensor:
        """The embedding `[B, widths[-1]]` that the classifier sees."""
        return self.stages(inputs).mean((2, 3))

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits `[B, C]` of images `[B, in_channels, H, W]`."""
        return self.classifier(self.embed(inputs))


def large_convnet(num_classes: int) -> ConvNet:
    """The course's teacher for 16×16 images.

    >>> count_parameters(large_convnet(20))
    163532
    """
    return ConvNet([24, 48, 96], num_classes, depth=2)


def small_convnet(num_classes: int) -> ConvNet:
    """The course's student for 16×16 images.

    >>> count_parameters(small_convnet(20))
    17124
    """
    return ConvNet([16, 32], num_classes, depth=2)


def example_models() -> tuple[MLP, MLP]:
    """A teacher and a student for 28×28 images of ten classes, untrained.

    The teacher is 784-1024-512-256-10 with dropout 0.3 after its first two hidden layers, the
    student 784-128-10.

    >>> [count_parameters(model) for model in example_models()]
    [1462538, 101770]
    """
    teacher = MLP(784, [1024, 512, 256], 10, dropout=[0.3, 0.3, 0.0])
    return teacher, MLP(784, [128], 10)


def count_parameters(model: nn.Module) -> int:
    """How many numbers a model has learned or could learn.

    >>> count_parameters(nn.Linear(3, 2))
    8
    """
    return sum(parameter.numel() for parameter in model.parameters())


def new_teacher(name: str) -> nn.Module:
    """The untrained network of a shipped teacher: "digits", "textured_shapes" or "glyphs"."""
    match name:
        case "digits":
            return MLP(64, [256, 256], 10)
        case "textured_shapes":
            return large_convnet(20)
        case "glyphs":
            return large_convnet(26)
    raise ValueError(
        f"name must be 'digits', 'textured_shapes' or 'glyphs', as the data set, got {name!r}"
    )


def load_teacher(name: str) -> nn.Module:
    """A teacher that ships with the package, in eval mode.

    It was trained on all training images of the data set of the same name, drawn with its default
    seed; `recipe(name)` says how.

    Args:
        name: "digits", "textured_shapes" or "glyphs".

    Raises:
        ValueError: for another name, or if the file is not the one that was shipped.

    Example:
        >>> count_parameters(load_teacher("digits"))
        85002
    """
    from safetensors.torch import load

    model = new_teacher(name)
    data = (WEIGHTS / f"{name}.safetensors").read_bytes()
    found, expected = hashlib.sha256(data).hexdigest(), recipe(name)["sha256"]
    require(
        found == expected,
        f"the weights of teacher {name!r} must have SHA-256 {expected[:12]}..., got {found[:12]}"
        "...: the file is changed or incomplete; install the package again, or `make teachers`",
    )
    model.load_state_dict(load(data))
    return model.eval()


def recipe(name: str) -> dict[str, Any]:
    """How a shipped teacher was trained, its test accuracy in [0, 1], and its file's SHA-256."""
    return json.loads((WEIGHTS / "teachers.json").read_text(encoding="utf-8"))[name]
