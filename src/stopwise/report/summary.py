"""Headline numbers of a run: what each way of using the labels reaches on the test set (numpy, no torch)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from stopwise.artifacts.gram import AssembledKernel
from stopwise.artifacts.sample import Sample
from stopwise.linearized.coding import accuracy, squared_loss
from stopwise.linearized.noise import estimate_noise
from stopwise.linearized.paths import kernel_regression
from stopwise.linearized.spectrum import Spectrum
from stopwise.stats import interval, redrawn, share_interval

BASELINES = {
    "zero_shot": "zero-shot",
    "zero_shot_intercept": "zero-shot + intercept",
    "kernel_regression": "kernel regression",
}
# Of the judged runs of a rule.
MEASURES: dict[str, Callable[[Mapping[str, np.ndarray]], float]] = {
    "hits": lambda v: float(np.mean(v["hit"])),
    "regret": lambda v: float(np.median(v["regret"])),
    "regret_90": lambda v: float(np.quantile(v["regret"], 0.9)),
    "no_worse": lambda v: float(np.mean(v["no_worse"])),
    "ratio": lambda v: float(np.nanmedian(v["ratio"])),
}
# Measures that are the share of a column, and what is 100 % by definition.
SHARES = {"hits": "hit", "no_worse": "no_worse"}
CERTAIN = {("oracle", "hits"), ("oracle", "no_worse"), ("holdout", "no_worse")}
HEADS = {
    "hits": ("hit rate (within 5 %)", "%"),
    "regret": ("median regret", "%.1"),
    "regret_90": ("90th percentile", "%"),
    "no_worse": ("no worse than hold-out", "%"),
    "ratio": ("median T/T_oracle", "ratio"),
}


def baselines(
    kernel: AssembledKernel, sample: Sample, coding: str, target_scale: float, intercept: str, n: int
) -> list[dict[str, Any]]:
    """Return accuracy and loss on the test set without any training: one row per method of ``BASELINES``.

    Kernel ridge regression takes the penalty that minimises GCV on the n training examples.
    """
    leading = kernel.leading(n)
    spec = Spectrum.of(leading.train, leading.columns, intercept == "fitted")
    residual = sample.targets("train", coding, target_scale, n) - leading.outputs
    held_out = len(sample.labels("validation"))
    f0 = leading.outputs_new[held_out:]
    mu = estimate_noise(spec, residual, "gcv").mu
    fitted = kernel_regression(
        spec, residual, leading.new[held_out * leading.columns :], mu if np.isfinite(mu) else 0.0
    )
    outputs = {
        "zero_shot": f0,
        "zero_shot_intercept": f0 + residual.mean(axis=0),
        "kernel_regression": f0 + fitted.reshape(f0.shape),
    }
    labels, y = sample.labels("test"), sample.targets("test", coding, target_scale)
    return [
        {
            "n": n,
            "method": method,
            "accuracy": accuracy(f, labels, sample.class_count, coding),
            "loss": squared_loss(f, y),
            "t": None,
            "relative_regret": None,
        }
        for method, f in outputs.items()
    ]


def averaged(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the mean over seeds of rows with start, task, n and method; a value missing in one is missing."""
    groups: dict[tuple, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["start"], row["task"], row["n"], row["method"]), []).append(row)
    table = []
    for (start, task, n, method), group in groups.items():
        row = {"start": start, "task": task, "n": n, "method": method, "seeds": len(group)}
        for key in ("accuracy", "loss", "t", "relative_regret"):
            values = [one[key] for one in group]
            row[key] = None if any(value is None for value in values) else float(np.mean(values))
        table.append(row)
    return table


