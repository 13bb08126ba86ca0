"""F8: adding and negating task vectors: accuracy against the scaling coefficient."""

from __future__ import annotations

import math

import pandas as pd
import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stopwise.figures import style
from stopwise.figures.tables import Pairs, frame, gather, ordered

COLUMNS = pa.schema(
    [
        pa.field("kind", pa.string(), nullable=False),  # addition or negation
        pa.field("task_a", pa.string(), nullable=False),  # the negated task on rows of kind negation
        pa.field("task_b", pa.string()),  # empty on rows of kind negation
        pa.field("coefficient", pa.float64(), nullable=False),
        pa.field("task", pa.string(), nullable=False),  # the evaluated one
        pa.field("split", pa.string(), nullable=False),  # validation (chooses the coefficient) or test (reported)
        pa.field("accuracy", pa.float64()),
        pa.field("accuracy_zero_shot", pa.float64()),
        pa.field("accuracy_single", pa.float64()),  # with the evaluated task's own vector alone, at coefficient 1
        pa.field("loss", pa.float64()),
        pa.field("chosen", pa.bool_(), nullable=False),  # whether validation chose this coefficient
        pa.field("predicted_accuracy", pa.float64()),  # by the kernels, empty when not predicted
        pa.field("accuracy_joint", pa.float64()),  # after fine-tuning on both tasks at once, empty when not run
    ]
)
POINT = ("kind", "task_a", "task_b", "coefficient", "task", "split")
COLUMNS_ACROSS = 3
LEVELS = {  # reference levels: column -> label and line style
    "accuracy_zero_shot": ("no vector, with intercept", (0, (1, 1.5))),
    "accuracy_single": ("own vector alone", (0, (6, 2))),
    "accuracy_joint": ("joint fine-tuning", (0, (4, 1.5, 1, 1.5))),
}
PREDICTED = (0, (2.5, 1.2))


def table(additions: Pairs, negations: Pairs = (), predictions: Pairs = (), joint: Pairs = ()) -> pa.Table:
    """Assemble the table from the arithmetic artifacts; a `kind` that they lack is filled in.

    `predictions` (of the kernels) and `joint` (fine-tuning on all tasks at once) are joined by the seed of their
    wildcards.
    """
    pairs = [({"kind": "addition", **w}, t) for w, t in additions]
    pairs += [({"kind": "negation", **w}, t) for w, t in negations]
    predicted = {w.get("seed"): _predicted(t) for w, t in predictions}
    together = {w.get("seed"): _joint(t) for w, t in joint}
    pairs = [(w, _joined(t, predicted.get(w.get("seed"), {}), together.get(w.get("seed"), {}))) for w, t in pairs]
    return gather(pairs, COLUMNS, "F8")


def _predicted(table: pa.Table) -> dict[tuple, float]:
    """Predicted accuracy by point: of the theory's filter, else of the weights fitted by least squares."""
    rows = table.to_pylist()
    method = "filter" if any(row["method"] == "filter" for row in rows) else "least_squares"
    return {tuple(row[key] for key in POINT): row["accuracy"] for row in rows if row["method"] == method}


def _joint(table: pa.Table) -> dict[tuple[str, str], float]:
    """Accuracy by task and split at the step of joint training with the lowest validation loss over all tasks."""
    rows = table.to_pylist()
    together = [row for row in rows if row["task"] is None and row["split"] == "validation"]
    losses = {row["step"]: row["loss"] for row in together if row["loss"] is not None}
    if not losses:
        return {}
    best = min(losses, key=lambda step: (losses[step], step))
    return {(row["task"], row["split"]): row["accuracy"] for row in rows if row["step"] == best and row["task"]}


def _joined(table: pa.Table, predicted: dict[tuple, float], joint: dict[tuple[str, str], float]) -> pa.Table:
    """Append the predicted accuracy of each point, and that of joint training on additions."""
    if predicted:
        values = [predicted.get(tuple(row[key] for key in POINT)) for row in table.select(POINT).to_pylist()]
        table = table.append_column("predicted_accuracy", pa.array(values, pa.float64()))
    if joint:
        keys = table.select(["kind", "task", "split"]).to_pylist()
        values = [joint.get((row["task"], row["split"])) if row["kind"] == "addition" else None for row in keys]
        table = table.append_column("accuracy_joint", pa.array(values, pa.float64()))
    return table


