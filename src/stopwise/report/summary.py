"""Headline numbers of a run: what each way of using the labels reaches on the test set (numpy, no torch)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from stopwise.artifacts.gram import AssembledKernel
from stopwise.artifacts.sample import Sample
from stopwise.linearized.coding import accuracy, squared_loss
from stopwise.linearized.noise import estimate_noise
from stopwise.linearized.paths import kernel_regression
from stopwise.linearized.spectrum import Spectrum
from stopwise.stopping.scores import rule_lines, table_line

BASELINES = {
    "zero_shot": "zero-shot",
    "zero_shot_intercept": "zero-shot + intercept",
    "kernel_regression": "kernel regression",
}

ALL_STEPS = "all_steps"  # the method of a run that is trained to its end


def baselines(
    kernel: AssembledKernel, sample: Sample, coding: str, target_scale: float | str, intercept: str, n: int
) -> list[dict[str, Any]]:
    """Return accuracy and loss on the test set without any training: one row per method of ``BASELINES``.

    Kernel ridge regression takes the penalty that minimises GCV on the n training examples.
    """
    leading = kernel.leading(n)
    spec = Spectrum.of(leading.train, leading.columns, intercept == "fitted")
    scale = kernel.scale(target_scale)
    residual = sample.targets("train", coding, scale, n) - leading.outputs
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
    labels, y = sample.labels("test"), sample.targets("test", coding, scale)
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


def last_steps(trajectory: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return training without a stop as a method of its own: accuracy and loss at the last step, one row a size."""
    last: dict[int, dict[str, Any]] = {}
    for row in trajectory:
        if row["n"] not in last or row["step"] > last[row["n"]]["step"]:
            last[row["n"]] = row
    return [
        {
            "n": n,
            "method": ALL_STEPS,
            "accuracy": row["test_accuracy"],
            "loss": row["test_loss"],
            "t": float(row["step"]),
            "relative_regret": None,
        }
        for n, row in sorted(last.items())
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


def markdown(
    name: str, table: list[dict[str, Any]], rules: list[dict[str, Any]], arithmetic: list[dict[str, Any]]
) -> str:
    """Return the headline numbers as Markdown: accuracy by task and size, the rules, and task arithmetic."""
    methods = list(dict.fromkeys(row["method"] for row in table))
    text = [f"# Headline numbers of the run {name}", "", "Test accuracy, mean over seeds:", ""]
    text += table_line(["start", "task", "n", *(BASELINES.get(method, method.replace("_", " ")) for method in methods)])
    text += table_line(["---"] * (3 + len(methods)))
    for start, task, n in dict.fromkeys((row["start"], row["task"], row["n"]) for row in table):
        found = {row["method"]: row for row in table if (row["start"], row["task"], row["n"]) == (start, task, n)}
        text += table_line([start, task, n, *(_cell(found.get(method)) for method in methods)])
    text += [
        "",
        "The rules (their step is in brackets above), judged on the measured test curves. In brackets: 95 % intervals"
        " over tasks and seeds. Hold-out stopping has the validation examples beside the training examples. Steps are"
        " means over the seeds. Between two evaluations loss and accuracy are interpolated; a step at which one"
        " rule alone was evaluated may be better than the oracle's, with a negative regret.",
        "",
        *rule_lines(rules),
    ]
    if arithmetic:
        text += ["", "Task arithmetic, test accuracy at the coefficient chosen on validation:", ""]
        which = ["seed"] if len({row["seed"] for row in arithmetic}) > 1 else []
        heads = ["vectors", *which, "coefficient", "evaluated on"]
        text += table_line([*heads, "zero-shot", "own vector alone", "combined"])
        text += table_line(["---"] * (len(heads) + 3))
        for row in _beside_other_seeds(arithmetic):
            vectors = f"{row['task_a']} + {row['task_b']}" if row["kind"] == "addition" else f"- {row['task_a']}"
            levels = [row["accuracy_zero_shot"], row["accuracy_single"], row["accuracy"]]
            place = [row[key] for key in (*which, "coefficient", "task")]
            text += table_line([vectors, *place, *("-" if v is None else f"{v:.3f}" for v in levels)])
    return "\n".join(text) + "\n"


def _beside_other_seeds(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows with the seeds of the same vectors and task below one another, else in the order given."""
    groups: dict[tuple, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["kind"], row["task_a"], row["task_b"], row["task"]), []).append(row)
    return [row for group in groups.values() for row in group]


def _cell(row: dict[str, Any] | None) -> str:
    if row is None or row["accuracy"] is None:
        return "-"
    return f"{row['accuracy']:.3f}" + (f" ({row['t']:.0f})" if row["t"] is not None else "")
