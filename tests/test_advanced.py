"""Losses on logits, schedules, curricula, mutual learning, ensembles, chains."""

import copy
from functools import partial
from itertools import pairwise

import pytest
import textbook
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from measures import draw, gradients, property_test, seeds
from reference_values import assert_matches, load
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import kdcourse.training
from kdcourse.advanced import (
    Curriculum,
    DecoupledDistillation,
    DISTDistillation,
    Ensemble,
    OnlineDistillation,
    OnlineObjective,
    ProgressiveDistillation,
    StandardizedDistillation,
    Trained,
    decoupled_loss,
    dist_loss,
    example_difficulty,
    standardize_logits,
    train_chain,
)
from kdcourse.soft_targets import SoftTargetDistillation, soft_target_loss
from kdcourse.training import DistillationTrainer, FrozenTeacher, evaluate, fit

SHAPE = (6, 5)
LABELS = torch.tensor([0, 4, 2, 2, 1, 3])


def decoupled(student: Tensor, teacher: Tensor) -> Tensor:
    return decoupled_loss(student, teacher, LABELS[: len(student)])


def standardized(student: Tensor, teacher: Tensor) -> Tensor:
    student, teacher = standardize_logits(student), standardize_logits(teacher)
    return soft_target_loss(student, teacher, temperature=2.0)


LOSSES = [decoupled, dist_loss, standardized]
each_loss = pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


# Values


def test_decoupled_reference() -> None:
    student, teacher, labels = load("logits_s", "logits_t", "labels")
    assert_matches("dkd/T4/a1b8/mdistiller", decoupled_loss(student, teacher, labels), student)


def test_dist_reference() -> None:
    student, teacher = load("logits_s", "logits_t")
    assert_matches("dist/T4/torchdistill", dist_loss(student, teacher, temperature=4.0), student)


def test_standardized_reference() -> None:
    """The reference leaves out T² on this path; ours is T² = 4 times as large."""
    student, teacher = load("logits_s", "logits_t")
    loss = standardized(student, teacher)
    assert_matches("logitstd_kd/T2/torchdistill", loss, student, factor=4)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize(("alpha", "beta"), [(1, 8), (2, 0), (0, 1)])
def test_decoupled_textbook(temperature: float, alpha: float, beta: float) -> None:
    student, teacher = draw(*SHAPE), draw(*SHAPE, seed=1)
    torch.testing.assert_close(
        decoupled_loss(student, teacher, LABELS, temperature=temperature, alpha=alpha, beta=beta),
        textbook.decoupled(student, teacher, LABELS, temperature, alpha, beta),
    )


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize(("beta", "gamma"), [(1, 1), (2, 0), (0, 3)])
def test_dist_textbook(temperature: float, beta: float, gamma: float) -> None:
    student, teacher = draw(*SHAPE), draw(*SHAPE, seed=1)
    torch.testing.assert_close(
        dist_loss(student, teacher, temperature=temperature, beta=beta, gamma=gamma),
        textbook.dist(student, teacher, temperature, beta, gamma),
    )


@property_test
@given(seed=seeds, temperature=st.floats(0.5, 20))
def test_the_soft_target_loss_falls_apart_into_the_two_parts(seed: int, temperature: float) -> None:
    """KD = TCKD + (1 − p_y) NCKD for each example: what the decoupling takes apart."""
    student, teacher = draw(1, 5, seed=seed), draw(1, 5, seed=seed ^ 1)
    label = torch.tensor([seed % 5])
    part = partial(decoupled_loss, student, teacher, label, temperature=temperature)
    doubt = 1 - (teacher / temperature).softmax(1)[0, label]
    torch.testing.assert_close(
        part(alpha=1, beta=0) + doubt[0] * part(alpha=0, beta=1),
        soft_target_loss(student, teacher, temperature=temperature),
        rtol=1e-6,
        atol=1e-10,
    )


def test_decoupled_of_two_classes_has_no_others() -> None:
    student, teacher = draw(4, 2), draw(4, 2, seed=1)
    labels = torch.tensor([0, 1, 1, 0])
    loss = decoupled_loss(student, teacher, labels, alpha=1, beta=8)
    torch.testing.assert_close(loss, soft_target_loss(student, teacher))


def test_decoupled_takes_leading_dimensions() -> None:
    student, teacher = draw(2, 3, 5), draw(2, 3, 5, seed=1)
    torch.testing.assert_close(
        decoupled_loss(student, teacher, LABELS.reshape(2, 3)),
        decoupled_loss(student.flatten(0, 1), teacher.flatten(0, 1), LABELS),
    )


