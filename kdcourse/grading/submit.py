"""The learner's last cell: write the file to hand in."""

import json
import os
import sys
from pathlib import Path
from typing import Any


def write_submission(exercise: str) -> None:
    """Write `EXERCISE-submission.ipynb`, this notebook without its outputs, and say what to do.

    In Colab the browser downloads the file. Where the notebook's own path is not known (plain
    IPython, papermill), the learner is told to save the notebook and hand in that.

    Args:
        exercise: the stem of the exercise's notebook.
    """
    notebook = this_notebook()
    if notebook is None:
        print("Save this notebook (Ctrl+S): the saved .ipynb file is your submission.")
        return
    for cell in notebook.get("cells", []):
        if cell.get("cell_type") == "code":
            cell["outputs"], cell["execution_count"] = [], None
    path = Path(f"{exercise}-submission.ipynb")
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"Wrote {path}: hand in this file. Rename it as your instructor asks.")
    if "google.colab" in sys.modules:
        from google.colab import files

        files.download(str(path))


def this_notebook() -> Any:
    """The notebook that this is called in: as Colab holds it, or as it was last saved, or None."""
    return _from_colab() or _from_disk()


def _from_colab() -> Any:
    """The notebook as Colab holds it now."""
    if "google.colab" not in sys.modules:
        return None
    from google.colab import _message

    return _message.blocking_request("get_ipynb", timeout_sec=30)["ipynb"]


def _from_disk() -> Any:
    """The notebook as Jupyter or VS Code saved it last."""
    import __main__

    name = getattr(__main__, "__vsc_ipynb_file__", None) or os.environ.get("JPY_SESSION_NAME", "")
    path = Path(name)
    if path.suffix != ".ipynb" or not path.is_file():
        return None
    return json.loads(path.read_text(encoding="utf-8"))
