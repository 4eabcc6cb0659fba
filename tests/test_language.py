import copy
import math
from functools import partial
from types import SimpleNamespace

import pytest
import textbook
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from measures import LargestTensor, draw, gradients, property_test, seeds
from reference_values import assert_matches, load
from torch import Tensor, nn

from kdcourse.experiments import step_cost
from kdcourse.language import (
    DistilBERTObjective,
    DistilBERTTrainer,
    HiddenStateProjector,
    NLPDistillation,
    attention_loss,
    chunked_soft_target_loss,
    cosine_loss,
    distilbert_loss,
    embedding_loss,
    generalized_jsd_loss,
    hidden_state_loss,
    initialize_from_layers,
    sentence_embedding,
    skip_layer_map,
    top_k_soft_target_loss,
    top_k_targets,
    uniform_layer_map,
    value_relation_loss,
)
from kdcourse.soft_targets import soft_target_loss
from kdcourse.training import FrozenTeacher

BATCH, LENGTH, HEADS, WIDTH = 3, 5, 2, 4
MASK = torch.tensor(
    [[True] * 5, [True, True, True, False, False], [True, False, False, False, False]]
)


def attention_kl(student: Tensor, teacher: Tensor, **options) -> Tensor:
    """Of scores, so that it takes what the other losses take; padding stays NaN."""
    return attention_loss(student.softmax(-1), teacher.softmax(-1), **options)


def attention_mse(student: Tensor, teacher: Tensor, **options) -> Tensor:
    return attention_loss(student, teacher, kind="mse", **options)


def states_loss(student: Tensor, teacher: Tensor, **options) -> Tensor:
    return hidden_state_loss([student, 2 * student], [teacher, -teacher], **options)


def regrouped_relations(student: Tensor, teacher: Tensor, **options) -> Tensor:
    return value_relation_loss(student, teacher, relation_heads=4, **options)


def top_two(student: Tensor, teacher: Tensor, **options) -> Tensor:
    """The teacher's padding is not NaN in a cache: what was cached there does not matter."""
    targets = top_k_targets(teacher.nan_to_num(), 2, temperature=2.0)
    return top_k_soft_target_loss(student, *targets, temperature=2.0, **options)


def chunked(student: Tensor, teacher: Tensor, **options) -> Tensor:
    weights = (8 * draw(7, WIDTH, seed=9)).round() / 8  # exact in half precision too
    weight_s, weight_t = (weights.to(x.dtype) for x in (student, teacher))
    return chunked_soft_target_loss(student, weight_s, teacher, weight_t, chunk_size=4, **options)


TOKENS = (BATCH, LENGTH, WIDTH)
SHAPES = {
    embedding_loss: TOKENS,
    cosine_loss: TOKENS,
    states_loss: TOKENS,
    attention_kl: (BATCH, HEADS, LENGTH, LENGTH),
    attention_mse: (BATCH, HEADS, LENGTH, LENGTH),
    value_relation_loss: (BATCH, HEADS, LENGTH, WIDTH),
    regrouped_relations: (BATCH, HEADS, LENGTH, WIDTH),
    generalized_jsd_loss: TOKENS,
    top_two: TOKENS,
    chunked: TOKENS,
}
each_loss = pytest.mark.parametrize("loss", SHAPES, ids=lambda loss: loss.__name__)


