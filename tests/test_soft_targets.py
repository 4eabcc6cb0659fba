import math

import pytest
import textbook
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from measures import draw, gradients, seeds
from reference_values import assert_matches, load

from kdcourse.soft_targets import SoftTargetDistillation, hard_target_loss, soft_target_loss

temperatures = st.floats(0.1, 100)
property_test = settings(max_examples=30, deadline=None)


# Values


def test_reference() -> None:
    student, teacher = load("logits_s", "logits_t")
    loss = soft_target_loss(student, teacher, temperature=4.0)
    assert_matches("kd/T4/repdistiller", loss, student)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 4, 20])
def test_textbook(temperature: float) -> None:
    student, teacher = draw(6, 5).requires_grad_(), draw(6, 5, seed=1)
    ours = soft_target_loss(student, teacher, temperature=temperature)
    expected = textbook.soft_target(student, teacher, temperature)
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(
        torch.autograd.grad(ours, student), torch.autograd.grad(expected, student)
    )


def test_by_hand() -> None:
    student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(3.0), 0.0]])
    expected = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)  # KL(teacher || student)
    assert soft_target_loss(student, teacher, temperature=1.0).item() == pytest.approx(expected)


def test_the_default_temperature_is_four() -> None:
    student, teacher = draw(6, 5), draw(6, 5, seed=1)
    assert soft_target_loss(student, teacher) == soft_target_loss(student, teacher, temperature=4.0)


def test_the_mean_runs_over_all_leading_positions() -> None:
    student, teacher = draw(2, 3, 4, 5), draw(2, 3, 4, 5, seed=1)
    flat = soft_target_loss(student.reshape(24, 5), teacher.reshape(24, 5))
    torch.testing.assert_close(soft_target_loss(student, teacher), flat)
    single = soft_target_loss(student[0, 0, 0], teacher[0, 0, 0])
    torch.testing.assert_close(single, soft_target_loss(student[0, 0, :1], teacher[0, 0, :1]))


# Properties


@property_test
@given(seed=seeds, temperature=temperatures, scale=st.floats(0.01, 100))
def test_the_loss_is_not_negative(seed: int, temperature: float, scale: float) -> None:
    student, teacher = scale * draw(6, 5, seed=seed), scale * draw(6, 5, seed=seed ^ 1)
    assert soft_target_loss(student, teacher, temperature=temperature) > 0


@property_test
@given(seed=seeds, temperature=temperatures)
def test_the_loss_is_zero_for_equals_up_to_a_constant_shift(seed: int, temperature: float) -> None:
    teacher = draw(6, 5, seed=seed)
    shifted = teacher + 10 * draw(6, 1, seed=seed ^ 1)
    value, gradient = gradients(
        lambda s, t: soft_target_loss(s, t, temperature=temperature), shifted, teacher
    )
    assert abs(value.item()) < 1e-12 * temperature**2
    assert gradient.abs().max() < 1e-12 * temperature


@property_test
@given(seed=seeds, temperature=temperatures)
def test_the_direction_matters(seed: int, temperature: float) -> None:
    """KL(teacher || student): the weights are the teacher's probabilities."""
    student, teacher = draw(6, 5, seed=seed), draw(6, 5, seed=seed ^ 1)
    log_s, log_t = ((x / temperature).log_softmax(1) for x in (student, teacher))
    expected = temperature**2 * (log_t.exp() * (log_t - log_s)).sum(1).mean()
    torch.testing.assert_close(
        soft_target_loss(student, teacher, temperature=temperature), expected
    )


@property_test
@given(seed=seeds)
def test_the_order_of_batch_and_classes_does_not_matter(seed: int) -> None:
    student, teacher = draw(6, 5, seed=seed), draw(6, 5, seed=seed ^ 1)
    expected = soft_target_loss(student, teacher)
    generator = torch.Generator().manual_seed(seed)
    rows, classes = torch.randperm(6, generator=generator), torch.randperm(5, generator=generator)
    torch.testing.assert_close(soft_target_loss(student[rows], teacher[rows]), expected)
    torch.testing.assert_close(soft_target_loss(student[:, classes], teacher[:, classes]), expected)


def test_with_the_squared_temperature_the_gradient_has_a_limit() -> None:
    """At high temperature it is that of squared differences of centred logits, divided by C."""
    student, teacher = draw(6, 5), draw(6, 5, seed=1)
    _, gradient = gradients(lambda s, t: soft_target_loss(s, t, temperature=1e4), student, teacher)
    centred = (student - student.mean(1, keepdim=True)) - (teacher - teacher.mean(1, keepdim=True))
    torch.testing.assert_close(gradient, centred / (5 * 6), rtol=1e-3, atol=1e-6)


