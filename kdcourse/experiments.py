"""Experiments: every configuration over several seeds, in parallel, as one tidy table."""

import inspect
import json
import math
import os
import re
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.data import TensorDataset

from ._checks import require
from .claims import FEWEST_SEEDS, interval, pronounce
from .data import TensorLoader
from .provenance import code_digest, file_digest, files_behind, machine
from .training import fit, predict

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

Row = dict[str, Any]

STUDIES = Path(__file__).parent / "studies"
_ALONE = threading.Lock()  # two runs in one process would share PyTorch's random numbers


def train(
    objective: nn.Module,
    dataset: TensorDataset,
    *,
    seed: int,
    epochs: int,
    batch_size: int = 64,
    lr: float = 1e-2,
    weight_decay: float = 1e-2,
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
) -> "pd.DataFrame":
    """The recipe of every experiment in the course: AdamW, and one cycle of the learning rate.

    Args:
        objective: trained in place, see `kdcourse.training`.
        dataset: gone through `epochs` times in an order drawn from the seed.
        seed: of everything random during training; weights are drawn when a model is made.
        epochs: how often each example is seen.
        batch_size: examples a step.
        lr: highest learning rate of the cycle.
        weight_decay: decoupled, on every parameter.
        augment: changes the inputs of every batch, see `TensorLoader`.

    Returns:
        The history of `fit`.

    Reference:
        Smith and Topin (2018), "Super-Convergence", arXiv:1708.07120; Loshchilov and Hutter (2019),
        "Decoupled Weight Decay Regularization", arXiv:1711.05101.
    """
    loader = TensorLoader(dataset, batch_size, seed=seed, augment=augment)
    trainable = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=lr, weight_decay=weight_decay, fused=True)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=lr, total_steps=max(epochs * len(loader), 1)
    )
    return fit(
        objective,
        loader,
        optimizer,
        epochs=epochs,
        scheduler=scheduler,
        seed=seed,
        progress=False,
    )


def multiply_adds(call: Callable[[], object]) -> float:
    """What a call computes, the same on every machine: its multiply-adds, in millions.

    Matrix products and convolutions are counted, which is nearly everything; additions of a bias,
    norms and activations are not.

    Example:
        >>> multiply_adds(lambda: torch.ones(100, 200) @ torch.ones(200, 50))
        1.0
    """
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() / 2e6


def cost(model: nn.Module, example: torch.Tensor) -> dict[str, float]:
    """What a network costs to keep and to ask, measured on this machine.

    Args:
        model: asked in eval mode; left as it came.
        example: a batch of one input.

    Returns:
        `parameters`; `kib` of weights in memory; `multiply_adds` of one answer, in millions; and
        `milliseconds` for one answer, the median of repeated calls on one thread.

    Example:
        >>> report = cost(nn.Linear(1000, 1000, bias=False), torch.zeros(1, 1000))
        >>> report["parameters"], report["kib"], report["multiply_adds"]
        (1000000, 3906.25, 1.0)
    """
    from torch.utils.benchmark import Timer

    parameters = list(model.parameters())
    timer = Timer("call()", globals={"call": _asker(model, example)}, num_threads=1)
    return {
        "parameters": sum(parameter.numel() for parameter in parameters),
        "kib": sum(parameter.numel() * parameter.element_size() for parameter in parameters) / 1024,
        "multiply_adds": multiply_adds(_asker(model, example)),
        "milliseconds": 1e3 * timer.blocked_autorange(min_run_time=0.2).median,
    }


def _asker(model: nn.Module, example: torch.Tensor) -> Callable[[], torch.Tensor]:
    data = [(example,)]
    return lambda: predict(model, data)


def step_cost(objective: nn.Module, batch: Sequence[Tensor]) -> dict[str, float]:
    """What one training step costs, forward and backward, on one thread of this machine.

    Args:
        objective: returns named terms, or terms and metrics, see `kdcourse.training`; its gradients
            are set to none.
        batch: what the objective is called with.

    Returns:
        `ms per step`, the median of repeated steps; and `MiB per step`, the most memory that
        tensors made during one step held at the same time, gradients included.

    Example:
        >>> from kdcourse import SupervisedObjective
        >>> objective = SupervisedObjective(nn.Linear(512, 2))
        >>> cost = step_cost(objective, (torch.zeros(8, 512), torch.zeros(8).long()))
        >>> cost["MiB per step"] < 0.01
        True
    """
    from torch.utils.benchmark import Timer

    def step() -> None:
        objective.zero_grad()
        result = objective(batch)
        terms = result[0] if isinstance(result, tuple) else result
        torch.stack(list(terms.values())).sum().backward()

    timer = Timer("step()", globals={"step": step}, num_threads=1)
    milliseconds = 1e3 * timer.blocked_autorange(min_run_time=0.3).median
    objective.zero_grad()
    with _PeakMemory() as memory:
        step()
    objective.zero_grad()
    return {"ms per step": milliseconds, "MiB per step": memory.peak / 2**20}


