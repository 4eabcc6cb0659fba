"""Language: what a small transformer can learn from a large one, token by token.

Chapter: "Task-specific: language". A batch of texts has shape `[B, L]`; the shorter ones are filled
up with padding, and a boolean `mask [B, L]` is true at the real tokens. Padding is left out, not
multiplied by 0, so it may hold anything. A hidden state has shape `[B, L, D]`, attention
`[B, heads, L, L]` (queries, then keys). Models are called as those of Hugging Face: their outputs
have the fields `logits`, `hidden_states` (the embeddings first, then one for each layer) and
`attentions`.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._checks import (
    check_count,
    check_floating,
    check_labels,
    check_mask,
    check_pair,
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
from .soft_targets import soft_target_loss
from .training import FrozenTeacher, fit

if TYPE_CHECKING:
    import pandas as pd

IGNORED = -100  # the label of a token that the masked-language loss leaves out
LOGITS = ("student_logits", "teacher_logits")


# Layers


def uniform_layer_map(num_student: int, num_teacher: int) -> list[int]:
    r"""Which teacher state each student state learns from: evenly spread, both ends included.

    .. math:: j = \Big\lfloor \frac{i \, (n_t - 1)}{n_s - 1} + \frac12 \Big\rfloor

    A single student state learns from the last one. Easily written is a division that rounds down
    (`i * (n_t // n_s)`), and then the upper layers are never used: 4 states on 7 give 0, 1, 2, 3.
    TinyBERT's own script divides the numbers of layers, and stops where that leaves a remainder.

    Args:
        num_student: states of the student, the embeddings counted where they are compared too.
        num_teacher: states of the teacher, counted alike.

    Raises:
        ValueError: for a number below 1.

    Reference:
        Jiao et al. (2020), "TinyBERT: Distilling BERT for Natural Language Understanding",
        arXiv:1909.10351.

    Example:
        >>> uniform_layer_map(4, 7), uniform_layer_map(2, 6)
        ([0, 2, 4, 6], [0, 5])
    """
    check_count("num_student", num_student)
    check_count("num_teacher", num_teacher)
    if num_student == 1:
        return [num_teacher - 1]
    gaps = num_student - 1
    return [(2 * i * (num_teacher - 1) + gaps) // (2 * gaps) for i in range(num_student)]


def skip_layer_map(num_student: int, num_teacher: int) -> list[int]:
    """Every k-th layer from the first; for half the depth every second, as DistilBERT's paper says.

    The script published with it (`extract_distilbert.py` in huggingface/transformers) takes the
    layers 0, 2, 4, 7, 9 and 11 of twelve, and so reaches the last one.

    Args:
        num_student: layers of the student.
        num_teacher: layers of the teacher, a multiple of the student's.

    Raises:
        ValueError: for a number below 1, or what is no multiple.

    Reference:
        Sanh, Debut, Chaumond and Wolf (2019), "DistilBERT, a distilled version of BERT: smaller,
        faster, cheaper and lighter", arXiv:1910.01108.

    Example:
        >>> skip_layer_map(3, 6)
        [0, 2, 4]
    """
    check_count("num_student", num_student)
    check_count("num_teacher", num_teacher)
    require(
        num_teacher % num_student == 0,
        f"num_teacher must be a multiple of num_student, got {num_teacher} and {num_student}: "
        "use uniform_layer_map",
    )
    return list(range(0, num_teacher, num_teacher // num_student))


@torch.no_grad()
def initialize_from_layers(
    student: nn.Module, teacher: nn.Module, layers: Sequence[int], *, path: str = "encoder.layer"
) -> None:
    """Give a shallower student of the same width the teacher's weights, chosen layers included.

    What stands outside the list of layers (embeddings, pooler, head) is copied under its own name.

    Args:
        student: changed in place.
        teacher: left as it is.
        layers: the teacher's layer, counted from 0, for each of the student's.
        path: dotted name of the list of layers in both models; that of BERT unless told.

    Raises:
        ValueError: for another number of layers than the student has, a layer that the teacher does
            not have, or weights of other shapes.

    Reference:
        Sanh, Debut, Chaumond and Wolf (2019), arXiv:1910.01108.

    Example:
        >>> teacher = nn.ModuleDict({"stack": nn.ModuleList(nn.Linear(2, 2) for _ in range(4))})
        >>> student = nn.ModuleDict({"stack": nn.ModuleList(nn.Linear(2, 2) for _ in range(2))})
        >>> initialize_from_layers(student, teacher, [0, 3], path="stack")
        >>> torch.equal(student["stack"][1].weight, teacher["stack"][3].weight)
        True
    """
    depths = []
    for name, model in (("student", student), ("teacher", teacher)):
        stack = dict(model.named_modules()).get(path)
        require(
            isinstance(stack, nn.ModuleList),
            f"path must name the list of layers, but {name} ({type(model).__name__}) has none "
            f"called {path!r}",
        )
        assert isinstance(stack, nn.ModuleList)
        depths.append(len(stack))
    _check_layer_map("layers", layers, *depths)
    source = teacher.state_dict()
    for name, value in student.state_dict().items():
        origin = name
        if name.startswith(path + "."):
            number, rest = name.removeprefix(path + ".").split(".", 1)
            origin = f"{path}.{layers[int(number)]}.{rest}"
        require(
            origin in source and source[origin].shape == value.shape,
            f"student and teacher must have the same widths, but {name} has shape {shape(value)} "
            f"and the teacher's {origin} "
            + (f"has {shape(source[origin])}" if origin in source else "is missing"),
        )
        value.copy_(source[origin])


def _check_layer_map(name: str, layers: Sequence[int], num_student: int, num_teacher: int) -> None:
    require(
        len(layers) == num_student
        and all(isinstance(j, int) and 0 <= j < num_teacher for j in layers),
        f"{name} must hold {num_student} whole numbers from 0 to {num_teacher - 1}, "
        f"one for each of the student's, got {list(layers)}",
    )


# Embeddings and hidden states


def embedding_loss(student: Tensor, teacher: Tensor, *, mask: Tensor | None = None) -> Tensor:
    r"""Mean squared difference of two embeddings or hidden states over the real tokens.

    .. math:: \frac{1}{N D} \sum_{n} \| h^s_n - h^t_n \|^2

    Args:
        student: `[..., L, D]`; project it first where the widths differ.
        teacher: the same shape; receives no gradient.
        mask: boolean, `[..., L]`, true at real tokens; the N of them count. None: all.

    Returns:
        A 0-d tensor, at least 0; 0 for an empty mask.

    Raises:
        ValueError: for unequal shapes or a mask that does not fit.

    Reference:
        Jiao et al. (2020), "TinyBERT: Distilling BERT for Natural Language Understanding",
        arXiv:1909.10351.

    Example:
        >>> student, teacher = torch.zeros(1, 2, 2), torch.tensor([[[1.0, 3.0], [9.0, 9.0]]])
        >>> embedding_loss(student, teacher, mask=torch.tensor([[True, False]])).item()
        5.0
    """
    student, teacher = _real_tokens(student, teacher, mask)
    return F.mse_loss(student, teacher, reduction="sum") / max(student.numel(), 1)


def hidden_state_loss(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    *,
    layer_map: Sequence[int] | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """`embedding_loss` of each student state and the teacher state it is mapped to, their mean.

    Args:
        student: one `[B, L, D]` for each state; a `HiddenStateProjector` gives them the teacher's
            width.
        teacher: the same of the teacher, of any number; receives no gradient.
        layer_map: index of the teacher state for each student state; `uniform_layer_map` unless
            told.
        mask: boolean, `[B, L]`, true at real tokens. None: all.

    Returns:
        A 0-d tensor, at least 0.

    Raises:
        ValueError: for unequal shapes, a layer map or a mask that does not fit.

    Reference:
        Jiao et al. (2020), arXiv:1909.10351.

    Example:
        >>> teacher = [torch.full((1, 2, 3), value) for value in (0.0, 1.0, 2.0)]
        >>> student = [torch.zeros(1, 2, 3), torch.zeros(1, 2, 3)]
        >>> hidden_state_loss(student, teacher).item()  # 0 with 0, 1 with 2
        2.0
    """
    _check_states("student", student)
    _check_states("teacher", teacher)
    layer_map = uniform_layer_map(len(student), len(teacher)) if layer_map is None else layer_map
    _check_layer_map("layer_map", layer_map, len(student), len(teacher))
    pairs = zip(student, (teacher[j] for j in layer_map), strict=True)
    return torch.stack([embedding_loss(s, t, mask=mask) for s, t in pairs]).mean()


class HiddenStateProjector(nn.Module):
    """A linear map for each student state into the teacher's width.

    Args:
        student_width: of the states that come in.
        teacher_width: of the states that go out.
        num_states: how many there are.

    Called with a list of `num_states` tensors `[..., student_width]`; returns such a list.

    Raises:
        ValueError: for a number below 1, or states that do not fit.

    Reference:
        Jiao et al. (2020), arXiv:1909.10351; their code shares one map between all layers.

    Example:
        >>> projector = HiddenStateProjector(student_width=4, teacher_width=6, num_states=2)
        >>> [state.shape for state in projector([torch.zeros(1, 3, 4)] * 2)]
        [torch.Size([1, 3, 6]), torch.Size([1, 3, 6])]
    """

    def __init__(self, *, student_width: int, teacher_width: int, num_states: int) -> None:
        super().__init__()
        check_count("student_width", student_width)
        check_count("teacher_width", teacher_width)
        check_count("num_states", num_states)
        self.student_width = student_width
        self.maps = nn.ModuleList(
            nn.Linear(student_width, teacher_width) for _ in range(num_states)
        )

    def forward(self, student: Sequence[Tensor]) -> list[Tensor]:
        """The student's states in the teacher's width."""
        _check_states("student", student)
        require(
            len(student) == len(self.maps),
            f"student must hold {len(self.maps)} states, got {len(student)}",
        )
        for state in student:
            require(
                state.shape[-1] == self.student_width,
                f"student must have states of width {self.student_width}, got {shape(state)}",
            )
        return [layer(widen(state)) for layer, state in zip(self.maps, student, strict=True)]


def cosine_loss(student: Tensor, teacher: Tensor, *, mask: Tensor | None = None) -> Tensor:
    r"""One minus the cosine between two hidden states, mean over the real tokens.

    Args:
        student: `[..., L, D]`.
        teacher: the same shape; receives no gradient.
        mask: boolean, `[..., L]`, true at real tokens. None: all.

    Returns:
        A 0-d tensor between 0 and 2. A token whose state is zero contributes 1, without gradient.

    Raises:
        ValueError: for unequal shapes or a mask that does not fit.

    Reference:
        Sanh, Debut, Chaumond and Wolf (2019), arXiv:1910.01108.

    Example:
        >>> cosine_loss(torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.0, 2.0]]])).item()
        1.0
    """
    student, teacher = _real_tokens(student, teacher, mask)
    cosines = (unit(student) * unit(teacher)).sum(-1)
    return (1 - cosines).sum() / max(cosines.numel(), 1)


def sentence_embedding(hidden: Tensor, *, mask: Tensor) -> Tensor:
    """One vector for each text: the mean over its real tokens, of length 1.

    Args:
        hidden: last hidden state, `[B, L, D]`.
        mask: boolean, `[B, L]`, true at real tokens.

    Returns:
        `[B, D]`; zero for a text without tokens.

    Raises:
        ValueError: for a mask that does not fit.

    Reference:
        Reimers and Gurevych (2019), "Sentence-BERT: Sentence Embeddings using Siamese
        BERT-Networks", arXiv:1908.10084.

    Example:
        >>> hidden = torch.tensor([[[3.0, 4.0], [100.0, 0.0]]])
        >>> sentence_embedding(hidden, mask=torch.tensor([[True, False]]))
        tensor([[0.6000, 0.8000]])
    """
    check_floating("hidden", hidden)
    require(hidden.dim() == 3, f"hidden must be [B, L, D], got {shape(hidden)}")
    check_mask(mask, hidden.shape[:2])
    # The sum points where the mean does.
    return unit(torch.where(mask[..., None], widen(hidden), 0).sum(1))


def _real_tokens(student: Tensor, teacher: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """The states of the real tokens, `[N, D]` with a mask, else unchanged."""
    student, teacher = check_pair(student, teacher)
    require(
        student.shape[:-1] != teacher.shape[:-1] or student.shape == teacher.shape,
        "student and teacher must have the same width, got "
        f"{shape(student)} and {shape(teacher)}: a HiddenStateProjector brings the student to the "
        "teacher's",
    )
    check_same_shape(student, teacher, min_dims=2)
    if mask is None:
        return student, teacher
    check_mask(mask, student.shape[:-1])
    return student[mask], teacher[mask]


def _check_states(name: str, states: Sequence[Tensor]) -> None:
    require(
        isinstance(states, Sequence) and len(states) > 0,
        f"{name} must be a list with one tensor for each state, got "
        + (f"one tensor {shape(states)}" if isinstance(states, Tensor) else "none"),
    )
    for state in states:
        check_floating(name, state)


# Attention


def attention_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    mask: Tensor | None = None,
    kind: Literal["kl", "mse"] = "kl",
) -> Tensor:
    r"""Compares which tokens each token looks at, head by head.

    `kind="kl"` takes attention *probabilities*. Padded keys are removed and the rows divided by
    what remains; then, over the N rows of real queries in all heads,

    .. math:: \frac{1}{N} \sum_n \mathrm{KL}(a^t_n \,\|\, a^s_n)

    `kind="mse"` takes *scores* before the softmax: their mean squared difference over real queries,
    real keys and heads. A softmax of the probabilities once more is easily written: it gave 0.023
    where the true divergence was 1.12.

    Args:
        student: `[B, heads, L, L]`.
        teacher: the same shape; receives no gradient.
        mask: boolean, `[B, L]`, true at real tokens. None: all.
        kind: `"kl"` or `"mse"`.

    Returns:
        A 0-d tensor, at least 0; 0 for an empty mask. A student's probability below the smallest
        normal number counts as that number.

    Raises:
        ValueError: for unequal shapes, a mask that does not fit, another kind, or negative numbers
            where probabilities are needed.

    Reference:
        Wang et al. (2020), "MiniLM: Deep Self-Attention Distillation for Task-Agnostic Compression
        of Pre-Trained Transformers", arXiv:2002.10957 (KL, last layer); Jiao et al. (2020),
        arXiv:1909.10351 (MSE, mapped layers).

    Example:
        >>> student = torch.tensor([[[[0.5, 0.5], [0.5, 0.5]]]])
        >>> teacher = torch.tensor([[[[0.9, 0.1], [0.5, 0.5]]]])
        >>> round(attention_loss(student, teacher).item(), 4)
        0.184
    """
    student, teacher = check_same_shape(student, teacher, min_dims=4)
    require(
        student.dim() == 4 and student.shape[2] == student.shape[3],
        f"student and teacher must be [B, heads, L, L], got {shape(student)}",
    )
    require(kind in ("kl", "mse"), f"kind must be kl or mse, got {kind!r}")
    mask = _check_heads_mask(mask, student)
    if mask is not None:
        keys = _keys_of_real_queries(mask)  # [N, 1, L]
        student, teacher = student.transpose(1, 2)[mask], teacher.transpose(1, 2)[mask]
        if kind == "mse":
            keys = keys.expand_as(student)
            student, teacher = student[keys], teacher[keys]
        else:
            student, teacher = torch.where(keys, student, 0), torch.where(keys, teacher, 0)
    if kind == "mse":
        return F.mse_loss(student, teacher, reduction="sum") / max(student.numel(), 1)
    logs = _log_probabilities("teacher", teacher) - _log_probabilities("student", student)
    divergence = (teacher * logs).sum(-1)
    # Dividing a row by its sum first would subtract the sum's logarithm from each of its own.
    sum_s, sum_t = student.sum(-1), teacher.sum(-1)
    ratio = _log_probabilities("student", sum_s) - _log_probabilities("teacher", sum_t)
    smallest = torch.finfo(teacher.dtype).tiny
    rows = torch.where(sum_t >= smallest, divergence / sum_t.clamp_min(smallest) + ratio, 0)
    return rows.sum() / max(rows.numel(), 1)


def _log_probabilities(name: str, probabilities: Tensor) -> Tensor:
    """The logarithm; what is below the smallest normal number counts as that number."""
    smallest = torch.finfo(probabilities.dtype).tiny
    if probabilities.numel() > 0 and not torch.compiler.is_compiling():
        lowest = probabilities.min()
        require(
            bool(lowest >= 0),
            f'{name} must hold probabilities, got {lowest:.4g}: for scores use kind="mse", or take '
            "their softmax over the keys first",
        )
        if lowest >= smallest:  # spares the backward pass the clamping
            return probabilities.log()
    return probabilities.clamp_min(smallest).log()


def value_relation_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    mask: Tensor | None = None,
    relation_heads: int | None = None,
) -> Tensor:
    r"""Compares how the values of a layer, usually the last, relate to each other.

    .. math:: R = \mathrm{softmax}\Big(\frac{V V^\top}{\sqrt{d}}\Big), \qquad
        \frac{1}{N} \sum_n \mathrm{KL}(R^t_n \,\|\, R^s_n)

    over the N rows of real queries in all heads. Each side divides by the root of its own width
    `d`; padded keys are left out of the softmax.

    Args:
        student: values of the heads, `[B, heads, L, d_s]`.
        teacher: `[B, heads, L, d_t]`; receives no gradient.
        mask: boolean, `[B, L]`, true at real tokens. None: all.
        relation_heads: cut the joined heads of both sides into this many new ones, so that the
            numbers of heads may differ. None: as they are.

    Returns:
        A 0-d tensor, at least 0; 0 for an empty mask.

    Raises:
        ValueError: for unequal batches, lengths or heads, a mask that does not fit, or a width
            that `relation_heads` does not divide.

    Reference:
        Wang et al. (2020), arXiv:2002.10957; with regrouped heads Wang, Bao, Huang, Dong and Wei
        (2021), "MiniLMv2: Multi-Head Self-Attention Relation Distillation for Compressing
        Pretrained Transformers", arXiv:2012.15828.

    Example:
        >>> student, teacher = torch.zeros(1, 1, 2, 4), torch.eye(2)[None, None]
        >>> round(value_relation_loss(student, teacher).item(), 4)
        0.0588
    """
    student, teacher = check_same_batch(student, teacher, min_dims=4)
    if relation_heads is not None:
        student = _regroup("student", student, relation_heads)
        teacher = _regroup("teacher", teacher, relation_heads)
    require(
        student.dim() == teacher.dim() == 4 and student.shape[:3] == teacher.shape[:3],
        "student and teacher must be [B, heads, L, d] with equal batch, heads and length (or name "
        f"relation_heads), got {shape(student)} and {shape(teacher)}",
    )
    mask = _check_heads_mask(mask, student)
    log_s, log_t = (_log_relations(values, mask) for values in (student, teacher))
    difference = log_t - log_s
    if mask is not None:
        difference = torch.where(_keys_of_real_queries(mask), difference, 0)
    return (log_t.exp() * difference).sum() / max(log_s.shape[:-1].numel(), 1)


def _log_relations(values: Tensor, mask: Tensor | None) -> Tensor:
    """Log-probabilities of the relations of real queries, `[N, heads, L]`; -inf at padding."""
    if mask is not None:
        values = torch.where(mask[:, None, :, None], values, 0)
    scores = inner_products(values / values.shape[-1] ** 0.5, values)
    if mask is not None:
        rows = scores.transpose(1, 2)[mask]
        scores = torch.where(_keys_of_real_queries(mask), rows, -torch.inf)
    return F.log_softmax(scores, dim=-1)


def _regroup(name: str, values: Tensor, heads: int) -> Tensor:
    """`[B, h, L, d]` as `[B, heads, L, h * d / heads]`."""
    check_count("relation_heads", heads)
    joined = values.transpose(1, 2).flatten(2)
    require(
        joined.shape[-1] % heads == 0,
        f"relation_heads must divide the {joined.shape[-1]} values of the {name}, got {heads}",
    )
    return joined.unflatten(-1, (heads, -1)).transpose(1, 2)


def _check_heads_mask(mask: Tensor | None, heads: Tensor) -> Tensor | None:
    """A mask `[B, L]` for what has the shape `[B, heads, L, ...]`."""
    if mask is not None:
        check_mask(mask, torch.Size([heads.shape[0], heads.shape[2]]))
    return mask


def _keys_of_real_queries(mask: Tensor) -> Tensor:
    """Which keys are real, for each real query: `[N, 1, L]`."""
    return mask[mask.nonzero()[:, 0]].unsqueeze(1)


# Objectives


def distilbert_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    student_hidden: Tensor,
    teacher_hidden: Tensor,
    *,
    attention_mask: Tensor,
    labels: Tensor,
    alpha_ce: float = 5.0,
    alpha_mlm: float = 2.0,
    alpha_cos: float = 1.0,
    temperature: float = 2.0,
) -> dict[str, Tensor]:
    r"""DistilBERT's triple loss: soft targets, masked words, and the direction of hidden states.

    .. math:: \alpha_{ce} \, \mathrm{soft} + \alpha_{mlm} \, \mathrm{CE}(z^s, y)
        + \alpha_{cos} \, (1 - \cos(h^s, h^t))

    The first and the last are means over real tokens, the second is one over the tokens that were
    masked out and must be guessed. Padding changes nothing.

    Args:
        student_logits: `[B, L, V]`.
        teacher_logits: the same shape; receives no gradient.
        student_hidden: last hidden state, `[B, L, D]`.
        teacher_hidden: the same shape; receives no gradient.
        attention_mask: `[B, L]`, true (or 1) at real tokens.
        labels: `[B, L]`, the right token where one was masked out, elsewhere -100.
        alpha_ce: weight of the soft targets. 5, 2 and 1 are those of the published command.
        alpha_mlm: weight of the masked words.
        alpha_cos: weight of the hidden states.
        temperature: `T > 0` of the soft targets.

    Returns:
        The weighted terms `{"soft", "mlm", "cosine"}`. Without a masked token `mlm` is 0.

    Raises:
        ValueError: for shapes, masks or labels that do not fit, `temperature <= 0` or a negative
            weight.

    Reference:
        Sanh, Debut, Chaumond and Wolf (2019), arXiv:1910.01108.

    Example:
        >>> logits, hidden = torch.zeros(1, 2, 4), torch.ones(1, 2, 3)
        >>> terms = distilbert_loss(
        ...     logits, logits, hidden, -hidden, attention_mask=torch.ones(1, 2).bool(),
        ...     labels=torch.tensor([[-100, 3]]),
        ... )
        >>> {name: round(term.item(), 4) for name, term in terms.items()}
        {'soft': 0.0, 'mlm': 2.7726, 'cosine': 2.0}
    """
    for name, weight in (
        ("alpha_ce", alpha_ce),
        ("alpha_mlm", alpha_mlm),
        ("alpha_cos", alpha_cos),
    ):
        check_weight(name, weight)
    check_temperature(temperature)
    check_same_shape(student_logits, teacher_logits, names=LOGITS, min_dims=3)
    check_same_shape(
        student_hidden, teacher_hidden, names=("student_hidden", "teacher_hidden"), min_dims=3
    )
    mask = _as_mask(attention_mask)
    check_mask(mask, student_logits.shape[:-1])
    check_mask(mask, student_hidden.shape[:-1])
    require(
        isinstance(labels, Tensor) and labels.shape == mask.shape,
        f"labels must have the shape {list(mask.shape)} of the mask, got "
        + (shape(labels) if isinstance(labels, Tensor) else type(labels).__name__),
    )
    masked = labels != IGNORED
    guesses, right = widen(student_logits)[masked], labels[masked]
    check_labels(right, guesses)
    words = F.cross_entropy(guesses, right, reduction="sum") / max(len(right), 1)
    soft = soft_target_loss(student_logits, teacher_logits, temperature=temperature, mask=mask)
    return {
        "soft": alpha_ce * soft,
        "mlm": alpha_mlm * words,
        "cosine": alpha_cos * cosine_loss(student_hidden, teacher_hidden, mask=mask),
    }


class DistilBERTObjective(nn.Module):
    """Joins `distilbert_loss` with the two masked-language models it compares.

    Called with a batch, a dict of `input_ids`, `attention_mask` and `labels` (-100 at tokens that
    are not to be guessed), perhaps of more that the models take. Returns the weighted terms.

    Args:
        student: trained; gives `logits` and `hidden_states`.
        teacher: the same, frozen: `FrozenTeacher(model)`, or a model that will be.
        options: the weights and the temperature of `distilbert_loss`.
    """

    def __init__(self, *, student: nn.Module, teacher: nn.Module, **options: float) -> None:
        super().__init__()
        self.student = student
        self.teacher = teacher if isinstance(teacher, FrozenTeacher) else FrozenTeacher(teacher)
        self.options = options

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weighted terms of one batch."""
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        student = self.student(**inputs, output_hidden_states=True)
        teacher = self.teacher(**inputs, output_hidden_states=True)
        return distilbert_loss(
            student.logits,
            teacher.logits,
            student.hidden_states[-1],
            teacher.hidden_states[-1],
            attention_mask=batch["attention_mask"],
            labels=batch["labels"],
            **self.options,
        )


