import copy
import gc
import math
import weakref

import pytest
import textbook
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from measures import LargestTensor, draw, gradients, property_test, seeds
from reference_values import assert_matches, load
from torch import Tensor, nn

from kdcourse.features import (
    FeatureDistillation,
    FeatureExtractingModel,
    FeatureObjective,
    HintRegressor,
    VIDLoss,
    attention_transfer_loss,
    contrastive_feature_loss,
    cwd_loss,
    fsp_loss,
    hint_loss,
    nst_loss,
)
from kdcourse.models import ConvNet
from kdcourse.soft_targets import SoftTargetDistillation
from kdcourse.training import FrozenTeacher

MAP = (3, 5, 4, 6)


def normalized_hint_loss(student: Tensor, teacher: Tensor) -> Tensor:
    return hint_loss(student, teacher, normalize=True)


def attention_sum(student: Tensor, teacher: Tensor) -> Tensor:
    return attention_transfer_loss(student, teacher, reduction="sum")


def attention_norm(student: Tensor, teacher: Tensor) -> Tensor:
    return attention_transfer_loss(student, teacher, reduction="norm")


def attention_peaks(student: Tensor, teacher: Tensor) -> Tensor:
    return attention_transfer_loss(student, teacher, power=3)


def flow_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """FSP between a map and another computed from it, so that it takes one tensor a side."""
    return fsp_loss((student, student[:, :2, ::2, ::2]), (teacher, teacher[:, :2, ::2, ::2]))


LOSSES = [
    hint_loss,
    normalized_hint_loss,
    attention_transfer_loss,
    attention_sum,
    attention_norm,
    attention_peaks,
    contrastive_feature_loss,
    flow_loss,
    nst_loss,
    cwd_loss,
]
each_loss = pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)


# Values


def test_hint_reference() -> None:
    student, teacher = load("feat_s64", "feat_t")
    assert_matches("fitnet/same_width/repdistiller", hint_loss(student, teacher), student)


def test_attention_transfer_reference() -> None:
    student, teacher = load("feat_s", "feat_t")
    mean = attention_transfer_loss(student, teacher)
    assert_matches("at/repdistiller", mean, student)
    norm = attention_transfer_loss(student, teacher, reduction="norm")
    assert_matches("at/torchdistill_paper", norm, student)


def test_attention_transfer_sum_is_the_mean_times_the_positions() -> None:
    student, teacher = load("feat_s", "feat_t")
    summed = attention_transfer_loss(student, teacher, reduction="sum")
    assert_matches("at/repdistiller", summed, student, factor=8 * 8)


def test_nst_reference() -> None:
    student, teacher = load("feat_s", "feat_t")
    assert_matches("nst/repdistiller", nst_loss(student, teacher), student)


def test_fsp_reference() -> None:
    one, two, teacher_one, teacher_two = load("feat_s64", "feat_s64_2", "feat_t", "feat_t2")
    loss = fsp_loss((one, two), (teacher_one, teacher_two))
    assert_matches("fsp/repdistiller", loss, one, two)


def test_cwd_reference() -> None:
    student, teacher = load("feat_s64", "feat_t")
    assert_matches("cwd/tau1/mmrazor", cwd_loss(student, teacher), student)


@pytest.mark.parametrize("temperature", [0.5, 4.0])
def test_cwd_carries_the_squared_temperature(temperature: float) -> None:
    student, teacher = draw(*MAP), draw(*MAP, seed=1)
    torch.testing.assert_close(
        cwd_loss(student, teacher, temperature=temperature),
        textbook.cwd(student, teacher, temperature),
    )


@pytest.mark.parametrize("power", [1, 1.5, 2, 3, 4])
def test_attention_transfer_power(power: float) -> None:
    student, teacher = draw(*MAP), draw(3, 7, 4, 6, seed=1)
    torch.testing.assert_close(
        attention_transfer_loss(student, teacher, power=power),
        textbook.attention_transfer(student, teacher, power),
    )


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_contrastive_textbook(temperature: float) -> None:
    student, teacher = draw(6, 5), draw(6, 5, seed=1)
    torch.testing.assert_close(
        contrastive_feature_loss(student, teacher, temperature=temperature),
        textbook.contrastive(student, teacher, temperature),
    )


