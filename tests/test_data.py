"""The image sets and what cuts them into batches."""

import asyncio
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from kdcourse import data
from kdcourse.data import (
    ImageData,
    TensorLoader,
    digit_scenes,
    digits,
    docstrings,
    glyphs,
    mnist,
    shift,
    subset,
    textured_shapes,
)

LOADERS = [digits, mnist, textured_shapes, glyphs]


def different(images: Tensor) -> int:
    """How many of the images differ."""
    return len({image.numpy().tobytes() for image in images})


def parts(images: ImageData) -> list[TensorDataset]:
    further = [] if images.unlabelled is None else [images.unlabelled]
    return [images.train, images.validation, images.test, *further]


@pytest.mark.parametrize(
    ("loader", "sizes", "side", "classes"),
    [
        (digits, [1097, 200, 500], 8, 10),
        (mnist, [4000, 1000, 3000, 2000], 28, 10),
        (textured_shapes, [4000, 1000, 3000], 16, 20),
        (glyphs, [4000, 1000, 3000], 16, 26),
    ],
)
def test_shapes_types_and_class_balance(loader, sizes, side, classes) -> None:
    images = loader()
    assert images.name == loader.__name__
    assert len(images.class_names) == len(set(images.class_names)) == classes
    assert images.licence
    for part, size in zip(parts(images), sizes, strict=True):
        inputs, labels = part.tensors
        assert inputs.shape == (size, 1, side, side)
        assert inputs.dtype == torch.float32
        assert labels.shape == (size,)
        assert labels.dtype == torch.int64
        assert inputs.isfinite().all()
        counts = labels.bincount(minlength=classes)
        assert len(counts) == classes
        # Generated classes differ by at most one; scans come in unequal numbers, of MNIST 863 to
        # 1,127 of each digit.
        allowed = {digits: 0.04 * size / classes + 2, mnist: 0.27 * size / classes + 2}
        assert counts.max() - counts.min() <= allowed.get(loader, 1)


@pytest.mark.parametrize("loader", LOADERS)
def test_the_seed_draws_the_images(loader) -> None:
    first, same, other = loader(seed=3), loader(seed=3), loader(seed=4)
    for one, two, three in zip(parts(first), parts(same), parts(other), strict=True):
        assert torch.equal(one.tensors[0], two.tensors[0])
        assert torch.equal(one.tensors[1], two.tensors[1])
        assert not torch.equal(one.tensors[0], three.tensors[0])


@pytest.mark.parametrize("loader", LOADERS)
def test_loaders_leave_the_global_generator_alone(loader) -> None:
    before = torch.get_rng_state()
    loader(seed=1)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("loader", LOADERS)
def test_no_image_is_in_two_parts_or_twice(loader) -> None:
    everything = torch.cat([part.tensors[0] for part in parts(loader())])
    assert different(everything) == len(everything)


def test_pictures_share_no_drawing_even_without_noise() -> None:
    for loader in (textured_shapes, glyphs):
        images = loader(noise=0.0)
        everything = torch.cat([part.tensors[0] for part in parts(images)])
        assert different(everything) == len(everything), loader.__name__


def test_parts_of_equal_size_and_neighbouring_seeds_share_nothing() -> None:
    sizes = {"train_size": 50, "validation_size": 50, "test_size": 50}
    for loader in (textured_shapes, glyphs):
        drawn = [part.tensors[0] for seed in range(3) for part in parts(loader(seed=seed, **sizes))]
        assert different(torch.cat(drawn)) == 9 * 50, loader.__name__


def test_digits_are_all_the_scans_scaled() -> None:
    from sklearn.datasets import load_digits

    scans = torch.tensor(load_digits().images, dtype=torch.float32).unsqueeze(1) / 16
    ours = torch.cat([part.tensors[0] for part in parts(digits(seed=2))])
    assert different(torch.cat([ours, scans])) == different(ours) == 1797
    assert ours.min() == 0
    assert ours.max() == 1


def test_mnist_is_every_shipped_scan_once_right_way_up() -> None:
    images = mnist(seed=5)
    inputs = torch.cat([part.tensors[0] for part in parts(images)])
    labels = torch.cat([part.tensors[1] for part in parts(images)])
    assert different(inputs) == len(inputs) == 10_000
    assert inputs.min() == 0
    assert inputs.max() == 1
    assert labels.bincount().tolist() == shipped_counts()
    assert "CC BY-SA 3.0" in images.licence
    # A one is a narrow upright stroke, a zero is empty in the middle.
    one, zero = (inputs[labels == digit, 0].mean(0) for digit in (1, 0))
    assert one[:, 13:15].mean() > 3 * one[13:15, :].mean()
    assert zero[13:15, 13:15].mean() < 0.2 * zero.max()


