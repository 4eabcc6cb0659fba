"""Self-distillation: a network, or a copy of it, is its own teacher.

Chapter: "Self-distillation". Several different things go by this name; three of them are here: the
deepest classifier teaches the exits before it (`SelfDistillation`), a trained network teaches an
untrained copy of itself (`BornAgainNetworks`), and one view of an image teaches another
(`view_consistency_loss`). Beside them stand the controls that tell whether a gain is more than
regularisation, and the measures of calibration.
"""

import math
import os
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from ._checks import (
    check_count,
    check_floating,
    check_labels,
    check_same_shape,
    check_temperature,
    check_weight,
    require,
    shape,
    widen,
)
from .advanced import Ensemble, Trained, train_chain
from .metrics import accuracy
from .soft_targets import hard_target_loss, soft_target_loss

Terms = dict[str, Tensor]


# Early exits


class SelfDistillation(nn.Module):
    """A network with an exit, a linear classifier of its own, after each of its stages.

    Feature maps are averaged over space before every classifier. The exit after the last stage and
    the final classifier read the same features, so that exit saves no computation; it is there
    because the loss treats all exits alike. (The paper's network differs: its deepest classifier is
    the final one, with no exit beside it, and its earlier exits first have layers of their own.)

    Args:
        backbone: the stages in order, convolutional or not: an `nn.Sequential`, or any sequence.
        num_classes: C.
        hidden_dims: for each stage, the number of channels (or features) it puts out.

    Called with `(x, return_features=False)`. Returns `(final_logits [B, C], exit_logits)`, a list
    of `[B, C]`, one for each stage; with `return_features` also the list of the pooled features
    `[B, hidden_dims[i]]`.

    Raises:
        ValueError: for no stage, a number of `hidden_dims` other than the number of stages, or,
            when called, a stage whose output has another width than its `hidden_dims`.

    Reference:
        Zhang, Song, Gao, Chen, Bao and Ma (2019), "Be Your Own Teacher: Improve the Performance of
        Convolutional Neural Networks via Self Distillation", arXiv:1905.08094.

    Example:
        >>> stages = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 8, 3))
        >>> model = SelfDistillation(stages, num_classes=10, hidden_dims=[4, 8])
        >>> final_logits, exit_logits = model(torch.zeros(5, 1, 12, 12))
        >>> final_logits.shape, [logits.shape for logits in exit_logits]
        (torch.Size([5, 10]), [torch.Size([5, 10]), torch.Size([5, 10])])
    """

    def __init__(
        self, backbone: Iterable[nn.Module], num_classes: int, hidden_dims: Sequence[int]
    ) -> None:
        super().__init__()
        self.stages = nn.ModuleList(backbone)
        require(len(self.stages) > 0, "backbone must hold at least one stage, got none")
        require(
            len(hidden_dims) == len(self.stages),
            f"hidden_dims must give one width for each of the {len(self.stages)} stages, "
            f"got {list(hidden_dims)}",
        )
        check_count("num_classes", num_classes, minimum=2)
        for width in hidden_dims:
            check_count("hidden_dims", width)
        self.exits = nn.ModuleList(nn.Linear(width, num_classes) for width in hidden_dims)
        self.classifier = nn.Linear(hidden_dims[-1], num_classes)

    def forward(
        self, x: Tensor, return_features: bool = False
    ) -> tuple[Tensor, list[Tensor]] | tuple[Tensor, list[Tensor], list[Tensor]]:
        """Logits of the final classifier and of every exit, and if asked the pooled features."""
        features = []
        for index, stage in enumerate(self.stages):
            x = stage(x)
            features.append(self.pool(x, index))
        exit_logits = [leave(pooled) for leave, pooled in zip(self.exits, features, strict=True)]
        final_logits = self.classifier(features[-1])
        if return_features:
            return final_logits, exit_logits, features
        return final_logits, exit_logits

    def pool(self, features: Tensor, index: int) -> Tensor:
        """The output of stage `index`, averaged over space if it has any: `[B, width]`."""
        pooled = features.flatten(2).mean(2) if features.dim() > 2 else features
        width = self.exits[index].in_features
        require(
            pooled.dim() == 2 and pooled.shape[1] == width,
            f"hidden_dims[{index}] is {width}, but stage {index} puts out {shape(features)}",
        )
        return pooled

    def up_to(self, index: int) -> nn.Module:
        """One exit as a network of its own, which runs no stage after it and shares the weights.

        Args:
            index: of the exit, as in `exit_logits`; the number of exits means the final classifier.
        """
        require(
            0 <= index <= len(self.exits),
            f"index must be between 0 and {len(self.exits)} (the final classifier), got {index}",
        )
        return _UpTo(self, index)


