"""The learner's last cell: write the file to hand in."""

import json
import os
import sys
from datetime import datetime
from pathlib import Path
from typing import Any


def write_submission(exercise: str) -> None:
    """Write `EXERCISE-submission.ipynb`, this notebook without its outputs, and say what to do.

    In Colab it is the notebook as it stands, and the browser downloads the file. Elsewhere it is
    the notebook as it was last saved, and the learner is told when that was. Where the notebook's
    own path is not known (plain IPython, papermill), the learner is told to save the notebook and
    hand in that.

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
    print(f"Wrote {path}{_as_saved()}: hand in this file. Rename it as your instructor asks.")
    if "google.colab" in sys.modules:
        from google.colab import files

        files.download(str(path))


def this_notebook() -> Any:
    """The notebook that this is called in: as Colab holds it, or as it was last saved, or None."""
    if "google.colab" in sys.modules:
        from google.colab import _message

        return _message.blocking_request("get_ipynb", timeout_sec=30)["ipynb"]
    path = _saved()
    return None if path is None else json.loads(path.read_text(encoding="utf-8"))


def _as_saved() -> str:
    """Which state of the notebook is handed in, where it may not be the one on the screen."""
    path = None if "google.colab" in sys.modules else _saved()
    if path is None:
        return ""
    saved = datetime.fromtimestamp(path.stat().st_mtime)
    day = "" if saved.date() == datetime.now().date() else f" on {saved:%Y-%m-%d}"
    return (
        f" from this notebook as saved at {saved:%H:%M}{day} (changed since? Save it, and run this "
        "cell again)"
    )


def _saved() -> Path | None:
    """Where Jupyter or VS Code keeps this notebook."""
    import __main__

    name = getattr(__main__, "__vsc_ipynb_file__", None) or os.environ.get("JPY_SESSION_NAME", "")
    path = Path(name)
    return path if path.suffix == ".ipynb" and path.is_file() else None
