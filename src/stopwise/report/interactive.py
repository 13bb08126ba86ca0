"""Interactive versions of F1, F2, F3 and F8 as plain plotly figures, one for each choice that a reader can make.

Names come from data, and plotly reads its texts as HTML: every text goes through `shown`.
"""

from __future__ import annotations

import html
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from stopwise.figures import f01_decay as f1
from stopwise.figures import f02_curves as f2
from stopwise.figures import f03_rules as f3
from stopwise.figures import f08_merging as f8
from stopwise.figures import style
from stopwise.figures.tables import frame, ordered
from stopwise.stats import wilson

SYMBOLS = {
    "o": "circle",
    "s": "square",
    "^": "triangle-up",
    "D": "diamond",
    "v": "triangle-down",
    "P": "cross",
    "X": "x",
    "*": "star",
    "<": "triangle-left",
    ">": "triangle-right",
    "h": "hexagon",
    "p": "pentagon",
    "d": "diamond-tall",
}


@dataclass
class Section:
    """One interactive figure: what can be chosen, and the plotly figure of each choice.

    `choices` are (label, options, index of the option shown first); `figures` are keyed by the indices joined with "|".
    """

    choices: list[tuple[str, list[str], int]]
    figures: dict[str, dict[str, Any]] = field(default_factory=dict)


def shown(text: object) -> str:
    """Text that plotly shows letter by letter."""
    return html.escape(" ".join(str(text).split()), quote=False)


def numbers(values: Iterable[Any]) -> list[float | None]:
    """Six significant digits of each number, None (a gap in the line) for NaN and infinity."""
    return [float(f"{v:.6g}") if math.isfinite(v) else None for v in map(float, values)]


def curve(name: str, x: Iterable[Any], y: Iterable[Any], look: style.Look, **more: Any) -> dict[str, Any]:
    """A plotly line with the colour of a look; `dash`, `width` and any other entry of a trace can be given."""
    line = {"color": look.color, "width": more.pop("width", 2), "dash": more.pop("dash", "solid")}
    marks = {"color": look.color, "symbol": SYMBOLS[look.marker], "size": 6}
    values = {"x": numbers(x), "y": numbers(y)}
    return {"type": "scatter", "mode": "lines", "name": shown(name), "line": line, "marker": marks, **values, **more}


def layout(x: str, y: str, **more: Any) -> dict[str, Any]:
    """The plotly layout that all figures share."""
    axis = {"gridcolor": "#e6e6e6", "zeroline": False, "automargin": True}
    return {
        "xaxis": {"title": {"text": x}, **axis, **more.pop("xaxis", {})},
        "yaxis": {"title": {"text": y}, **axis, **more.pop("yaxis", {})},
        "plot_bgcolor": "white",
        "paper_bgcolor": "white",
        "margin": {"t": 20, "r": 20},
        "height": 460,
        "legend": {"orientation": "h", "y": -0.2},
        **more,
    }


def section(
    data: pd.DataFrame,
    columns: Sequence[tuple[str, str, Sequence[str]]],
    draw: Callable[[pd.DataFrame], dict[str, Any]],
) -> Section:
    """One figure for each combination of the values of some columns that has rows.

    `columns` are (label, column, known values in their order); sizes start at the largest, all others at the first.
    """
    values = [ordered(data[column], known) for _, column, known in columns]
    first = [len(v) - 1 if column == "n" else 0 for v, (_, column, _) in zip(values, columns, strict=True)]
    names = [[str(v) for v in options] for options in values]
    made = Section([(label, n, i) for (label, _, _), n, i in zip(columns, names, first, strict=True)])
    groups = {
        key if isinstance(key, tuple) else (key,): rows
        for key, rows in data.groupby([column for _, column, _ in columns], sort=False)
    }
    for places in itertools.product(*(range(len(v)) for v in values)):
        rows = groups.get(tuple(v[i] for v, i in zip(values, places, strict=True)))
        if rows is not None:
            made.figures["|".join(map(str, places))] = draw(rows)
    return made


