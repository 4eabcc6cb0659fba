import json
import os
import time
from functools import partial
from pathlib import Path
from typing import ClassVar

import joblib
import pandas as pd
import pytest
import torch
from distributed import Client, LocalCluster
from torch import nn
from torch.utils.data import TensorDataset

from kdcourse import experiments
from kdcourse.answers import answered
from kdcourse.claims import ClaimError
from kdcourse.data import shift
from kdcourse.experiments import (
    confirm,
    cost,
    paired,
    read_study,
    run,
    spot_check,
    step_cost,
    study,
    summarize,
    train,
)
from kdcourse.models import ConvNet
from kdcourse.training import SupervisedObjective

SETTINGS = {"small": {"width": 2}, "large": {"width": 5}}


def draw(seed: int, width: int) -> dict:
    torch.manual_seed(seed)
    return {"value": torch.rand(width).sum().item(), "threads": torch.get_num_threads()}


def test_one_row_for_every_configuration_and_seed_in_order() -> None:
    table = run(draw, SETTINGS, 3, jobs=1)
    assert table["configuration"].tolist() == ["small"] * 3 + ["large"] * 3
    assert table["seed"].tolist() == [0, 1, 2] * 2


def test_parallel_equals_serial_and_uses_other_processes() -> None:
    def traced(seed: int, width: int) -> dict:
        return {**draw(seed, width), "process": os.getpid()}

    serial, parallel = run(traced, SETTINGS, 4, jobs=1), run(traced, SETTINGS, 4, jobs=2)
    assert set(serial["process"]) == {os.getpid()}
    assert os.getpid() not in set(parallel["process"])
    assert serial.drop(columns="process").equals(parallel.drop(columns="process"))
    assert (serial["threads"] == 1).all()


def test_serial_run_gives_back_the_threads() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    run(draw, SETTINGS, 1, jobs=1)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)


def test_several_rows_from_one_run() -> None:
    table = run(lambda seed: [{"exit": 1}, {"exit": 2}], {"only": {}}, [7], jobs=1)
    assert table.to_dict("records") == [
        {"configuration": "only", "seed": 7, "exit": 1},
        {"configuration": "only", "seed": 7, "exit": 2},
    ]


def test_failure_names_configuration_and_seed() -> None:
    def broken(seed: int) -> dict:
        raise KeyError("lost")

    with pytest.raises(RuntimeError, match=r"'only' failed with seed 3: KeyError\('lost'\)"):
        run(broken, {"only": {}}, [3], jobs=1)


class TestResume:
    def test_finished_runs_are_not_repeated(self, tmp_path) -> None:
        file, calls = tmp_path / "runs.jsonl", []

        def counted(seed: int, width: int) -> dict:
            calls.append((seed, width))
            if len(calls) == 4:
                raise ValueError("stop")
            return draw(seed, width)

        with pytest.raises(RuntimeError):
            run(counted, SETTINGS, 3, jobs=1, resume=file)
        table = run(counted, SETTINGS, 3, jobs=1, resume=file)
        assert len(calls) == 7  # three kept, one failed and repeated
        assert table.equals(run(draw, SETTINGS, 3, jobs=1))

    def test_torn_line_is_run_again(self, tmp_path) -> None:
        file = tmp_path / "runs.jsonl"
        whole = run(draw, SETTINGS, 2, jobs=1, resume=file)
        file.write_text(file.read_text()[:-25])
        assert run(draw, SETTINGS, 2, jobs=1, resume=file).equals(whole)
        assert run(draw, SETTINGS, 2, jobs=1, resume=file).equals(whole)
        lines = [line for line in file.read_text().splitlines() if line]
        assert len(lines) == 5  # three whole, the torn one, its repetition
        assert json.loads(lines[-1])["seed"] == 1

    def test_changed_settings_are_run_again(self, tmp_path) -> None:
        file = tmp_path / "runs.jsonl"
        run(draw, {"small": {"width": 2}}, 2, jobs=1, resume=file)
        changed = {"small": {"width": 3}}
        table = run(draw, changed, 2, jobs=1, resume=file)
        assert table.equals(run(draw, changed, 2, jobs=1))


