"""Features: the student learns what the teacher computes on the way to its output.

Chapter: "Features". A feature *map* has shape `[B, F, H, W]` (batch, channels, height, width), a
feature *vector* `[B, F]`. Where student and teacher maps differ in height or width, the larger one
is average-pooled to the smaller. Where they differ in channels, the student's are first mapped to
the teacher's by a `HintRegressor`.
"""

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._checks import (
    check_count,
    check_frozen,
    check_same_batch,
    check_same_shape,
    check_temperature,
    check_weight,
    inner_products,
    require,
    shape,
    unit,
    widen,
)
from .metrics import accuracy
from .soft_targets import logit_terms, soft_target_loss

Features = Sequence[Tensor] | Mapping[str, Tensor]
Method = Literal["fitnet", "attention", "contrastive"]


class FeatureExtractingModel(nn.Module):
    """A network that also hands out what chosen layers computed.

    The hooks live only while a call runs: nothing is left on the network between calls, a deep
    copy records its own layers, and no activation outlives the result that holds it. A layer that
    runs several times in one call gives its last output. An activation is the layer's own output,
    not a copy, so a later in-place layer (`nn.ReLU(inplace=True)`) still changes it.

    Args:
        model: any network; it is held, not copied.
        layer_names: dotted names as in `model.named_modules()`, for instance `"stages.1"`.

    Called with whatever the network takes. Returns `(output, {name: activation})`, the activations
    in the order of `layer_names`. `close()`, or leaving a `with` block, ends the extraction; the
    network itself stays usable.

    Raises:
        ValueError: for no name, a name given twice, or an unknown name (near matches are shown).
        RuntimeError: in a call, when a named layer did not run, or after `close()`.

    Example:
        >>> network = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> with FeatureExtractingModel(network, ["0", "1"]) as extractor:
        ...     output, features = extractor(torch.zeros(5, 4))
        >>> output.shape, {name: feature.shape for name, feature in features.items()}
        (torch.Size([5, 2]), {'0': torch.Size([5, 3]), '1': torch.Size([5, 3])})
    """

    def __init__(self, model: nn.Module, layer_names: Sequence[str]) -> None:
        super().__init__()
        require(
            not isinstance(layer_names, str) and len(layer_names) > 0,
            f"layer_names must be a list of at least one layer name, got {layer_names!r}",
        )
        require(
            len(set(layer_names)) == len(layer_names),
            f"layer_names must name each layer once, got {list(layer_names)}",
        )
        known = [name for name, _ in model.named_modules() if name]
        for name in layer_names:
            near = difflib.get_close_matches(name, known, cutoff=0.4) or known[:10]
            require(
                name in known,
                f"layer_names: {type(model).__name__} has no layer {name!r}; "
                f"did you mean one of {near}?",
            )
        self.model = model
        self.layer_names = tuple(layer_names)
        self.closed = False

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """The network's output and the activations of the chosen layers."""
        if self.closed:
            raise RuntimeError("this FeatureExtractingModel is closed; make a new one")
        recorded: dict[str, Any] = {}
        handles = [
            self.model.get_submodule(name).register_forward_hook(
                lambda _module, _inputs, output, name=name: recorded.update({name: output})
            )
            for name in self.layer_names
        ]
        try:
            output = self.model(*args, **kwargs)
        finally:
            for handle in handles:
                handle.remove()
        missing = [name for name in self.layer_names if name not in recorded]
        if missing:
            raise RuntimeError(f"layers {missing} did not run in this call, so they gave no output")
        return output, {name: recorded[name] for name in self.layer_names}

    def close(self) -> None:
        """End the extraction: later calls raise."""
        self.closed = True

    def __enter__(self) -> "FeatureExtractingModel":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def hint_loss(student: Tensor, teacher: Tensor, *, normalize: bool = False) -> Tensor:
    r"""Mean squared difference between the features of student and teacher.

    .. math:: \frac{1}{N} \sum_n (f^s_n - f^t_n)^2

    The mean runs over all elements. Equal channels are needed: a `HintRegressor` makes them so.

    Args:
        student: `[B, F, H, W]` or `[B, F]`.
        teacher: the same channels; receives no gradient.
        normalize: divide the channels at each position by their L2 norm first, a common variant
            that compares directions only. A position whose channels are all zero stays zero.

    Returns:
        A 0-d tensor, at least 0.

    Raises:
        ValueError: for unequal batches, channels or number of dimensions.

    Reference:
        Romero, Ballas, Kahou, Chassang, Gatta and Bengio (2015), "FitNets: Hints for Thin Deep
        Nets", arXiv:1412.6550.

    Example:
        >>> hint_loss(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 0.0]])).item()
        2.5
    """
    student, teacher = _same_space(*check_same_batch(student, teacher))
    student, teacher = check_same_shape(student, teacher)
    if normalize:
        student, teacher = unit(student, dim=1), unit(teacher, dim=1)
    return F.mse_loss(student, teacher)