def decay(table: pa.Table) -> Section:
    """F1: eigenvalues against the index for a start and a size, the geometric mean over seeds."""
    data = frame(table, f1.COLUMNS, "F1")
    top = data.groupby(["start", "task", "seed", "n"])["eigenvalue"].transform("max")
    data = data[data["eigenvalue"] > f1.ZERO * top]
    looks = style.looks(data["task"])

    def draw(rows: pd.DataFrame) -> dict[str, Any]:
        traces = []
        for task in ordered(rows["task"], style.TASKS):
            one = rows[rows["task"] == task]
            mean = np.exp(np.log(one["eigenvalue"]).groupby(one["index"]).mean())
            more: dict[str, Any] = {"mode": "lines+markers", "legendgroup": shown(task)}
            traces.append(curve(f"{task}: {f1.law(one)}", mean.index, mean, looks[task], **more))
            fitted = one[one["fit"] > 0]
            if not fitted.empty:
                mean = np.exp(np.log(fitted["fit"]).groupby(fitted["index"]).mean())
                more = {"dash": "dash", "legendgroup": shown(task), "showlegend": False, "hoverinfo": "skip"}
                traces.append(curve("fit", mean.index, mean, style.Look("#000000", "o"), width=1, **more))
        axes = {"xaxis": {"type": "log"}, "yaxis": {"type": "log", "exponentformat": "power"}}
        return {"data": traces, "layout": layout("index", "eigenvalue of K/m", **axes)}

    return section(data, [("start", "start", list(style.STARTS)), ("training examples", "n", [])], draw)


def training(table: pa.Table) -> Section:
    """F2: curves of one run, by loss or accuracy, with the stopping rules."""
    data = frame(table, f2.COLUMNS, "F2")
    values = {"squared loss": "loss", "accuracy": "accuracy"}
    data = pd.concat([data.assign(shows=label) for label in values], ignore_index=True)
    looks = style.looks(data["rule"].dropna(), style.RULES)

    def draw(rows: pd.DataFrame) -> dict[str, Any]:
        label = rows["shows"].iloc[0]
        return _run(rows.sort_values("step"), label, values[label], looks)

    choices: list[tuple[str, str, Sequence[str]]] = [
        ("task", "task", list(style.TASKS)),
        ("training examples", "n", []),
        ("seed", "seed", []),
        ("start", "start", list(style.STARTS)),
        ("show", "shows", list(values)),
    ]
    return section(data, choices, draw)


def _run(rows: pd.DataFrame, label: str, value: str, looks: dict[str, style.Look]) -> dict[str, Any]:
    """The figure of one run."""
    traces = []
    for kind, split in itertools.product(f2.KINDS, style.SPLITS):
        one = rows[(rows["kind"] == kind) & (rows["split"] == split)].dropna(subset=[value])
        if not one.empty:
            more: dict[str, Any] = {"dash": "dash", "width": 1} if kind == "linearised" else {}
            name = split if kind == "measured" else f"{split}, linearised"
            traces.append(curve(name, one["step"], one[value], style.SPLITS[split], **more))
    test = rows[(rows["kind"] == "measured") & (rows["split"] == "test")].dropna(subset=[value])
    marks: dict[float, int] = {}  # how many rules stop at a step: each further one is drawn smaller, inside the last
    for rule in ordered(rows["rule"], style.RULES) if not test.empty else []:
        one = rows[rows["rule"] == rule].iloc[0]
        if not math.isfinite(one["step"]):
            continue
        last = test.iloc[-1]
        beyond = one["step"] > last["step"] or not math.isfinite(one[value])
        at, y = (last["step"], last[value]) if beyond else (one["step"], one[value])
        open_mark = {"symbol": SYMBOLS[looks[rule].marker] + "-open"} if beyond else {}
        marks[at] = marks.get(at, 0) + 1
        marker = {
            "size": max(6, 21 - 4 * marks[at]),
            "line": {"width": 1, "color": "black"},
            "color": looks[rule].color,
        }
        marker |= {"symbol": SYMBOLS[looks[rule].marker], **open_mark}
        more = {"mode": "markers", "marker": marker, "hovertemplate": f"%{{y:.4g}} at step {one['step']:.0f}"}
        traces.append(curve(rule.replace("_", " "), [at], [y], looks[rule], **more))
    return {"data": traces, "layout": layout("optimizer step", label, hovermode="x unified")}


def rules(table: pa.Table) -> Section:
    """F3: the stopping rules compared, for a start and one of three measures."""
    data = frame(table, f3.COLUMNS, "F3")
    totals = {start: f3.runs(rows) for start, rows in data.groupby("start")}
    data = data[data["rule"] != "oracle"]
    measures = {
        "runs within 5 % of the oracle's loss": "hit",
        "relative regret": "relative_regret",
        "stopping time / oracle's": "ratio",
    }
    looks = style.looks(data["rule"], style.RULES)
    data = pd.concat([data.assign(measure=label) for label in measures], ignore_index=True)

    def draw(rows: pd.DataFrame) -> dict[str, Any]:
        label = rows["measure"].iloc[0]
        traces = []
        for rule in reversed(ordered(rows["rule"], style.RULES)):
            one = rows[rows["rule"] == rule].dropna(subset=[measures[label]])
            name = shown(rule.replace("_", " "))
            if measures[label] == "hit":
                traces.append(_hits(one, name, totals[rows["start"].iloc[0]], looks[rule]))
            else:
                traces.append(_dots(one, name, measures[label], looks[rule]))
        axes = {"xaxis": {"tickformat": ".0%", "range": [-0.02, 1.02]} if measures[label] == "hit" else {}}
        return {"data": traces, "layout": layout(label, "", showlegend=False, **axes)}

    return section(data, [("measure", "measure", list(measures)), ("start", "start", list(style.STARTS))], draw)