class _PeakMemory(TorchDispatchMode):
    """The most bytes that tensors made in this context held at the same time."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: set[int] = set()
        self.now = self.peak = 0

    def __torch_dispatch__(
        self, func: Callable, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        before = {_storage(leaf)._cdata for leaf in tree_leaves((args, kwargs)) if _held(leaf)}
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if _held(leaf) and _storage(leaf)._cdata not in before:
                self._add(_storage(leaf))
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata not in self.alive:
            self.alive.add(storage._cdata)
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._free, storage._cdata, storage.nbytes())

    def _free(self, key: int, size: int) -> None:
        self.alive.discard(key)
        self.now -= size


def _held(leaf: Any) -> bool:
    return isinstance(leaf, Tensor)


def _storage(tensor: Tensor) -> torch.UntypedStorage:
    return tensor.untyped_storage()


def run(
    function: Callable[..., Mapping[str, Any] | Sequence[Mapping[str, Any]]],
    configurations: Mapping[str, Mapping[str, Any]],
    seeds: int | Iterable[int],
    *,
    jobs: int | None = None,
    resume: str | os.PathLike | None = None,
    progress: bool = True,
) -> "pd.DataFrame":
    """Call `function(seed=seed, **settings)` for every configuration and seed.

    Runs go to separate processes with one PyTorch thread each, so results do not depend on how
    many run at once. Where joblib has been given another backend, `joblib.parallel_config("dask")`
    after a `dask.distributed.Client` say, they go there; what a lost worker had begun is run again.

    Args:
        function: returns one row, a dict of column to value, or a list of rows.
        configurations: name → keyword arguments of the function.
        seeds: a number of seeds (0, 1, ...), or the seeds themselves.
        jobs: processes of this machine at a time; the number of cores unless told.
        resume: a file to which every finished run is added at once; runs found in it are not
            repeated. Rows must then be plain JSON values.
        progress: show a progress bar.

    Returns:
        A table with the columns `configuration` and `seed` and those the function returned, in the
        order of the configurations and seeds.

    Raises:
        RuntimeError: names the configuration and the seed of a run that failed.

    Example:
        >>> steep = {"steep": {"slope": 3}}
        >>> table = run(lambda seed, slope: {"y": slope * seed}, steep, seeds=[2], jobs=1)
        >>> table.to_dict("records")
        [{'configuration': 'steep', 'seed': 2, 'y': 6}]
    """
    import joblib
    import pandas as pd
    from tqdm import tqdm

    seeds = _listed(seeds)
    require(bool(seeds), "seeds must name at least one seed, got none")
    require(bool(configurations), "configurations must hold at least one, got none")
    tasks = [(name, seed) for name in configurations for seed in seeds]
    store = _Store(resume, configurations)
    finished = store.read()
    todo = [task for task in tasks if task not in finished]
    backend, _ = joblib.parallel.get_active_backend(prefer="processes")
    where: dict[str, Any] = {"n_jobs": -1}
    if backend.supports_inner_max_num_threads:  # processes of this machine
        jobs = min(jobs or joblib.cpu_count(), max(len(todo), 1))
        where = {"n_jobs": jobs, "inner_max_num_threads": 1}
    with joblib.parallel_config(backend, **where):
        results = joblib.Parallel(return_as="generator_unordered")(
            joblib.delayed(_run_one)(function, name, seed, dict(configurations[name]))
            for name, seed in todo
        )
        bar = tqdm(results, total=len(todo), desc="runs", leave=False, disable=not progress)
        for task, rows in bar:
            finished[task] = rows
            store.add(task, rows)
    return pd.DataFrame([row for task in tasks for row in finished[task]])


def _listed(seeds: int | Iterable[int]) -> list[int]:
    return [int(seed) for seed in (range(seeds) if isinstance(seeds, int) else seeds)]


def _run_one(
    function: Callable, name: str, seed: int, settings: dict[str, Any]
) -> tuple[tuple[str, int], list[Row]]:
    with _ALONE:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            result = function(seed=seed, **settings)
        except Exception as error:
            message = f"configuration {name!r} failed with seed {seed}: {error!r}"
            raise RuntimeError(message) from error
        finally:
            torch.set_num_threads(threads)
    rows = [result] if isinstance(result, Mapping) else list(result)
    return (name, seed), [{"configuration": name, "seed": seed, **row} for row in rows]


class _Store:
    """Finished runs in a file, one line each; a line torn by a crash is run again."""

    def __init__(
        self, path: str | os.PathLike | None, configurations: Mapping[str, Mapping[str, Any]]
    ) -> None:
        self.path = None if path is None else Path(path)
        self.settings = _settings(configurations)

    def read(self) -> dict[tuple[str, int], list[Row]]:
        finished: dict[tuple[str, int], list[Row]] = {}
        if self.path is None or not self.path.exists():
            return finished
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                continue
            if self.settings.get(entry["configuration"]) == entry["settings"]:
                finished[entry["configuration"], entry["seed"]] = entry["rows"]
        return finished

    def add(self, task: tuple[str, int], rows: list[Row]) -> None:
        if self.path is None:
            return
        name, seed = task
        entry = {"configuration": name, "seed": seed, "settings": self.settings[name], "rows": rows}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            # A torn last line has no line end: start a new one.
            file.write("\n" + json.dumps(entry) + "\n")


def _settings(configurations: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The configurations as plain JSON, to be stored and compared."""
    return json.loads(
        json.dumps({k: dict(v) for k, v in configurations.items()}, default=_described)
    )