def test_contrastive_pools_maps() -> None:
    student, teacher = draw(*MAP), draw(3, 5, 2, 2, seed=1)
    torch.testing.assert_close(
        contrastive_feature_loss(student, teacher),
        textbook.contrastive(student.mean((2, 3)), teacher.mean((2, 3))),
    )


def test_contrastive_without_information_is_log_of_the_batch() -> None:
    loss = contrastive_feature_loss(torch.ones(8, 4), torch.ones(8, 4))
    assert loss.item() == pytest.approx(math.log(8))


@pytest.mark.parametrize(
    ("student_channels", "teacher_channels", "size"), [(2, 3, 8), (3, 7, 2), (9, 4, 3)]
)
def test_nst_is_the_same_by_channels_and_by_positions(
    student_channels: int, teacher_channels: int, size: int
) -> None:
    student = draw(2, student_channels, size, size).requires_grad_()
    teacher = draw(2, teacher_channels, size, size, seed=1)
    ours, expected = nst_loss(student, teacher), textbook.nst(student, teacher)
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(
        torch.autograd.grad(ours, student), torch.autograd.grad(expected, student)
    )


def test_normalized_hint_compares_directions() -> None:
    student, teacher = draw(*MAP), draw(*MAP, seed=1)
    torch.testing.assert_close(
        normalized_hint_loss(student, teacher),
        textbook.hint(F.normalize(student, dim=1), F.normalize(teacher, dim=1)),
    )
    torch.testing.assert_close(
        normalized_hint_loss(student, teacher), normalized_hint_loss(9 * student, teacher)
    )


@pytest.mark.parametrize("loss", [hint_loss, attention_transfer_loss, nst_loss])
def test_the_larger_map_is_average_pooled(loss) -> None:
    small, large = draw(2, 5, 3, 3), draw(2, 5, 6, 6, seed=1)
    pooled = F.avg_pool2d(large, 2)
    torch.testing.assert_close(loss(small, large), loss(small, pooled))
    torch.testing.assert_close(loss(large, small), loss(pooled, small))


def test_each_side_of_the_space_is_pooled_to_the_smaller() -> None:
    wide, tall = draw(2, 5, 2, 4), draw(2, 5, 4, 2, seed=1)
    expected = textbook.hint(F.avg_pool2d(wide, (1, 2)), F.avg_pool2d(tall, (2, 1)))
    torch.testing.assert_close(hint_loss(wide, tall), expected)


# Numbers


@each_loss
def test_gradcheck(loss) -> None:
    teacher = draw(*MAP, seed=1)
    assert torch.autograd.gradcheck(lambda x: loss(x, teacher), draw(*MAP).requires_grad_())


@each_loss
def test_the_teacher_receives_no_gradient(loss) -> None:
    student, teacher = draw(*MAP).requires_grad_(), draw(*MAP, seed=1).requires_grad_()
    loss(student, teacher).backward()
    assert student.grad is not None and student.grad.abs().sum() > 0
    assert teacher.grad is None


@each_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(loss, dtype: torch.dtype) -> None:
    scale = 10 if loss is flow_loss else 1e3  # its gradient grows with the cube of the features
    student, teacher = ((scale * draw(*MAP, seed=seed)).to(dtype) for seed in (0, 1))
    value, gradient = gradients(loss, student, teacher)
    assert value.dtype == torch.float32
    assert gradient.dtype == dtype
    torch.testing.assert_close(value, loss(student.float(), teacher.float()))


@each_loss
def test_autocast_changes_nothing(loss) -> None:
    student, teacher = draw(*MAP).float(), draw(*MAP, seed=1).float()
    expected = loss(student, teacher)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(loss(student, teacher), expected)