class DistilBERTTrainer:
    """The ordinary loop with DistilBERT's triple loss.

    The teacher is frozen during `fit` and handed back as it came.

    Args:
        student: a masked-language model; its output has `logits [B, L, V]` and `hidden_states`.
        teacher: the same, of equal width.
        options: the weights and the temperature of `distilbert_loss`.

    Raises:
        ValueError: if both are the same object.

    Reference:
        Sanh, Debut, Chaumond and Wolf (2019), arXiv:1910.01108.
    """

    def __init__(self, *, student: nn.Module, teacher: nn.Module, **options: float) -> None:
        require(
            student is not teacher, "student and teacher must be two networks, got the same object"
        )
        self.student = student
        self.teacher = teacher
        self.options = options

    def fit(
        self,
        train_loader: Iterable[Mapping[str, Tensor]],
        optimizer: torch.optim.Optimizer,
        epochs: int = 10,
        **options: Any,
    ) -> "pd.DataFrame":
        """Train the student; `options` are those of `fit`. Returns the history, a row an epoch.

        Each batch is a dict of `input_ids`, `attention_mask` and `labels`.
        """
        with FrozenTeacher(self.teacher) as teacher:
            objective = DistilBERTObjective(student=self.student, teacher=teacher, **self.options)
            return fit(objective, train_loader, optimizer, epochs=epochs, **options)


