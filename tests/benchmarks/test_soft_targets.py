from functools import partial

import pytest
import textbook
from cost import pair

from kdcourse.soft_targets import soft_target_loss


@pytest.mark.parametrize("shape", [(128, 100), (4096, 1000)], ids=lambda shape: f"KD {list(shape)}")
def test_soft_targets(compare, shape: tuple[int, int]) -> None:
    compare(
        partial(pair, soft_target_loss, [shape], [shape]),
        partial(pair, textbook.soft_target, [shape], [shape]),
    )
