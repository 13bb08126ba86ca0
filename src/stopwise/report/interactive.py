"""Panels as plotly draws them on the results page: the description of `figures.chart`, one figure for each choice.

Names come from data, and plotly reads its texts as HTML: every text goes through `shown`.
"""

from __future__ import annotations

import html
import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa

from stopwise.figures import chart, f01_decay, f02_curves, f03_rules, f04_sample_size, f06_training, f08_merging
from stopwise.figures.chart import Axis, Line, Numbers, Panel, Views, log_places
from stopwise.figures.tables import ordered

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
    "|": "line-ns",
    "_": "line-ew",
    "": "circle",
}
POINT = 1.7  # pixels on the page for a point of a printed figure
HEIGHT = 430  # pixels of a panel without its strip
ROW = 21  # pixels of a rule's row on the strip
# The figures whose modules have `views`; named here, so that the digest of the page's code holds theirs.
INTERACTIVE: dict[str, ModuleType] = {
    "F1": f01_decay,
    "F2": f02_curves,
    "F3": f03_rules,
    "F4": f04_sample_size,
    "F6": f06_training,
    "F8": f08_merging,
}


@dataclass
class Section:
    """One interactive figure: what can be chosen, and the plotly figure of each choice.

    `choices` are (label, options, index of the option shown first); `figures` are keyed by the indices joined with "|".
    """

    choices: list[tuple[str, list[str], int]]
    figures: dict[str, dict[str, Any]] = field(default_factory=dict)
    message: str = ""


def shown(text: object) -> str:
    """Text that plotly shows letter by letter, lines kept."""
    return "<br>".join(html.escape(" ".join(line.split()), quote=False) for line in str(text).split("\n"))


def numbers(values: Iterable[Any]) -> list[float | None]:
    """Six significant digits of each number, None (a gap in the line) for NaN and infinity."""
    return [float(f"{v:.6g}") if math.isfinite(v) else None for v in map(float, values)]


def _places(values: Iterable[Any], axis: Axis) -> list[float | None]:
    """Where an axis has its numbers: plotly has no axis with a place for 0 among powers of ten."""
    found = np.asarray(list(map(float, values)), dtype=float)
    return numbers(chart.warped(found, axis.threshold) if axis.scale == "symlog" else found)


def _trace(line: Line, panel: Panel, first: bool) -> dict[str, Any]:
    marks = line.dash == chart.MARKS
    mode = "markers" if marks else "lines+markers" if line.marker else "lines"
    symbol = SYMBOLS[line.marker] + ("-open" if line.open or line.marker in ("|", "_") else "")
    edge = {"line": {"width": 2 if line.marker in ("|", "_") or line.open else 0.5, "color": line.color}}
    trace: dict[str, Any] = {
        "type": "scatter",
        "mode": mode,
        "x": _places(line.x, panel.x),
        "y": _places(line.y, panel.y),
        "name": shown(line.label),
        "legendgroup": shown(line.label),
        "showlegend": bool(line.label) and first,
        "opacity": line.alpha,
        "line": {"color": line.color, "width": POINT * line.width, "dash": "solid" if marks else line.dash},
        "marker": {"color": line.color, "symbol": symbol, "size": 1.3 * POINT * line.size, **edge},
    }
    if line.words:
        return trace | {"text": [shown(word) for word in line.words], "hovertemplate": "%{text}<extra></extra>"}
    if marks or not line.label:
        return trace | {"hoverinfo": "skip"}
    said = {name: numbers(values) for name, values in (("x", line.x), ("y", line.y))}
    words = [
        f"{shown(line.label)}: {_said(y, panel.y)} at {_said(x, panel.x)}" for x, y in zip(*said.values(), strict=True)
    ]
    return trace | {"text": words, "hovertemplate": "%{text}<extra></extra>"}


def _said(value: float | None, axis: Axis) -> str:
    if value is None:
        return "–"
    return f"{100 * value:.1f} %" if axis.percent else f"{value:.4g}"


