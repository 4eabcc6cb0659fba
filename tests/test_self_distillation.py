"""Exits, early exit, born-again generations, views, controls, calibration."""

import math
from functools import partial
from itertools import pairwise

import pytest
import textbook
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from measures import draw, gradients, property_test, seeds
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from kdcourse.self_distillation import (
    BeYourOwnTeacher,
    BornAgainNetworks,
    ExitDistillation,
    SelfDistillation,
    SelfDistillationObjective,
    TeacherFreeObjective,
    ViewConsistencyObjective,
    early_exit,
    expected_calibration_error,
    label_smoothing_loss,
    reliability,
    self_distillation_loss,
    uniform_teacher_loss,
    view_consistency_loss,
    virtual_teacher_loss,
)
from kdcourse.soft_targets import SoftTargetDistillation, soft_target_loss
from kdcourse.training import DistillationTrainer, SupervisedObjective, evaluate, fit

SHAPE = (6, 5)
LABELS = torch.tensor([0, 4, 2, 2, 1, 3])


def exit_loss(student: Tensor, final: Tensor) -> Tensor:
    """The loss of one exit and of another that stays as it is."""
    return self_distillation_loss(final, [student, torch.zeros_like(student)], LABELS)


def both_ways(final: Tensor, leave: Tensor) -> Tensor:
    """The loss as the final logits see it."""
    return self_distillation_loss(final, [leave], LABELS)


def own_teacher(student: Tensor, final: Tensor) -> Tensor:
    terms = BeYourOwnTeacher([4], hint=0)(final, [student], LABELS)
    return torch.stack([*terms.values()]).sum()


def smoothed(student: Tensor, _: Tensor) -> Tensor:
    return label_smoothing_loss(student, LABELS)


def uniform(student: Tensor, _: Tensor) -> Tensor:
    return uniform_teacher_loss(student)


def virtual(student: Tensor, _: Tensor) -> Tensor:
    return virtual_teacher_loss(student, LABELS, temperature=2.0)


LOSSES = [exit_loss, both_ways, own_teacher, view_consistency_loss, smoothed, uniform, virtual]
each_loss = pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)


def conv_stages() -> nn.Sequential:
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()),
        nn.Sequential(nn.Conv2d(4, 6, 3, stride=2, padding=1), nn.ReLU()),
        nn.Sequential(nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.ReLU()),
    )


def conv_model() -> SelfDistillation:
    torch.manual_seed(0)
    return SelfDistillation(conv_stages(), num_classes=5, hidden_dims=[4, 6, 8])


def vector_model() -> SelfDistillation:
    torch.manual_seed(0)
    stages = [nn.Sequential(nn.Linear(a, b), nn.ReLU()) for a, b in ((7, 9), (9, 11), (11, 4))]
    return SelfDistillation(stages, num_classes=5, hidden_dims=[9, 11, 4])


MODELS = {"convolutions": (conv_model, (32, 1, 8, 8)), "vectors": (vector_model, (32, 7))}
each_model = pytest.mark.parametrize(("build", "shape"), MODELS.values(), ids=MODELS)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


# The network


@each_model
def test_an_exit_after_each_stage(build, shape: tuple[int, ...]) -> None:
    model, x = build().eval(), draw(*shape, dtype=torch.float32)
    final, exits, features = model(x, return_features=True)
    assert final.shape == (32, 5)
    assert [leave.shape for leave in exits] == [(32, 5)] * 3
    assert [f.shape[1] for f in features] == [leave.in_features for leave in model.exits]
    assert len(model(x)) == 2
    for stage, leave, logits in zip(model.stages, model.exits, exits, strict=True):
        x = stage(x)
        torch.testing.assert_close(logits, leave(x.mean((2, 3)) if x.dim() == 4 else x))
    torch.testing.assert_close(final, model.classifier(features[-1]))


def test_feature_maps_are_pooled_before_the_final_classifier_at_any_size() -> None:
    """Widely copied code gives the final linear layer the map itself: a shape error."""
    model = conv_model()
    for size in (8, 9, 20):
        final, exits = model(torch.zeros(2, 1, size, size))
        assert final.shape == exits[-1].shape == (2, 5)
    assert model(torch.zeros(2, 1, 12, 5))[0].shape == (2, 5)


