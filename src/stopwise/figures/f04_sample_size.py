"""F4: test error against the number of training examples, the measured slope beside the one the spectrum predicts."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stopwise.figures import style
from stopwise.figures.tables import Pairs, frame, gather, ordered
from stopwise.linearized.decay import Decay, predicted_rate
from stopwise.stats import mean_interval, slope

_ID = [
    pa.field("start", pa.string(), nullable=False),
    pa.field("task", pa.string(), nullable=False),
    pa.field("seed", pa.int64(), nullable=False),
    pa.field("n", pa.int64(), nullable=False),
]
_RULE = pa.field("rule", pa.string(), nullable=False)
COLUMNS = pa.schema(
    [
        *_ID,
        _RULE,  # the rule whose stopping times are shown
        pa.field("loss", pa.float64()),  # test loss at the rule's time, empty when it gave no answer
        pa.field("error", pa.float64()),  # 1 - test accuracy there
        pa.field("noise", pa.float64()),  # estimated noise variance at the largest n of this start, task and seed
        pa.field("excess", pa.float64()),  # loss - noise: what the theory says a rate about; may be negative
        pa.field("predicted_slope", pa.float64()),  # of log excess in log n, from the decay at the largest n
        pa.field("predicted_low", pa.float64()),
        pa.field("predicted_high", pa.float64()),
    ]
)
_EVALUATION = pa.schema([*_ID, _RULE, pa.field("loss", pa.float64()), pa.field("accuracy", pa.float64())])
_DECAY = pa.schema(
    [
        *_ID,
        pa.field("m", pa.int64()),
        pa.field("kind", pa.string()),
        *[pa.field(name, pa.float64()) for name in ("exponent", "exponent_low", "exponent_high")],
    ]
)
_STOPPING = pa.schema([*_ID, pa.field("sigma", pa.float64())])
_RUN = ["start", "task", "seed"]
QUANTITIES = {"loss": "test loss", "excess": "test loss − noise"}


def _rate(row: pd.Series) -> dict[str, float]:
    """The slope that a `decay` row predicts, with its interval; nothing when the row holds no law."""
    if not isinstance(row["kind"], str) or not np.isfinite(row["exponent"]):
        return {}
    ends = [row["exponent_low"], row["exponent_high"]]
    known = np.isfinite(ends).all()
    interval = (float(ends[0]), float(ends[1])) if known else (float(row["exponent"]),) * 2
    law = Decay(
        kind=row["kind"], exponent=row["exponent"], interval=interval, intercept=0.0, rank=0, first=0, last=0, errors={}
    )
    rate = predicted_rate(law, int(row["m"]) if np.isfinite(row["m"]) else None)
    low, high = rate.interval if known else (np.nan, np.nan)
    return {"predicted_slope": rate.slope, "predicted_low": low, "predicted_high": high}


def table(evaluations: Pairs, decays: Pairs = (), stoppings: Pairs = (), rule: str = "holdout") -> pa.Table:
    """Assemble the table from `evaluation`, `decay` and `stopping` artifacts, for the times of one rule.

    Each is a list of (wildcards with start, task and seed, table). The noise is the median of the sigma that the rules
    report, squared; a sigma of 0 is none, so that a run with no other has no excess. ValueError when a column is
    missing.
    """
    rows = gather(evaluations, _EVALUATION, "F4").to_pandas()
    rows = rows[rows["rule"] == rule].copy()
    rows["error"] = 1 - rows.pop("accuracy")
    said = _at_largest(gather(stoppings, _STOPPING, "F4").to_pandas())
    said["sigma"] = said["sigma"].where(said["sigma"] > 0)  # 0 is an estimate at its boundary, which is none
    sigma = said.groupby(_RUN)["sigma"].median()
    rows = rows.join((sigma**2).rename("noise"), on=_RUN)
    rows["excess"] = rows["loss"] - rows["noise"]
    laws = _at_largest(gather(decays, _DECAY, "F4").to_pandas())
    rates = {tuple(law[_RUN]): _rate(law) for _, law in laws.iterrows()}
    for name in ("predicted_slope", "predicted_low", "predicted_high"):
        rows[name] = [rates.get(tuple(run), {}).get(name, np.nan) for run in rows[_RUN].to_numpy()]
    return gather([({}, pa.Table.from_pandas(rows, preserve_index=False))], COLUMNS, "F4")


def _at_largest(data: pd.DataFrame) -> pd.DataFrame:
    return data[data["n"] == data.groupby(_RUN)["n"].transform("max")]


def slopes(rows: pd.DataFrame) -> dict[str, tuple[float, float, float]]:
    """Slopes of one start and task, each with its 95 % interval: of the loss, of the excess, and the predicted one."""
    measured = {name: slope(rows["n"], rows[name]) for name in QUANTITIES}
    laws = rows.drop_duplicates("seed")
    low, high = laws["predicted_low"].min(), laws["predicted_high"].max()
    return {**measured, "predicted": (laws["predicted_slope"].mean(), low, high)}


def _curves(ax: Axes, data: pd.DataFrame, name: str, looks: dict[str, style.Look]) -> None:
    """Mean over seeds with its interval, on log axes; every seed as a faint mark."""
    for task in ordered(data["task"], style.TASKS):
        rows = data[(data["task"] == task) & (data[name] > 0)]
        if rows.empty:
            continue
        look = looks[task]
        ax.plot(rows["n"], rows[name], linestyle="", marker=look.marker, markersize=2, color=look.color, alpha=0.4)
        sizes = ordered(rows["n"])
        means = np.array([mean_interval(rows.loc[rows["n"] == n, name]) for n in sizes])
        ax.plot(sizes, means[:, 0], color=look.color, marker=look.marker, markersize=3.5)
        if rows["seed"].nunique() > 2:  # Student's interval of two seeds is 13 standard errors: the marks say more
            ends = np.clip(means[:, 1:], 0.5 * rows[name].min(), 2 * rows[name].max())
            ax.vlines(sizes, ends[:, 0], ends[:, 1], color=look.color, linewidth=0.8)
    sizes = ordered(data["n"])
    rules = "/".join(style.rule_label(r) for r in ordered(data["rule"], style.RULES))
    ax.set(xscale="log", yscale="log", ylabel=f"{QUANTITIES[name]}\nat the {rules} stop")
    ax.set_xticks(sizes, [str(n) for n in sizes])
    ax.minorticks_off()
    style.plain_log(ax.yaxis)
    if not (data[name] > 0).any():
        ax.text(0.5, 0.5, "no noise estimate", transform=ax.transAxes, ha="center", color=style.COLORS["grey"])
        ax.set_yticks([])
        ax.set_xlim(0.9 * min(sizes), 1.1 * max(sizes))


def _slopes(ax: Axes, data: pd.DataFrame, tasks: list[str], looks: dict[str, style.Look]) -> None:
    """One line a task: predicted slope black, slope of the excess filled, slope of the whole loss open."""
    for i, task in enumerate(tasks):
        found = slopes(data[data["task"] == task])
        look = looks[task]
        for offset, name, color, face in (
            (-0.25, "predicted", "black", "black"),
            (0.0, "excess", look.color, look.color),
            (0.25, "loss", look.color, "white"),
        ):
            value, low, high = found[name]
            if np.isfinite(value):
                marker = "|" if name == "predicted" else look.marker
                ax.plot(value, i + offset, marker=marker, color=color, markerfacecolor=face, markersize=4, zorder=3)
                ends = np.clip([low, high], -3, 2)  # a slope from two or three sizes may have no useful interval
                ax.plot(ends, [i + offset] * 2, color=color, linewidth=1.0)
    ax.set_yticks(range(len(tasks)), [style.plain(t, 14) for t in tasks])
    ax.set_ylim(len(tasks) - 0.4, -0.6)
    ax.set_xlabel("slope in log n (95 % interval)")
    ax.axvline(0.0, color=style.COLORS["grey"], linewidth=0.6)


@style.styled
def draw(table: pa.Table) -> Figure:
    """Draw test loss, its excess over the noise, and the slopes of both beside the predicted one; starts across."""
    data = frame(table, COLUMNS, "F4")
    starts, tasks = ordered(data["start"], style.STARTS), ordered(data["task"], style.TASKS)
    if not data["loss"].notna().any():
        figure, axes = style.new_figure(height=1.5)
        style.note(axes[0, 0], "no stopped run")
        return figure
    looks = style.looks(tasks)
    width = "two-column" if len(starts) > 1 else "one-column"
    low = 0.5 + max(0.3, 0.24 * len(tasks))
    figure, axes = style.new_figure(
        width, 4.0 + low, nrows=3, ncols=len(starts), gridspec_kw={"height_ratios": [1.5, 1.5, low]}
    )
    for column, start in zip(axes.T, starts, strict=True):
        rows = data[data["start"] == start]
        for ax, name in zip(column, QUANTITIES, strict=False):
            _curves(ax, rows, name, looks)
        column[1].set_xlabel("number of training examples n")
        _slopes(column[2], rows, ordered(rows["task"], style.TASKS), looks)
        column[0].set_title(f"{style.plain(start)} start", loc="left")
    for ax in axes[:2, 1:].flat:
        ax.set_ylabel("")
    keys = [style.line_key(style.plain(t, 20), color=looks[t].color, marker=looks[t].marker) for t in tasks]
    keys.append(style.line_key("predicted slope", color="black", marker="|"))
    grey = style.COLORS["grey"]
    keys.append(style.line_key("slope, noise taken off", color=grey, marker="o"))
    keys.append(style.line_key("slope of the loss", color=grey, marker="o", markerfacecolor="white"))
    style.outside_legend(figure, keys, 5 if width == "two-column" else 2)
    return figure