def test_nothing_to_run() -> None:
    with pytest.raises(ValueError, match="at least one seed"):
        run(draw, SETTINGS, 0)
    with pytest.raises(ValueError, match="configurations must hold"):
        run(draw, {}, 1)


class TestStudy:
    def test_stores_what_a_run_gives_and_reads_it_without_running(self, tmp_path) -> None:
        file = tmp_path / "data" / "widths.json"
        made = study(file, draw, SETTINGS, 2, repeat=True, jobs=1)

        def never(seed: int, width: int) -> dict:
            raise AssertionError("a stored study must not run")

        read = study(file, never, SETTINGS)
        assert read.table.equals(made.table)
        assert read.about == made.about
        assert read.about["versions"]["torch"] == torch.__version__.split("+")[0]
        assert made.table.equals(run(draw, SETTINGS, 2, jobs=1).round(4))
        assert [path.name for path in file.parent.iterdir()] == ["widths.json"]

    def test_goes_on_after_an_interruption(self, tmp_path) -> None:
        file, calls = tmp_path / "widths.json", []

        def interrupted(seed: int, width: int) -> dict:
            calls.append((seed, width))
            if len(calls) == 3:
                raise KeyboardInterrupt
            return draw(seed, width)

        with pytest.raises(KeyboardInterrupt):
            study(file, interrupted, SETTINGS, 2, repeat=True, jobs=1)
        assert not file.exists()
        study(file, interrupted, SETTINGS, 2, repeat=True, jobs=1)
        assert len(calls) == 5

    def test_an_own_file_that_is_missing_or_another_says_how_many_runs_would_make_it(
        self, tmp_path
    ) -> None:
        file = tmp_path / "widths.json"
        with pytest.raises(ValueError, match=r"no study '.*widths.json': .* 6 runs would make it"):
            study(str(file), draw, SETTINGS, 3)
        study(file, draw, {"small": {"width": 2}}, 1, repeat=True, jobs=1)
        with pytest.raises(ValueError, match=r"lacks \['large'\], has \[\] beside them"):
            study(file, draw, SETTINGS)
        with pytest.raises(ValueError, match=r"has other settings of \['small'\].* 2 runs would"):
            study(file, draw, {"small": {"width": 3}}, [4, 9])

    def test_a_name_is_a_study_of_the_package(self, tmp_path, monkeypatch) -> None:
        monkeypatch.setattr(experiments, "STUDIES", tmp_path)
        made = study("widths", draw, SETTINGS, 1, repeat=True, jobs=1)
        assert [path.name for path in tmp_path.iterdir()] == ["widths.json"]
        assert study("widths", draw, SETTINGS).table.equals(made.table)

    def test_a_learner_is_never_sent_to_train(self, tmp_path, monkeypatch) -> None:
        monkeypatch.setattr(experiments, "STUDIES", tmp_path)
        study("widths", draw, SETTINGS, 1, repeat=True, jobs=1)
        for name, settings in (("depths", SETTINGS), ("widths", {"small": {"width": 9}})):
            with pytest.raises(ValueError, match="may be older than this notebook") as caught:
                study(name, draw, settings)
            assert "Installed are: widths." in str(caught.value)
            assert "repeat" not in str(caught.value)

    def test_where_nothing_can_be_stored_nothing_runs(self, tmp_path, monkeypatch) -> None:
        monkeypatch.setattr(experiments, "STUDIES", tmp_path)

        def refuse(path: Path) -> None:
            raise PermissionError(13, "Permission denied", path)

        def never(seed: int, width: int) -> dict:
            raise AssertionError("what cannot be stored must not run")

        monkeypatch.setattr(Path, "touch", refuse)
        with pytest.raises(ValueError, match=r"stored in .* \(Permission denied\): .*widths.json"):
            study("widths", never, SETTINGS, repeat=True, jobs=1)


