"""The loop: contracts, the frozen teacher, interruption, checkpoints, cached outputs."""

import copy
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import several_processes
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from kdcourse.soft_targets import SoftTargetDistillation
from kdcourse.training import (
    DistillationObjective,
    DistillationTrainer,
    FrozenTeacher,
    SupervisedObjective,
    accuracy,
    cache_teacher_logits,
    evaluate,
    fit,
    predict,
    to_device,
)


def toy_data(size: int = 50) -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(size, 6, generator=generator)
    return TensorDataset(inputs, inputs[:, :3].argmax(1))


def network(seed: int, *, dropout: float = 0.0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 3)
    )


def seeded_loader(dataset: Dataset, *, seed: int = 0, batch_size: int = 16) -> DataLoader:
    generator = torch.Generator().manual_seed(seed)
    return DataLoader(dataset, batch_size=batch_size, shuffle=True, generator=generator)


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


def test_training_learns() -> None:
    data, model = toy_data(200), network(0)
    before = evaluate(model, data)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    history = fit(SupervisedObjective(model), seeded_loader(data), optimizer, epochs=15)
    after = evaluate(model, data)
    assert after["accuracy"] > 0.9 > before["accuracy"]
    assert after["loss"] < before["loss"]
    assert history["loss"].iloc[-1] < history["loss"].iloc[0]


def test_distillation_brings_the_student_to_the_teacher() -> None:
    data, teacher, student = toy_data(200), network(1), network(2)
    trainer = DistillationTrainer(
        student=student, teacher=teacher, objective=SoftTargetDistillation(alpha=1.0)
    )
    before = trainer.evaluate(data)["agreement"]
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-2)
    trainer.fit(seeded_loader(data), optimizer, epochs=30)
    report = trainer.evaluate(data)
    assert report["agreement"] > 0.9 > before
    # The teacher is untrained: the student copied it, not the labels.
    assert report["teacher_accuracy"] < 0.7
    assert abs(report["student_accuracy"] - report["teacher_accuracy"]) < 0.06


