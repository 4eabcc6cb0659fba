import torch

from kdcourse.metrics import accuracy


def test_counts_the_rows_that_are_right() -> None:
    logits = torch.tensor([[1.0, 2.0, 0.0], [5.0, 1.0, 0.0], [0.0, 0.0, 1.0]], requires_grad=True)
    share = accuracy(logits, torch.tensor([1, 1, 2]))
    assert share.item() == torch.tensor(2 / 3).item()
    assert share.shape == ()
    assert not share.requires_grad
