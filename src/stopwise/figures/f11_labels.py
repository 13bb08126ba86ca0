"""F11: test log-loss and accuracy against the labels spent, for every way of choosing when to stop."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd
import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stopwise.figures import style
from stopwise.figures.tables import frame, gather, ordered

COLUMNS = pa.schema(
    [
        pa.field("recipe", pa.string(), nullable=False),
        pa.field("way", pa.string(), nullable=False),
        pa.field("n", pa.int64(), nullable=False),  # training examples
        pa.field("labels", pa.int64(), nullable=False),  # spent in all
        pa.field("trainings", pa.float64(), nullable=False),
        pa.field("loss", pa.float64(), nullable=False),  # mean test log-loss over data sets
        pa.field("accuracy", pa.float64(), nullable=False),
        pa.field("data_sets", pa.int64(), nullable=False),
    ]
)
# Colour, line, marker and what a reader is told. Other ways are in the table only.
LOOKS = {
    "epochs_3": ("skyblue", "-", "v", "3 epochs"),
    "epochs_10": ("skyblue", "--", "^", "10 epochs"),
    "all_steps": ("blue", "-", "o", "all steps, never stopped"),
    "constant": ("purple", "-", "P", "one number of steps for all data sets"),
    "holdout": ("orange", "--", "s", "a quarter held out, the rest trained on"),
    "holdout_refit": ("orange", "-", "s", "a quarter held out, then trained on all"),
    "fitted": ("blue", "--", "d", "the shortest length that fits"),
    "folds_8": ("black", "-", "D", "8 folds of training"),
    "more_labels": ("green", "-", "X", "32 labels more to stop on"),
    "bayes": ("wine", "-", "h", "bayes, before training"),
    "anchored": ("vermilion", "-", "*", "left-out curve while training"),
    "best": ("grey", ":", ".", "the best step (known afterwards only)"),
}
SIDES = {"loss": "test log-loss", "accuracy": "test accuracy, %"}


def table(spent: Iterable[pa.Table]) -> pa.Table:
    """Assemble the table from the ``study_labels_spent`` artifacts."""
    return gather([({}, part) for part in spent], COLUMNS, "F11")


@style.styled
def draw(table: pa.Table) -> Figure:
    """Draw a row of two panels for each recipe: lower is better on the left, higher on the right."""
    data = frame(table, COLUMNS, "F11")
    recipes = list(dict.fromkeys(data["recipe"]))
    if not recipes:
        figure, axes = style.new_figure(height=1.5)
        style.note(axes[0, 0], "no data set has been trained at every size yet")
        return figure
    down = len(recipes)
    figure, axes = style.new_figure("two-column", 1.1 + 2.2 * down, nrows=down, ncols=2)
    for row, recipe in zip(axes, recipes, strict=True):
        own = data[data["recipe"] == recipe]
        for ax, side in zip(row, SIDES, strict=True):
            _panel(ax, own, side)
        sets = own["data_sets"].max()
        row[0].set_title(f"{style.plain(recipe)}: mean of {sets} data set{'s' if sets > 1 else ''}", loc="left")
    keys = [
        style.line_key(words, color=style.COLORS[color], linestyle=line, marker=marker, markersize=4)
        for way, (color, line, marker, words) in LOOKS.items()
        if way in set(data["way"])
    ]
    style.outside_legend(figure, keys, 3)
    return figure


def _panel(ax: Axes, data: pd.DataFrame, side: str) -> None:
    for way in ordered(data["way"], LOOKS):
        curve = data[data["way"] == way].sort_values("n")
        if way not in LOOKS:
            continue
        color, line, marker, _ = LOOKS[way]
        values = curve[side] * (100 if side == "accuracy" else 1)
        width = 1.8 if way in ("bayes", "anchored") else 1.1
        ax.plot(curve["labels"], values, line, color=style.COLORS[color], marker=marker, markersize=4, linewidth=width)
    ax.set(xscale="log", xlabel="labels spent", ylabel=SIDES[side])
    low, high = data["labels"].min(), data["labels"].max()
    ax.set_xlim(0.9 * low, 1.1 * high)
    style.plain_log(ax.xaxis)
