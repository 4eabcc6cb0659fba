from functools import partial

import pytest
import textbook
import torch
import torch.nn.functional as F
from cost import Case, Step, pair, step
from torch import Tensor, nn

from kdcourse.relations import (
    CRDLoss,
    InstanceCRDLoss,
    angle_loss,
    correlation_congruence_loss,
    cosine_similarity_loss,
    distance_loss,
    gram_loss,
    pkt_loss,
    similarity_preserving_loss,
)

EMBEDDINGS = ([(256, 512)], [(256, 512)])
SAMPLES, NEGATIVES, BATCH = 50_000, 16_384, 64


def both(ours, naive, *shapes) -> tuple[Case, Case]:
    return partial(pair, ours, *shapes), partial(pair, naive, *shapes)


def contrast(module: nn.Module, student: Tensor, teacher: Tensor, *indices: Tensor) -> Tensor:
    return module(student, teacher, *indices)["crd"]


class TextbookQueue(CRDLoss):
    """Momentum contrast as it is usually written: one row of scores for each example."""

    def forward(self, student, teacher, indices=None):
        queries = F.normalize(self.student_head(student))
        keys = F.normalize(self.teacher_head(teacher))
        positive = torch.einsum("nc,nc->n", queries, keys).unsqueeze(-1)
        negative = torch.einsum("nc,kc->nk", queries, self.memory_bank.clone())
        scores = torch.cat([positive, negative], dim=1) / self.temperature
        self.memory_bank[: len(keys)] = keys.detach()
        return {"crd": F.cross_entropy(scores, torch.zeros(len(scores), dtype=torch.long))}


class TextbookBanks(InstanceCRDLoss):
    """The paper's code: the vector of every negative is picked from the bank."""

    def forward(self, student, teacher, indices, *, generator=None):
        negatives = torch.randint(len(self.student_bank), (len(indices), self.num_negatives))
        chosen = torch.cat((indices[:, None], negatives), dim=1)
        noise = self.num_negatives / len(self.student_bank)
        loss = 0
        for head, x, bank in (
            (self.student_head, student, self.teacher_bank),
            (self.teacher_head, teacher, self.student_bank),
        ):
            anchors = F.normalize(head(x))
            picked = torch.index_select(bank, 0, chosen.view(-1)).view(*chosen.shape, -1)
            scores = torch.exp(torch.bmm(picked, anchors.unsqueeze(2)).squeeze(2) / 0.07)
            scores = scores / (scores.mean().detach() * len(bank))
            loss = loss - torch.log(scores[:, 0] / (scores[:, 0] + noise)).sum()
            loss = loss - torch.log(noise / (scores[:, 1:] + noise)).sum()
        return {"crd": loss / len(student)}


def queue(module: type[CRDLoss]) -> Step:
    torch.manual_seed(0)
    objective = module(128, 256, num_negatives=NEGATIVES)
    students = [torch.randn(BATCH, 128, requires_grad=True)]
    return partial(step, partial(contrast, objective), students, torch.randn(BATCH, 256))


def banks(module: type[InstanceCRDLoss]) -> Step:
    torch.manual_seed(0)
    objective = module(SAMPLES, 128, 256, num_negatives=NEGATIVES)
    students = [torch.randn(BATCH, 128, requires_grad=True)]
    rest = (torch.randn(BATCH, 256), torch.arange(BATCH))
    return partial(step, partial(contrast, objective), students, *rest)


CASES = {
    "RKD distance [256, 512]": both(distance_loss, textbook.distance, *EMBEDDINGS),
    "RKD angle [256, 512]": both(angle_loss, textbook.angle, *EMBEDDINGS),
    "RKD angle [64, 128]": both(angle_loss, textbook.angle, [(64, 128)], [(64, 128)]),
    "Gram [256, 512]": both(gram_loss, textbook.gram, *EMBEDDINGS),
    "SP [256, 512]": both(similarity_preserving_loss, textbook.similarity_preserving, *EMBEDDINGS),
    "cosine similarity [256, 512]": both(
        cosine_similarity_loss, textbook.cosine_similarity, *EMBEDDINGS
    ),
    "PKT [256, 512]": both(pkt_loss, textbook.pkt, *EMBEDDINGS),
    "CC [256, 512]": both(
        correlation_congruence_loss, textbook.correlation_congruence, *EMBEDDINGS
    ),
    "CRD queue, batch 64, 16,384 rows": (partial(queue, CRDLoss), partial(queue, TextbookQueue)),
    "CRD banks, batch 64, 16,384 of 50,000": (
        partial(banks, InstanceCRDLoss),
        partial(banks, TextbookBanks),
    ),
}


@pytest.mark.parametrize(("ours", "naive"), CASES.values(), ids=CASES.keys())
def test_relations(compare, ours: Case, naive: Case | None) -> None:
    compare(ours, naive)