class NLPDistillation(nn.Module):
    """Embeddings, attention and hidden states of two transformers, weighed against each other.

    Args:
        embedding: weight of `embedding_loss` on the first hidden state, that of the embeddings.
        attention: weight of `attention_loss` with probabilities, mean over the student's layers.
        hidden: weight of `hidden_state_loss` on the states of the layers.
        layer_map: index of the teacher state for each student state, the embeddings being state
            0; `uniform_layer_map` unless told. Layer `i` is compared where state `i + 1` is.
        projector: brings the student's states into the teacher's width; trains with the student.

    Called with the outputs of student and teacher (fields `hidden_states` and `attentions`) and
    an `attention_mask [B, L]` or None. Returns the weighted terms; one of weight 0 is left out, and
    what it would need may be missing.

    Raises:
        ValueError: for a negative weight, no weight above 0, or states that do not fit.

    Reference:
        Jiao et al. (2020), arXiv:1909.10351; Wang et al. (2020), arXiv:2002.10957.

    Example:
        >>> from types import SimpleNamespace
        >>> student = SimpleNamespace(hidden_states=[torch.zeros(1, 2, 3)] * 2)
        >>> teacher = SimpleNamespace(hidden_states=[torch.ones(1, 2, 3)] * 3)
        >>> objective = NLPDistillation(embedding=0.5, attention=0.0)
        >>> {name: term.item() for name, term in objective(student, teacher).items()}
        {'embedding': 0.5, 'hidden': 1.0}
    """

    def __init__(
        self,
        *,
        embedding: float = 1.0,
        attention: float = 1.0,
        hidden: float = 1.0,
        layer_map: Sequence[int] | None = None,
        projector: HiddenStateProjector | None = None,
    ) -> None:
        super().__init__()
        self.weights = {"embedding": embedding, "attention": attention, "hidden": hidden}
        for name, weight in self.weights.items():
            check_weight(name, weight)
        require(
            any(self.weights.values()),
            "one of embedding, attention and hidden must be above 0, got 0 for all",
        )
        self.layer_map = layer_map
        self.projector = projector

    def forward(
        self, student: Any, teacher: Any, attention_mask: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The weighted terms of one batch's outputs."""
        mask = None if attention_mask is None else _as_mask(attention_mask)
        states, teacher_states = student.hidden_states, teacher.hidden_states
        layer_map = self.layer_map
        if layer_map is None:
            layer_map = uniform_layer_map(len(states), len(teacher_states))
        _check_layer_map("layer_map", layer_map, len(states), len(teacher_states))
        require(
            len(states) >= 2 and min(layer_map[1:]) >= 1,
            "layer_map must lead the student's layers to layers of the teacher, not to its "
            f"embeddings, got {list(layer_map)}",
        )
        if self.projector is not None:
            states = self.projector(states)
        terms = {}
        if self.weights["embedding"]:
            terms["embedding"] = embedding_loss(states[0], teacher_states[layer_map[0]], mask=mask)
        if self.weights["attention"]:
            pairs = zip(student.attentions, layer_map[1:], strict=True)
            losses = [attention_loss(s, teacher.attentions[j - 1], mask=mask) for s, j in pairs]
            terms["attention"] = torch.stack(losses).mean()
        if self.weights["hidden"]:
            terms["hidden"] = hidden_state_loss(
                states[1:], teacher_states, layer_map=layer_map[1:], mask=mask
            )
        return {name: self.weights[name] * term for name, term in terms.items()}


def _as_mask(attention_mask: Tensor) -> Tensor:
    """The 0 and 1 of a tokenizer as a boolean mask."""
    require(
        isinstance(attention_mask, Tensor) and not attention_mask.is_floating_point(),
        "attention_mask must be a boolean tensor, or one of the whole numbers 0 and 1, got "
        + (
            str(attention_mask.dtype)
            if isinstance(attention_mask, Tensor)
            else type(attention_mask).__name__
        ),
    )
    return attention_mask.bool()


# Distributions over a vocabulary


def generalized_jsd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    beta: float = 0.5,
    temperature: float = 1.0,
    mask: Tensor | None = None,
) -> Tensor:
    r"""Jensen-Shannon divergence between teacher and student, tilted by `beta`.

    .. math:: \beta \, \mathrm{KL}(P^t \,\|\, M) + (1 - \beta) \, \mathrm{KL}(P^s \,\|\, M),
        \qquad M = \beta P^t + (1 - \beta) P^s

    At the ends the formula is 0, so there it stands for its limit after division by `beta` or
    `1 - beta`: `beta=0` is KL(teacher ‖ student), which wants the student to cover all that the
    teacher may say, and `beta=1` is KL(student ‖ teacher), which wants it to say nothing that the
    teacher would not.

    Args:
        student_logits: `[..., V]`, with on-policy distillation at tokens that the student chose.
        teacher_logits: the same shape; receives no gradient.
        beta: in [0, 1].
        temperature: `T > 0`; there is no factor T² here, as in the paper.
        mask: boolean, `[...]`, true where a position counts. None: all.

    Returns:
        A 0-d tensor, at least 0, the mean over the positions; 0 for an empty mask.

    Raises:
        ValueError: for unequal shapes, a mask that does not fit, `beta` outside [0, 1] or
            `temperature <= 0`.

    Reference:
        Agarwal et al. (2024), "On-Policy Distillation of Language Models: Learning from
        Self-Generated Mistakes", arXiv:2306.13649.

    Example:
        >>> student, teacher = torch.zeros(1, 2), torch.tensor([[2.0, 0.0]])
        >>> [round(generalized_jsd_loss(student, teacher, beta=b).item(), 4) for b in (0, 0.5, 1)]
        [0.3278, 0.0895, 0.4338]
    """
    student, teacher = check_same_shape(student_logits, teacher_logits, names=LOGITS)
    check_weight("beta", beta, high=1.0)
    check_temperature(temperature)
    if mask is not None:
        check_mask(mask, student.shape[:-1])
        student, teacher = student[mask], teacher[mask]
    log_s, log_t = (F.log_softmax(z / temperature, dim=-1) for z in (student, teacher))
    if beta == 0:
        divergence = _divergence(log_t, log_s)
    elif beta == 1:
        divergence = _divergence(log_s, log_t)
    else:
        shares = log_s.new_tensor([beta, 1 - beta]).log()
        mixture = torch.logaddexp(log_t + shares[0], log_s + shares[1])
        divergence = beta * _divergence(log_t, mixture) + (1 - beta) * _divergence(log_s, mixture)
    return divergence / max(student.shape[:-1].numel(), 1)