def test_standardized_logits_have_mean_0_and_deviation_1() -> None:
    z = standardize_logits(100 + 50 * draw(*SHAPE))
    torch.testing.assert_close(z.mean(1), torch.zeros(6, dtype=z.dtype))
    torch.testing.assert_close(z.std(1), torch.ones(6, dtype=z.dtype))


@property_test
@given(seed=seeds, scale=st.floats(1e-2, 1e2), offset=st.floats(-10, 10))
def test_standardized_loss_ignores_scale_and_offset(seed: int, scale: float, offset: float) -> None:
    student, teacher = draw(*SHAPE, seed=seed), draw(*SHAPE, seed=seed ^ 1)
    torch.testing.assert_close(
        standardized(scale * student + offset, teacher),
        standardized(student, teacher),
        rtol=1e-4,
        atol=1e-6,
    )


@property_test
@given(seed=seeds)
def test_dist_is_0_for_probabilities_that_correlate_perfectly(seed: int) -> None:
    teacher = draw(*SHAPE, seed=seed).softmax(1)
    student = (0.5 * teacher + 0.1).log()  # half the spread: far from equal, fully correlated
    assert abs(dist_loss(student, teacher.log()).item()) < 1e-12
    assert soft_target_loss(student, teacher.log(), temperature=1.0) > 1e-3


# Numbers


@each_loss
def test_gradcheck(loss) -> None:
    teacher = draw(*SHAPE, seed=1)
    assert torch.autograd.gradcheck(lambda x: loss(x, teacher), draw(*SHAPE).requires_grad_())


@each_loss
def test_the_teacher_receives_no_gradient(loss) -> None:
    student, teacher = draw(*SHAPE).requires_grad_(), draw(*SHAPE, seed=1).requires_grad_()
    loss(student, teacher).backward()
    assert student.grad is not None and student.grad.abs().sum() > 0
    assert teacher.grad is None


@each_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(loss, dtype: torch.dtype) -> None:
    student, teacher = ((30 * draw(*SHAPE, seed=seed)).to(dtype) for seed in (0, 1))
    value, gradient = gradients(loss, student, teacher)
    assert value.dtype == torch.float32
    assert gradient.dtype == dtype
    torch.testing.assert_close(value, loss(student.float(), teacher.float()))


@each_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [30.0, 1e3, 1e6])
def test_large_logits(loss, dtype: torch.dtype, scale: float) -> None:
    student, teacher = scale * draw(*SHAPE, dtype=dtype), scale * draw(*SHAPE, seed=1, dtype=dtype)
    gradients(loss, student, teacher)
    gradients(loss, student, student)


def test_decoupled_is_finite_where_log_softmax_is_not() -> None:
    student, teacher, labels = load("logits_s", "logits_t", "labels")
    student, teacher = 30 * student.float(), 30 * teacher.float()
    naive = textbook.decoupled(student, teacher, labels, temperature=1.0)
    assert naive.isnan()
    value, gradient = gradients(
        partial(decoupled_loss, labels=labels, temperature=1.0), student, teacher
    )
    exact = decoupled_loss(student.double(), teacher.double(), labels, temperature=1.0)
    torch.testing.assert_close(value.double(), exact.detach())
    assert gradient.norm() > 0.1


def test_decoupled_keeps_its_gradient_where_the_student_is_sure_and_wrong() -> None:
    """At ±1e3 the student's probability of the label is 0 in every precision."""
    student = torch.tensor([[-1e3, 1e3, 0.0]])
    teacher = torch.tensor([[5.0, 0.0, 0.0]])
    _, gradient = gradients(decoupled_loss, student, teacher, torch.tensor([0]))
    assert gradient[0, 0] < -1
    assert gradient[0, 1] > 1


@each_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.0, 0.1, 1e3])
def test_constant_rows_and_a_collapsed_batch(loss, dtype: torch.dtype, value: float) -> None:
    student, teacher = draw(*SHAPE, dtype=dtype), draw(*SHAPE, seed=1, dtype=dtype)
    one_constant = student.clone()
    one_constant[0] = value
    constant = torch.full_like(student, value)
    same = student[:1].expand(SHAPE).clone()
    for case in (one_constant, constant, same):
        for pair in ((case, teacher), (student, case), (case, case)):
            _, gradient = gradients(loss, *pair)
            assert gradient.abs().max() < 1e3