def test_stages_may_be_of_any_kind_and_mix() -> None:
    sequence = nn.Sequential(nn.Conv1d(2, 3, 3), nn.Flatten(), nn.Linear(18, 4))
    model = SelfDistillation([sequence[0], sequence[1:]], 5, [3, 4])
    assert [z.shape for z in model(torch.zeros(7, 2, 8))[1]] == [(7, 5), (7, 5)]
    volume = SelfDistillation([nn.Conv3d(1, 3, 3)], 5, [3])
    assert volume(torch.zeros(7, 1, 4, 4, 4))[0].shape == (7, 5)


@each_model
def test_up_to_an_exit_is_that_exit(build, shape: tuple[int, ...]) -> None:
    model, x = build().eval(), draw(*shape, dtype=torch.float32)
    final, exits = model(x)
    for index, expected in enumerate([*exits, final]):
        torch.testing.assert_close(model.up_to(index)(x), expected)
    labels = torch.arange(32) % 5
    accuracy = evaluate(model.up_to(1), TensorDataset(x, labels))["accuracy"]
    assert accuracy == pytest.approx((exits[1].argmax(1) == labels).float().mean().item())


def test_up_to_runs_no_later_stage_and_shares_weights() -> None:
    model = vector_model()
    model.stages[1].register_forward_hook(lambda *_: pytest.fail("stage 1 ran"))
    short = model.up_to(0)
    short(torch.zeros(2, 7)).sum().backward()
    assert model.exits[0].weight.grad is not None


# Early exit


class Counted(nn.Module):
    """A stage that notes how many examples it was given in each call."""

    def __init__(self, stage: nn.Module) -> None:
        super().__init__()
        self.stage = stage
        self.sizes: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(len(x))
        return self.stage(x)


def counted(build, shape: tuple[int, ...]) -> tuple[SelfDistillation, Tensor]:
    """A network with counted stages that grows surer with every stage and from input to input."""
    model = build().eval()
    for index, leave in enumerate(model.exits):
        leave.weight.data *= 4**index
    model.stages = nn.ModuleList(Counted(stage) for stage in model.stages)
    sizes = torch.logspace(-1, 1.5, shape[0]).reshape(-1, *[1] * (len(shape) - 1))
    return model, sizes * draw(*shape, dtype=torch.float32)


@each_model
@pytest.mark.parametrize("threshold", [0.0, 0.2, 0.35, 0.5, 0.7, 1.0])
def test_early_exit_is_the_full_computation_at_the_exit_chosen(
    build, shape: tuple[int, ...], threshold: float
) -> None:
    model, x = counted(build, shape)
    with torch.no_grad():
        final, exits = model(x)
    for stage in model.stages:
        stage.sizes.clear()
    logits, left_at = early_exit(model, x, threshold=threshold)

    candidates = torch.stack([*exits, final])
    confident = candidates.softmax(-1).amax(-1) >= threshold
    confident[-1] = True
    expected = confident.int().argmax(0)  # the first confident exit
    assert left_at.tolist() == expected.tolist()
    torch.testing.assert_close(logits, candidates[expected, torch.arange(len(x))])
    for index, stage in enumerate(model.stages):
        staying = int((expected >= index).sum())
        assert stage.sizes == ([staying] if staying else [])


@each_model
def test_the_thresholds_in_between_are_between(build, shape: tuple[int, ...]) -> None:
    """What the test above compares is not trivial: examples leave at several exits."""
    model, x = counted(build, shape)
    lefts = [early_exit(model, x, threshold=t)[1] for t in (0.0, 0.35, 0.5, 1.0)]
    assert lefts[0].unique().tolist() == [0]
    assert (lefts[-1] == 3).sum() > 24
    assert max(len(left.unique()) for left in lefts) >= 3


def test_when_all_have_left_no_later_stage_runs() -> None:
    model, x = counted(vector_model, (4, 7))
    early_exit(model, x, threshold=0.0)
    assert [stage.sizes for stage in model.stages] == [[4], [], []]


def test_early_exit_needs_no_gradient_and_changes_nothing() -> None:
    model = conv_model().eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    logits, left_at = early_exit(model, draw(8, 1, 8, 8).float(), threshold=0.3)
    assert not logits.requires_grad and left_at.dtype == torch.int64
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