# Masks


@property_test
@given(seed=seeds)
def test_a_mask_equals_a_selection_whatever_the_padding_holds(seed: int) -> None:
    student, teacher = draw(4, 6, 5, seed=seed), draw(4, 6, 5, seed=seed ^ 1)
    mask = draw(4, 6, seed=seed ^ 2) > 0
    mask[0, 0], mask[0, 1] = True, False
    expected, selected = gradients(soft_target_loss, student[mask], teacher[mask])
    for padding in (math.nan, math.inf, 0.0):
        padded_student = torch.where(mask[..., None], student, padding)
        padded_teacher = torch.where(mask[..., None], teacher, padding)
        value, gradient = gradients(
            lambda s, t: soft_target_loss(s, t, mask=mask), padded_student, padded_teacher
        )
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(gradient[mask], selected)
        assert (gradient[~mask] == 0).all()


def test_an_empty_mask_gives_zero_attached_to_the_graph() -> None:
    mask = torch.zeros(4, 6, dtype=torch.bool)
    value, gradient = gradients(
        lambda s, t: soft_target_loss(s, t, mask=mask), draw(4, 6, 5), draw(4, 6, 5, seed=1)
    )
    assert value == 0
    assert (gradient == 0).all()


# Numbers


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("masked", [False, True])
def test_gradcheck(temperature: float, masked: bool) -> None:
    teacher, mask = draw(2, 3, 5, seed=1), draw(2, 3) > 0 if masked else None
    assert torch.autograd.gradcheck(
        lambda s: soft_target_loss(s, teacher, temperature=temperature, mask=mask),
        draw(2, 3, 5).requires_grad_(),
    )


def test_the_teacher_receives_no_gradient() -> None:
    student, teacher = draw(6, 5).requires_grad_(), draw(6, 5, seed=1).requires_grad_()
    soft_target_loss(student, teacher).backward()
    assert student.grad is not None and student.grad.any()
    assert teacher.grad is None


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(temperature: float, dtype: torch.dtype) -> None:
    student, teacher = ((1e3 * draw(6, 5, seed=seed).sign()).to(dtype) for seed in (0, 1))
    value, gradient = gradients(
        lambda s, t: soft_target_loss(s, t, temperature=temperature), student, teacher
    )
    assert value.dtype == torch.float32
    assert gradient.dtype == dtype
    expected = soft_target_loss(student.double(), teacher.double(), temperature=temperature)
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=0)


def test_a_loss_that_float16_cannot_hold() -> None:
    student = torch.tensor([[3e4, -3e4]], dtype=torch.float16)
    loss = soft_target_loss(student, -student, temperature=8.0)
    assert loss.item() == pytest.approx(480_000)
    assert torch.tensor(480_000.0).half().isinf()


def test_logits_of_a_thousand_keep_a_full_gradient() -> None:
    student, teacher = torch.tensor([[1e3, -1e3, 0.0]]), torch.tensor([[-1e3, 1e3, 0.0]])
    value, gradient = gradients(
        lambda s, t: soft_target_loss(s, t, temperature=1.0), student, teacher
    )
    assert value.item() == pytest.approx(2000)
    torch.testing.assert_close(gradient, torch.tensor([[1.0, -1.0, 0.0]]))


def test_autocast_changes_nothing() -> None:
    student, teacher = draw(6, 5).float(), draw(6, 5, seed=1).float()
    expected = soft_target_loss(student, teacher)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(soft_target_loss(student, teacher), expected)


# The objective


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_alpha_weighs_the_soft_term(alpha: float) -> None:
    student, teacher, labels = draw(6, 5), draw(6, 5, seed=1), torch.tensor([0, 1, 2, 3, 4, 0])
    terms = SoftTargetDistillation(temperature=2.0, alpha=alpha)(student, teacher, labels)
    assert list(terms) == ["soft", "hard"]
    torch.testing.assert_close(terms["soft"], alpha * textbook.soft_target(student, teacher, 2.0))
    torch.testing.assert_close(terms["hard"], (1 - alpha) * F.cross_entropy(student, labels))


def test_without_labels_the_soft_term_is_alone_and_unweighted() -> None:
    student, teacher = draw(6, 5), draw(6, 5, seed=1)
    terms = SoftTargetDistillation(temperature=2.0, alpha=0.3)(student, teacher)
    assert list(terms) == ["soft"]
    torch.testing.assert_close(terms["soft"], textbook.soft_target(student, teacher, 2.0))


