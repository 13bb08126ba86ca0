"""F2: curves of real fine-tuning, the prediction made before it, and on a strip below where each rule stops."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from matplotlib.figure import Figure

from stopwise.figures import style
from stopwise.figures.chart import DASHED, MARKS, Axis, Band, Line, Panel, Span, Stop, Views, symlog
from stopwise.figures.paint import paint
from stopwise.figures.tables import Pairs, frame, gather, ordered, spread

COLUMNS = pa.schema(
    [
        pa.field("start", pa.string(), nullable=False),
        pa.field("task", pa.string(), nullable=False),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("n", pa.int64(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),  # measured, linearised or rule
        pa.field("split", pa.string()),  # train, validation or test; test on rows of kind rule
        pa.field("rule", pa.string()),  # on rows of kind rule only
        pa.field("step", pa.int64()),
        pa.field("eta", pa.float64()),  # training time
        pa.field("loss", pa.float64()),  # empty on a rule that stops after the last measured step
        pa.field("accuracy", pa.float64()),
        pa.field("objective", pa.string()),  # what was minimised; empty in tables of older runs
    ]
)
LOSSES = {"squared": "squared loss", "cross_entropy": "cross-entropy"}
KINDS = {"measured": "", "linearised": "linearised_"}  # kind -> prefix of the columns of a trajectory
RUN = ["start", "task", "seed", "n"]
RAISED = ("bayes", "holdout", "oracle")  # rules whose stop is also a thin line through the curves
MOST = 6  # panels


def table(trajectories: Pairs, evaluations: Pairs = ()) -> pa.Table:
    """Assemble the table from `trajectory` and `evaluation` artifacts.

    Both are lists of (wildcards with start, task and seed, table); ``objective`` beside the wildcards names the loss.
    ValueError when a column is missing.
    """
    parts: list[tuple[dict, pa.Table]] = []
    for wildcards, one in trajectories:
        for kind, prefix in KINDS.items():
            for split in style.SPLITS:
                names = {f"{prefix}{split}_{value}": value for value in ("loss", "accuracy")}
                if f"{prefix}{split}_loss" not in one.column_names:
                    continue
                kept = [c for c in one.column_names if c in names or c in ("n", "step", "eta")]
                rows = one.select(kept).rename_columns([names.get(c, c) for c in kept])
                parts.append(({**wildcards, "kind": kind, "split": split}, rows.filter(rows["loss"].is_valid())))
    for wildcards, one in evaluations:
        rows = one.rename_columns([{"t": "step"}.get(c, c) for c in one.column_names])
        parts.append(({**wildcards, "kind": "rule", "split": "test"}, rows))
    return gather(parts, COLUMNS, "F2")


def over_seeds(data: pd.DataFrame, value: str = "loss") -> pd.DataFrame:
    """The curves of runs of one start, task and size as one: the mean at each step that all seeds reached."""
    curve = ["kind", "split", "step"]
    measured = data[(data["kind"] != "rule") & np.isfinite(data[value])]
    means = measured.groupby(curve)[value].agg(["mean", "min", "max", "count"]).reset_index()
    # From where a seed's run ended, the mean would jump to that of the others.
    means = means[means["count"] == means.groupby(["kind", "split"])["count"].transform("max")]
    return means.rename(columns={"mean": value, "min": "low", "max": "high"}).drop(columns="count")


Cell = tuple[str, pd.DataFrame]  # a panel's title, and the rows of one start, task and size


def _grid(data: pd.DataFrame) -> list[list[Cell]]:
    """The panels of the figure, at most ``MOST`` in two or three rows; the results page has every run.

    One start: tasks and sizes. Several: every start of the first task that has them, then further tasks.
    """
    if data.empty:
        return []
    tasks = ordered(data["task"], style.TASKS)
    own = {task: data[data["task"] == task] for task in tasks}
    if data["start"].nunique() > 1:
        return _of_starts(own)
    shown = spread(tasks, MOST)
    each = 3 if len(shown) <= 2 else 2 if len(shown) == 3 else 1
    sizes = {task: spread(ordered(own[task]["n"]), each) for task in shown}
    cells = {(t, n): (f"{style.cut(t, 18)}, n = {n}", own[t][own[t]["n"] == n]) for t in shown for n in sizes[t]}
    if len(shown) == 3 and len(cells) == MOST:  # tasks across, so that the figure stays low
        return [[cells[t, sizes[t][i]] for t in shown] for i in range(2)]
    if len(cells) == len(shown):  # one panel a task: side by side
        flat, across = list(cells.values()), len(shown) if len(shown) <= 3 else -(-len(shown) // 2)
        return [flat[i : i + across] for i in range(0, len(flat), across)]
    return [[cells[t, n] for n in sizes[t]] for t in shown]


def _of_starts(own: dict[str, pd.DataFrame]) -> list[list[Cell]]:
    """Two rows of at most three panels, each run at its largest size."""

    def largest(rows: pd.DataFrame, start: str) -> Cell:
        rows = rows[rows["start"] == start]
        n = rows["n"].max()
        return f"{style.cut(rows['task'].iloc[0], 12)}, {style.cut(start)}, n = {n}", rows[rows["n"] == n]

    starts = {task: ordered(rows["start"], style.STARTS) for task, rows in own.items()}
    several = [task for task in own if len(starts[task]) > 1][:2]
    others = [task for task in own if task not in several]
    grid = [[largest(own[task], start) for start in starts[task][:3]] for task in several]
    if len(grid) < 2 and others:
        grid.append([largest(own[task], starts[task][0]) for task in spread(others, 3)])
    return grid


def _curves(rows: pd.DataFrame, value: str) -> tuple[list[Line], list[Band]]:
    """Measured curves as lines in the band of the seeds, and those of the prediction, where there is one, dashed."""
    lines, bands = [], []
    for kind, split in [(k, s) for k in KINDS for s in style.SPLITS]:
        one = rows[(rows["kind"] == kind) & (rows["split"] == split)].sort_values("step").dropna(subset=[value])
        if one.empty:
            continue
        color = style.SPLITS[split].color
        if kind == "linearised":
            lines.append(Line(one["step"], one[value], color, f"{split}, predicted", DASHED, 0.9))
            continue
        lines.append(Line(one["step"], one[value], color, f"{split}, measured"))
        if (one["high"] > one["low"]).any():
            bands.append(Band(one["step"], one["low"], one["high"], color, "range of the seeds"))
    return lines, bands


def _evaluations(rows: pd.DataFrame, value: str) -> list[Line]:
    """Where the test set was evaluated: of one run its points, of several the points of each, which no mean passes."""
    test = rows[(rows["kind"] == "measured") & (rows["split"] == "test")].sort_values(["seed", "step"])
    test = test[np.isfinite(test[value]) & (test[value] > (0 if value == "loss" else -1))]  # a logarithm needs it
    label = "test, each evaluation of each seed" if test["seed"].nunique() > 1 else "test, each evaluation"
    look: dict[str, Any] = {"dash": MARKS, "marker": "o", "size": 2.4, "alpha": 0.8}
    return [Line(test["step"], test[value], style.SPLITS["test"].color, label, **look)] if len(test) else []


def _losses(curves: list[Line], test: pd.DataFrame, name: str) -> Axis:
    """Losses on a log axis from one decade on; a training loss that falls to nothing must not press the rest flat."""
    values = np.concatenate([np.asarray(line.y, dtype=float) for line in curves]) if curves else np.zeros(0)
    values = values[values > 0]
    if not values.size or values.max() <= 10 * values.min():
        return Axis(name)
    positive = test.loc[test["value"] > 0, "value"]
    floor = 0.2 * positive.min() if len(positive) else values.min()
    return Axis(name, "log", limits=(max(0.8 * values.min(), floor), None))


def _stops(rows: pd.DataFrame, looks: dict[str, style.Look], last: float) -> list[Stop]:
    """The rules of one panel in the order of the registry, each with the median of its seeds' steps."""
    found = []
    for rule in ordered(rows["rule"], style.RULES):
        own = rows[rows["rule"] == rule]
        steps = own["step"].dropna()
        beyond = len(steps) > 0 and steps.median() > last
        at = None if steps.empty else float(min(steps.median(), last))
        each = tuple(float(min(step, last)) for step in steps)
        words = "no answer" if at is None else f"stops at step {steps.median():g}"
        look = looks[rule]
        found.append(Stop(style.rule_label(rule), look.color, look.marker, at, each, beyond, words))
    return found