def pair(loss, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    return draw(*SHAPES[loss], seed=seed, dtype=dtype), draw(
        *SHAPES[loss], seed=seed ^ 1, dtype=dtype
    )


def where_real(loss, x: Tensor, mask: Tensor) -> Tensor:
    """Broadcast `mask [B, L]` over what belongs to a real token; both sides of attention."""
    if x.dim() == 3:
        return mask[..., None].expand_as(x)
    if loss in (attention_kl, attention_mse):
        return (mask[:, None, :, None] & mask[:, None, None, :]).expand_as(x)
    return mask[:, None, :, None].expand_as(x)


# Values


def real_tokens() -> Tensor:
    return load("tok_mask")[0].bool()


def test_hidden_state_reference() -> None:
    student, teacher = load("hid_s", "hid_t")
    loss = embedding_loss(student, teacher, mask=real_tokens())
    assert_matches("hid_mse/textbrewer_masked", loss, student)
    loss = hidden_state_loss([student], [teacher * 9, teacher], mask=real_tokens())
    assert_matches("hid_mse/textbrewer_masked", loss, student)


def test_cosine_reference() -> None:
    student, teacher = load("hid_s", "hid_t")
    loss = cosine_loss(student, teacher, mask=real_tokens())
    assert_matches("hid_cos/textbrewer_masked", loss, student)


def test_attention_reference() -> None:
    student, teacher = load("att_s", "att_t")
    loss = attention_loss(student, teacher, mask=real_tokens(), kind="mse")
    assert_matches("tinybert_att_mse/textbrewer_masked", loss, student)


def test_generalized_jsd_reference() -> None:
    student, teacher, labels = load("seq_s", "seq_t", "seq_labels")
    loss = generalized_jsd_loss(student, teacher, mask=labels != -100)
    assert_matches("gjsd/beta0.5/trl", loss, student)


def test_attention_kl_by_hand() -> None:
    """The copied code took a softmax of the probabilities: far too small."""
    teacher = torch.tensor([[[[0.98, 0.01, 0.01]] * 3]])
    student = torch.full_like(teacher, 1 / 3)
    expected = 0.98 * math.log(0.98 * 3) + 0.02 * math.log(0.03)
    assert attention_loss(student, teacher).item() == pytest.approx(expected, rel=1e-5)
    fault = F.kl_div(student.log_softmax(-1), teacher.softmax(-1), reduction="sum") / 3
    assert fault < 0.15 * expected


def test_attention_kl_textbook() -> None:
    student, teacher = (x.softmax(-1) for x in pair(attention_kl))
    torch.testing.assert_close(
        attention_loss(student, teacher), textbook.attention_kl(student, teacher)
    )


def without_padding(loss, student: Tensor, teacher: Tensor) -> Tensor:
    """The mean over real tokens of a textbook loss of each text by itself, cut to its length."""
    total = torch.zeros((), dtype=student.dtype)
    for row, length in enumerate(MASK.sum(1).tolist()):
        texts = [x[row : row + 1, :, :length] for x in (student, teacher)]
        total = total + length * loss(*texts)
    return total / MASK.sum()


def test_attention_to_padding_is_removed_and_the_row_renormalised() -> None:
    scores_s, scores_t = pair(attention_kl)

    def of_scores(student: Tensor, teacher: Tensor) -> Tensor:
        length = student.shape[2]
        rows = (x[..., :length].softmax(-1) for x in (student, teacher))
        return textbook.attention_kl(*rows)

    expected = without_padding(of_scores, scores_s, scores_t)
    torch.testing.assert_close(attention_kl(scores_s, scores_t, mask=MASK), expected)


def test_relations_to_padding_are_left_out_of_the_softmax() -> None:
    student, teacher = pair(value_relation_loss)
    expected = without_padding(textbook.value_relation, student, teacher)
    torch.testing.assert_close(value_relation_loss(student, teacher, mask=MASK), expected)


def test_value_relation_textbook() -> None:
    student, teacher = draw(3, 2, 5, 4), draw(3, 2, 5, 6, seed=1)
    torch.testing.assert_close(
        value_relation_loss(student, teacher), textbook.value_relation(student, teacher)
    )


def test_relation_heads_cut_the_joined_heads_anew() -> None:
    student, teacher = draw(3, 2, 5, 6), draw(3, 4, 5, 6, seed=1)
    joined_s, joined_t = (x.transpose(1, 2).reshape(3, 5, -1) for x in (student, teacher))
    expected = textbook.value_relation(
        torch.stack(joined_s.split(4, -1), 1), torch.stack(joined_t.split(8, -1), 1)
    )
    loss = value_relation_loss(student, teacher, relation_heads=3)
    torch.testing.assert_close(loss, expected)
    loss = value_relation_loss(joined_s.unsqueeze(1), joined_t.unsqueeze(1), relation_heads=3)
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9])
def test_generalized_jsd_textbook(beta: float) -> None:
    student, teacher = pair(generalized_jsd_loss)
    loss = generalized_jsd_loss(3 * student, 3 * teacher, beta=beta, temperature=3.0)
    torch.testing.assert_close(loss, textbook.generalized_jsd(student, teacher, beta))


def test_generalized_jsd_ends_are_the_two_divergences_and_limits() -> None:
    student, teacher = pair(generalized_jsd_loss)
    forward = soft_target_loss(student, teacher, temperature=1.0)
    backward = soft_target_loss(teacher, student, temperature=1.0)
    torch.testing.assert_close(generalized_jsd_loss(student, teacher, beta=0.0), forward)
    torch.testing.assert_close(generalized_jsd_loss(student, teacher, beta=1.0), backward)
    near = generalized_jsd_loss(student, teacher, beta=1e-6) / 1e-6
    torch.testing.assert_close(near, forward, rtol=1e-4, atol=0)
    near = generalized_jsd_loss(student, teacher, beta=1 - 1e-6) / 1e-6
    torch.testing.assert_close(near, backward, rtol=1e-4, atol=0)


@pytest.mark.parametrize("k", [1, 3, 6, 7])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_top_k_textbook(k: int, temperature: float) -> None:
    student, teacher = 3 * draw(2, 3, 7), 3 * draw(2, 3, 7, seed=1)
    targets = top_k_targets(teacher, k, temperature=temperature)
    loss = top_k_soft_target_loss(student, *targets, temperature=temperature)
    expected = textbook.top_k_soft_target(student, teacher, k, temperature)
    torch.testing.assert_close(loss, expected)
    if k >= 6:
        whole = soft_target_loss(student, teacher, temperature=temperature)
        torch.testing.assert_close(loss, whole)