class TestConfirm:
    stored = pd.DataFrame({"configuration": "a", "seed": range(5), "y": [1.0, 1.1, 1.2, 1.3, 1.4]})

    @pytest.fixture(autouse=True)
    def stops(self, monkeypatch) -> None:
        monkeypatch.setenv("KDCOURSE_CLAIMS", "stop")

    def moved(self, by: list[float]) -> pd.DataFrame:
        return self.stored.head(len(by)).assign(y=self.stored["y"].head(len(by)) + by)

    def test_the_same_again_is_confirmed(self, capsys) -> None:
        confirm(self.stored, self.moved([1.0, -2.9, 1.0, -1.0, 1.0]), "y")
        assert "a: 5 runs again, as stored: they differ by -0.2" in capsys.readouterr().out

    def test_the_mean_of_five_must_stay(self) -> None:
        with pytest.raises(ClaimError, match=r"NOT as stored.*by \+1.6 on average"):
            confirm(self.stored, self.moved([1.6] * 5), "y")
        confirm(self.stored, self.moved([1.6] * 5), "y", mean=2.0)

    def test_every_single_run_must_stay(self) -> None:
        with pytest.raises(ClaimError, match=r"by \+0.0 on average, by 3.1 at most"):
            confirm(self.stored, self.moved([3.1, -3.1, 0, 0, 0]), "y")
        confirm(self.stored, self.moved([3.1, -3.1, 0, 0, 0]), "y", each=4.0)

    def test_where_seeds_differ_more_a_run_may_too(self) -> None:
        wide = self.stored.assign(y=[0.0, 2, 4, 6, 8])  # deviation 3.16: 13.4 a run, 6.0 their mean
        confirm(wide, wide.assign(y=wide["y"] + [13.3, -13.3, 0, 0, 0]), "y")
        confirm(wide, wide.assign(y=wide["y"] + 5.9), "y")
        with pytest.raises(ClaimError, match=r"by 13\.5 at most"):
            confirm(wide, wide.assign(y=wide["y"] + [13.5, -13.5, 0, 0, 0]), "y")
        with pytest.raises(ClaimError, match=r"by \+6\.1 on average"):
            confirm(wide, wide.assign(y=wide["y"] + 6.1), "y")

    def test_the_mean_of_a_few_runs_judges_nothing(self, capsys) -> None:
        confirm(self.stored, self.moved([2.9]), "y")
        assert "one run again, as stored" in capsys.readouterr().out

    def test_runs_of_several_rows_are_compared_by_their_means(self, capsys) -> None:
        stages = pd.concat([self.stored, self.stored.assign(y=self.stored["y"] + 10)])
        confirm(stages, stages, "y")
        assert "5 runs again, as stored: they differ by +0.0" in capsys.readouterr().out

    def test_a_run_that_the_study_lacks(self) -> None:
        other = self.stored.assign(seed=self.stored["seed"] + 4)
        with pytest.raises(ValueError, match=r"these are not in it: \[\('a', 5\)"):
            confirm(self.stored, other, "y")


class TestSpotCheck:
    points: ClassVar[dict] = {"a": {"width": 2}, "b": {"width": 3}, "c": {"width": 5}}

    def test_runs_one_run_again(self, capsys) -> None:
        stored = run(draw, self.points, 5, jobs=1)
        spot_check(stored, draw, self.points, "value", turn=7)
        assert capsys.readouterr().out.count("one run again, as stored") == 1

    def test_sees_that_the_code_is_another(self, monkeypatch) -> None:
        monkeypatch.setenv("KDCOURSE_CLAIMS", "stop")
        stored = run(draw, self.points, 5, jobs=1).assign(value=9.0)
        with pytest.raises(ClaimError, match="one run again, NOT as stored"):
            spot_check(stored, draw, self.points, "value")

    @pytest.mark.parametrize("seeds", [1, 2, 4, 5, 20])
    def test_comes_to_every_run_in_turn(self, seeds) -> None:
        seen = []

        def note(seed: int, width: int) -> dict:
            seen.append((seed, width))
            return {"value": 0.0}

        stored = run(draw, self.points, seeds, jobs=1).assign(value=0.0)
        for day in range(3 * seeds):
            spot_check(stored, note, self.points, "value", turn=740_000 + day)
        assert len(set(seen)) == 3 * seeds


