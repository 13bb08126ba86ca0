"""F7: cosine and interference of task vectors, predicted by the kernels and measured, over all pairs of tasks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from stopwise.plots import style
from stopwise.plots.intervals import rank_correlation
from stopwise.plots.tables import Pairs, frame, gather, ordered

COLUMNS = pa.schema(
    [
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("quantity", pa.string(), nullable=False),  # cosine (one row a pair) or interference (two rows a pair)
        pa.field("task_a", pa.string(), nullable=False),  # interference: the task that suffers
        pa.field("task_b", pa.string(), nullable=False),  # interference: the task whose vector is added
        pa.field("predicted", pa.float64()),
        pa.field("measured", pa.float64()),
    ]
)
QUANTITIES = {"cosine": "cosine of the task vectors", "interference": "interference of b on a / residual of a"}


def table(predictions: Pairs) -> pa.Table:
    """Assemble the table from lists of (wildcards with seed, table with the other columns of `COLUMNS`)."""
    return gather(predictions, COLUMNS, "F7")


def _panel(ax: Axes, rows: pd.DataFrame, looks: dict[str, style.Look]) -> None:
    """One dot a pair and seed, its left half in the colour of task a, its right half in that of task b."""
    if rows.empty:
        style.note(ax, "no pair of tasks")
        return
    for _, one in rows.iterrows():
        a, b = looks[one["task_a"]].color, looks[one["task_b"]].color
        halves: dict[str, Any] = {
            "markerfacecolor": a,
            "markerfacecoloralt": b,
            "fillstyle": "left",
            "markeredgecolor": "white",
        }
        ax.plot(one["predicted"], one["measured"], marker="o", markersize=5.5, markeredgewidth=0.3, **halves)
    values = rows[["predicted", "measured"]].to_numpy()
    margin = 0.06 * max(np.ptp(values), 0.01)
    limits = (values.min() - margin, values.max() + margin)
    ax.plot(limits, limits, color=style.COLORS["grey"], linewidth=0.8, linestyle=(0, (4, 2)), zorder=1)
    ax.set(xlim=limits, ylim=limits, aspect="equal", xlabel="predicted by the kernels", ylabel="measured")
    ax.xaxis.set_major_locator(MaxNLocator(4))
    ax.yaxis.set_major_locator(MaxNLocator(4))


def _title(quantity: str, rows: pd.DataFrame) -> str:
    """Name of the quantity with the rank correlation and the number of dots."""
    correlation = rank_correlation(rows["predicted"], rows["measured"])
    rank = f"rank correlation {correlation:.2f}, " if np.isfinite(correlation) else ""
    return f"{QUANTITIES[quantity]}\n({rank}{len(rows)} dots)"


@style.styled
def draw(table: pa.Table) -> Figure:
    """Draw predicted against measured values with the line of equality: cosine above, interference below."""
    data = frame(table, COLUMNS, "F7").sort_values(["seed", "task_a", "task_b"])
    tasks = ordered([*data["task_a"], *data["task_b"]], style.TASKS)
    looks = style.looks(tasks)
    figure, axes = style.new_figure(height=5.4 + 0.14 * -(-len(tasks) // 3), nrows=2)
    for ax, quantity in zip(axes[:, 0], QUANTITIES, strict=True):
        finite = np.isfinite(data[["predicted", "measured"]]).all(axis=1)
        rows = data[finite & (data["quantity"] == quantity)]
        _panel(ax, rows, looks)
        ax.set_title(_title(quantity, rows))
    keys = [style.line_key(style.plain(t, 16), color=looks[t].color, marker="o", linestyle="") for t in tasks]
    style.outside_legend(figure, keys, 3)
    return figure