@property_test
@given(seed=seeds, k=st.integers(1, 6))
def test_more_kept_means_a_larger_loss_up_to_the_whole(seed: int, k: int) -> None:
    student, teacher = 3 * draw(4, 7, seed=seed), 3 * draw(4, 7, seed=seed ^ 1)
    losses = [top_k_soft_target_loss(student, *top_k_targets(teacher, kept)) for kept in (k, k + 1)]
    assert losses[0] <= losses[1] + 1e-12
    assert losses[1] <= soft_target_loss(student, teacher) + 1e-12


@pytest.mark.parametrize("chunk_size", [1, 4, 15, 99])
@pytest.mark.parametrize("masked", [False, True])
def test_chunks_change_nothing(chunk_size: int, masked: bool) -> None:
    inputs = [draw(3, 5, 4), draw(7, 4, seed=1), draw(3, 5, 6, seed=2), draw(7, 6, seed=3)]
    hidden, weight = inputs[0].requires_grad_(), inputs[1].requires_grad_()
    mask = MASK if masked else None
    ours = 3 * chunked_soft_target_loss(*inputs, chunk_size=chunk_size, temperature=2.0, mask=mask)
    logits = (hidden @ weight.T, inputs[2] @ inputs[3].T)
    plain = 3 * soft_target_loss(*logits, temperature=2.0, mask=mask)
    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(
        torch.autograd.grad(ours, (hidden, weight)), torch.autograd.grad(plain, (hidden, weight))
    )


def test_chunked_gradcheck_with_the_output_matrix_and_either_alone() -> None:
    hidden, weight = draw(5, 4), draw(7, 4, seed=1)
    teacher = (draw(5, 6, seed=2), draw(7, 6, seed=3))

    def loss(h: Tensor, w: Tensor) -> Tensor:
        return chunked_soft_target_loss(h, w, *teacher, chunk_size=2)

    for trained in ((True, True), (True, False), (False, True)):
        inputs = [hidden.clone(), weight.clone()]
        for x, needs_gradient in zip(inputs, trained, strict=True):
            x.requires_grad_(needs_gradient)
        assert torch.autograd.gradcheck(loss, inputs)


def test_chunked_makes_no_tensor_of_tokens_by_vocabulary() -> None:
    hidden, weight = draw(96, 4).requires_grad_(), draw(500, 4, seed=1).requires_grad_()
    teacher = (draw(96, 6, seed=2), draw(500, 6, seed=3))
    with LargestTensor() as largest:
        chunked_soft_target_loss(hidden, weight, *teacher, chunk_size=8).backward()
    assert largest.numel <= 8 * 500  # a chunk's logits
    with LargestTensor() as largest:
        textbook.token_loss(hidden, weight, *teacher).backward()
    assert largest.numel >= 96 * 500


class TokenLoss(nn.Module):
    """A student's output matrix under one of the two losses."""

    def __init__(self, loss, vocabulary: int, width: int = 16) -> None:
        super().__init__()
        self.loss = loss
        self.matrix = nn.Parameter(draw(vocabulary, width, dtype=torch.float32))

    def forward(self, batch: tuple[Tensor]) -> dict[str, Tensor]:
        (hidden,) = batch
        return {"soft": self.loss(hidden, self.matrix, hidden, self.matrix.detach())}


def test_memory_at_a_large_vocabulary_is_a_fraction_of_the_plain_formula() -> None:
    batch = (draw(384, 16, dtype=torch.float32),)
    chunked, plain = (
        step_cost(TokenLoss(loss, 32_000), batch)["MiB per step"]
        for loss in (partial(chunked_soft_target_loss, chunk_size=16), textbook.token_loss)
    )
    logits = 384 * 32_000 * 4 / 2**20
    assert plain > 2 * logits
    assert chunked < plain / 10


# Padding


@each_loss
@property_test
@given(seed=seeds)
def test_padding_changes_nothing_whatever_it_holds(loss, seed: int) -> None:
    student, teacher = pair(loss, seed=seed)
    real = where_real(loss, student, MASK)
    values = []
    for padding in (0.0, 7.0, math.nan):
        padded = [torch.where(real, x, padding) for x in (student, teacher)]
        if loss is attention_kl:  # after a softmax over what is real
            rows = [torch.where(real, x, -torch.inf).softmax(-1) for x in (student, teacher)]
            rows = [torch.where(real, x, padding) for x in rows]
            values.append(gradients(lambda s, t: attention_loss(s, t, mask=MASK), *rows))
        else:
            values.append(gradients(lambda s, t: loss(s, t, mask=MASK), *padded))
    for value, gradient in values:
        torch.testing.assert_close(value, values[0][0])
        torch.testing.assert_close(gradient, values[0][1])
        assert (gradient[~real] == 0).all()
        assert (gradient[real] != 0).any()


