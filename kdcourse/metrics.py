"""What is read off a network's outputs and only logged."""

from collections.abc import Sequence
from contextlib import redirect_stdout
from io import StringIO
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ._checks import require, shape

if TYPE_CHECKING:
    from .detection import Detections


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Share of rows whose largest logit is the label's, in [0, 1].

    Args:
        logits: `[B, C]`; no gradient flows through them here.
        labels: integer classes, `[B]`.

    Returns:
        A 0-d float32 tensor.

    Example:
        >>> import torch
        >>> accuracy(torch.tensor([[0.0, 1.0], [2.0, 1.0]]), torch.tensor([1, 1])).item()
        0.5
    """
    return (logits.detach().argmax(-1) == labels).float().mean()


def average_precision(
    found: "Sequence[Detections]", boxes: Tensor, labels: Tensor
) -> dict[str, float]:
    """How well a detector finds objects, as the COCO benchmark measures it.

    A finding is right if its class is and its box overlaps the object's enough, each object once.
    Going from the surest finding to the least sure, precision is plotted against recall; the area
    below, averaged over the classes that occur, is the mean average precision.

    Args:
        found: the objects found in each of N images.
        boxes: the true ones, `[N, M, 4]`.
        labels: `[N, M]`; -1 where there is no object.

    Returns:
        `map50`, where an overlap (intersection over union) of 0.5 is enough, and `map`, the mean
        over the overlaps 0.5, 0.55, ... 0.95; both in [0, 1].

    Raises:
        ValueError: for other numbers of images, or no object at all.

    Reference:
        Lin et al. (2014), "Microsoft COCO: Common Objects in Context", arXiv:1405.0312; computed
        by the authors' own library, pycocotools.

    Example:
        >>> import torch
        >>> from kdcourse.detection import Detections
        >>> box, label = torch.tensor([[2.0, 2.0, 8.0, 8.0]]), torch.tensor([3])
        >>> sloppy = Detections(box + torch.tensor([0.0, 0, 2, 0]), torch.tensor([0.9]), label)
        >>> {k: round(v, 2) for k, v in average_precision([sloppy], box[None], label[None]).items()}
        {'map50': 1.0, 'map': 0.6}
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    require(
        boxes.dim() == 3 and labels.shape == boxes.shape[:2] and len(found) == len(boxes),
        "found, boxes and labels must be about the same images, "
        f"got {len(found)}, {shape(boxes)} and {shape(labels)}",
    )
    require(bool((labels >= 0).any()), "labels must hold at least one object, got none")
    truth = [
        _entry(image, box, label)
        for image, (image_boxes, image_labels) in enumerate(zip(boxes, labels, strict=True))
        for box, label in zip(image_boxes, image_labels.tolist(), strict=True)
        if label >= 0
    ]
    guesses = [
        _entry(image, box, label) | {"score": score}
        for image, finding in enumerate(found)
        for box, score, label in zip(
            finding.boxes, finding.scores.tolist(), finding.labels.tolist(), strict=True
        )
    ]
    with redirect_stdout(StringIO()):  # the library talks
        gold, guessed = COCO(), COCO()
        for table, entries in ((gold, truth), (guessed, guesses)):
            table.dataset = {
                "images": [{"id": image} for image in range(len(boxes))],
                "categories": [{"id": i} for i in range(int(labels.max()) + 1)],
                "annotations": [entry | {"id": i} for i, entry in enumerate(entries, start=1)],
            }
            table.createIndex()
        judge = COCOeval(gold, guessed, "bbox")
        judge.params.areaRng, judge.params.areaRngLbl = [[0, float("inf")]], ["all"]
        judge.params.maxDets = [100]
        judge.evaluate()
        judge.accumulate()
    precision = judge.eval["precision"][:, :, :, 0, 0]  # overlap, recall, class
    occurring = precision[:, :, (precision > -1).any((0, 1))]
    return {"map50": float(occurring[0].mean()), "map": float(occurring.mean())}


def _entry(image: int, box: Tensor, label: int) -> dict[str, Any]:
    left, top, right, bottom = box.tolist()
    return {
        "image_id": image,
        "category_id": label,
        "bbox": [left, top, right - left, bottom - top],
        "area": (right - left) * (bottom - top),
        "iscrowd": 0,
    }
