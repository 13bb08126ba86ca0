"""The docs' table of the stopping rules, read off the registry.

``python -m stopwise.stopping.rule_table PAGE.md`` writes the table in a page of the docs anew.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from stopwise.stopping.registry import RADIUS, ROWS, SCALE, SIGMA, VALIDATION, Rule

# What a reader has to bring, or the program to estimate; every labelled task has targets.
NEEDS = {SIGMA: "σ", RADIUS: "R", SCALE: "R", VALIDATION: "a validation set"}


HEAD = "| rule | in words | stops | needs |"


def rules_table() -> str:
    """Return every rule that can stop training as a Markdown table: what it does, where it stops, what it needs."""
    lines = [HEAD, "|---|---|---|---|"]
    lines += [
        f"| `{rule.name}` | {rule.words} | {rule.stops} | {_needs(rule)} |" for rule in ROWS if not rule.yardstick
    ]
    return "\n".join(lines) + "\n"


def _needs(rule: Rule) -> str:
    return ", ".join(NEEDS[need] for need in rule.needs if need in NEEDS) or "–"


def write_table(page: str | os.PathLike[str]) -> None:
    """Put the table in the place of the one that a page holds. Raises ValueError when it holds none."""
    path = Path(page)
    before, found, rest = path.read_text(encoding="utf-8").partition(HEAD)
    if not found:
        raise ValueError(f"{path}: no table of the rules, which starts with {HEAD!r}")
    part = path.with_name(f"{path.name}.part")
    part.write_text(before + rules_table() + "\n" + rest.partition("\n\n")[2], encoding="utf-8")
    os.replace(part, path)


if __name__ == "__main__":
    write_table(sys.argv[1])