# Losses


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("exits", [1, 3])
def test_self_distillation_textbook(temperature: float, exits: int) -> None:
    final = draw(*SHAPE).requires_grad_()
    leaves = [draw(*SHAPE, seed=1 + i).requires_grad_() for i in range(exits)]
    ours = self_distillation_loss(final, leaves, LABELS, temperature=temperature)
    expected = textbook.self_distillation(final, leaves, LABELS, temperature)
    torch.testing.assert_close(ours, expected)
    tensors = [final, *leaves]
    torch.testing.assert_close(
        torch.autograd.grad(ours, tensors), torch.autograd.grad(expected, tensors)
    )


def test_the_final_logits_learn_from_the_labels_alone() -> None:
    final, leave = draw(*SHAPE).requires_grad_(), draw(*SHAPE, seed=1)
    (gradient,) = torch.autograd.grad(both_ways(final, leave), final)
    (expected,) = torch.autograd.grad(F.cross_entropy(final, LABELS), final)
    torch.testing.assert_close(gradient, expected)


def test_the_terms_are_named_and_add_up() -> None:
    final, exits = draw(*SHAPE), [draw(*SHAPE, seed=seed) for seed in (1, 2)]
    terms = ExitDistillation(temperature=3.0)(final, exits, LABELS)
    assert [*terms] == ["final", "exits_soft", "exits_hard"]
    loss = self_distillation_loss(final, exits, LABELS, temperature=3.0)
    torch.testing.assert_close(sum(terms.values()), loss)
    soft = sum(soft_target_loss(z, final, temperature=3.0) for z in exits) / 2
    torch.testing.assert_close(terms["exits_soft"], 0.5 * soft)
    weighted = ExitDistillation(3.0, soft=0.0, hard=1.0)(final, exits, LABELS)
    assert weighted["exits_soft"] == 0
    torch.testing.assert_close(weighted["exits_hard"], 4 * terms["exits_hard"])


def features_of(widths: list[int], seed: int = 7) -> list[Tensor]:
    return [draw(6, w, seed=seed + w).requires_grad_() for w in widths]


@pytest.mark.parametrize("options", [{}, {"temperature": 2.0, "alpha": 0.6, "hint": 0.5}])
def test_the_paper_s_loss_textbook(options) -> None:
    """Unlike our other losses without T², as in the authors' code."""
    final, exits = draw(*SHAPE), [draw(*SHAPE, seed=seed) for seed in (1, 2, 3)]
    features = features_of([4, 6, 8])
    loss = BeYourOwnTeacher([4, 6, 8], **options).double()
    terms = loss(final, exits, LABELS, features)
    assert [*terms] == ["final", "exits_soft", "exits_hard", "hint"]
    mapped = [adapt(own) for adapt, own in zip(loss.maps, features[:-1], strict=True)]
    expected = textbook.be_your_own_teacher(
        final,
        exits,
        LABELS,
        mapped,
        features[-1],
        options.get("temperature", 3.0),
        options.get("alpha", 0.3),
        options.get("hint", 0.03),
    )
    torch.testing.assert_close(sum(terms.values()), expected)


def test_the_final_features_are_a_target_without_gradient() -> None:
    features = features_of([4, 6, 8])
    final = draw(*SHAPE)
    terms = BeYourOwnTeacher([4, 6, 8]).double()(final, [final] * 3, LABELS, features)
    terms["hint"].backward()
    assert features[-1].grad is None
    assert all(own.grad.abs().sum() > 0 for own in features[:-1])


def test_without_hint_there_is_nothing_to_learn() -> None:
    assert [*BeYourOwnTeacher([4, 6, 8], hint=0).parameters()] == []
    assert [*BeYourOwnTeacher([8]).parameters()] == []
    final = draw(*SHAPE)
    assert "hint" not in BeYourOwnTeacher([4, 8], hint=0)(final, [final] * 2, LABELS)


@each_model
@pytest.mark.parametrize("paper", [False, True])
def test_every_trainable_parameter_gets_a_gradient(
    build, shape: tuple[int, ...], paper: bool
) -> None:
    model = build()
    widths = [leave.in_features for leave in model.exits]
    objective = SelfDistillationObjective(model, BeYourOwnTeacher(widths) if paper else None)
    terms, metrics = objective((draw(*shape).float(), torch.arange(32) % 5))
    sum(terms.values()).backward()
    for name, parameter in objective.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    assert [*metrics] == ["accuracy", *(f"exit_accuracy_{i}" for i in range(3))]


def toy_data(size: int = 64) -> TensorDataset:
    inputs = draw(size, 7, dtype=torch.float32)
    return TensorDataset(inputs, inputs[:, :5].argmax(1))