class HintRegressor(nn.Module):
    """Maps the student's channels to the teacher's, so that the two can be compared.

    A 1×1 convolution: the same linear map at every position, or simply a linear layer for vectors.

    Args:
        student_channels: channels that come in.
        teacher_channels: channels that go out.

    Called with `[B, student_channels, H, W]` or `[B, student_channels]`; keeps all else.

    Raises:
        ValueError: for channels below 1, or an input with other channels.

    Reference:
        Romero et al. (2015), "FitNets: Hints for Thin Deep Nets", arXiv:1412.6550.

    Example:
        >>> regressor = HintRegressor(student_channels=8, teacher_channels=16)
        >>> regressor(torch.zeros(4, 8, 7, 7)).shape
        torch.Size([4, 16, 7, 7])
    """

    def __init__(self, *, student_channels: int, teacher_channels: int) -> None:
        super().__init__()
        check_count("student_channels", student_channels)
        check_count("teacher_channels", teacher_channels)
        self.projection = nn.Conv1d(student_channels, teacher_channels, 1)

    def forward(self, student: Tensor) -> Tensor:
        """The student's features in the teacher's channels."""
        return _at_each_position(self.projection, student, self.projection.in_channels)


def attention_transfer_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    power: float = 2,
    reduction: Literal["mean", "sum", "norm"] = "mean",
) -> Tensor:
    r"""Compares *where* two networks look: maps of mean absolute activation to a power.

    .. math:: Q = \frac{a}{\|a\|_2}, \quad a = \mathrm{vec}\Big(\frac{1}{F} \sum_f |x_f|^p\Big),
        \quad d = Q^s - Q^t

    Channels are averaged away, so they may differ. A map that is zero everywhere has `Q = 0`.

    Args:
        student: feature map `[B, F, H, W]`.
        teacher: feature map of any channels, height and width; receives no gradient.
        power: `p >= 1`; larger values look at the peaks only.
        reduction: `"mean"`: mean of `d²` over batch and positions (the authors' code); `"sum"`:
            mean over the batch of `‖d‖²`; `"norm"`: mean over the batch of `‖d‖` (the paper
            has β/2 times this). The first is `H · W` times smaller than the second.

    Returns:
        A 0-d tensor, at least 0.

    Raises:
        ValueError: for unequal batches, what is not a map, `power < 1` or another reduction.

    Reference:
        Zagoruyko and Komodakis (2017), "Paying More Attention to Attention: Improving the
        Performance of Convolutional Neural Networks via Attention Transfer", arXiv:1612.03928.

    Example:
        >>> student = torch.tensor([[[[1.0, 0.0]]]])  # looks left
        >>> teacher = torch.tensor([[[[0.0, 2.0]], [[0.0, 3.0]]]])  # looks right
        >>> attention_transfer_loss(student, teacher, reduction="sum").item()
        2.0
    """
    require(
        isinstance(power, (int, float)) and math.isfinite(power) and power >= 1,
        f"power must be a finite number of at least 1, got {power!r}",
    )
    maps = _same_space(*check_same_batch(student, teacher, min_dims=4))
    if power % 2 != 0:  # an even power needs no absolute value
        maps = (maps[0].abs(), maps[1].abs())
    attention_s, attention_t = (unit(x.pow(power).mean(1).flatten(1)) for x in maps)
    difference = attention_s - attention_t  # [B, H * W]
    if reduction == "mean":
        return difference.square().mean()
    if reduction == "sum":
        return difference.square().sum(1).mean()
    require(reduction == "norm", f"reduction must be mean, sum or norm, got {reduction!r}")
    return torch.linalg.vector_norm(difference, dim=1).mean()