def _hits(rows: pd.DataFrame, name: str, total: int, look: style.Look) -> dict[str, Any]:
    """Hit rate of one rule with Wilson's interval."""
    hits, trials = int(rows["hit"].sum()), len(rows)
    low, high = wilson(hits, trials)
    rate = hits / trials if trials else math.nan
    error = {"type": "data", "symmetric": False, "array": numbers([high - rate]), "arrayminus": numbers([rate - low])}
    silent = f", {total - trials} without an answer" if trials < total else ""
    more = {"mode": "markers", "error_x": error, "hovertemplate": f"{hits} of {trials} runs{silent}<extra></extra>"}
    made = curve(name, [rate], [0], look, **more)
    return {**made, "y": [name], "marker": {**made["marker"], "size": 10}}


def _dots(rows: pd.DataFrame, name: str, column: str, look: style.Look) -> dict[str, Any]:
    """Every run of one rule as a dot beside its box."""
    who = zip(rows["task"], rows["n"], rows["seed"], strict=True)
    return {
        "type": "box",
        "name": name,
        "x": numbers(rows[column]),
        "y": [name] * len(rows),
        "orientation": "h",
        "boxpoints": "all",
        "jitter": 0.6,
        "pointpos": 0,
        "marker": {"color": look.color, "size": 5, "opacity": 0.6},
        "line": {"color": look.color, "width": 1},
        "fillcolor": "rgba(0,0,0,0)",
        "text": [shown(f"{task}, n = {n}, seed {seed}") for task, n, seed in who],
        "hovertemplate": "%{text}: %{x:.4g}<extra></extra>",
    }


def arithmetic(table: pa.Table) -> Section:
    """F8: accuracy against the scaling coefficient for one pair or one negated task, on test or validation data."""
    data = frame(table, f8.COLUMNS, "F8")
    parts = [
        rows.assign(experiment=f"{a} + {b}" if b else f"− {a}", target=None if b else a)
        for _, a, b, rows in f8.experiments(data)
    ]
    data = pd.concat(parts, ignore_index=True) if parts else data.assign(experiment="", target=None)
    names = list(dict.fromkeys(data["experiment"]))
    looks = style.looks(data["task"])
    return section(
        data,
        [("experiment", "experiment", names), ("data", "split", ["test", "validation"])],
        lambda rows: _experiment(rows, looks),
    )


def _experiment(rows: pd.DataFrame, looks: dict[str, style.Look]) -> dict[str, Any]:
    """The figure of one pair or one negated task."""
    traces, target = [], rows["target"].iloc[0]
    for task in ordered(rows["task"], style.TASKS):
        one = rows[rows["task"] == task].groupby("coefficient", as_index=False).mean(numeric_only=True)
        main = target in (None, task)
        more: dict[str, Any] = {"mode": "lines+markers", "width": 3 if main else 1, "legendgroup": shown(task)}
        name = task if target is None else f"{task} ({'target' if main else 'control'})"
        traces.append(curve(name, one["coefficient"], one["accuracy"], looks[task], **more))
        levels = {column: label for column, (label, _) in f8.LEVELS.items()} if main else {}
        for column, label in {"predicted_accuracy": "kernel prediction", **levels}.items():
            if one[column].notna().any():
                dash = {"predicted_accuracy": "dash", "accuracy_zero_shot": "dot"}.get(column, "longdash")
                more = {"dash": dash, "width": 1, "legendgroup": shown(task)}
                traces.append(curve(f"{task}: {label}", one["coefficient"], one[column], looks[task], **more))
    chosen = ordered(rows.loc[rows["chosen"], "coefficient"])
    line = {"type": "line", "yref": "paper", "y0": 0, "y1": 1, "line": {"color": "rgba(127,127,127,0.4)", "width": 6}}
    shapes = [{**line, "x0": c, "x1": c} for c in numbers(chosen)]
    where = f"accuracy on {rows['split'].iloc[0]} data"
    return {
        "data": traces,
        "layout": layout("scaling coefficient (grey: chosen on validation)", shown(where), shapes=shapes),
    }


INTERACTIVE = {"F1": decay, "F2": training, "F3": rules, "F8": arithmetic}
