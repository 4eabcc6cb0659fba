"""The networks, and the teachers that ship with the package."""

import copy
import hashlib
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from kdcourse import data, models
from kdcourse.models import (
    MLP,
    WEIGHTS,
    ConvNet,
    count_parameters,
    example_models,
    large_convnet,
    load_teacher,
    new_teacher,
    recipe,
    small_convnet,
)
from kdcourse.training import evaluate
from kdcourse.weights import __main__ as weights

TEACHERS = ["digits", "textured_shapes", "glyphs"]


def kinds(model: nn.Module) -> list[str]:
    return [type(layer).__name__ for layer in model]


# Networks


def test_the_example_models_are_the_documented_pair() -> None:
    teacher, student = example_models()
    layers = [layer for layer in teacher if isinstance(layer, nn.Linear)]
    sizes = [layers[0].in_features, *(layer.out_features for layer in layers)]
    assert sizes == [784, 1024, 512, 256, 10]
    assert kinds(teacher) == [
        *["Flatten", "Linear", "ReLU", "Dropout", "Linear", "ReLU", "Dropout"],
        *["Linear", "ReLU", "Linear"],
    ]
    assert [layer.p for layer in teacher if isinstance(layer, nn.Dropout)] == [0.3, 0.3]
    assert kinds(student) == ["Flatten", "Linear", "ReLU", "Linear"]
    assert [count_parameters(model) for model in (teacher, student)] == [1_462_538, 101_770]
    images = torch.rand(3, 1, 28, 28)
    assert teacher(images).shape == student(images).shape == (3, 10)


def test_mlp_dropout_is_one_for_all_or_one_for_each() -> None:
    assert kinds(MLP(4, [5, 6], 3, dropout=0.5)).count("Dropout") == 2
    assert kinds(MLP(4, [5, 6], 3)).count("Dropout") == 0
    assert kinds(MLP(4, [], 3)) == ["Flatten", "Linear"]
    with pytest.raises(ValueError, match="dropout must be one number or one for each of 2"):
        MLP(4, [5, 6], 3, dropout=[0.5])


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_convnet_halves_the_resolution_at_each_stage(depth: int) -> None:
    net = ConvNet([8, 12, 16], 5, in_channels=2, depth=depth)
    images, sides = torch.rand(3, 2, 16, 16), []
    activations = images
    for stage in net.stages:
        assert kinds(stage) == ["Conv2d", "BatchNorm2d", "ReLU"] * depth
        activations = stage(activations)
        sides.append(tuple(activations.shape[1:]))
    assert sides == [(8, 8, 8), (12, 4, 4), (16, 2, 2)]
    embedding = net.embed(images)
    assert embedding.shape == (3, 16)
    torch.testing.assert_close(net(images), net.classifier(embedding))


def test_convnet_embedding_is_the_mean_over_space_of_the_last_stage() -> None:
    net = ConvNet([4, 6], 3).eval()
    images = torch.rand(2, 1, 16, 16)
    expected = net.stages(images).flatten(2).sum(2) / 16
    torch.testing.assert_close(net.embed(images), expected)


def test_stages_have_names_to_ask_for() -> None:
    names = dict(small_convnet(20).named_modules())
    assert {"stages.0", "stages.1", "classifier"} <= set(names)


@pytest.mark.parametrize("side", [8, 15, 17, 48])
def test_convnet_takes_images_of_any_size(side: int) -> None:
    assert small_convnet(7)(torch.rand(2, 1, side, side)).shape == (2, 7)


def test_every_parameter_gets_a_gradient() -> None:
    for net in (small_convnet(20), large_convnet(20), MLP(256, [16], 20, dropout=0.1)):
        net(torch.rand(4, 1, 16, 16)).square().sum().backward()
        for name, parameter in net.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name


def test_the_same_seed_gives_the_same_weights() -> None:
    nets = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        nets.append(small_convnet(20).state_dict()["stages.0.0.weight"])
    assert torch.equal(nets[0], nets[1])
    assert not torch.equal(nets[0], nets[2])


