"""One look for every figure: sizes, fonts, colours and markers, and a writer whose bytes depend on the table only.

Draw on `new_figure`, wrap each `draw` in `styled`, write with `save`. pyplot is never used: drawing changes nothing
outside the figure.
"""

from __future__ import annotations

import functools
import os
import textwrap
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from stopwise.figures.chart import log_multiples
from stopwise.stopping import registry as rule_names

P = ParamSpec("P")
R = TypeVar("R")

WIDTHS = {"one-column": 3.4, "two-column": 7.0}  # inches, the column widths of the common two-column journals

# Okabe and Ito, Color Universal Design (2008), a neutral grey, and the wine of Tol's muted scheme (2021): told apart by
# all common kinds of colour vision.
COLORS = {
    "black": "#000000",
    "orange": "#E69F00",
    "skyblue": "#56B4E9",
    "green": "#009E73",
    "yellow": "#F0E442",
    "blue": "#0072B2",
    "vermilion": "#D55E00",
    "purple": "#CC79A7",
    "grey": "#7F7F7F",
    "wine": "#882255",
}
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "h", "p", "d")

FONT_SIZE = 8.0
SMALL_FONT_SIZE = 7.0  # the smallest text of any figure, in points, at the printed width

RC: Any = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same letters, and bytes, on every machine
    "font.size": FONT_SIZE,
    "axes.titlesize": FONT_SIZE,
    "axes.labelsize": FONT_SIZE,
    "xtick.labelsize": SMALL_FONT_SIZE,
    "ytick.labelsize": SMALL_FONT_SIZE,
    "legend.fontsize": SMALL_FONT_SIZE,
    "legend.title_fontsize": SMALL_FONT_SIZE,
    "figure.titlesize": FONT_SIZE,
    "legend.frameon": False,
    "legend.handlelength": 1.6,
    "legend.columnspacing": 1.2,
    "legend.handletextpad": 0.5,
    "legend.labelspacing": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.2,
    "lines.markersize": 4.0,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.minor.width": 0.4,
    "ytick.minor.width": 0.4,
    "patch.linewidth": 0.6,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "svg.fonttype": "path",  # a reader without the font sees the same figure
    "svg.hashsalt": "stopwise",  # element ids would be random otherwise
    "figure.constrained_layout.w_pad": 0.03,
    "figure.constrained_layout.h_pad": 0.03,
}


@dataclass(frozen=True)
class Look:
    """The colour and marker that a name keeps in every figure."""

    color: str
    marker: str


def _looks(pairs: Mapping[str, tuple[str, str]]) -> dict[str, Look]:
    return {name: Look(COLORS[color], marker) for name, (color, marker) in pairs.items()}


# Every rule of the registry has a look here: a colour of COLORS and a marker that no other rule has together.
RULE_LOOKS = {
    "worst_case": ("vermilion", "v"),
    "balance": ("purple", "P"),
    "sure": ("blue", "o"),
    "gcv": ("green", "s"),
    "loo": ("orange", "^"),
    "loo_shortcut": ("yellow", "<"),
    "bayes": ("wine", "h"),
    "discrepancy": ("skyblue", "D"),
    "holdout": ("black", "X"),
    "oracle": ("grey", "*"),
}


def _rule_looks() -> dict[str, Look]:
    """Return the look of every rule of the registry, in its order. Raises ValueError for one without a look."""
    for rule in rule_names.RULES:
        if rule not in RULE_LOOKS:
            raise ValueError(
                f"the rule {rule!r} of {rule_names.__name__} has no look: give it a colour and a marker in RULE_LOOKS"
                f" of {__name__}"
            )
    return _looks({rule: RULE_LOOKS[rule] for rule in rule_names.RULES})


RULES = _rule_looks()
TASKS = _looks(
    {
        "movie": ("blue", "o"),
        "amazon": ("orange", "s"),
        "spam": ("green", "^"),
        "trec": ("purple", "D"),
        "tweets": ("skyblue", "v"),
        "nyt": ("vermilion", "P"),
        "privacyqa": ("yellow", "X"),
        "headlines": ("black", "h"),
    }
)
SPLITS = _looks({"train": ("grey", "o"), "validation": ("skyblue", "s"), "test": ("black", "^")})
STARTS = _looks({"pretrained": ("blue", "o"), "mixed": ("orange", "s"), "random": ("vermilion", "^")})