@pytest.mark.parametrize("value", [0.0, 0.1, 1e3])
@pytest.mark.parametrize("classes", [3, 10, 100])
def test_equal_logits_standardize_to_0_without_gradient(value: float, classes: int) -> None:
    logits = torch.full((2, classes), value)
    logits[1, 0] += 1
    logits.requires_grad_()
    z = standardize_logits(logits)
    (gradient,) = torch.autograd.grad(z[:, 0].sum(), logits)
    assert (z[0].abs() < 1e-6).all() and (gradient[0] == 0).all()
    assert z[1, 0] > 1 and gradient.isfinite().all()


def test_a_constant_side_counts_as_no_correlation() -> None:
    student = torch.full(SHAPE, 0.1).requires_grad_()
    loss = dist_loss(student, draw(*SHAPE, dtype=torch.float32), beta=2, gamma=3)
    assert loss.item() == 2 + 3
    assert (torch.autograd.grad(loss, student)[0] == 0).all()


@each_loss
@property_test
@given(seed=seeds)
def test_the_order_of_the_batch_does_not_matter(loss, seed: int) -> None:
    student, teacher = draw(*SHAPE, seed=seed), draw(*SHAPE, seed=seed ^ 1)
    order = torch.randperm(len(student), generator=torch.Generator().manual_seed(seed))
    if loss is decoupled:
        reordered = decoupled_loss(student[order], teacher[order], LABELS[order])
    else:
        reordered = loss(student[order], teacher[order])
    torch.testing.assert_close(reordered, loss(student, teacher))


@each_loss
@property_test
@given(seed=seeds, scale=st.floats(1e-3, 10))  # a class that nobody may be has no correlation
def test_losses_are_not_negative_and_0_for_a_perfect_student(loss, seed: int, scale: float) -> None:
    student, teacher = draw(*SHAPE, seed=seed), scale * draw(*SHAPE, seed=seed ^ 1)
    assert loss(student, teacher) >= -1e-12
    assert abs(loss(teacher, teacher).item()) < 1e-9


# Bad input


@each_loss
def test_shapes_must_agree(loss) -> None:
    with pytest.raises(ValueError, match=r"same shape, got \[6, 5\] and \[6, 4\]"):
        loss(torch.zeros(6, 5), torch.zeros(6, 4))


@each_loss
def test_integers_are_refused(loss) -> None:
    with pytest.raises(ValueError, match="logits must be a floating-point tensor, got"):
        loss(torch.zeros(SHAPE, dtype=torch.long), torch.zeros(SHAPE))