class Recorder(nn.Module):
    """An objective whose terms are the batch's own numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(1.0))

    def forward(self, batch: tuple[torch.Tensor]) -> tuple[dict, dict]:
        (values,) = batch
        still = self.weight - self.weight.detach()
        return {"a": values.mean() + still, "b": 2 * values.mean() + still}, {"m": values.mean()}


def test_history_weighs_a_short_last_batch_by_its_size() -> None:
    objective, values = Recorder(), torch.tensor([0.0, 0.0, 0.0, 0.0, 10.0])
    loader = DataLoader(TensorDataset(values), batch_size=4)
    history = fit(objective, loader, torch.optim.SGD(objective.parameters(), lr=0.0), epochs=1)
    assert history.loc[0, ["a", "b", "loss", "m"]].tolist() == [2.0, 4.0, 6.0, 2.0]
    assert list(history.columns) == ["epoch", "loss", "a", "b", "m", "seconds"]


def test_history_accuracies_are_means_over_all_samples() -> None:
    data, teacher, student = toy_data(50), network(1), network(2)
    trainer = DistillationTrainer(
        student=student, teacher=teacher, objective=SoftTargetDistillation()
    )
    optimizer = torch.optim.SGD(student.parameters(), lr=0.0)
    history = trainer.fit(seeded_loader(data), optimizer, epochs=1)
    assert history["teacher_accuracy"][0] == pytest.approx(evaluate(teacher, data)["accuracy"])


def test_validate_and_scheduler_are_called() -> None:
    data, model = toy_data(), network(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    history = fit(
        SupervisedObjective(model),
        seeded_loader(data),
        optimizer,
        epochs=2,
        scheduler=scheduler,
        validate=lambda: {"validation": evaluate(model, data)["accuracy"]},
    )
    assert optimizer.param_groups[0]["lr"] == 0.5**8  # two epochs of four batches
    assert history["validation"].between(0, 1).all()
    assert model.training


class TestFrozenTeacher:
    def test_parent_train_does_not_wake_it(self) -> None:
        teacher = network(0, dropout=0.5)
        parent = nn.Sequential(FrozenTeacher(teacher))
        parent.train()
        assert parent.training
        assert not any(module.training for module in teacher.modules())

    def test_hands_back_modes_and_flags(self) -> None:
        teacher = network(0, dropout=0.5)
        teacher[1].eval()
        teacher[0].bias.requires_grad_(False)
        modes = [module.training for module in teacher.modules()]
        flags = [parameter.requires_grad for parameter in teacher.parameters()]
        with FrozenTeacher(teacher):
            assert not any(p.requires_grad for p in teacher.parameters())
        assert [module.training for module in teacher.modules()] == modes
        assert [parameter.requires_grad for parameter in teacher.parameters()] == flags

    def test_trainer_hands_back_the_teacher_even_when_training_fails(self) -> None:
        student, teacher = network(0), network(1, dropout=0.5)
        before = weights(teacher)
        trainer = DistillationTrainer(
            student=student, teacher=teacher, objective=SoftTargetDistillation()
        )
        wrong = TensorDataset(torch.randn(4, 6), torch.zeros(4))  # labels are not integers
        with pytest.raises(ValueError, match="labels must be integer"):
            trainer.fit(
                DataLoader(wrong, batch_size=4), torch.optim.SGD(student.parameters(), lr=0.1)
            )
        assert teacher.training
        assert all(parameter.requires_grad for parameter in teacher.parameters())
        assert_same(before, weights(teacher))

    def test_is_not_changed_by_training(self) -> None:
        student, teacher = network(0), network(1, dropout=0.5)
        before = weights(teacher)
        trainer = DistillationTrainer(
            student=student, teacher=teacher, objective=SoftTargetDistillation()
        )
        optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
        trainer.fit(seeded_loader(toy_data()), optimizer, epochs=1)
        assert_same(before, weights(teacher))  # batch-norm statistics too


class TestOptimizerCheck:
    def test_names_the_missing_parameter(self) -> None:
        model = network(0)
        optimizer = torch.optim.SGD(model[0].parameters(), lr=0.1)
        with pytest.raises(ValueError, match=r"lacks model\.1\.weight, .*model\.4\.bias"):
            fit(SupervisedObjective(model), seeded_loader(toy_data()), optimizer, epochs=1)

    def test_frozen_parameters_need_no_optimizer(self) -> None:
        model = network(0)
        model[:4].requires_grad_(False)
        optimizer = torch.optim.SGD(model[4].parameters(), lr=0.1)
        before = weights(model[0])
        fit(SupervisedObjective(model), seeded_loader(toy_data()), optimizer, epochs=1)
        assert_same(before, weights(model[0]))

    def test_every_trainable_parameter_gets_a_gradient(self) -> None:
        joined = DistillationObjective(
            student=network(0), teacher=network(1), objective=SoftTargetDistillation()
        )
        terms, _ = joined(toy_data().tensors)
        sum(terms.values()).backward()
        for name, parameter in joined.named_parameters():
            assert (parameter.grad is not None) == parameter.requires_grad, name
            assert parameter.requires_grad == name.startswith("student"), name


class TestCheckpoint:
    @staticmethod
    def prepare() -> tuple[nn.Module, DataLoader, torch.optim.Optimizer, object]:
        model = network(3, dropout=0.4)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=5, gamma=0.9)
        return model, seeded_loader(toy_data()), optimizer, scheduler

    def train(self, epochs: int, **options: object) -> tuple[nn.Module, object]:
        model, loader, optimizer, scheduler = self.prepare()
        objective = SupervisedObjective(model)
        history = fit(
            objective, loader, optimizer, epochs=epochs, scheduler=scheduler, seed=7, **options
        )
        return model, history.drop(columns="seconds")

    def test_resumed_run_is_bit_identical(self, tmp_path) -> None:
        whole, whole_history = self.train(6)
        self.train(3, checkpoint=tmp_path / "run.pt")
        torch.rand(17)  # the world goes on between the two halves
        resumed, history = self.train(6, checkpoint=tmp_path / "run.pt")
        assert_same(weights(whole), weights(resumed))
        assert history.equals(whole_history)

    def test_interrupted_in_the_middle_of_an_epoch(self, tmp_path) -> None:
        whole, _ = self.train(5)
        model, loader, optimizer, scheduler = self.prepare()
        objective, calls = SupervisedObjective(model), []

        def stop(module: nn.Module, arguments: object) -> None:
            calls.append(1)
            if len(calls) == 11:  # four batches an epoch: in the third
                raise KeyboardInterrupt

        handle = objective.register_forward_pre_hook(stop)
        before = weights(model)
        with pytest.warns(UserWarning, match="interrupted in epoch 3"):
            history = fit(
                objective,
                loader,
                optimizer,
                epochs=5,
                scheduler=scheduler,
                seed=7,
                checkpoint=tmp_path / "run.pt",
            )
        handle.remove()
        assert len(history) == 2
        assert not torch.equal(before["0.weight"], model[0].weight)  # what was learned is kept
        resumed, _ = self.train(5, checkpoint=tmp_path / "run.pt")
        assert_same(weights(whole), weights(resumed))

    def test_finished_run_is_only_loaded(self, tmp_path) -> None:
        first, history = self.train(2, checkpoint=tmp_path / "run.pt")
        again, same = self.train(2, checkpoint=tmp_path / "run.pt")
        assert_same(weights(first), weights(again))
        assert same.equals(history)

    def test_crash_while_writing_keeps_the_old_file(self, tmp_path, monkeypatch) -> None:
        path = tmp_path / "run.pt"
        self.train(1, checkpoint=path)
        before = path.read_bytes()

        def torn(content: object, file: object) -> None:
            file.write_bytes(b"half")
            raise OSError("disk full")

        monkeypatch.setattr(torch, "save", torn)
        with pytest.raises(OSError, match="disk full"):
            self.train(2, checkpoint=path)
        assert path.read_bytes() == before

    def test_checkpoint_of_another_run_is_refused(self, tmp_path) -> None:
        path = tmp_path / "run.pt"
        model = network(0)
        optimizer = torch.optim.AdamW(model.parameters())
        loader = seeded_loader(toy_data())
        fit(SupervisedObjective(model), loader, optimizer, epochs=1, checkpoint=path)
        with pytest.raises(ValueError, match="holds no scheduler"):
            self.train(2, checkpoint=path)


def test_seed_makes_runs_equal_and_seeds_differ() -> None:
    def train(seed: int) -> dict[str, torch.Tensor]:
        model = network(0, dropout=0.5)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        fit(SupervisedObjective(model), seeded_loader(toy_data()), optimizer, epochs=2, seed=seed)
        return weights(model)

    assert_same(train(1), train(1))
    assert not torch.equal(train(1)["0.weight"], train(2)["0.weight"])


class TestCache:
    def test_follows_the_sample_not_the_batch(self) -> None:
        data, teacher = toy_data(), network(1)
        cached = cache_teacher_logits(teacher, data)
        for inputs, _, logits in seeded_loader(cached, seed=3):
            torch.testing.assert_close(logits, predict(teacher, TensorDataset(inputs)))

    def test_any_dataset(self) -> None:
        data, teacher = toy_data(), network(1)
        subset = torch.utils.data.Subset(data, [4, 2, 9])
        cached = cache_teacher_logits(teacher, subset)
        assert len(cached) == 3
        torch.testing.assert_close(cached[1][2], predict(teacher, data)[2])

    def test_same_training_as_without(self) -> None:
        data, teacher = toy_data(48), network(1)
        results = []
        for dataset in (data, cache_teacher_logits(teacher, data)):
            student = network(2)
            trainer = DistillationTrainer(
                student=student, teacher=teacher, objective=SoftTargetDistillation()
            )
            optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
            trainer.fit(seeded_loader(dataset), optimizer, epochs=2)
            results.append(student[0].weight.detach())
        torch.testing.assert_close(*results)

    def test_teacher_does_not_run(self) -> None:
        data, teacher = toy_data(), network(1)
        cached = cache_teacher_logits(teacher, data)
        joined = DistillationObjective(
            student=network(2), teacher=teacher, objective=SoftTargetDistillation()
        )
        teacher.forward = None
        joined(cached.tensors)

    def test_without_a_teacher_every_batch_needs_logits(self) -> None:
        data = toy_data()
        joined = DistillationObjective(student=network(2), objective=SoftTargetDistillation())
        joined(cache_teacher_logits(network(1), data).tensors)
        with pytest.raises(ValueError, match=r"must be \(inputs, labels, teacher_logits\), got 2"):
            joined(data.tensors)

    def test_teacher_is_left_as_it_came(self) -> None:
        teacher = network(1, dropout=0.5)
        before = weights(teacher)
        cache_teacher_logits(teacher, toy_data())
        assert teacher.training
        assert_same(before, weights(teacher))


class TestBadInput:
    def test_empty_loader(self) -> None:
        model = network(0)
        with pytest.raises(ValueError, match="at least one batch"):
            fit(SupervisedObjective(model), [], torch.optim.SGD(model.parameters()), epochs=1)

    def test_negative_epochs(self) -> None:
        model = network(0)
        with pytest.raises(ValueError, match="epochs must be at least 0, got -1"):
            fit(SupervisedObjective(model), [], torch.optim.SGD(model.parameters()), epochs=-1)

    def test_same_network_twice(self) -> None:
        model = network(0)
        with pytest.raises(ValueError, match="two networks"):
            DistillationTrainer(student=model, teacher=model, objective=SoftTargetDistillation())

    def test_positional_networks(self) -> None:
        with pytest.raises(TypeError):
            DistillationTrainer(network(0), network(1), SoftTargetDistillation())

    def test_non_finite_loss_names_term_and_epoch(self) -> None:
        model = network(0)
        data = TensorDataset(torch.full((4, 6), torch.nan), torch.zeros(4, dtype=torch.long))
        with pytest.raises(FloatingPointError, match="loss, hard became non-finite in epoch 1"):
            fit(
                SupervisedObjective(model),
                DataLoader(data, batch_size=4),
                torch.optim.SGD(model.parameters()),
                epochs=1,
            )


def test_evaluate_keeps_mode_and_counts_every_sample() -> None:
    data, model = toy_data(50), network(0, dropout=0.5)
    model[1].eval()
    modes = [module.training for module in model.modules()]
    report = evaluate(model, DataLoader(data, batch_size=7))
    assert [module.training for module in model.modules()] == modes
    logits = copy.deepcopy(model).eval()(data.tensors[0])
    assert report["accuracy"] == pytest.approx(accuracy(logits, data.tensors[1]).item())
    assert report["loss"] == pytest.approx(F.cross_entropy(logits, data.tensors[1]).item())
    assert report == pytest.approx(evaluate(model, data))


def test_batches_of_any_form_move_to_the_device() -> None:
    batch = {"x": torch.ones(2), "more": [torch.ones(1), ("text", torch.ones(1))]}
    moved = to_device(batch, torch.device("meta"))
    assert moved["x"].device.type == moved["more"][1][1].device.type == "meta"
    assert moved["more"][1][0] == "text"


def test_no_warning_in_an_ordinary_run() -> None:
    model = network(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        fit(SupervisedObjective(model), seeded_loader(toy_data()), optimizer, epochs=1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict[str, dict]:
    """What tests/several_processes.py leaves: one process, each of two, and one in bfloat16."""
    folder = tmp_path_factory.mktemp("processes")
    script = Path(__file__).with_name("several_processes.py")
    in_two = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for launch, precision in (([], "no"), (in_two, "no"), ([], "bf16")):
        run_python(*launch, script, folder, precision, cwd=folder)
    return {file.stem: torch.load(file) for file in folder.glob("[12]-*.pt")}


class TestSeveralProcesses:
    @pytest.mark.parametrize("name", ["soft targets", "hint", "queue", "banks"])
    def test_two_end_with_the_weights_of_one(self, trained, name) -> None:
        one, first, second = (trained[run][name] for run in ("1-0-no", "2-0-no", "2-1-no"))
        torch.testing.assert_close(first["state"], one["state"], rtol=1e-4, atol=1e-5)
        assert_same(first["state"], second["state"])
        for column, values in one["history"].items():
            assert first["history"][column] == pytest.approx(values, rel=1e-4)
        assert first["history"] == second["history"]

    @pytest.mark.parametrize("run", ["1-0-no", "2-0-no", "2-1-no"])
    def test_an_interrupted_run_ends_the_same(self, trained, run) -> None:
        assert_same(trained[run]["continued"]["state"], trained[run]["banks"]["state"])
        assert trained[run]["continued"]["history"] == trained[run]["banks"]["history"]

    def test_a_last_batch_too_small_for_two_keeps_them_together(self, trained) -> None:
        first, second = (trained[run]["uneven"] for run in ("2-0-no", "2-1-no"))
        assert_same(first["state"], second["state"])
        assert first["history"] == second["history"]

    def test_one_process_is_the_ordinary_loop(self, trained) -> None:
        objective = several_processes.objectives()["soft targets"]
        history = several_processes.train(objective, processes=1)
        assert_same(weights(objective), trained["1-0-no"]["soft targets"]["state"])
        expected = trained["1-0-no"]["soft targets"]["history"]
        assert history.drop(columns="seconds").to_dict("list") == expected

    def test_mixed_precision_computes_coarser_and_keeps_float32_weights(self, trained) -> None:
        exact, coarse = (trained[run]["hint"] for run in ("1-0-no", "1-0-bf16"))
        difference = abs(exact["history"]["loss"][-1] - coarse["history"]["loss"][-1])
        assert 0 < difference < 0.05
        assert all(value.dtype == torch.float32 for value in coarse["state"].values())

    def test_the_page_s_script_runs_in_two_processes(self, tmp_path) -> None:
        page = Path(__file__).parents[1] / "book" / "several_processes.md"
        code = page.read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
        (tmp_path / "train.py").write_text(code.replace("epochs=5", "epochs=1"), encoding="utf-8")
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        shown = run_python(*launch, "train.py", cwd=tmp_path)
        assert shown.count("test accuracy") == 1
        assert (tmp_path / "student.pt").exists()

    def test_loaders_that_cannot_be_shared_out(self) -> None:
        model = network(0)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        accelerator = several_processes.Accelerator(cpu=True)
        for loader, words in (
            ([toy_data()[:8]], "must be a torch.utils.data.DataLoader, got list"),
            (DataLoader(toy_data(), shuffle=True), "a loader that shuffles must have a generator"),
        ):
            with pytest.raises(ValueError, match=words):
                fit(
                    SupervisedObjective(model), loader, optimizer, epochs=1, accelerator=accelerator
                )

    def test_gradients_are_not_accumulated(self) -> None:
        model = network(0)
        with pytest.raises(ValueError, match="gradient_accumulation_steps must be 1, got 4"):
            fit(
                SupervisedObjective(model),
                DataLoader(toy_data()),
                torch.optim.SGD(model.parameters(), lr=0.1),
                epochs=1,
                accelerator=several_processes.Accelerator(cpu=True, gradient_accumulation_steps=4),
            )


def run_python(*arguments: object, cwd: Path) -> str:
    """What a Python process prints; its errors become this test's."""
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout
