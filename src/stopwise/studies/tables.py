"""The study of the stopping rules in numbers: each method's hits, regret and comparison with hold-out (no torch)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from stopwise.stats import interval, redrawn, share_interval
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
MEASURES: dict[str, Callable[[Mapping[str, np.ndarray]], float]] = {
    "hit_rate": lambda v: float(np.mean(v["hit"])),
    "median_regret": lambda v: float(np.median(v["regret"])),
    "p90_regret": lambda v: float(np.quantile(v["regret"], 0.9)),
    "beats_holdout": lambda v: float(np.mean(v["better"])),
    "median_ratio": lambda v: float(np.nanmedian(v["ratio"])),
    "accuracy": lambda v: float(np.mean(v["accuracy"])),
}
# Measures that are the share of a column.
SHARES = {"hit_rate": "hit", "beats_holdout": "better"}


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
        draws = redrawn(groups, seed)
        for name, measure in MEASURES.items():
            if method in ("holdout", "oracle") and name == "beats_holdout":
                continue
            if name in SHARES and method != "oracle":
                low, high = share_interval(values[SHARES[name]], draws, len(set(groups)))
            else:
                low, high = interval(values, measure, draws)
            row = {**who, "measure": name, "value": measure(values), "low": low, "high": high}
            out.append({**row, "cells": len(own)})
    return out


def _columns(rows: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    return {
        "hit": np.array([row["hit"] for row in rows], dtype=float),
        "regret": np.array([row["relative_regret"] for row in rows]),
        "better": np.array([row["loss"] < row["loss_holdout"] for row in rows], dtype=float),
        "ratio": np.array([np.nan if row["ratio"] is None else row["ratio"] for row in rows]),
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
        for measure, digits in (("hit_rate", 0), ("median_regret", 1), ("p90_regret", 0), ("beats_holdout", 0)):
            texts.append(_percent(pick.get((method, measure)), digits))
        ratio = pick[method, "median_ratio"]
        texts.append(f"{ratio['value']:.2g} [{ratio['low']:.2g}, {ratio['high']:.2g}]")
        lines.append(f"| {title(method)} | {' | '.join(texts)} |")
    return lines


def _percent(row: dict[str, Any] | None, digits: int) -> str:
    if row is None:
        return "–"
    value, low, high = (f"{100 * row[key]:.{digits}f}" for key in ("value", "low", "high"))
    return f"{value} % [{low}, {high}]"
