"""Predicted against measured task arithmetic: the pairs of numbers, their error and their rank correlation (numpy)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from stopwise.merging.effects import WHOLE
from stopwise.stats import mean_interval, rank_correlation

Row = Mapping[str, Any]
POINT = ("kind", "task_a", "task_b", "coefficient", "task", "split")
EFFECT = ("quantity", "split", "task_a", "task_b")


def compared(
    seed: int,
    predicted_effects: Iterable[Row],
    measured_effects: Iterable[Row],
    predicted_points: Iterable[Row],
    measured_points: Iterable[Row],
    outside: str | None,
) -> list[dict[str, Any]]:
    """Return one row per method and quantity that was both predicted and measured, of one seed.

    ``outside`` says what puts the training outside the theory, None when nothing does. Cosine, interference and
    transfer are those of the whole vectors; loss and accuracy those of every point of the grid. ``unchanged`` is what
    would be measured if merging did nothing: 0, or the loss and accuracy of the start with the task's intercept.
    """
    found = []
    effects = {tuple(row[key] for key in EFFECT): row["value"] for row in measured_effects if row["grouping"] == WHOLE}
    for row in predicted_effects:
        key = tuple(row[name] for name in EFFECT)
        if row["grouping"] == WHOLE and key in effects:
            pair = {"predicted": row["value"], "measured": effects[key], "unchanged": 0.0}
            found.append(dict(zip(EFFECT, key, strict=True)) | {"method": row["method"]} | pair)
    points = {tuple(row[key] for key in POINT): row for row in measured_points}
    for row in predicted_points:
        key = tuple(row[name] for name in POINT)
        if key in points:
            for quantity in ("loss", "accuracy"):
                pair = {"predicted": row[quantity], "measured": points[key][quantity]}
                before = {"unchanged": points[key][f"{quantity}_zero_shot"]}
                labels = {"method": row["method"], "quantity": quantity}
                found.append(dict(zip(POINT, key, strict=True)) | labels | pair | before)
    return [{"seed": seed, "outside_theory": outside} | row for row in found]


def agreement(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return how well each method predicted each quantity, beside how well predicting no change would have done.

    The rank correlation is over all pairs of all seeds; its interval is Student's over the correlations of the single
    seeds, cut to [-1, 1] (empty with one seed). ``change_correlation``: of predicted and measured, each minus
    ``unchanged``, which leaves out what differs between tasks before anything is merged. ``error`` is the mean absolute
    difference, ``unchanged_error`` that of predicting ``unchanged``, ``bias`` the mean of predicted - measured,
    ``size`` the mean size of the measured.
    """
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        if row["predicted"] is not None and row["measured"] is not None:
            key = (row["method"], row["quantity"], row["split"], row.get("kind"))
            groups.setdefault(key, []).append(row)
    found = []
    for (method, quantity, split, kind), own in groups.items():
        seeds = sorted({row["seed"] for row in own})
        by_seed = [_correlation([row for row in own if row["seed"] == seed]) for seed in seeds]
        _, low, high = mean_interval(by_seed)
        difference = np.array([row["predicted"] - row["measured"] for row in own])
        changes = [{key: row[key] - row["unchanged"] for key in ("predicted", "measured")} for row in own]
        values = {
            "rank_correlation": _correlation(own),
            "low": max(low, -1.0),
            "high": min(high, 1.0),
            "change_correlation": _correlation(changes),
            "error": float(np.abs(difference).mean()),
            "unchanged_error": float(np.mean([abs(row["measured"]) for row in changes])),
            "bias": float(difference.mean()),
            "size": float(np.mean([abs(row["measured"]) for row in own])),
        }
        labels = {"method": method, "quantity": quantity, "split": split, "kind": kind}
        counts = {"pairs": len(own), "seeds": len(seeds)}
        found.append(labels | counts | {key: value if math.isfinite(value) else None for key, value in values.items()})
    return found


def _correlation(rows: Sequence[Row]) -> float:
    return rank_correlation([row["predicted"] for row in rows], [row["measured"] for row in rows])


def markdown(found: Sequence[Row], outside: str | None) -> str:
    """Return the agreement as a Markdown table, with what predicting no effect of merging would have reached."""
    lines = ["# Task arithmetic: predicted by the kernels, measured on the network", ""]
    if outside:
        lines += [f"This training lies outside the theory ({outside}): the weights c are fitted to its outputs.", ""]
    lines += [
        "| quantity | data | c from | pairs | rank correlation (95 % over seeds) | of the changes | mean error |"
        " error of predicting no change |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in found:
        name = f"{row['kind']}: {row['quantity']}" if row["kind"] else row["quantity"]
        interval = "" if row["low"] is None else f" [{row['low']:.2f}, {row['high']:.2f}]"
        correlation = "–" if row["rank_correlation"] is None else f"{row['rank_correlation']:.2f}{interval}"
        source = {"filter": "the filter", "least_squares": "least squares"}[row["method"]]
        changes = "–" if row["change_correlation"] is None else f"{row['change_correlation']:.2f}"
        errors = [f"{row[key]:.3g}" for key in ("error", "unchanged_error")]
        cells = [name, row["split"] or "", source, row["pairs"], correlation, changes, *errors]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"
