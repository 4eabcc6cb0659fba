"""Sphinx extension: pages that ask no other host for anything.

The browser libraries themselves come from ``book/assets/fetch.py``; ``_config.yml`` points Sphinx
and MyST-NB at them. What is left is done here: say what to do when they are missing, and drop the
scripts of sphinx-thebe, which Jupyter Book loads on every page although this book has no live
kernel (they would fetch from a public host, and throw when their button is absent).
Sphinx does not look whether style sheets, scripts and templates have changed; here they are part of
the configuration, so that a change of theirs writes every page again.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.errors import ExtensionError

BOOK = Path(__file__).resolve().parents[1]
VENDOR = BOOK / "_static" / "vendor"


def check_vendor(app: Sphinx) -> None:
    """Stop with a clear message when the browser libraries have not been fetched."""
    if not (VENDOR / ".complete").is_file():
        raise ExtensionError(
            "book/_static/vendor is missing or incomplete. Run `make book`, or fetch it with "
            "`python book/assets/fetch.py` and build again."
        )


def digest_static(app: Sphinx, config: Config) -> None:
    """Record the state of style sheets, scripts and templates in the configuration."""
    digest = hashlib.sha256()
    for path in sorted([*BOOK.glob("_static/*.*"), *BOOK.glob("_templates/*")]):
        digest.update(path.name.encode() + path.read_bytes())
    config.book_static_digest = digest.hexdigest()


def drop_thebe(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    """Remove sphinx-thebe's scripts and style sheet from one page."""
    for kind in ("script_files", "css_files"):
        context[kind] = [
            file
            for file in context.get(kind, [])
            if "thebe" not in f"{file} {file.attributes.get('body', '')}".lower()
        ]


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the steps."""
    app.add_config_value("book_static_digest", "", "html")
    app.connect("config-inited", digest_static)
    app.connect("builder-inited", check_vendor)
    app.connect("html-page-context", drop_thebe, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