class _UpTo(nn.Module):
    def __init__(self, model: SelfDistillation, index: int) -> None:
        super().__init__()
        self.model = model
        self.index = index

    def forward(self, x: Tensor) -> Tensor:
        last = min(self.index, len(self.model.stages) - 1)
        for stage in self.model.stages[: last + 1]:
            x = stage(x)
        leave = [*self.model.exits, self.model.classifier][self.index]
        return leave(self.model.pool(x, last))


@torch.no_grad()
def early_exit(model: SelfDistillation, x: Tensor, *, threshold: float) -> tuple[Tensor, Tensor]:
    """Let each example leave at the first exit that is confident, and skip the later stages.

    An exit is confident if its largest probability is at least the threshold. Who leaves is taken
    out of the batch, so that later stages run on those that stay, or not at all. Who never leaves
    is answered by the final classifier.

    Args:
        model: in eval mode (batch norm would otherwise depend on who has left).
        x: inputs, `[B, ...]`, B >= 1.
        threshold: in [0, 1]; at 0 everyone leaves at the first exit.

    Returns:
        The logits `[B, C]`, and where each example left, `[B]`: the index of the exit, or the
        number of exits for the final classifier.

    Raises:
        ValueError: for a model in training mode, an empty batch, or a threshold outside [0, 1].

    Reference:
        Teerapittayanon, McDanel and Kung (2016), "BranchyNet: Fast Inference via Early Exiting from
        Deep Neural Networks", arXiv:1709.01686 (which decides by entropy).

    Example:
        >>> _ = torch.manual_seed(0)
        >>> model = SelfDistillation([nn.Linear(4, 8), nn.Linear(8, 8)], 3, [8, 8]).eval()
        >>> logits, left_at = early_exit(model, torch.randn(5, 4), threshold=0.5)
        >>> logits.shape, left_at.tolist()
        (torch.Size([5, 3]), [2, 2, 2, 2, 0])
    """
    require(not model.training, "model must be in eval mode, got one in training mode")
    check_weight("threshold", threshold, high=1.0)
    require(x.dim() >= 1 and len(x) > 0, f"x must hold at least one example, got {shape(x)}")
    left_at = torch.full((len(x),), len(model.exits), device=x.device)
    staying = torch.arange(len(x), device=x.device)
    answers: list[Tensor] = []
    order: list[Tensor] = []
    for index, (stage, leave) in enumerate(zip(model.stages, model.exits, strict=True)):
        x = stage(x)
        pooled = model.pool(x, index)
        logits = leave(pooled)
        confident = widen(logits).softmax(-1).amax(-1) >= threshold
        leaving = confident.nonzero()[:, 0]
        if len(leaving) == len(x):  # nothing has to be taken apart
            answers.append(logits)
            order.append(staying)
            left_at[staying] = index
            break
        if len(leaving) > 0:
            answers.append(logits[leaving])
            order.append(staying[leaving])
            left_at[order[-1]] = index
            remaining = (~confident).nonzero()[:, 0]
            x, pooled, staying = x[remaining], pooled[remaining], staying[remaining]
    else:
        answers.append(model.classifier(pooled))
        order.append(staying)
    if len(answers) == 1:
        return answers[0], left_at
    return torch.cat(answers)[torch.cat(order).argsort()], left_at