def _axis(axis: Axis) -> dict[str, Any]:
    made: dict[str, Any] = {"title": {"text": shown(axis.label)}, "gridcolor": "#e6e6e6", "zeroline": False}
    made |= {"automargin": True, "type": "log" if axis.scale == "log" else "linear"}
    low, high = axis.limits
    if axis.scale == "log":
        ends = [None if end is None else math.log10(end) for end in (low, high)]
    else:
        ends = [None if end is None else _places([end], axis)[0] for end in (low, high)]
    if ends[0] is not None and ends[1] is not None:
        made["range"] = ends
    elif ends != [None, None]:
        made |= {
            "autorangeoptions": {
                key: e for key, e in (("minallowed", ends[0]), ("maxallowed", ends[1])) if e is not None
            }
        }
    if axis.ticks is not None:
        made["tickvals"] = _places([place for place, _ in axis.ticks], axis)
        made["ticktext"] = [shown(words) for _, words in axis.ticks]
    elif axis.percent:
        made["tickformat"] = ".0%"
    return made


def _log_ticks(axis: Axis, values: Iterable[Numbers]) -> dict[str, Any]:
    """Plain numbers for a logarithmic axis: plotly writes "9, 8, 7" between two powers of ten."""
    every = np.concatenate([np.asarray(one, dtype=float) for one in values] or [np.zeros(0)])
    every = every[np.isfinite(every) & (every > 0)]
    if axis.scale != "log" or axis.ticks is not None or not every.size:
        return {}
    low, high = (float(every.min()), float(every.max()))
    low, high = (end or found for end, found in zip(axis.limits, (low, high), strict=True))
    places = log_places(low, high)
    return {"tickvals": places, "ticktext": [f"{place:g}" for place in places]}


def _shapes(panel: Panel) -> list[dict[str, Any]]:
    """The lines and areas across the panel."""
    made = []
    for span in panel.spans:
        across = "y" if span.axis == "x" else "x"
        own = panel.x if span.axis == "x" else panel.y
        ends = _places([span.at, span.at if span.to is None else span.to], own)
        shape: dict[str, Any] = {f"{span.axis}0": ends[0], f"{span.axis}1": ends[1], f"{across}0": 0, f"{across}1": 1}
        shape["layer"] = "below"
        shape |= {f"{across}ref": f"{across} domain", f"{span.axis}ref": span.axis, "opacity": span.alpha}
        if span.to is None:
            dash = "solid" if span.dash == chart.MARKS else span.dash
            shape |= {"type": "line", "line": {"color": span.color, "width": POINT * span.width, "dash": dash}}
        else:
            shape |= {"type": "rect", "fillcolor": span.color, "line": {"width": 0}}
        made.append(shape)
    return made


def _notes(panel: Panel) -> list[dict[str, Any]]:
    """Words in the panel and at its right."""
    small = {"showarrow": False, "xanchor": "left", "font": {"size": 12}}
    made = []
    for text in panel.texts:
        y = _places([text.y], panel.y)[0]
        at = {"x": 1.0, "xref": "paper"} if text.x is None else {"x": _places([text.x], panel.x)[0], "xref": "x"}
        made.append({**small, **at, "y": y, "yref": "y", "text": shown(text.words), "xshift": 6})
    if panel.corner:
        made.append({**small, "x": 0.02, "y": 0.98, "xref": "paper", "yref": "y domain", "text": shown(panel.corner)})
    return made


def _strip(panel: Panel) -> list[dict[str, Any]]:
    """One trace a rule, on the axis of rows below the curves."""
    traces = []
    for stop in panel.strip:
        name = shown(stop.name)
        own: dict[str, Any] = {"type": "scatter", "yaxis": "y2", "showlegend": False, "name": name}
        if stop.at is None:
            text = {"mode": "text", "text": [shown(stop.note)], "textposition": "middle right", "hoverinfo": "skip"}
            traces.append({**own, **text, "x": _places([0], panel.x), "y": [name], "textfont": {"color": "#777777"}})
            continue
        if len(stop.each) > 1:
            ends = _places([min(stop.each), max(stop.each)], panel.x)
            line = {"color": stop.color, "width": 3}
            traces.append(
                {**own, "mode": "lines", "x": ends, "y": [name] * 2, "line": line, "opacity": 0.4, "hoverinfo": "skip"}
            )
        symbol = SYMBOLS[stop.marker] + ("-open" if stop.beyond else "")
        mark = {"color": stop.color, "symbol": symbol, "size": 11, "line": {"width": 1, "color": "black"}}
        said = {"text": [f"{name} {shown(stop.words)}"], "hovertemplate": "%{text}<extra></extra>"}
        traces.append({**own, "mode": "markers", "x": _places([stop.at], panel.x), "y": [name], "marker": mark, **said})
    return traces