def _divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p ‖ q), summed over all positions."""
    return F.kl_div(log_q, log_p, reduction="sum", log_target=True)


def top_k_targets(
    teacher_logits: Tensor, k: int, *, temperature: float = 4.0
) -> tuple[Tensor, Tensor]:
    """What to keep of a teacher's answers: its k largest log-probabilities, and which they are.

    Args:
        teacher_logits: `[..., V]`.
        k: how many, at most V.
        temperature: `T > 0`, the one that the student will be trained with.

    Returns:
        Log-probabilities and their indices, both `[..., k]`.

    Raises:
        ValueError: for a `k` below 1 or above V, or `temperature <= 0`.

    Example:
        >>> values, indices = top_k_targets(torch.tensor([[0.0, 2.0, 1.0]]), 2, temperature=1.0)
        >>> indices, values.exp()
        (tensor([[1, 2]]), tensor([[0.6652, 0.2447]]))
    """
    check_floating("teacher_logits", teacher_logits)
    check_temperature(temperature)
    check_count("k", k)
    require(
        teacher_logits.dim() >= 1 and k <= teacher_logits.shape[-1],
        f"k must be at most the size of the last dimension, got {k} and {shape(teacher_logits)}",
    )
    logits = widen(teacher_logits.detach()) / temperature
    values, indices = logits.topk(k, dim=-1)
    return values - logits.logsumexp(-1, keepdim=True), indices


def top_k_soft_target_loss(
    student_logits: Tensor,
    top_values: Tensor,
    top_indices: Tensor,
    *,
    temperature: float = 4.0,
    mask: Tensor | None = None,
) -> Tensor:
    r"""The soft-target loss from the teacher's k largest probabilities and one cell for the rest.

    .. math:: T^2 \cdot \frac1N \sum_n \Big(\sum_{i \le k} p^t_{ni} \log \frac{p^t_{ni}}{p^s_{ni}}
        + r^t_n \log \frac{r^t_n}{r^s_n}\Big), \qquad r = 1 - \sum_{i \le k} p_i

    What the student does inside the rest costs nothing, so this is at most the whole loss, and
    equal to it when k is V or V - 1. Without the cell for the rest, the student would be told that
    everything else is impossible.

    Args:
        student_logits: `[..., V]`.
        top_values: the teacher's k largest log-probabilities at `temperature`, `[..., k]`, see
            `top_k_targets`.
        top_indices: where they belong, integers in `[0, V)`, each once, `[..., k]`.
        temperature: `T > 0`, that of `top_values`.
        mask: boolean, `[...]`, true where a position counts. None: all.

    Returns:
        A 0-d tensor, at least 0 up to rounding; 0 for an empty mask.

    Raises:
        ValueError: for shapes, indices or a mask that do not fit, values above 0, or
            `temperature <= 0`.

    Example:
        >>> student, teacher = torch.zeros(1, 3), torch.tensor([[3.0, 1.0, 0.0]])
        >>> targets = top_k_targets(teacher, 1, temperature=1.0)
        >>> round(top_k_soft_target_loss(student, *targets, temperature=1.0).item(), 4)
        0.557
    """
    check_floating("student_logits", student_logits)
    check_floating("top_values", top_values)
    check_temperature(temperature)
    student, values = widen(student_logits), widen(top_values.detach())
    require(
        student.dim() >= 1
        and student.numel() > 0
        and values.dim() == student.dim()
        and values.shape[:-1] == student.shape[:-1]
        and 1 <= values.shape[-1] <= student.shape[-1],
        "top_values must be [..., k] for student_logits [..., V] with k from 1 to V, "
        f"got {shape(values)} and {shape(student)}",
    )
    require(
        top_indices.shape == values.shape and top_indices.dtype == torch.int64,
        f"top_indices must be int64 of the shape of top_values {shape(values)}, "
        f"got {top_indices.dtype} of shape {shape(top_indices)}",
    )
    if mask is not None:
        check_mask(mask, student.shape[:-1])
        student, values, top_indices = student[mask], values[mask], top_indices[mask]
    if top_indices.numel() > 0 and not torch.compiler.is_compiling():
        require(
            int(top_indices.min()) >= 0 and int(top_indices.max()) < student.shape[-1],
            f"top_indices must lie between 0 and {student.shape[-1] - 1}, got values from "
            f"{int(top_indices.min())} to {int(top_indices.max())}",
        )
        require(
            bool(values.max() <= 1e-6),
            f"top_values must be log-probabilities, at most 0, got {values.max():.4g}: "
            "see top_k_targets",
        )
    scaled = student / temperature
    normalizer = scaled.logsumexp(-1)
    kept = scaled.gather(-1, top_indices) - normalizer[..., None]
    target = values.exp()
    total = (target * (values - kept)).sum()
    if top_indices.shape[-1] < student.shape[-1]:
        rest = scaled.scatter(-1, top_indices, -torch.inf).logsumexp(-1) - normalizer
        rest_target = (1 - target.sum(-1)).clamp_min(0)
        total = total - (torch.special.entr(rest_target) + rest_target * rest).sum()
    return total * (temperature**2 / max(student.shape[:-1].numel(), 1))


def chunked_soft_target_loss(
    student_hidden: Tensor,
    student_weight: Tensor,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    *,
    chunk_size: int = 64,
    temperature: float = 4.0,
    mask: Tensor | None = None,
) -> Tensor:
    r"""The soft-target loss of `hidden @ weight.T` without ever holding all logits.

    Equals `soft_target_loss(student_hidden @ student_weight.T, teacher_hidden @ teacher_weight.T)`
    and has its gradients. They are computed on the way, `chunk_size` positions at a time, so memory
    beyond inputs and gradients is that of a chunk's logits, however long the texts are. The
    gradient of the loss with respect to a student logit is :math:`T (p^s - p^t) / N`.

    Args:
        student_hidden: `[..., D_s]`.
        student_weight: output matrix, `[V, D_s]`.
        teacher_hidden: `[..., D_t]`; receives no gradient.
        teacher_weight: `[V, D_t]`; receives no gradient.
        chunk_size: positions at a time, at least 1.
        temperature: `T > 0`.
        mask: boolean, `[...]`, true where a position counts. None: all.

    Returns:
        A 0-d tensor, at least 0; 0 for an empty mask. It can be differentiated once.

    Raises:
        ValueError: for shapes or a mask that do not fit, a `chunk_size` below 1 or
            `temperature <= 0`.

    Example:
        >>> hidden, weight = torch.tensor([[1.0, 2.0]]), torch.eye(2)
        >>> loss = chunked_soft_target_loss(hidden, weight, -hidden, weight, temperature=1.0)
        >>> round(loss.item(), 4)
        0.4621
    """
    check_count("chunk_size", chunk_size)
    check_temperature(temperature)
    sides = []
    for name, hidden, weight in (
        ("student", student_hidden, student_weight),
        ("teacher", teacher_hidden, teacher_weight),
    ):
        check_floating(f"{name}_hidden", hidden)
        check_floating(f"{name}_weight", weight)
        require(
            hidden.dim() >= 1 and weight.dim() == 2 and hidden.shape[-1] == weight.shape[1],
            f"{name}_hidden [..., D] and {name}_weight [V, D] must have the same D, "
            f"got {shape(hidden)} and {shape(weight)}",
        )
        sides.append((widen(hidden), widen(weight)))
    (student, weight_s), (teacher, weight_t) = sides
    require(
        student.shape[:-1] == teacher.shape[:-1] and len(weight_s) == len(weight_t) > 0,
        "student and teacher must have the same positions and vocabulary, got hidden states "
        f"{shape(student)} and {shape(teacher)}, vocabularies of {len(weight_s)} and "
        f"{len(weight_t)}",
    )
    if mask is not None:
        check_mask(mask, student.shape[:-1])
        student, teacher = student[mask], teacher[mask]
    return _ChunkedLoss.apply(
        student.reshape(-1, student.shape[-1]),
        weight_s,
        teacher.reshape(-1, teacher.shape[-1]),
        weight_t,
        chunk_size,
        temperature,
    )


class _ChunkedLoss(torch.autograd.Function):
    """Loss and gradients chunk by chunk; the backward pass only scales the gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        student_weight: Tensor,
        teacher: Tensor,
        teacher_weight: Tensor,
        chunk_size: int,
        temperature: float,
    ) -> Tensor:
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        hidden_grad = torch.empty_like(student) if needs_hidden else None
        weight_grad = torch.zeros_like(student_weight) if needs_weight else None
        total = student.new_zeros(())
        positions = max(len(student), 1)
        for start in range(0, len(student), chunk_size):
            rows = slice(start, start + chunk_size)
            log_s = _token_log_probabilities(student[rows], student_weight, temperature)
            log_t = _token_log_probabilities(teacher[rows], teacher_weight, temperature)
            total += _divergence(log_t, log_s)
            difference = log_s.exp_().sub_(log_t.exp_()).mul_(temperature / positions)
            with torch.autocast(student.device.type, enabled=False):
                if hidden_grad is not None:
                    hidden_grad[rows] = difference @ student_weight
                if weight_grad is not None:
                    weight_grad.addmm_(difference.T, student[rows])
        ctx.save_for_backward(hidden_grad, weight_grad)
        return total * (temperature**2 / positions)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight = (None if x is None else x * gradient for x in ctx.saved_tensors)
        return hidden, weight, None, None, None, None


def _token_log_probabilities(hidden: Tensor, weight: Tensor, temperature: float) -> Tensor:
    return F.log_softmax(inner_products(hidden, weight).div_(temperature), dim=-1)