def toy_loader(seed: int = 0) -> DataLoader:
    generator = torch.Generator().manual_seed(seed)
    return DataLoader(toy_data(), batch_size=16, shuffle=True, generator=generator)


@pytest.mark.parametrize("paper", [False, True])
def test_exits_learn(paper: bool) -> None:
    model = vector_model()
    objective = SelfDistillationObjective(model, BeYourOwnTeacher([9, 11, 4]) if paper else None)
    optimizer = torch.optim.Adam(objective.parameters(), lr=1e-2)
    history = fit(objective, toy_loader(), optimizer, epochs=30, seed=0, progress=False)
    for index in range(4):
        assert evaluate(model.up_to(index), toy_data())["accuracy"] > 0.7
    assert history["exit_accuracy_0"].iloc[-1] > history["exit_accuracy_0"].iloc[0]


@pytest.mark.parametrize("loss", [exit_loss, own_teacher, smoothed, uniform, virtual])
def test_gradcheck(loss) -> None:
    other = draw(*SHAPE, seed=1)
    assert torch.autograd.gradcheck(lambda x: loss(x, other), draw(*SHAPE).requires_grad_())


def test_each_view_learns_from_the_other_as_a_fixed_target() -> None:
    first, second = draw(*SHAPE).requires_grad_(), draw(*SHAPE, seed=1).requires_grad_()
    ours = torch.autograd.grad(view_consistency_loss(first, second), (first, second))
    halves = soft_target_loss(first, second.detach()), soft_target_loss(second, first.detach())
    expected = torch.autograd.grad(sum(halves) / 2, (first, second))
    torch.testing.assert_close(ours, expected)


@each_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(loss, dtype: torch.dtype) -> None:
    student, other = ((30 * draw(*SHAPE, seed=seed)).to(dtype) for seed in (0, 1))
    value, gradient = gradients(loss, student, other)
    assert value.dtype == torch.float32
    assert gradient.dtype == dtype
    torch.testing.assert_close(value, loss(student.float(), other.float()))


@each_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_large_and_constant_logits(loss, dtype: torch.dtype) -> None:
    student, other = 1e3 * draw(*SHAPE, dtype=dtype), 1e3 * draw(*SHAPE, seed=1, dtype=dtype)
    for first, second in ((student, other), (student, student), (student * 0, other)):
        gradients(loss, first, second)
        gradients(loss, second, first)


@property_test
@given(seed=seeds, temperature=st.floats(0.5, 20))
def test_view_consistency_is_symmetric_and_0_for_equal_views(seed: int, temperature: float) -> None:
    first, second = draw(*SHAPE, seed=seed), draw(*SHAPE, seed=seed ^ 1)
    loss = partial(view_consistency_loss, temperature=temperature)
    torch.testing.assert_close(loss(first, second), loss(second, first))
    assert loss(first, second) > 0
    assert abs(loss(first, first).item()) < 1e-12
    expected = textbook.soft_target(first, second, temperature)
    expected = (expected + textbook.soft_target(second, first, temperature)) / 2
    torch.testing.assert_close(loss(first, second), expected)


def test_two_views_are_drawn_for_each_batch() -> None:
    torch.manual_seed(0)
    model = nn.Linear(7, 5)
    seen: list[Tensor] = []

    def augment(inputs: Tensor, generator: torch.Generator) -> Tensor:
        seen.append(inputs + torch.randn(inputs.shape, generator=generator))
        return seen[-1]

    objective = ViewConsistencyObjective(model, augment, temperature=2.0, weight=3.0)
    inputs, labels = toy_data()[:8]
    terms, metrics = objective((inputs, labels, "more"))
    first, second = (model(view) for view in seen)
    assert not torch.equal(*seen)
    torch.testing.assert_close(
        terms["consistency"], 3 * view_consistency_loss(first, second, temperature=2.0)
    )
    hard = (F.cross_entropy(first, labels) + F.cross_entropy(second, labels)) / 2
    torch.testing.assert_close(terms["hard"], hard)
    sum(terms.values()).backward()
    assert all(p.grad.abs().sum() > 0 for p in objective.parameters())
    assert 0 <= metrics["accuracy"] <= 1