@each_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_channels_positions_and_examples(loss, dtype: torch.dtype) -> None:
    student, teacher = draw(*MAP, dtype=dtype), draw(*MAP, seed=1, dtype=dtype)
    for x in (student, teacher):
        x[0] = 0
        x[1, :, 0] = 0
    student[:, 0] = 0
    gradients(loss, student, teacher)
    gradients(loss, torch.zeros_like(student), teacher)
    gradients(loss, student, torch.zeros_like(teacher))


@pytest.mark.parametrize(
    "loss",
    [normalized_hint_loss, attention_norm, contrastive_feature_loss, nst_loss],
    ids=lambda loss: loss.__name__,
)
def test_a_zero_example_has_zero_gradient(loss) -> None:
    student = draw(*MAP)
    student[0] = 0
    _, gradient = gradients(loss, student, draw(*MAP, seed=1))
    assert (gradient[0] == 0).all()
    assert (gradient[1] != 0).any()


@each_loss
def test_a_perfect_student_has_finite_gradient(loss) -> None:
    teacher = draw(*MAP)
    value, gradient = gradients(loss, teacher, teacher)
    if loss is not contrastive_feature_loss:
        assert value.abs() < 1e-12
        assert gradient.abs().max() < 1e-6


@each_loss
@property_test
@given(seed=seeds)
def test_the_order_of_the_batch_does_not_matter(loss, seed: int) -> None:
    student, teacher = draw(*MAP, seed=seed), draw(*MAP, seed=seed ^ 1)
    order = torch.randperm(len(student), generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(loss(student[order], teacher[order]), loss(student, teacher))


@each_loss
@property_test
@given(seed=seeds, scale=st.floats(1e-3, 1e3))
def test_losses_are_not_negative(loss, seed: int, scale: float) -> None:
    student, teacher = draw(*MAP, seed=seed), scale * draw(*MAP, seed=seed ^ 1)
    assert loss(student, teacher) >= 0


@pytest.mark.parametrize("loss", [attention_transfer_loss, nst_loss, normalized_hint_loss])
@property_test
@given(seed=seeds, scale=st.floats(1e-3, 1e3))
def test_a_positive_scale_for_each_example_changes_nothing(loss, seed: int, scale: float) -> None:
    student, teacher = draw(*MAP, seed=seed), draw(*MAP, seed=seed ^ 1)
    scales = torch.tensor([scale, 1.0, 2.0])[:, None, None, None]
    torch.testing.assert_close(loss(scales * student, teacher), loss(student, teacher))


@pytest.mark.parametrize("loss", [attention_transfer_loss, nst_loss, attention_peaks])
@property_test
@given(seed=seeds)
def test_the_order_of_the_channels_does_not_matter(loss, seed: int) -> None:
    student, teacher = draw(*MAP, seed=seed), draw(*MAP, seed=seed ^ 1)
    torch.testing.assert_close(loss(student.flip(1), teacher), loss(student, teacher))


@property_test
@given(seed=seeds)
def test_cwd_ignores_a_constant_added_to_a_channel(seed: int) -> None:
    student, teacher = draw(*MAP, seed=seed), draw(*MAP, seed=seed ^ 1)
    constants = draw(3, 5, 1, 1, seed=seed ^ 2)
    torch.testing.assert_close(cwd_loss(student + constants, teacher), cwd_loss(student, teacher))


def test_no_tensor_is_larger_than_the_maps_and_their_gram_matrices() -> None:
    student, teacher = draw(2, 24, 8, 8).requires_grad_(), draw(2, 24, 8, 8, seed=1)
    for loss in LOSSES:
        with LargestTensor() as largest:
            loss(student, teacher).backward()
        assert largest.numel <= 2 * 64 * 64, loss.__name__  # the textbook's NST has 2·24·24·64
    with LargestTensor() as largest:
        textbook.nst(student, teacher).backward()
    assert largest.numel > 2 * 64 * 64


# Bad input


@each_loss
def test_batches_must_agree(loss) -> None:
    with pytest.raises(ValueError, match=r"batch|same shape") as error:
        loss(torch.zeros(3, 5, 4, 6), torch.zeros(4, 5, 4, 6))
    assert "3, 5" in str(error.value) and "4, 5" in str(error.value)


@each_loss
def test_integers_are_refused(loss) -> None:
    with pytest.raises(ValueError, match="must be a floating-point tensor, got"):
        loss(torch.zeros(MAP, dtype=torch.long), torch.zeros(MAP))


@pytest.mark.parametrize("loss", [attention_transfer_loss, nst_loss, cwd_loss])
def test_maps_are_needed(loss) -> None:
    with pytest.raises(ValueError, match=r"student.* at least 4 dimension.*\[3, 5\]"):
        loss(torch.zeros(3, 5), torch.zeros(3, 5))


@pytest.mark.parametrize("loss", [hint_loss, cwd_loss])
def test_channels_never_broadcast(loss) -> None:
    with pytest.raises(ValueError, match=r"same shape, got \[3, 1, 4, 4\] and \[3, 5, 4, 4\]"):
        loss(torch.zeros(3, 1, 4, 4), torch.zeros(3, 5, 4, 4))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: hint_loss(torch.zeros(2, 3), torch.zeros(2, 3, 4, 4)),
            r"both be maps .* or both vectors \[B, F\], got \[2, 3\] and \[2, 3, 4, 4\]",
        ),
        (
            lambda: hint_loss(torch.zeros(2, 3, 0, 4), torch.zeros(2, 3, 4, 4)),
            r"student must be non-empty .* got \[2, 3, 0, 4\]",
        ),
        (
            lambda: attention_transfer_loss(torch.zeros(MAP), torch.zeros(MAP), power=0.5),
            "power must be a finite number of at least 1, got 0.5",
        ),
        (
            lambda: attention_transfer_loss(torch.zeros(MAP), torch.zeros(MAP), reduction="max"),
            "reduction must be mean, sum or norm, got 'max'",
        ),
        (
            lambda: contrastive_feature_loss(torch.zeros(1, 4), torch.zeros(1, 4)),
            r"student needs a batch of at least 2 examples, got \[1, 4\]",
        ),
        (
            lambda: contrastive_feature_loss(torch.zeros(2, 4), torch.zeros(2, 5)),
            "same width .project the student first., got 4 and 5",
        ),
        (
            lambda: contrastive_feature_loss(torch.zeros(2, 4), torch.zeros(2, 4), temperature=0),
            "temperature must be a positive finite number, got 0",
        ),
        (
            lambda: cwd_loss(torch.zeros(MAP), torch.zeros(MAP), temperature=-1),
            "temperature must be a positive finite number, got -1",
        ),
        (
            lambda: fsp_loss(torch.zeros(MAP), (torch.zeros(MAP), torch.zeros(MAP))),
            "student_pair must be two feature maps, got Tensor",
        ),
        (
            lambda: fsp_loss(
                (torch.zeros(2, 3, 4, 4), torch.zeros(2, 5, 2, 2)),
                (torch.zeros(2, 3, 4, 4), torch.zeros(2, 6, 2, 2)),
            ),
            r"same batch and channels, got .* \[2, 3, 5\] and \[2, 3, 6\]",
        ),
        (
            lambda: fsp_loss(
                (torch.zeros(2, 3, 4, 4), torch.zeros(1, 5, 2, 2)),
                (torch.zeros(2, 3, 4, 4), torch.zeros(2, 5, 2, 2)),
            ),
            r"student_pair\[0\] and student_pair\[1\] must have the same batch size",
        ),
    ],
)
def test_bad_input(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


# FeatureExtractingModel


class Network(nn.Module):
    """Two stages, and a third layer that runs on demand."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.Sequential(nn.Linear(4, 3), nn.Tanh())
        self.head = nn.Linear(3, 2)
        self.extra = nn.Linear(3, 3)

    def forward(self, x: Tensor, *, with_extra: bool = False) -> Tensor:
        x = self.stages(x)
        return self.head(self.extra(x) if with_extra else x)


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


def test_extractor_gives_output_and_activations() -> None:
    network, x = Network(), torch.randn(5, 4)
    output, features = FeatureExtractingModel(network, ["stages.1", "stages.0"])(x)
    torch.testing.assert_close(output, network(x))
    assert list(features) == ["stages.1", "stages.0"]
    torch.testing.assert_close(features["stages.0"], network.stages[0](x))
    torch.testing.assert_close(features["stages.1"], network.stages(x))


def test_gradients_reach_the_network_through_an_activation() -> None:
    network = Network()
    _, features = FeatureExtractingModel(network, ["stages.0"])(torch.randn(5, 4))
    features["stages.0"].sum().backward()
    assert network.stages[0].weight.grad is not None


@pytest.mark.parametrize(
    ("wrong", "near"), [("stage.1", "stages.1"), ("heads", "head"), ("xyz", "stages")]
)
def test_an_unknown_layer_is_named_with_near_matches(wrong: str, near: str) -> None:
    """The copied code returned an empty dict."""
    message = f"layer_names: Network has no layer '{wrong}'; did you mean one of .*'{near}'"
    with pytest.raises(ValueError, match=message):
        FeatureExtractingModel(Network(), ["stages.0", wrong])


@pytest.mark.parametrize("names", [[], "head", ["head", "head"]])
def test_layer_names_must_be_a_list_of_different_names(names) -> None:
    with pytest.raises(ValueError, match="layer_names must"):
        FeatureExtractingModel(Network(), names)


def test_a_layer_that_did_not_run_gives_no_stale_values() -> None:
    extractor, x = FeatureExtractingModel(Network(), ["extra"]), torch.randn(5, 4)
    _, features = extractor(x, with_extra=True)
    assert features["extra"].shape == (5, 3)
    with pytest.raises(RuntimeError, match=r"layers \['extra'\] did not run"):
        extractor(x)


def test_no_hook_is_left_on_the_network_even_after_a_failure() -> None:
    network = Network()
    extractor = FeatureExtractingModel(network, ["stages.0"])
    with pytest.raises(RuntimeError):
        extractor(torch.randn(5, 99))
    extractor(torch.randn(5, 4))
    assert hooks(network) == 0


def test_a_closed_extractor_refuses_and_leaves_the_network_usable() -> None:
    network, x = Network(), torch.randn(5, 4)
    with FeatureExtractingModel(network, ["stages.0"]) as extractor:
        extractor(x)
    assert hooks(network) == 0
    assert network(x).shape == (5, 2)
    with pytest.raises(RuntimeError, match="closed"):
        extractor(x)


def test_a_deep_copy_records_its_own_layers() -> None:
    original = FeatureExtractingModel(Network(), ["stages.0"])
    duplicate, x = copy.deepcopy(original), torch.randn(5, 4)
    with torch.no_grad():
        duplicate.model.stages[0].weight.zero_()
        duplicate.model.stages[0].bias.fill_(7)
    assert (duplicate(x)[1]["stages.0"] == 7).all()
    assert not (original(x)[1]["stages.0"] == 7).any()


def test_no_reference_to_an_activation_is_kept() -> None:
    extractor = FeatureExtractingModel(Network(), ["stages.0"])
    _, features = extractor(torch.randn(5, 4))
    activation = weakref.ref(features["stages.0"])
    del features, _
    gc.collect()
    assert activation() is None


# Modules


def test_the_regressor_is_a_convolution_of_size_one() -> None:
    regressor = HintRegressor(student_channels=5, teacher_channels=7)
    weight, bias = regressor.projection.weight, regressor.projection.bias
    maps, vectors = torch.randn(MAP), torch.randn(3, 5)
    torch.testing.assert_close(regressor(maps), F.conv2d(maps, weight[..., None], bias))
    torch.testing.assert_close(regressor(vectors), F.linear(vectors, weight[..., 0], bias))


def test_pooling_after_the_regressor_equals_pooling_before() -> None:
    regressor = HintRegressor(student_channels=5, teacher_channels=7)
    student, teacher = torch.randn(3, 5, 8, 8), torch.randn(3, 7, 4, 4)
    before = regressor(F.avg_pool2d(student, 2))
    torch.testing.assert_close(hint_loss(regressor(student), teacher), hint_loss(before, teacher))


@pytest.mark.parametrize("channels", [0, -1, 2.0, None, True])
def test_channels_are_whole_numbers(channels) -> None:
    with pytest.raises(ValueError, match="student_channels must be a whole number"):
        HintRegressor(student_channels=channels, teacher_channels=4)
    with pytest.raises(ValueError, match="teacher_channels must be a whole number"):
        VIDLoss(student_channels=4, teacher_channels=channels)


@pytest.mark.parametrize("module", [HintRegressor, VIDLoss])
def test_student_channels_are_checked(module) -> None:
    objective = module(student_channels=5, teacher_channels=7)
    inputs = (torch.zeros(2, 4, 3, 3), torch.zeros(2, 7, 3, 3))[: 1 + (module is VIDLoss)]
    with pytest.raises(ValueError, match=r"student must have 5 channels .*, got \[2, 4, 3, 3\]"):
        objective(*inputs)


STUDENT_MAPS = [torch.randn(4, 5, 8, 8), torch.randn(4, 6, 4, 4)]
TEACHER_MAPS = [torch.randn(4, 7, 8, 8), torch.randn(4, 9, 4, 4)]


def distillation(method: str) -> FeatureDistillation:
    return FeatureDistillation(student_channels=[5, 6], teacher_channels=[7, 9], method=method)


def test_feature_distillation_is_the_mean_over_pairs() -> None:
    pairs = list(zip(STUDENT_MAPS, TEACHER_MAPS, strict=True))
    objective = distillation("fitnet")
    hints = [hint_loss(objective.regressors[i](s), t) for i, (s, t) in enumerate(pairs)]
    terms = objective(STUDENT_MAPS, TEACHER_MAPS)
    assert list(terms) == ["fitnet"]
    torch.testing.assert_close(terms["fitnet"], sum(hints) / 2)
    attention = [attention_transfer_loss(s, t) for s, t in pairs]
    terms = distillation("attention")(STUDENT_MAPS, TEACHER_MAPS)
    torch.testing.assert_close(terms["attention"], sum(attention) / 2)


def test_contrastive_distillation_uses_the_last_pair() -> None:
    objective = distillation("contrastive")
    expected = contrastive_feature_loss(objective.regressors[0](STUDENT_MAPS[1]), TEACHER_MAPS[1])
    other_first = [torch.zeros(4, 5, 8, 8), STUDENT_MAPS[1]]
    terms = objective(other_first, TEACHER_MAPS)
    torch.testing.assert_close(terms["contrastive"], expected)


def test_feature_distillation_takes_the_dicts_of_an_extractor() -> None:
    objective = distillation("attention")
    by_name = [dict(zip("ab", maps, strict=True)) for maps in (STUDENT_MAPS, TEACHER_MAPS)]
    assert objective(*by_name) == objective(STUDENT_MAPS, TEACHER_MAPS)


@pytest.mark.parametrize(
    ("method", "trained"), [("fitnet", 4), ("attention", 0), ("contrastive", 2)]
)
def test_every_parameter_of_feature_distillation_trains(method: str, trained: int) -> None:
    objective = distillation(method)
    assert len(list(objective.parameters())) == trained
    student = [x.clone().requires_grad_() for x in STUDENT_MAPS]
    teacher = [x.clone().requires_grad_() for x in TEACHER_MAPS]
    objective(student, teacher)[method].backward()
    assert all(p.grad is not None and p.grad.any() for p in objective.parameters())
    assert student[-1].grad is not None
    assert all(x.grad is None for x in teacher)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: distillation("hint"), "method must be .*, got 'hint'"),
        (
            lambda: FeatureDistillation(student_channels=5, teacher_channels=[7]),
            "student_channels must be a list with one number for each layer, got 5",
        ),
        (
            lambda: FeatureDistillation(student_channels=[5, 6], teacher_channels=[7]),
            "as many layers as each other, got 2 and 1",
        ),
        (
            lambda: distillation("fitnet")(STUDENT_MAPS, TEACHER_MAPS[:1]),
            "teacher must hold 2 layers, got 1",
        ),
        (
            lambda: distillation("fitnet")(STUDENT_MAPS, TEACHER_MAPS[::-1]),
            "same shape",
        ),
    ],
)
def test_bad_feature_distillation(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_the_sides_cannot_be_swapped_by_position() -> None:
    for module in (HintRegressor, VIDLoss, FeatureDistillation):
        with pytest.raises(TypeError):
            module(4, 4)


def test_vid_is_the_gaussian_log_likelihood() -> None:
    objective = VIDLoss(student_channels=5, teacher_channels=7, init_variance=2.0).double()
    assert objective.variance.tolist() == pytest.approx([2.0] * 7, rel=1e-6)
    student, teacher = draw(3, 5, 8, 8), draw(3, 7, 4, 4, seed=1)
    mean = objective.regressor(F.avg_pool2d(student, 2).flatten(2)).reshape_as(teacher)
    expected = textbook.vid(mean, objective.variance, teacher)
    torch.testing.assert_close(objective(student, teacher)["vid"], expected)
    torch.testing.assert_close(
        objective(student[..., 0, 0], teacher[..., 0, 0])["vid"],
        textbook.vid(
            objective.regressor(student[..., 0, 0, None])[..., 0],
            objective.variance,
            teacher[..., 0, 0],
        ),
    )


def test_vid_variances_train_to_the_closed_form() -> None:
    """The best variance of a channel is its mean squared error; popular code never trains it."""
    objective = VIDLoss(student_channels=2, teacher_channels=3, eps=1e-8).double()
    with torch.no_grad():
        objective.regressor[-1].weight.zero_()  # predicts 0, so the errors are the features
    teacher = draw(16, 3, 2, 2) * torch.tensor([0.5, 1.0, 3.0])[:, None, None]
    optimizer = torch.optim.LBFGS(
        [objective.raw_variance], max_iter=99, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = objective(torch.zeros(16, 2, 2, 2, dtype=torch.float64), teacher)["vid"]
        loss.backward()
        return loss

    optimizer.step(closure)
    errors = teacher.square().mean((0, 2, 3))
    torch.testing.assert_close(objective.variance, errors, rtol=1e-5, atol=0)
    torch.testing.assert_close(closure(), 0.5 * (1 + errors.log().mean()), rtol=1e-8, atol=0)


def test_every_parameter_of_vid_trains() -> None:
    torch.manual_seed(0)
    objective = VIDLoss(student_channels=5, teacher_channels=7)
    student = torch.randn(4, 5, 3, 3, requires_grad=True)
    teacher = torch.randn(4, 7, 3, 3, requires_grad=True)
    objective(student, teacher)["vid"].backward()
    assert {name for name, _ in objective.named_parameters()} >= {"raw_variance"}
    assert all(p.grad is not None and p.grad.any() for p in objective.parameters())
    assert student.grad is not None
    assert teacher.grad is None


def test_vid_numbers() -> None:
    objective = VIDLoss(student_channels=5, teacher_channels=7)
    student, teacher = ((1e3 * draw(4, channels, 3, 3)).half() for channels in (5, 7))
    value, _ = gradients(lambda s, t: objective(s, t)["vid"], student, teacher)
    assert value.dtype == torch.float32
    double = VIDLoss(student_channels=5, teacher_channels=7).double()
    teacher = draw(2, 7)
    assert torch.autograd.gradcheck(
        lambda x: double(x, teacher)["vid"], draw(2, 5).requires_grad_()
    )


@pytest.mark.parametrize(
    ("variance", "eps"), [(0.0, 1e-5), (1e-6, 1e-5), (1.0, 0.0), (math.inf, 1e-5)]
)
def test_vid_variance_must_exceed_eps(variance: float, eps: float) -> None:
    with pytest.raises(ValueError, match="init_variance must be finite and above eps > 0"):
        VIDLoss(student_channels=2, teacher_channels=2, init_variance=variance, eps=eps)


def test_vid_teacher_channels_are_checked() -> None:
    objective = VIDLoss(student_channels=5, teacher_channels=7)
    with pytest.raises(ValueError, match=r"same shape, got \[2, 7, 3, 3\] and \[2, 6, 3, 3\]"):
        objective(torch.zeros(2, 5, 3, 3), torch.zeros(2, 6, 3, 3))


def feature_objective(**options) -> FeatureObjective:
    torch.manual_seed(0)
    student, teacher = ConvNet([4, 6], 3), ConvNet([5, 8], 3)
    layers = ["stages.0", "stages.1"]
    features = FeatureDistillation(student_channels=[4, 6], teacher_channels=[5, 8])
    return FeatureObjective(
        student=FeatureExtractingModel(student, layers),
        teacher=FrozenTeacher(FeatureExtractingModel(teacher, layers)),
        features=features,
        **options,
    )


IMAGES = (draw(6, 1, 8, 8, dtype=torch.float32), torch.tensor([0, 1, 2, 0, 1, 2]))


@pytest.mark.parametrize("soft", [None, SoftTargetDistillation()])
def test_feature_objective_trains_student_and_regressors_only(soft) -> None:
    objective = feature_objective(soft=soft).train()
    torch.stack(list(objective(IMAGES)[0].values())).sum().backward()
    for name, parameter in objective.named_parameters():
        if name.startswith("teacher."):
            assert parameter.grad is None and not parameter.requires_grad, name
        else:
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    assert not any(module.training for module in objective.teacher.model.modules())


def test_feature_objective_weighs_the_feature_terms_only() -> None:
    light, heavy = (feature_objective(weight=weight).eval()(IMAGES)[0] for weight in (1.0, 3.0))
    torch.testing.assert_close(heavy["fitnet"], 3 * light["fitnet"])
    torch.testing.assert_close(heavy["hard"], light["hard"])


def test_feature_objective_adds_soft_targets_and_reports_both_accuracies() -> None:
    objective = feature_objective(soft=SoftTargetDistillation(2.0, alpha=0.3)).eval()
    terms, metrics = objective(IMAGES)
    student, teacher = objective.student.model(IMAGES[0]), objective.teacher.model.model(IMAGES[0])
    expected = SoftTargetDistillation(2.0, alpha=0.3)(student, teacher, IMAGES[1])
    assert list(terms) == ["soft", "hard", "fitnet"]
    torch.testing.assert_close(terms["soft"], expected["soft"])
    right = (student.argmax(1) == IMAGES[1]).float().mean()
    torch.testing.assert_close(metrics["student_accuracy"], right)
    right = (teacher.argmax(1) == IMAGES[1]).float().mean()
    torch.testing.assert_close(metrics["teacher_accuracy"], right)


def test_feature_objective_refuses_a_teacher_that_would_train() -> None:
    network = FeatureExtractingModel(ConvNet([4], 3), ["stages.0"])
    with pytest.raises(ValueError, match="teacher must be frozen"):
        FeatureObjective(student=network, teacher=network, features=nn.Identity())
    with pytest.raises(ValueError, match="weight must be at least 0"):
        feature_objective(weight=-1.0)