def panel(rows: pd.DataFrame, looks: dict[str, style.Look], value: str, name: str) -> Panel:
    """The curves of the runs of one start, task and size over their seeds, and the rules' stops below them.

    ``value``: loss or accuracy. A thin line goes up from the stops of ``RAISED``.
    """
    curves = over_seeds(rows, value)
    lines, bands = _curves(curves, value)
    measured = curves[curves["kind"] == "measured"]
    if measured.empty:
        return Panel(note="no training run")
    last = float(measured["step"].max())
    stops = _stops(rows[rows["kind"] == "rule"], looks, last)
    raised = {style.rule_label(rule): looks[rule].color for rule in RAISED if rule in looks}
    up = [(stop.at, raised[stop.name]) for stop in stops if stop.name in raised and stop.at is not None]
    named = f"stop of {' / '.join(style.rule_label(rule) for rule in RAISED if rule in looks)}"
    spans = [Span("x", at, color, width=0.7, alpha=0.6, label=named) for at, color in up]
    test = measured.loc[measured["split"] == "test", ["step", value]].rename(columns={value: "value"})
    y = Axis(name, percent=True) if value == "accuracy" else _losses(lines, test, name)
    x = Axis("optimizer step", limits=(-0.02 * last, None), whole=True)
    if last > 100:
        x = symlog("optimizer step", [0.0, last], 1.0, margin=0.02)
    return Panel("", x, y, (*lines, *_evaluations(rows, value)), tuple(bands), tuple(spans), strip=tuple(stops))