def plot(panel: Panel) -> dict[str, Any]:
    """Return one panel as a plain plotly figure."""
    traces: list[dict[str, Any]] = []
    seen: set[str] = set()
    for band in panel.bands:
        outline = {"type": "scatter", "mode": "lines", "line": {"width": 0}, "showlegend": False, "hoverinfo": "skip"}
        at, rgb = _places(band.x, panel.x), ", ".join(str(int(band.color[i : i + 2], 16)) for i in (1, 3, 5))
        filled = {"fill": "tonexty", "fillcolor": f"rgba({rgb}, 0.15)"}
        traces.append({**outline, "x": at, "y": _places(band.low, panel.y)})
        traces.append({**outline, "x": at, "y": _places(band.high, panel.y), **filled})
    for line in panel.lines:
        traces.append(_trace(line, panel, line.label not in seen))
        seen.add(line.label)
    x = _axis(panel.x) | _log_ticks(panel.x, (line.x for line in panel.lines))
    y = _axis(panel.y) | _log_ticks(panel.y, (line.y for line in panel.lines))
    below = ROW * (len(panel.strip) + 1) if panel.strip else 0
    height = HEIGHT + below
    layout: dict[str, Any] = {"xaxis": x, "yaxis": y, "shapes": _shapes(panel), "annotations": _notes(panel)}
    if panel.strip:
        share = below / height
        names = [shown(stop.name) for stop in panel.strip]
        rows = {
            "domain": [0, share - 0.03],
            "type": "category",
            "categoryarray": names,
            "range": [len(names) - 0.4, -0.6],
        }
        layout["yaxis"] = y | {"domain": [share + 0.02, 1]}
        layout["yaxis2"] = {
            **rows,
            "gridcolor": "#e6e6e6",
            "automargin": True,
            "anchor": "x",
            "fixedrange": True,
            "tickmode": "linear",
            "dtick": 1,
        }
        layout["xaxis"] = x | {"anchor": "y2"}
        traces += _strip(panel)
    right = 70 if any(text.x is None for text in panel.texts) else 15
    layout |= {"plot_bgcolor": "white", "paper_bgcolor": "white", "height": height, "hovermode": "closest"}
    layout |= {
        "margin": {"t": 32, "r": right, "l": 10, "b": 10},
        "legend": {"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom"},
    }
    return {"data": traces, "layout": layout}


def section(views: Views, message: str = "") -> Section:
    """Return one plotly figure for each panel; sizes start at the largest, all other choices at the first."""
    values = [ordered((key[i] for key in views.panels), known) for i, (_, known) in enumerate(views.choices)]
    made = Section([], message=message)
    for (label, _), options in zip(views.choices, values, strict=True):
        sizes = label == "training examples"
        if sizes:
            options.sort(key=int)
        made.choices.append((label, options, len(options) - 1 if sizes else 0))
    for places in itertools.product(*(range(len(options)) for options in values)):
        panel = views.panels.get(tuple(options[i] for options, i in zip(values, places, strict=True)))
        if panel is not None and not panel.note:
            made.figures["|".join(map(str, places))] = plot(panel)
    return made


def sections(tables: Mapping[str, pa.Table]) -> dict[str, Section]:
    """Return the interactive figures among some tables, by id, each with the sentence that it says."""
    found = {name: module for name, module in INTERACTIVE.items() if name in tables}
    return {name: section(module.views(tables[name]), module.says(tables[name])) for name, module in found.items()}