def experiments(data: pd.DataFrame) -> list[tuple[str, str, str | None, pd.DataFrame]]:
    """Kind, first task, second task and rows of every panel: the pairs, then the negations."""
    found: list[tuple[str, str, str | None, pd.DataFrame]] = []
    for kind in ("addition", "negation"):
        rows = data[data["kind"] == kind]
        for a in ordered(rows["task_a"], style.TASKS):
            of_a = rows[rows["task_a"] == a]
            if kind == "negation":
                found.append((kind, a, None, of_a))
                continue
            for b in ordered(of_a["task_b"], style.TASKS):
                found.append((kind, a, b, of_a[of_a["task_b"] == b]))
    return found


def _panel(ax: Axes, rows: pd.DataFrame, looks: dict[str, style.Look], target: str | None) -> None:
    """Draw one pair (`target` None), or one negation with its target thick and its controls thin."""
    test = rows[rows["split"] == "test"]
    for task in ordered(test["task"], style.TASKS):
        one = test[test["task"] == task].groupby("coefficient", as_index=False).mean(numeric_only=True)
        color, thick = looks[task].color, 1.5 if target in (None, task) else 0.7
        x = one["coefficient"]
        seeds = test[test["task"] == task].groupby("coefficient")["accuracy"].agg(["min", "max"])
        ax.fill_between(seeds.index, seeds["min"], seeds["max"], color=color, alpha=0.15, linewidth=0)
        ax.plot(x, one["accuracy"], color=color, marker=looks[task].marker, markersize=2.2 * thick, linewidth=thick)
        if one["predicted_accuracy"].notna().any():
            ax.plot(x, one["predicted_accuracy"], color=color, linestyle=PREDICTED, linewidth=0.9)
        for level, (_, dashes) in LEVELS.items():
            if target in (None, task) and one[level].notna().any():
                ax.axhline(one[level].mean(), color=color, linestyle=dashes, linewidth=0.7)
    for coefficient in test.loc[test["chosen"], "coefficient"].unique():
        ax.axvline(coefficient, color=style.COLORS["grey"], linewidth=3.0, alpha=0.3, zorder=0)


def _keys(data: pd.DataFrame, looks: dict[str, style.Look]) -> list:
    keys = [
        style.line_key(style.plain(t), color=looks[t].color, marker=looks[t].marker, markersize=3.3)
        for t in ordered(data["task"], style.TASKS)
    ]
    if data["predicted_accuracy"].notna().any():
        keys.append(style.line_key("kernel prediction", color="black", linestyle=PREDICTED, linewidth=0.9))
    for level, (label, dashes) in LEVELS.items():
        if data[level].notna().any():
            keys.append(style.line_key(label, color="black", linestyle=dashes, linewidth=0.7))
    if data["chosen"].any():
        keys.append(style.line_key("chosen by each seed", color=style.COLORS["grey"], linewidth=3.0, alpha=0.3))
    return keys


@style.styled
def draw(table: pa.Table) -> Figure:
    """Draw test accuracy against the coefficient: one panel a pair, then one a negated task.

    Rows that differ in nothing but their values are seeds: their mean is drawn, their range is a band.
    """
    data = frame(table, COLUMNS, "F8")
    panels = experiments(data)
    if not panels:
        figure, axes = style.new_figure(height=1.5)
        style.note(axes[0, 0], "no pair of tasks")
        return figure
    across = min(COLUMNS_ACROSS, len(panels))
    down = math.ceil(len(panels) / across)
    looks = style.looks(data["task"])
    width = "two-column" if across > 1 else "one-column"
    keys = _keys(data, looks)
    height = 0.35 + 0.14 * math.ceil(len(keys) / 5) + 1.4 * down + (0.7 if across == 1 else 0)
    figure, axes = style.new_figure(width, height, nrows=down, ncols=across, sharex=True, sharey=True)
    for ax, (kind, a, b, rows) in zip(axes.flat, panels, strict=False):
        _panel(ax, rows, looks, a if kind == "negation" else None)
        ax.set_title(f"{style.plain(a, 16)} + {style.plain(b, 16)}" if b else f"− {style.plain(a, 24)}", loc="left")
        ax.tick_params(labelbottom=True)
    for ax in axes.flat[len(panels) :]:
        ax.set_visible(False)
    for column in range(across):
        last = max(i for i in range(column, len(panels), across))
        axes.flat[last].set_xlabel("scaling coefficient")
    for ax in axes[:, 0]:
        ax.set_ylabel("test accuracy")
    style.outside_legend(figure, keys, 5 if width == "two-column" else 2)
    return figure
