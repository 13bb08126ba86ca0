"""The study of the stopping rules in numbers: each method's hits, regret and comparison with hold-out (no torch)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from stopwise.stats import redrawn
from stopwise.stopping.registry import MEASURED
from stopwise.stopping.scores import run_columns, score, written
from stopwise.studies import on_the_path as study
from stopwise.studies import on_the_path_log_loss as study_log_loss

METHODS = {"squared": study.METHODS, "cross_entropy": study_log_loss.METHODS}
OBJECTIVES = {"squared": "Squared loss", "cross_entropy": "Cross-entropy"}
TITLES = {
    "worst_case_plain": "worst_case without its factor 2e",
    "sure_posterior": "sure with bayes' σ",
    "bayes_slope_1": "bayes, slope of f0 held at 1",
    "bayes_plug_in": "bayes, most likely noise only",
    "bayes_and_loo": "bayes and loo, added",
    "cv5": "5-fold cross-validation",
    "holdout": "hold-out, a quarter of the labels",
}
# The measures of ``stopwise.stopping.scores``, as the table of the study calls them.
MEASURES = {
    "hit_rate": "hits",
    "median_regret": "regret",
    "p90_regret": "regret_90",
    "beats_holdout": "better",
    "median_ratio": "ratio",
    "accuracy": "accuracy",
}
# The columns of the text, and how they are written.
SHOWN = {
    "hit_rate": "%",
    "median_regret": "%.1",
    "p90_regret": "%",
    "beats_holdout": "%",
    "median_ratio": "short",
}


def title(method: str) -> str:
    """Return how a method is written in tables."""
    kind, _, value = method.partition("_")
    if method == "eta_0":
        return "no training"
    if kind == "squared":
        return f"{value}, as for squared loss"
    if kind == "eta":
        return f"rule of thumb: η = {value}/λ̂₁"
    if kind == "epochs":
        return f"rule of thumb: {value} epoch{'s' if value != '1' else ''}"
    return TITLES.get(method, method)


def study_table(rows: Iterable[dict[str, Any]], seed: int = 0) -> list[dict[str, Any]]:
    """Return one row per objective, method and measure: value and 95 % interval over the cells that were answered.

    Rows are those of ``stopping_study`` with ``task`` and ``seed``. The cells of one task and seed share their
    examples, so that the bootstrap redraws (task, seed) pairs. ``beats_holdout`` compares the test loss with that of
    hold-out at equal data; ``answered`` is the share of cells with an answer. Raises ValueError without rows.
    """
    rows = list(rows)
    if not rows:
        raise ValueError("config key starts: the study judges the pretrained start, which no task has; allowed: add it")
    return [line for objective in METHODS for line in _objective_table(rows, objective, seed)]


def _objective_table(rows: list[dict[str, Any]], objective: str, seed: int) -> list[dict[str, Any]]:
    rows = [row for row in rows if row["objective"] == objective]
    cells = len({(row["task"], row["seed"], row["n"]) for row in rows})
    out: list[dict[str, Any]] = []
    for method in METHODS[objective]:
        own = [row for row in rows if row["method"] == method and row["loss"] is not None]
        if not own:
            continue
        who = {"objective": objective, "method": method}
        share = {**who, "measure": "answered", "value": len(own) / cells, "low": None, "high": None}
        out.append({**share, "cells": len(own)})
        values = _columns(own)
        groups = [(row["task"], row["seed"]) for row in own]
        draws, count = redrawn(groups, seed), len(set(groups))
        for name, measure in MEASURES.items():
            if method in MEASURED and name == "beats_holdout":
                continue
            value, low, high = score(method, measure, values, draws, count)
            out.append({**who, "measure": name, "value": value, "low": low, "high": high, "cells": len(own)})
    return out


def _columns(rows: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    return run_columns(rows) | {
        "better": np.array([row["loss"] < row["loss_holdout"] for row in rows], dtype=float),
        "accuracy": np.array([row["accuracy"] for row in rows]),
    }


def study_markdown(table: list[dict[str, Any]], cells: int) -> str:
    """Return a table of each objective as Markdown, methods in the order of ``METHODS``."""
    lines = [f"{cells} cells of task, seed and training size. In brackets: 95 % intervals over tasks and seeds."]
    for objective, name in OBJECTIVES.items():
        own = [row for row in table if row["objective"] == objective]
        lines += ["", f"{name}:", "", *_lines(own)] if own else []
    return "\n".join(lines) + "\n"


def _lines(table: list[dict[str, Any]]) -> list[str]:
    pick = {(row["method"], row["measure"]): row for row in table}
    lines = [
        "| method | answers | hit rate | median regret | 90th percentile | beats hold-out | median T̂/T_oracle |",
        "|---|---|---|---|---|---|---|",
    ]
    for method in dict.fromkeys(row["method"] for row in table):
        texts = [f"{100 * pick[method, 'answered']['value']:.0f} %"]
        for measure, scale in SHOWN.items():
            row = pick.get((method, measure))
            texts.append("–" if row is None else written((row["value"], row["low"], row["high"]), scale))
        lines.append(f"| {title(method)} | {' | '.join(texts)} |")
    return lines
