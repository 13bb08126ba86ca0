"""F1: how fast the eigenvalues of each task's kernel decay, with the fitted law and its exponent."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
from matplotlib.figure import Figure

from stopwise.figures import style
from stopwise.figures.chart import DASHED, Axis, Line, Panel, Views
from stopwise.figures.paint import paint
from stopwise.figures.tables import Pairs, frame, gather, ordered

_ID = [
    pa.field("start", pa.string(), nullable=False),  # pretrained, mixed or random
    pa.field("task", pa.string(), nullable=False),  # for the kernel of several tasks, their names joined by +
    pa.field("seed", pa.int64(), nullable=False),
    pa.field("n", pa.int64(), nullable=False),
]
_FIT = [
    pa.field("fit_kind", pa.string()),
    pa.field("exponent", pa.float64()),
    pa.field("exponent_low", pa.float64()),
    pa.field("exponent_high", pa.float64()),
]
COLUMNS = pa.schema(
    [
        *_ID,
        pa.field("index", pa.int64(), nullable=False),  # 1..m
        pa.field("eigenvalue", pa.float64(), nullable=False),  # of K/m
        pa.field("fit", pa.float64()),  # the fitted law at this index, empty outside the fitted range
        *_FIT,  # of this spectrum, repeated on its rows
    ]
)
ZERO = 1e-12  # eigenvalues below this share of the largest are rounding errors of fp64 and are not drawn


def table(spectra: Pairs, decays: Pairs = ()) -> pa.Table:
    """Assemble the table from `spectrum` artifacts and, for the exponents, `decay` artifacts of the same wildcards.

    Both are lists of (wildcards with start, task and seed, table). ValueError when a column is missing.
    """
    spectra = [(w, t.rename_columns([{"fitted": "fit"}.get(c, c) for c in t.column_names])) for w, t in spectra]
    rows = gather(spectra, COLUMNS, "F1")
    fits = [(w, t.rename_columns([{"kind": "fit_kind"}.get(c, c) for c in t.column_names])) for w, t in decays]
    if not fits:
        return rows
    known = gather(fits, pa.schema([*_ID, *_FIT]), "F1")
    keys = [field.name for field in _ID]
    joined = rows.drop_columns([field.name for field in _FIT]).join(known, keys, join_type="left outer")
    return gather([({}, joined.sort_by([(k, "ascending") for k in [*keys, "index"]]))], COLUMNS, "F1")


def largest(data: pd.DataFrame) -> pd.DataFrame:
    """Keep the largest n of each start and task, and the eigenvalues that are more than rounding errors."""
    data = data[data["n"] == data.groupby(["start", "task"])["n"].transform("max")]
    top = data.groupby(["start", "task", "seed"])["eigenvalue"].transform("max")
    return data[data["eigenvalue"] > ZERO * top]


def usual_law(data: pd.DataFrame) -> pd.DataFrame:
    """Rows of the seeds of one task whose fitted law is of the commonest kind: laws of two kinds have no mean."""
    kinds = data.drop_duplicates("seed")["fit_kind"].dropna()
    return data[data["fit_kind"] == kinds.mode().iloc[0]] if len(kinds) else data


def law(data: pd.DataFrame) -> str:
    """Kind of the fitted law of one task with the mean exponent over seeds and the hull of the seeds' intervals."""
    fits = data.drop_duplicates("seed")
    if not fits["fit_kind"].notna().any():
        return "no fit"
    usual = usual_law(fits)
    others = len(fits) - len(usual)
    text = str(usual["fit_kind"].iloc[0]).replace("_", " ")
    exponent, low, high = usual["exponent"].mean(), usual["exponent_low"].min(), usual["exponent_high"].max()
    if text != "finite rank" and np.isfinite(exponent):  # a flat level and a cliff has no exponent to tell
        text += f" {exponent:.2f}"
        text += f" [{low:.2f}, {high:.2f}]" if np.isfinite(low) and np.isfinite(high) else ""
    return text + (f" ({len(usual)} of {len(fits)} seeds)" if others else "")


def _geometric(data: pd.DataFrame, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Geometric mean of a column over seeds, by index."""
    positive = data[data[name] > 0]
    mean = np.log(positive[name]).groupby(positive["index"]).mean()
    return mean.index.to_numpy(), np.exp(mean.to_numpy())


def panel(data: pd.DataFrame, looks: dict[str, style.Look]) -> Panel:
    """The spectra of one start: seeds thin, their geometric mean thick, the fitted law dashed."""
    lines: list[Line] = []
    fits: list[Line] = []
    for task in ordered(data["task"], style.TASKS):
        rows, look = data[data["task"] == task].sort_values("index"), looks[task]
        seeds = ordered(rows["seed"])
        for seed in seeds if len(seeds) > 1 else []:
            one = rows[rows["seed"] == seed]
            lines.append(Line(one["index"], one["eigenvalue"], look.color, width=0.5, alpha=0.45))
        index, mean = _geometric(rows, "eigenvalue")
        every = 1 if index.size <= 8 else index.size // 6
        label = f"{style.cut(task)}: {law(rows)}"
        lines.append(Line(index, mean, look.color, label, marker=look.marker, size=3, every=every))
        index, fit = _geometric(usual_law(rows), "fit")
        if index.size:
            fits.append(Line(index, fit, style.COLORS["black"], "fitted law", DASHED, 0.8))
    x, y = Axis("index i", "log"), Axis("eigenvalue of K/m", "log")
    return Panel(x=x, y=y, lines=(*lines, *fits)) if lines else Panel(note="no spectrum")


def says(table: pa.Table) -> str:
    """One sentence: how far the speeds of the directions lie apart, over the runs of the first start."""
    data = largest(frame(table, COLUMNS, "F1"))
    if data.empty:
        return ""
    first = data[data["start"] == ordered(data["start"], style.STARTS)[0]]
    runs = first.groupby(["task", "seed"])["eigenvalue"]
    ratio = (runs.max() / runs.median()).median()
    return f"Training learns its fastest direction {ratio:.3g} times as fast as the median one."


def views(table: pa.Table) -> Views:
    """One panel for each start and size."""
    data = frame(table, COLUMNS, "F1")
    top = data.groupby(["start", "task", "seed", "n"])["eigenvalue"].transform("max")
    data, looks = data[data["eigenvalue"] > ZERO * top], style.looks(data["task"])
    panels = {(s, str(n)): panel(rows, looks) for (s, n), rows in data.groupby(["start", "n"])}
    return Views((("start", tuple(style.STARTS)), ("training examples", ())), panels)


@style.styled
def draw(table: pa.Table) -> Figure:
    """Draw the decay at the largest n of each task, one panel a start."""
    data = largest(frame(table, COLUMNS, "F1"))
    starts, looks = ordered(data["start"], style.STARTS) or [""], style.looks(data["task"])
    rows = []
    for start in starts:
        own = data[data["start"] == start]
        sizes = "–".join(str(n) for n in sorted({own["n"].min(), own["n"].max()}))
        rows.append([panel(own, looks).titled(f"{style.cut(start)} start, n = {sizes}")])
    return paint(rows, says(table), height=1.7, own_legends=True)
