"""Panels as matplotlib draws them: the description of `chart`, with nothing added."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from stopwise.figures import chart, style
from stopwise.figures.chart import Axis, Line, Panel, Stop

DASHES: dict[str, Any] = {chart.SOLID: "-", chart.DASHED: (0, (3, 1.5)), chart.DOTTED: (0, (1, 1.3)), chart.MARKS: ""}
ROW = 0.115  # inches: a line of the strip of rules
AXIS = 0.32  # inches: tick labels and the axis's name
TITLE = 0.17  # inches


def _line(ax: Axes, line: Line) -> None:
    marks: dict[str, Any] = {"marker": line.marker or "None", "markersize": line.size, "markevery": line.every}
    if line.open:
        marks |= {"markerfacecolor": "white", "markeredgewidth": 0.9}
    elif line.dash == chart.MARKS:
        marks |= {"markeredgewidth": 0 if line.alpha < 1 else 0.4, "markeredgecolor": "black"}
    if line.marker in ("|", "_"):
        marks |= {"markeredgecolor": line.color, "markeredgewidth": 1.2}
    look: dict[str, Any] = {
        "color": line.color,
        "linewidth": line.width,
        "alpha": line.alpha,
        "linestyle": DASHES[line.dash],
    }
    order: dict[str, Any] = {"zorder": 3} if line.dash == chart.MARKS else {}
    ax.plot(line.x, line.y, clip_on=line.dash != chart.MARKS, **look, **marks, **order)


def _scale(ax: Axes, name: str, axis: Axis) -> None:
    set_scale = getattr(ax, f"set_{name}scale")
    if axis.scale == "symlog":
        t = axis.threshold
        set_scale("function", functions=(lambda v: chart.warped(v, t), lambda v: chart.unwarped(v, t)))
    else:
        set_scale(axis.scale)


def _ticks(ax: Axes, name: str, axis: Axis) -> None:
    """Limits and ticks, once everything is drawn."""
    own, limit = getattr(ax, f"{name}axis"), getattr(ax, f"set_{name}lim")
    limit(*axis.limits)
    if axis.ticks is not None:
        own.set_ticks([place for place, _ in axis.ticks], [_shown(words) for _, words in axis.ticks])
        ax.minorticks_off()
    elif axis.scale == "log":
        style.plain_log(own)
    elif axis.percent:
        own.set_major_locator(MaxNLocator(5))
        own.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
    else:
        own.set_major_locator(MaxNLocator(5, integer=axis.whole))
        own.set_major_formatter(FuncFormatter(_plain))


def _plain(value: float, _: int | None = None) -> str:
    return f"{value:g}".replace("e-0", "e-").replace("-", "\N{MINUS SIGN}")


def _shown(text: str) -> str:
    """Text that matplotlib shows letter by letter, lines kept."""
    return "\n".join(style.plain(line, 400) for line in text.split("\n"))


def panel(ax: Axes, shown: Panel) -> None:
    """Draw one panel but its strip."""
    if shown.note:
        style.note(ax, shown.note)
        ax.set_title(_shown(shown.title), loc="left")
        return
    for name, axis in (("x", shown.x), ("y", shown.y)):
        _scale(ax, name, axis)
    for span in shown.spans:
        look: dict[str, Any] = {"color": span.color, "alpha": span.alpha, "zorder": 1}
        if span.to is None:
            across = ax.axvline if span.axis == "x" else ax.axhline
            across(span.at, linewidth=span.width, linestyle=DASHES[span.dash], **look)
        else:
            (ax.axvspan if span.axis == "x" else ax.axhspan)(span.at, span.to, linewidth=0, **look)
    for band in shown.bands:
        ax.fill_between(band.x, band.low, band.high, color=band.color, alpha=0.15, linewidth=0)
    for line in shown.lines:
        _line(ax, line)
    small: dict[str, Any] = {"fontsize": style.SMALL_FONT_SIZE, "textcoords": "offset points"}
    for text in shown.texts:
        place: dict[str, Any] = {"xy": (1.0 if text.x is None else text.x, text.y)}
        place["xycoords"] = ("axes fraction", "data") if text.x is None else "data"
        ax.annotate(_shown(text.words), xytext=(6, 0), va="center", **place, **small)
    if shown.corner:
        own: dict[str, Any] = {"transform": ax.transAxes, "va": "top", "fontsize": style.SMALL_FONT_SIZE}
        ax.text(0.04, 0.96, _shown(shown.corner), **own)
    if shown.square:
        ax.set_aspect("equal")
    ax.set_title(_shown(shown.title), loc="left")


def strip(ax: Axes, rows: Sequence[Stop], named: bool) -> None:
    """Draw the steps at which the rules stop, a row a rule; names at the left where they are asked for."""
    for i, stop in enumerate(rows):
        if stop.at is None:
            own: dict[str, Any] = {"transform": ax.get_yaxis_transform(), "va": "center_baseline"}
            ax.text(0.03, i, stop.note, fontsize=style.SMALL_FONT_SIZE, color=style.COLORS["grey"], **own)
            continue
        if len(stop.each) > 1:
            ends = [min(stop.each), max(stop.each)]
            ax.plot(ends, [i, i], color=stop.color, linewidth=1.2, alpha=0.4, solid_capstyle="butt")
        face = "white" if stop.beyond else stop.color
        look: dict[str, Any] = {"markerfacecolor": face, "markeredgecolor": stop.color if stop.beyond else "black"}
        size = 5.5 if stop.marker == "*" else 4.0
        edge = 0.8 if stop.beyond else 0.4
        ax.plot(stop.at, i, marker=stop.marker, markersize=size, markeredgewidth=edge, clip_on=False, zorder=4, **look)
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.set_yticks(range(len(rows)), [_shown(stop.name) for stop in rows])
    ax.tick_params(axis="y", length=0, labelleft=named)
    ax.spines["left"].set_visible(False)
    ax.grid(axis="x", visible=False)


def keys(panels: Sequence[Panel]) -> list[Any]:
    """One legend entry for each label, in the order in which they are drawn."""
    found: dict[str, Any] = {}
    for line in [line for shown in panels for line in shown.lines]:
        if line.label and line.label not in found:
            marks = {"marker": line.marker or "None", "markersize": line.size}
            marks |= {"markerfacecolor": "white"} if line.open else {}
            look = {"color": line.color, "linewidth": line.width, "linestyle": DASHES[line.dash]}
            found[line.label] = style.line_key(_shown(line.label), **look, **marks)
    areas: list[chart.Band | chart.Span] = []
    for shown in panels:
        areas += [*shown.bands, *shown.spans]
    for area in areas:
        if area.label and area.label not in found:
            thin = isinstance(area, chart.Span) and area.to is None and area.width < 2
            color, alpha = (area.color, area.alpha) if isinstance(area, chart.Span) else (style.COLORS["grey"], 0.3)
            key = style.line_key(_shown(area.label), color=color, alpha=alpha, linewidth=0.8 if thin else 4.0)
            found[area.label] = key
    if any(stop.beyond for shown in panels for stop in shown.strip):
        mark = {"marker": "o", "markerfacecolor": "white", "markeredgecolor": style.COLORS["grey"], "markersize": 4.0}
        found["beyond"] = style.line_key("open: stops after the run", linestyle="", **mark)
    if any(len(stop.each) > 1 for shown in panels for stop in shown.strip):
        found["each"] = style.line_key("stops of the seeds", color=style.COLORS["grey"], linewidth=1.2, alpha=0.5)
    return list(found.values())


@style.styled
def paint(
    rows: Sequence[Sequence[Panel | None]],
    message: str = "",
    *,
    height: float | Sequence[float] = 1.3,
    width: str | None = None,
    share_x: bool = False,
    share_y: bool = False,
    legend: int | None = None,
    own_legends: bool = False,
    extra: Sequence[Any] = (),
) -> Figure:
    """Draw a grid of panels (None: no panel) under one sentence, with one legend below, or one below each.

    ``height`` of a panel without its axis, in inches, of all rows or of each; ``width`` defaults to one column for one
    panel a row, else two. ``share_x`` holds for columns, ``share_y`` for rows. ``legend``: entries a row; ``extra``:
    entries that no single line has.
    """
    heights = [height] * len(rows) if isinstance(height, int | float) else list(height)
    across = max(map(len, rows))
    width = width or ("one-column" if across == 1 else "two-column")
    stops = max((len(p.strip) for row in rows for p in row if p), default=0)
    every = [p for row in rows for p in row if p]
    entries = [] if own_legends else [*keys(every), *extra]
    columns = legend or (5 if width == "two-column" else 2)
    legends = 0.14 * -(-len(entries) // columns)
    each = max(map(len, (keys([p]) for p in every)), default=0) if own_legends else 0
    titles = sum(any(p and p.title for p in row) for row in rows)
    axes_rows = 1 if share_x else len(rows)
    total = sum(heights) + len(rows) * ROW * (stops + bool(stops)) + TITLE * titles + AXIS * axes_rows
    total += legends + 0.1 + len(rows) * (0.16 * (each + 1.4) if each else 0)
    ratios = [part for h in heights for part in ((h, ROW * (stops + 0.5)) if stops else (h,))]
    sharing = {"sharex": "col" if share_x or stops else False, "sharey": "row" if share_y else False}
    figure, grid = style.new_figure(
        width, total, nrows=len(ratios), ncols=across, gridspec_kw={"height_ratios": ratios}, **sharing
    )
    drawn = grid[::2] if stops else grid
    for i, row in enumerate(rows):
        for j, shown in enumerate([*row, *[None] * (across - len(row))]):
            axes = [drawn[i, j], *([grid[2 * i + 1, j]] if stops else [])]
            if shown is None:
                for ax in axes:
                    ax.set_visible(False)
                continue
            panel(axes[0], shown)
            if stops:
                strip(axes[1], shown.strip, named=j == 0)
    for i, row in enumerate(rows):
        for j, shown in enumerate(row):
            if shown is not None and not shown.note:
                last = i == max(k for k in range(len(rows)) if j < len(rows[k]) and rows[k][j] is not None)
                below = grid[2 * i + 1, j] if stops else None
                before = row[j - 1] if j else None
                named = before is None or before.y.label != shown.y.label
                _outer(drawn[i, j], below, shown, (j == 0, last), (share_x, share_y), named)
                if own_legends:
                    place = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.22)}
                    drawn[i, j].legend(handles=keys([shown]), **place)
    style.outside_legend(figure, entries, columns)
    style.headline(figure, message)
    return figure


def _outer(
    ax: Axes, below: Axes | None, shown: Panel, at: tuple[bool, bool], share: tuple[bool, bool], named: bool
) -> None:
    """Names and tick labels: at the left and at the bottom only where axes are shared; ``named``: a name of its own."""
    first, last = at
    _ticks(ax, "x", shown.x)
    _ticks(ax, "y", shown.y)
    if first or named:
        ax.set_ylabel(_shown(shown.y.label))
    if share[1] and not first:
        ax.tick_params(labelleft=False)
    bottom = below or ax
    if last or not share[0]:
        bottom.set_xlabel(_shown(shown.x.label))
        bottom.tick_params(labelbottom=True)
    else:
        bottom.tick_params(labelbottom=False)
    if below is not None:
        ax.tick_params(labelbottom=False, bottom=False)
