"""What is read off a network's outputs and only logged."""

from torch import Tensor


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
