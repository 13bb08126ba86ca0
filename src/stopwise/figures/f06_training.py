"""F6: is training what the theory says? Residual by direction, loss, kernel drift and distance along a real run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from stopwise.figures import style
from stopwise.figures.chart import DASHED, DOTTED, Axis, Line, Panel, Views, symlog
from stopwise.figures.paint import paint
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
        pa.field("predicted", pa.float64()),  # by the filter, the replayed path or the guarantee; or empty
    ]
)
QUANTITIES = {
    "residual": "errors left, |z(t) / z(0)|",
    "loss": "training loss",
    "drift": "drift of the kernel",
    "distance": "distance moved",
}
GUARANTEE = "guarantee"  # a quantity of the table that is drawn into the panel of the loss
DIRECTIONS = (1, 2, 5, 10)  # of the measured ten: all of them are a thicket of lines
MOST_ROWS = 6


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


def _shades(count: int) -> list[str]:
    """Colours from dark to light that stay apart in greyscale and for all kinds of colour vision."""
    return [to_hex(shade) for shade in mpl.colormaps["viridis"](np.linspace(0.0, 0.85, count))]


def _in_model_order(layer: str) -> list[tuple[int, str]]:
    """Sorting key that counts the numbers in a name: layer 10 comes after layer 9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in layer.split(".")]


def _pair(rows: pd.DataFrame, color: str, label: str = "", **look: Any) -> list[Line]:
    """What was measured, and dashed what the theory says, where it says something."""
    rows = rows.sort_values("step")
    lines = [Line(rows["step"], rows["measured"], color, label, **look)]
    said = rows[rows["predicted"].notna()]
    if not said.empty:
        lines.append(Line(said["step"], said["predicted"], color, "", DASHED, 0.9))
    return lines


def _residuals(rows: pd.DataFrame) -> list[Line]:
    """Some of the measured directions from dark to light, and all the others together."""
    lines: list[Line] = []
    shades = dict(zip(DIRECTIONS, _shades(len(DIRECTIONS)), strict=True))
    for direction, shade in shades.items():
        own = rows[rows["direction"] == direction]
        if not own.empty:
            lines += _pair(own, shade, f"direction {direction}", width=0.9)
    rest = rows[rows["direction"] == 0]
    return lines + (_pair(rest, style.COLORS["vermilion"], "all after the tenth", width=1.4) if len(rest) else [])


def _layers(rows: pd.DataFrame) -> list[Line]:
    """Every layer thin, from dark to light, and the whole model black."""
    lines: list[Line] = []
    layers = sorted(rows["layer"].dropna().unique(), key=_in_model_order)
    for i, (layer, shade) in enumerate(zip(layers, _shades(len(layers)), strict=True)):
        label = "first layer" if i == 0 else "last layer" if i == len(layers) - 1 else ""
        own = rows[rows["layer"] == layer].sort_values("step")
        lines.append(Line(own["step"], own["measured"], shade, label, width=0.6))
    whole = rows[rows["layer"].isna()]
    return lines + (_pair(whole, style.COLORS["black"], "measured", marker="o", size=2) if len(whole) else [])


def panel(rows: pd.DataFrame, quantity: str) -> Panel:
    """One quantity of one run; a panel without rows says so. Nothing is cut off."""
    bound, rows = rows[rows["quantity"] == GUARANTEE], rows[rows["quantity"] == quantity]
    if not rows["measured"].notna().any():
        return Panel(note="not measured")
    lines = _residuals(rows) if quantity == "residual" else _layers(rows)
    if quantity == "loss" and len(bound):
        bound = bound.sort_values("step")
        lines.append(Line(bound["step"], bound["predicted"], style.COLORS["black"], "guarantee", DOTTED, 0.9))
    values = np.concatenate([np.asarray(line.y, dtype=float) for line in lines])
    values = values[np.isfinite(values)]
    y = Axis(limits=(0.0, None))
    if quantity == "residual":
        y = symlog("", [0.0, *values], 0.01)
    elif quantity == "loss" and values[values > 0].size and values.max() > 5 * np.median(values):
        y = Axis("", "log")
    return Panel(x=Axis("optimizer step", whole=True), y=y, lines=tuple(lines))