@each_loss
def test_a_full_mask_is_no_mask(loss) -> None:
    student, teacher = pair(loss)
    full = torch.ones(BATCH, LENGTH, dtype=torch.bool)
    torch.testing.assert_close(loss(student, teacher, mask=full), loss(student, teacher))


@each_loss
def test_an_empty_mask_gives_zero_with_a_graph(loss) -> None:
    student, teacher = pair(loss)
    empty = torch.zeros(BATCH, LENGTH, dtype=torch.bool)
    value, gradient = gradients(lambda s, t: loss(s, t, mask=empty), student, teacher)
    assert value == 0
    assert (gradient == 0).all()


# Numbers


@each_loss
def test_gradcheck(loss) -> None:
    student, teacher = pair(loss)
    assert torch.autograd.gradcheck(lambda x: loss(x, teacher, mask=MASK), student.requires_grad_())


@each_loss
def test_the_teacher_receives_no_gradient(loss) -> None:
    student, teacher = (x.requires_grad_() for x in pair(loss))
    loss(student, teacher).backward()
    assert student.grad is not None and student.grad.abs().sum() > 0
    assert teacher.grad is None


@each_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(loss, dtype: torch.dtype) -> None:
    scale = 1 if loss is value_relation_loss else 30
    student, teacher = ((scale * x).to(dtype) for x in pair(loss))
    value, gradient = gradients(loss, student, teacher)
    assert value.dtype == torch.float32
    assert gradient.dtype == dtype
    if loss is not attention_kl:  # its softmax is the test's own, in half precision
        torch.testing.assert_close(value, loss(student.float(), teacher.float()))


@pytest.mark.parametrize("loss", [value_relation_loss, chunked], ids=lambda loss: loss.__name__)
def test_autocast_changes_nothing(loss) -> None:
    student, teacher = pair(loss, dtype=torch.float32)
    expected = loss(student, teacher)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(loss(student, teacher), expected)


@each_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e3])
def test_extreme_inputs_are_finite(loss, dtype: torch.dtype, scale: float) -> None:
    student, teacher = pair(loss, dtype=dtype)
    student[0, 0], teacher[0, 1] = 0, 0
    gradients(loss, scale * student, teacher)
    gradients(loss, student, scale * teacher)
    gradients(loss, scale * student, -scale * student)


def test_attention_that_is_exactly_zero_or_wholly_on_padding_is_finite() -> None:
    certain = torch.eye(LENGTH).expand(BATCH, HEADS, LENGTH, LENGTH)
    moved = certain.roll(1, -1)
    value, _ = gradients(attention_loss, certain, moved)
    assert value == pytest.approx(-math.log(torch.finfo(torch.float32).tiny))
    on_padding = torch.zeros_like(certain)
    on_padding[..., -1] = 1
    mask = torch.ones(BATCH, LENGTH, dtype=torch.bool)
    mask[:, -1] = False
    for student, teacher in ((on_padding, certain), (certain, on_padding)):
        gradients(lambda s, t: attention_loss(s, t, mask=mask), student, teacher)


@each_loss
def test_a_perfect_student(loss) -> None:
    teacher, _ = pair(loss)
    value, gradient = gradients(
        loss if loss is not states_loss else embedding_loss, teacher, teacher
    )
    if loss is not chunked and loss is not top_two:
        assert value.abs() < 1e-12
    assert gradient.abs().max() < 1e-12


