"""F9: where the kernel comes from: share of its trace, alignment and effective dimension, by layer and module type."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from stopwise.figures import style
from stopwise.figures.tables import Pairs, frame, gather, ordered

_ID = [
    pa.field("start", pa.string(), nullable=False),
    pa.field("task", pa.string(), nullable=False),
    pa.field("seed", pa.int64(), nullable=False),
    pa.field("n", pa.int64(), nullable=False),
    pa.field("layer", pa.string(), nullable=False),  # name in the model
]
_VALUES = [pa.field(name, pa.float64()) for name in ("trace_share", "alignment", "effective_dimension")]
COLUMNS = pa.schema(
    [
        *_ID,
        pa.field("position", pa.int64()),  # number of the block that it is in, from 0; empty outside the blocks
        pa.field("module", pa.string(), nullable=False),  # q_proj, mlp.up_proj, ...; "block" for a whole block
        *_VALUES,
    ]
)
LABELS = {
    "trace_share": "share of the trace",
    "alignment": "alignment with\nthe residual",
    "effective_dimension": "effective\ndimension",
}


def place(layer: str) -> tuple[int | None, str]:
    """Block number and module type that a layer's name tells: `model.layers.3.self_attn.q_proj` is (3, "q_proj")."""
    found = re.search(r"(?:^|\.)(\d+)(?:\.(.*))?$", layer.removesuffix(".weight"))
    if not found:
        return None, layer.removesuffix(".weight").rpartition(".")[2]
    return int(found[1]), (found[2] or "block").rpartition(".")[2]


def table(shares: Pairs) -> pa.Table:
    """Assemble the table from `layer_share` artifacts: a list of (wildcards with start, task and seed, table)."""
    rows = gather(shares, pa.schema([*_ID, *_VALUES]), "F9")
    places = [place(name) for name in rows["layer"].to_pylist()]
    rows = rows.append_column("position", pa.array([p for p, _ in places], pa.int64()))
    rows = rows.append_column("module", pa.array([m for _, m in places], pa.string()))
    return gather([({}, rows)], COLUMNS, "F9")


def _lines(data: pd.DataFrame) -> list[tuple[str, pd.DataFrame, dict[str, Any]]]:
    """What the lines stand for: kinds of module when there are several, else tasks."""
    modules = ordered(data.loc[data["position"].notna(), "module"])
    by, known = ("module", {}) if len(modules) > 1 else ("task", style.TASKS)
    names = modules if by == "module" else ordered(data["task"], known)
    looks = style.looks(names, known)
    return [(n, data[data[by] == n], {"color": looks[n].color, "marker": looks[n].marker}) for n in names]


def _panel(ax: Axes, lines: list, outside: pd.DataFrame, name: str) -> None:
    """Mean over seeds (and tasks, when lines are modules) against the block, the range as a band."""
    last = max((rows["position"].max() for _, rows, _ in lines), default=0)
    for _, rows, look in lines:
        found = rows.dropna(subset=["position", name]).groupby("position")[name].agg(["mean", "min", "max"])
        x = found.index.to_numpy()
        if (found["max"] > found["min"]).any():
            ax.fill_between(x, found["min"], found["max"], color=look["color"], alpha=0.15, linewidth=0)
        ax.plot(x, found["mean"], markersize=2.5, **look)
    for module, rows in outside.groupby("module"):
        look = {"color": style.COLORS["grey"], "marker": "_", "linestyle": ""}
        ax.plot([last + 1.5] * len(rows), rows[name], label=str(module), **look)
    ax.set_ylabel(LABELS[name])
    ax.xaxis.set_major_locator(MaxNLocator(7, integer=True))


def says(table: pa.Table) -> str:
    """One sentence: the third of the blocks that holds most of the kernel's trace, at the first start."""
    data = frame(table, COLUMNS, "F9")
    data = data[data["position"].notna()]
    if data.empty:
        return ""
    data = data[data["start"] == ordered(data["start"], style.STARTS)[0]]
    data = data[data["n"] == data.groupby("task")["n"].transform("max")]
    blocks = int(data["position"].max()) + 1
    third = (3 * data["position"] // blocks).astype(int)
    shares = data.groupby([third, "task", "seed"])["trace_share"].sum().groupby(level=0).median()
    most = int(shares.idxmax())
    name = ("first", "middle", "last")[most]
    return f"The {name} third of the {blocks} blocks holds {100 * shares[most]:.0f} % of the kernel's trace."


@style.styled
def draw(table: pa.Table) -> Figure:
    """Draw the three quantities at the largest n against the number of the block, starts across or one start wide."""
    data = frame(table, COLUMNS, "F9")
    if data.empty:
        figure, axes = style.new_figure(height=1.5)
        style.note(axes[0, 0], "no kernel by layer")
        return figure
    data = data[data["n"] == data.groupby(["start", "task"])["n"].transform("max")]
    starts = ordered(data["start"], style.STARTS)
    if len(starts) > 1:
        figure, axes = style.new_figure("two-column", 4.6, nrows=3, ncols=len(starts), sharex="col", sharey="row")
    else:
        figure, row = style.new_figure("two-column", 2.2, nrows=1, ncols=3)
        axes = row.T
    shown: dict[str, dict[str, Any]] = {}
    for column, start in zip(axes.T, starts, strict=True):
        rows = data[data["start"] == start]
        lines, outside = _lines(rows), rows[rows["position"].isna()]
        for ax, name in zip(column, LABELS, strict=True):
            _panel(ax, lines, outside, name)
        shown |= {name: look for name, _, look in lines}
        column[0].set_title(f"{style.plain(start)} start, n = {rows['n'].max()}", loc="left")
        for ax in column if len(starts) == 1 else column[-1:]:
            ax.set_xlabel("block")
    for ax in axes[:, 1:].flat:
        ax.set_ylabel("")
    for row in axes:  # only now: fixed limits would cut what a later start draws
        top = max(ax.dataLim.y1 for ax in row)
        row[0].set_ylim(0, 1.08 * top if np.isfinite(top) and top > 0 else 1.0)
    keys = [style.line_key(style.plain(name, 20), markersize=2.5, **look) for name, look in shown.items()]
    if np.any(data["position"].isna()):
        keys.append(style.line_key("outside the blocks", color=style.COLORS["grey"], marker="_", linestyle=""))
    style.outside_legend(figure, keys, 4)
    style.headline(figure, says(table))
    return figure