def test_networks_can_be_copied_and_stored(tmp_path: Path) -> None:
    net = small_convnet(20).eval()
    images = torch.rand(2, 1, 16, 16)
    torch.save(net.state_dict(), tmp_path / "net.pt")
    other = small_convnet(20).eval()
    other.load_state_dict(torch.load(tmp_path / "net.pt", weights_only=True))
    for twin in (other, copy.deepcopy(net)):
        assert torch.equal(twin(images), net(images))


def test_the_student_is_much_smaller_than_the_teacher() -> None:
    assert 5 * count_parameters(small_convnet(20)) < count_parameters(large_convnet(20))


def test_a_convnet_needs_a_stage_and_a_convolution() -> None:
    with pytest.raises(ValueError, match="widths must name at least one stage"):
        ConvNet([], 5)
    with pytest.raises(ValueError, match="depth must be at least 1, got 0"):
        ConvNet([8], 5, depth=0)


# Shipped teachers


@pytest.mark.parametrize("name", TEACHERS)
def test_a_shipped_teacher_is_as_good_as_its_recipe_says(name: str) -> None:
    teacher = load_teacher(name)
    assert not any(module.training for module in teacher.modules())
    # Letters may be rendered a little differently by another version of the font library.
    for part in ("validation", "test"):
        found = evaluate(teacher, getattr(getattr(data, name)(), part))["accuracy"]
        assert found == pytest.approx(recipe(name)[f"{part}_accuracy"], abs=0.01)


@pytest.mark.parametrize("name", TEACHERS)
def test_shipped_files_are_small_and_have_the_recorded_hash(name: str) -> None:
    content = (WEIGHTS / f"{name}.safetensors").read_bytes()
    assert len(content) < 1_500_000
    assert hashlib.sha256(content).hexdigest() == recipe(name)["sha256"]


@pytest.mark.parametrize("name", TEACHERS)
def test_recipes_are_complete_and_those_of_the_build(name: str) -> None:
    report = recipe(name)
    assert {"data", "optimizer", "torch", "test_accuracy", "validation_accuracy"} <= set(report)
    assert report["parameters"] == count_parameters(new_teacher(name))
    for setting, value in weights.SETTINGS[name].items():
        assert report[setting] == value, setting


def test_each_call_gives_a_teacher_of_its_own() -> None:
    first, second = load_teacher("digits"), load_teacher("digits")
    with torch.no_grad():
        next(first.parameters()).zero_()
    assert next(second.parameters()).abs().sum() > 0


def test_an_unknown_teacher_is_named() -> None:
    with pytest.raises(ValueError, match=r"name must be 'digits'.*got 'imagenet'"):
        load_teacher("imagenet")


@pytest.mark.parametrize("damage", ["one bit", "cut off"])
def test_a_damaged_file_is_refused(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = bytearray((WEIGHTS / "digits.safetensors").read_bytes())
    if damage == "one bit":
        content[-1] ^= 1
    else:
        del content[-100:]
    (tmp_path / "digits.safetensors").write_bytes(content)
    (tmp_path / "teachers.json").write_text((WEIGHTS / "teachers.json").read_text())
    monkeypatch.setattr(models, "WEIGHTS", tmp_path)
    with pytest.raises(ValueError, match="weights of teacher 'digits' must have SHA-256"):
        load_teacher("digits")


def test_a_teacher_trained_again_is_as_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = weights.build("digits", tmp_path)
    # Elsewhere than where it was trained the weights differ; 1 % is five of the 500 test images.
    assert report["test_accuracy"] == pytest.approx(recipe("digits")["test_accuracy"], abs=0.015)
    assert json.loads((tmp_path / "teachers.json").read_text()) == {"digits": report}
    monkeypatch.setattr(models, "WEIGHTS", tmp_path)
    again = evaluate(load_teacher("digits"), data.digits().test)["accuracy"]
    assert again == pytest.approx(report["test_accuracy"], abs=1e-4)
