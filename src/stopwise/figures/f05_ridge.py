"""F5: kernel ridge regression at mu = 1/eta against early stopping at training time eta, each beside its own best."""

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
        pa.field("source", pa.string(), nullable=False),  # a synthetic decay, or a task
        pa.field("m", pa.int64(), nullable=False),
        pa.field("filter", pa.string(), nullable=False),  # descent (early stopping) or ridge
        pa.field("eta", pa.float64(), nullable=False),  # training time of descent, 1/mu of ridge
        pa.field("risk", pa.float64(), nullable=False),  # mean over data sets
        pa.field("low", pa.float64()),
        pa.field("high", pa.float64()),
        pa.field("best", pa.float64()),  # mean over data sets of each one's smallest risk
    ]
)
SOURCES = {
    "finite_rank": "finite rank",
    "beta1": "eigenvalues $k^{-2}$",
    "beta2": "eigenvalues $k^{-4}$",
    "exponential": "exponential",
}
FILTERS = {"descent": ("blue", "-", "early stopping at η"), "ridge": ("orange", "--", "ridge at μ = 1/η")}


def table(parts: Iterable[pa.Table]) -> pa.Table:
    """Assemble the table from the ``theory_ridge`` artifacts of the decays."""
    return gather([({}, part) for part in parts], COLUMNS, "F5")


def _panel(ax: Axes, rows: pd.DataFrame, source: str) -> None:
    for name, (color, line, _) in FILTERS.items():
        curve = rows[rows["filter"] == name].sort_values("eta")
        if curve.empty:
            continue
        ax.fill_between(curve["eta"], curve["low"], curve["high"], color=style.COLORS[color], alpha=0.2, linewidth=0)
        ax.plot(curve["eta"], curve["risk"], line, color=style.COLORS[color])
        lowest = curve.loc[curve["risk"].idxmin()]
        ax.plot(lowest["eta"], lowest["risk"], marker="o", color=style.COLORS[color], markersize=4, zorder=3)
        ax.axhline(curve["best"].iloc[0], color=style.COLORS[color], linestyle=":", linewidth=0.9)
    best = rows.groupby("filter")["best"].first()
    title = style.plain(source) if source not in SOURCES else SOURCES[source]
    ax.set_title(f"{title}, m = {rows['m'].iloc[0]}", loc="left")
    ax.set(xscale="log", yscale="log", xlabel="training time η")
    if {"ridge", "descent"} <= set(best.index):
        text = f"best ridge / best stop:\n{best['ridge'] / best['descent']:.2f}"
        ax.text(0.97, 0.96, text, transform=ax.transAxes, ha="right", va="top", fontsize=style.SMALL_FONT_SIZE)
    ax.set_ylim(0.85 * rows["best"].min(), 3.0 * rows["risk"].max())
    style.plain_log(ax.yaxis)


def says(table: pa.Table) -> str:
    """One sentence: the best risk of ridge regression over that of the best stop, over the sources."""
    data = frame(table, COLUMNS, "F5")
    best = data.groupby(["source", "filter"])["best"].first().unstack()
    if not {"ridge", "descent"} <= set(best):
        return ""
    ratio = (best["ridge"] / best["descent"]).dropna()
    ends = f"{ratio.min():.2f} to {ratio.max():.2f}" if len(ratio) > 1 else f"{ratio.iloc[0]:.2f}"
    return f"Ridge regression and early stopping at their best: the ratio of their risks is {ends}."


@style.styled
def draw(table: pa.Table) -> Figure:
    """Draw risk against training time, one panel a source; dots mark each curve's lowest point."""
    data = frame(table, COLUMNS, "F5")
    sources = ordered(data["source"], SOURCES)
    if not sources:
        figure, axes = style.new_figure(height=1.5)
        style.note(axes[0, 0], "no study")
        return figure
    across = min(4, len(sources))
    down = -(-len(sources) // across)
    figure, axes = style.new_figure(
        "two-column" if across > 1 else "one-column", 0.6 + 1.9 * down, nrows=down, ncols=across
    )
    for ax, source in zip(axes.flat, sources, strict=False):
        _panel(ax, data[data["source"] == source], source)
    for ax in axes.flat[len(sources) :]:
        ax.set_visible(False)
    for ax in axes[:, 0]:
        ax.set_ylabel("risk $|f - f^*|^2$")
    keys = [style.line_key(label, color=style.COLORS[color], linestyle=line) for color, line, label in FILTERS.values()]
    grey = style.COLORS["grey"]
    keys.append(style.line_key("lowest point of the curve", color=grey, marker="o", linestyle=""))
    keys.append(style.line_key("mean of each data set's own best", color=grey, linestyle=":"))
    style.outside_legend(figure, keys, 4)
    style.headline(figure, says(table))
    return figure
