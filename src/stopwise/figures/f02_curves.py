"""F2: curves of real fine-tuning with the mark of each stopping rule and the linearised prediction over them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import ScaledTranslation

from stopwise.figures import style
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
        pa.field("objective", pa.string()),  # what was minimised; empty: squared
    ]
)
LOSSES = {"squared": "squared loss", "cross_entropy": "cross-entropy"}
KINDS = {"measured": "", "linearised": "linearised_"}  # kind -> prefix of the columns of a trajectory
MARK = 5.0  # points: size of a rule's mark, and the distance of marks that would cover each other


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


def _panels(data: pd.DataFrame) -> list[tuple[str, list[tuple[str, pd.DataFrame]]]]:
    """The rows of the figure, each a task and its panels: the first start at up to three sizes, then every start.

    A task with one start has no row of starts; where all tasks have one size and one start, that is the whole figure.
    """
    starts, tasks = ordered(data["start"], style.STARTS), ordered(data["task"], style.TASKS)
    rows = []
    for task in tasks:
        own = data[(data["task"] == task) & (data["start"] == starts[0])]
        who = f"{style.plain(starts[0])} start, " if len(starts) > 1 else ""
        sizes = [(f"{who}n = {n}", own[own["n"] == n]) for n in spread(ordered(own["n"]), 3)]
        rows.append((task, sizes))
    for task in tasks:
        own = data[data["task"] == task]
        held = ordered(own["start"], style.STARTS)
        largest = {start: own[own["start"] == start]["n"].max() for start in held}
        if len(held) > 1:
            panels = [(s, own[(own["start"] == s) & (own["n"] == n)]) for s, n in largest.items()]
            rows.append((task, [(f"{style.plain(s)} start, n = {largest[s]}", one) for s, one in panels]))
    return [(task, panels) for task, panels in rows if panels]


def over_seeds(data: pd.DataFrame) -> pd.DataFrame:
    """The runs of one start, task and size as one: mean loss at every step that all seeds reached, with its range.

    A rule stops at the median step of the seeds in which it answers, and is marked on the mean test curve; its loss is
    empty when that is after the last measured step.
    """
    run, curve = ["start", "task", "n"], ["kind", "split", "step"]
    measured = data[(data["kind"] != "rule") & np.isfinite(data["loss"])]
    means = measured.groupby([*run, *curve])["loss"].agg(["mean", "min", "max", "count"]).reset_index()
    # From where a seed's run ended, the mean would jump to that of the others.
    means = means[means["count"] == means.groupby([*run, "kind", "split"])["count"].transform("max")]
    means = means.rename(columns={"mean": "loss", "min": "low", "max": "high"}).drop(columns="count")
    rules = data[data["kind"] == "rule"].groupby([*run, "rule"])["step"].median().reset_index()
    marks = []
    for _, one in rules.iterrows():
        same = (means[run] == one[run]).all(axis=1) & (means["kind"] == "measured") & (means["split"] == "test")
        test = means[same].sort_values("step")
        known = not test.empty and one["step"] <= test["step"].max()
        loss = np.interp(one["step"], test["step"], test["loss"]) if known else np.nan
        marks.append({**one, "kind": "rule", "split": "test", "loss": loss})
    columns = [*run, *curve, "loss", "low", "high", "rule"]
    return pd.concat([means, pd.DataFrame(marks, columns=columns)] if marks else [means]).reindex(columns=columns)


def _curves(ax: Axes, rows: pd.DataFrame) -> None:
    """Measured losses as lines in the band of the seeds, the linearised ones dashed."""
    for kind, split in [(k, s) for k in KINDS for s in style.SPLITS]:
        one = rows[(rows["kind"] == kind) & (rows["split"] == split)].sort_values("step")
        dashed = {"linestyle": (0, (3, 1.5)), "linewidth": 0.9} if kind == "linearised" else {"linewidth": 1.2}
        ax.plot(one["step"], one["loss"], color=style.SPLITS[split].color, **dashed)
        if kind == "measured" and (one["high"] > one["low"]).any():
            band: dict[str, Any] = {"color": style.SPLITS[split].color, "alpha": 0.15, "linewidth": 0}
            ax.fill_between(one["step"], one["low"], one["high"], **band)


def _scales(ax: Axes, rows: pd.DataFrame) -> None:
    """Steps on a symmetric log axis from two decades on; losses on a log axis from one decade on."""
    curves = rows[rows["kind"] != "rule"]
    last = curves["step"].max()
    if last > 100:
        ax.set_xscale("symlog", linthresh=1, linscale=0.4)
        ax.minorticks_off()
    ax.set_xlim(left=-0.02 * last if last <= 100 else -0.2)
    test = curves.loc[(curves["split"] == "test") & (curves["kind"] == "measured"), "loss"]
    losses = curves.loc[curves["loss"] > 0, "loss"]
    if not losses.empty and losses.max() > 10 * losses.min():
        ax.set_yscale("log")
        # a training loss that falls to nothing must not press the test curve flat
        floor = 0.2 * test[test > 0].min() if (test > 0).any() else losses.min()
        ax.set_ylim(bottom=max(0.8 * losses.min(), floor))
        style.plain_log(ax.yaxis)


def _marks(ax: Axes, rows: pd.DataFrame, looks: dict[str, style.Look]) -> None:
    """Mark each rule on the test curve; marks of (nearly) the same step are stacked, away from the panel's edge.

    A rule that stops after the last measured step is an open mark at the right edge.
    """
    test = rows[(rows["kind"] == "measured") & (rows["split"] == "test")].sort_values("step")
    rules = rows[(rows["kind"] == "rule") & rows["step"].notna()]
    if test.empty:
        return
    last_step, last_loss = test[["step", "loss"]].iloc[-1]
    points: Any = ax.get_figure()
    height, last_x = 0, -np.inf
    order = {rule: i for i, rule in enumerate(ordered(rules["rule"], style.RULES))}
    rules = rules.assign(order=rules["rule"].map(order), at=rules["step"].clip(upper=last_step))
    low, high = ax.transScale.transform(np.c_[ax.get_xlim(), ax.get_ylim()])
    for _, one in rules.sort_values(["at", "order"]).iterrows():
        beyond = one["step"] > last_step or not np.isfinite(one["loss"])
        y = last_loss if beyond else one["loss"]
        place = (ax.transScale.transform((one["at"], y)) - low) / (high - low)
        if not -0.1 < place[1] < 1.1:  # a loss that is no number on this axis; the mark would hang outside the panel
            continue
        height = height + 1 if abs(place[0] - last_x) < 0.05 else 0
        last_x = last_x if height else place[0]
        upward = place[1] < 0.55
        shift = ScaledTranslation(0, (1 if upward else -1) * height * MARK * 1.15 / 72, points.dpi_scale_trans)
        look = looks[one["rule"]]
        ax.plot(
            one["at"],
            y,
            linestyle="",
            marker=look.marker,
            markersize=MARK if look.marker != "*" else MARK * 1.4,
            markerfacecolor="white" if beyond else look.color,
            markeredgecolor=look.color if beyond else "black",
            markeredgewidth=0.9 if beyond else 0.4,
            transform=ax.transData + shift,
            clip_on=False,
            zorder=4,
        )


def _keys(data: pd.DataFrame, rules: Iterable[str], looks: dict[str, style.Look]) -> list:
    keys = [style.line_key(split, color=look.color) for split, look in style.SPLITS.items()]
    if (data["kind"] == "linearised").any():
        keys.append(style.line_key("linearised", color="black", linewidth=0.9, linestyle=(0, (3, 1.5))))
    if (data["high"] > data["low"]).any():
        keys.append(style.line_key("range of the seeds", color=style.COLORS["grey"], linewidth=4.0, alpha=0.3))
    for rule in rules:
        mark = {"marker": looks[rule].marker, "color": looks[rule].color, "markeredgecolor": "black"}
        keys.append(style.line_key(style.rule_label(rule), linestyle="", markersize=MARK, markeredgewidth=0.4, **mark))
    rows = data[data["kind"] == "rule"]
    if rows["loss"].isna().any():
        mark = {"marker": "o", "markerfacecolor": "white", "markeredgecolor": style.COLORS["grey"]}
        keys.append(style.line_key("stops after the run", linestyle="", markersize=MARK, **mark))
    return keys


def _loss(data: pd.DataFrame) -> str:
    """Return the name of the loss of the curves; "loss" where runs of several are drawn together."""
    found = {LOSSES.get(name, style.plain(name)) for name in data["objective"].dropna()} or {LOSSES["squared"]}
    return found.pop() if len(found) == 1 else "loss"


@style.styled
def draw(table: pa.Table) -> Figure:
    """Draw the mean over seeds and its range: tasks down, up to three sizes across; then all starts at the largest."""
    rows = frame(table, COLUMNS, "F2")
    loss = _loss(rows)
    data = over_seeds(rows)
    lines = _panels(data)
    if not lines:
        figure, axes = style.new_figure("two-column", height=1.5)
        style.note(axes[0, 0], "no training run")
        return figure
    rules = ordered(data["rule"], style.RULES)
    looks = style.looks(rules, style.RULES)
    columns = max(len(panels) for _, panels in lines)
    width, across = ("two-column", 6) if columns > 1 else ("one-column", 3)
    keys = _keys(data, rules, looks)
    titles = [[title for title, _ in panels] for _, panels in lines]
    titled = [i == 0 or titles[i] != titles[i - 1] for i in range(len(lines))]
    height = 0.4 + 1.45 * len(lines) + 0.15 * (sum(titled) - (-len(keys) // across))
    figure, axes = style.new_figure(width, height, nrows=len(lines), ncols=columns, sharex="col", sharey="row")
    for i, (task, panels) in enumerate(lines):
        for ax, (title, rows) in zip(axes[i], panels, strict=False):
            _curves(ax, rows)
            if titled[i]:
                ax.set_title(title)
        everything = pd.concat([rows for _, rows in panels])
        for ax in axes[i]:
            _scales(ax, everything)
        for ax, (_, rows) in zip(axes[i], panels, strict=False):
            _marks(ax, rows, looks)
        for ax in axes[i, len(panels) :]:
            ax.set_visible(False)
        axes[i, 0].set_ylabel(f"{style.plain(task)}\n{loss}")
    for ax in axes[-1]:
        ax.set_xlabel("optimizer step")
        if ax.get_xscale() == "linear":
            ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    style.outside_legend(figure, keys, across)
    return figure