def looks(names: Iterable[str], known: Mapping[str, Look] = TASKS) -> dict[str, Look]:
    """Give each name its look: the known ones their own, the others one that nobody in `names` has while any is left.

    The choice depends on the set of names only, not on their order. A name that is not known keeps its look from figure
    to figure unless another one of the same figure has it already.
    """
    wanted = sorted(set(names))
    chosen = {name: known[name] for name in wanted if name in known}
    palette = [
        color for key, color in COLORS.items() if key not in ("grey", "yellow")
    ]  # yellow lines are faint on white
    count = len(palette)
    pairs = [(i % count, (i % count + i // count) % len(_MARKERS)) for i in range(count * len(_MARKERS))]
    choices = [Look(palette[color], _MARKERS[marker]) for color, marker in pairs]
    for name in wanted:
        if name in chosen:
            continue
        taken = set(chosen.values())
        colors = {look.color for look in taken}
        free = [c for c in choices if c.color not in colors] or [c for c in choices if c not in taken]
        free = free or choices
        chosen[name] = free[zlib.crc32(name.encode()) % min(len(free), count)]
    return chosen


def cut(text: object, limit: int = 28) -> str:
    """Text on one line, cut to `limit` letters."""
    shown = " ".join(str(text).split())
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


def plain(text: object, limit: int = 28) -> str:
    """Text that matplotlib shows letter by letter (no mathematics between dollar signs), cut to `limit` letters."""
    shown = cut(text, limit).replace("$", r"\$")
    # matplotlib hides a legend entry whose label starts with an underscore
    return "\u200a" + shown if shown.startswith("_") else shown


def rule_label(rule: str) -> str:
    """Name of a stopping rule as a figure writes it."""
    return cut(rule.replace("_", " "))


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """Run a drawing function under the settings of `RC`, whatever the caller's own settings are."""

    @functools.wraps(draw)
    def inside(*args: P.args, **kwargs: P.kwargs) -> R:
        with mpl.rc_context():
            mpl.rcdefaults()
            mpl.rcParams.update(RC)
            return draw(*args, **kwargs)

    return inside


@styled
def new_figure(width: str = "one-column", height: float | None = None, **subplots: Any) -> tuple[Figure, np.ndarray]:
    """Make a figure and its axes, laid out so that labels do not overlap.

    `width` is "one-column" or "two-column", `height` is in inches (default: 0.72 of the width). `subplots` goes to
    `Figure.subplots`. The axes are always a two-dimensional array [rows, columns]. ValueError for an unknown width.
    """
    if width not in WIDTHS:
        raise ValueError(f"figure width {width!r} is not one of {', '.join(WIDTHS)}")
    inches = WIDTHS[width]
    figure = Figure(figsize=(inches, height if height is not None else 0.72 * inches), layout="constrained")
    return figure, figure.subplots(**{**subplots, "squeeze": False})


def line_key(label: str, **kwargs: Any) -> Line2D:
    """Legend entry for a line or a marker that stands for several drawn ones."""
    return Line2D([], [], label=label, **kwargs)


def outside_legend(figure: Figure, handles: Sequence[Any], columns: int) -> None:
    """Put one legend under all panels."""
    if handles:
        figure.legend(handles=list(handles), loc="outside lower center", ncols=min(columns, len(handles)))


def headline(figure: Figure, text: str) -> None:
    """Put one sentence over all panels, at the left, on as many lines as it needs; the figure grows by them."""
    if not text:
        return
    width, height = figure.get_size_inches()
    letters = int(width * 72 / (0.585 * FONT_SIZE))
    lines = textwrap.wrap(plain(text, 400), letters)
    figure.set_size_inches(width, height + 0.15 * len(lines) + 0.02)
    figure.suptitle("\n".join(lines), x=0.01, ha="left", fontweight="bold", fontsize=FONT_SIZE)


def plain_log(axis: Any) -> None:
    """Label a logarithmic axis, its limits already set, with plain numbers: the more per decade, the fewer decades."""
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=log_multiples(low, high)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def note(ax: Any, text: str) -> None:
    """Say inside a panel why it holds no data."""
    ax.text(
        0.5, 0.5, text, transform=ax.transAxes, ha="center", va="center", color=COLORS["grey"], fontsize=SMALL_FONT_SIZE
    )
    ax.set_xticks([])
    ax.set_yticks([])


@styled
def save(figure: Figure, stem: str | os.PathLike[str]) -> list[Path]:
    """Write `stem`.svg and `stem`.png (200 dpi), each to a temporary name and renamed; equal figures give equal bytes.

    Returns the two paths. The folder is made when absent.
    """
    target = Path(stem)
    target.parent.mkdir(parents=True, exist_ok=True)
    metadata: dict[str, dict[str, None]] = {"svg": {"Date": None, "Creator": None}, "png": {"Software": None}}
    written = []
    for kind, entries in metadata.items():
        path = target.with_name(f"{target.name}.{kind}")
        part = target.with_name(f"{target.name}.{kind}.part")
        try:
            figure.savefig(part, format=kind, dpi=200, metadata=entries)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
        written.append(path)
    return written
