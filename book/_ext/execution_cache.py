"""Sphinx extension: re-execute the notebooks when the code they import has changed.

Jupyter Book's cache compares a notebook's own cells and nothing else: after a change in
``kdcourse`` it would go on showing results of the old code. Here each state of the package, with
its stored studies, and of the pinned versions gets a cache folder of its own, named by its hash.
Sphinx sees the changed setting and reads every page again.
"""

from __future__ import annotations

import hashlib
import platform
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.config import Config

ROOT = Path(__file__).resolve().parents[2]


def code_digest() -> str:
    """Hash everything outside the notebooks that their results depend on."""
    files = [
        path
        for path in sorted((ROOT / "kdcourse").rglob("*"))
        if path.suffix in {".py", ".json", ".safetensors", ".html", ".svg"}
    ]
    digest = hashlib.sha256(platform.python_version().encode())
    for path in [*files, ROOT / ".ci" / "constraints.txt"]:
        digest.update(path.relative_to(ROOT).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def set_cache_folder(app: Sphinx, config: Config) -> None:
    """Point MyST-NB at the cache folder of the present state of the code."""
    config.nb_execution_cache_path = str(Path(app.outdir).parent / ".jupyter_cache" / code_digest())


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the step."""
    app.connect("config-inited", set_cache_folder)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
