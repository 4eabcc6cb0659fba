"""The training loop, which knows no method, and what every method needs around it.

The one contract: an *objective* is an `nn.Module` that is called with a batch and returns its named
loss terms, already weighted, as a dict of 0-d tensors. It may return a second dict of values (mean
over the batch) that are only logged. It holds everything it trains, and its frozen teacher, as
submodules. `fit` adds up the terms, steps, and logs.
"""

import math
import os
import random
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, SequentialSampler, TensorDataset

from ._checks import require
from .metrics import accuracy

if TYPE_CHECKING:
    import pandas as pd
    from accelerate import Accelerator

Terms = dict[str, Tensor]


class FrozenTeacher(nn.Module):
    """A teacher inside an objective: always in eval mode, never trained, handed back as it came.

    A plain submodule would not do: the parent's `.train()` would switch its batch norm and dropout
    back on. `release()`, or leaving the `with` block, restores the mode of every submodule and the
    `requires_grad` of every parameter.

    Args:
        model: the teacher; called with whatever this module is called with, without gradients.

    Example:
        >>> teacher = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
        >>> with FrozenTeacher(teacher) as frozen:
        ...     _ = frozen.train()
        ...     print(teacher.training, frozen(torch.ones(1, 2)).requires_grad)
        False False
        >>> teacher.training, all(p.requires_grad for p in teacher.parameters())
        (True, True)
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._modes = [module.training for module in model.modules()]
        self._trainable = [parameter.requires_grad for parameter in model.parameters()]
        model.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> "FrozenTeacher":
        """Switch this wrapper only; the teacher stays in eval mode."""
        super().train(mode)
        self.model.eval()
        return self

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The teacher's output, without a graph."""
        return self.model(*args, **kwargs)

    def release(self) -> nn.Module:
        """Give the model back in the state it came in."""
        for module, mode in zip(self.model.modules(), self._modes, strict=True):
            module.training = mode
        for parameter, trainable in zip(self.model.parameters(), self._trainable, strict=True):
            parameter.requires_grad_(trainable)
        return self.model

    def __enter__(self) -> "FrozenTeacher":
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()


