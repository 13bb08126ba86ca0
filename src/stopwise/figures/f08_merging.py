"""F8: adding and negating task vectors: accuracy against the scaling coefficient."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from matplotlib.figure import Figure

from stopwise.figures import style
from stopwise.figures.chart import DASHED, MARKS, Axis, Band, Line, Panel, Span, Views
from stopwise.figures.paint import paint
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
LEVELS = {  # reference levels, marked at coefficient 1: column -> words and marker
    "accuracy_single": ("own vector alone", "s"),
    "accuracy_joint": ("joint fine-tuning", "*"),
}


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


def panel(rows: pd.DataFrame, looks: dict[str, style.Look], target: str | None, split: str = "test") -> Panel:
    """One pair (`target` None), or one negation: the target in its colour, its controls grey.

    Solid is measured, from coefficient 0 (no vector) on; dashed is the kernels' prediction. Marks at coefficient 1 are
    levels: open, a task's own vector alone; a star, joint training.
    """
    shown = rows[rows["split"] == split]
    lines: list[Line] = []
    bands: list[Band] = []
    for task in ordered(shown["task"], style.TASKS):
        own = shown[shown["task"] == task]
        one = own.groupby("coefficient", as_index=False).mean(numeric_only=True)
        seeds = own.groupby("coefficient")["accuracy"].agg(["min", "max"])
        main = target in (None, task)
        color = looks[task].color if main else style.COLORS["grey"]
        label = style.cut(task) if main else "control tasks"
        none = one["accuracy_zero_shot"].mean()
        x, y = one["coefficient"].to_numpy(), one["accuracy"].to_numpy()
        if np.isfinite(none):
            x, y = np.r_[0.0, x], np.r_[none, y]
        lines.append(Line(x, y, color, label, width=1.3 if main else 0.8, marker=looks[task].marker, size=3.0))
        if (seeds["max"] > seeds["min"]).any() and main:
            bands.append(Band(seeds.index, seeds["min"], seeds["max"], color, "range of the seeds"))
        said = one[one["predicted_accuracy"].notna()]
        if main and not said.empty:
            lines.append(Line(said["coefficient"], said["predicted_accuracy"], color, "", DASHED, 0.9))
        for level, (words, marker) in LEVELS.items() if main else ():
            if one[level].notna().any():
                at: dict[str, Any] = {"marker": marker, "size": 5.0, "open": True, "words": (f"{task}: {words}",)}
                lines.append(Line([1.0], [one[level].mean()], color, "", MARKS, **at))
    chosen = ordered(shown.loc[shown["chosen"], "coefficient"])
    grey: dict[str, Any] = {"width": 3.0, "alpha": 0.3, "label": "chosen on validation"}
    spans = tuple(Span("x", c, style.COLORS["grey"], **grey) for c in chosen)
    x = Axis("scaling coefficient")
    return Panel(x=x, y=Axis(f"{split} accuracy", percent=True), lines=tuple(lines), bands=tuple(bands), spans=spans)


def _extra(data: pd.DataFrame) -> list:
    """Legend entries of what looks the same for every task."""
    grey: dict[str, Any] = {"color": style.COLORS["grey"]}
    keys = []
    if data["predicted_accuracy"].notna().any():
        keys.append(style.line_key("predicted by the kernels", linestyle=(0, (3, 1.5)), linewidth=0.9, **grey))
    for level, (words, marker) in LEVELS.items():
        if data[level].notna().any():
            keys.append(
                style.line_key(words, linestyle="", marker=marker, markerfacecolor="white", markersize=5.0, **grey)
            )
    return keys


def says(table: pa.Table) -> str:
    """One sentence: how often a sum of two vectors beats no vector at the coefficient that validation chose."""
    data = frame(table, COLUMNS, "F8")
    chosen = data[(data["kind"] == "addition") & (data["split"] == "test") & data["chosen"]]
    if chosen.empty:
        return ""
    better = int((chosen["accuracy"] > chosen["accuracy_zero_shot"]).sum())
    kept = int((chosen["accuracy"] >= chosen["accuracy_single"] - 0.02).sum())
    return (
        f"The sum of two task vectors beats no vector in {better} of {len(chosen)} cases, and is within 2 points of the"
        f" task's own vector, or above it, in {kept}."
    )


def _name(a: str, b: str | None, limit: int = 16) -> str:
    return f"{style.cut(a, limit)} + {style.cut(b, limit)}" if b else f"− {style.cut(a, 24)}"


def views(table: pa.Table) -> Views:
    """One panel for each pair or negated task, on test or validation data."""
    data = frame(table, COLUMNS, "F8")
    looks, panels, names = style.looks(data["task"]), {}, []
    for kind, a, b, rows in experiments(data):
        names.append(_name(a, b, 40))
        for split in ("test", "validation"):
            if (rows["split"] == split).any():
                panels[names[-1], split] = panel(rows, looks, a if kind == "negation" else None, split)
    return Views((("experiment", tuple(names)), ("data", ("test", "validation"))), panels)


@style.styled
def draw(table: pa.Table) -> Figure:
    """Draw test accuracy against the coefficient: one panel a pair, then one a negated task."""
    data = frame(table, COLUMNS, "F8")
    found = experiments(data)
    if not found:
        return paint([[Panel(note="no pair of tasks")]])
    looks = style.looks(data["task"])
    panels = [panel(rows, looks, a if kind == "negation" else None).titled(_name(a, b)) for kind, a, b, rows in found]
    across = min(COLUMNS_ACROSS, len(panels))
    grid = [panels[i : i + across] for i in range(0, len(panels), across)]
    return paint(grid, says(table), height=1.0, share_y=True, share_x=True, extra=_extra(data))