def _described(value: Any) -> str:
    """The same words in every process: a function's place in memory is left out."""
    if inspect.isfunction(value) or inspect.isclass(value):
        return f"{value.__module__}.{value.__qualname__}"
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))  # of a function in a partial, say


class Study(NamedTuple):
    """A sweep that was too long for its chapter, with what one must know to judge it."""

    table: "pd.DataFrame"
    about: dict[str, Any]


def study(
    name: str | os.PathLike,
    function: Callable[..., Mapping[str, Any] | Sequence[Mapping[str, Any]]],
    configurations: Mapping[str, Mapping[str, Any]],
    seeds: int | Iterable[int] = 5,
    *,
    repeat: bool | str = False,
    jobs: int | None = None,
) -> Study:
    """The stored results of a sweep; `repeat` runs it and stores them.

    The environment variable `KDCOURSE_STUDIES` names a folder in which studies are stored in place
    of the package's, and looked for first. What was repeated there by the same code, on the same
    seeds, is not repeated again: so a long check of many studies can be taken up where it stopped.

    Args:
        name: of a study that the package holds, in its folder `STUDIES`; or a JSON file of your
            own, a path or text that ends in `.json`.
        function: returns rows of plain JSON values, see `run`.
        configurations: name → keyword arguments of the function.
        seeds: a number of seeds, or the seeds themselves; only for a repetition.
        jobs: processes at a time.
        repeat: run everything again, if it is True, "full", or this study's own name. Finished runs
            are kept beside the file until all are done, so an interrupted study goes on where it
            stopped.

    Returns:
        The table of `run`, numbers rounded to four places, and `about`: date, versions, hardware,
        seeds, settings, a digest of the code that decides the numbers (see `code_digest`) and of
        the shipped weights and pictures it reads (`files_behind`), and the seconds since the study
        was last begun or taken up again. If one of these is another one now, a line is printed.

    Raises:
        ValueError: when there is no such study, or it holds other configurations than these, or
            the same with other settings; when a repetition could not be stored, before it begins.
    """
    import pandas as pd

    path, seeds = _study_file(name), _listed(seeds)
    code = code_digest(function, configurations)
    wanted = repeat in ("full", name) if isinstance(repeat, str) else repeat
    if wanted and not _is_repeated(path, configurations, seeds, code):
        _repeat(path, function, configurations, seeds, jobs, code)
    if path.parent != STUDIES and not path.exists() and not str(name).endswith(".json"):
        path = STUDIES / path.name
    advice = _advice(path, len(configurations) * len(seeds))
    require(path.exists(), f"no study {str(name)!r}: {advice}")
    about = json.loads(path.read_text(encoding="utf-8"))
    table = pd.DataFrame(about.pop("rows"))
    stored, asked = about["settings"], _settings(configurations)
    other = [name for name in asked if name in stored and stored[name] != asked[name]]
    require(
        stored == asked,
        f"{path} must hold the configurations asked for; it lacks "
        f"{sorted(asked.keys() - stored.keys())}, has {sorted(stored.keys() - asked.keys())} "
        f"beside them, and has other settings of {other}: {advice}",
    )
    if code is not None and about.get("code") not in (None, code):
        print(
            f"The study {path.stem} is of {about['date']}. Code that decides its numbers, or a "
            f"value which that code reads, is another one now."
        )
    files = about.get("files", {})
    if changed := [file for file, digest in files.items() if file_digest(file) != digest]:
        print(f"The study {path.stem} was made with other files than these: {', '.join(changed)}.")
    return Study(table, about)


