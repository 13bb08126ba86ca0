"""Figures: each a pure function of one Parquet table of the same name.

A figure module has `COLUMNS` (the pyarrow schema of its table), `table(...)` (assembles it from tables already read)
and `draw(table)` (a matplotlib Figure). `figure("F1")` loads one by its id; nothing here imports torch.
"""

from __future__ import annotations

import importlib
from types import ModuleType

FIGURES = ("F1", "F2", "F3", "F4", "F5", "F6", "F7", "F8", "F9", "F10")


def figure(name: str) -> ModuleType:
    """Load the module of a figure by its id. ValueError for an id that is not in `FIGURES`."""
    if name not in FIGURES:
        raise ValueError(f"figure {name!r} is not one of {', '.join(FIGURES)}")
    return importlib.import_module(f"{__name__}.{name.lower()}")
