"""A hook of mkdocs: a link to a file of the repository that is no page of the site becomes its name.

On a forge such links work (`../../README.md`); the site holds docs/ only.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(((?:\.\./)+[^)#\s]+)(?:#[^)\s]*)?\)")


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """Return the page with each link that leaves docs/ for an existing file written as text."""
    docs = Path(config["docs_dir"]).resolve()
    return unlinked(markdown, docs, Path(page.file.abs_src_path).resolve().parent)


def unlinked(markdown: str, docs: Path, folder: Path) -> str:
    """Return Markdown whose links out of ``docs`` are their words and the file's name; ``folder`` holds the page."""

    def text(found: re.Match) -> str:
        target = (folder / found[2]).resolve()
        if target.is_relative_to(docs) or not target.exists():
            return found[0]
        return f"{found[1]} (`{target.relative_to(docs.parent).as_posix()}`)"

    return LINK.sub(text, markdown)