def read_study(name: str) -> Study:
    """A study of the package as it lies there, for a page that only reads what another page made.

    Args:
        name: of the study.

    Raises:
        ValueError: if there is none of that name.
    """
    import pandas as pd

    path = _study_file(name)
    path = path if path.exists() else STUDIES / path.name
    require(path.exists(), f"no study {name!r}: {_advice(path, 0)}")
    about = json.loads(path.read_text(encoding="utf-8"))
    return Study(pd.DataFrame(about.pop("rows")), about)


def _study_file(name: str | os.PathLike) -> Path:
    if isinstance(name, str) and not name.endswith(".json"):
        return Path(os.environ.get("KDCOURSE_STUDIES") or STUDIES) / f"{name}.json"
    return Path(name)


def _is_repeated(path: Path, configurations: Mapping, seeds: list[int], code: str | None) -> bool:
    """Whether the folder for repetitions holds this very study already."""
    if str(path.parent) != os.environ.get("KDCOURSE_STUDIES") or not path.exists():
        return False
    about = json.loads(path.read_text(encoding="utf-8"))
    known = about.get("seeds"), about["settings"], about.get("code")
    files = all(file_digest(file) == digest for file, digest in about.get("files", {}).items())
    return code is not None and files and known == (seeds, _settings(configurations), code)


def _advice(path: Path, runs: int) -> str:
    """What to do when a study is missing or another one; it never sends a learner to train."""
    if path.parent != STUDIES:
        return f"with repeat=True, {runs} runs would make it"
    known = ", ".join(sorted(file.stem for file in STUDIES.glob("*.json")))
    return (
        f"the installed kdcourse may be older than this notebook. Run the line %pip of the first "
        f"cell by itself, then restart the kernel. (Installed are: {known}.)"
    )


def _repeat(
    path: Path,
    function: Callable,
    configurations: Mapping,
    seeds: list[int],
    jobs: int | None,
    code: str | None,
) -> None:
    """Run a study and store it."""
    unfinished, start = _begin(path), time.perf_counter()
    table = run(function, configurations, seeds, jobs=jobs, resume=unfinished)
    whole = {
        "date": date.today().isoformat(),
        **machine(),
        "code": code,
        "files": files_behind(function, configurations),
        "seeds": seeds,
        "seconds": round(time.perf_counter() - start),
        "settings": _settings(configurations),
        "rows": table.round(4).to_dict("records"),
    }
    text = json.dumps(whole, indent=1, ensure_ascii=False) + "\n"
    path.write_text(text, encoding="utf-8")
    unfinished.unlink()


def _begin(path: Path) -> Path:
    """The file for finished runs beside a study; fails before the first run if it cannot be."""
    unfinished = path.with_suffix(".unfinished")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.touch()
    except OSError as error:
        raise ValueError(
            f"nothing can be stored in {path.parent} ({error.strerror}): give the study a file of "
            f"your own, {path.name!r} say, in place of its name"
        ) from error
    return unfinished


def confirm(
    stored: "pd.DataFrame",
    again: "pd.DataFrame",
    value: str,
    *,
    each: float = 3.0,
    mean: float = 1.5,
) -> None:
    """Check configurations of a study that were run again on its seeds, seed by seed.

    On the machine of the study every run comes out the same. On another processor rounding differs,
    and training lets that grow: by half a point to one a run in most of the course's networks, up
    to what another seed would do where the learning rate is high. So a configuration may also move
    by three standard errors of a difference between its own seeds.

    Args:
        stored: the study's table.
        again: some of its rows, run anew.
        value: the column to compare.
        each: what a single run may differ by at least, in units of the column.
        mean: what the mean of five runs or more may differ by at least.

    Raises:
        ClaimError: names the configuration that differs, where `KDCOURSE_CLAIMS` is `stop`.
        ValueError: if a row has no counterpart in the study.

    Example:
        >>> import pandas as pd
        >>> table = pd.DataFrame({"configuration": "a", "seed": range(5), "y": [1.0, 2, 3, 4, 5]})
        >>> confirm(table, table.assign(y=table["y"] + 1), "y")
        a: 5 runs again, as stored: they differ by +1.0 on average, by 1.0 at most
    """
    keys = ["configuration", "seed"]
    new, old = (table.groupby(keys, sort=False)[value].mean() for table in (again, stored))
    lost = list(new.index.difference(old.index))
    require(not lost, f"again must hold runs of the study, these are not in it: {lost}")
    moved = new - old.loc[new.index]
    spread = old.groupby("configuration").std().fillna(0)
    for name, differences in moved.groupby("configuration", sort=False):
        largest, average = differences.abs().max(), differences.mean()
        by_seed = 3 * math.sqrt(2) * spread[name]
        fine = largest <= max(each, by_seed) and (
            len(differences) < FEWEST_SEEDS
            or abs(average) <= max(mean, by_seed / math.sqrt(len(differences)))
        )
        runs = f"{len(differences)} runs" if len(differences) > 1 else "one run"
        words = "as stored" if fine else "NOT as stored"
        pronounce(
            f"{name}: {runs} again, {words}: they differ by {average:+.1f} on average, "
            f"by {largest:.1f} at most".replace("-0.0", "+0.0"),
            bool(fine),
            {"confirmed": str(name), "average": float(average), "largest": float(largest)},
        )


