from functools import partial

import pytest
import textbook
import torch
from cost import Case, Step, pair, step
from torch import Tensor

from kdcourse.language import (
    attention_loss,
    chunked_soft_target_loss,
    embedding_loss,
    generalized_jsd_loss,
    top_k_soft_target_loss,
    top_k_targets,
    value_relation_loss,
)

STATES, HEADS = (32, 64, 384), (32, 12, 64, 64)
VALUES, TOKENS = (32, 12, 64, 32), (256, 8000)


def tokens(loss, count: int, width: int, vocabulary: int) -> Step:
    """From hidden states and output matrices of both sides."""
    torch.manual_seed(0)
    hidden, weight = torch.randn(count, width), 0.1 * torch.randn(vocabulary, width)
    students = [hidden.requires_grad_(), weight.requires_grad_()]
    return partial(step, loss, students, torch.randn(count, width), weight.detach().clone())


def probabilities(loss) -> Step:
    torch.manual_seed(0)
    students = [torch.randn(HEADS).softmax(-1).requires_grad_()]
    return partial(step, loss, students, torch.randn(HEADS).softmax(-1))


def top_k() -> Step:
    torch.manual_seed(0)
    students = [torch.randn(TOKENS, requires_grad=True)]
    targets = top_k_targets(torch.randn(TOKENS), 32, temperature=4.0)
    return partial(step, top_k_soft_target_loss, students, *targets)


def whole(student: Tensor, teacher: Tensor) -> Tensor:
    return textbook.soft_target(student, teacher)


CASES = {
    "hidden states [32, 64, 384]": (
        partial(pair, embedding_loss, [STATES], [STATES]),
        partial(pair, textbook.hidden_state, [STATES], [STATES]),
    ),
    "attention [32, 12, 64, 64]": (
        partial(probabilities, attention_loss),
        partial(probabilities, textbook.attention_kl),
    ),
    "value relations [32, 12, 64, 32]": (
        partial(pair, value_relation_loss, [VALUES], [VALUES]),
        partial(pair, textbook.value_relation, [VALUES], [VALUES]),
    ),
    "generalized JSD [256, 8000]": (
        partial(pair, generalized_jsd_loss, [TOKENS], [TOKENS]),
        partial(pair, textbook.generalized_jsd, [TOKENS], [TOKENS]),
    ),
    "top 32 beside all of [256, 8000]": (top_k, partial(pair, whole, [TOKENS], [TOKENS])),
    "chunked, 1024 tokens, V = 32000": (
        partial(tokens, chunked_soft_target_loss, 1024, 128, 32_000),
        partial(tokens, textbook.token_loss, 1024, 128, 32_000),
    ),
}


@pytest.mark.parametrize(("ours", "naive"), CASES.values(), ids=CASES.keys())
def test_language(compare, ours: Case, naive: Case) -> None:
    compare(ours, naive)