def says(table: pa.Table) -> str:
    """One sentence: how far the measured training loss is from the theory's at the end of the runs that are drawn."""
    data = frame(table, COLUMNS, "F6")
    loss = data[(data["quantity"] == "loss") & data["predicted"].notna() & data["measured"].notna()]
    if loss.empty:
        return ""
    loss = _chosen(loss).sort_values("step")
    last = loss.groupby(["start", "task"]).last()
    first = loss.groupby(["start", "task"]).first()
    apart = ((last["measured"] - last["predicted"]).abs() / first["measured"]).median()
    return (
        f"At the last step the training loss differs from the theory's by {100 * apart:.0f} % of its first value"
        f" (median of {len(last)} {'run' if len(last) == 1 else 'runs'})."
    )


def views(table: pa.Table) -> Views:
    """One panel for each task, start and quantity: the first seed at the largest n."""
    data = frame(table, COLUMNS, "F6")
    panels: dict[tuple[str, ...], Panel] = {}
    if data["measured"].notna().any():
        for (task, start), rows in _chosen(data).groupby(["task", "start"]):
            for quantity, label in QUANTITIES.items():
                if rows.loc[rows["quantity"] == quantity, "measured"].notna().any():
                    panels[task, start, label] = panel(rows, quantity)
    return Views(
        (("task", tuple(style.TASKS)), ("start", tuple(style.STARTS)), ("show", tuple(QUANTITIES.values()))), panels
    )


def _chosen(data: pd.DataFrame) -> pd.DataFrame:
    """Keep one run for each quantity of a start and task: the largest n of the first seed, by layer where measured."""
    data = data.assign(whole=data["layer"].isna())
    measured = data.groupby(["start", "task", "quantity"])["whole"].transform("min")  # False: some rows are of layers
    of_layers = data.groupby(["start", "task", "quantity", "seed", "n"])["whole"].transform("min")
    data = data[of_layers == measured]
    group = data.groupby(["start", "task", "quantity"])
    data = data[data["seed"] == group["seed"].transform("min")]
    return data[data["n"] == data.groupby(["start", "task", "quantity"])["n"].transform("max")]


@style.styled
def draw(table: pa.Table) -> Figure:
    """Draw the first seed at the largest n: one row of panels a start and task, ``MOST_ROWS`` of many.

    A quantity that was measured in no run has no panel; one that was measured at a smaller n says so in its panel.
    """
    data = frame(table, COLUMNS, "F6")
    data = data[data["quantity"].isin([*QUANTITIES, GUARANTEE])]
    if not data["measured"].notna().any():
        return paint([[Panel(note="no training run")]])
    data = _chosen(data)
    starts, tasks = ordered(data["start"], style.STARTS), ordered(data["task"], style.TASKS)
    present = set(zip(data["start"], data["task"], strict=True))
    runs = spread([(s, t) for s in starts for t in tasks if (s, t) in present], MOST_ROWS)
    shown = [q for q in QUANTITIES if data.loc[data["quantity"] == q, "measured"].notna().any()]
    grid = []
    for i, (start, task) in enumerate(runs):
        rows = data[(data["start"] == start) & (data["task"] == task)]
        who = style.cut(task, 18) + ("\n" if len(starts) == 1 else f"\n{style.cut(start)}\n")
        line = []
        for quantity in shown:
            made = panel(rows, quantity)
            smaller = rows.loc[rows["quantity"] == quantity, "n"].max()
            label = f"{who}n = {rows['n'].max()}" if quantity == shown[0] else ""
            corner = f"n = {smaller:.0f}" if smaller < rows["n"].max() else ""
            title = QUANTITIES[quantity] if i == 0 else ""
            line.append(replace(made, title=title, y=replace(made.y, label=label), corner=corner))
        grid.append(line)
    extra = []
    if data.loc[data["quantity"] != GUARANTEE, "predicted"].notna().any():
        extra = [style.line_key("theory", color="black", linewidth=0.9, linestyle=(0, (3, 1.5)))]
    return paint(grid, says(table), height=1.05, share_x=True, extra=extra)
