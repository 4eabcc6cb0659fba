"""Inputs, losses and gradient norms that public implementations gave in float64.

`references/values.json` names repository, commit and function for each value.
"""

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

FOLDER = Path(__file__).parent / "references"
INPUTS = {name: torch.from_numpy(array) for name, array in np.load(FOLDER / "inputs.npz").items()}
VALUES = json.loads((FOLDER / "values.json").read_text())


def load(*names: str) -> list[Tensor]:
    """Fresh copies of the named inputs; the floating-point ones record gradients."""
    copies = [INPUTS[name].clone() for name in names]
    return [copy.requires_grad_() if copy.is_floating_point() else copy for copy in copies]


def assert_matches(
    key: str, loss: Tensor, *student: Tensor, factor: float = 1.0, rtol: float = 1e-7
) -> None:
    """`loss` and the norms of its gradients are `factor` times the reference's.

    `student` are the inputs that the reference gradient is with respect to, in its order.
    """
    reference = VALUES[key]
    assert loss.shape == ()
    assert loss.dtype == torch.float64
    norms = [gradient.norm() for gradient in torch.autograd.grad(loss, student)]
    expected = np.atleast_1d(reference["grad_norm"])
    assert len(norms) == len(expected)
    np.testing.assert_allclose(loss.item(), factor * reference["loss"], rtol=rtol)
    np.testing.assert_allclose(torch.stack(norms), factor * expected, rtol=rtol)
