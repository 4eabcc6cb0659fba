"""The losses as their papers print them: naive, written apart from the package.

The tests compare values with them, the benchmarks compare cost. Student first, teacher second.
"""

import math
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor


def soft_target(student: Tensor, teacher: Tensor, temperature: float = 4.0) -> Tensor:
    log_s = F.log_softmax(student / temperature, dim=1)
    p_t = F.softmax(teacher / temperature, dim=1)
    return F.kl_div(log_s, p_t, reduction="batchmean") * temperature**2


def hint(student: Tensor, teacher: Tensor) -> Tensor:
    return ((student - teacher) ** 2).mean()


def attention_transfer(student: Tensor, teacher: Tensor, power: float = 2) -> Tensor:
    s, t = (F.normalize(x.abs().pow(power).mean(1).flatten(1)) for x in (student, teacher))
    return ((s - t) ** 2).mean()


def contrastive(student: Tensor, teacher: Tensor, temperature: float = 0.5) -> Tensor:
    s, t = F.normalize(student), F.normalize(teacher)
    scores = (s[:, None] * t[None]).sum(-1) / temperature
    return (torch.logsumexp(scores, 1) - scores.diagonal()).mean()


def fsp(
    student_one: Tensor, student_two: Tensor, teacher_one: Tensor, teacher_two: Tensor
) -> Tensor:
    def flow(one: Tensor, two: Tensor) -> Tensor:
        return (one.flatten(2)[:, :, None] * two.flatten(2)[:, None]).mean(-1)

    return ((flow(student_one, student_two) - flow(teacher_one, teacher_two)) ** 2).mean()


def nst(student: Tensor, teacher: Tensor) -> Tensor:
    s, t = (F.normalize(x.flatten(2), dim=2) for x in (student, teacher))

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a[:, :, None] * b[:, None]).sum(-1).pow(2).mean()

    return kernel(s, s) + kernel(t, t) - 2 * kernel(s, t)