def shipped_counts() -> list[int]:
    """Of each digit in the shipped file, read on another way."""
    with zipfile.ZipFile(Path(data.__file__).parent / "pictures" / "mnist.npz") as archive:
        labels = np.load(archive.open("labels.npy"))
    return np.unique(labels, return_counts=True)[1].tolist()


def test_superclasses_follow_from_the_names() -> None:
    images = textured_shapes(train_size=20, validation_size=20, test_size=20)
    groups = images.superclasses
    assert set(groups) == {"shape", "texture"}
    names = [name.split() for name in images.class_names]
    assert [data.SHAPES[i] for i in groups["shape"]] == [shape for _, shape in names]
    assert [data.TEXTURES[i] for i in groups["texture"]] == [texture for texture, _ in names]
    assert groups["shape"].bincount().tolist() == [4] * 5
    assert groups["texture"].bincount().tolist() == [5] * 4


def mean_spread(images: Tensor) -> Tensor:
    """How much neighbours differ inside a picture: high for stripes and checks."""
    return images.diff(dim=-1).abs().mean((1, 2, 3)) + images.diff(dim=-2).abs().mean((1, 2, 3))


def test_each_picture_shows_what_its_class_says() -> None:
    images = textured_shapes(noise=0.0)
    inputs, labels = images.test.tensors
    shape, texture = images.superclasses["shape"][labels], images.superclasses["texture"][labels]
    spread = [mean_spread(inputs[texture == i]).mean() for i in range(4)]
    plain, striped, checked, shaded = spread
    assert min(striped, checked) > 1.2 * max(plain, shaded)
    area = [(inputs[shape == i] > 0.05).float().mean() for i in range(5)]
    disc, square, triangle, cross, ring = area
    assert max(triangle, cross) < min(disc, square)
    # Only the ring is dark at its centre of mass.
    middle = []
    for i in (0, 4):
        pictures = (inputs[(shape == i) & (texture == 0)] > 0.3).float()
        axis = torch.arange(16.0)
        mass = pictures.sum((1, 2, 3))
        row = ((pictures.sum(3)[:, 0] @ axis) / mass).round().long()
        column = ((pictures.sum(2)[:, 0] @ axis) / mass).round().long()
        middle.append(pictures[torch.arange(len(pictures)), 0, row, column].mean())
    assert middle[0] > 0.99
    assert middle[1] < 0.1
    assert ring < square


def test_noise_has_the_asked_standard_deviation() -> None:
    for loader in (textured_shapes, glyphs):
        clean, noisy = loader(noise=0.0).train.tensors[0], loader(noise=0.3).train.tensors[0]
        assert (noisy - clean).std().item() == pytest.approx(0.3, abs=0.005), loader.__name__


def test_sizes_change_no_other_part() -> None:
    full, small = textured_shapes(), textured_shapes(train_size=100)
    assert len(small.train) == 100
    assert torch.equal(full.test.tensors[0], small.test.tensors[0])
    assert torch.equal(full.validation.tensors[0], small.validation.tensors[0])


def test_glyphs_use_sixteen_fonts_or_more_and_every_one_differs() -> None:
    letters = data._render_letters()
    assert letters.shape[0] == 26
    assert letters.shape[1] >= 16
    assert different(letters.flatten(0, 1)) == letters[..., 0, 0].numel()
    assert letters.sum((2, 3)).min() > 50
    # Hardly any ink lies on the border, where a letter would be cut off.
    inner = letters[..., 1:-1, 1:-1].sum((2, 3))
    assert (letters.sum((2, 3)) - inner).max() < 0.01 * inner.max()


@pytest.mark.parametrize("loader", [textured_shapes, glyphs])
@pytest.mark.parametrize("name", ["train_size", "validation_size", "test_size"])
def test_a_part_must_have_pictures(loader, name) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        loader(**{name: 0})


@pytest.mark.parametrize("loader", [textured_shapes, glyphs])
@pytest.mark.parametrize("noise", [-0.1, float("nan")])
def test_noise_must_be_a_standard_deviation(loader, noise) -> None:
    with pytest.raises(ValueError, match="noise must be at least 0"):
        loader(noise=noise)


# Scenes