@each_loss
@property_test
@given(seed=seeds)
def test_the_order_of_the_batch_does_not_matter(loss, seed: int) -> None:
    student, teacher = pair(loss, seed=seed)
    order = torch.randperm(BATCH, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(
        loss(student[order], teacher[order], mask=MASK[order]), loss(student, teacher, mask=MASK)
    )


@each_loss
@property_test
@given(seed=seeds, scale=st.floats(1e-3, 1e2))
def test_losses_are_not_negative(loss, seed: int, scale: float) -> None:
    student, teacher = pair(loss, seed=seed)
    assert loss(student, scale * teacher) >= -1e-12


def test_a_zero_state_has_no_gradient_in_the_cosine() -> None:
    student, teacher = pair(cosine_loss)
    student[0, 0] = 0
    _, gradient = gradients(cosine_loss, student, teacher)
    assert (gradient[0, 0] == 0).all()
    assert (gradient[0, 1] != 0).any()


# Layers


def test_uniform_layer_map() -> None:
    assert uniform_layer_map(4, 7) == [0, 2, 4, 6]  # the copied code gave 0, 1, 2, 3
    assert uniform_layer_map(5, 13) == [0, 3, 6, 9, 12]
    assert uniform_layer_map(1, 7) == [6]
    assert uniform_layer_map(3, 6) == [0, 3, 5]
    assert uniform_layer_map(3, 2) == [0, 1, 1]
    for student in range(2, 9):
        for teacher in range(1, 14):
            chosen = uniform_layer_map(student, teacher)
            assert chosen == [
                math.floor(i * (teacher - 1) / (student - 1) + 0.5) for i in range(student)
            ]
            assert chosen[0] == 0 and chosen[-1] == teacher - 1


def test_skip_layer_map() -> None:
    assert skip_layer_map(6, 12) == [0, 2, 4, 6, 8, 10]
    assert skip_layer_map(4, 12) == [0, 3, 6, 9]
    with pytest.raises(ValueError, match=r"num_teacher must be a multiple .* got 7 and 4"):
        skip_layer_map(4, 7)


def test_the_layer_map_says_which_state_teaches_which() -> None:
    student = [draw(*TOKENS, seed=i) for i in range(2)]
    teacher = [draw(*TOKENS, seed=10 + i) for i in range(4)]
    loss = hidden_state_loss(student, teacher, layer_map=[3, 1])
    expected = textbook.hidden_state(student[0], teacher[3]) / 2
    expected += textbook.hidden_state(student[1], teacher[1]) / 2
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(
        hidden_state_loss(student, teacher), hidden_state_loss(student, teacher, layer_map=[0, 3])
    )


def test_projector_gives_every_state_its_own_map() -> None:
    projector = HiddenStateProjector(student_width=4, teacher_width=6, num_states=2)
    states = [torch.randn(TOKENS), torch.randn(TOKENS)]
    teacher = [torch.randn(BATCH, LENGTH, 6)] * 3
    for state, layer, projected in zip(states, projector.maps, projector(states), strict=True):
        torch.testing.assert_close(projected, F.linear(state, layer.weight, layer.bias))
    hidden_state_loss(projector(states), teacher, mask=MASK).backward()
    assert all(p.grad is not None and p.grad.any() for p in projector.parameters())
    assert projector([state.half() for state in states])[0].dtype == torch.float32


class Stack(nn.Module):
    def __init__(self, depth: int, width: int = 3) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(5, width)
        self.encoder = nn.ModuleDict(
            {"layer": nn.ModuleList(nn.Linear(width, width) for _ in range(depth))}
        )


def test_a_student_is_initialised_from_chosen_layers() -> None:
    torch.manual_seed(0)
    teacher, student = Stack(6), Stack(2)
    before = copy.deepcopy(teacher.state_dict())
    initialize_from_layers(student, teacher, [0, 5])
    assert torch.equal(student.embeddings.weight, teacher.embeddings.weight)
    for own, chosen in enumerate([0, 5]):
        for a, b in zip(
            student.encoder["layer"][own].parameters(),
            teacher.encoder["layer"][chosen].parameters(),
            strict=True,
        ):
            assert torch.equal(a, b)
            assert a.data_ptr() != b.data_ptr() and a.requires_grad
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())


# DistilBERT


