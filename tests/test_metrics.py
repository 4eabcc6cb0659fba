import pytest
import torch

from kdcourse.detection import Detections
from kdcourse.metrics import accuracy, average_precision


def test_counts_the_rows_that_are_right() -> None:
    logits = torch.tensor([[1.0, 2.0, 0.0], [5.0, 1.0, 0.0], [0.0, 0.0, 1.0]], requires_grad=True)
    share = accuracy(logits, torch.tensor([1, 1, 2]))
    assert share.item() == torch.tensor(2 / 3).item()
    assert share.shape == ()
    assert not share.requires_grad


BOXES = torch.tensor([[[0.0, 0, 10, 10], [20, 20, 30, 30]], [[5.0, 5, 15, 15], [0, 0, 0, 0]]])
LABELS = torch.tensor([[0, 1], [0, -1]])


def finding(*rows: tuple[float, ...]) -> Detections:
    """Each row: left, top, right, bottom, score, label."""
    table = torch.tensor(rows).reshape(-1, 6)
    return Detections(table[:, :4], table[:, 4], table[:, 5].long())


def test_average_precision_by_hand() -> None:
    found = [
        finding((0, 0, 10, 10, 0.9, 0), (20, 20, 30, 30, 0.8, 0)),  # the second of a wrong class
        finding((5, 5, 15, 15, 0.7, 0)),
    ]
    # Class 0: right, wrong, right. Precision 1 up to recall 1/2, then 2/3; read at 101 recalls.
    # Class 1: its object is never found.
    expected = (51 * 1 + 50 * 2 / 3) / 101 / 2
    scores = average_precision(found, BOXES, LABELS)
    assert scores["map50"] == pytest.approx(expected)
    assert scores["map"] == pytest.approx(expected)  # every right box is exact


def test_average_precision_counts_an_object_once_and_judges_overlap() -> None:
    boxes, labels = BOXES[1:], LABELS[1:]
    twice = [finding((5, 5, 15, 15, 0.5, 0), (5, 5, 15, 15, 0.9, 0))]
    assert average_precision(twice, boxes, labels)["map50"] == pytest.approx(1)
    shifted = [finding((7, 5, 17, 15, 0.9, 0))]  # overlap 80 / 120
    scores = average_precision(shifted, boxes, labels)
    assert scores["map50"] == pytest.approx(1)
    assert scores["map"] == pytest.approx(0.4)  # 0.5, 0.55, 0.6 and 0.65 of ten
    farther = [finding((8, 5, 18, 15, 0.9, 0))]  # 70 / 130
    assert average_precision(farther, boxes, labels)["map"] == pytest.approx(0.1)
    far = [finding((11, 5, 21, 15, 0.9, 0))]
    assert average_precision(far, boxes, labels)["map50"] == 0


def test_average_precision_of_nothing_found_is_zero_and_says_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert average_precision([finding(), finding()], BOXES, LABELS) == {"map50": 0, "map": 0}
    assert capsys.readouterr().out == ""


def test_average_precision_needs_objects_and_one_finding_an_image() -> None:
    with pytest.raises(ValueError, match="about the same images, got 1"):
        average_precision([finding()], BOXES, LABELS)
    with pytest.raises(ValueError, match="labels must hold at least one object"):
        average_precision([finding(), finding()], BOXES, torch.full((2, 2), -1))