def test_scenes_have_their_digits_where_the_boxes_are() -> None:
    scenes = digit_scenes(noise=0.0)
    for part, size in ((scenes.train, 1000), (scenes.validation, 200), (scenes.test, 400)):
        images, boxes, labels = part.tensors
        assert images.shape == (size, 1, 48, 48) and images.dtype == torch.float32
        assert boxes.shape == (size, 4, 4) and labels.shape == (size, 4)
        real = labels >= 0
        assert labels.max() == 9 and real.any(1).all()
        assert (boxes[~real] == 0).all() and (labels[~real] == -1).all()
        assert (real[:, :-1] >= real[:, 1:]).all()  # what is empty stands last
        assert boxes[real].min() >= 0 and boxes[real].max() <= 48
        sides = boxes[real][:, 2:] - boxes[real][:, :2]
        assert sides.min() > 1.5 and 20 < sides.max() <= 22
        assert real.sum(1).unique().tolist() == [1, 2, 3, 4]
        assert real.all(1).float().mean() > 0.12  # nearly every fourth was to have four
    images, boxes, labels = scenes.train.tensors
    middles = torch.arange(48) + 0.5
    x, y = middles[None, None, None], middles[None, None, :, None]
    left, top, right, bottom = boxes[..., None, None].unbind(2)
    near = (x > left - 1) & (x < right + 1) & (y > top - 1) & (y < bottom + 1)
    near &= (labels >= 0)[..., None, None]
    outside = images[:, 0] * ~near.any(1)
    assert outside.sum() < 0.01 * images.sum()  # a little ink is below what counts as ink
    ink = (images * near).flatten(2).sum(2)[labels >= 0]
    assert ink.min() > 5


def test_boxes_of_scenes_do_not_touch() -> None:
    _, boxes, labels = digit_scenes().train.tensors
    for i in range(4):
        for j in range(i):
            both = (labels[:, i] >= 0) & (labels[:, j] >= 0)
            a, b = boxes[both, i], boxes[both, j]
            meet = torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])
            assert (meet.amin(1) <= -0.99).all()


def test_scenes_are_seeded_and_their_parts_share_no_scan() -> None:
    sizes = {"train_size": 20, "validation_size": 20, "test_size": 20}
    first, same, other = (digit_scenes(seed=seed, **sizes) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first.test[:], same.test[:], strict=True))
    assert not torch.equal(first.test[:][0], other.test[:][0])
    drawn = [part[:][0] for part in (first.train, first.validation, first.test)]
    assert different(torch.cat(drawn)) == 60
    noisy, clean = (digit_scenes(noise=noise, **sizes).train[:][0] for noise in (0.2, 0.0))
    assert (noisy - clean).std().item() == pytest.approx(0.2, abs=0.005)
    with pytest.raises(ValueError, match="test_size must be at least 1, got 0"):
        digit_scenes(test_size=0)
    with pytest.raises(ValueError, match="noise must be at least 0"):
        digit_scenes(noise=-1.0)


def test_each_part_of_the_scenes_draws_on_the_scans_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scans = digits(seed=3)
    used = []
    monkeypatch.setattr(data, "_draw_scenes", lambda size, part, *rest: used.append(part) or part)
    digit_scenes(seed=3)
    for part, expected in zip(used, (scans.train, scans.validation, scans.test), strict=True):
        assert torch.equal(part.tensors[0], expected.tensors[0])


# Texts


def test_docstrings_are_real_texts_with_their_package_as_class() -> None:
    texts = docstrings()
    sizes = [len(part.texts) for part in (texts.train, texts.validation, texts.test)]
    assert sizes[1:] == [200, 500]
    assert sizes[0] > 1000
    everything = sum((part.texts for part in (texts.train, texts.validation, texts.test)), ())
    assert len(set(everything)) == len(everything)
    assert all(len(text.split()) >= 3 and text == " ".join(text.split()) for text in everything)
    for part in (texts.train, texts.validation, texts.test):
        assert part.labels.dtype == torch.int64
        assert len(part.labels) == len(part.texts)
        assert set(part.labels.tolist()) == set(range(len(texts.class_names)))
    own = " ".join(asyncio.Queue.get.__doc__.split())
    labels = torch.cat([texts.train.labels, texts.validation.labels, texts.test.labels])
    assert texts.class_names[labels[everything.index(own)]] == "asyncio"


def test_the_seed_draws_the_texts() -> None:
    first, same, other = docstrings(seed=1), docstrings(seed=1), docstrings(seed=2)
    assert first.test.texts == same.test.texts != other.test.texts
    assert torch.equal(first.train.labels, same.train.labels)
    small = docstrings(seed=1, test_size=100, validation_size=50)
    assert [len(part.texts) for part in (small.validation, small.test)] == [50, 100]


@pytest.mark.parametrize("sizes", [{"test_size": 0}, {"validation_size": 0}, {"test_size": 10**6}])
def test_parts_of_texts_must_fit(sizes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="validation_size and test_size must be at least 1"):
        docstrings(**sizes)


def test_an_incomplete_standard_library_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    with pytest.raises(ValueError, match="lacks the source of 'asyncio'"):
        data._read_docstrings.__wrapped__()


# Subsets