def test_the_same_seed_draws_the_same_views() -> None:
    def learned(before: int) -> Tensor:
        model = nn.Linear(7, 5)
        nn.init.zeros_(model.weight)
        nn.init.zeros_(model.bias)
        torch.manual_seed(before)
        objective = ViewConsistencyObjective(
            model, lambda x, generator: x + torch.randn(x.shape, generator=generator)
        )
        optimizer = torch.optim.SGD(objective.parameters(), lr=0.1)
        fit(objective, toy_loader(), optimizer, epochs=1, seed=0, progress=False)
        return model.weight

    assert torch.equal(learned(1), learned(2))


# Controls


def test_label_smoothing_textbook() -> None:
    logits = draw(*SHAPE)
    targets = 0.9 * F.one_hot(LABELS, 5) + 0.1 / 5
    expected = -(targets * F.log_softmax(logits, 1)).sum(1).mean()
    torch.testing.assert_close(label_smoothing_loss(logits, LABELS, smoothing=0.1), expected)
    plain = label_smoothing_loss(logits, LABELS, smoothing=0)
    torch.testing.assert_close(plain, F.cross_entropy(logits, LABELS))


def test_a_uniform_teacher_is_a_teacher_with_equal_logits() -> None:
    logits = draw(*SHAPE)
    expected = textbook.soft_target(logits, torch.full_like(logits, 3.0), 2.0)
    torch.testing.assert_close(uniform_teacher_loss(logits, temperature=2.0), expected)
    assert abs(uniform_teacher_loss(torch.ones(SHAPE)).item()) < 1e-6


@property_test
@given(seed=seeds, smoothing=st.floats(0, 1))
def test_label_smoothing_is_distillation_from_a_uniform_teacher(
    seed: int, smoothing: float
) -> None:
    logits = draw(*SHAPE, seed=seed)
    control = TeacherFreeObjective(nn.Identity(), correct=None, temperature=1.0, alpha=smoothing)
    terms, _ = control((logits, LABELS))
    smoothed = label_smoothing_loss(logits, LABELS, smoothing=smoothing)
    torch.testing.assert_close(sum(terms.values()) + smoothing * math.log(5), smoothed)


@pytest.mark.parametrize("temperature", [1.0, 20.0])
@pytest.mark.parametrize("correct", [0.3, 0.9, 0.999])
def test_virtual_teacher_textbook(temperature: float, correct: float) -> None:
    logits = draw(*SHAPE)
    q = torch.full(SHAPE, (1 - correct) / 4, dtype=torch.float64)
    q[torch.arange(6), LABELS] = correct
    expected = textbook.soft_target(logits, q.log(), temperature)
    ours = virtual_teacher_loss(logits, LABELS, correct=correct, temperature=temperature)
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=0)


def test_probabilities_taken_as_logits_make_the_virtual_teacher_nearly_uniform() -> None:
    """The authors' code: at T = 20 the label gets 0.21 of 5 classes, whatever `correct` is."""
    q = torch.tensor([0.99, 0.0025, 0.0025, 0.0025, 0.0025])
    as_logits, softened = (q / 20).softmax(0)[0], (q.log() / 20).softmax(0)[0]
    assert as_logits.item() == pytest.approx(0.208, abs=1e-3)
    assert softened.item() == pytest.approx(0.252, abs=1e-3)


@pytest.mark.parametrize("correct", [0.9, None])
def test_teacher_free_training(correct: float | None) -> None:
    torch.manual_seed(0)
    model = nn.Linear(7, 5)
    objective = TeacherFreeObjective(model, correct=correct, temperature=4.0, alpha=0.25)
    inputs, labels = toy_data()[:8]
    terms, _ = objective((inputs, labels))
    logits = model(inputs)
    torch.testing.assert_close(terms["hard"], 0.75 * F.cross_entropy(logits, labels))
    soft = (
        uniform_teacher_loss(logits, temperature=4.0)
        if correct is None
        else virtual_teacher_loss(logits, labels, correct=0.9, temperature=4.0)
    )
    torch.testing.assert_close(terms["soft"], 0.25 * soft)
    optimizer = torch.optim.Adam(objective.parameters(), lr=1e-1)
    fit(objective, toy_loader(), optimizer, epochs=20, seed=0, progress=False)
    assert evaluate(model, toy_data())["accuracy"] > 0.7


# Born again


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(7, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 5))


def born_again(num_generations: int = 3, **options) -> BornAgainNetworks:
    names = ("temperature", "alpha")
    networks = BornAgainNetworks(network, **{k: options.pop(k) for k in names if k in options})
    networks.train(
        toy_loader(),
        num_generations,
        epochs_per_generation=2,
        lr=1e-2,
        validation=toy_data(),
        progress=False,
        **options,
    )
    return networks


