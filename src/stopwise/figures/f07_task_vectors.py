"""F7: task vectors predicted by the kernels and measured: cosine, interference and transfer over all pairs of tasks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from stopwise.figures import style
from stopwise.figures.tables import Pairs, frame, gather, ordered
from stopwise.stats import mean_interval, rank_correlation

COLUMNS = pa.schema(
    [
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("quantity", pa.string(), nullable=False),  # cosine (a row a pair), interference, transfer (two a pair)
        pa.field("task_a", pa.string(), nullable=False),  # interference: the task that suffers
        pa.field("task_b", pa.string(), nullable=False),  # interference: the task whose vector is added
        pa.field("predicted", pa.float64()),
        pa.field("measured", pa.float64()),
        pa.field("outside_theory", pa.string()),  # why the kernels' prediction had to be fitted to the trained outputs
    ]
)
QUANTITIES = {  # title, and what the numbers are
    "cosine": ("cosine of the vectors", ""),
    "interference": ("interference of b on a", " |change| / |residual|"),
    "transfer": ("transfer from b to a", ", share of the residual"),
}


def table(checks: Pairs) -> pa.Table:
    """Assemble the table from (wildcards, `arithmetic_check`): whole vectors, on test examples.

    Columns `method` and `split` choose the rows where the table has them: the theory's filter, else least squares.
    """
    return gather([(wildcards, _chosen(table)) for wildcards, table in checks], COLUMNS, "F7")


def _chosen(table: pa.Table) -> pa.Table:
    keep = pc.is_in(table["quantity"], pa.array(list(QUANTITIES)))
    if "split" in table.column_names:
        keep = pc.and_(keep, pc.not_equal(pc.fill_null(table["split"], "test"), "train"))
        keep = pc.and_(keep, pc.not_equal(pc.fill_null(table["split"], "test"), "validation"))
    if "method" in table.column_names:
        methods = set(table["method"].to_pylist())
        keep = pc.and_(keep, pc.equal(table["method"], "filter" if "filter" in methods else "least_squares"))
    return table.filter(keep)


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
    ax.set(xlim=limits, ylim=limits, aspect="equal")
    ax.xaxis.set_major_locator(MaxNLocator(4))
    ax.yaxis.set_major_locator(MaxNLocator(4))


def _title(quantity: str, rows: pd.DataFrame) -> str:
    """Name of the quantity with the rank correlation (its interval over seeds, where there are several)."""
    correlation = rank_correlation(rows["predicted"], rows["measured"])
    by_seed = [rank_correlation(own["predicted"], own["measured"]) for _, own in rows.groupby("seed")]
    _, low, high = mean_interval(by_seed)
    interval = f" [{max(low, -1):.2f}, {min(high, 1):.2f}]" if np.isfinite(low) else ""
    rank = f"ρ {correlation:.2f}{interval}, " if np.isfinite(correlation) else ""
    return f"{QUANTITIES[quantity][0]}\n({rank}{len(rows)} {'dot' if len(rows) == 1 else 'dots'})"


def says(table: pa.Table) -> str:
    """One sentence: how well the kernels rank what merging does, by quantity."""
    data = frame(table, COLUMNS, "F7")
    found = {}
    for quantity in QUANTITIES:
        rows = data[data["quantity"] == quantity].dropna(subset=["predicted", "measured"])
        rho = rank_correlation(rows["predicted"], rows["measured"]) if len(rows) > 2 else np.nan
        if np.isfinite(rho):
            found[quantity] = f"{quantity} {rho:.2f}"
    said = ", ".join(found.values())
    return f"Rank correlation of what the kernels say before merging and what is measured: {said}." if found else ""


@style.styled
def draw(table: pa.Table) -> Figure:
    """Draw predicted against measured values with the line of equality, one panel a quantity.

    Cosine first, then what one task's vector does to the other task. The interval is that over seeds.
    """
    data = frame(table, COLUMNS, "F7").sort_values(["seed", "task_a", "task_b"])
    tasks = ordered([*data["task_a"], *data["task_b"]], style.TASKS)
    looks = style.looks(tasks)
    shown = [q for q in QUANTITIES if (data["quantity"] == q).any()] or list(QUANTITIES)[:2]
    across = len(shown) > 1
    figure, axes = style.new_figure(
        "two-column" if across else "one-column", 3.0 + 0.14 * -(-len(tasks) // 6), ncols=len(shown)
    )
    for ax, quantity in zip(axes[0], shown, strict=True):
        finite = np.isfinite(data[["predicted", "measured"]]).all(axis=1)
        rows = data[finite & (data["quantity"] == quantity)]
        _panel(ax, rows, looks)
        ax.set_title(_title(quantity, rows))
        if not rows.empty:
            fitted = rows["outside_theory"].notna().any()
            ax.set_xlabel("fitted in the tangent space" if fitted else "predicted by the kernels")
            ax.set_ylabel(f"measured{QUANTITIES[quantity][1]}")
    keys = [style.line_key(style.plain(t, 16), color=looks[t].color, marker="o", linestyle="") for t in tasks]
    style.outside_legend(figure, keys, 6 if across else 3)
    style.headline(figure, says(table))
    return figure
