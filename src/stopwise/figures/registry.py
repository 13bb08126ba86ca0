"""Every figure by its id: the module that draws it and the artifacts that its table is assembled from.

A figure module has `COLUMNS` (the pyarrow schema of its table), `table(...)` (assembles it from tables already read)
and `draw(table)` (a matplotlib Figure).
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pyarrow as pa


@dataclass(frozen=True)
class Figure:
    """A figure's module, and the artifact kind behind each argument of its `table`.

    With ``wildcards`` an argument is a list of (wildcards, table), else a list of tables.
    """

    module: str
    reads: Mapping[str, str]
    wildcards: bool = True

    def table(self, upstream: Mapping[str, Any]) -> pa.Table:
        """Return the figure's table; ``upstream`` holds (wildcards, table) pairs by the argument's name."""
        found = upstream if self.wildcards else {name: [table for _, table in own] for name, own in upstream.items()}
        return _module(self.module).table(**found)


FIGURES = {
    "F1": Figure("f01_decay", {"spectra": "spectrum", "decays": "decay"}),
    "F2": Figure("f02_curves", {"trajectories": "trajectory", "evaluations": "evaluation"}),
    "F3": Figure("f03_rules", {"evaluations": "evaluation"}),
    "F4": Figure("f04_sample_size", {"evaluations": "evaluation", "decays": "decay", "stoppings": "stopping"}),
    "F5": Figure("f05_ridge", {"parts": "theory_ridge"}, wildcards=False),
    "F6": Figure(
        "f06_training",
        {
            "trajectories": "trajectory",
            "directions": "directions",
            "drifts": "drift",
            "guarantees": "guarantee",
        },
    ),
    "F7": Figure("f07_task_vectors", {"checks": "arithmetic_check"}),
    "F8": Figure("f08_merging", {"additions": "arithmetic", "predictions": "arithmetic_prediction", "joint": "joint"}),
    "F9": Figure("f09_layers", {"shares": "layer_share"}),
    "F10": Figure("f10_known_truth", {"studies": "theory_study"}, wildcards=False),
    "F11": Figure("f11_labels", {"spent": "study_labels_spent"}, wildcards=False),
}


def figure(name: str) -> ModuleType:
    """Load the module of a figure by its id. ValueError for an id that is not in `FIGURES`."""
    if name not in FIGURES:
        raise ValueError(f"figure {name!r} is not one of {', '.join(FIGURES)}")
    return _module(FIGURES[name].module)


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"{__package__}.{name}")