ZEROS = torch.zeros(SHAPE)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: decoupled_loss(ZEROS, ZEROS, LABELS, temperature=0), "temperature .* got 0"),
        (lambda: decoupled_loss(ZEROS, ZEROS, LABELS, alpha=-1), "alpha must be at least 0.* -1"),
        (lambda: decoupled_loss(ZEROS, ZEROS, LABELS, beta=-1), "beta must be at least 0.* -1"),
        (
            lambda: decoupled_loss(ZEROS, ZEROS, LABELS + 1),
            "labels must lie between 0 and 4, got values from 1 to 5",
        ),
        (lambda: decoupled_loss(ZEROS, ZEROS, LABELS[:2]), r"labels .* shape \[6\], got .* \[2\]"),
        (lambda: decoupled_loss(ZEROS, ZEROS, LABELS.float()), "labels must be integer"),
        (
            lambda: decoupled_loss(torch.zeros(6, 1), torch.zeros(6, 1), LABELS * 0),
            r"student_logits must hold at least 2 classes, got \[6, 1\]",
        ),
        (lambda: DecoupledDistillation(hard=-1), "hard must be at least 0.* -1"),
        (
            lambda: dist_loss(torch.zeros(1, 5), torch.zeros(1, 5)),
            r"at least 2 examples and 2 classes, got \[1, 5\]",
        ),
        (
            lambda: dist_loss(torch.zeros(2, 3, 5), torch.zeros(2, 3, 5)),
            r"must be \[B, C\] .* got \[2, 3, 5\]",
        ),
        (lambda: dist_loss(ZEROS, ZEROS, gamma=-1), "gamma must be at least 0.* -1"),
        (lambda: dist_loss(ZEROS, ZEROS, temperature=-2), "temperature .* got -2"),
        (lambda: DISTDistillation(beta=-1), "beta must be at least 0.* -1"),
        (
            lambda: standardize_logits(torch.zeros(6, 1)),
            r"logits must hold at least 2 classes, got \[6, 1\]",
        ),
        (lambda: standardize_logits(ZEROS, eps=-1), "eps must be at least 0.* -1"),
        (lambda: ProgressiveDistillation(0), "num_stages must be a whole number of at least 1"),
        (
            lambda: ProgressiveDistillation(temperature=4.0),
            r"temperature must be a pair \(first, last\), got 4.0",
        ),
        (lambda: ProgressiveDistillation(temperature=(4.0, 0)), "temperature .* got 0"),
        (lambda: ProgressiveDistillation(alpha=(0.5, 1.5)), "alpha must be between .* got 1.5"),
        (lambda: example_difficulty(torch.zeros(5)), r"must be a non-empty \[N, C\], got \[5\]"),
        (lambda: Curriculum(torch.zeros(2, 2)), r"difficulty must be finite .* got \[2, 2\]"),
        (lambda: Curriculum(torch.tensor([1.0, torch.nan])), "difficulty must be finite"),
        (lambda: Curriculum(torch.zeros(4), num_stages=1), "num_stages .* at least 2, got 1"),
        (lambda: Curriculum(torch.zeros(4), first_share=0), "first_share must be above 0, got 0"),
        (lambda: Curriculum(torch.zeros(4), first_share=2), "first_share must be between .* got 2"),
        (lambda: Curriculum(torch.zeros(4), pacing=0), "pacing must be a positive .* got 0"),
        (
            lambda: Curriculum(torch.zeros(4), order="easiest"),
            "order must be 'easy', 'hard' or 'random', got 'easiest'",
        ),
        (
            lambda: OnlineDistillation([nn.Identity()]),
            "students must be at least 2 different networks: .* got 1 different of 1",
        ),
        (
            lambda: OnlineDistillation([nn.Identity()] * 2),
            "got 1 different of 2",
        ),
        (
            lambda: OnlineDistillation([nn.Identity(), nn.Identity()], temperature=0),
            "temperature .* got 0",
        ),
        (
            lambda: OnlineDistillation([nn.Identity(), nn.Identity()], target="logits"),
            "target must be 'peers' or 'mean', got 'logits'",
        ),
        (lambda: Ensemble([]), "models must hold at least one network"),
        (
            lambda: Ensemble([nn.Linear(3, 2), nn.Linear(3, 4)])(torch.zeros(1, 3)),
            r"same shape, got \[1, 2\] and \[1, 4\]",
        ),
        (lambda: train_chain([], []), "model_fns must hold at least one function"),
        (
            lambda: train_chain([lambda: nn.Linear(2, 2)] * 4, [], temperature=[1.0, 2.0]),
            r"temperature must be one number, or one for each of the 3 .* got \[1.0, 2.0\]",
        ),
        (
            lambda: train_chain([lambda: nn.Linear(2, 2)] * 3, [], alpha=[0.5, 1.5]),
            "alpha must be between 0.0 and 1.0, got 1.5",
        ),
    ],
)
def test_bad_input(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


# Loss modules


@pytest.mark.parametrize("hard", [0.0, 0.5])
def test_decoupled_module_names_the_parts_of_the_loss(hard: float) -> None:
    student, teacher = draw(*SHAPE), draw(*SHAPE, seed=1)
    terms = DecoupledDistillation(2.0, alpha=0.5, beta=3.0, hard=hard)(student, teacher, LABELS)
    loss = decoupled_loss(student, teacher, LABELS, temperature=2.0, alpha=0.5, beta=3.0)
    torch.testing.assert_close(terms["target"] + terms["others"], loss)
    torch.testing.assert_close(terms["hard"], hard * F.cross_entropy(student, LABELS))


def test_dist_module_names_the_parts_of_the_loss() -> None:
    student, teacher = draw(*SHAPE), draw(*SHAPE, seed=1)
    terms = DISTDistillation(2.0, beta=0.5, gamma=3.0, hard=2.0)(student, teacher, LABELS)
    loss = dist_loss(student, teacher, temperature=2.0, beta=0.5, gamma=3.0)
    torch.testing.assert_close(terms["rows"] + terms["columns"], loss)
    torch.testing.assert_close(terms["hard"], 2 * F.cross_entropy(student, LABELS))
    assert list(DISTDistillation()(student, teacher)) == ["rows", "columns"]


def test_standardized_module_gives_the_labels_the_raw_logits() -> None:
    student, teacher = draw(*SHAPE), draw(*SHAPE, seed=1)
    terms = StandardizedDistillation(2.0, alpha=0.25)(student, teacher, LABELS)
    torch.testing.assert_close(terms["soft"], 0.25 * standardized(student, teacher))
    torch.testing.assert_close(terms["hard"], 0.75 * F.cross_entropy(student, LABELS))
    alone = StandardizedDistillation()(student, teacher)
    torch.testing.assert_close(alone, {"soft": standardized(student, teacher)})


def toy_data(size: int = 48) -> TensorDataset:
    inputs = draw(size, 6, dtype=torch.float32)
    return TensorDataset(inputs, inputs[:, :3].argmax(1))


def toy_loader(seed: int = 0) -> DataLoader:
    generator = torch.Generator().manual_seed(seed)
    return DataLoader(toy_data(), batch_size=16, shuffle=True, generator=generator)


def network(width: int = 16) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(6, width, bias=False),  # before batch norm a bias gets no gradient
        nn.BatchNorm1d(width),
        nn.ReLU(),
        nn.Dropout(0.1),
        nn.Linear(width, 3),
    )


