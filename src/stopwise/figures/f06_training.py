"""F6: is training what the theory says? Residual by direction, loss, kernel drift and distance along a real run."""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from stopwise.figures import style
from stopwise.figures.tables import Pairs, frame, gather, ordered, spread

COLUMNS = pa.schema(
    [
        pa.field("start", pa.string(), nullable=False),
        pa.field("task", pa.string(), nullable=False),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("n", pa.int64(), nullable=False),
        pa.field("quantity", pa.string(), nullable=False),  # one of QUANTITIES
        pa.field("direction", pa.int64()),  # residual: index of the eigenvector from 1; 0 for all the others together
        pa.field("layer", pa.string()),  # drift, distance: the layer; empty for the whole model
        pa.field("step", pa.int64(), nullable=False),
        pa.field("measured", pa.float64()),
        pa.field("predicted", pa.float64()),  # by the filter, or the guarantee; empty where the theory says nothing
    ]
)
QUANTITIES = {
    "residual": "residual left, |z(t)/z(0)|",
    "loss": "training loss",
    "drift": r"drift $|K_t - K_0| / |K_0|$",
    "distance": r"distance $|θ_t - θ_0| / |θ_0|$",
}
DASHED = (0, (3, 1.5))
DOTTED = (0, (1, 1.2))
GUARANTEE = "guarantee"  # a quantity of the table that is drawn into the panel of the loss
DIRECTIONS = (1, 2, 5, 10)  # of the measured ten: all of them are a thicket of lines
MOST_ROWS = 8


def table(trajectories: Pairs, directions: Pairs = (), drifts: Pairs = (), guarantees: Pairs = ()) -> pa.Table:
    """Assemble the table from `trajectory` artifacts and the measurements along the same runs.

    Each is a list of (wildcards with start, task and seed, table). Trajectories give the training loss against the
    linearised one, and the relative distance. `directions` have the columns n, step, direction, measured, predicted;
    `drifts` have n, step, layer, drift (relative Frobenius norm) and, when known, relative_distance; `guarantees` have
    n, step and guarantee, an upper bound of the training loss.
    """
    pairs: list[tuple[dict, pa.Table]] = []
    for w, one in trajectories:
        bound = "linearised_train_loss"
        pairs.append(({**w, "quantity": "loss"}, _renamed(one, {"train_loss": "measured", bound: "predicted"})))
        pairs.append(({**w, "quantity": "distance"}, _renamed(one, {"relative_distance": "measured"})))
    pairs += [({**w, "quantity": "residual"}, one) for w, one in directions]
    for w, one in drifts:
        pairs.append(({**w, "quantity": "drift"}, _renamed(one, {"drift": "measured"})))
        if "relative_distance" in one.column_names:
            # The whole model's distance is in the trajectory of the same run.
            layers = one.filter(pc.is_valid(one["layer"]))
            pairs.append(({**w, "quantity": "distance"}, _renamed(layers, {"relative_distance": "measured"})))
    pairs += [({**w, "quantity": GUARANTEE}, _renamed(one, {"guarantee": "predicted"})) for w, one in guarantees]
    return gather(pairs, COLUMNS, "F6")


def _renamed(table: pa.Table, names: dict[str, str]) -> pa.Table:
    return table.rename_columns([names.get(c, c) for c in table.column_names])


def _shades(count: int) -> np.ndarray:
    """Colours from dark to light that stay apart in greyscale and for all kinds of colour vision."""
    return mpl.colormaps["viridis"](np.linspace(0.0, 0.85, count))