class SupervisedObjective(nn.Module):
    """Plain training from labels: the control of every experiment.

    Called with a batch `(inputs, labels, ...)`; further elements are ignored. Returns the term
    `hard` (cross-entropy) and the metric `accuracy`, in [0, 1].

    Args:
        model: maps inputs `[B, ...]` to logits `[B, C]`.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Sequence[Tensor]) -> tuple[Terms, Terms]:
        """Loss terms and metrics of one batch."""
        inputs, labels = batch[:2]
        logits = self.model(inputs)
        return {"hard": F.cross_entropy(logits, labels)}, {"accuracy": accuracy(logits, labels)}


class DistillationObjective(nn.Module):
    """Joins a loss module on logits with the two networks it compares.

    Called with a batch `(inputs, labels)`, or `(inputs, labels, teacher_logits)` where the
    teacher's outputs have been cached; then the teacher does not run.

    Args:
        student: maps inputs `[B, ...]` to logits `[B, C]`; trained.
        objective: called with `(student_logits, teacher_logits, labels)`, returns named terms.
        teacher: maps inputs to logits too; frozen. None where every batch brings its logits.
    """

    def __init__(
        self,
        *,
        student: nn.Module,
        objective: nn.Module,
        teacher: nn.Module | FrozenTeacher | None = None,
    ) -> None:
        super().__init__()
        self.student = student
        self.objective = objective
        if teacher is not None and not isinstance(teacher, FrozenTeacher):
            teacher = FrozenTeacher(teacher)
        self.teacher = teacher

    def forward(self, batch: Sequence[Tensor]) -> tuple[Terms, Terms]:
        """Loss terms and metrics of one batch."""
        inputs, labels, *cached = batch
        if cached:
            teacher_logits = cached[0]
        elif self.teacher is not None:
            teacher_logits = self.teacher(inputs)
        else:
            raise ValueError(
                "without a teacher every batch must be (inputs, labels, teacher_logits), got "
                f"{len(batch)} elements: see cache_teacher_logits"
            )
        student_logits = self.student(inputs)
        metrics = {
            "student_accuracy": accuracy(student_logits, labels),
            "teacher_accuracy": accuracy(teacher_logits, labels),
        }
        return self.objective(student_logits, teacher_logits, labels), metrics


class DistillationTrainer:
    """The ordinary loop with a teacher: `fit`, then `evaluate`.

    The arguments are keyword-only because texts differ in their order, and a swap would train the
    wrong network. The teacher is frozen during `fit` and handed back as it came.

    Args:
        student: the network to train; logits `[B, C]`.
        teacher: the network to learn from; logits `[B, C]`.
        objective: a loss module such as `SoftTargetDistillation`.

    Example:
        >>> from kdcourse.soft_targets import SoftTargetDistillation
        >>> _ = torch.manual_seed(0)
        >>> data = TensorDataset(torch.randn(32, 4), torch.randint(3, (32,)))
        >>> student, teacher = nn.Linear(4, 3), nn.Linear(4, 3)
        >>> trainer = DistillationTrainer(
        ...     student=student, teacher=teacher, objective=SoftTargetDistillation()
        ... )
        >>> optimizer = torch.optim.Adam(student.parameters(), lr=0.1)
        >>> history = trainer.fit(DataLoader(data, batch_size=8), optimizer, epochs=2, seed=0)
        >>> list(history.columns)
        ['epoch', 'loss', 'soft', 'hard', 'student_accuracy', 'teacher_accuracy', 'seconds']
    """

    def __init__(self, *, student: nn.Module, teacher: nn.Module, objective: nn.Module) -> None:
        require(
            student is not teacher, "student and teacher must be two networks, got the same object"
        )
        self.student = student
        self.teacher = teacher
        self.objective = objective

    def fit(
        self,
        train_loader: Iterable,
        optimizer: torch.optim.Optimizer,
        epochs: int = 10,
        **options: Any,
    ) -> "pd.DataFrame":
        """Train the student; `options` are those of `fit`. Returns the history, a row an epoch."""
        with FrozenTeacher(self.teacher) as teacher:
            joined = DistillationObjective(
                student=self.student, teacher=teacher, objective=self.objective
            )
            return fit(joined, train_loader, optimizer, epochs=epochs, **options)

    def evaluate(self, data: Iterable | Dataset) -> dict[str, float]:
        """Accuracy in [0, 1] and cross-entropy of both networks, and how often they agree."""
        student, labels = predict(self.student, data, with_labels=True)
        teacher, _ = predict(self.teacher, data, with_labels=True)
        agreement = (student.argmax(-1) == teacher.argmax(-1)).double().mean().item()
        return {
            "student_accuracy": accuracy(student, labels).item(),
            "student_loss": F.cross_entropy(student, labels).item(),
            "teacher_accuracy": accuracy(teacher, labels).item(),
            "teacher_loss": F.cross_entropy(teacher, labels).item(),
            "agreement": agreement,
        }


def fit(
    objective: nn.Module,
    loader: Iterable,
    optimizer: torch.optim.Optimizer,
    *,
    epochs: int,
    scheduler: Any = None,
    validate: Callable[[], Mapping[str, float]] | None = None,
    checkpoint: str | os.PathLike | None = None,
    seed: int | None = None,
    progress: bool = True,
    accelerator: "Accelerator | None" = None,
) -> "pd.DataFrame":
    """Train whatever the objective trains, on whichever device its parameters are.

    Interrupting (Ctrl-C, or the notebook's stop button) keeps the weights learned so far and
    returns the finished epochs. With a checkpoint, the same call continues where it stopped and
    ends with weights bit-identical to those of an uninterrupted run.

    With an `accelerate.Accelerator` the same call runs in every process of a launch (see the page
    "From a laptop to a cluster"): each takes its share of the batches, gradients are averaged, the
    history is that of all processes, and one of them writes the checkpoint.

    Args:
        objective: called with a batch; returns named terms, or `(terms, metrics)`.
        loader: yields batches; gone through once per epoch. If it has a `generator`, as a
            `DataLoader` or a `TensorLoader` may, that is seeded and checkpointed too.
        optimizer: must hold every trainable parameter of the objective.
        epochs: how many times to go through the loader, at least 0.
        scheduler: a learning-rate scheduler, stepped after every step of the optimizer.
        validate: called after each epoch in which the objective was trained; what it returns is
            added to the history.
        checkpoint: a file, replaced atomically after each epoch and continued from if it exists.
        seed: seeds PyTorch and the loader's generator before the first epoch.
        progress: show a progress bar.
        accelerator: decides devices, processes and precision; the loader must then be a
            `DataLoader`, one that shuffles must have a `generator`. The processes share its batches
            out among themselves; where the last ones do not suffice, examples are seen twice.

    Returns:
        The history: one row an epoch with `loss`, every term and metric (means weighted by batch
        size, so that a short last batch counts for what it is), and `seconds`.

    Raises:
        ValueError: if a trainable parameter is missing from the optimizer, the loader is empty, or
            the accelerator cannot share it out.
        FloatingPointError: if a term is not finite; the message names the term and the epoch.
    """
    import pandas as pd
    from tqdm import tqdm

    require(epochs >= 0, f"epochs must be at least 0, got {epochs}")
    _check_all_held(objective, optimizer)
    if accelerator is not None:
        _check_can_be_shared_out(loader, accelerator)
    state = _RunState(
        objective, optimizer, scheduler, getattr(loader, "generator", None), accelerator
    )
    if seed is not None:
        state.seed(seed)
    forward: nn.Module = objective
    if accelerator is not None:
        forward, optimizer, loader = accelerator.prepare(objective, optimizer, loader)
        progress = progress and accelerator.is_main_process
    history: list[dict[str, float]] = []
    if checkpoint is not None and Path(checkpoint).exists():
        history = state.load(Path(checkpoint))
    bar = tqdm(total=epochs, initial=len(history), desc="epochs", leave=False, disable=not progress)
    try:
        with bar, _mode(forward, training=True):
            for epoch in range(len(history) + 1, epochs + 1):
                row: dict[str, float] = {"epoch": epoch}
                row |= _train_one_epoch(forward, loader, optimizer, scheduler, epoch, accelerator)
                if validate is not None:
                    row |= validate()
                history.append(row)
                if checkpoint is not None:
                    state.save(Path(checkpoint), history)
                bar.update()
                bar.set_postfix(loss=f"{row['loss']:.4g}")
    except KeyboardInterrupt:
        warnings.warn(
            f"training was interrupted in epoch {len(history) + 1}: the weights learned so far "
            f"are kept, the history has {len(history)} finished epochs",
            stacklevel=2,
        )
    finally:
        if accelerator is not None:
            accelerator.unwrap_model(forward, keep_fp32_wrapper=False)
    return pd.DataFrame(history)


def _train_one_epoch(
    objective: nn.Module,
    loader: Iterable,
    optimizer: torch.optim.Optimizer,
    scheduler: Any,
    epoch: int,
    accelerator: "Accelerator | None",
) -> dict[str, float]:
    device = next(objective.parameters()).device
    started = time.perf_counter()
    totals: dict[str, Tensor] = {}
    examples = 0
    for batch in loader:
        batch = to_device(batch, device)
        result = objective(batch)
        terms, metrics = result if isinstance(result, tuple) else (result, {})
        loss = torch.stack(list(terms.values())).sum()
        optimizer.zero_grad()
        if accelerator is None:
            loss.backward()
        else:
            accelerator.backward(loss)
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        size = _batch_size(batch)
        examples += size
        # Sums stay tensors, so that a GPU is not made to wait for the log.
        for name, value in {"loss": loss, **terms, **metrics}.items():
            totals[name] = totals.get(name, 0) + value.detach() * size
    require(examples > 0, "loader must yield at least one batch, got none")
    sums = torch.stack([torch.tensor(float(examples), device=device), *totals.values()])
    if accelerator is not None:
        sums = accelerator.reduce(sums)
    count, *values = sums.tolist()
    means = {name: value / count for name, value in zip(totals, values, strict=True)}
    broken = [name for name, mean in means.items() if not math.isfinite(mean)]
    if broken:
        raise FloatingPointError(
            f"{', '.join(broken)} became non-finite in epoch {epoch}: lower the learning rate, "
            "or look for inputs that are not finite"
        )
    return means | {"seconds": time.perf_counter() - started}


def _check_all_held(objective: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    missing = [
        name for name, p in objective.named_parameters() if p.requires_grad and id(p) not in held
    ]
    require(
        not missing,
        f"the optimizer must hold every trainable parameter, it lacks {', '.join(missing)}: "
        "build it from objective.parameters(), or freeze what should not be trained",
    )


def _check_can_be_shared_out(loader: Iterable, accelerator: "Accelerator") -> None:
    if not isinstance(loader, DataLoader):
        raise ValueError(
            "with an accelerator the loader must be a torch.utils.data.DataLoader, got "
            f"{type(loader).__name__}"
        )
    require(
        loader.generator is not None or isinstance(loader.sampler, SequentialSampler),
        "with an accelerator a loader that shuffles must have a generator, so that all processes "
        "go through the data in the same order: DataLoader(..., generator=torch.Generator())",
    )
    steps = accelerator.gradient_accumulation_steps
    require(
        steps == 1,
        f"fit steps after every batch: gradient_accumulation_steps must be 1, got {steps}",
    )


class _RunState:
    """All that has to be the same for the next epoch to be the same."""

    def __init__(
        self,
        objective: nn.Module,
        optimizer: torch.optim.Optimizer,
        scheduler: Any,
        generator: torch.Generator | None,
        accelerator: "Accelerator | None",
    ) -> None:
        self.parts: dict[str, Any] = {"objective": objective, "optimizer": optimizer}
        if scheduler is not None:
            self.parts["scheduler"] = scheduler
        if accelerator is not None and accelerator.scaler is not None:
            self.parts["scaler"] = accelerator.scaler
        self.generator = generator
        self.accelerator = accelerator

    def seed(self, seed: int) -> None:
        """The loader's order is drawn alike in every process, dropout is not."""
        rank = 0 if self.accelerator is None else self.accelerator.process_index
        torch.manual_seed(seed + rank)
        if self.generator is not None:
            self.generator.manual_seed(seed)

    def save(self, path: Path, history: list[dict[str, float]]) -> None:
        states = [self._random_states()]
        if self.accelerator is not None:
            from accelerate.utils import gather_object

            states = gather_object(states)
            if not self.accelerator.is_main_process:
                return
        content: dict[str, Any] = {name: part.state_dict() for name, part in self.parts.items()}
        content["history"] = history
        content["random"] = states
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(path.name + ".part")
        torch.save(content, unfinished)
        unfinished.replace(path)

    def load(self, path: Path) -> list[dict[str, float]]:
        content = torch.load(path, weights_only=True, map_location="cpu")
        for name, part in self.parts.items():
            require(name in content, f"checkpoint {path} holds no {name}: it is of another run")
            part.load_state_dict(content[name])
        rank, processes = 0, 1
        if self.accelerator is not None:
            rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        require(
            len(content["random"]) == processes,
            f"checkpoint {path} must be continued by as many processes as wrote it, "
            f"{len(content['random'])}, got {processes}",
        )
        states = content["random"][rank]
        random.setstate(states["python"])
        torch.set_rng_state(states["torch"])
        if states["cuda"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(states["cuda"])
        if self.generator is not None and states["loader"] is not None:
            self.generator.set_state(states["loader"])
        return content["history"]

    def _random_states(self) -> dict[str, Any]:
        return {
            "python": random.getstate(),
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "loader": None if self.generator is None else self.generator.get_state(),
        }


@contextmanager
def _mode(module: nn.Module, *, training: bool) -> Iterator[None]:
    """Train or eval mode inside the block; every submodule's own mode again after it."""
    modes = [(submodule, submodule.training) for submodule in module.modules()]
    module.train(training)
    try:
        yield
    finally:
        for submodule, mode in modes:
            submodule.training = mode


def predict(model: nn.Module, data: Iterable | Dataset, *, with_labels: bool = False) -> Any:
    """A model's outputs for every example, in eval mode and without gradients.

    Args:
        model: its mode is restored afterwards.
        data: a data set (kept in order), or a loader of batches `(inputs, labels, ...)`.
        with_labels: also return the labels.

    Returns:
        Outputs `[N, ...]` on the CPU; with labels a pair `(outputs, labels [N])`.
    """
    parameter = next(model.parameters(), None)
    device = parameter.device if parameter is not None else torch.device("cpu")
    outputs, labels = [], []
    with torch.no_grad(), _mode(model, training=False):
        for batch in _batches(data):
            outputs.append(model(batch[0].to(device)).cpu())
            if with_labels:
                labels.append(batch[1].cpu())
    require(bool(outputs), "data must hold at least one example, got none")
    return (torch.cat(outputs), torch.cat(labels)) if with_labels else torch.cat(outputs)


def evaluate(model: nn.Module, data: Iterable | Dataset) -> dict[str, float]:
    """Accuracy in [0, 1] and mean cross-entropy over all examples.

    Args:
        model: maps inputs `[B, ...]` to logits `[B, C]`; its mode is restored afterwards.
        data: a data set, or a loader of batches `(inputs, labels, ...)`.

    Example:
        >>> data = TensorDataset(torch.eye(2), torch.tensor([0, 1]))
        >>> evaluate(nn.Identity(), data)["accuracy"]
        1.0
    """
    logits, labels = predict(model, data, with_labels=True)
    return {
        "accuracy": accuracy(logits, labels).item(),
        "loss": F.cross_entropy(logits, labels).item(),
    }


def cache_teacher_logits(teacher: nn.Module, dataset: Dataset) -> Dataset:
    """The data set with the teacher's logits as one more element of each example.

    The teacher then runs once instead of once an epoch. The logits belong to the sample, not to a
    batch, so any shuffling or subset is right. Inputs must not be augmented afterwards: a changed
    input needs a new answer.

    Args:
        teacher: maps inputs to logits `[B, C]`; left as it came.
        dataset: examples `(inputs, labels)`.

    Returns:
        Examples `(inputs, labels, teacher_logits)`; a `TensorDataset` stays one.
    """
    logits = predict(teacher, dataset)
    if isinstance(dataset, TensorDataset):
        return TensorDataset(*dataset.tensors, logits)
    return _WithLogits(dataset, logits)


class _WithLogits(Dataset):
    def __init__(self, dataset: Dataset, logits: Tensor) -> None:
        self.dataset = dataset
        self.logits = logits

    def __len__(self) -> int:
        return len(self.logits)

    def __getitem__(self, index: int) -> tuple:
        return (*self.dataset[index], self.logits[index])


def _batches(data: Iterable | Dataset, size: int = 1024) -> Iterable:
    if isinstance(data, TensorDataset):
        return zip(*(tensor.split(size) for tensor in data.tensors), strict=True)
    return DataLoader(data, batch_size=size) if isinstance(data, Dataset) else data


def to_device(batch: Any, device: torch.device | str) -> Any:
    """The batch with every tensor moved; lists, tuples and dicts keep their form."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return {name: to_device(value, device) for name, value in batch.items()}
    if isinstance(batch, (list, tuple)):
        return type(batch)(to_device(value, device) for value in batch)
    return batch


def _batch_size(batch: Any) -> int:
    if isinstance(batch, Tensor):
        return len(batch)
    values = batch.values() if isinstance(batch, Mapping) else batch
    return _batch_size(next(iter(values)))