def triple(
    length: int = LENGTH, *, padding: float = 0.0, extra: int = 0
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Two texts of `length` real tokens, `extra` padding tokens behind."""
    tensors = [draw(2, length, 7), draw(2, length, 7, seed=1)]
    tensors += [draw(2, length, WIDTH, seed=2), draw(2, length, WIDTH, seed=3)]
    tensors = [F.pad(x, (0, 0, 0, extra), value=padding) for x in tensors]
    labels = torch.full((2, length + extra), -100)
    labels[0, 1], labels[1, 0] = 3, 6
    mask = torch.arange(length + extra).expand(2, -1) < length
    return tensors, {"attention_mask": mask, "labels": labels}


def test_the_three_terms_are_what_the_paper_says() -> None:
    tensors, options = triple()
    terms = distilbert_loss(*tensors, **options)
    student, teacher, hidden_s, hidden_t = tensors
    assert list(terms) == ["soft", "mlm", "cosine"]
    soft = textbook.soft_target(student.flatten(0, 1), teacher.flatten(0, 1), 2.0)
    torch.testing.assert_close(terms["soft"], 5 * soft)
    words = F.cross_entropy(student.transpose(1, 2), options["labels"], ignore_index=-100)
    torch.testing.assert_close(terms["mlm"], 2 * words)
    cosine = 1 - F.cosine_similarity(hidden_s, hidden_t, dim=-1).mean()
    torch.testing.assert_close(terms["cosine"], cosine)


def test_weights_and_temperature_of_the_triple_loss() -> None:
    tensors, options = triple()
    weights = {"alpha_ce": 0.5, "alpha_mlm": 0.25, "alpha_cos": 0.0}
    terms = distilbert_loss(*tensors, **options, **weights, temperature=3.0)
    expected = soft_target_loss(*tensors[:2], temperature=3.0)
    torch.testing.assert_close(terms["soft"], 0.5 * expected)
    torch.testing.assert_close(8 * terms["mlm"], distilbert_loss(*tensors, **options)["mlm"])
    assert terms["cosine"] == 0


@pytest.mark.parametrize("padding", [0.0, math.nan])
def test_padding_does_not_change_the_triple_loss(padding: float) -> None:
    """With 58 padding tokens the copied code went from 3.5 to 12.4."""
    tensors, options = triple()
    expected = distilbert_loss(*tensors, **options)
    tensors, options = triple(padding=padding, extra=58)
    options["attention_mask"] = options["attention_mask"].long()  # as a tokenizer gives it
    torch.testing.assert_close(distilbert_loss(*tensors, **options), expected)


def test_without_a_masked_token_the_triple_loss_is_finite() -> None:
    tensors, options = triple()
    options["labels"].fill_(-100)

    def total(student: Tensor) -> Tensor:
        return torch.stack(list(distilbert_loss(student, *tensors[1:], **options).values())).sum()

    gradients(total, tensors[0])
    assert distilbert_loss(*tensors, **options)["mlm"] == 0


def test_triple_loss_gradcheck_and_half_precision() -> None:
    tensors, options = triple()

    def total(logits: Tensor, hidden: Tensor) -> Tensor:
        terms = distilbert_loss(logits, tensors[1], hidden, tensors[3], **options)
        return torch.stack(list(terms.values())).sum()

    student = (tensors[0].requires_grad_(), tensors[2].requires_grad_())
    assert torch.autograd.gradcheck(total, student)
    half = distilbert_loss(*(x.half() for x in tensors), **options)
    assert all(term.dtype == torch.float32 for term in half.values())


class Tiny(nn.Module):
    """A transformer's interface: embeddings, layers, a head that guesses tokens."""

    def __init__(self, depth: int, width: int = 4, *, heads: int = 2) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(7, width)
        self.encoder = nn.ModuleDict(
            {"layer": nn.ModuleList(nn.Linear(width, width) for _ in range(depth))}
        )
        self.scores = nn.Parameter(torch.randn(depth, heads))
        self.head = nn.Linear(width, 7)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, *, output_hidden_states: bool = False
    ) -> SimpleNamespace:
        states, attentions = [self.embeddings(input_ids)], []
        for layer, scale in zip(self.encoder["layer"], self.scores, strict=True):
            scores = scale[None, :, None, None] * (states[-1] @ states[-1].mT)[:, None]
            scores = scores.masked_fill(~attention_mask.bool()[:, None, None], -torch.inf)
            attentions.append(scores.softmax(-1))
            states.append(torch.tanh(layer(attentions[-1].mean(1) @ states[-1])))
        return SimpleNamespace(
            logits=self.head(states[-1]),
            hidden_states=tuple(states) if output_hidden_states else None,
            attentions=tuple(attentions),
        )


def batches(count: int = 2) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    result = []
    for _ in range(count):
        ids = torch.randint(7, (BATCH, LENGTH), generator=generator)
        labels = torch.where(torch.rand(ids.shape, generator=generator) < 0.5, ids, -100)
        result.append({"input_ids": ids, "attention_mask": MASK.long(), "labels": labels})
    return result


def test_distilbert_trainer_trains_the_student_and_hands_the_teacher_back() -> None:
    torch.manual_seed(0)
    student, teacher = Tiny(1), Tiny(2)
    before = copy.deepcopy(teacher.state_dict())
    optimizer = torch.optim.Adam(student.parameters(), lr=0.05)
    trainer = DistilBERTTrainer(student=student, teacher=teacher, alpha_mlm=0.0)
    history = trainer.fit(batches(), optimizer, epochs=20, seed=0, progress=False)
    assert list(history.columns) == ["epoch", "loss", "soft", "mlm", "cosine", "seconds"]
    assert (history["mlm"] == 0).all()
    assert history["loss"].iloc[-1] < 0.5 * history["loss"].iloc[0]
    assert teacher.training and all(p.requires_grad for p in teacher.parameters())
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    with pytest.raises(ValueError, match="must be two networks, got the same object"):
        DistilBERTTrainer(student=student, teacher=student)


def test_distilbert_objective_is_the_triple_loss_of_the_last_states() -> None:
    student, teacher = Tiny(1), FrozenTeacher(Tiny(2))
    (batch,) = batches(1)
    terms = DistilBERTObjective(student=student, teacher=teacher, temperature=3.0)(batch)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    s, t = (m(**inputs, output_hidden_states=True) for m in (student, teacher))
    expected = distilbert_loss(
        *(s.logits, t.logits, s.hidden_states[-1], t.hidden_states[-1]),
        attention_mask=batch["attention_mask"],
        labels=batch["labels"],
        temperature=3.0,
    )
    torch.testing.assert_close(terms, expected)