def self_distillation_loss(
    final_logits: Tensor,
    exit_logits: Sequence[Tensor],
    labels: Tensor,
    *,
    temperature: float = 4.0,
) -> Tensor:
    r"""Every exit learns from the labels and from the final classifier.

    .. math:: \mathrm{CE}(z, y) + \frac12 \cdot \frac1E \sum_e \Big[
        T^2\,\mathrm{KL}\big(\mathrm{softmax}(z / T) \,\|\, \mathrm{softmax}(z_e / T)\big)
        + \tfrac12 \mathrm{CE}(z_e, y) \Big]

    The final logits are the teacher: the exits' terms send no gradient into them. The weights are
    not the paper's; `BeYourOwnTeacher` has those. `ExitDistillation` gives the same loss with its
    terms named.

    Args:
        final_logits: `[..., C]`.
        exit_logits: at least one tensor of the same shape.
        labels: integer classes in `[0, C)`, `[...]`.
        temperature: `T > 0`.

    Returns:
        A 0-d tensor, at least 0.

    Raises:
        ValueError: for no exit, unequal shapes, labels that do not fit, or `temperature <= 0`.

    Reference:
        Zhang et al. (2019), "Be Your Own Teacher", arXiv:1905.08094.

    Example:
        >>> final, exits = torch.tensor([[2.0, 0.0]]), [torch.tensor([[1.0, 0.0]])]
        >>> round(self_distillation_loss(final, exits, torch.tensor([0])).item(), 4)
        0.2651
    """
    final, soft, hard = _exit_terms(final_logits, exit_logits, labels, temperature)
    return final + 0.5 * (soft.mean() + 0.5 * hard.mean())