def spot_check(
    stored: "pd.DataFrame",
    function: Callable[..., Mapping[str, Any] | Sequence[Mapping[str, Any]]],
    configurations: Mapping[str, Mapping[str, Any]],
    value: str,
    *,
    turn: int | None = None,
    **limits: float,
) -> None:
    """Run one run of a study again, another one every day, and `confirm` it.

    Args:
        stored: the study's table.
        function: as for `study`.
        configurations: as for `study`.
        value: the column to compare.
        turn: which run, counted through configurations and seeds; the number of the day unless
            told.
        limits: `each`, as for `confirm`.

    Raises:
        ClaimError: see `confirm`.
    """
    runs = [(name, int(seed)) for name in configurations for seed in stored["seed"].unique()]
    turn = date.today().toordinal() if turn is None else turn
    # A step that has no factor in common with the number visits every run before any comes again.
    name, seed = runs[turn * _coprime(len(runs)) % len(runs)]
    again = run(function, {name: configurations[name]}, [seed], jobs=1, progress=False)
    confirm(stored, again, value, **limits)


def _coprime(count: int) -> int:
    """The first number above the golden section of a count that shares no factor with it."""
    step = round(0.618 * count)
    return next(n for n in range(max(step, 1), step + count + 2) if math.gcd(n, count) == 1)


def summarize(
    table: "pd.DataFrame", value: str, by: str | list[str] = "configuration"
) -> "pd.DataFrame":
    """Mean, standard deviation, 95 % interval and number of seeds of each group.

    Example:
        >>> import pandas as pd
        >>> table = pd.DataFrame({"configuration": ["a", "a"], "seed": [0, 1], "y": [1.0, 3.0]})
        >>> summarize(table, "y").round(1).to_dict("index")
        {'a': {'mean': 2.0, 'sd': 1.4, 'low': -10.7, 'high': 14.7, 'n': 2}}
    """
    import pandas as pd

    groups = table.groupby(by, sort=False)[value]
    rows = {key: {**interval(group)._asdict(), "sd": group.std()} for key, group in groups}
    frame = pd.DataFrame.from_dict(rows, orient="index")[["mean", "sd", "low", "high", "n"]]
    frame.index.names = [by] if isinstance(by, str) else by
    return frame


def paired(table: "pd.DataFrame", value: str, treatment: str, control: str) -> "np.ndarray":
    """Treatment minus control for every seed.

    Raises:
        ValueError: unless both configurations have exactly one row for the same seeds.

    Example:
        >>> import pandas as pd
        >>> table = pd.DataFrame(
        ...     {"configuration": ["a", "b"] * 2, "seed": [0, 0, 1, 1], "y": [1.0, 3.0, 2.0, 5.0]}
        ... )
        >>> paired(table, "y", "b", "a").tolist()
        [2.0, 3.0]
    """
    sides = []
    for name in (treatment, control):
        side = table[table["configuration"] == name].set_index("seed")[value].sort_index()
        known = ", ".join(table["configuration"].unique())
        require(not side.empty, f"no configuration {name!r} in the table, it has: {known}")
        require(side.index.is_unique, f"{name!r} must have one row a seed, it has several")
        sides.append(side)
    require(
        sides[0].index.equals(sides[1].index),
        f"{treatment!r} and {control!r} must have the same seeds, got "
        f"{list(sides[0].index)} and {list(sides[1].index)}",
    )
    return (sides[0] - sides[1]).to_numpy()