def test_every_generation_is_kept_with_history_and_evaluation() -> None:
    generations = born_again().generations
    assert len(generations) == 4
    assert [*generations[0].history.columns][:4] == ["epoch", "loss", "hard", "accuracy"]
    for teacher, generation in pairwise(generations):
        assert {"soft", "hard", "student_accuracy"} <= {*generation.history.columns}
        assert len(generation.history) == 2
        assert generation.evaluation == evaluate(generation.model, toy_data())
        shown = generation.history["teacher_accuracy"].to_numpy()
        assert shown == pytest.approx(teacher.evaluation["accuracy"])


def test_every_generation_starts_from_weights_of_its_own() -> None:
    initial = []

    def noted() -> nn.Module:
        model = network()
        initial.append(model[0].weight.detach().clone())
        return model

    BornAgainNetworks(noted).train(toy_loader(), 3, 1, progress=False)
    assert len(initial) == 4
    assert all(not torch.equal(a, b) for i, a in enumerate(initial) for b in initial[:i])


def test_the_same_weights_again_are_refused() -> None:
    """A popular library trains every generation from the weights of the first."""
    weights = network().state_dict()

    def reusing() -> nn.Module:
        model = network()
        model.load_state_dict(weights)
        return model

    with pytest.raises(ValueError, match="model_fn must build a network with fresh random weights"):
        BornAgainNetworks(reusing).train(toy_loader(), 1, 1, progress=False)


def test_a_temperature_and_alpha_for_each_generation() -> None:
    several = born_again(temperature=[1.0, 2.0, 8.0], alpha=[0.9, 0.5, 0.1]).generations
    single = born_again(temperature=1.0, alpha=0.9).generations
    alike = [
        torch.equal(a.model[0].weight, b.model[0].weight)
        for a, b in zip(several, single, strict=True)
    ]
    assert alike == [True, True, False, False]


@pytest.mark.parametrize(("temperatures", "alphas"), [(4.0, 0.7), ([1.0, 8.0], [0.9, 0.1])])
def test_a_generation_is_an_ordinary_distillation(temperatures, alphas) -> None:
    """The recipe by hand, from the same seeds, gives the same weights."""
    generator = torch.Generator().manual_seed(3)
    generations: list[nn.Module] = []
    for number in range(3):
        seed = int(torch.randint(2**62, (), generator=generator))
        torch.manual_seed(seed)
        student = network()
        optimizer = torch.optim.Adam(student.parameters(), lr=1e-2)
        options = {"epochs": 2, "seed": seed, "progress": False}
        if number == 0:
            fit(SupervisedObjective(student), toy_loader(), optimizer, **options)
        else:
            temperature, alpha = (
                values[number - 1] if isinstance(values, list) else values
                for values in (temperatures, alphas)
            )
            trainer = DistillationTrainer(
                student=student,
                teacher=generations[-1],
                objective=SoftTargetDistillation(temperature, alpha),
            )
            trainer.fit(toy_loader(), optimizer, **options)
        generations.append(student)
    ours = born_again(2, seed=3, temperature=temperatures, alpha=alphas).generations
    for mine, theirs in zip(generations, ours, strict=True):
        torch.testing.assert_close(mine.state_dict(), theirs.model.state_dict(), rtol=0, atol=0)


class StopError(Exception):
    pass


class CountingLoader:
    """Counts the epochs, and fails in the middle of a chosen one."""

    def __init__(self, fails_in: int | None = None) -> None:
        self.loader = toy_loader()
        self.generator = self.loader.generator
        self.fails_in = fails_in
        self.epochs = 0

    def __iter__(self):
        for number, batch in enumerate(self.loader):
            if self.epochs == self.fails_in and number == 2:
                raise StopError
            yield batch
        self.epochs += 1


@pytest.mark.parametrize("stopped_in", range(4))
def test_born_again_resumes_in_any_generation(tmp_path, stopped_in: int) -> None:
    options = {"epochs_per_generation": 2, "lr": 1e-2, "progress": False, "directory": tmp_path}
    first, second = CountingLoader(fails_in=2 * stopped_in + 1), CountingLoader()
    with pytest.raises(StopError):
        BornAgainNetworks(network).train(first, **options)
    torch.manual_seed(123)
    resumed = BornAgainNetworks(network)
    resumed.train(second, **options)
    assert first.epochs + second.epochs == 4 * 2  # nothing is trained twice
    whole = born_again()
    for a, b in zip(resumed.generations, whole.generations, strict=True):
        torch.testing.assert_close(a.model.state_dict(), b.model.state_dict(), rtol=0, atol=0)