def _exit_terms(
    final_logits: Tensor, exit_logits: Sequence[Tensor], labels: Tensor, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The final cross-entropy, and each exit's soft and hard loss, `[E]`."""
    require(len(exit_logits) > 0, "exit_logits must hold the logits of at least one exit, got none")
    for index, logits in enumerate(exit_logits):
        check_same_shape(logits, final_logits, names=(f"exit_logits[{index}]", "final_logits"))
    soft = [soft_target_loss(z, final_logits, temperature=temperature) for z in exit_logits]
    hard = [hard_target_loss(z, labels) for z in exit_logits]
    return hard_target_loss(final_logits, labels), torch.stack(soft), torch.stack(hard)


class ExitDistillation(nn.Module):
    """`self_distillation_loss` with its terms named and its weights free.

    Args:
        temperature: `T > 0`.
        soft: weight of the exits' mean divergence from the final classifier, at least 0. With 0
            this is plain deep supervision, the control of self-distillation.
        hard: weight of the exits' mean cross-entropy, at least 0.

    Called with `(final_logits [..., C], exit_logits, labels [...], features=None)`; the features
    are not used. Returns the weighted terms `{"final", "exits_soft", "exits_hard"}`.

    Example:
        >>> final, exits = torch.tensor([[2.0, 0.0]]), [torch.tensor([[1.0, 0.0]])]
        >>> terms = ExitDistillation()(final, exits, torch.tensor([0]))
        >>> {name: round(term.item(), 4) for name, term in terms.items()}
        {'final': 0.1269, 'exits_soft': 0.0598, 'exits_hard': 0.0783}
    """

    def __init__(self, temperature: float = 4.0, soft: float = 0.5, hard: float = 0.25) -> None:
        super().__init__()
        check_temperature(temperature)
        check_weight("soft", soft)
        check_weight("hard", hard)
        self.temperature = temperature
        self.soft = soft
        self.hard = hard

    def forward(
        self,
        final_logits: Tensor,
        exit_logits: Sequence[Tensor],
        labels: Tensor,
        features: Sequence[Tensor] | None = None,
    ) -> Terms:
        """The weighted terms for one batch."""
        final, soft, hard = _exit_terms(final_logits, exit_logits, labels, self.temperature)
        return {
            "final": final,
            "exits_soft": self.soft * soft.mean(),
            "exits_hard": self.hard * hard.mean(),
        }


class BeYourOwnTeacher(nn.Module):
    r"""The loss of the paper: labels, the final classifier, and the final features for every exit.

    .. math:: \mathrm{CE}(z, y) + \sum_e \Big[ (1 - \alpha) \mathrm{CE}(z_e, y) + \alpha\,
        \mathrm{KL}\big(\mathrm{softmax}(z / T) \,\|\, \mathrm{softmax}(z_e / T)\big)
        + \lambda\, \overline{\| W_e f_e - f \|^2} \Big]

    There is no :math:`T^2`, as in the authors' code, whose α, T and λ are the defaults. The hint
    (λ) is the mean squared difference between an exit's pooled features, through a learned linear
    map, and the last stage's; the last exit reads those itself and needs none. The paper states
    the squared distance; the authors' code adds un-squared distances over the whole batch, so its λ
    is not comparable.

    The network is not quite the paper's. `SelfDistillation` has an exit after the last stage too,
    beside the final classifier, so the sum has one more divergence and one more cross-entropy than
    the paper's, and both train the last stage. And its exits are linear, where the paper's have
    bottleneck layers of their own.

    Args:
        hidden_dims: those of the `SelfDistillation` network.
        temperature: `T > 0`.
        alpha: weight of the divergence, in [0, 1].
        hint: λ, at least 0. With 0 there are no maps to learn and the term is left out.

    Called with `(final_logits [..., C], exit_logits, labels [...], features)`, the features as the
    network returns them. Returns the weighted terms `{"final", "exits_soft", "exits_hard",
    "hint"}`. Final logits and features get no gradient from the exits' terms.

    Raises:
        ValueError: for shapes that do not fit, missing features, or options out of range.

    Reference:
        Zhang et al. (2019), "Be Your Own Teacher", arXiv:1905.08094.

    Example:
        >>> final, exits = torch.tensor([[2.0, 0.0]]), [torch.tensor([[1.0, 0.0]])]
        >>> terms = BeYourOwnTeacher([8], hint=0)(final, exits, torch.tensor([0]))
        >>> {name: round(term.item(), 4) for name, term in terms.items()}
        {'final': 0.1269, 'exits_soft': 0.0039, 'exits_hard': 0.2193}
    """

    def __init__(
        self,
        hidden_dims: Sequence[int],
        temperature: float = 3.0,
        alpha: float = 0.3,
        hint: float = 0.03,
    ) -> None:
        super().__init__()
        require(len(hidden_dims) > 0, "hidden_dims must give at least one width, got none")
        check_temperature(temperature)
        check_weight("alpha", alpha, high=1.0)
        check_weight("hint", hint)
        self.temperature = temperature
        self.alpha = alpha
        self.hint = hint
        *early, last = hidden_dims if hint > 0 else hidden_dims[-1:]
        self.maps = nn.ModuleList(nn.Linear(width, last) for width in early)

    def forward(
        self,
        final_logits: Tensor,
        exit_logits: Sequence[Tensor],
        labels: Tensor,
        features: Sequence[Tensor] | None = None,
    ) -> Terms:
        """The weighted terms for one batch."""
        final, soft, hard = _exit_terms(final_logits, exit_logits, labels, self.temperature)
        terms = {
            "final": final,
            "exits_soft": self.alpha * soft.sum() / self.temperature**2,
            "exits_hard": (1 - self.alpha) * hard.sum(),
        }
        if len(self.maps) > 0:
            terms["hint"] = self.hint * self._hints(features or [])
        return terms

    def _hints(self, features: Sequence[Tensor]) -> Tensor:
        widths = [adapt.in_features for adapt in self.maps] + [self.maps[-1].out_features]
        require(
            [own.shape[-1] for own in features] == widths,
            f"features must be those of all stages, of the widths {widths}, "
            f"got {[shape(own) for own in features]}",
        )
        *early, last = features
        hints = [
            F.mse_loss(widen(adapt(own)), widen(last.detach()))
            for adapt, own in zip(self.maps, early, strict=True)
        ]
        return torch.stack(hints).sum()


class SelfDistillationObjective(nn.Module):
    """A network with exits and its loss, as an objective for `fit`.

    Called with a batch `(inputs, labels, ...)`; further elements are ignored. Returns the terms of
    the loss and, as metrics, the `accuracy` of the final classifier and `exit_accuracy_0`, ... in
    [0, 1].

    Args:
        model: the network.
        loss: `ExitDistillation` (the default) or `BeYourOwnTeacher`.
    """

    def __init__(self, model: SelfDistillation, loss: nn.Module | None = None) -> None:
        super().__init__()
        self.model = model
        self.loss = ExitDistillation() if loss is None else loss

    def forward(self, batch: Sequence[Tensor]) -> tuple[Terms, Terms]:
        """Loss terms and metrics of one batch."""
        inputs, labels = batch[:2]
        final_logits, exit_logits, features = self.model(inputs, return_features=True)
        metrics = {"accuracy": accuracy(final_logits, labels)}
        for index, logits in enumerate(exit_logits):
            metrics[f"exit_accuracy_{index}"] = accuracy(logits, labels)
        return self.loss(final_logits, exit_logits, labels, features), metrics


# Born again


class BornAgainNetworks:
    """Generations of one architecture: each is trained from fresh weights by the one before it.

    Generation 0 learns from the labels alone, generation k from the labels and from generation
    k − 1. The training is `train_chain`: a loop over the ordinary `fit`.

    Args:
        model_fn: builds one network, with new random weights at every call.
        temperature: one for all generations, or one for each of generations 1, 2, ...
        alpha: the weight of the soft term, likewise.

    Attributes:
        generations: after `train`, generation 0, 1, ..., each with `model`, `history` and
            `evaluation`.

    Reference:
        Furlanello, Lipton, Tschannen, Itti and Anandkumar (2018), "Born-Again Neural Networks",
        arXiv:1805.04770.

    Example:
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> data = TensorDataset(torch.randn(32, 4), torch.randint(3, (32,)))
        >>> born_again = BornAgainNetworks(lambda: nn.Linear(4, 3), temperature=[4.0, 2.0])
        >>> loader = DataLoader(data, batch_size=8)
        >>> generations = born_again.train(loader, num_generations=2, epochs_per_generation=1)
        >>> len(generations), born_again.ensemble()(torch.zeros(1, 4)).shape
        (3, torch.Size([1, 3]))
    """

    def __init__(
        self,
        model_fn: Callable[[], nn.Module],
        temperature: float | Sequence[float] = 4.0,
        alpha: float | Sequence[float] = 0.7,
    ) -> None:
        self.model_fn = model_fn
        self.temperature = temperature
        self.alpha = alpha
        self.generations: list[Trained] = []

    def train(
        self,
        train_loader: Iterable,
        num_generations: int = 3,
        epochs_per_generation: int = 10,
        lr: float = 1e-3,
        *,
        validation: Iterable | Dataset | None = None,
        directory: str | os.PathLike | None = None,
        seed: int = 0,
        progress: bool = True,
    ) -> list[Trained]:
        """Train generation 0 and then `num_generations` more.

        Args:
            train_loader: batches `(inputs, labels)`.
            num_generations: how many are born again, at least 1.
            epochs_per_generation: for each, generation 0 included.
            lr: learning rate.
            validation: data on which each finished generation is evaluated.
            directory: where checkpoints are kept. After an interruption in any generation the same
                call continues and ends with the same weights, bit for bit.
            seed: of initial weights and of the order of batches; each generation gets its own.
            progress: show progress bars.

        Returns:
            The generations, also kept in `generations`; those so far, if training is interrupted.

        Raises:
            ValueError: for no generation, sequences of temperatures or weights that do not give one
                value a generation, or a `model_fn` that returns the same weights again.
        """
        check_count("num_generations", num_generations)
        self.generations = train_chain(
            [self.model_fn] * (num_generations + 1),
            train_loader,
            temperature=self.temperature,
            alpha=self.alpha,
            epochs=epochs_per_generation,
            lr=lr,
            validation=validation,
            directory=directory,
            seed=seed,
            progress=progress,
        )
        return self.generations

    def ensemble(self) -> Ensemble:
        """All generations as one network, which averages their probabilities."""
        require(bool(self.generations), "train the generations first, there are none yet")
        return Ensemble([generation.model for generation in self.generations])


# Two views of one image


def view_consistency_loss(
    first_logits: Tensor, second_logits: Tensor, *, temperature: float = 4.0
) -> Tensor:
    r"""Augmented views of the same images should be answered alike.

    .. math:: \frac{T^2}{2} \Big[ \mathrm{KL}\big(\bar p_2 \,\|\, p_1\big)
        + \mathrm{KL}\big(\bar p_1 \,\|\, p_2\big) \Big], \quad p_i = \mathrm{softmax}(z_i / T)

    Each view is the other's target; a bar marks the target, which gets no gradient. This is
    consistency between views, sometimes sold as "self-distillation": no deeper classifier and no
    earlier generation is involved.

    Args:
        first_logits: `[..., C]`, of one view of each example.
        second_logits: the same shape, of another view of the same examples.
        temperature: `T > 0`.

    Returns:
        A 0-d tensor, at least 0.

    Raises:
        ValueError: for unequal shapes or `temperature <= 0`.

    Reference:
        Xu and Liu (2019), "Data-Distortion Guided Self-Distillation for Deep Neural Networks",
        AAAI (which adds a distance between features).

    Example:
        >>> first, second = torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0, 0.0]])
        >>> round(view_consistency_loss(first, second).item(), 4)
        0.1206
    """
    check_same_shape(first_logits, second_logits, names=("first_logits", "second_logits"))
    first = soft_target_loss(first_logits, second_logits, temperature=temperature)
    second = soft_target_loss(second_logits, first_logits, temperature=temperature)
    return (first + second) / 2


class ViewConsistencyObjective(nn.Module):
    """Labels, and consistency between two augmented views, as an objective for `fit`.

    Called with a batch `(inputs, labels, ...)`; further elements are ignored. Returns the terms
    `hard` (the mean cross-entropy of both views) and `consistency`, and the metric `accuracy`, of
    both views, in [0, 1].

    Args:
        model: maps inputs `[B, ...]` to logits `[B, C]`.
        augment: called twice a batch with `(inputs, generator)`, as a `TensorLoader` calls it;
            returns randomly changed inputs. The generator is PyTorch's own, which `fit` seeds and
            saves.
        temperature: of the consistency.
        weight: of the consistency, at least 0.
    """

    def __init__(
        self,
        model: nn.Module,
        augment: Callable[[Tensor, torch.Generator], Tensor],
        *,
        temperature: float = 4.0,
        weight: float = 1.0,
    ) -> None:
        super().__init__()
        check_temperature(temperature)
        check_weight("weight", weight)
        self.model = model
        self.augment = augment
        self.temperature = temperature
        self.weight = weight

    def forward(self, batch: Sequence[Tensor]) -> tuple[Terms, Terms]:
        """Loss terms and metrics of one batch."""
        inputs, labels = batch[:2]
        views = [self.augment(inputs, torch.default_generator) for _ in range(2)]
        logits = self.model(torch.cat(views))
        both = torch.cat([labels, labels])
        consistency = view_consistency_loss(*logits.chunk(2), temperature=self.temperature)
        terms = {
            "hard": hard_target_loss(logits, both),
            "consistency": self.weight * consistency,
        }
        return terms, {"accuracy": accuracy(logits, both)}


# Controls: is it only regularisation?


def label_smoothing_loss(
    student_logits: Tensor, labels: Tensor, *, smoothing: float = 0.1
) -> Tensor:
    r"""Cross-entropy with labels mixed with the uniform distribution.

    .. math:: (1 - \epsilon) \mathrm{CE}(z, y) + \epsilon \cdot \frac1C \sum_c \mathrm{CE}(z, c)

    Up to the constant :math:`\epsilon \log C` this is distillation at T = 1 and α = ε from a
    teacher that finds all classes equally likely.

    Args:
        student_logits: `[..., C]`.
        labels: integer classes in `[0, C)`, `[...]`.
        smoothing: ε in [0, 1].

    Returns:
        A 0-d tensor.

    Raises:
        ValueError: for labels that do not fit, or ε outside [0, 1].

    Reference:
        Szegedy, Vanhoucke, Ioffe, Shlens and Wojna (2016), "Rethinking the Inception Architecture
        for Computer Vision", arXiv:1512.00567.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0]])
        >>> round(label_smoothing_loss(logits, torch.tensor([0]), smoothing=0.1).item(), 4)
        0.2269
    """
    check_weight("smoothing", smoothing, high=1.0)
    check_floating("student_logits", student_logits)
    check_labels(labels, student_logits)
    require(labels.numel() > 0, f"labels must not be empty, got {shape(labels)}")
    logits = widen(student_logits).reshape(-1, student_logits.shape[-1])
    return F.cross_entropy(logits, labels.long().reshape(-1), label_smoothing=smoothing)


def uniform_teacher_loss(student_logits: Tensor, *, temperature: float = 4.0) -> Tensor:
    r"""Soft targets from a teacher that knows nothing: all classes equally likely.

    .. math:: T^2\, \mathrm{KL}\big(\mathrm{uniform} \,\|\, \mathrm{softmax}(z / T)\big)

    Args:
        student_logits: `[..., C]`.
        temperature: `T > 0`.

    Returns:
        A 0-d tensor, at least 0.

    Raises:
        ValueError: for empty logits or `temperature <= 0`.

    Example:
        >>> round(uniform_teacher_loss(torch.tensor([[2.0, 0.0]])).item(), 4)
        0.4949
    """
    check_floating("student_logits", student_logits)
    uniform = torch.zeros_like(student_logits)
    return soft_target_loss(student_logits, uniform, temperature=temperature)


def virtual_teacher_loss(
    student_logits: Tensor, labels: Tensor, *, correct: float = 0.99, temperature: float = 20.0
) -> Tensor:
    r"""Soft targets from a hand-made teacher: right on every example, and with no dark knowledge.

    .. math:: T^2\, \mathrm{KL}\big(q_T \,\|\, \mathrm{softmax}(z / T)\big), \quad
        q(y) = a, \; q(c \ne y) = \frac{1 - a}{C - 1}

    :math:`q_T` is :math:`q` softened: :math:`\mathrm{softmax}(\log(q) / T)`.

    This is our reading of the method, not the authors' loss. Their code (`my_loss_function.py` in
    yuanli2333/Teacher-free-Knowledge-Distillation) takes the softmax of :math:`q / T`, the
    probabilities as if they were logits, which is nearly uniform whatever a is; it does not soften
    the student; and it has a factor of its own, chosen for each network, in place of T², beside
    α = 0.1. What this function gains or does not gain says little about theirs.

    Args:
        student_logits: `[..., C]`, C >= 2.
        labels: integer classes in `[0, C)`, `[...]`.
        correct: a, the teacher's probability for the label, between 0 and 1 and neither.
        temperature: `T > 0`.

    Returns:
        A 0-d tensor, at least 0.

    Raises:
        ValueError: for labels that do not fit, fewer than two classes, or options out of range.

    Reference:
        Yuan, Tay, Li, Wang and Feng (2020), "Revisiting Knowledge Distillation via Label Smoothing
        Regularization", arXiv:1909.11723 (their Tf-KD with manually designed regularisation).

    Example:
        >>> logits = torch.tensor([[2.0, 0.0]])
        >>> round(virtual_teacher_loss(logits, torch.tensor([0])).item(), 4)
        0.8344
    """
    check_floating("student_logits", student_logits)
    check_labels(labels, student_logits)
    require(0 < correct < 1, f"correct must be between 0 and 1 and neither, got {correct!r}")
    classes = student_logits.shape[-1]
    require(classes >= 2, f"student_logits must hold at least 2 classes, got {classes}")
    label = F.one_hot(labels.long(), classes).to(widen(student_logits).dtype)
    teacher_logits = label * math.log(correct * (classes - 1) / (1 - correct))
    return soft_target_loss(student_logits, teacher_logits, temperature=temperature)


class TeacherFreeObjective(nn.Module):
    r"""Training with a hand-made teacher, as an objective for `fit`.

    .. math:: \alpha \cdot \mathrm{soft} + (1 - \alpha) \cdot \mathrm{CE}(z, y)

    The control for every gain from a real teacher: if this does as well, the gain was
    regularisation. With `correct=None`, `temperature=1` and `alpha=ε` it is label smoothing.

    Called with a batch `(inputs, labels, ...)`; further elements are ignored. Returns the terms
    `soft` and `hard` and the metric `accuracy`, in [0, 1].

    Args:
        model: maps inputs `[B, ...]` to logits `[B, C]`.
        correct: the hand-made teacher's probability for the label (`virtual_teacher_loss`); None
            for a teacher that finds all classes equally likely (`uniform_teacher_loss`).
        temperature: `T > 0`.
        alpha: weight of the soft term, in [0, 1].
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        correct: float | None = 0.99,
        temperature: float = 20.0,
        alpha: float = 0.7,
    ) -> None:
        super().__init__()
        require(
            correct is None or 0 < correct < 1,
            f"correct must be between 0 and 1 and neither, or None, got {correct!r}",
        )
        check_temperature(temperature)
        check_weight("alpha", alpha, high=1.0)
        self.model = model
        self.correct = correct
        self.temperature = temperature
        self.alpha = alpha

    def forward(self, batch: Sequence[Tensor]) -> tuple[Terms, Terms]:
        """Loss terms and metrics of one batch."""
        inputs, labels = batch[:2]
        logits = self.model(inputs)
        soft = (
            uniform_teacher_loss(logits, temperature=self.temperature)
            if self.correct is None
            else virtual_teacher_loss(
                logits, labels, correct=self.correct, temperature=self.temperature
            )
        )
        hard = hard_target_loss(logits, labels)
        terms = {"soft": self.alpha * soft, "hard": (1 - self.alpha) * hard}
        return terms, {"accuracy": accuracy(logits, labels)}


# Calibration


class Reliability(NamedTuple):
    """Predictions grouped by confidence, one entry for each bin.

    Attributes:
        confidence: mean confidence of the bin's predictions; NaN in an empty bin.
        accuracy: share of them that are right; NaN in an empty bin.
        examples: how many there are.
    """

    confidence: Tensor
    accuracy: Tensor
    examples: Tensor


def reliability(logits: Tensor, labels: Tensor, *, bins: int = 15) -> Reliability:
    """How often predictions of each confidence are right: what a reliability diagram draws.

    Confidence is the largest probability. The bins divide (0, 1] evenly; each includes its upper
    end.

    Args:
        logits: `[N, C]`. For probabilities, give their logarithms.
        labels: integer classes in `[0, C)`, `[N]`.
        bins: how many, at least 1.

    Returns:
        Confidence, accuracy and number of examples of each bin, `[bins]`.

    Raises:
        ValueError: for labels that do not fit, no example, or no bin.

    Example:
        >>> logits = torch.tensor([[0.9, 0.1], [0.8, 0.2]]).log()
        >>> confidence, accuracy, examples = reliability(logits, torch.tensor([0, 1]), bins=2)
        >>> confidence.tolist(), accuracy.tolist(), examples.tolist()
        ([nan, 0.85...], [nan, 0.5], [0, 2])
    """
    check_floating("logits", logits)
    require(
        logits.dim() == 2 and logits.numel() > 0,
        f"logits must be a non-empty [N, C], got {shape(logits)}",
    )
    check_labels(labels, logits)
    check_count("bins", bins)
    confidence, predicted = logits.detach().double().softmax(-1).max(-1)
    index = (confidence * bins).ceil().long().clamp(1, bins) - 1
    examples = torch.bincount(index, minlength=bins)
    right = (predicted == labels).double()
    sums = (torch.bincount(index, weights=x, minlength=bins) for x in (confidence, right))
    mean_confidence, accuracy = (total / examples for total in sums)
    return Reliability(mean_confidence, accuracy, examples)


def expected_calibration_error(logits: Tensor, labels: Tensor, *, bins: int = 15) -> float:
    r"""How far confidence is from accuracy, on average over predictions.

    .. math:: \sum_m \frac{n_m}{N} \left| \mathrm{accuracy}_m - \mathrm{confidence}_m \right|

    The sum runs over the bins of `reliability`. The value depends on their number, and is biased
    upwards when there are few examples in a bin: compare only equal bins on equal data.

    Args:
        logits: `[N, C]`.
        labels: integer classes in `[0, C)`, `[N]`.
        bins: how many, at least 1.

    Returns:
        A number in [0, 1].

    Raises:
        ValueError: for labels that do not fit, no example, or no bin.

    Reference:
        Guo, Pleiss, Sun and Weinberger (2017), "On Calibration of Modern Neural Networks",
        arXiv:1706.04599.

    Example:
        >>> logits = torch.tensor([[0.9, 0.1], [0.8, 0.2]]).log()
        >>> round(expected_calibration_error(logits, torch.tensor([0, 1]), bins=2), 4)
        0.35
    """
    confidence, accuracy, examples = reliability(logits, labels, bins=bins)
    gap = (accuracy - confidence).abs().nan_to_num()
    return ((examples * gap).sum() / examples.sum()).item()