def cwd(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    log_s, log_t = (F.log_softmax(x.flatten(2) / temperature, 2) for x in (student, teacher))
    return temperature**2 * (log_t.exp() * (log_t - log_s)).sum(2).mean()


def vid(mean: Tensor, variance: Tensor, teacher: Tensor) -> Tensor:
    """The Gaussian log-likelihood without its constant, from torch's own distribution."""
    variance = variance.reshape(1, -1, *[1] * (teacher.dim() - 2)).expand_as(teacher)
    density = torch.distributions.Normal(mean, variance.sqrt())
    return -(density.log_prob(teacher) + 0.5 * math.log(2 * math.pi)).mean()


def distance(student: Tensor, teacher: Tensor) -> Tensor:
    def relative(x: Tensor) -> Tensor:
        d = (x[:, None] - x[None]).norm(dim=2)
        return d / d[d > 0].mean()

    return F.smooth_l1_loss(relative(student), relative(teacher))


def angle(student: Tensor, teacher: Tensor) -> Tensor:
    def cosines(x: Tensor) -> Tensor:
        direction = F.normalize(x[None] - x[:, None], dim=2)
        return direction @ direction.mT

    return F.smooth_l1_loss(cosines(student), cosines(teacher))


def gram(student: Tensor, teacher: Tensor) -> Tensor:
    s, t = student @ student.T, teacher @ teacher.T
    return ((s / s.norm() - t / t.norm()) ** 2).mean()


def similarity_preserving(student: Tensor, teacher: Tensor) -> Tensor:
    s, t = (F.normalize(x.flatten(1) @ x.flatten(1).T) for x in (student, teacher))
    return ((s - t) ** 2).sum() / len(s) ** 2


def cosine_similarity(student: Tensor, teacher: Tensor) -> Tensor:
    s, t = (F.cosine_similarity(x[:, None], x[None], dim=2) for x in (student, teacher))
    return ((s - t) ** 2).mean()


def pkt(student: Tensor, teacher: Tensor, eps: float = 1e-7) -> Tensor:
    def probabilities(x: Tensor) -> Tensor:
        shifted = (F.cosine_similarity(x[:, None], x[None], dim=2) + 1) / 2
        return shifted / shifted.sum(1, keepdim=True)

    s, t = probabilities(student), probabilities(teacher)
    return (t * torch.log((t + eps) / (s + eps))).mean()


def correlation_congruence(
    student: Tensor, teacher: Tensor, gamma: float = 0.4, order: int = 2
) -> Tensor:
    def kernel(x: Tensor) -> Tensor:
        x = F.normalize(x)
        rows = []
        for row in x:
            cosines = x @ row
            terms = [(2 * gamma * cosines) ** p / math.factorial(p) for p in range(order + 1)]
            rows.append(math.exp(-2 * gamma) * sum(terms))
        return torch.stack(rows)

    return ((kernel(student) - kernel(teacher)) ** 2).mean()


def queue_contrast(queries: Tensor, keys: Tensor, queue: Tensor, temperature: float) -> Tensor:
    losses = []
    for query, key in zip(queries, keys, strict=True):
        scores = torch.stack([query @ key, *(query @ row for row in queue)]) / temperature
        losses.append(torch.logsumexp(scores, 0) - scores[0])
    return torch.stack(losses).mean()


def nce_contrast(
    anchors: Tensor, bank: Tensor, chosen: Tensor, z: Tensor | float, temperature: float
) -> Tensor:
    """One side of the paper's objective; `chosen [B, 1 + K]`, the positive first."""
    scores = torch.exp((bank[chosen] * anchors[:, None]).sum(-1) / temperature) / z
    noise = (chosen.shape[1] - 1) / len(bank)
    positive = torch.log(scores[:, 0] / (scores[:, 0] + noise))
    negative = torch.log(noise / (scores[:, 1:] + noise))
    return -(positive.sum() + negative.sum()) / len(anchors)


def angle_by_loops(student: Tensor, teacher: Tensor) -> Tensor:
    """Three nested loops, for a handful of examples."""

    def cosine(x: Tensor, i: int, a: int, j: int) -> Tensor:
        one, two = x[i] - x[a], x[j] - x[a]
        if not one.any() or not two.any():
            return x.new_zeros(())
        return one @ two / (one.norm() * two.norm())

    triples = list(product(range(len(student)), repeat=3))
    return torch.stack(
        [F.smooth_l1_loss(cosine(student, *t), cosine(teacher, *t)) for t in triples]
    ).mean()


def decoupled(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    temperature: float = 4.0,
    alpha: float = 1.0,
    beta: float = 8.0,
) -> Tensor:
    """From probabilities: right for moderate logits, NaN for large ones."""
    label = F.one_hot(labels, student.shape[1]).bool()
    p_s, p_t = (F.softmax(x / temperature, dim=1) for x in (student, teacher))

    def binary(p: Tensor) -> Tensor:
        return torch.stack([(p * label).sum(1), (p * ~label).sum(1)])

    target = (binary(p_t) * (binary(p_t) / binary(p_s)).log()).sum(0)
    rest_s, rest_t = (p[~label].reshape(len(p), -1) for p in (p_s, p_t))
    q_s, q_t = (rest / rest.sum(1, keepdim=True) for rest in (rest_s, rest_t))
    others = (q_t * (q_t / q_s).log()).sum(1)
    return temperature**2 * (alpha * target + beta * others).mean()


def dist(
    student: Tensor,
    teacher: Tensor,
    temperature: float = 1.0,
    beta: float = 1.0,
    gamma: float = 1.0,
) -> Tensor:
    p_s, p_t = (F.softmax(x / temperature, dim=1) for x in (student, teacher))

    def decorrelation(a: Tensor, b: Tensor) -> Tensor:
        a, b = (x - x.mean(1, keepdim=True) for x in (a, b))
        return 1 - F.cosine_similarity(a, b, dim=1).mean()

    inter, intra = decorrelation(p_s, p_t), decorrelation(p_s.T, p_t.T)
    return temperature**2 * (beta * inter + gamma * intra)


def standardized_soft_target(student: Tensor, teacher: Tensor, temperature: float = 2.0) -> Tensor:
    s, t = (
        (x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + 1e-7) for x in (student, teacher)
    )
    return soft_target(s, t, temperature)


def mutual(logits: list[Tensor], labels: Tensor, temperature: float = 1.0) -> Tensor:
    total = torch.zeros((), dtype=logits[0].dtype)
    for i, own in enumerate(logits):
        total = total + F.cross_entropy(own, labels)
        for j, peer in enumerate(logits):
            if j != i:
                total = total + soft_target(own, peer.detach(), temperature) / (len(logits) - 1)
    return total


def self_distillation(
    final: Tensor, exits: list[Tensor], labels: Tensor, temperature: float = 4.0
) -> Tensor:
    total = F.cross_entropy(final, labels)
    for leave in exits:
        soft = soft_target(leave, final.detach(), temperature)
        total = total + 0.5 * (soft + 0.5 * F.cross_entropy(leave, labels)) / len(exits)
    return total


def be_your_own_teacher(
    final: Tensor,
    exits: list[Tensor],
    labels: Tensor,
    mapped: list[Tensor],
    last: Tensor,
    temperature: float = 3.0,
    alpha: float = 0.3,
    hint_weight: float = 0.03,
) -> Tensor:
    """`mapped` are the earlier exits' features in the width of the last stage's, `last`."""
    total = F.cross_entropy(final, labels)
    p_t = F.softmax(final.detach() / temperature, dim=1)
    for leave in exits:
        log_s = F.log_softmax(leave / temperature, dim=1)
        divergence = (p_t * (p_t.log() - log_s)).sum(1).mean()
        total = total + (1 - alpha) * F.cross_entropy(leave, labels) + alpha * divergence
    return total + hint_weight * sum(hint(own, last.detach()) for own in mapped)


def hidden_state(student: Tensor, teacher: Tensor) -> Tensor:
    return ((student - teacher) ** 2).mean()


def attention_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """From probabilities without padding."""
    return (teacher * (teacher.log() - student.log())).sum(-1).mean()


def value_relation(student: Tensor, teacher: Tensor) -> Tensor:
    def relations(values: Tensor) -> Tensor:
        return F.softmax(values @ values.mT / math.sqrt(values.shape[-1]), dim=-1)

    return attention_kl(relations(student), relations(teacher))


def generalized_jsd(student: Tensor, teacher: Tensor, beta: float = 0.5) -> Tensor:
    p_s, p_t = F.softmax(student, dim=-1), F.softmax(teacher, dim=-1)
    mixture = beta * p_t + (1 - beta) * p_s

    def divergence(p: Tensor) -> Tensor:
        return (p * (p / mixture).log()).sum(-1).mean()

    return beta * divergence(p_t) + (1 - beta) * divergence(p_s)


def top_k_soft_target(student: Tensor, teacher: Tensor, k: int, temperature: float) -> Tensor:
    """Adds up the cells one by one from probabilities."""
    total = torch.zeros((), dtype=student.dtype)
    rows = [x.flatten(0, -2) for x in (student, teacher)]
    for z_s, z_t in zip(*rows, strict=True):
        p_s, p_t = F.softmax(z_s / temperature, 0), F.softmax(z_t / temperature, 0)
        order = p_t.argsort(descending=True)
        for cell in [*order[:k].split(1), order[k:]]:
            if len(cell) > 0:
                mass_s, mass_t = p_s[cell].sum(), p_t[cell].sum()
                total = total + mass_t * (mass_t / mass_s).log()
    return temperature**2 * total / len(rows[0])


def token_loss(
    student: Tensor,
    student_weight: Tensor,
    teacher: Tensor,
    teacher_weight: Tensor,
    temperature: float = 4.0,
) -> Tensor:
    """All logits at once."""
    return soft_target(student @ student_weight.T, teacher @ teacher_weight.T, temperature)


def detection_classification(student: Tensor, teacher: Tensor, temperature: float = 2.0) -> Tensor:
    """From probabilities: right for moderate logits, without gradient for large ones."""
    p_s, p_t = (torch.sigmoid(x / temperature) for x in (student, teacher))
    return temperature**2 * F.binary_cross_entropy(p_s, p_t)


def fpn_imitation(student: Tensor, teacher: Tensor) -> Tensor:
    """One level, the student's features adapted already."""
    total = torch.zeros((), dtype=student.dtype)
    for s, t in zip(student, teacher, strict=True):
        weight = t.abs().mean(0)
        total = total + ((weight / weight.max() * (s - t)) ** 2).sum()
    return total / student.numel()


def pkd(student: Tensor, teacher: Tensor) -> Tensor:
    def standardized(x: Tensor) -> Tensor:
        flat = x.transpose(0, 1).flatten(1)
        return (flat - flat.mean(1, keepdim=True)) / flat.std(1, keepdim=True)

    return ((standardized(student) - standardized(teacher)) ** 2).mean() / 2