def test_the_ensemble_averages_the_generations_probabilities() -> None:
    networks = born_again()
    ensemble = networks.ensemble().eval()
    x = toy_data()[:9][0]
    mean = sum(generation.model(x).softmax(1) for generation in networks.generations) / 4
    torch.testing.assert_close(ensemble(x).softmax(1), mean)


# Calibration


def test_calibration_by_hand() -> None:
    first = torch.tensor([0.95, 0.95, 0.55, 0.3, 0.22], dtype=torch.float64)
    p = torch.stack([first, 1 - first], dim=1)
    labels = torch.tensor([0, 1, 0, 1, 1])
    confidence, accuracy, examples = reliability(p.log(), labels, bins=5)
    assert examples.tolist() == [0, 0, 1, 2, 2]
    torch.testing.assert_close(confidence[2:], torch.tensor([0.55, 0.74, 0.95]).double())
    torch.testing.assert_close(accuracy[2:], torch.tensor([1.0, 1.0, 0.5]).double())
    assert confidence[:2].isnan().all() and accuracy[:2].isnan().all()
    expected = (1 * 0.45 + 2 * 0.26 + 2 * 0.45) / 5
    error = expected_calibration_error(p.log(), labels, bins=5)
    assert error == pytest.approx(expected, rel=1e-12)
    half = torch.zeros(1, 2)
    assert reliability(half, labels[:1], bins=2).examples.tolist() == [1, 0]  # (0, 0.5], (0.5, 1]


@property_test
@given(seed=seeds, bins=st.integers(1, 30), scale=st.floats(0.1, 1e3))
def test_calibration_bins_hold_every_example_where_it_belongs(
    seed: int, bins: int, scale: float
) -> None:
    logits, labels = scale * draw(40, 4, seed=seed), torch.arange(40) % 4
    confidence, accuracy, examples = reliability(logits, labels, bins=bins)
    assert examples.sum() == 40
    for index in examples.nonzero().flatten().tolist():
        assert index / bins - 1e-9 <= confidence[index] <= (index + 1) / bins + 1e-9
    right = (logits.argmax(1) == labels).double().mean()
    torch.testing.assert_close((accuracy.nan_to_num() * examples).sum() / 40, right)
    assert 0 <= expected_calibration_error(logits, labels, bins=bins) <= 1


def test_calibration_in_one_bin_is_confidence_minus_accuracy() -> None:
    logits, labels = draw(50, 4), torch.arange(50) % 4
    gap = logits.softmax(1).amax(1).mean() - (logits.argmax(1) == labels).double().mean()
    error = expected_calibration_error(logits, labels, bins=1)
    assert error == pytest.approx(abs(gap.item()))


def test_labels_drawn_from_the_predictions_are_calibrated() -> None:
    logits = 2 * draw(50_000, 4)
    generator = torch.Generator().manual_seed(1)
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator).squeeze(1)
    assert expected_calibration_error(logits, labels) < 0.01
    assert expected_calibration_error(4 * logits, labels) > 0.1


# Bad input

