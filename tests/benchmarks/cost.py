"""Time and memory of one step, forward and backward, on one thread.

A *case* is a function without arguments that returns the step to measure, itself a function
without arguments. A case must be picklable, because memory is measured in a fresh process.
"""

import multiprocessing
import resource
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

Step = Callable[[], object]
Case = Callable[[], Step]
MIB = 1024  # `ru_maxrss` counts KiB


def step(loss: Callable[..., Tensor], students: Sequence[Tensor], *rest: object) -> None:
    """Forward and backward, as in training."""
    for student in students:
        student.grad = None
    loss(*students, *rest).backward()


def pair(
    loss: Callable[..., Tensor],
    student_shapes: Sequence[tuple[int, ...]],
    teacher_shapes: Sequence[tuple[int, ...]],
) -> Step:
    """A step of a loss on random features, the student's first."""
    torch.manual_seed(0)
    students = [torch.randn(shape, requires_grad=True) for shape in student_shapes]
    return partial(step, loss, students, *(torch.randn(shape) for shape in teacher_shapes))


def seconds(run: Step) -> float:
    """How long one step takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _peak(case: Case) -> float:
    torch.set_num_threads(1)
    warm = torch.ones(64, 64, requires_grad=True)
    (warm @ warm).sum().backward()
    torch.optim.SGD([warm])  # loads what every training process has loaded
    run = case()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / MIB


def peak_mib(case: Case) -> float:
    """By how much one step raises the memory of a fresh process, inputs not counted."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch"])
    with context.Pool(1) as pool:
        return pool.apply(_peak, (case,))