def _in_model_order(layer: str) -> list[tuple[int, str]]:
    """Sorting key that counts the numbers in a name: layer 10 comes after layer 9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in layer.split(".")]


def _lines(ax: Axes, rows: pd.DataFrame, **look: Any) -> None:
    rows = rows.sort_values("step")
    ax.plot(rows["step"], rows["measured"], **look)
    if rows["predicted"].notna().any():
        ax.plot(rows["step"], rows["predicted"], **{**look, "linestyle": DASHED, "marker": "", "linewidth": 0.9})


def _directions(rows: pd.DataFrame) -> dict[int, Any]:
    """The directions that are drawn, those of ``DIRECTIONS`` that were measured, each with its colour."""
    shades = dict(zip(DIRECTIONS, _shades(len(DIRECTIONS)), strict=True))
    measured = set(rows["direction"].dropna())
    return {direction: shade for direction, shade in shades.items() if direction in measured}


def _panel(ax: Axes, rows: pd.DataFrame, quantity: str) -> None:
    """Draw one quantity of one run; a panel without rows says so."""
    bound, rows = rows[rows["quantity"] == GUARANTEE], rows[rows["quantity"] == quantity]
    if not rows["measured"].notna().any():
        style.note(ax, "not measured")
        return
    if quantity == "residual":
        for direction, color in _directions(rows).items():
            _lines(ax, rows[rows["direction"] == direction], color=color, linewidth=0.9)
        _lines(ax, rows[rows["direction"] == 0], color=style.COLORS["vermilion"], linewidth=1.4)
        ax.set_yscale("symlog", linthresh=0.01, linscale=0.4)
        ax.set_yticks([0, 0.01, 0.1, 1], ["0", "0.01", "0.1", "1"])
        ax.set_ylim(bottom=0, top=1.3 * max(1.0, min(rows["measured"].max(), 3.0)))
        return
    layers = sorted(rows["layer"].dropna().unique(), key=_in_model_order)
    for layer, color in zip(layers, _shades(len(layers)), strict=True):
        _lines(ax, rows[rows["layer"] == layer], color=color, linewidth=0.6)
    _lines(ax, rows[rows["layer"].isna()], color="black", marker="o", markersize=2)
    ax.set_ylim(bottom=0, top=ax.get_ylim()[1])  # a guarantee far above the loss must not flatten it
    if quantity == "loss" and len(bound):
        bound = bound.sort_values("step")
        ax.plot(bound["step"], bound["predicted"], color="black", linestyle=DOTTED, linewidth=0.9)
    ax.yaxis.set_major_locator(MaxNLocator(4))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _chosen(data: pd.DataFrame) -> pd.DataFrame:
    """Keep one run for each quantity of a start and task: the largest n of the first seed, by layer where measured."""
    data = data.assign(whole=data["layer"].isna())
    measured = data.groupby(["start", "task", "quantity"])["whole"].transform("min")  # False: some rows are of layers
    of_layers = data.groupby(["start", "task", "quantity", "seed", "n"])["whole"].transform("min")
    data = data[of_layers == measured]
    group = data.groupby(["start", "task", "quantity"])
    data = data[data["seed"] == group["seed"].transform("min")]
    return data[data["n"] == data.groupby(["start", "task", "quantity"])["n"].transform("max")]


def _keys(data: pd.DataFrame) -> list:
    shades = _shades(10)
    keys = [style.line_key("measured", color="black")]
    if data.loc[data["quantity"] != GUARANTEE, "predicted"].notna().any():
        keys.append(style.line_key("theory", color="black", linestyle=DASHED, linewidth=0.9))
    if (data["quantity"] == GUARANTEE).any():
        keys.append(style.line_key("guarantee", color="black", linestyle=DOTTED, linewidth=0.9))
    for direction, shade in _directions(data).items():
        keys.append(style.line_key(f"direction {direction}", color=shade, linewidth=1.4))
    if (data["direction"] == 0).any():
        keys.append(style.line_key("all after the tenth", color=style.COLORS["vermilion"]))
    if data["layer"].notna().any():
        keys.append(style.line_key("first layer", color=shades[0], linewidth=0.6))
        keys.append(style.line_key("last layer", color=shades[-1], linewidth=0.6))
    return keys


@style.styled
def draw(table: pa.Table) -> Figure:
    """Draw the first seed at the largest n: one row of panels a start and task, eight of many.

    A quantity that was measured in no run has no panel; one that was measured at a smaller n says so in its panel.
    """
    data = frame(table, COLUMNS, "F6")
    data = data[data["quantity"].isin([*QUANTITIES, GUARANTEE])]
    if not data["measured"].notna().any():
        figure, axes = style.new_figure(height=1.5)
        style.note(axes[0, 0], "no training run")
        return figure
    data = _chosen(data)
    starts, tasks = ordered(data["start"], style.STARTS), ordered(data["task"], style.TASKS)
    present = set(zip(data["start"], data["task"], strict=True))
    runs = spread([(s, t) for s in starts for t in tasks if (s, t) in present], MOST_ROWS)
    shown = [q for q in QUANTITIES if data.loc[data["quantity"] == q, "measured"].notna().any()]
    width = "two-column" if len(shown) > 2 else "one-column"
    height = 0.7 + 1.35 * len(runs) + 0.15 * (width == "one-column")
    figure, axes = style.new_figure(width, height, nrows=len(runs), ncols=len(shown))
    for line, (start, task) in zip(axes, runs, strict=True):
        rows = data[(data["start"] == start) & (data["task"] == task)]
        for ax, quantity in zip(line, shown, strict=True):
            _panel(ax, rows, quantity)
            smaller = rows.loc[rows["quantity"] == quantity, "n"].max()
            if smaller < rows["n"].max():
                ax.text(0.04, 0.96, f"n = {smaller:.0f}", transform=ax.transAxes, va="top", fontsize="x-small")
        who = style.plain(task, 18) if len(starts) == 1 else f"{style.plain(task, 18)}, {style.plain(start)}"
        line[0].set_ylabel(f"{who}\nn = {rows['n'].max()}")
    for ax, quantity in zip(axes[0], shown, strict=True):
        ax.set_title(QUANTITIES[quantity])
    for ax in axes[-1]:
        ax.set_xlabel("optimizer step")
    style.outside_legend(figure, _keys(data), 5 if width == "two-column" else 2)
    return figure