@pytest.mark.parametrize(
    "objective",
    [
        DecoupledDistillation(),
        DISTDistillation(),
        StandardizedDistillation(),
        ProgressiveDistillation(),
    ],
    ids=lambda objective: type(objective).__name__,
)
def test_each_loss_module_trains_every_parameter_of_the_student(objective: nn.Module) -> None:
    student, teacher = network(), network(32)
    trainer = DistillationTrainer(student=student, teacher=teacher, objective=objective)
    before = copy.deepcopy([*student.parameters()])
    teacher_before = copy.deepcopy(teacher.state_dict())
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    trainer.fit(toy_loader(), optimizer, epochs=1, progress=False)
    for old, new in zip(before, student.parameters(), strict=True):
        assert new.grad is not None and new.grad.isfinite().all()
        assert not torch.equal(old, new)
    torch.testing.assert_close(teacher.state_dict(), teacher_before, rtol=0, atol=0)


# Schedules


def test_the_schedule_reaches_its_ends() -> None:
    """A widely copied version ends at T = 2.8 and α = 0.9."""
    progressive = ProgressiveDistillation(num_stages=5, temperature=(10.0, 1.0), alpha=(0.5, 1.0))
    values = []
    for _ in range(7):
        values.append((progressive.temperature, progressive.alpha))
        progressive.advance_stage()
    temperatures, alphas = zip(*values, strict=True)
    assert temperatures == pytest.approx((10, 7.75, 5.5, 3.25, 1, 1, 1))
    assert alphas == pytest.approx((0.5, 0.625, 0.75, 0.875, 1, 1, 1))
    assert (temperatures[4], alphas[4]) == (1.0, 1.0)
    assert progressive.current_stage == 4


def test_one_stage_has_the_first_values() -> None:
    progressive = ProgressiveDistillation(1, temperature=(7.0, 2.0), alpha=(0.25, 0.75))
    progressive.advance_stage()
    assert (progressive.current_stage, progressive.temperature, progressive.alpha) == (0, 7.0, 0.25)