def test_a_study_can_be_read_without_what_made_it(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(experiments, "STUDIES", tmp_path)
    made = study("sums", draw, SETTINGS, 2, repeat=True, jobs=1)
    table, about = read_study("sums")
    pd.testing.assert_frame_equal(table, made.table)
    assert about["settings"] == SETTINGS
    with pytest.raises(ValueError, match="no study 'differences'"):
        read_study("differences")


def test_settings_read_the_same_in_every_process() -> None:
    """A function inside a partial has no place in memory in its description."""
    found = experiments._settings({"moved": {"make": partial(dict, augment=shift)}})
    assert found == {
        "moved": {"make": "functools.partial(<class 'dict'>, augment=<function shift>)"}
    }


def test_a_study_tells_when_a_file_it_was_made_with_is_another(
    tmp_path, monkeypatch, capsys
) -> None:
    made = study(tmp_path / "s.json", read_digits, {"a": {}}, 1, repeat=True, jobs=1)
    assert list(made.about["files"]) == ["weights/digits.safetensors"]
    study(tmp_path / "s.json", read_digits, {"a": {}}, 1)
    assert capsys.readouterr().out == ""
    text = (tmp_path / "s.json").read_text()
    text = text.replace(made.about["files"]["weights/digits.safetensors"], "0" * 16)
    (tmp_path / "s.json").write_text(text)
    study(tmp_path / "s.json", read_digits, {"a": {}}, 1)
    assert "made with other files than these: weights/digits.safetensors" in capsys.readouterr().out


def read_digits(seed: int) -> dict:
    return {"value": len(answered("digits")[1])}


def table() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "configuration": ["control"] * 3 + ["treated"] * 3,
            "seed": [0, 1, 2, 2, 1, 0],
            "score": [1.0, 2.0, 3.0, 33.0, 22.0, 11.0],
        }
    )


def test_pairs_are_matched_by_seed() -> None:
    assert paired(table(), "score", "treated", "control").tolist() == [10.0, 20.0, 30.0]


def test_pairs_need_the_same_seeds() -> None:
    with pytest.raises(ValueError, match="must have the same seeds"):
        paired(table().iloc[:5], "score", "treated", "control")
    with pytest.raises(ValueError, match="no configuration 'other' in the table"):
        paired(table(), "score", "other", "control")
    with pytest.raises(ValueError, match="must have one row a seed"):
        paired(pd.concat([table(), table()]), "score", "treated", "control")


def test_summary_by_several_columns() -> None:
    frame = table().assign(half=["a", "a", "b", "b", "a", "a"])
    summary = summarize(frame, "score", by=["configuration", "half"])
    assert summary.loc[("treated", "a"), "mean"] == 16.5
    assert summary.loc[("control", "a"), "n"] == 2
    assert list(summary.columns) == ["mean", "sd", "low", "high", "n"]