def contrastive_feature_loss(
    student: Tensor, teacher: Tensor, *, temperature: float = 0.5
) -> Tensor:
    r"""InfoNCE inside the batch: each student feature must recognise its own teacher feature.

    .. math:: -\frac{1}{B} \sum_i \log
        \frac{\exp(\cos(f^s_i, f^t_i) / T)}{\sum_j \exp(\cos(f^s_i, f^t_j) / T)}

    Maps are averaged over their positions first.

    Args:
        student: `[B, F]` or `[B, F, H, W]`.
        teacher: the same width F (project the student first); receives no gradient.
        temperature: `T > 0`; smaller values count near misses more.

    Returns:
        A 0-d tensor, at least 0; `log(B)` when nothing can be told apart.

    Raises:
        ValueError: for unequal batches or widths, a batch below 2 or `temperature <= 0`.

    Reference:
        van den Oord, Li and Vinyals (2018), "Representation Learning with Contrastive Predictive
        Coding", arXiv:1807.03748.

    Example:
        >>> features = torch.eye(2)
        >>> round(contrastive_feature_loss(features, features).item(), 4)
        0.1269
    """
    check_temperature(temperature)
    student, teacher = check_same_batch(student, teacher, minimum=2)
    student, teacher = (x.flatten(2).mean(2) if x.dim() > 2 else x for x in (student, teacher))
    require(
        student.shape == teacher.shape,
        "student and teacher must have the same width (project the student first), "
        f"got {student.shape[1]} and {teacher.shape[1]}",
    )
    similarities = inner_products(unit(student), unit(teacher)) / temperature  # [B, B]
    return F.cross_entropy(similarities, torch.arange(len(student), device=student.device))


class FeatureDistillation(nn.Module):
    """One loss over pairs of layers, with the projections it needs.

    Args:
        student_channels: channels of each student layer.
        teacher_channels: channels of the teacher layer it is paired with.
        method: `"fitnet"`: hints, one `HintRegressor` for each pair, mean over the pairs.
            `"attention"`: attention transfer, mean over the pairs, no parameters.
            `"contrastive"`: InfoNCE inside the batch, on the last pair only, with its regressor.

    Called with the student's and the teacher's features: a list with one tensor for each pair, or
    the dict of a `FeatureExtractingModel` in that order. Returns `{method: loss}`.

    Raises:
        ValueError: for unequal numbers of layers, another method, or features that do not fit.

    Reference:
        Romero et al. (2015), arXiv:1412.6550; Zagoruyko and Komodakis (2017), arXiv:1612.03928;
        van den Oord, Li and Vinyals (2018), arXiv:1807.03748.

    Example:
        >>> objective = FeatureDistillation(
        ...     student_channels=[8, 16], teacher_channels=[16, 32], method="attention"
        ... )
        >>> student = [torch.ones(2, 8, 4, 4), torch.ones(2, 16, 2, 2)]
        >>> teacher = [torch.ones(2, 16, 8, 8), torch.ones(2, 32, 4, 4)]
        >>> {name: term.item() for name, term in objective(student, teacher).items()}
        {'attention': 0.0}
    """

    def __init__(
        self,
        *,
        student_channels: Sequence[int],
        teacher_channels: Sequence[int],
        method: Method = "fitnet",
    ) -> None:
        super().__init__()
        for name, channels in (
            ("student_channels", student_channels),
            ("teacher_channels", teacher_channels),
        ):
            require(
                isinstance(channels, Sequence) and len(channels) > 0,
                f"{name} must be a list with one number for each layer, got {channels!r}",
            )
        require(
            len(student_channels) == len(teacher_channels),
            "student_channels and teacher_channels must name as many layers as each other, "
            f"got {len(student_channels)} and {len(teacher_channels)}",
        )
        pairs = list(zip(student_channels, teacher_channels, strict=True))
        match method:
            case "fitnet":
                projected = pairs
            case "attention":
                projected = []
            case "contrastive":
                projected = pairs[-1:]
            case _:
                raise ValueError(f"method must be fitnet, attention or contrastive, got {method!r}")
        self.method = method
        self.num_pairs = len(pairs)
        self.regressors = nn.ModuleList(
            HintRegressor(student_channels=s, teacher_channels=t) for s, t in projected
        )

    def forward(self, student: Features, teacher: Features) -> dict[str, Tensor]:
        """The loss of one batch's features."""
        students, teachers = (
            list(features.values() if isinstance(features, Mapping) else features)
            for features in (student, teacher)
        )
        for name, features in (("student", students), ("teacher", teachers)):
            require(
                len(features) == self.num_pairs,
                f"{name} must hold {self.num_pairs} layers, got {len(features)}",
            )
        if self.method == "contrastive":
            loss = contrastive_feature_loss(self.regressors[0](students[-1]), teachers[-1])
            return {self.method: loss}
        if self.method == "fitnet":
            students = [r(x) for r, x in zip(self.regressors, students, strict=True)]
        pair_loss = hint_loss if self.method == "fitnet" else attention_transfer_loss
        losses = [pair_loss(s, t) for s, t in zip(students, teachers, strict=True)]
        return {self.method: torch.stack(losses).mean()}