def test_the_defaults_of_the_objective_show_in_its_name() -> None:
    objective = SoftTargetDistillation()
    assert str(objective) == "SoftTargetDistillation(temperature=4.0, alpha=0.7)"
    assert not list(objective.parameters())


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_the_hard_loss_takes_labels_of_any_integer_type_and_shape(dtype: torch.dtype) -> None:
    logits, labels = draw(2, 3, 5), torch.tensor([[0, 1, 2], [3, 4, 0]])
    expected = F.cross_entropy(logits.reshape(6, 5), labels.reshape(6))
    torch.testing.assert_close(hard_target_loss(logits, labels.to(dtype)), expected)
    single = hard_target_loss(logits[0, 0], labels[0, 0].to(dtype))
    torch.testing.assert_close(single, -logits[0, 0].log_softmax(0)[0])


def test_the_hard_loss_in_half_precision() -> None:
    value, gradient = gradients(
        hard_target_loss, torch.tensor([[1e3, -1e3]]).half(), torch.tensor([1])
    )
    assert value.dtype == torch.float32 and value.item() == 2000
    assert gradient.tolist() == [[1, -1]]


# Bad input

LOGITS = torch.zeros(4, 5)
LABELS = torch.zeros(4, dtype=torch.long)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: soft_target_loss(LOGITS, torch.zeros(4, 1)),
            r"student_logits and teacher_logits .* same shape, got \[4, 5\] and \[4, 1\]",
        ),
        (
            lambda: soft_target_loss(torch.zeros(()), torch.zeros(())),
            r"must be non-empty with at least 1 dimension.*, got \[\]",
        ),
        (
            lambda: soft_target_loss(torch.zeros(0, 5), torch.zeros(0, 5)),
            r"must be non-empty .* got \[0, 5\]",
        ),
        (
            lambda: soft_target_loss(LOGITS.long(), LOGITS),
            "student_logits must be a floating-point tensor, got",
        ),
        (
            lambda: soft_target_loss(LOGITS, [[0.0] * 5] * 4),
            "teacher_logits must be a floating-point tensor, got list",
        ),
        (
            lambda: soft_target_loss(LOGITS, LOGITS, mask=torch.ones(4)),
            r"mask must be a boolean tensor of shape \[4\], got torch.float32 of shape \[4\]",
        ),
        (
            lambda: soft_target_loss(LOGITS, LOGITS, mask=torch.ones(1, dtype=torch.bool)),
            r"mask must be a boolean tensor of shape \[4\], got torch.bool of shape \[1\]",
        ),
        (
            lambda: soft_target_loss(LOGITS, LOGITS, mask=[True] * 4),
            r"mask must be a boolean tensor of shape \[4\], got list",
        ),
        (
            lambda: SoftTargetDistillation(alpha=1.1),
            r"alpha must be between 0\.0 and 1\.0, got 1\.1",
        ),
        (
            lambda: SoftTargetDistillation(alpha=-0.1),
            r"alpha must be between 0\.0 and 1\.0, got -0\.1",
        ),
        (
            lambda: SoftTargetDistillation()(LOGITS, LOGITS, torch.zeros(3).long()),
            r"labels must be integer class indices of shape \[4\], got torch.int64 of shape \[3\]",
        ),
        (
            lambda: hard_target_loss(LOGITS, torch.zeros(4)),
            r"labels must be integer class indices of shape \[4\], got torch.float32",
        ),
        (
            lambda: hard_target_loss(LOGITS, LABELS.bool()),
            r"labels must be integer class indices of shape \[4\], got torch.bool",
        ),
        (lambda: hard_target_loss(LOGITS, LABELS + 5), "labels must lie between 0 and 4, got .* 5"),
        (lambda: hard_target_loss(LOGITS, LABELS - 100), "labels must lie between 0 and 4, got"),
        (
            lambda: hard_target_loss(LOGITS.long(), LABELS),
            "student_logits must be a floating-point tensor",
        ),
        (
            lambda: hard_target_loss(torch.zeros(0, 5), LABELS[:0]),
            r"student_logits must be a non-empty .* got \[0, 5\]",
        ),
        (
            lambda: hard_target_loss(torch.zeros(()), LABELS[0]),
            r"student_logits must be a non-empty .* got \[\]",
        ),
    ],
)
def test_bad_input(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("temperature", [0, -1.0, math.nan, math.inf, "4", None])
def test_bad_temperatures(temperature) -> None:
    message = f"temperature must be a positive finite number, got {temperature!r}"
    with pytest.raises(ValueError, match=message):
        soft_target_loss(LOGITS, LOGITS, temperature=temperature)
    with pytest.raises(ValueError, match=message):
        SoftTargetDistillation(temperature=temperature)