# NLPDistillation


def outputs(depth: int, width: int = 4, seed: int = 0) -> SimpleNamespace:
    torch.manual_seed(seed)
    ids = torch.randint(7, (BATCH, LENGTH))
    return Tiny(depth, width)(ids, MASK, output_hidden_states=True)


def test_nlp_distillation_joins_the_three_losses_on_mapped_layers() -> None:
    student, teacher = outputs(2), outputs(4, seed=1)
    objective = NLPDistillation(embedding=0.5, attention=2.0, hidden=3.0)
    terms = objective(student, teacher, MASK.long())
    assert list(terms) == ["embedding", "attention", "hidden"]
    s, t = student.hidden_states, teacher.hidden_states
    torch.testing.assert_close(terms["embedding"], 0.5 * embedding_loss(s[0], t[0], mask=MASK))
    hidden = [embedding_loss(s[i], t[j], mask=MASK) for i, j in ((1, 2), (2, 4))]
    torch.testing.assert_close(terms["hidden"], 3 * sum(hidden) / 2)
    pairs = [(student.attentions[i], teacher.attentions[j]) for i, j in ((0, 1), (1, 3))]
    attention = [attention_loss(a, b, mask=MASK) for a, b in pairs]
    torch.testing.assert_close(terms["attention"], 2 * sum(attention) / 2)
    assert NLPDistillation()(student, teacher).keys() == terms.keys()


def test_nlp_distillation_with_unequal_widths_trains_the_projector() -> None:
    student, teacher = outputs(2), outputs(4, width=6, seed=1)
    projector = HiddenStateProjector(student_width=4, teacher_width=6, num_states=3)
    terms = NLPDistillation(projector=projector)(student, teacher, MASK)
    torch.stack(list(terms.values())).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in projector.parameters())
    with pytest.raises(ValueError, match=r"must have the same width.*HiddenStateProjector"):
        NLPDistillation()(student, teacher, MASK)


def test_a_term_of_weight_zero_needs_nothing() -> None:
    student, teacher = outputs(2), outputs(4, seed=1)
    del student.attentions
    terms = NLPDistillation(attention=0.0)(student, teacher, MASK)
    assert list(terms) == ["embedding", "hidden"]


# Sentence embeddings


def test_sentence_embedding_is_the_mean_over_real_tokens() -> None:
    hidden = draw(*TOKENS)
    expected = [F.normalize(hidden[i, : int(n)].mean(0), dim=0) for i, n in enumerate(MASK.sum(1))]
    hidden[~MASK] = math.nan
    torch.testing.assert_close(sentence_embedding(hidden, mask=MASK), torch.stack(expected))
    empty = sentence_embedding(hidden, mask=torch.zeros_like(MASK))
    assert (empty == 0).all()


# Bad input

TOKEN = torch.zeros(TOKENS)
HEAD = torch.zeros(BATCH, HEADS, LENGTH, LENGTH)
INDEX = torch.zeros(BATCH, LENGTH, 1, dtype=torch.int64)