class FeatureObjective(nn.Module):
    """Joins a loss on features with the two networks it compares, labels and soft targets.

    Called with a batch `(inputs, labels, ...)`; further elements are ignored. Returns the feature
    terms times `weight` beside those of the logits, and both accuracies, in [0, 1], as metrics.

    Args:
        student: hands out logits `[B, C]` and features; trained, together with `features`.
        teacher: the same of the teacher, frozen: `FrozenTeacher(FeatureExtractingModel(...))`.
        features: a loss module such as `FeatureDistillation`, or a function, called with the two
            dicts of features; returns named terms. Its projections train with the student.
        weight: of the feature terms, at least 0.
        soft: a loss module such as `SoftTargetDistillation`, called with `(student_logits,
            teacher_logits, labels)`; None: cross-entropy with the labels, the term `hard`.

    Raises:
        ValueError: for a teacher that would be trained, or a weight below 0.

    Example:
        >>> networks = [nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4)) for _ in range(2)]
        >>> student, teacher = (FeatureExtractingModel(network, ["0"]) for network in networks)
        >>> objective = FeatureObjective(
        ...     student=student,
        ...     teacher=teacher.requires_grad_(False),
        ...     features=FeatureDistillation(student_channels=[3], teacher_channels=[3]),
        ... )
        >>> terms, metrics = objective((torch.randn(8, 2), torch.randint(4, (8,))))
        >>> list(terms), list(metrics)
        (['hard', 'fitnet'], ['student_accuracy', 'teacher_accuracy'])
    """

    def __init__(
        self,
        *,
        student: FeatureExtractingModel,
        teacher: nn.Module,
        features: Callable[..., dict[str, Tensor]],
        weight: float = 1.0,
        soft: nn.Module | None = None,
    ) -> None:
        super().__init__()
        check_weight("weight", weight)
        check_frozen(teacher, "FrozenTeacher(FeatureExtractingModel(...))")
        self.student = student
        self.teacher = teacher
        self.features = features
        self.weight = weight
        self.soft = soft

    def forward(self, batch: Sequence[Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Loss terms and metrics of one batch."""
        inputs, labels = batch[:2]
        student_logits, student_features = self.student(inputs)
        teacher_logits, teacher_features = self.teacher(inputs)
        terms = logit_terms(self.soft, student_logits, teacher_logits, labels)
        matched = self.features(student_features, teacher_features)
        terms |= {name: self.weight * term for name, term in matched.items()}
        return terms, {
            "student_accuracy": accuracy(student_logits, labels),
            "teacher_accuracy": accuracy(teacher_logits, labels),
        }


def fsp_loss(student_pair: tuple[Tensor, Tensor], teacher_pair: tuple[Tensor, Tensor]) -> Tensor:
    r"""Compares the *flow of the solution procedure*: how two layers of a network go together.

    .. math:: G_{ij} = \frac{1}{H W} \sum_{h,w} x_{i,h,w} \, y_{j,h,w}, \qquad
        \mathrm{mean}\big((G^s - G^t)^2\big)

    Within a pair, the larger map is average-pooled to the smaller, as in RepDistiller's code; the
    paper max-pools.

    Args:
        student_pair: an earlier and a later feature map, `[B, F1, H, W]` and `[B, F2, H', W']`.
        teacher_pair: two maps with the same channels as the student's; receive no gradient.

    Returns:
        A 0-d tensor, at least 0.

    Raises:
        ValueError: for what is not two maps, or unequal batches or channels.

    Reference:
        Yim, Joo, Bae and Kim (2017), "A Gift from Knowledge Distillation: Fast Optimization,
        Network Minimization and Transfer Learning", CVPR 2017.

    Example:
        >>> early, late = torch.ones(1, 2, 4, 4), torch.ones(1, 3, 2, 2)
        >>> fsp_loss((early, late), (early, 3 * late)).item()
        4.0
    """
    student = _flow("student_pair", student_pair)
    with torch.no_grad():
        teacher = _flow("teacher_pair", teacher_pair)
    require(
        student.shape == teacher.shape,
        "student_pair and teacher_pair must have the same batch and channels, "
        f"got Gram matrices of shape {shape(student)} and {shape(teacher)}",
    )
    return F.mse_loss(student, teacher)


def _flow(name: str, pair: tuple[Tensor, Tensor]) -> Tensor:
    """The Gram matrix between two feature maps over space, `[B, F1, F2]`."""
    require(
        isinstance(pair, (tuple, list)) and len(pair) == 2,
        f"{name} must be two feature maps, got {type(pair).__name__}",
    )
    names = (f"{name}[0]", f"{name}[1]")
    check_same_batch(*pair, names=names, min_dims=4)
    first, second = _same_space(widen(pair[0]), widen(pair[1]), names=names)
    return inner_products(first.flatten(2), second.flatten(2)) / first.shape[2:].numel()


def nst_loss(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Matches the *distribution* of channels: squared MMD with the kernel (inner product)².

    Each channel is a vector over the positions, divided by its L2 norm.

    .. math:: \frac{1}{F_s^2} \sum_{i,j} k(s_i, s_j) + \frac{1}{F_t^2} \sum_{i,j} k(t_i, t_j)
        - \frac{2}{F_s F_t} \sum_{i,j} k(s_i, t_j), \qquad k(a, b) = (a^\top b)^2

    With few positions the same value comes faster from the matrices between positions: the sums
    are inner products of `SᵀS` and `TᵀT`, so the whole is the squared norm of a difference.

    Args:
        student: feature map `[B, F_s, H, W]`.
        teacher: feature map `[B, F_t, H', W']`; receives no gradient.

    Returns:
        A 0-d tensor, the mean over the batch; at least 0 up to rounding.

    Raises:
        ValueError: for unequal batches or what is not a map.

    Reference:
        Huang and Wang (2017), "Like What You Like: Knowledge Distill via Neuron Selectivity
        Transfer", arXiv:1707.01219.

    Example:
        >>> left, right = torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[[[0.0, 1.0]]]])
        >>> nst_loss(left, left).item(), nst_loss(left, right).item()
        (0.0, 2.0)
    """
    maps = _same_space(*check_same_batch(student, teacher, min_dims=4))
    student, teacher = (unit(x.flatten(2)) for x in maps)  # [B, F, H * W]
    if student.shape[2] <= max(student.shape[1], teacher.shape[1]):
        s, t = (inner_products(x.mT, x.mT) / x.shape[1] for x in (student, teacher))
        return (s - t).square().sum((1, 2)).mean()
    pairs = ((student, student), (teacher, teacher), (student, teacher))
    within_s, within_t, between = (inner_products(a, b).square().mean() for a, b in pairs)
    return within_s + within_t - 2 * between


class VIDLoss(nn.Module):
    r"""How well the student's features predict the teacher's, as a Gaussian log-likelihood.

    .. math:: \frac12 \, \mathrm{mean}\Big(\frac{(f^t - \mu(f^s))^2}{\sigma_c^2}
        + \log \sigma_c^2\Big), \qquad \sigma_c^2 = \mathrm{softplus}(\rho_c) + \epsilon

    The mean :math:`\mu` is a small network at each position; the variance is learned for each
    channel, so channels that the student cannot predict stop counting. The constant
    :math:`\frac12 \log 2\pi` is left out, and the loss may be negative.

    Args:
        student_channels: channels of the student's features.
        teacher_channels: channels of the teacher's features.
        init_variance: the variance of every channel at the start, above `eps`.
        eps: the smallest variance, above 0.

    Called with `(student [B, student_channels, H, W], teacher [B, teacher_channels, H', W'])`, or
    with vectors. Returns `{"vid": loss}`. Both the network and the variances train.

    Raises:
        ValueError: for features that do not fit, or `init_variance <= eps`.

    Reference:
        Ahn, Hu, Damianou, Lawrence and Dai (2019), "Variational Information Distillation for
        Knowledge Transfer", arXiv:1904.05835.

    Example:
        >>> objective = VIDLoss(student_channels=3, teacher_channels=2, init_variance=1.0)
        >>> round(objective(torch.zeros(4, 3), torch.ones(4, 2))["vid"].item(), 4)
        0.5
    """

    def __init__(
        self,
        *,
        student_channels: int,
        teacher_channels: int,
        init_variance: float = 5.0,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        check_count("student_channels", student_channels)
        check_count("teacher_channels", teacher_channels)
        require(
            0 < eps < init_variance < math.inf,
            f"init_variance must be finite and above eps > 0, got {init_variance!r} and {eps!r}",
        )
        self.regressor = nn.Sequential(
            nn.Conv1d(student_channels, teacher_channels, 1, bias=False),
            nn.ReLU(),
            nn.Conv1d(teacher_channels, teacher_channels, 1, bias=False),
            nn.ReLU(),
            nn.Conv1d(teacher_channels, teacher_channels, 1, bias=False),
        )
        excess = init_variance - eps
        inverse_softplus = excess + math.log(-math.expm1(-excess))
        self.raw_variance = nn.Parameter(torch.full((teacher_channels,), inverse_softplus))
        self.student_channels = student_channels
        self.eps = eps

    @property
    def variance(self) -> Tensor:
        """The variance of each teacher channel, `[teacher_channels]`."""
        return F.softplus(self.raw_variance) + self.eps

    def forward(self, student: Tensor, teacher: Tensor) -> dict[str, Tensor]:
        """The negative log-likelihood of one batch of teacher features."""
        student, teacher = _same_space(*check_same_batch(student, teacher))
        mean = widen(_at_each_position(self.regressor, student, self.student_channels))
        mean, teacher = check_same_shape(mean, teacher, names=("predicted student", "teacher"))
        errors = (mean - teacher).square()
        errors = errors.mean([d for d in range(errors.dim()) if d != 1])  # [teacher_channels]
        return {"vid": 0.5 * (errors / self.variance + self.variance.log()).mean()}


def cwd_loss(student: Tensor, teacher: Tensor, *, temperature: float = 1.0) -> Tensor:
    r"""Compares where each single channel looks: a softmax over the positions, then KL.

    .. math:: \frac{T^2}{B F} \sum_{b,f} \mathrm{KL}\big(
        \mathrm{softmax}(x^t_{b,f} / T) \,\|\, \mathrm{softmax}(x^s_{b,f} / T)\big)

    It is the soft-target loss with positions in the place of classes.

    Args:
        student: feature map `[B, F, H, W]`.
        teacher: the same shape; receives no gradient.
        temperature: `T > 0`; smaller values look at the strongest positions only.

    Returns:
        A 0-d tensor, at least 0.

    Raises:
        ValueError: for unequal shapes, what is not a map, or `temperature <= 0`.

    Reference:
        Shu, Liu, Gao, Yan and Shen (2021), "Channel-wise Knowledge Distillation for Dense
        Prediction", arXiv:2011.13256.

    Example:
        >>> student, teacher = torch.zeros(1, 1, 1, 2), torch.tensor([[[[2.0, 0.0]]]])
        >>> round(cwd_loss(student, teacher).item(), 4)
        0.3278
    """
    student, teacher = check_same_shape(student, teacher, min_dims=4)
    return soft_target_loss(student.flatten(2), teacher.flatten(2), temperature=temperature)


def _same_space(
    student: Tensor, teacher: Tensor, *, names: tuple[str, str] = ("student", "teacher")
) -> tuple[Tensor, Tensor]:
    """Average-pool the larger of two maps to the smaller; vectors stay as they are."""
    require(
        student.dim() == teacher.dim() and student.dim() in (2, 4),
        f"{names[0]} and {names[1]} must both be maps [B, F, H, W] or both vectors [B, F], "
        f"got {shape(student)} and {shape(teacher)}",
    )
    if student.shape[2:] == teacher.shape[2:]:
        return student, teacher
    size = (min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3]))
    return F.adaptive_avg_pool2d(student, size), F.adaptive_avg_pool2d(teacher, size)


def _at_each_position(layer: nn.Module, student: Tensor, channels: int) -> Tensor:
    """Apply a layer on `[B, F, positions]` to a map or to a vector."""
    require(
        student.dim() in (2, 4) and student.shape[1] == channels,
        f"student must have {channels} channels in dimension 1, got {shape(student)}",
    )
    positions = widen(student).flatten(2) if student.dim() == 4 else widen(student).unsqueeze(2)
    projected = layer(positions)  # [B, F', positions]
    return projected.reshape(len(student), -1, *student.shape[2:])