def test_subset_is_stratified_seeded_and_of_the_right_size() -> None:
    whole = textured_shapes().train
    for size in (1, 19, 20, 500, 4000):
        part = subset(whole, size, seed=0)
        counts = part.tensors[1].bincount(minlength=20)
        assert len(part) == size
        assert counts.max() - counts.min() <= 1
    one, same, other = (subset(whole, 500, seed=seed).tensors for seed in (1, 1, 2))
    assert torch.equal(one[0], same[0])
    assert not torch.equal(one[1], other[1])
    assert different(one[0]) == 500


def test_subset_keeps_what_belongs_to_a_sample_together() -> None:
    index = torch.arange(100)
    whole = TensorDataset(index.float(), index % 5, 10 * index)
    inputs, labels, extra = subset(whole, 40, seed=0).tensors
    assert torch.equal(inputs.long() % 5, labels)
    assert torch.equal(10 * inputs.long(), extra)


def test_subset_of_unequal_classes_keeps_their_shares() -> None:
    labels = torch.tensor([0] * 80 + [1] * 20)
    part = subset(TensorDataset(torch.arange(100), labels), 50, seed=0)
    assert part.tensors[1].bincount().tolist() == pytest.approx([40, 10], abs=1)


@pytest.mark.parametrize("size", [0, -1, 101])
def test_subset_must_fit(size: int) -> None:
    whole = TensorDataset(torch.zeros(100), torch.zeros(100, dtype=torch.long))
    with pytest.raises(ValueError, match=f"size must be from 1 to 100, got {size}"):
        subset(whole, size, seed=0)


# Batches


def numbers(size: int = 10) -> TensorDataset:
    return TensorDataset(torch.arange(size), torch.arange(size) % 3, 2 * torch.arange(size))


def test_every_example_comes_once_an_epoch_and_the_last_batch_is_short() -> None:
    loader = TensorLoader(numbers(), 4)
    batches = list(loader)
    assert len(loader) == len(batches) == 3
    assert [len(batch[0]) for batch in batches] == [4, 4, 2]
    assert torch.cat([batch[0] for batch in batches]).sort().values.tolist() == list(range(10))
    for inputs, labels, extra in batches:
        assert torch.equal(labels, inputs % 3)
        assert torch.equal(extra, 2 * inputs)


def order(loader: TensorLoader) -> list[int]:
    return torch.cat([batch[0] for batch in loader]).tolist()


def test_the_order_follows_the_seed_and_changes_every_epoch() -> None:
    loader, same, other = (TensorLoader(numbers(50), 8, seed=seed) for seed in (1, 1, 2))
    first, second = order(loader), order(loader)
    assert first != second
    assert [first, second] == [order(same), order(same)]
    assert first != order(other)


def test_the_order_is_resumed_from_the_generators_state() -> None:
    loader = TensorLoader(numbers(50), 8)
    order(loader)
    state = loader.generator.get_state()
    expected = order(loader)
    resumed = TensorLoader(numbers(50), 8, seed=9)
    resumed.generator.set_state(state)
    assert order(resumed) == expected


def test_without_shuffling_the_order_is_the_data_sets() -> None:
    assert order(TensorLoader(numbers(), 3, shuffle=False)) == list(range(10))


def test_augmentation_changes_the_inputs_alone_and_draws_from_the_loaders_generator() -> None:
    def jitter(inputs: Tensor, generator: torch.Generator) -> Tensor:
        return inputs + torch.rand(inputs.shape, generator=generator)

    whole = TensorDataset(torch.arange(20.0), torch.arange(20))
    loader, same = (TensorLoader(whole, 8, augment=jitter) for _ in range(2))
    for (inputs, labels), (again, _) in zip(loader, same, strict=True):
        assert torch.equal(inputs, again)
        assert torch.equal(inputs.floor().long(), labels)
        assert not torch.equal(inputs, labels.float())
    assert torch.equal(whole.tensors[0], torch.arange(20.0))


def test_a_batch_has_at_least_one_example() -> None:
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        TensorLoader(numbers(), 0)


# Augmentation


def test_shift_moves_each_image_its_own_way_and_loses_nothing() -> None:
    images = torch.rand(200, 2, 5, 6, generator=torch.Generator().manual_seed(0))
    moved = shift(images, torch.Generator().manual_seed(1), pixels=1)
    assert moved.shape == images.shape
    moves = set()
    for before, after in zip(images, moved, strict=True):
        fits = [
            (dy, dx)
            for dy in (-1, 0, 1)
            for dx in (-1, 0, 1)
            if torch.equal(before.roll((dy, dx), dims=(1, 2)), after)
        ]
        assert len(fits) == 1
        moves |= set(fits)
    assert len(moves) == 9


def test_shift_by_nothing_is_nothing() -> None:
    images = torch.rand(3, 1, 4, 4)
    assert torch.equal(shift(images, torch.Generator(), pixels=0), images)
    with pytest.raises(ValueError, match="pixels must be at least 0, got -1"):
        shift(images, torch.Generator(), pixels=-1)
