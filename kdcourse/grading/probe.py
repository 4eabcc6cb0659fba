"""What a probe cell uses, inside the sandbox: hidden inputs in, plain answers out."""

import json
import os
from pathlib import Path
from typing import Any


def hidden() -> dict[str, Any]:
    """The hidden inputs of this run, as numpy arrays by name."""
    import numpy as np

    with np.load(Path(os.environ["KDCOURSE_JOB"]) / "inputs.npz", allow_pickle=False) as archive:
        return dict(archive)


def answer(name: str, value: Any) -> None:
    """Hand one answer to the grader as plain data: JSON, `.npy`, or safetensors.

    Args:
        name: what the part's declaration calls it.
        value: numbers, text, lists and dictionaries of these; an array or tensor; or a dictionary
            of tensors such as a `state_dict()`.

    Raises:
        TypeError: for anything else.
    """
    import numpy as np

    folder = Path(os.environ["KDCOURSE_ANSWERS"])
    folder.mkdir(exist_ok=True)
    if isinstance(value, dict) and value and all(_is_tensor(item) for item in value.values()):
        from safetensors.torch import save_file

        plain = {str(key): item.detach().cpu().contiguous().clone() for key, item in value.items()}
        save_file(plain, folder / f"{name}.safetensors")
    elif _is_tensor(value) or isinstance(value, np.ndarray):
        array = value.detach().cpu().numpy() if _is_tensor(value) else value
        np.save(folder / f"{name}.npy", array, allow_pickle=False)
    else:
        text = json.dumps(value, default=_number)
        (folder / f"{name}.json").write_text(text, encoding="utf-8")


def _is_tensor(value: Any) -> bool:
    return type(value).__module__.startswith("torch") and hasattr(value, "detach")


def _number(value: Any) -> Any:
    """Numpy and torch scalars have `item()`; nothing else is converted."""
    if (
        type(value).__module__.split(".")[0] in {"numpy", "torch"}
        and getattr(value, "ndim", 1) == 0
    ):
        return value.item()
    raise TypeError(f"an answer is plain data, got {type(value).__name__}")
