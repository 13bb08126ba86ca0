"""The figure of advice under a schedule: log-loss and accuracy by length of training, with the length to choose."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

from stopwise.artifacts.tables import schema
from stopwise.figures import style
from stopwise.figures.tables import frame

TICKS = [t * 10**k for k in range(-2, 4) for t in (1, 2, 5)]


@style.styled
def draw(table: pa.Table) -> Figure:
    """Draw both panels from the table of lengths; bands are 95 % intervals of examples left out."""
    data = frame(table, schema("advice_lengths"), "advice_lengths").sort_values("steps")
    figure, axes = style.new_figure("two-column", height=2.6, ncols=2)
    _panel(axes[0, 0], data, "left_out_loss", "loss_low", "loss_high")
    axes[0, 0].plot(data["epochs"], data["expected_loss"], color=style.COLORS["wine"], linestyle=(0, (4, 2)))
    shown = data.loc[np.isfinite(data["expected_loss"]), "expected_loss"]
    axes[0, 0].set_ylim(0, 1.15 * min(data["loss_high"].iloc[0], 3 * shown.min()) if len(shown) else None)
    axes[0, 0].set(ylabel="log-loss", title="How long to train")
    _panel(axes[0, 1], data, "accuracy", "accuracy_low", "accuracy_high")
    axes[0, 1].axhline(data["majority"].iloc[0], color="black", linewidth=0.9, linestyle=(0, (1, 1.5)))
    axes[0, 1].set(ylabel="accuracy", title="What to expect", ylim=(0, 1.02))
    axes[0, 1].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))
    keys = [
        style.line_key("examples left out", color=style.COLORS["blue"], marker="o"),
        style.line_key("expected by the rule", color=style.COLORS["wine"], linestyle=(0, (4, 2))),
        style.line_key("the most frequent label", color="black", linewidth=0.9, linestyle=(0, (1, 1.5))),
    ]
    if data["folds_loss"].notna().any():
        _folds(axes[0, 0], data, "folds_loss")
        _folds(axes[0, 1], data, "folds_accuracy")
        keys.append(style.line_key("real folds", color=style.COLORS["green"], marker="s"))
    style.outside_legend(figure, keys, len(keys))
    return figure


def _folds(ax: Axes, data: pd.DataFrame, value: str) -> None:
    ax.plot(data["epochs"], data[value], color=style.COLORS["green"], marker="s", markersize=3.5)


def _panel(ax: Axes, data: pd.DataFrame, value: str, low: str, high: str) -> None:
    blue, epochs = style.COLORS["blue"], data["epochs"]
    ax.fill_between(epochs, data[low], data[high], color=blue, alpha=0.12, lw=0)
    ax.plot(epochs, data[value], color=blue, marker="o")
    within = data.loc[data["within"], "epochs"]
    ax.axvspan(within.min(), within.max(), color="black", alpha=0.05, lw=0)
    ax.axvline(float(epochs[data["chosen"]].iloc[0]), color="black", linewidth=1.0, zorder=1)
    first = float(epochs[epochs > 0].min())
    ax.set_xscale("symlog", linthresh=first, linscale=0.5)
    ax.set_xlim(-0.15 * first, 1.1 * epochs.max())
    ax.xaxis.set_major_locator(FixedLocator([0, *[t for t in TICKS if first <= t <= epochs.max()]]))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda number, _: f"{number:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.minorticks_off()
    ax.set_xlabel("epochs of a training of its own")
