"""F4: test error against the number of training examples, the measured slope beside the one the spectrum predicts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from matplotlib.figure import Figure

from stopwise.figures import style
from stopwise.figures.chart import DASHED, MARKS, Axis, Line, Panel, Span, Views
from stopwise.figures.paint import paint
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


def panel(data: pd.DataFrame, name: str, looks: dict[str, style.Look]) -> Panel:
    """One quantity against n: the mean over seeds with its interval, every seed as a faint mark, both axes log.

    Dashed, beside the excess: the slope that the spectrum predicts, through the middle of the measured points.
    """
    lines: list[Line] = []
    slopes_: list[Line] = []
    for task in ordered(data["task"], style.TASKS):
        rows = data[(data["task"] == task) & (data[name] > 0)]
        if rows.empty:
            continue
        look = looks[task]
        lines.append(Line(rows["n"], rows[name], look.color, "", MARKS, marker=look.marker, size=2, alpha=0.4))
        sizes = np.array(ordered(rows["n"]), dtype=float)
        means = np.array([mean_interval(rows.loc[rows["n"] == n, name]) for n in sizes])
        lines.append(Line(sizes, means[:, 0], look.color, style.cut(task, 20), marker=look.marker))
        if rows["seed"].nunique() > 2:  # Student's interval of two seeds is 13 standard errors: the marks say more
            ends = np.clip(means[:, 1:], 0.5 * rows[name].min(), 2 * rows[name].max())
            for n, (low, high) in zip(sizes, ends, strict=True):
                lines.append(Line([n, n], [low, high], look.color, width=0.8))
        predicted = rows.drop_duplicates("seed")["predicted_slope"].mean()
        if name == "excess" and np.isfinite(predicted) and len(sizes) > 1:
            logs = np.log(sizes)
            fitted = np.exp(np.log(means[:, 0]).mean() + predicted * (logs - logs.mean()))
            slopes_.append(Line(sizes, fitted, look.color, "predicted by the spectrum", DASHED, 0.9))
    ticks = tuple((float(n), str(n)) for n in ordered(data["n"]))
    x = Axis("number of training examples n", "log", ticks=ticks)
    if not lines:
        return Panel(note="no noise estimate")
    rules = "/".join(style.rule_label(r) for r in ordered(data["rule"], style.RULES))
    y = Axis(f"{QUANTITIES[name]}\nat the {rules} stop", "log")
    return Panel(x=x, y=y, lines=(*lines, *slopes_))


def slope_panel(data: pd.DataFrame, looks: dict[str, style.Look]) -> Panel:
    """One row a task: predicted slope black, slope of the excess filled, slope of the whole loss open."""
    tasks = ordered(data["task"], style.TASKS)
    lines: list[Line] = []
    labelled = {"predicted": "predicted slope", "excess": "slope, noise taken off", "loss": "slope of the loss"}
    for i, task in enumerate(tasks):
        found = slopes(data[data["task"] == task])
        look = looks[task]
        for offset, name in ((-0.25, "predicted"), (0.0, "excess"), (0.25, "loss")):
            value, low, high = found[name]
            if not np.isfinite(value):
                continue
            color = style.COLORS["black"] if name == "predicted" else look.color
            ends = np.clip([low, high], -3, 2)  # a slope from two or three sizes may have no useful interval
            lines.append(Line(ends, [i + offset] * 2, color, width=1.0))
            marker = "|" if name == "predicted" else look.marker
            words = (f"{task}: {labelled[name]} {value:.2f}",)
            own: dict[str, Any] = {"marker": marker, "size": 4.0, "open": name == "loss", "words": words}
            lines.append(Line([value], [i + offset], color, "", MARKS, **own))
    if not lines:
        return Panel(note="no slope")
    ticks = tuple((float(i), style.cut(t, 14)) for i, t in enumerate(tasks))
    zero = Span("x", 0.0, style.COLORS["grey"], width=0.6)
    y = Axis(limits=(len(tasks) - 0.4, -0.6), ticks=ticks)
    return Panel(x=Axis("slope in log n (95 % interval)"), y=y, lines=tuple(lines), spans=(zero,))


SLOPES = "slopes: predicted |, noise taken off (filled), of the loss (open)"


def says(table: pa.Table) -> str:
    """One sentence: on how many tasks more examples help, and on how many the predicted slope is in the interval."""
    data = frame(table, COLUMNS, "F4")
    falls = inside = known = total = 0
    for _, rows in data.groupby(["start", "task"]):
        found = slopes(rows)
        if np.isfinite(found["loss"][0]):
            total += 1
            falls += found["loss"][0] < 0
        measured, predicted = found["excess"], found["predicted"]
        if np.isfinite(measured[1]) and np.isfinite(predicted[0]):
            known += 1
            inside += bool(measured[1] <= predicted[0] <= measured[2])
    if not total:
        return ""
    words = f"More examples lower the test loss in {falls} of {total} cases"
    if known:
        words += f"; the slope that the spectrum predicts is inside the measured interval in {inside} of {known}"
    return words + "."


def views(table: pa.Table) -> Views:
    """One panel for each quantity and start."""
    data = frame(table, COLUMNS, "F4")
    looks, panels = style.looks(data["task"]), {}
    for start, rows in data.groupby("start"):
        for name, label in QUANTITIES.items():
            panels[label, start] = panel(rows, name, looks)
        panels[SLOPES, start] = slope_panel(rows, looks)
    return Views((("show", (*QUANTITIES.values(), SLOPES)), ("start", tuple(style.STARTS))), panels)


@style.styled
def draw(table: pa.Table) -> Figure:
    """Draw test loss, its excess over the noise, and the slopes of both beside the predicted one; starts across."""
    data = frame(table, COLUMNS, "F4")
    starts, tasks = ordered(data["start"], style.STARTS), ordered(data["task"], style.TASKS)
    if not data["loss"].notna().any():
        return paint([[Panel(note="no stopped run")]])
    looks = style.looks(tasks)
    own = [data[data["start"] == start] for start in starts]
    grid = [[panel(rows, "loss", looks).titled(f"{style.cut(s)} start") for s, rows in zip(starts, own, strict=True)]]
    grid[0] = [replace(p, x=replace(p.x, label="")) for p in grid[0]]
    grid.append([panel(rows, "excess", looks) for rows in own])
    grid.append([slope_panel(rows, looks) for rows in own])
    grey = style.COLORS["grey"]
    extra = [style.line_key("below: predicted slope", color="black", marker="|")]
    extra.append(style.line_key("below: noise taken off", color=grey, marker="o"))
    extra.append(style.line_key("below: of the loss", color=grey, marker="o", markerfacecolor="white"))
    heights = (1.4, 1.4, 0.15 + max(0.3, 0.26 * len(tasks)))
    return paint(grid, says(table), height=heights, extra=extra)
