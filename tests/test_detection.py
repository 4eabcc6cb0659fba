import copy
import math

import pytest
import textbook
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from measures import draw, gradients, property_test, seeds
from reference_values import assert_matches, load
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from kdcourse.data import digit_scenes
from kdcourse.detection import (
    CachedDetector,
    DetectionDistillation,
    DetectionObjective,
    DetectorOutput,
    FPNImitation,
    box_iou,
    detect,
    detection_box_loss,
    detection_classification_loss,
    detection_targets,
    detector_positions,
    evaluate_detector,
    importance_map,
    pkd_loss,
    supervised_detection_loss,
)
from kdcourse.experiments import train
from kdcourse.metrics import average_precision
from kdcourse.models import Detector
from kdcourse.training import FrozenTeacher

MAP = (3, 5, 4, 6)


IMITATION = (FPNImitation({"p3": 5}, {"p3": 5}), FPNImitation({"p3": 5}, {"p3": 5}).double())
for each in IMITATION:
    nn.init.dirac_(each.adapters["p3"].weight)
    nn.init.zeros_(each.adapters["p3"].bias)


def boxes_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Of boxes cut out of maps, so that it takes what the other losses take."""
    return detection_box_loss(student[..., :4], teacher[..., :4])


def imitation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """One level of five channels with an adapter that changes nothing."""
    imitation = IMITATION[student.dtype == torch.float64]
    return imitation({"p3": student}, {"p3": teacher})["fpn"]


LOSSES = [detection_classification_loss, boxes_loss, imitation_loss, pkd_loss]
each_loss = pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)


# Values


def test_pkd_reference() -> None:
    """The reference adds 1e-6 to the standard deviation, which is about 1 here."""
    student, teacher = load("feat_s64", "feat_t")
    assert_matches("pkd/mmrazor", pkd_loss(student, teacher), student, rtol=5e-6)
    ours, expected = pkd_loss(student, teacher), textbook.pkd(student, teacher.detach())
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(
        torch.autograd.grad(ours, student), torch.autograd.grad(expected, student)
    )


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_classification_textbook(temperature: float) -> None:
    student, teacher = draw(*MAP), draw(*MAP, seed=1)
    torch.testing.assert_close(
        detection_classification_loss(student, teacher, temperature=temperature),
        textbook.detection_classification(student, teacher, temperature),
    )


@property_test
@given(seed=seeds)
def test_classification_is_least_where_both_agree(seed: int) -> None:
    teacher = 3 * draw(4, 5, seed=seed)
    _, gradient = gradients(detection_classification_loss, teacher, teacher)
    assert gradient.abs().max() < 1e-12
    least = detection_classification_loss(teacher, teacher)
    other = detection_classification_loss(teacher + draw(4, 5, seed=seed ^ 1), teacher)
    assert other > least


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_saturated_logits_keep_a_gradient(dtype: torch.dtype) -> None:
    """Through the sigmoid first it would be 0."""
    student = torch.tensor([200.0, -200.0, 1000.0], dtype=dtype)
    _, gradient = gradients(detection_classification_loss, student, -student)
    torch.testing.assert_close(gradient, torch.tensor([1.0, -1.0, 1.0], dtype=dtype) * 2 / 3)
    faulty = student.clone().requires_grad_()
    F.binary_cross_entropy(faulty.sigmoid(), (-student).sigmoid()).backward()
    assert faulty.grad.abs().max() < 1e-30


def test_boxes_are_averaged_over_those_that_are_kept() -> None:
    """Divided by all ten it would be 0.05."""
    teacher, mask = torch.ones(10, 4), torch.arange(10) == 7
    assert detection_box_loss(torch.zeros(10, 4), teacher, mask) == 0.5
    assert detection_box_loss(torch.zeros(10, 4), 3 * teacher, mask) == 2.5
    assert detection_box_loss(torch.full((10, 4), 0.5), teacher) == 0.125


@pytest.mark.parametrize("padding", [0.0, math.nan, math.inf])
def test_a_box_that_is_masked_out_may_hold_anything(padding: float) -> None:
    student, teacher = draw(2, 6, 4), draw(2, 6, 4, seed=1)
    mask = torch.tensor([[True, False] * 3, [False, True] * 3])
    expected = detection_box_loss(student[mask], teacher[mask])
    student, teacher = (torch.where(mask[..., None], x, padding) for x in (student, teacher))
    value, gradient = gradients(detection_box_loss, student, teacher, mask)
    torch.testing.assert_close(value, expected)
    assert (gradient[~mask] == 0).all() and (gradient[mask] != 0).any()


def test_an_empty_mask_gives_zero_with_a_graph() -> None:
    mask = torch.zeros(2, dtype=torch.bool)
    value, gradient = gradients(detection_box_loss, draw(2, 4), draw(2, 4, seed=1), mask)
    assert value == 0
    assert (gradient == 0).all()


def test_imitation_textbook() -> None:
    student, teacher = draw(*MAP), draw(*MAP, seed=1)
    torch.testing.assert_close(
        imitation_loss(student, teacher), textbook.fpn_imitation(student, teacher)
    )


def test_importance_is_the_mean_strength_with_the_largest_one() -> None:
    teacher = draw(*MAP)
    teacher[1] = 0
    weights = importance_map(teacher)
    assert weights.shape == (3, 1, 4, 6)
    assert weights.amax((1, 2, 3)).tolist() == [1, 0, 1]
    torch.testing.assert_close(weights[0, 0], teacher[0].abs().mean(0) / weights_max(teacher[0]))
    torch.testing.assert_close(importance_map(100 * teacher), weights)
    assert importance_map(teacher.half()).dtype == torch.float32


def weights_max(features: Tensor) -> Tensor:
    return features.abs().mean(0).max()


def test_imitation_is_the_mean_over_levels_after_adapter_and_resize() -> None:
    torch.manual_seed(0)
    imitation = FPNImitation({"p2": 3, "p3": 4}, {"p2": 5, "p3": 6, "p4": 7}).double()
    student = {"p2": draw(2, 3, 6, 6), "p3": draw(2, 4, 6, 6, seed=1), "p9": draw(1)}
    teacher = {"p2": draw(2, 5, 12, 12, seed=2), "p3": draw(2, 6, 3, 3, seed=3)}
    expected = []
    for level in ("p2", "p3"):
        adapter = imitation.adapters[level]
        adapted = F.conv2d(student[level], adapter.weight, adapter.bias)
        adapted = F.interpolate(adapted, teacher[level].shape[2:], mode="bilinear")
        expected.append(textbook.fpn_imitation(adapted, teacher[level]))
    terms = imitation(student, teacher)
    assert list(terms) == ["fpn"]
    torch.testing.assert_close(terms["fpn"], sum(expected) / 2)


def test_pkd_in_the_pyramid_resizes_after_the_adapter() -> None:
    imitation = FPNImitation({"p3": 3}, {"p3": 5}, method="pkd").double()
    student, teacher = draw(2, 3, 6, 6), draw(2, 5, 12, 12, seed=2)
    adapted = F.interpolate(imitation.adapters["p3"](student), (12, 12), mode="bilinear")
    torch.testing.assert_close(
        imitation({"p3": student}, {"p3": teacher})["fpn"], textbook.pkd(adapted, teacher)
    )


@pytest.mark.parametrize("method", ["importance", "pkd"])
def test_every_adapter_trains_and_no_teacher(method: str) -> None:
    imitation = FPNImitation({"p2": 3, "p3": 4}, {"p2": 5, "p3": 6}, method=method)
    student = {"p2": torch.randn(2, 3, 6, 6), "p3": torch.randn(2, 4, 3, 3)}
    teacher = {"p2": torch.randn(2, 5, 6, 6), "p3": torch.randn(2, 6, 3, 3)}
    for features in (*student.values(), *teacher.values()):
        features.requires_grad_()
    imitation(student, teacher)["fpn"].backward()
    # The standardisation of PKD takes away what a bias adds.
    trained = imitation.named_parameters()
    assert all(p.grad.any() for name, p in trained if method != "pkd" or "bias" not in name)
    assert all(x.grad is not None for x in student.values())
    assert all(x.grad is None for x in teacher.values())


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
    student, teacher = ((1e3 * draw(*MAP, seed=seed)).to(dtype) for seed in (0, 1))
    value, gradient = gradients(loss, student, teacher)
    assert value.dtype == torch.float32
    assert gradient.dtype == dtype
    torch.testing.assert_close(value, loss(student.float(), teacher.float()))


@each_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_channels_and_examples(loss, dtype: torch.dtype) -> None:
    student, teacher = draw(*MAP, dtype=dtype), draw(*MAP, seed=1, dtype=dtype)
    for x in (student, teacher):
        x[0] = 0
        x[:, 1] = 0
    student[:, 0] = 0
    gradients(loss, student, teacher)
    gradients(loss, torch.zeros_like(student), teacher)
    gradients(loss, student, torch.zeros_like(teacher))


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e3])
def test_a_constant_channel_has_no_gradient_in_pkd(constant: float) -> None:
    student, teacher = (draw(*MAP, seed=seed, dtype=torch.float32) for seed in (0, 1))
    student[:, 2] = constant
    value, gradient = gradients(pkd_loss, student, teacher)
    assert (gradient[:, 2] == 0).all()
    assert (gradient[:, 1] != 0).any()
    assert value < 1.5


@each_loss
@property_test
@given(seed=seeds)
def test_the_order_of_the_batch_does_not_matter(loss, seed: int) -> None:
    student, teacher = draw(*MAP, seed=seed), draw(*MAP, seed=seed ^ 1)
    order = torch.randperm(3, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(loss(student[order], teacher[order]), loss(student, teacher))


@property_test
@given(seed=seeds, scale=st.floats(1e-2, 1e2), offset=st.floats(-10, 10))
def test_pkd_ignores_scale_and_offset_of_each_channel(
    seed: int, scale: float, offset: float
) -> None:
    student, teacher = draw(*MAP, seed=seed), draw(*MAP, seed=seed ^ 1)
    torch.testing.assert_close(
        pkd_loss(scale * student + offset, teacher), pkd_loss(student, teacher)
    )


@property_test
@given(seed=seeds)
def test_pkd_is_one_minus_the_correlation(seed: int) -> None:
    student, teacher = draw(*MAP, seed=seed), draw(*MAP, seed=seed ^ 1)
    flat = [x.transpose(0, 1).flatten(1) for x in (student, teacher)]
    correlation = torch.stack(
        [torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(*flat, strict=True)]
    )
    n = flat[0].shape[1]
    torch.testing.assert_close(pkd_loss(student, teacher), (1 - correlation).mean() * (n - 1) / n)


# The terms together


def output(seed: int = 0, *, levels: tuple[str, ...] = ("p2", "p3"), width: int = 5):
    sizes = {"p2": 6, "p3": 3}
    return DetectorOutput(
        {p: draw(2, 3, sizes[p], sizes[p], seed=seed) for p in levels},
        {p: draw(2, 4, sizes[p], sizes[p], seed=seed + 7).exp() for p in levels},
        {p: draw(2, width, sizes[p], sizes[p], seed=seed + 14) for p in levels},
        {"p2": 4, "p3": 8},
    )


def rows(maps: dict[str, Tensor], level: str) -> Tensor:
    return maps[level].movedim(1, -1).flatten(0, 2)


def test_distillation_compares_the_levels_that_the_student_has() -> None:
    student, teacher = output(levels=("p3",)), output(1)
    objective = DetectionDistillation(classification=2.0, box=3.0, temperature=1.5, confidence=0.6)
    terms = objective(student, teacher)
    assert list(terms) == ["classification", "box"]
    expected = detection_classification_loss(
        student.classes["p3"], teacher.classes["p3"], temperature=1.5
    )
    torch.testing.assert_close(terms["classification"], 2 * expected)
    sure = rows(teacher.classes, "p3").sigmoid().amax(1) >= 0.6
    assert 0 < sure.sum() < len(sure)
    expected = detection_box_loss(rows(student.boxes, "p3"), rows(teacher.boxes, "p3"), sure)
    torch.testing.assert_close(terms["box"], 3 * expected)


def test_distillation_is_a_mean_over_the_positions_of_all_levels() -> None:
    student, teacher = output(), output(1)
    terms = DetectionDistillation(confidence=0.0)(student, teacher)
    for name, maps_s, maps_t, loss in (
        ("classification", student.classes, teacher.classes, detection_classification_loss),
        ("box", student.boxes, teacher.boxes, detection_box_loss),
    ):
        s, t = (torch.cat([rows(maps, p) for p in ("p2", "p3")]) for maps in (maps_s, maps_t))
        torch.testing.assert_close(terms[name], loss(s, t))


def test_distillation_with_imitation_and_weights_of_zero() -> None:
    student, teacher = output(), output(1, width=6)
    fpn = FPNImitation({"p2": 5, "p3": 5}, {"p2": 6, "p3": 6}).double()
    objective = DetectionDistillation(classification=0.0, box=0.0, fpn=fpn, fpn_weight=4.0)
    terms = objective(student, teacher)
    assert list(terms) == ["fpn"]
    torch.testing.assert_close(terms["fpn"], 4 * fpn(student.features, teacher.features)["fpn"])
    assert {id(p) for p in objective.parameters()} == {id(p) for p in fpn.parameters()}


# Targets


POSITIONS = detector_positions(output())


def test_positions_are_the_middles_in_pixels() -> None:
    positions, strides = POSITIONS
    assert strides.bincount().tolist() == [0, 0, 0, 0, 36, 0, 0, 0, 9]
    assert positions[0].tolist() == [2, 2]
    assert positions[1].tolist() == [6, 2]
    assert positions[36:38].tolist() == [[4, 4], [12, 4]]


def targets(boxes: list[list[float]], labels: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    return detection_targets(
        torch.tensor([boxes]), torch.tensor([labels]), *POSITIONS, num_classes=3
    )


def test_a_small_object_belongs_to_the_fine_level_around_its_middle() -> None:
    classes, distances, found = targets([[3.0, 5.0, 10.0, 13.0]], [2])
    positions, strides = POSITIONS
    assert (strides[found[0]] == 4).all()
    own = positions[found[0]]
    assert own.tolist() == [[6, 6], [6, 10]]  # all that lie in the box
    assert classes[0][found[0]].tolist() == [[0, 0, 1]] * len(own)
    assert (classes[0][~found[0]] == 0).all()
    right = torch.cat([own - torch.tensor([3.0, 5.0]), torch.tensor([10.0, 13.0]) - own], 1)
    torch.testing.assert_close(distances[0][found[0]], right)


def test_sides_farther_than_two_strides_are_for_the_coarser_level() -> None:
    _, _, found = targets([[3.0, 5.0, 13.0, 15.0]], [2])
    positions, strides = POSITIONS
    fine, coarse = (positions[found[0] & (strides == s)].tolist() for s in (4, 8))
    assert fine == [[6, 10], [10, 10]]
    assert coarse == [[4, 12], [12, 12]]


def test_a_large_object_belongs_to_the_coarse_level() -> None:
    _, _, found = targets([[0.0, 0.0, 22.0, 22.0]], [0])
    assert found.any() and (POSITIONS[1][found[0]] == 8).all()


def test_only_positions_near_the_middle_are_responsible() -> None:
    _, _, found = targets([[0.0, 0.0, 46.0, 8.0]], [0])
    # On the coarse level 4, 12 and 20 lie in the box; the first is 19 pixels from its middle.
    assert POSITIONS[0][found[0]].tolist() == [[12, 4], [20, 4]]


def test_of_two_objects_the_smaller_counts_and_padding_never() -> None:
    around, inside = [2.0, 2.0, 14.0, 14.0], [5.0, 5.0, 11.0, 11.0]
    classes, distances, _ = targets([around, inside, inside], [0, 1, -1])
    at = POSITIONS[0].tolist().index([6.0, 6.0])
    assert classes[0, at].tolist() == [0, 1, 0]
    assert distances[0, at].tolist() == [1, 1, 5, 5]
    assert not targets([around, inside], [-1, -1])[2].any()


def test_supervised_loss_textbook() -> None:
    given_output = output()
    boxes = torch.tensor([[[3.0, 5.0, 13.0, 15.0], [0, 0, 22, 22]], [[8.0, 8, 20, 20], [0] * 4]])
    labels = torch.tensor([[2, 0], [1, -1]])
    boxes = boxes.double()
    terms = supervised_detection_loss(given_output, boxes, labels)
    classes, distances, found = detection_targets(boxes, labels, *POSITIONS, num_classes=3)
    p = torch.cat([given_output.classes[x].flatten(2) for x in ("p2", "p3")], 2).mT.sigmoid()
    focal = -0.25 * classes * (1 - p) ** 2 * p.log()
    focal = focal - 0.75 * (1 - classes) * p**2 * (1 - p).log()
    torch.testing.assert_close(terms["objects"], focal.sum() / found.sum())
    own = torch.cat([given_output.boxes[x].flatten(2) for x in ("p2", "p3")], 2).mT
    expected = []
    for image, position in found.nonzero().tolist():
        point = POSITIONS[0][position].double()
        ours, right = (
            torch.cat([point - d[:2], point + d[2:]])[None]
            for d in (own[image, position], distances[image, position])
        )
        expected.append(-box_iou(ours, right).log().squeeze())
    assert len(expected) >= 3
    torch.testing.assert_close(terms["outlines"], torch.stack(expected).mean())


def test_supervised_loss_of_empty_images_is_finite_and_saturated_logits_too() -> None:
    boxes, labels = torch.zeros(2, 1, 4), torch.full((2, 1), -1)

    def total(logits: Tensor) -> Tensor:
        changed = output()._replace(classes={"p2": logits, "p3": output().classes["p3"]})
        return torch.stack(list(supervised_detection_loss(changed, boxes, labels).values())).sum()

    gradients(total, output().classes["p2"])
    gradients(total, 1e3 * output().classes["p2"])


# Finding


def perfect(boxes: Tensor, labels: Tensor) -> DetectorOutput:
    """An output that is sure of exactly these objects."""
    classes, distances, found = detection_targets(boxes, labels, *POSITIONS, num_classes=3)
    logits = (20 * classes - 10).mT
    distances = torch.where(found[..., None], distances, 1.0).mT

    def split(x: Tensor) -> dict[str, Tensor]:
        fine, coarse = x.split([36, 9], 2)
        return {"p2": fine.unflatten(2, (6, 6)), "p3": coarse.unflatten(2, (3, 3))}

    return DetectorOutput(split(logits), split(distances), {}, {"p2": 4, "p3": 8})


def test_what_a_perfect_detector_says_is_found_once_each() -> None:
    boxes = torch.tensor([[[3.0, 5.0, 13.0, 15.0], [1.0, 1, 23, 23]], [[8.0, 8, 20, 20], [0] * 4]])
    labels = torch.tensor([[2, 0], [1, -1]])
    found = detect(perfect(boxes, labels))
    assert [len(x.labels) for x in found] == [2, 1]
    for image, finding in enumerate(found):
        order = finding.labels.argsort()
        right = labels[image] >= 0
        by_label = labels[image][right].argsort()
        assert torch.equal(finding.labels[order], labels[image][right][by_label])
        torch.testing.assert_close(finding.boxes[order], boxes[image][right][by_label])
        assert (finding.scores > 0.99).all()
    assert average_precision(found, boxes, labels) == {
        "map50": pytest.approx(1),
        "map": pytest.approx(1),
    }


def test_a_detector_is_judged_in_eval_mode_and_handed_back_as_it_came() -> None:
    boxes = torch.tensor([[[3.0, 5.0, 13.0, 15.0]], [[8.0, 8, 20, 20]]])
    labels = torch.tensor([[2], [1]])

    class FindsOneOfTwo(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fixed = nn.BatchNorm2d(1).eval()  # one may keep a part in eval mode

        def forward(self, images: Tensor) -> DetectorOutput:
            assert not self.training and not torch.is_grad_enabled()
            assert images.tolist() == [[0.0], [1.0]]
            return perfect(boxes, torch.tensor([[2], [-1]]))

    model = FindsOneOfTwo()
    scenes = TensorDataset(torch.tensor([[0.0], [1.0]]), boxes, labels)
    assert evaluate_detector(model, scenes)["map50"] == pytest.approx(0.5)
    assert model.training and not model.fixed.training
    evaluate_detector(model.eval(), scenes)
    assert not model.training


def test_suppression_keeps_the_surer_of_one_class_and_both_of_two() -> None:
    logits = torch.full((1, 2, 1, 3), -9.0)
    logits[0, 0, 0, :2] = torch.tensor([1.0, 2.0])
    logits[0, 1, 0, 1] = 0.5
    # The first two positions, 4 pixels apart, give the same box; the third says nothing.
    boxes = torch.tensor([[2.0, 2, 8, 6], [6.0, 2, 4, 6], [1.0] * 4]).T[None, :, None]
    answer = DetectorOutput({"p2": logits}, {"p2": boxes}, {}, {"p2": 4})
    (found,) = detect(answer)
    assert found.labels.tolist() == [0, 1]
    torch.testing.assert_close(found.scores, torch.tensor([2.0, 0.5]).sigmoid())
    torch.testing.assert_close(found.boxes, torch.tensor([[0.0, 0, 10, 8]] * 2))
    (everything,) = detect(answer, overlap=1.0)
    assert everything.labels.tolist() == [0, 0, 1]
    (sure,) = detect(answer, threshold=0.8)
    assert sure.labels.tolist() == [0]
    (one,) = detect(answer, most=1)
    assert one.labels.tolist() == [0]
    (none,) = detect(answer, threshold=1.0)
    assert none.boxes.shape == (0, 4)


@property_test
@given(seed=seeds)
def test_box_iou_by_counting_pixels(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    corners = torch.randint(0, 8, (4, 2, 2), generator=generator)
    boxes = torch.cat([corners.amin(1), corners.amax(1)], 1)
    x = torch.arange(8)
    masks = [
        ((x >= a) & (x < c))[None] & ((x >= b) & (x < d))[:, None] for a, b, c, d in boxes.tolist()
    ]
    for i, first in enumerate(masks):
        for j, second in enumerate(masks):
            union = (first | second).sum()
            expected = (first & second).sum() / union if union else torch.tensor(0.0)
            torch.testing.assert_close(box_iou(boxes.float(), boxes.float())[i, j], expected)


# Training


def test_a_detector_learns_to_find_digits_and_a_student_follows_its_teacher() -> None:
    scenes = digit_scenes(train_size=24, validation_size=8, test_size=8)
    torch.manual_seed(0)
    teacher = Detector([8, 16, 16], 10, pyramid_width=24)
    train(DetectionObjective(student=teacher), scenes.train, seed=0, epochs=60, batch_size=8)
    images, boxes, labels = scenes.train[:]
    learned = average_precision(detect(teacher.eval()(images)), boxes, labels)["map50"]
    assert learned > 0.4
    before = copy.deepcopy(teacher.state_dict())
    student = Detector([8, 8, 16], 10, pyramid_width=16, levels=(3,))
    channels = {"p3": 24}
    objective = DetectionObjective(
        student=student,
        teacher=FrozenTeacher(teacher),
        distillation=DetectionDistillation(fpn=FPNImitation(student.channels, channels)),
    )
    history = train(objective, scenes.train, seed=0, epochs=30, batch_size=8)
    for term in ("objects", "outlines", "classification", "box", "fpn"):
        assert history[term].iloc[-1] < history[term].iloc[0], term
    assert all(p.grad is not None for p in student.parameters())
    assert all(torch.equal(before[name], x) for name, x in teacher.state_dict().items())


def test_cached_answers_belong_to_their_images() -> None:
    torch.manual_seed(0)
    detector = Detector([4, 6], 3, pyramid_width=5, levels=(1, 2))
    images = torch.rand(5, 1, 8, 8)
    cached = CachedDetector(detector, images)
    assert detector.training and not list(cached.parameters())
    asked = images[[3, 0, 3]]
    expected, found = detector.eval()(asked), cached(asked)
    assert found.strides == expected.strides
    for own, right in zip(found[:3], expected[:3], strict=True):
        assert list(own) == list(right)
        for level in right:
            torch.testing.assert_close(own[level], right[level])
            assert not own[level].requires_grad
    with pytest.raises(ValueError, match=r"among the 5 .* got others at \[1\]: for augmented"):
        cached(torch.cat([images[:1], images[:1] + 1]))


# Bad input

Z = torch.zeros


@each_loss
def test_batches_must_agree(loss) -> None:
    with pytest.raises(ValueError, match=r"batch|same shape"):
        loss(Z(MAP), Z(4, *MAP[1:]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: detection_classification_loss(Z(2), Z(2), temperature=0), "temperature must be"),
        (lambda: detection_box_loss(Z(2, 3), Z(2, 3)), r"must be \[..., 4\], got \[2, 3\]"),
        (lambda: detection_box_loss(Z(2, 4), Z(2, 4), Z(2)), "mask must be a boolean tensor"),
        (
            lambda: detection_box_loss(Z(2, 4), Z(2, 4), torch.ones(1, dtype=torch.bool)),
            r"mask must be .* shape \[2\], got .* \[1\]",
        ),
        (lambda: importance_map(Z(2, 3)), r"teacher must be .* got \[2, 3\]"),
        (lambda: pkd_loss(Z(2, 3, 4, 4), Z(2, 5, 4, 4)), "same shape"),
        (lambda: FPNImitation({}, {}), "student_channels must be .* at least one level"),
        (
            lambda: FPNImitation({"p2": 3, "p3": 3}, {"p3": 3}),
            r"teacher_channels must have the levels .* lacks \['p2'\]",
        ),
        (lambda: FPNImitation({"p2": 0}, {"p2": 3}), r"student_channels\['p2'\] must be a whole"),
        (lambda: FPNImitation({"p2": 3}, {"p2": 3}, method="at"), "method must be .* got 'at'"),
        (
            lambda: FPNImitation({"p2": 3}, {"p2": 3})(Z(MAP), {"p2": Z(MAP)}),
            "student must be a dict by level, got Tensor",
        ),
        (
            lambda: FPNImitation({"p2": 3}, {"p2": 3})({"p3": Z(MAP)}, {"p2": Z(MAP)}),
            r"student must have the levels \['p2'\], got \['p3'\]: lacks \['p2'\]",
        ),
        (
            lambda: FPNImitation({"p2": 3}, {"p2": 3})({"p2": Z(MAP)}, {"p2": Z(MAP)}),
            r"level 'p2' must have 3 channels in the student and 3 .* got \[3, 5, 4, 6\]",
        ),
        (
            lambda: FPNImitation({"p2": 5}, {"p2": 5})({"p2": Z(MAP)}, {"p2": Z(2, 5, 4, 6)}),
            "same batch size",
        ),
        (lambda: DetectionDistillation(box=-1.0), "box must be at least 0"),
        (lambda: DetectionDistillation(confidence=2.0), "confidence must be between"),
        (
            lambda: DetectionDistillation()(output(), output(levels=("p3",))),
            r"teacher must have the levels .* lacks \['p2'\]",
        ),
        (
            lambda: DetectionDistillation()(
                output(), output()._replace(classes={"p2": Z(2, 3, 5, 5), "p3": Z(2, 3, 3, 3)})
            ),
            "the student's p2 classes and the teacher's p2 classes must have the same shape",
        ),
        (
            lambda: supervised_detection_loss(output(), Z(1, 2, 4), Z(1, 2).long()),
            r"for a batch of 2, got \[1, 2, 4\] and \[1, 2\]",
        ),
        (
            lambda: supervised_detection_loss(output(), Z(2, 1, 4), torch.full((2, 1), 3)),
            "labels must .* lie below 3, got .* up to 3",
        ),
        (lambda: detect(output(), threshold=2), "threshold must be between"),
        (lambda: detect(output(), overlap=-1), "overlap must be between"),
        (lambda: detect(output(), most=0), "most must be a whole number of at least 1"),
        (
            lambda: DetectionObjective(student=nn.Identity(), teacher=nn.Identity()),
            "teacher and distillation must be given together",
        ),
        (
            lambda: DetectionObjective(
                student=nn.Identity(), teacher=nn.Linear(1, 1), distillation=nn.Identity()
            ),
            "teacher must be frozen",
        ),
    ],
)
def test_bad_input(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