class TestTrain:
    @staticmethod
    def train_one(seed: int, **options: object) -> tuple[nn.Module, pd.DataFrame]:
        torch.manual_seed(0)
        data = TensorDataset(torch.randn(40, 4), torch.arange(40) % 2)
        model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 2))
        history = train(SupervisedObjective(model), data, seed=seed, epochs=3, **options)
        return model, history

    def test_the_seed_decides_everything(self) -> None:
        first, again, other = (self.train_one(seed)[0][0].weight for seed in (1, 1, 2))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)

    def test_one_cycle_ends_with_a_vanishing_step(self, monkeypatch) -> None:
        rates = []
        step = torch.optim.AdamW.step

        def recorded(self, *arguments, **options):
            rates.append(self.param_groups[0]["lr"])
            return step(self, *arguments, **options)

        monkeypatch.setattr(torch.optim.AdamW, "step", recorded)
        self.train_one(0, batch_size=16, lr=0.5)
        assert len(rates) == 9
        assert max(rates) == pytest.approx(0.5, rel=0.1)
        assert rates[0] < 0.05
        assert rates[-1] < 0.001

    def test_frozen_parameters_are_left_alone(self) -> None:
        data = TensorDataset(torch.randn(8, 4), torch.arange(8) % 2)
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
        model[0].requires_grad_(False)
        before = model[0].weight.clone()
        train(SupervisedObjective(model), data, seed=0, epochs=2, weight_decay=0.5)
        assert torch.equal(before, model[0].weight)


class TestCost:
    def test_counts_of_a_known_network(self) -> None:
        network = ConvNet([8], num_classes=5)
        report = cost(network, torch.zeros(1, 1, 16, 16))
        # 8 filters of 9 weights at 8×8 places, then a linear layer.
        assert report["multiply_adds"] == pytest.approx((8 * 9 * 64 + 8 * 5) / 1e6)
        assert report["parameters"] == 8 * 9 + 2 * 8 + 8 * 5 + 5
        assert report["kib"] == pytest.approx(4 * report["parameters"] / 1024)
        assert report["milliseconds"] > 0

    def test_leaves_the_network_as_it_came(self) -> None:
        network = ConvNet([8], num_classes=5)
        before = {name: value.clone() for name, value in network.state_dict().items()}
        cost(network, torch.zeros(1, 1, 16, 16))
        assert network.training
        assert all(torch.equal(before[name], v) for name, v in network.state_dict().items())


