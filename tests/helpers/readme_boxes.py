"""The README's boxes: paragraphs that begin with a title in bold, and the commands in them."""

from __future__ import annotations

import re
from pathlib import Path

README = Path(__file__).resolve().parents[2] / "README.md"


def box(title: str) -> str:
    """Return the text of the box with this title on one line. Raises ValueError when the README has none."""
    text = README.read_text(encoding="utf-8")
    found = re.search(rf"^> \*\*{re.escape(title)}\.\*\* ((?:.*\n)(?:^> .*\n)*)", text, re.MULTILINE)
    if found is None:
        raise ValueError(f"README.md has no box '> **{title}.**'")
    return " ".join(line.removeprefix("> ") for line in found.group(1).splitlines())


def commands(title: str) -> list[str]:
    """Return the snakemake commands of a box, in order."""
    return re.findall(r"`(snakemake [^`]+)`", box(title))