@property_test
@given(
    stages=st.integers(2, 20),
    temperature=st.tuples(st.floats(0.1, 50), st.floats(0.1, 50)),
    alpha=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_every_schedule_is_even_and_ends_exactly(stages: int, temperature, alpha) -> None:
    progressive = ProgressiveDistillation(stages, temperature, alpha)
    values = []
    for _ in range(stages):
        values.append(progressive.temperature)
        assert 0 <= progressive.alpha <= 1
        last = (progressive.temperature, progressive.alpha)
        progressive.advance_stage()
    assert last == (temperature[1], alpha[1])
    step = (temperature[1] - temperature[0]) / (stages - 1)
    assert [b - a for a, b in pairwise(values)] == pytest.approx([step] * (stages - 1), abs=1e-9)


def test_progressive_terms_are_those_of_the_stage() -> None:
    student, teacher = draw(*SHAPE), draw(*SHAPE, seed=1)
    progressive = ProgressiveDistillation(3, (8.0, 2.0), (0.2, 0.6))
    progressive.advance_stage()
    torch.testing.assert_close(
        progressive(student, teacher, LABELS),
        SoftTargetDistillation(5.0, 0.4)(student, teacher, LABELS),
    )


def test_the_stage_is_saved_with_the_state(tmp_path) -> None:
    progressive = ProgressiveDistillation(3)
    progressive.advance_stage()
    torch.save(progressive.state_dict(), tmp_path / "state.pt")
    restored = ProgressiveDistillation(3)
    restored.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert restored.current_stage == 1
    assert restored.temperature == progressive.temperature == 5.5


def test_difficulty_by_confidence_and_by_loss() -> None:
    logits = torch.tensor([[4.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    assert example_difficulty(logits).argsort().tolist() == [0, 1, 2]
    wrong_and_sure = example_difficulty(logits, torch.tensor([1, 0, 0]))
    assert wrong_and_sure.argsort().tolist() == [1, 2, 0]
    expected = F.cross_entropy(logits, torch.tensor([1, 0, 0]), reduction="none")
    torch.testing.assert_close(wrong_and_sure, expected)


@property_test
@given(
    size=st.integers(1, 60),
    stages=st.integers(2, 8),
    first=st.floats(0.01, 1),
    pacing=st.floats(0.2, 5),
    order=st.sampled_from(["easy", "hard", "random"]),
)
def test_a_curriculum_grows_to_everything(
    size: int, stages: int, first: float, pacing: float, order: str
) -> None:
    curriculum = Curriculum(
        draw(size), num_stages=stages, first_share=first, pacing=pacing, order=order
    )
    admitted = [curriculum.indices.tolist()]
    assert curriculum.share == pytest.approx(first)
    for _ in range(stages - 1):
        curriculum.advance_stage()
        admitted.append(curriculum.indices.tolist())
    for earlier, later in pairwise(admitted):
        assert 1 <= len(earlier) <= len(later)
        assert later[: len(earlier)] == earlier
    assert sorted(admitted[-1]) == list(range(size))
    curriculum.advance_stage()
    assert curriculum.current_stage == stages - 1


def test_curriculum_orders() -> None:
    difficulty = torch.tensor([0.3, 0.1, 0.2, 0.9, 0.1])

    def all_of(order: str, seed: int = 0) -> list[int]:
        curriculum = Curriculum(difficulty, num_stages=2, first_share=1.0, order=order, seed=seed)
        return curriculum.indices.tolist()

    assert all_of("easy") == [1, 4, 2, 0, 3]
    assert all_of("hard") == [3, 0, 2, 1, 4]
    assert all_of("random") == all_of("random")
    assert len({tuple(all_of("random", seed)) for seed in range(10)}) > 5


def test_pacing_below_1_admits_early() -> None:
    shares = {}
    for pacing in (0.5, 1.0, 2.0):
        curriculum = Curriculum(draw(10), num_stages=5, first_share=0.2, pacing=pacing)
        curriculum.advance_stage()
        shares[pacing] = curriculum.share
    assert shares == pytest.approx({0.5: 0.6, 1.0: 0.4, 2.0: 0.25})


# Learning together


def logits_of(tensors: list[Tensor]) -> list[nn.Module]:
    """Networks that ignore their input: what they answer is their only parameter."""

    class Constant(nn.Module):
        def __init__(self, answer: Tensor) -> None:
            super().__init__()
            self.answer = nn.Parameter(answer.clone())

        def forward(self, x: Tensor) -> Tensor:
            return self.answer

    return [Constant(tensor) for tensor in tensors]


@pytest.mark.parametrize("students", [2, 3, 5])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_mutual_learning_textbook(students: int, temperature: float) -> None:
    networks = logits_of([draw(*SHAPE, seed=seed) for seed in range(students)])
    terms, logits = OnlineDistillation(networks, temperature)(torch.zeros(6), LABELS)
    total = sum(terms.values())
    expected = textbook.mutual([n.answer for n in networks], LABELS, temperature)
    torch.testing.assert_close(total, expected)
    answers = [n.answer for n in networks]
    torch.testing.assert_close(
        torch.autograd.grad(total, answers), torch.autograd.grad(expected, answers)
    )
    assert [*terms] == [f"{kind}_{i}" for i in range(students) for kind in ("hard", "peers")]
    assert len(logits) == students


@pytest.mark.parametrize("target", ["peers", "mean"])
def test_a_peer_is_a_target_without_gradient(target: str) -> None:
    networks = logits_of([draw(*SHAPE, seed=seed) for seed in range(3)])
    terms, _ = OnlineDistillation(networks, target=target)(torch.zeros(6), LABELS)
    terms["peers_1"].backward()
    assert networks[1].answer.grad.abs().sum() > 0
    assert networks[0].answer.grad is None and networks[2].answer.grad is None


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_mean_target_averages_probabilities_not_logits(temperature: float) -> None:
    answers = [draw(*SHAPE), torch.full(SHAPE, -20.0).double(), torch.zeros(SHAPE).double()]
    answers[1][:, 0] = 20.0
    online = OnlineDistillation(logits_of(answers), temperature, target="mean")
    terms, _ = online(torch.zeros(6), LABELS)
    mean = sum((peer / temperature).softmax(1) for peer in answers[1:]) / 2
    own = F.log_softmax(answers[0] / temperature, 1)
    expected = temperature**2 * (mean * (mean.log() - own)).sum(1).mean()
    torch.testing.assert_close(terms["peers_0"], expected)
    of_logits = soft_target_loss(answers[0], (answers[1] + answers[2]) / 2, temperature=temperature)
    assert not torch.isclose(terms["peers_0"], of_logits, rtol=0.05)


def test_with_two_students_both_targets_are_the_same() -> None:
    networks = logits_of([draw(*SHAPE), draw(*SHAPE, seed=1)])
    both = [
        OnlineDistillation(networks, 2.0, target)(torch.zeros(6), LABELS)[0]
        for target in ("peers", "mean")
    ]
    torch.testing.assert_close(*both)


@pytest.mark.parametrize("target", ["peers", "mean"])
def test_mutual_learning_with_large_logits(target: str) -> None:
    networks = logits_of([1e3 * draw(*SHAPE, seed=s, dtype=torch.float32) for s in range(3)])
    terms, _ = OnlineDistillation(networks, target=target)(torch.zeros(6), LABELS)
    sum(terms.values()).backward()
    for term in terms.values():
        assert term.isfinite()
    for constant in networks:
        assert constant.answer.grad.isfinite().all()


def test_different_architectures_learn_together() -> None:
    students = [network(4), network(32), nn.Linear(6, 3)]
    objective = OnlineObjective(OnlineDistillation(students))
    optimizer = torch.optim.Adam(objective.parameters(), lr=1e-2)
    history = fit(objective, toy_loader(), optimizer, epochs=20, seed=0, progress=False)
    for parameter in objective.parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0
    for student in students:
        assert evaluate(student, toy_data())["accuracy"] > 0.7
    assert {"hard_2", "peers_2", "accuracy_2"} <= {*history.columns}


def test_students_must_share_their_classes() -> None:
    online = OnlineDistillation([nn.Linear(6, 3), nn.Linear(6, 4)])
    with pytest.raises(ValueError, match=r"same shape, got \[2, 3\] and \[2, 4\]"):
        online(torch.zeros(2, 6), torch.zeros(2, dtype=torch.long))


def test_an_ensemble_averages_probabilities() -> None:
    members = [network(), network(4), nn.Linear(6, 3)]
    ensemble = Ensemble(members).eval()
    x = draw(5, 6, dtype=torch.float32)
    mean = sum(member(x).softmax(1) for member in members) / 3
    torch.testing.assert_close(ensemble(x).softmax(1), mean)
    torch.testing.assert_close(ensemble(x).exp(), mean)
    of_logits = (sum(member(x) for member in members) / 3).softmax(1)
    assert not torch.allclose(of_logits, mean, atol=1e-3)


def test_an_ensemble_of_sure_members_is_finite() -> None:
    ensemble = Ensemble(logits_of([torch.tensor([[1e3, -1e3]]), torch.tensor([[-1e3, 1e3]])]))
    torch.testing.assert_close(ensemble(torch.zeros(1)).softmax(1), torch.tensor([[0.5, 0.5]]))


def test_an_ensemble_teaches_and_is_evaluated_like_a_network() -> None:
    ensemble = Ensemble([network(), network()])
    student = network()
    trainer = DistillationTrainer(
        student=student, teacher=ensemble, objective=SoftTargetDistillation()
    )
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    trainer.fit(toy_loader(), optimizer, epochs=1, progress=False)
    assert evaluate(ensemble, toy_data())["loss"] > 0
    with FrozenTeacher(ensemble) as frozen:
        assert not frozen(torch.zeros(2, 6)).requires_grad


# One after another


def chain(**options) -> list[Trained]:
    settings = {"epochs": 3, "lr": 1e-2, "progress": False, "temperature": [4.0, 2.0]} | options
    fns = [partial(network, 32), partial(network, 16), partial(network, 8)]
    return train_chain(fns, toy_loader(), validation=toy_data(), **settings)


def same(first: nn.Module, second: nn.Module) -> bool:
    a, b = first.state_dict(), second.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_chain_learns_from_labels_then_from_one_another() -> None:
    links = chain()
    assert [link.model[0].out_features for link in links] == [32, 16, 8]
    assert "soft" not in links[0].history
    for link in links[1:]:
        assert {"soft", "hard"} <= {*link.history.columns}
    for link in links:
        assert link.evaluation == evaluate(link.model, toy_data())
        assert len(link.history) == 3
        assert link.model.training
        assert all(parameter.requires_grad for parameter in link.model.parameters())


def test_a_chain_may_start_from_a_teacher() -> None:
    teacher = network(64)
    before = copy.deepcopy(teacher.state_dict())
    links = chain(teacher=teacher, temperature=[4.0, 2.0, 1.0])
    assert "soft" in links[0].history
    torch.testing.assert_close(teacher.state_dict(), before, rtol=0, atol=0)
    assert all(parameter.requires_grad for parameter in teacher.parameters())


def test_each_link_learns_from_the_one_before_it() -> None:
    """The second link's history shows the accuracy of its teacher: the first, in eval mode."""
    links = chain()
    for teacher, student in pairwise(links):
        shown = student.history["teacher_accuracy"].to_numpy()
        assert shown == pytest.approx(teacher.evaluation["accuracy"])


def test_a_chain_is_reproducible_and_its_networks_have_seeds_of_their_own() -> None:
    torch.manual_seed(99)
    first = chain()
    torch.manual_seed(7)
    again, other = chain(), chain(seed=1)
    for a, b, c in zip(first, again, other, strict=True):
        assert same(a.model, b.model)
        assert not same(a.model, c.model)


class StopError(Exception):
    pass


class Interrupted:
    """A loader that fails, or is stopped by the user, in a chosen epoch."""

    def __init__(self, epoch: int, error: type[BaseException]) -> None:
        self.loader = toy_loader()
        self.generator = self.loader.generator
        self.left = epoch
        self.error = error

    def __iter__(self):
        for number, batch in enumerate(self.loader):
            if self.left == 0 and number == 1:
                raise self.error
            yield batch
        self.left -= 1


@pytest.mark.parametrize("epoch", range(9))
def test_a_chain_continues_bit_for_bit_wherever_it_stopped(tmp_path, epoch: int) -> None:
    fns = [partial(network, 32), partial(network, 16), partial(network, 8)]
    options = {"epochs": 3, "lr": 1e-2, "progress": False, "directory": tmp_path}
    with pytest.raises(StopError):
        train_chain(fns, Interrupted(epoch, StopError), **options)
    torch.manual_seed(epoch)
    links = train_chain(fns, toy_loader(seed=5), **options)
    for resumed, whole in zip(links, chain(temperature=4.0), strict=True):
        assert same(resumed.model, whole.model)
        columns = [name for name in whole.history if name != "seconds"]
        assert resumed.history[columns].equals(whole.history[columns])


def test_what_is_finished_is_not_trained_again(tmp_path, monkeypatch) -> None:
    chain(directory=tmp_path)
    monkeypatch.setattr(
        kdcourse.training, "_train_one_epoch", lambda *_: pytest.fail("trained again")
    )
    assert len(chain(directory=tmp_path)) == 3


def test_an_interrupted_network_teaches_no_other() -> None:
    fns = [network] * 3
    with pytest.warns(UserWarning, match="training was interrupted in epoch 2"):
        links = train_chain(fns, Interrupted(4, KeyboardInterrupt), epochs=3, progress=False)
    assert [len(link.history) for link in links] == [3, 1]


@pytest.mark.parametrize(
    "change", [{"temperature": [4.0, 3.0]}, {"alpha": 0.5}, {"lr": 1e-3}, {"seed": 1}]
)
def test_checkpoints_of_other_settings_are_not_used(tmp_path, change) -> None:
    chain(directory=tmp_path)
    for changed, alone in zip(chain(directory=tmp_path, **change), chain(**change), strict=True):
        assert same(changed.model, alone.model)


def test_a_chain_may_be_made_longer(tmp_path) -> None:
    fns = [network] * 2
    train_chain(fns, toy_loader(), epochs=2, directory=tmp_path, progress=False)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    links = train_chain([*fns, network], toy_loader(), epochs=2, directory=tmp_path, progress=False)
    assert len(links) == 3
    assert all(path.stat().st_mtime_ns == written for path, written in files.items())
    assert len([*tmp_path.iterdir()]) == len(files) + 1


def test_weights_must_be_fresh() -> None:
    shared = network()

    def always_the_same_weights() -> nn.Module:
        torch.manual_seed(0)
        return network()

    for model_fn in (always_the_same_weights, lambda: copy.deepcopy(shared)):
        with pytest.raises(ValueError, match="fresh random weights at every call"):
            train_chain([model_fn] * 2, toy_loader(), epochs=1, progress=False)
    for fns in ([lambda: shared] * 2, [lambda: shared, network, lambda: shared]):
        with pytest.raises(ValueError, match="a new network at every call"):
            train_chain(fns, toy_loader(), epochs=1, progress=False)
    with pytest.raises(ValueError, match="a new network at every call"):
        train_chain([lambda: shared], toy_loader(), teacher=shared, epochs=1, progress=False)
