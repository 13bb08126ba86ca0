"""What the judged runs of a rule come to: hits, regret, comparison with hold-out, with intervals (numpy, no torch)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from stopwise.stats import interval, redrawn, share_interval

Score = tuple[float, float, float]  # value, low, high
# Of the columns of judged runs, one entry a run, along the last axis.
MEASURES: dict[str, Callable[[Mapping[str, np.ndarray]], np.ndarray]] = {
    "hits": lambda v: np.mean(v["hit"], axis=-1),
    "regret": lambda v: np.median(v["regret"], axis=-1),
    "regret_90": lambda v: np.quantile(v["regret"], 0.9, axis=-1),
    "no_worse": lambda v: np.mean(v["no_worse"], axis=-1),
    "better": lambda v: np.mean(v["better"], axis=-1),
    "ratio": lambda v: np.nanmedian(v["ratio"], axis=-1),
    "accuracy": lambda v: np.mean(v["accuracy"], axis=-1),
}
# Measures that are the share of a column, and what is 100 % by definition.
SHARES = {"hits": "hit", "no_worse": "no_worse", "better": "better"}
CERTAIN = {("oracle", "hits"), ("oracle", "no_worse"), ("holdout", "no_worse")}
# What the table of a run shows of a rule, and how it is written.
HEADS = {
    "hits": ("hit rate (within 5 %)", "%"),
    "regret": ("median regret", "%.1"),
    "regret_90": ("90th percentile", "%"),
    "no_worse": ("no worse than hold-out", "%"),
    "ratio": ("median T/T_oracle", "ratio"),
}
SCALES = {"%": (".0f", 100, " %"), "%.1": (".1f", 100, " %"), "ratio": (".2f", 1, ""), "short": (".2g", 1, "")}


def run_columns(rows: Iterable[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Return hit, regret and ratio of judged runs, float64 [runs] each; a ratio that is missing is nan."""
    rows = list(rows)
    return {
        "hit": np.array([row["hit"] for row in rows], dtype=float),
        "regret": np.array([row["relative_regret"] for row in rows]),
        "ratio": np.array([np.nan if row["ratio"] is None else row["ratio"] for row in rows]),
    }


def score(rule: str, name: str, columns: Mapping[str, np.ndarray], samples: Sequence[np.ndarray], groups: int) -> Score:
    """Return a measure of a rule's runs with its 95 % interval over ``samples`` of ``redrawn``; nan without any.

    ``groups``: how many groups of runs share their examples.
    """
    measure, spread = MEASURES[name], (np.nan, np.nan)
    if samples and name in SHARES and (rule, name) not in CERTAIN:
        spread = share_interval(columns[SHARES[name]], samples, groups)
    elif samples:
        spread = interval(columns, measure, samples)
    return float(measure(columns)), *spread


def written(measured: Score | None, scale: str) -> str:
    """Write value [low, high]: shares and regrets in per cent, ratios plainly; ``scale`` is a key of ``SCALES``."""
    if measured is None:
        return "-"
    form, factor, unit = SCALES[scale]
    value, low, high = (f"{factor * x:{form}}" for x in measured)
    return f"{value}{unit}" + (f" [{low}, {high}]" if np.isfinite(measured[1]) else "")


def rule_table(evaluations: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one row per start and rule over the measured runs: what ``HEADS`` names, each with its interval.

    Rows of ``evaluation`` with start, task and seed. ``runs``: how many the start has; ``answered``: how many of them
    the rule has a measured answer for. ``no_worse``: the share of runs in which the loss is no higher than hold-out
    stopping's, which has more labels. A measure is (value, low, high), the interval over redrawn tasks and seeds (nan
    with one pair of them); None where nothing was measured.
    """
    out = []
    for start in dict.fromkeys(row["start"] for row in evaluations):
        here = [row for row in evaluations if row["start"] == start]
        held = {_run(row): row["loss"] for row in here if row["rule"] == "holdout"}
        for rule in dict.fromkeys(row["rule"] for row in here):
            own = [row for row in here if row["rule"] == rule and row["relative_regret"] is not None]
            row = {"start": start, "rule": rule, "runs": len({_run(one) for one in here}), "answered": len(own)}
            out.append(row | dict.fromkeys(HEADS) | (_measured(own, held) if own else {}))
    return out


def _run(row: dict[str, Any]) -> tuple:
    return row["task"], row["seed"], row["n"]


def _measured(rows: list[dict[str, Any]], held: dict[tuple, float]) -> dict[str, Score | None]:
    columns = run_columns(rows)
    columns["no_worse"] = np.array([row["loss"] <= held.get(_run(row), np.nan) for row in rows], dtype=float)
    groups = [(row["task"], row["seed"]) for row in rows]
    count = len(set(groups))
    samples = redrawn(groups) if count > 1 else []
    unknown = {"no_worse": not held, "ratio": bool(np.isnan(columns["ratio"]).all())}
    rule = rows[0]["rule"]
    return {name: None if unknown.get(name) else score(rule, name, columns, samples, count) for name in HEADS}


def rule_lines(rules: list[dict[str, Any]], titles: Mapping[str, str] | None = None) -> list[str]:
    """Return the rows of ``rule_table`` as a Markdown table; ``titles`` are longer names of rules."""
    lines = table_line(["start", "rule", "answers", *(title for title, _ in HEADS.values())])
    lines += table_line(["---"] * (3 + len(HEADS)))
    for row in rules:
        values = [written(row[key], scale) for key, (_, scale) in HEADS.items()]
        name = (titles or {}).get(row["rule"], row["rule"])
        lines += table_line([row["start"], name, f"{row['answered']} of {row['runs']}", *values])
    return lines


def table_line(cells: Iterable[Any]) -> list[str]:
    """Return one line of a Markdown table, in a list."""
    return ["| " + " | ".join(str(cell) for cell in cells) + " |"]