@each_loss
def test_shapes_must_agree(loss) -> None:
    student, teacher = pair(loss)
    with pytest.raises(ValueError, match=r"must (have|be)"):
        loss(student, teacher[:-1])
    with pytest.raises(ValueError, match=r"mask must be a boolean tensor of shape \[3, 5\]"):
        loss(student, teacher, mask=torch.ones(BATCH, LENGTH))
    with pytest.raises(ValueError, match=r"mask must be .* \[3, 5\], got .* \[3, 1\]"):
        loss(student, teacher, mask=torch.ones(BATCH, 1, dtype=torch.bool))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: uniform_layer_map(0, 3), "num_student must be a whole number .* got 0"),
        (lambda: hidden_state_loss(TOKEN, [TOKEN]), r"list .* got one tensor \[3, 5, 4\]"),
        (lambda: hidden_state_loss([], [TOKEN]), r"student must be a list .* got none"),
        (
            lambda: hidden_state_loss([TOKEN], [TOKEN], layer_map=[1]),
            r"layer_map must hold 1 whole numbers from 0 to 0, .* got \[1\]",
        ),
        (
            lambda: hidden_state_loss([TOKEN], [TOKEN], layer_map=[0, 0]),
            r"layer_map must hold 1 .* got \[0, 0\]",
        ),
        (
            lambda: HiddenStateProjector(student_width=3, teacher_width=6, num_states=1)([TOKEN]),
            r"states of width 3, got \[3, 5, 4\]",
        ),
        (
            lambda: HiddenStateProjector(student_width=4, teacher_width=6, num_states=2)([TOKEN]),
            "student must hold 2 states, got 1",
        ),
        (
            lambda: HiddenStateProjector(student_width=0, teacher_width=6, num_states=2),
            "student_width must be a whole number",
        ),
        (lambda: attention_loss(HEAD, HEAD, kind="js"), "kind must be kl or mse, got 'js'"),
        (lambda: attention_loss(HEAD - 1, HEAD), 'probabilities, got -1: .* use kind="mse"'),
        (
            lambda: attention_loss(HEAD[..., :4], HEAD[..., :4]),
            r"must be \[B, heads, L, L\], got \[3, 2, 5, 4\]",
        ),
        (
            lambda: value_relation_loss(HEAD, HEAD[:, :1]),
            r"equal batch, heads and length .* got \[3, 2, 5, 5\] and \[3, 1, 5, 5\]",
        ),
        (
            lambda: value_relation_loss(HEAD, HEAD, relation_heads=3),
            "relation_heads must divide the 10 values of the student, got 3",
        ),
        (lambda: generalized_jsd_loss(TOKEN, TOKEN, beta=1.5), "beta must be between .* got 1.5"),
        (lambda: generalized_jsd_loss(TOKEN, TOKEN, temperature=0), "temperature must be"),
        (lambda: top_k_targets(TOKEN, 5), "k must be at most .* got 5"),
        (lambda: top_k_soft_target_loss(TOKEN, TOKEN[0], INDEX[0]), r"top_values must be \[..., k"),
        (
            lambda: top_k_soft_target_loss(TOKEN, TOKEN[..., :1], INDEX.int()),
            "top_indices must be int64 .* got torch.int32",
        ),
        (
            lambda: top_k_soft_target_loss(TOKEN, TOKEN[..., :1], INDEX + 4),
            "top_indices must lie between 0 and 3, got values from 4 to 4",
        ),
        (
            lambda: top_k_soft_target_loss(TOKEN, TOKEN[..., :1] + 1, INDEX),
            "top_values must be log-probabilities, at most 0, got 1",
        ),
        (
            lambda: chunked_soft_target_loss(TOKEN, torch.zeros(7, 3), TOKEN, torch.zeros(7, 4)),
            r"student_hidden .* same D, got \[3, 5, 4\] and \[7, 3\]",
        ),
        (
            lambda: chunked_soft_target_loss(TOKEN, torch.zeros(7, 4), TOKEN, torch.zeros(8, 4)),
            "vocabularies of 7 and 8",
        ),
        (
            lambda: chunked_soft_target_loss(
                TOKEN, torch.zeros(7, 4), TOKEN, torch.zeros(7, 4), chunk_size=0
            ),
            "chunk_size must be a whole number of at least 1, got 0",
        ),
        (lambda: NLPDistillation(hidden=-1.0), "hidden must be at least 0"),
        (lambda: NLPDistillation(embedding=0, attention=0, hidden=0), "must be above 0"),
        (
            lambda: NLPDistillation(layer_map=[1, 0])(outputs(1), outputs(2)),
            r"not to its embeddings, got \[1, 0\]",
        ),
        (
            lambda: NLPDistillation()(outputs(1), outputs(2), MASK.float()),
            "attention_mask must be a boolean tensor, or .* got torch.float32",
        ),
        (lambda: sentence_embedding(TOKEN[0], mask=MASK[0]), r"hidden must be \[B, L, D\]"),
        (
            lambda: initialize_from_layers(Stack(2), Stack(4), [0, 4]),
            r"layers must hold 2 whole numbers from 0 to 3, .* got \[0, 4\]",
        ),
        (
            lambda: initialize_from_layers(Stack(2), Stack(4), [0, 1], path="layers"),
            r"student \(Stack\) has none called 'layers'",
        ),
        (
            lambda: initialize_from_layers(Stack(2), Stack(4, width=5), [0, 1]),
            r"same widths, but .* has shape \[5, 3\] and .* has \[5, 5\]",
        ),
    ],
)
def test_bad_input(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": torch.zeros(2, 3, dtype=torch.int64)}, r"labels must have the shape \[2, 5\]"),
        ({"labels": torch.full((2, 5), 7)}, "labels must lie between 0 and 6, got .* 7"),
        ({"attention_mask": torch.ones(2, 4, dtype=torch.int64)}, r"mask must be .* \[2, 5\]"),
        ({"alpha_cos": -1.0}, "alpha_cos must be at least 0"),
        ({"temperature": 0.0}, "temperature must be a positive finite number"),
    ],
)
def test_bad_triple_loss(change, message: str) -> None:
    tensors, options = triple()
    with pytest.raises(ValueError, match=message):
        distilbert_loss(*tensors, **(options | change))


def test_triple_loss_needs_equal_widths() -> None:
    tensors, options = triple()
    tensors[2] = tensors[2][..., :3]
    with pytest.raises(ValueError, match=r"student_hidden and teacher_hidden .* same shape"):
        distilbert_loss(*tensors, **options)