def rule_table(evaluations: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one row per start and rule over the measured runs: what ``MEASURES`` says, each with its interval.

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
            out.append(row | dict.fromkeys(MEASURES) | (_measured(own, held) if own else {}))
    return out


def _run(row: dict[str, Any]) -> tuple:
    return row["task"], row["seed"], row["n"]


def _measured(rows: list[dict[str, Any]], held: dict[tuple, float]) -> dict[str, tuple[float, float, float] | None]:
    columns = {
        "hit": np.array([row["hit"] for row in rows], dtype=float),
        "regret": np.array([row["relative_regret"] for row in rows]),
        "ratio": np.array([np.nan if row["ratio"] is None else row["ratio"] for row in rows]),
        "no_worse": np.array([row["loss"] <= held.get(_run(row), np.nan) for row in rows], dtype=float),
    }
    groups = [(row["task"], row["seed"]) for row in rows]
    samples = redrawn(groups) if len(set(groups)) > 1 else []
    out: dict[str, tuple[float, float, float] | None] = {}
    for name, measure in MEASURES.items():
        if (name == "no_worse" and not held) or (name == "ratio" and np.isnan(columns["ratio"]).all()):
            out[name] = None
            continue
        spread = (np.nan, np.nan)
        if samples and name in SHARES and (rows[0]["rule"], name) not in CERTAIN:
            spread = share_interval(columns[SHARES[name]], samples, len(set(groups)))
        elif samples:
            spread = interval(columns, measure, samples)
        out[name] = measure(columns), *spread
    return out


def markdown(
    name: str, table: list[dict[str, Any]], rules: list[dict[str, Any]], arithmetic: list[dict[str, Any]]
) -> str:
    """Return the headline numbers as Markdown: accuracy by task and size, the rules, and task arithmetic."""
    methods = list(dict.fromkeys(row["method"] for row in table))
    text = [f"# Headline numbers of the run {name}", "", "Test accuracy, mean over seeds:", ""]
    text += _line(["start", "task", "n", *(BASELINES.get(method, method.replace("_", " ")) for method in methods)])
    text += _line(["---"] * (3 + len(methods)))
    for start, task, n in dict.fromkeys((row["start"], row["task"], row["n"]) for row in table):
        found = {row["method"]: row for row in table if (row["start"], row["task"], row["n"]) == (start, task, n)}
        text += _line([start, task, n, *(_cell(found.get(method)) for method in methods)])
    text += [
        "",
        "The rules (their step is in brackets above), judged on the measured test curves. In brackets: 95 % intervals"
        " over tasks and seeds. Hold-out stopping has the validation examples beside the training examples.",
        "",
        *rule_lines(rules),
    ]
    if arithmetic:
        text += ["", "Task arithmetic, test accuracy at the coefficient chosen on validation:", ""]
        which = ["seed"] if len({row["seed"] for row in arithmetic}) > 1 else []
        heads = ["vectors", *which, "coefficient", "evaluated on"]
        text += _line([*heads, "zero-shot", "own vector alone", "combined"])
        text += _line(["---"] * (len(heads) + 3))
        for row in _beside_other_seeds(arithmetic):
            vectors = f"{row['task_a']} + {row['task_b']}" if row["kind"] == "addition" else f"- {row['task_a']}"
            levels = [row["accuracy_zero_shot"], row["accuracy_single"], row["accuracy"]]
            place = [row[key] for key in (*which, "coefficient", "task")]
            text += _line([vectors, *place, *("-" if v is None else f"{v:.3f}" for v in levels)])
    return "\n".join(text) + "\n"


def rule_lines(rules: list[dict[str, Any]], titles: Mapping[str, str] | None = None) -> list[str]:
    """Return the rows of ``rule_table`` as a Markdown table; ``titles`` are longer names of rules."""
    lines = _line(["start", "rule", "answers", *(title for title, _ in HEADS.values())])
    lines += _line(["---"] * (3 + len(HEADS)))
    for row in rules:
        values = [_interval(row[key], scale) for key, (_, scale) in HEADS.items()]
        name = (titles or {}).get(row["rule"], row["rule"])
        lines += _line([row["start"], name, f"{row['answered']} of {row['runs']}", *values])
    return lines


def _beside_other_seeds(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows with the seeds of the same vectors and task below one another, else in the order given."""
    groups: dict[tuple, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["kind"], row["task_a"], row["task_b"], row["task"]), []).append(row)
    return [row for group in groups.values() for row in group]


def _line(cells: list[Any]) -> list[str]:
    return ["| " + " | ".join(str(cell) for cell in cells) + " |"]


def _interval(measured: tuple[float, float, float] | None, scale: str) -> str:
    """Write value [low, high]: shares and regrets in per cent, ratios plainly."""
    if measured is None:
        return "-"
    form, factor, unit = {"%": (".0f", 100, " %"), "%.1": (".1f", 100, " %"), "ratio": (".2f", 1, "")}[scale]
    value, low, high = (f"{factor * x:{form}}" for x in measured)
    return f"{value}{unit}" + (f" [{low}, {high}]" if np.isfinite(measured[1]) else "")


def _cell(row: dict[str, Any] | None) -> str:
    if row is None or row["accuracy"] is None:
        return "-"
    return f"{row['accuracy']:.3f}" + (f" ({row['t']:.0f})" if row["t"] is not None else "")
