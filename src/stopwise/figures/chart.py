"""What a panel shows, said once: `paint` draws it with matplotlib, `stopwise.report.interactive` on the results page.

A description holds numbers, names and looks. Names are as they are in the data: who draws them escapes them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

Numbers = Sequence[float] | np.ndarray
SOLID, DASHED, DOTTED, MARKS = "solid", "dash", "dot", "none"


@dataclass(frozen=True)
class Axis:
    """One axis. ``scale`` is linear, log, or symlog: ``warped``, which has a place for 0 and below.

    ``limits`` may leave an end to the data (None), and run downwards. ``ticks`` are (place, words) pairs; None leaves
    them to whoever draws. ``whole`` puts them at whole numbers only, ``percent`` writes shares.
    """

    label: str = ""
    scale: str = "linear"
    threshold: float = 1.0
    limits: tuple[float | None, float | None] = (None, None)
    ticks: tuple[tuple[float, str], ...] | None = None
    whole: bool = False
    percent: bool = False


@dataclass(frozen=True)
class Line:
    """A curve, or marks alone (``dash`` is MARKS); ``label`` is its entry in the legend, none when empty.

    ``width`` and ``size`` are points of a printed figure. ``words`` say what each mark is, for those who point at it.
    """

    x: Numbers
    y: Numbers
    color: str
    label: str = ""
    dash: str = SOLID
    width: float = 1.2
    marker: str = ""
    size: float = 3.5
    open: bool = False
    every: int = 1
    alpha: float = 1.0
    words: Sequence[str] = ()


@dataclass(frozen=True)
class Band:
    """The area between two curves over the same x."""

    x: Numbers
    low: Numbers
    high: Numbers
    color: str
    label: str = ""


@dataclass(frozen=True)
class Span:
    """A line across the whole panel at ``at`` on axis x or y; with ``to``, the area between the two."""

    axis: str
    at: float
    color: str
    dash: str = SOLID
    width: float = 0.8
    alpha: float = 1.0
    to: float | None = None
    label: str = ""


@dataclass(frozen=True)
class Text:
    """Words at a place of the data, to the right of it; without x at the panel's right edge, outside."""

    words: str
    y: float
    x: float | None = None


@dataclass(frozen=True)
class Stop:
    """One rule on the strip below a panel: ``at`` is its step, ``each`` those of the seeds, ``beyond`` after the run.

    A rule without a step says ``note`` in its row.
    """

    name: str
    color: str
    marker: str
    at: float | None = None
    each: tuple[float, ...] = ()
    beyond: bool = False
    words: str = ""
    note: str = "no answer"


@dataclass(frozen=True)
class Panel:
    """All that one panel shows. ``note`` says why it holds nothing."""

    title: str = ""
    x: Axis = field(default_factory=Axis)
    y: Axis = field(default_factory=Axis)
    lines: tuple[Line, ...] = ()
    bands: tuple[Band, ...] = ()
    spans: tuple[Span, ...] = ()
    texts: tuple[Text, ...] = ()
    corner: str = ""  # words in the upper left corner
    strip: tuple[Stop, ...] = ()
    note: str = ""
    square: bool = False

    def titled(self, title: str) -> Panel:
        """Return the panel under another title."""
        return replace(self, title=title)


@dataclass(frozen=True)
class Views:
    """A figure's panels by what a reader can choose: the names of the choices, and the values of each panel's."""

    choices: tuple[tuple[str, tuple[str, ...]], ...]  # label, and known values in their order
    panels: Mapping[Any, Panel]


def warped(values: Iterable[float] | np.ndarray, threshold: float) -> np.ndarray:
    """Return sign(v) log10(1 + |v| / threshold): about linear below the threshold, logarithmic above."""
    v = np.asarray(values, dtype=float)
    return np.sign(v) * np.log10(1 + np.abs(v) / threshold)


def unwarped(values: Iterable[float] | np.ndarray, threshold: float) -> np.ndarray:
    """Return the inverse of ``warped``."""
    v = np.asarray(values, dtype=float)
    return np.sign(v) * threshold * (10 ** np.abs(v) - 1)


def log_multiples(low: float, high: float) -> tuple[float, ...]:
    """Return which multiples of the powers of ten a logarithmic axis names: the more, the fewer decades it has."""
    if high < 4 * low:
        return (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
    return (1.0, 2.0, 5.0) if high < 100 * low else (1.0,)


def log_places(low: float, high: float, margin: float = 1.2) -> list[float]:
    """Return the numbers that a logarithmic axis from low to high names, those just outside too; at least two."""
    ends = low / margin, high * margin
    decades = range(math.floor(math.log10(ends[0])), math.ceil(math.log10(ends[1])) + 1)
    every = max(1, -(-len(decades) // 8))
    found = [m * 10.0**k for k in decades if k % every == 0 for m in log_multiples(low, high)]
    inside = [float(f"{place:.3g}") for place in found if ends[0] <= place <= ends[1]]
    return inside if len(inside) >= 2 else [float(f"{end:.2g}") for end in (low, high)]


def symlog(label: str, values: Iterable[float], threshold: float, margin: float = 0.04, most: int = 6) -> Axis:
    """Return an axis for numbers of both signs and of many sizes: 0 has a place, and the data fill it.

    Linear where nothing is more than ten thresholds away from 0.
    """
    found = np.asarray([v for v in values if math.isfinite(v)], dtype=float)
    if not found.size or np.abs(found).max() <= 10 * threshold:
        return Axis(label)
    low, high = float(found.min()), float(found.max())
    ends = warped([low, high], threshold)
    room = margin * float(ends[1] - ends[0])
    limits = unwarped([ends[0] - room, ends[1] + room], threshold)
    top = math.ceil(math.log10(np.abs(found).max()))
    decades = [10.0**k for k in range(round(math.log10(threshold)), top + 1)]
    sizes = decades if sum(low <= d <= high for d in decades) >= 2 else [m * d for d in decades for m in (1, 2, 5)]
    inside = [v for v in (*(-s for s in reversed(sizes)), 0.0, *sizes) if low <= v <= high]
    step = max(1, -(-len(inside) // most))
    zero = inside.index(0.0) if 0.0 in inside else 0
    kept = [v for i, v in enumerate(inside) if (i - zero) % step == 0]
    ticks = tuple((v, f"{v:g}".replace("-", "\N{MINUS SIGN}")) for v in kept)
    return Axis(label, "symlog", threshold, (float(limits[0]), float(limits[1])), ticks)
