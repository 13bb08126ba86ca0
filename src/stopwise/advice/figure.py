"""The figure of ``stopwise advise``: held-out accuracy along training with every rule's stop, and by sample size."""

from __future__ import annotations

import pandas as pd
import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter
from matplotlib.transforms import offset_copy

from stopwise.figures import style
from stopwise.figures.tables import frame, ordered

COLUMNS = pa.schema(
    [
        pa.field("kind", pa.string(), nullable=False),  # path, size, rule or level
        pa.field("name", pa.string()),  # the rule, or the level
        pa.field("chosen", pa.bool_(), nullable=False),
        pa.field("n", pa.int64(), nullable=False),
        pa.field("step", pa.int64()),
        pa.field("eta", pa.float64()),
        pa.field("accuracy", pa.float64()),
        pa.field("accuracy_low", pa.float64()),
        pa.field("accuracy_high", pa.float64()),
        pa.field("loss", pa.float64()),
    ]
)
LEVELS = {"zero_shot": ("the prompt alone", (0, (1, 1.5))), "with_offset": ("prompt and offset", (0, (4, 2)))}
MARK = 5.5  # from one mark of a stack to the next, in points
TICKS = [t * 10**k for k in range(5) for t in (1, 2, 5)]


@style.styled
def draw(table: pa.Table) -> Figure:
    """Draw both panels; no rule is ``chosen`` in the table when the answer is not to train.

    Accuracies are those of examples left out of the fit, bands 95 % intervals.
    """
    data = frame(table, COLUMNS, "advice")
    figure, axes = style.new_figure("two-column", height=3.0, ncols=2, sharey=True, width_ratios=[3, 2])
    looks = style.looks(ordered(data.loc[data["kind"] == "rule", "name"], style.RULES), style.RULES)
    _training(axes[0, 0], data, looks)
    _data(axes[0, 1], data)
    axes[0, 0].set_ylabel("accuracy on examples left out")
    axes[0, 0].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))
    shown = data[["accuracy", "accuracy_low", "accuracy_high"]]
    axes[0, 0].set_ylim(max(0.0, shown.min(axis=None) - 0.03), min(1.02, shown.max(axis=None) + 0.03))
    style.outside_legend(figure, _keys(data, looks), 4)
    return figure


def _training(ax: Axes, data: pd.DataFrame, looks: dict[str, style.Look]) -> None:
    path = data[data["kind"] == "path"].sort_values("step")
    ax.fill_between(
        path["step"], path["accuracy_low"], path["accuracy_high"], color=style.COLORS["blue"], alpha=0.12, lw=0
    )
    ax.plot(path["step"], path["accuracy"], color=style.COLORS["blue"])
    for _, level in data[data["kind"] == "level"].iterrows():
        ax.axhline(level["accuracy"], color="black", linewidth=0.9, linestyle=LEVELS[level["name"]][1])
    rules = data[(data["kind"] == "rule") & data["step"].notna()].sort_values("chosen")
    last = path["step"].max()
    ax.set_xscale("symlog", linthresh=1, linscale=0.5)
    ax.set_xlim(-0.15, 1.15 * last)
    ax.xaxis.set_major_locator(FixedLocator([0, *[t for t in TICKS if t <= last]]))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.minorticks_off()
    # Marks of one step are stacked, the followed rule's on the curve itself.
    above = rules[::-1].groupby("step").cumcount()
    canvas = ax.get_figure(root=True)
    for index, one in rules.iterrows():
        look = looks[one["name"]]
        if one["chosen"]:
            ax.axvline(one["step"], color=look.color, linewidth=1.0, zorder=1)
        size = 6.5 if one["chosen"] else 4.5
        ax.plot(
            one["step"],
            one["accuracy"],
            linestyle="",
            marker=look.marker,
            markersize=size,
            color=look.color,
            markeredgecolor="black",
            markeredgewidth=0.5,
            clip_on=False,
            zorder=4,
            transform=offset_copy(ax.transData, canvas, y=MARK * above[index], units="points"),
        )
    ax.set_xlabel("training steps")
    chosen = rules[rules["chosen"]]
    title = "No training advised" if chosen.empty else f"When to stop: after {chosen['step'].iloc[0]:.0f} steps"
    ax.set_title(title)


def _data(ax: Axes, data: pd.DataFrame) -> None:
    sizes = data[data["kind"] == "size"].sort_values("n")
    ax.plot(sizes["n"], sizes["accuracy"], color=style.COLORS["blue"], marker="o")
    ax.vlines(sizes["n"], sizes["accuracy_low"], sizes["accuracy_high"], color=style.COLORS["blue"], linewidth=0.8)
    for _, level in data[data["kind"] == "level"].iterrows():
        ax.axhline(level["accuracy"], color="black", linewidth=0.9, linestyle=LEVELS[level["name"]][1])
    ax.set_xscale("log")
    ax.set_xticks(sizes["n"], [str(n) for n in sizes["n"]])
    ax.minorticks_off()
    ax.set_xlim(0.8 * sizes["n"].min(), 1.25 * sizes["n"].max())
    ax.set(xlabel="examples trained on", title="Would more data help?")


def _keys(data: pd.DataFrame, looks: dict[str, style.Look]) -> list:
    keys = [style.line_key("predicted for training", color=style.COLORS["blue"])]
    for level in data.loc[data["kind"] == "level", "name"]:
        label, dash = LEVELS[level]
        keys.append(style.line_key(label, color="black", linewidth=0.9, linestyle=dash))
    rules = data[(data["kind"] == "rule") & data["step"].notna()]
    for rule in ordered(rules["name"], style.RULES):
        chosen = rules.loc[rules["name"] == rule, "chosen"].any()
        look = looks[rule]
        keys.append(
            style.line_key(
                f"{style.rule_label(rule)}{' (followed)' if chosen else ''}",
                linestyle="",
                marker=look.marker,
                markersize=6.5 if chosen else 4.5,
                color=look.color,
                markeredgecolor="black",
                markeredgewidth=0.5,
            )
        )
    return keys
