"""Relations: the student learns how the teacher arranges examples, not where it puts each one.

Chapter: "Relations". Every loss here compares examples of a batch with one another, so student and
teacher may have different widths. An embedding is `[B, D]`; a feature map is flattened to one.
The contrastive modules, `CRDLoss` and `InstanceCRDLoss`, also compare with examples of the past.
"""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ._checks import (
    check_count,
    check_frozen,
    check_same_batch,
    check_temperature,
    check_weight,
    inner_products,
    require,
    shape,
    unit,
    widen,
)
from .metrics import accuracy
from .soft_targets import logit_terms

if TYPE_CHECKING:
    from .training import FrozenTeacher

_TRIPLES_AT_ONCE = 2**18  # small enough for the processor's cache


def distance_loss(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Relational distillation by distances (RKD-D): who is near whom, on each side's own scale.

    .. math:: \frac{1}{B^2} \sum_{i,j} \ell\Big(
        \frac{\|s_i - s_j\|}{\mu^s}, \frac{\|t_i - t_j\|}{\mu^t}\Big)

    :math:`\mu` is the mean of the positive distances and :math:`\ell` the smooth-L1 loss. Examples
    that coincide have distance 0 and no gradient; coincide means, in float32, closer than about
    0.3 % of their distances from the middle of the batch.

    Args:
        student: `[B, D_s]` or anything that flattens to it, B >= 2.
        teacher: `[B, D_t]`; receives no gradient.

    Returns:
        A 0-d tensor, at least 0. Finite for a collapsed batch, where all distances are 0.

    Raises:
        ValueError: for unequal batches or a batch below 2.

    Reference:
        Park, Kim, Lu and Cho (2019), "Relational Knowledge Distillation", arXiv:1904.05068.

    Example:
        >>> student = torch.tensor([[0.0], [1.0], [2.0]])
        >>> distance_loss(student, 10 * student).item()  # the same shape
        0.0
        >>> round(distance_loss(student, torch.tensor([[0.0], [1.0], [5.0]])).item(), 4)
        0.045
    """
    student, teacher = _embeddings(student, teacher)
    distances_s, distances_t = (_relative_distances(x) for x in (student, teacher))
    return F.smooth_l1_loss(distances_s, distances_t)


def angle_loss(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Relational distillation by angles (RKD-A): the corners of all triangles in the batch.

    .. math:: \frac{1}{B^3} \sum_{a,i,j} \ell\big(\cos\angle(s_i, s_a, s_j),
        \cos\angle(t_i, t_a, t_j)\big), \qquad
        \cos\angle(x_i, x_a, x_j) = \frac{(x_i - x_a)^\top (x_j - x_a)}{\|x_i - x_a\| \|x_j - x_a\|}

    :math:`\ell` is the smooth-L1 loss. A corner with a side of length 0 counts as cosine 0 and has
    no gradient. All products come from one centred Gram matrix, for a few anchors `a` at a time
    and again in the backward pass, so memory grows with `B²`.

    Args:
        student: `[B, D_s]` or anything that flattens to it, B >= 3.
        teacher: `[B, D_t]`; receives no gradient.

    Returns:
        A 0-d tensor, at least 0.

    Raises:
        ValueError: for unequal batches or a batch below 3.

    Reference:
        Park, Kim, Lu and Cho (2019), "Relational Knowledge Distillation", arXiv:1904.05068.

    Example:
        >>> right = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> straight = torch.tensor([[0.0], [1.0], [2.0]])
        >>> round(angle_loss(right, straight).item(), 4)
        0.1296
    """
    student, teacher = _embeddings(student, teacher, minimum=3)
    gram_s, distances_s = _gram_and_distances(student)
    gram_t, distances_t = _gram_and_distances(teacher)
    sides_s, sides_t = _inverse(distances_s), _inverse(distances_t)
    anchors = torch.arange(len(student), device=student.device)
    total = student.new_zeros(())
    for some in anchors.split(max(1, _TRIPLES_AT_ONCE // len(student) ** 2)):
        total = total + checkpoint(
            _angle_sum,
            *(gram_s, sides_s, gram_t, sides_t, some),
            use_reentrant=False,
            preserve_rng_state=False,
        )
    return total / len(student) ** 3


def gram_loss(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Mean squared difference of Gram matrices, each divided by its Frobenius norm.

    .. math:: \frac{1}{B^2} \Big\| \frac{S S^\top}{\|S S^\top\|_F}
        - \frac{T T^\top}{\|T T^\top\|_F} \Big\|_F^2

    Often presented as "angle-wise"; it sees no angles between triples. The entries of a normalised
    matrix shrink as the batch grows, so the loss shrinks like :math:`1 / B^2` and a weight that
    suits one batch size switches it off at another.

    Args:
        student: `[B, D_s]` or anything that flattens to it, B >= 2.
        teacher: `[B, D_t]`; receives no gradient.

    Returns:
        A 0-d tensor in [0, 4 / B²].

    Raises:
        ValueError: for unequal batches or a batch below 2.

    Reference:
        No paper: a common reading of Park et al. (2019), arXiv:1904.05068.

    Example:
        >>> gram_loss(torch.eye(2), torch.tensor([[1.0], [0.0]])).item()
        0.1464...
    """
    grams = (inner_products(x, x).flatten() for x in _embeddings(student, teacher))
    gram_s, gram_t = (unit(gram) for gram in grams)
    return F.mse_loss(gram_s, gram_t)


def similarity_preserving_loss(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Similarity-preserving distillation (SP): equal rows of normalised inner products.

    .. math:: \frac{1}{B^2} \|G^s - G^t\|_F^2, \qquad
        G_{i,:} = \frac{(X X^\top)_{i,:}}{\|(X X^\top)_{i,:}\|_2}

    Args:
        student: `[B, D_s]` or anything that flattens to it, B >= 2.
        teacher: `[B, D_t]`; receives no gradient.

    Returns:
        A 0-d tensor in [0, 4 / B].

    Raises:
        ValueError: for unequal batches or a batch below 2.

    Reference:
        Tung and Mori (2019), "Similarity-Preserving Knowledge Distillation", arXiv:1907.09682.

    Example:
        >>> similarity_preserving_loss(torch.eye(2), torch.ones(2, 1)).item()
        0.2928...
    """
    grams = (inner_products(x, x) for x in _embeddings(student, teacher))
    gram_s, gram_t = (unit(gram) for gram in grams)
    return F.mse_loss(gram_s, gram_t)


def cosine_similarity_loss(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Mean squared difference of the two `B × B` matrices of cosines.

    .. math:: \frac{1}{B^2} \sum_{i,j} \big(\cos(s_i, s_j) - \cos(t_i, t_j)\big)^2

    Sometimes called similarity-preserving, which normalises inner products by rows instead. A zero
    row has cosine 0 with everything and no gradient.

    Args:
        student: `[B, D_s]` or anything that flattens to it, B >= 2.
        teacher: `[B, D_t]`; receives no gradient.

    Returns:
        A 0-d tensor in [0, 4].

    Raises:
        ValueError: for unequal batches or a batch below 2.

    Reference:
        Compare Tung and Mori (2019), arXiv:1907.09682, and Peng et al. (2019), arXiv:1904.01802.

    Example:
        >>> cosine_similarity_loss(torch.eye(2), torch.ones(2, 1)).item()
        0.5
    """
    cosines_s, cosines_t = (_cosines(x) for x in _embeddings(student, teacher))
    return F.mse_loss(cosines_s, cosines_t)


def pkt_loss(student: Tensor, teacher: Tensor, *, eps: float = 1e-7) -> Tensor:
    r"""Probabilistic knowledge transfer (PKT): cosines as probabilities of being neighbours.

    .. math:: \frac{1}{B^2} \sum_{i,j} p^t_{ij}
        \log \frac{p^t_{ij} + \epsilon}{p^s_{ij} + \epsilon},
        \qquad p_{ij} = \frac{1 + \cos(x_i, x_j)}{\sum_k (1 + \cos(x_i, x_k))}

    Args:
        student: `[B, D_s]` or anything that flattens to it, B >= 2.
        teacher: `[B, D_t]`; receives no gradient.
        eps: above 0; keeps the logarithm finite for opposite examples.

    Returns:
        A 0-d tensor, at least 0 up to `eps`.

    Raises:
        ValueError: for unequal batches, a batch below 2 or `eps <= 0`.

    Reference:
        Passalis and Tefas (2018), "Learning Deep Representations with Probabilistic Knowledge
        Transfer", arXiv:1803.10837.

    Example:
        >>> round(pkt_loss(torch.eye(2), torch.ones(2, 1)).item(), 4)
        0.0294
    """
    check_temperature(eps, name="eps")
    neighbours = ((1 + _cosines(x)).clamp(min=0) for x in _embeddings(student, teacher))
    student, teacher = (n / n.sum(1, keepdim=True) for n in neighbours)
    return (teacher * ((teacher + eps).log() - (student + eps).log())).mean()


def correlation_congruence_loss(
    student: Tensor, teacher: Tensor, *, gamma: float = 0.4, order: int = 2
) -> Tensor:
    r"""Correlation congruence (CC): equal Gaussian kernels between examples, as a Taylor sum.

    .. math:: \frac{1}{B^2} \sum_{i,j} (K^s_{ij} - K^t_{ij})^2, \qquad
        K_{ij} = e^{-2\gamma} \sum_{p=0}^{P} \frac{(2\gamma)^p}{p!} \cos(x_i, x_j)^p
        \approx e^{-\gamma \|\hat x_i - \hat x_j\|^2}

    Args:
        student: `[B, D_s]` or anything that flattens to it, B >= 2.
        teacher: `[B, D_t]`; receives no gradient.
        gamma: sharpness of the kernel, above 0.
        order: P >= 1, the number of powers kept.

    Returns:
        A 0-d tensor, at least 0.

    Raises:
        ValueError: for unequal batches, a batch below 2, `gamma <= 0` or `order < 1`.

    Reference:
        Peng et al. (2019), "Correlation Congruence for Knowledge
        Distillation", arXiv:1904.01802.

    Example:
        >>> round(correlation_congruence_loss(torch.eye(2), torch.ones(2, 1)).item(), 4)
        0.1266
    """
    check_temperature(gamma, name="gamma")
    check_count("order", order)
    student, teacher = (
        _taylor_exponential(2 * gamma * _cosines(x), order) for x in _embeddings(student, teacher)
    )
    return math.exp(-4 * gamma) * F.mse_loss(student, teacher)


class RelationDistillation(nn.Module):
    """Weighted sum of relation losses on one pair of embeddings.

    Args:
        distance: weight of `distance_loss`.
        angle: weight of `angle_loss`.
        similarity: weight of `similarity_preserving_loss`.

    Called with `(student [B, D_s], teacher [B, D_t])`. Returns the weighted terms by these names;
    a weight of 0 leaves its term out.

    Raises:
        ValueError: for negative weights or none above 0.

    Reference:
        Park et al. (2019), arXiv:1904.05068, with their weights; Tung and Mori (2019),
        arXiv:1907.09682.

    Example:
        >>> student = torch.tensor([[0.0], [1.0], [2.0]])
        >>> terms = RelationDistillation()(student, torch.tensor([[0.0], [1.0], [5.0]]))
        >>> {name: round(term.item(), 3) for name, term in terms.items()}
        {'distance': 1.125, 'angle': 0.0}
    """

    def __init__(
        self, *, distance: float = 25.0, angle: float = 50.0, similarity: float = 0.0
    ) -> None:
        super().__init__()
        weights = {"distance": distance, "angle": angle, "similarity": similarity}
        for name, weight in weights.items():
            check_weight(name, weight)
        require(
            any(weights.values()),
            f"distance, angle and similarity must not all be 0, got {weights}",
        )
        self.distance = distance
        self.angle = angle
        self.similarity = similarity

    def forward(self, student: Tensor, teacher: Tensor) -> dict[str, Tensor]:
        """The weighted terms for one batch."""
        terms = {}
        if self.distance > 0:
            terms["distance"] = self.distance * distance_loss(student, teacher)
        if self.angle > 0:
            terms["angle"] = self.angle * angle_loss(student, teacher)
        if self.similarity > 0:
            terms["similarity"] = self.similarity * similarity_preserving_loss(student, teacher)
        return terms

    def extra_repr(self) -> str:
        """The weights, for `print(objective)`."""
        return f"distance={self.distance}, angle={self.angle}, similarity={self.similarity}"


class CRDLoss(nn.Module):
    r"""Contrastive distillation with a queue: find your own teacher embedding among past ones.

    .. math:: -\frac{1}{B} \sum_i \log \frac{\exp(u_i^\top v_i / T)}
        {\exp(u_i^\top v_i / T) + \sum_k \exp(u_i^\top m_k / T)}

    `u` and `v` are student and teacher features after a two-layer head each, divided by their
    norm; `m` are the rows of the queue, teacher embeddings of earlier batches. The objective is the
    paper's idea with the queue of momentum contrast; `InstanceCRDLoss` has the paper's own banks.

    Args:
        student_dim: width of the student's features.
        teacher_dim: width of the teacher's features.
        feature_dim: width of the common space.
        num_negatives: rows of the queue.
        temperature: `T > 0`.

    Called with `(student [B, student_dim], teacher [B, teacher_dim], indices=None)`. Returns
    `{"crd": loss}`. `indices [B]` are the examples' numbers in the data set: with them a row that
    holds an example's own earlier embedding is no negative for it. In training mode the batch then
    replaces the oldest rows of the queue; of a batch larger than the queue, its last rows. Where
    several processes train together (`torch.distributed`), the batches of all enter every queue.

    The buffer `memory_bank [num_negatives, feature_dim]` holds unit vectors at all times, random
    ones until they are replaced. Both heads train, the teacher's features and the queue do not.

    Raises:
        ValueError: for features or indices that do not fit, or sizes and temperature below limits.

    Reference:
        Tian, Krishnan and Isola (2020), "Contrastive Representation Distillation",
        arXiv:1910.10699; the queue: He, Fan, Wu, Xie and Girshick (2020), "Momentum Contrast for
        Unsupervised Visual Representation Learning", arXiv:1911.05722.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> objective = CRDLoss(student_dim=8, teacher_dim=16, feature_dim=4, num_negatives=32)
        >>> terms = objective(torch.randn(5, 8), torch.randn(5, 16))
        >>> terms["crd"].shape, objective.memory_bank.shape
        (torch.Size([]), torch.Size([32, 4]))
    """

    memory_bank: Tensor
    memory_indices: Tensor
    oldest: Tensor

    def __init__(
        self,
        student_dim: int,
        teacher_dim: int,
        feature_dim: int = 128,
        num_negatives: int = 16384,
        temperature: float = 0.07,
    ) -> None:
        super().__init__()
        check_count("num_negatives", num_negatives)
        check_temperature(temperature)
        self.student_head = _head("student_dim", student_dim, feature_dim)
        self.teacher_head = _head("teacher_dim", teacher_dim, feature_dim)
        self.temperature = temperature
        self.register_buffer("memory_bank", unit(torch.randn(num_negatives, feature_dim)))
        self.register_buffer("memory_indices", torch.full((num_negatives,), -1))
        self.register_buffer("oldest", torch.zeros((), dtype=torch.long))

    def forward(
        self, student: Tensor, teacher: Tensor, indices: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The loss of one batch; in training mode the batch then enters the queue."""
        student, teacher = check_same_batch(student, teacher)
        queries = _project("student", self.student_head, student)
        keys = _project("teacher", self.teacher_head, teacher)
        positives = (queries * keys).sum(1, keepdim=True)  # [B, 1]
        negatives = inner_products(queries, self.memory_bank)  # [B, num_negatives]
        if indices is not None:
            _check_indices(indices, len(student))
            own = indices[:, None] == self.memory_indices
            negatives = negatives.masked_fill(own, -math.inf)
        scores = torch.cat((positives, negatives), dim=1) / self.temperature
        target = torch.zeros(len(scores), dtype=torch.long, device=scores.device)
        if self.training:
            self._enqueue(keys.detach(), indices)
        return {"crd": F.cross_entropy(scores, target)}

    def _enqueue(self, keys: Tensor, indices: Tensor | None) -> None:
        """Replace the oldest rows, in new tensors: the backward pass still needs the old ones."""
        size = len(self.memory_bank)
        if indices is None:
            indices = torch.full((len(keys),), -1, device=keys.device)
        keys, indices = _of_all_processes(keys)[-size:], _of_all_processes(indices)[-size:]
        rows = (self.oldest + torch.arange(len(keys), device=keys.device)) % size
        self.memory_bank = self.memory_bank.index_copy(0, rows, keys)
        self.memory_indices = self.memory_indices.index_copy(0, rows, indices)
        self.oldest = (self.oldest + len(keys)) % size


class InstanceCRDLoss(nn.Module):
    r"""The contrastive distillation of the paper: memory banks by example, and an NCE critic.

    .. math:: -\frac{1}{B} \sum_i \Big[ \log h(u_i, m^t_i)
        + \sum_{k=1}^{K} \log\big(1 - h(u_i, m^t_{n_{ik}})\big) \Big] + \text{the same with }
        v_i, m^s, \qquad h(u, m) = \frac{e^{u^\top m / T} / Z}{e^{u^\top m / T} / Z + K / N}

    `u` and `v` are student and teacher features after a linear head each, divided by their norm.
    The banks `m` hold one unit vector for each of the N examples on each side, moving averages of
    past `u` and `v`: the student is compared with the teacher's bank and the teacher with the
    student's. Z makes the first training batch's scores :math:`e^{u^\top m / T}` average to
    :math:`Z / N` and stays.

    The negatives :math:`n_{ik}` are drawn uniformly from all other examples, so with C equally
    frequent classes about one in C is of the example's own class. With `labels` they are drawn from
    the other classes only, as in the authors' code (`dataset/cifar100.py` in
    HobbitLong/RepDistiller).

    Scores with the whole bank are one matrix product, from which the negatives are picked: picking
    their vectors first would copy `B · K · feature_dim` numbers on each side.

    Args:
        num_samples: N >= 2, examples in the data set.
        student_dim: width of the student's features.
        teacher_dim: width of the teacher's features.
        feature_dim: width of the common space.
        num_negatives: K, drawn for each example; may exceed N.
        temperature: `T > 0`.
        momentum: share of the old value when a bank is updated, in [0, 1].
        labels: `[N]`, the class of each example, whole numbers; None: negatives from all others.

    Called with `(student [B, student_dim], teacher [B, teacher_dim], indices [B])` and optionally
    the `generator` that draws the negatives. Returns `{"crd": loss}`. In training mode the batch
    then updates its rows of both banks; where several processes train together
    (`torch.distributed`), the batches of all update every process's banks.

    Raises:
        ValueError: for features or indices that do not fit, or settings out of range.

    Reference:
        Tian, Krishnan and Isola (2020), "Contrastive Representation Distillation",
        arXiv:1910.10699.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> objective = InstanceCRDLoss(100, student_dim=8, teacher_dim=16, num_negatives=10)
        >>> terms = objective(torch.randn(5, 8), torch.randn(5, 16), torch.arange(5))
        >>> terms["crd"].shape, objective.student_bank.shape
        (torch.Size([]), torch.Size([100, 128]))
    """

    student_bank: Tensor
    teacher_bank: Tensor
    log_z: Tensor
    order: Tensor | None
    first: Tensor
    size: Tensor

    def __init__(
        self,
        num_samples: int,
        student_dim: int,
        teacher_dim: int,
        feature_dim: int = 128,
        num_negatives: int = 16384,
        temperature: float = 0.07,
        momentum: float = 0.5,
        labels: Tensor | None = None,
    ) -> None:
        super().__init__()
        check_count("num_samples", num_samples, minimum=2)
        check_count("num_negatives", num_negatives)
        check_temperature(temperature)
        check_weight("momentum", momentum, high=1.0)
        for name, width in (
            ("student_dim", student_dim),
            ("teacher_dim", teacher_dim),
            ("feature_dim", feature_dim),
        ):
            check_count(name, width)
        self.student_head = nn.Linear(student_dim, feature_dim)
        self.teacher_head = nn.Linear(teacher_dim, feature_dim)
        self.num_negatives = num_negatives
        self.temperature = temperature
        self.momentum = momentum
        self.register_buffer("student_bank", unit(torch.randn(num_samples, feature_dim)))
        self.register_buffer("teacher_bank", unit(torch.randn(num_samples, feature_dim)))
        self.register_buffer("log_z", torch.full((2,), math.nan))  # student's, teacher's
        order = first = size = None
        if labels is not None:
            order, first, size = _by_class(labels, num_samples)
        self.register_buffer("order", order, persistent=False)  # the examples, class by class
        self.register_buffer("first", first, persistent=False)  # of each one's class, in order
        self.register_buffer("size", size, persistent=False)  # of each one's class

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        indices: Tensor,
        *,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """The loss of one batch; in training mode its rows of the banks move afterwards."""
        student, teacher = check_same_batch(student, teacher)
        _check_indices(indices, len(student), high=len(self.student_bank))
        u = _project("student", self.student_head, student)
        v = _project("teacher", self.teacher_head, teacher)
        chosen = torch.cat((indices[:, None], self._draw_negatives(indices, generator)), dim=1)
        log_scores = torch.stack(
            [
                inner_products(anchors, bank).gather(1, chosen) / self.temperature
                for anchors, bank in ((u, self.teacher_bank), (v, self.student_bank))
            ]
        )  # [2, B, 1 + K]
        log_z = self._log_normaliser(log_scores.detach())
        log_noise = math.log(self.num_negatives / len(self.student_bank))
        logits = log_scores - (log_z + log_noise)[:, None, None]
        if self.training:
            moving = _of_all_processes(indices)
            u, v = _of_all_processes(u.detach()), _of_all_processes(v.detach())
            self.student_bank = self._moved(self.student_bank, moving, u)
            self.teacher_bank = self._moved(self.teacher_bank, moving, v)
        losses = F.softplus(-logits[..., 0]).sum() + F.softplus(logits[..., 1:]).sum()
        return {"crd": losses / len(student)}

    def _draw_negatives(self, indices: Tensor, generator: torch.Generator | None) -> Tensor:
        """Examples other than each one itself, or its class, uniformly, `[B, num_negatives]`."""
        if self.order is not None:
            first, size = self.first[indices, None], self.size[indices, None]
            shares = torch.rand(
                len(indices),
                self.num_negatives,
                generator=generator,
                device=indices.device,
                dtype=torch.float64,
            )
            place = (shares * (len(self.order) - size)).long()
            return self.order[place + size * (place >= first)]
        drawn = torch.randint(
            len(self.student_bank) - 1,
            (len(indices), self.num_negatives),
            generator=generator,
            device=indices.device,
        )
        return drawn + (drawn >= indices[:, None])

    def _log_normaliser(self, log_scores: Tensor) -> Tensor:
        """The logarithm of Z on both sides: the first training batch fixes it."""
        if not self.log_z.isnan().any():
            return self.log_z
        flat = log_scores.flatten(1)
        if self.training:
            flat = _of_all_processes(flat, dim=1)
        log_z = flat.logsumexp(1) + math.log(len(self.student_bank) / flat.shape[1])
        if self.training:
            self.log_z = log_z
        return log_z

    def _moved(self, bank: Tensor, indices: Tensor, embeddings: Tensor) -> Tensor:
        """The bank with some rows moved, as a new tensor: the backward pass needs the old one."""
        moved = self.momentum * bank[indices] + (1 - self.momentum) * embeddings
        return bank.index_copy(0, indices, unit(moved))


def _by_class(labels: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The examples class by class, and of each one's class the first place there and its size."""
    require(
        labels.shape == (count,) and not labels.is_floating_point(),
        f"labels must be whole numbers [{count}], one for each example, got {shape(labels)} of "
        f"{labels.dtype}",
    )
    _, kind, sizes = labels.unique(return_inverse=True, return_counts=True)
    require(
        len(sizes) > 1,
        "labels must hold at least two classes: negatives are of another one",
    )
    return labels.argsort(stable=True), (sizes.cumsum(0) - sizes)[kind], sizes[kind]


class RelationObjective(nn.Module):
    """Joins a relation loss with the two networks whose embeddings it compares.

    Called with a batch `(inputs, labels)`, or `(inputs, labels, teacher_embeddings)` where those
    have been cached; then only the teacher's classifier runs. A further element, `indices [B]`,
    goes on to the relation loss. Returns the relation terms times `weight` beside those of the
    logits, and both accuracies, in [0, 1], as metrics.

    Args:
        student: has `embed(inputs)` and `classifier(embeddings)`; trained.
        teacher: a `FrozenTeacher` around a network that has them too.
        relation: `pkt_loss` or another function of this room, or a loss module with named terms,
            whose heads then train with the student.
        weight: of the relation terms, at least 0.
        soft: a loss module such as `SoftTargetDistillation`, called with `(student_logits,
            teacher_logits, labels)`; None: cross-entropy with the labels, the term `hard`.

    Raises:
        ValueError: for a teacher that would be trained, or a weight below 0.

    Example:
        >>> from kdcourse import FrozenTeacher
        >>> from kdcourse.models import ConvNet
        >>> student, teacher = ConvNet([4], 3), FrozenTeacher(ConvNet([8], 3))
        >>> objective = RelationObjective(student=student, teacher=teacher, relation=pkt_loss)
        >>> terms, metrics = objective((torch.randn(5, 1, 6, 6), torch.tensor([0, 1, 2, 0, 1])))
        >>> list(terms), list(metrics)
        (['hard', 'relation'], ['student_accuracy', 'teacher_accuracy'])
    """

    def __init__(
        self,
        *,
        student: nn.Module,
        teacher: "FrozenTeacher",
        relation: Callable[..., Tensor | dict[str, Tensor]],
        weight: float = 1.0,
        soft: nn.Module | None = None,
    ) -> None:
        super().__init__()
        check_frozen(teacher, "FrozenTeacher(model)")
        check_weight("weight", weight)
        self.student: Any = student
        self.teacher = teacher
        self.relation = relation
        self.weight = weight
        self.soft = soft

    def forward(self, batch: Sequence[Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Loss terms and metrics of one batch."""
        inputs, labels, *rest = batch
        model: Any = self.teacher.model
        teacher, *indices = rest or [model.embed(inputs)]
        student = self.student.embed(inputs)
        logits, teacher_logits = self.student.classifier(student), model.classifier(teacher)
        terms = logit_terms(self.soft, logits, teacher_logits, labels)
        related = self.relation(student, teacher, *indices)
        if isinstance(related, Tensor):
            related = {"relation": related}
        terms |= {name: self.weight * term for name, term in related.items()}
        return terms, {
            "student_accuracy": accuracy(logits, labels),
            "teacher_accuracy": accuracy(teacher_logits, labels),
        }


def _embeddings(student: Tensor, teacher: Tensor, *, minimum: int = 2) -> tuple[Tensor, Tensor]:
    """Both sides as `[B, D]`, of equal batch and any widths; the teacher's detached."""
    student, teacher = check_same_batch(student, teacher, minimum=minimum)
    return student.flatten(1), teacher.flatten(1)


def _cosines(embeddings: Tensor) -> Tensor:
    """Cosines between all pairs of rows, `[B, B]`; 0 for a zero row."""
    rows = unit(embeddings)
    return inner_products(rows, rows)


def _taylor_exponential(x: Tensor, order: int) -> Tensor:
    """The first terms of exp(x), up to the given power, by Horner's rule."""
    total = torch.ones_like(x)
    for p in range(order, 0, -1):
        total = 1 + x / p * total
    return total


def _gram_and_distances(embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """Gram matrix about the mean and the distances it implies, `[B, B]`; rounding counts as 0."""
    centred = embeddings - embeddings.mean(0)  # or a large offset would swallow the digits
    gram = inner_products(centred, centred)
    scale = gram.diagonal() + gram.diagonal()[:, None]
    squared = scale - 2 * gram
    limits = torch.finfo(gram.dtype)
    positive = squared > 100 * limits.eps * scale + limits.tiny
    return gram, torch.where(positive, torch.where(positive, squared, 1).sqrt(), 0)


def _relative_distances(embeddings: Tensor) -> Tensor:
    """Distances divided by the mean of the positive ones; all 0 for a collapsed batch."""
    _, distances = _gram_and_distances(embeddings)
    count = (distances > 0).sum()
    return distances * (count / torch.where(count > 0, distances.sum(), 1))


def _inverse(distances: Tensor) -> Tensor:
    """One over each positive distance, 0 for the others."""
    positive = distances > 0
    return torch.where(positive, 1 / torch.where(positive, distances, 1), 0)


def _angle_sum(
    gram_s: Tensor, sides_s: Tensor, gram_t: Tensor, sides_t: Tensor, anchors: Tensor
) -> Tensor:
    """Smooth-L1 summed over all triangles whose corner is one of the anchors."""
    cosines = []
    for gram, sides in ((gram_s, sides_s), (gram_t, sides_t)):
        row, side = gram[anchors], sides[anchors]  # [anchors, B]
        corner = gram.diagonal()[anchors, None, None]
        products = gram - row[:, :, None] - row[:, None, :] + corner  # (x_i - x_a)(x_j - x_a)
        cosines.append(products * (side[:, :, None] * side[:, None, :]))
    return F.smooth_l1_loss(cosines[0], cosines[1], reduction="sum")


def _head(name: str, width: int, feature_dim: int) -> nn.Sequential:
    """A two-layer head from `width` to the common space."""
    check_count(name, width)
    check_count("feature_dim", feature_dim)
    return nn.Sequential(
        nn.Linear(width, feature_dim), nn.ReLU(), nn.Linear(feature_dim, feature_dim)
    )


def _project(name: str, head: nn.Module, features: Tensor) -> Tensor:
    """Features after their head, as unit vectors `[B, feature_dim]`."""
    width = next(head.parameters()).shape[1]
    require(
        features.dim() == 2 and features.shape[1] == width,
        f"{name} must have the shape [B, {width}], got {shape(features)}",
    )
    return unit(widen(head(features)))


def _of_all_processes(x: Tensor, dim: int = 0) -> Tensor:
    """The batches of all processes that train together, joined in the order of their ranks."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return x
    parts = [torch.empty_like(x) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(parts, x.contiguous())
    return torch.cat(parts, dim=dim)


def _check_indices(indices: Tensor, batch: int, *, high: float = math.inf) -> None:
    """`indices` must be whole numbers in [0, high), one for each example of the batch."""
    require(
        isinstance(indices, Tensor) and indices.dtype == torch.long and indices.shape == (batch,),
        f"indices must be an int64 tensor of shape [{batch}], got "
        + (
            f"{indices.dtype} of shape {shape(indices)}"
            if isinstance(indices, Tensor)
            else type(indices).__name__
        ),
    )
    low, top = indices.min().item(), indices.max().item()
    require(low >= 0 and top < high, f"indices must lie in [0, {high}), got {low} to {top}")
