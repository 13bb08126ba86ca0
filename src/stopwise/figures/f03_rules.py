"""F3: the stopping rules compared over tasks, sizes and seeds: hit rate, regret and time against the oracle's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from stopwise.figures import style
from stopwise.figures.tables import Pairs, frame, gather, ordered
from stopwise.stats import wilson

COLUMNS = pa.schema(
    [
        pa.field("start", pa.string(), nullable=False),
        pa.field("task", pa.string(), nullable=False),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("n", pa.int64(), nullable=False),
        pa.field("rule", pa.string(), nullable=False),
        pa.field("t", pa.int64()),  # steps
        pa.field("t_oracle", pa.int64()),
        pa.field("loss", pa.float64()),  # test loss at t, empty when the rule gave no answer
        pa.field("loss_oracle", pa.float64()),
        pa.field("relative_regret", pa.float64()),  # (loss - loss_oracle) / loss_oracle
        pa.field("hit", pa.bool_()),  # loss within 5 % of the oracle's
        pa.field("ratio", pa.float64()),  # t / t_oracle, empty when t_oracle is 0
        pa.field("flags", pa.list_(pa.string())),
    ]
)


def table(evaluations: Pairs) -> pa.Table:
    """Assemble the table from `evaluation` artifacts: a list of (wildcards with start, task and seed, table)."""
    return gather(evaluations, COLUMNS, "F3")


def _rows(data: pd.DataFrame) -> list[tuple[float, str, str, pd.DataFrame]]:
    """Height on the axis, rule, start and rows of every drawn line; the first rule is the highest."""
    rules, starts = ordered(data["rule"], style.RULES), ordered(data["start"], style.STARTS)
    lines = []
    for i, rule in enumerate(rules):
        for j, start in enumerate(starts):
            offset = (j - (len(starts) - 1) / 2) * 0.9 / len(starts)
            lines.append((i + offset, rule, start, data[(data["rule"] == rule) & (data["start"] == start)]))
    return lines


def runs(data: pd.DataFrame) -> int:
    """Number of training runs in the table: a rule without a row for one of them gave no answer there."""
    return len(data.drop_duplicates(["start", "task", "seed", "n"]))


def _hit_rate(ax: Axes, y: float, rows: pd.DataFrame, total: int, **look: Any) -> None:
    answered = rows["hit"].dropna().astype(bool)
    hits, trials = int(answered.sum()), len(answered)
    if trials:
        low, high = wilson(hits, trials)
        ax.plot([low, high], [y, y], color=look["color"], linewidth=1.6, solid_capstyle="butt")
        ax.plot(hits / trials, y, markeredgecolor="black", markeredgewidth=0.4, clip_on=False, zorder=3, **look)
    silent = f" (+{total - trials})" if trials < total else ""
    where: dict[str, Any] = {
        "xy": (1.0, y),
        "xycoords": ("axes fraction", "data"),
        "textcoords": "offset points",
        "xytext": (6, 0),
    }
    ax.annotate(f"{hits}/{trials}{silent}", va="center", fontsize=style.SMALL_FONT_SIZE, **where)


def _strip(ax: Axes, y: float, values: pd.Series, width: float, **look: Any) -> None:
    """Every value as a dot (spread evenly in height), the quartiles as a bar."""
    values = values[np.isfinite(values)]
    if values.empty:
        return
    jitter = (np.arange(len(values)) * 0.618 % 1 - 0.5) * width  # the golden ratio fills the width evenly
    size = 4.0 if len(values) < 12 else 2.5
    ax.plot(values, y + jitter, linestyle="", markersize=size, alpha=0.6, markeredgewidth=0, **look)
    if len(values) < 6:  # too few for quartiles: the dots say it all
        return
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    ax.plot([low, high], [y, y], color=look["color"], linewidth=2.2, alpha=0.6, solid_capstyle="butt")
    ax.plot(middle, y, marker="|", color="black", markersize=8, markeredgewidth=1.4, zorder=3)


def _symlog(ax: Axes, values: pd.Series, floor: float) -> None:
    """Logarithmic axis that also has a place for zero; linear when all values are within one decade of `floor`."""
    values = values[np.isfinite(values)]
    positive = values[values > 0]
    if positive.empty or values.abs().max() <= 10 * floor:
        ax.xaxis.set_major_locator(MaxNLocator(5))
        return
    threshold = max(floor, 10 ** np.floor(np.log10(positive.min())))
    ax.set_xscale("symlog", linthresh=threshold, linscale=0.5)
    decades = 10.0 ** np.arange(np.log10(threshold), np.ceil(np.log10(values.abs().max())) + 1)
    inside = decades[(values.min() <= decades) & (decades <= values.max())]
    if len(inside) < 2:
        decades = np.outer(decades, [1, 2, 5]).ravel()
        decades = decades[(values.min() <= decades) & (decades <= values.max())]
    decades = decades[:: max(1, -(-len(decades) // 6))]
    ticks = [*-decades[::-1][decades[::-1] <= -values.min()], 0, *decades]
    ax.set_xticks(ticks, [f"{v:g}".replace("-", "\N{MINUS SIGN}") for v in ticks])
    ax.minorticks_off()
    # Margins in units of the axis: those that matplotlib computes in data units leave half of the panel empty.
    scale = ax.xaxis.get_transform()
    low, high = scale.transform([values.min(), values.max()])
    margin = 0.04 * (high - low)
    ax.set_xlim(*scale.inverted().transform([low - margin, high + margin]))


@style.styled
def draw(table: pa.Table) -> Figure:
    """Draw hit rate with Wilson 95 % intervals, regret and time over the oracle's, for each rule but the oracle.

    A run for which a rule gave no answer is no trial of its hit rate; such runs are counted beside it.
    """
    data = frame(table, COLUMNS, "F3")
    totals = {start: runs(rows) for start, rows in data.groupby("start")}
    data = data[data["rule"] != "oracle"].sort_values(["start", "task", "seed", "n"])
    rules, starts = ordered(data["rule"], style.RULES), ordered(data["start"], style.STARTS)
    per_panel = 0.45 + max(2, len(rules)) * max(0.17, 0.12 * len(starts))
    figure, axes = style.new_figure(height=0.3 + 3 * per_panel, nrows=3, sharey=True)
    if data.empty:
        for ax in axes[:, 0]:
            style.note(ax, "no rule was judged")
        return figure
    looks = style.looks(data["rule"], style.RULES)
    shapes = style.looks(starts, style.STARTS)
    for y, rule, start, rows in _rows(data):
        look = {"color": looks[rule].color, "marker": shapes[start].marker if len(starts) > 1 else looks[rule].marker}
        _hit_rate(axes[0, 0], y, rows, totals[start], **look)
        _strip(axes[1, 0], y, rows["relative_regret"], 0.5 / len(starts), **look)
        _strip(axes[2, 0], y, rows["ratio"], 0.5 / len(starts), **look)
    xlabel = "runs within 5 % of the oracle's loss (+: no answer)"
    axes[0, 0].set(xlim=(-0.02, 1.02), xlabel=xlabel)
    axes[0, 0].xaxis.set_major_formatter(PercentFormatter(1.0))
    axes[0, 0].set_yticks(range(len(rules)), [style.rule_label(r) for r in rules])
    axes[0, 0].set_ylim(len(rules) - 0.4, -0.6)
    axes[1, 0].set_xlabel("relative regret (quartiles, median)")
    _symlog(axes[1, 0], data["relative_regret"], 0.01)
    axes[2, 0].set_xlabel("stopping time / oracle's (quartiles, median)")
    _symlog(axes[2, 0], pd.concat([data["ratio"], pd.Series([1.0])]), 0.1)
    axes[2, 0].axvline(1.0, color=style.COLORS["grey"], linewidth=0.8, linestyle=":")
    if len(starts) > 1:
        keys = [
            style.line_key(style.plain(s), color="black", linestyle="", marker=shapes[s].marker, markersize=4)
            for s in starts
        ]
        style.outside_legend(figure, keys, 3)
    return figure