ZEROS = torch.zeros(SHAPE)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SelfDistillation([], 5, []), "backbone must hold at least one stage"),
        (
            lambda: SelfDistillation(conv_stages(), 5, [4, 6]),
            r"hidden_dims must give one width for each of the 3 stages, got \[4, 6\]",
        ),
        (lambda: SelfDistillation(conv_stages(), 1, [4, 6, 8]), "num_classes .* at least 2, got 1"),
        (lambda: SelfDistillation(conv_stages(), 5, [4, 0, 8]), "hidden_dims .* got 0"),
        (
            lambda: SelfDistillation(conv_stages(), 5, [4, 7, 8])(torch.zeros(2, 1, 8, 8)),
            r"hidden_dims\[1\] is 7, but stage 1 puts out \[2, 6, 4, 4\]",
        ),
        (lambda: conv_model().up_to(4), "index must be between 0 and 3 .* got 4"),
        (lambda: early_exit(conv_model(), ZEROS, threshold=0.5), "model must be in eval mode"),
        (
            lambda: early_exit(conv_model().eval(), torch.zeros(0, 1, 8, 8), threshold=0.5),
            r"x must hold at least one example, got \[0, 1, 8, 8\]",
        ),
        (
            lambda: early_exit(conv_model().eval(), torch.zeros(2, 1, 8, 8), threshold=1.5),
            "threshold must be between 0.0 and 1.0, got 1.5",
        ),
        (lambda: self_distillation_loss(ZEROS, [], LABELS), "exit_logits .* at least one exit"),
        (
            lambda: self_distillation_loss(ZEROS, [ZEROS, torch.zeros(6, 4)], LABELS),
            r"exit_logits\[1\] and final_logits .* same shape, got \[6, 4\] and \[6, 5\]",
        ),
        (lambda: self_distillation_loss(ZEROS, [ZEROS], LABELS[:2]), r"labels .* shape \[6\]"),
        (lambda: self_distillation_loss(ZEROS, [ZEROS], LABELS + 1), "labels must lie between"),
        (
            lambda: self_distillation_loss(ZEROS, [ZEROS], LABELS, temperature=0),
            "temperature .* got 0",
        ),
        (lambda: ExitDistillation(soft=-1), "soft must be at least 0.*, got -1"),
        (lambda: ExitDistillation(temperature=0), "temperature .* got 0"),
        (lambda: BeYourOwnTeacher([]), "hidden_dims must give at least one width"),
        (lambda: BeYourOwnTeacher([4], alpha=2), "alpha must be between 0.0 and 1.0, got 2"),
        (lambda: BeYourOwnTeacher([4], hint=-1), "hint must be at least 0.*, got -1"),
        (
            lambda: BeYourOwnTeacher([4, 8])(ZEROS, [ZEROS] * 2, LABELS),
            r"features must be those of all stages, of the widths \[4, 8\], got \[\]",
        ),
        (
            lambda: BeYourOwnTeacher([4, 8])(ZEROS, [ZEROS] * 2, LABELS, [ZEROS, ZEROS]),
            r"widths \[4, 8\], got \['\[6, 5\]', '\[6, 5\]'\]",
        ),
        (
            lambda: BornAgainNetworks(network).train([], num_generations=0),
            "num_generations must be a whole number of at least 1, got 0",
        ),
        (
            lambda: BornAgainNetworks(network, temperature=[1.0, 2.0]).train([]),
            r"temperature must be one number, or one for each of the 3 .* got \[1.0, 2.0\]",
        ),
        (
            lambda: BornAgainNetworks(partial(nn.Identity)).ensemble(),
            "train the generations first",
        ),
        (
            lambda: view_consistency_loss(ZEROS, torch.zeros(6, 4)),
            r"first_logits and second_logits .* \[6, 5\] and \[6, 4\]",
        ),
        (lambda: view_consistency_loss(ZEROS, ZEROS, temperature=-1), "temperature .* got -1"),
        (
            lambda: ViewConsistencyObjective(nn.Identity(), torch.abs, weight=-1),
            "weight must be at least 0.*, got -1",
        ),
        (lambda: label_smoothing_loss(ZEROS, LABELS, smoothing=2), "smoothing .* got 2"),
        (lambda: label_smoothing_loss(ZEROS, LABELS - 1), "labels must lie between 0 and 4"),
        (lambda: uniform_teacher_loss(ZEROS, temperature=0), "temperature .* got 0"),
        (lambda: uniform_teacher_loss(torch.zeros(0, 5)), "must be non-empty"),
        (lambda: virtual_teacher_loss(ZEROS, LABELS, correct=1), "correct .* got 1"),
        (
            lambda: virtual_teacher_loss(torch.zeros(6, 1), LABELS * 0),
            "at least 2 classes, got 1",
        ),
        (
            lambda: TeacherFreeObjective(nn.Identity(), correct=0),
            "correct must be between 0 and 1 and neither, or None, got 0",
        ),
        (lambda: TeacherFreeObjective(nn.Identity(), alpha=-1), "alpha must be between .* got -1"),
        (lambda: reliability(torch.zeros(5), LABELS), r"logits must be a non-empty .* \[5\]"),
        (lambda: reliability(ZEROS, LABELS, bins=0), "bins must be a whole number .* got 0"),
        (
            lambda: expected_calibration_error(ZEROS, LABELS[:3]),
            r"labels .* shape \[6\], got .* \[3\]",
        ),
    ],
)
def test_bad_input(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
