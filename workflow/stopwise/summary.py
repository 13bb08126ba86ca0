"""Headline numbers of a run: what each way of using the labels reaches on the test set (numpy, no torch)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from stopwise.dynamics import kernel_regression
from stopwise.gram_assembly import AssembledKernel
from stopwise.likelihood import estimate_noise
from stopwise.outputs import accuracy, squared_loss
from stopwise.samples import Sample
from stopwise.spectrum import Spectrum

BASELINES = {
    "zero_shot": "zero-shot",
    "zero_shot_intercept": "zero-shot + intercept",
    "kernel_regression": "kernel regression",
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


def rule_medians(evaluations: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return each rule's median relative regret, hit rate and median T/T_oracle over all runs that it answered."""
    rows = []
    for rule in dict.fromkeys(row["rule"] for row in evaluations):
        own = [row for row in evaluations if row["rule"] == rule]
        judged = [row for row in own if row["relative_regret"] is not None]
        ratios = [row["ratio"] for row in judged if row["ratio"] is not None]
        rows.append(
            {
                "rule": rule,
                "runs": len(own),
                "answered": len(judged),
                "regret": float(np.median([row["relative_regret"] for row in judged])) if judged else None,
                "hits": float(np.mean([bool(row["hit"]) for row in judged])) if judged else None,
                "ratio": float(np.median(ratios)) if ratios else None,
            }
        )
    return rows


def markdown(
    name: str, table: list[dict[str, Any]], medians: list[dict[str, Any]], arithmetic: list[dict[str, Any]]
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
        "The rules (their step is in brackets above) over all runs, judged on the measured test curves:",
        "",
    ]
    text += _line(["rule", "answered", "median regret", "hit rate (within 5 %)", "median T/T_oracle"])
    text += _line(["---"] * 5)
    for row in medians:
        values = [
            _percent(row["regret"]),
            _percent(row["hits"]),
            "-" if row["ratio"] is None else f"{row['ratio']:.2f}",
        ]
        text += _line([row["rule"], f"{row['answered']}/{row['runs']}", *values])
    if arithmetic:
        text += ["", "Task arithmetic, test accuracy at the coefficient chosen on validation:", ""]
        text += _line(["vectors", "coefficient", "evaluated on", "zero-shot", "own vector alone", "combined"])
        text += _line(["---"] * 6)
        for row in arithmetic:
            vectors = f"{row['task_a']} + {row['task_b']}" if row["kind"] == "addition" else f"- {row['task_a']}"
            levels = [row["accuracy_zero_shot"], row["accuracy_single"], row["accuracy"]]
            text += _line(
                [vectors, row["coefficient"], row["task"], *("-" if v is None else f"{v:.3f}" for v in levels)]
            )
    return "\n".join(text) + "\n"


def _line(cells: list[Any]) -> list[str]:
    return ["| " + " | ".join(str(cell) for cell in cells) + " |"]


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _cell(row: dict[str, Any] | None) -> str:
    if row is None or row["accuracy"] is None:
        return "-"
    return f"{row['accuracy']:.3f}" + (f" ({row['t']:.0f})" if row["t"] is not None else "")