def _loss(data: pd.DataFrame) -> str:
    """Return the name of the loss of the curves; "loss" where it is not known, or of several kinds."""
    found = {LOSSES.get(name, style.cut(name)) for name in data["objective"].dropna()} or {"loss"}
    return found.pop() if len(found) == 1 else "loss"


def says(table: pa.Table) -> str:
    """One sentence: how often bayes and hold-out stop near the lowest test loss."""
    data = frame(table, COLUMNS, "F2")
    rules = data[data["kind"] == "rule"].pivot_table(index=RUN, columns="rule", values="loss")
    if "oracle" not in rules:
        return ""
    near = {name: (rules[name] <= 1.05 * rules["oracle"]) for name in ("bayes", "holdout") if name in rules}
    if not near:
        return ""
    words = {"bayes": "bayes, which needs no validation set,", "holdout": "hold-out"}
    counts = [f"{words[name]} in {int(hits.sum())} of {len(hits)} runs" for name, hits in near.items()]
    return f"Within 5 % of the lowest test loss that every way could choose: {' and '.join(counts)}."


def views(table: pa.Table) -> Views:
    """One panel for each task, size, start, seed (or all) and value."""
    data = frame(table, COLUMNS, "F2")
    names, looks = {"loss": _loss(data), "accuracy": "accuracy"}, style.looks(data["rule"].dropna(), style.RULES)
    panels = {}
    for (task, n, start), rows in data.groupby(["task", "n", "start"]):
        seeds = ordered(rows["seed"])
        chosen = [("all", rows)] if len(seeds) > 1 else []
        chosen += [(str(seed), rows[rows["seed"] == seed]) for seed in seeds]
        for seed, own in chosen:
            for value, name in names.items():
                if own[value].notna().any():
                    panels[task, str(n), start, seed, name] = panel(own, looks, value, name)
    starts, values = tuple(style.STARTS), tuple(names.values())
    choices = (("task", tuple(style.TASKS)), ("training examples", ()), ("start", starts), ("seed", ("all",)))
    return Views((*choices, ("show", values)), panels)


@style.styled
def draw(table: pa.Table) -> Figure:
    """Draw the mean over seeds and its range, at most six panels of one start, and the rules on a strip below each."""
    data = frame(table, COLUMNS, "F2")
    grid = _grid(data)
    if not grid:
        return paint([[Panel(note="no training run")]])
    name, looks = _loss(data), style.looks(ordered(data["rule"], style.RULES), style.RULES)
    rules = ordered(data["rule"], style.RULES)
    rows = [[_aligned(panel(own, looks, "loss", name), title, rules) for title, own in line] for line in grid]
    comparable = all(len({own["task"].iloc[0] for _, own in line}) == 1 for line in grid)
    entries = 4 if max(map(len, grid)) > 1 else 2
    return paint(rows, says(table), height=1.15, share_x=True, share_y=comparable, legend=entries)


def _aligned(shown: Panel, title: str, rules: list[str]) -> Panel:
    """The panel with a row for every rule of the figure, so that the names at the left hold for all panels of a row."""
    held = {stop.name: stop for stop in shown.strip}
    every = [held.get(name := style.rule_label(rule), Stop(name, "", "")) for rule in rules]
    return replace(shown, title=title, strip=tuple(every))