class TestStepCost:
    class Squares(nn.Module):
        """Makes `copies` tensors of one MiB each and keeps them for the backward pass."""

        def __init__(self, copies: int) -> None:
            super().__init__()
            self.copies = copies
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, batch: tuple[torch.Tensor]) -> dict[str, torch.Tensor]:
            parts = [(batch[0] * self.scale).square().sum() for _ in range(self.copies)]
            return {"sum": torch.stack(parts).sum()}

    def test_memory_counts_what_the_backward_pass_needs(self) -> None:
        batch = (torch.ones(2**18),)  # one MiB
        two, four = (step_cost(self.Squares(n), batch)["MiB per step"] for n in (2, 4))
        assert four - two == pytest.approx(2, abs=0.1)

    def test_inputs_weights_and_views_of_them_are_free(self) -> None:
        class View(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.weight = nn.Parameter(torch.zeros(2**18))

            def forward(self, batch: tuple[torch.Tensor]) -> dict[str, torch.Tensor]:
                return {"dot": batch[0].view(1, -1)[0, :4] @ self.weight.view(-1, 1)[:4, 0]}

        cost = step_cost(View(), (torch.ones(2**18),))
        # The gradient of a slice is filled with zeros: two at once, of one MiB each.
        assert 1 <= cost["MiB per step"] < 2.1

    def test_leaves_no_gradient_and_takes_time(self) -> None:
        objective = self.Squares(1)
        cost = step_cost(objective, (torch.ones(8),))
        assert objective.scale.grad is None
        assert cost["ms per step"] > 0


class TestRepetition:
    """Studies in the folder that `KDCOURSE_STUDIES` names."""

    @pytest.fixture
    def folder(self, tmp_path, monkeypatch) -> Path:
        monkeypatch.setattr(experiments, "STUDIES", tmp_path / "package")
        monkeypatch.setenv("KDCOURSE_STUDIES", str(tmp_path / "again"))
        return tmp_path

    def test_goes_to_the_folder_and_is_not_done_twice(self, folder) -> None:
        diary = folder / "diary"

        def noted(seed: int, width: int) -> dict:
            with diary.open("a") as file:
                file.write(f"{seed} ")
            return draw(seed, width)

        for _ in range(2):
            study("widths", noted, SETTINGS, 2, repeat="full", jobs=1)
        assert diary.read_text() == "0 1 0 1 "
        study("widths", noted, SETTINGS, [5, 6], repeat="full", jobs=1)  # other seeds
        assert diary.read_text() == "0 1 0 1 5 6 5 6 "
        assert [path.name for path in folder.rglob("*.json")] == ["widths.json"]
        about = json.loads((folder / "again" / "widths.json").read_text())
        assert about["seeds"] == [5, 6]
        assert len(about["code"]) == 16

    def test_other_code_is_run_and_told(self, folder, capsys) -> None:
        slope = 2

        def first(seed: int) -> dict:
            return {"y": slope * seed}

        study("slopes", first, {"a": {}}, 2, repeat=True, jobs=1)
        study("slopes", first, {"a": {}})
        assert capsys.readouterr().out == ""
        slope = 3
        study("slopes", first, {"a": {}})
        assert "The study slopes is of 20" in capsys.readouterr().out
        table = study("slopes", first, {"a": {}}, 2, repeat=True, jobs=1).table
        assert table["y"].tolist() == [0, 3]

    def test_one_of_several_is_repeated_by_its_name(self, folder) -> None:
        study("widths", draw, SETTINGS, 1, repeat="widths", jobs=1)
        with pytest.raises(ValueError, match="no study 'depths'"):
            study("depths", draw, SETTINGS, 1, repeat="widths", jobs=1)

    def test_what_is_not_there_is_read_from_the_package(self, folder, monkeypatch) -> None:
        monkeypatch.delenv("KDCOURSE_STUDIES")
        made = study("widths", draw, SETTINGS, 1, repeat=True, jobs=1)
        monkeypatch.setenv("KDCOURSE_STUDIES", str(folder / "again"))
        assert study("widths", draw, SETTINGS).table.equals(made.table)


def wait_for_company(seed: int, folder: str) -> dict:
    """One of three runs ends its worker's process, once, when another run is done."""
    torch.manual_seed(seed)
    drawn = torch.rand(1).item()
    dead = Path(folder) / "dead"
    if seed == 1 and not dead.exists():
        while not (Path(folder) / "done").exists():
            time.sleep(0.01)
        dead.touch()
        os._exit(1)
    (Path(folder) / "done").touch()
    return {"drawn": drawn, "process": os.getpid()}


def test_a_dask_cluster_takes_the_runs_and_a_killed_worker_loses_none(tmp_path) -> None:
    settings = {"a": {"folder": str(tmp_path)}}
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None, local_directory=tmp_path
        ) as cluster,
        Client(cluster),
        joblib.parallel_config("dask"),
    ):
        table = run(wait_for_company, settings, 6, progress=False, resume=tmp_path / "runs.jsonl")
    assert (tmp_path / "dead").exists()
    assert table["seed"].tolist() == list(range(6))
    assert os.getpid() not in set(table["process"])
    for seed, drawn in zip(table["seed"], table["drawn"], strict=True):
        torch.manual_seed(seed)
        assert drawn == torch.rand(1).item()
    lines = (tmp_path / "runs.jsonl").read_text().split()
    assert len([line for line in lines if line.startswith('{"configuration"')]) == 6


def test_two_runs_in_one_process_take_turns() -> None:
    def drawn(seed: int) -> dict:
        torch.manual_seed(seed)
        first = torch.rand(1).item()
        time.sleep(0.02)
        return {"first": first, "second": torch.rand(1).item()}

    with joblib.parallel_config("threading"):
        together = run(drawn, {"a": {}}, 6)
    assert together.equals(run(drawn, {"a": {}}, 6, jobs=1))
