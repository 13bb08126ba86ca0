"""F3: the stopping rules compared over tasks, sizes and seeds: hit rate, regret and time against the oracle's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from matplotlib.figure import Figure

from stopwise.figures import style
from stopwise.figures.chart import MARKS, Axis, Line, Panel, Span, Text, Views, symlog
from stopwise.figures.paint import paint
from stopwise.figures.tables import Pairs, frame, gather, ordered
from stopwise.stats import wilson

COLUMNS = pa.schema(
    [
        pa.field("start", pa.string(), nullable=False),
        pa.field("task", pa.string(), nullable=False),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("n", pa.int64(), nullable=False),
        pa.field("rule", pa.string(), nullable=False),
        pa.field("t", pa.int64()),  # steps
        pa.field("t_oracle", pa.int64()),
        pa.field("loss", pa.float64()),  # test loss at t, empty when the rule gave no answer
        pa.field("loss_oracle", pa.float64()),
        pa.field("relative_regret", pa.float64()),  # (loss - loss_oracle) / loss_oracle
        pa.field("hit", pa.bool_()),  # loss within 5 % of the oracle's
        pa.field("ratio", pa.float64()),  # t / t_oracle, empty when t_oracle is 0
        pa.field("flags", pa.list_(pa.string())),
    ]
)

# What is measured, and which values are good.
MEASURES = {
    "hit": ("runs within 5 % of the best loss", (0.8, 1.03)),
    "relative_regret": ("excess over the best loss", (0.0, 0.05)),
    "ratio": ("step / best step", (0.8, 1.25)),
}


def table(evaluations: Pairs) -> pa.Table:
    """Assemble the table from `evaluation` artifacts: a list of (wildcards with start, task and seed, table)."""
    return gather(evaluations, COLUMNS, "F3")


def runs(data: pd.DataFrame) -> int:
    """Number of training runs in the table: a rule without a row for one of them gave no answer there."""
    return len(data.drop_duplicates(["start", "task", "seed", "n"]))


def _hit_rate(data: pd.DataFrame, total: int, looks: dict[str, style.Look], y: Axis) -> Panel:
    """The share of the runs in which a rule hits, with Wilson's interval, and the counts at the right."""
    lines, texts = [], []
    for place, (rule, rows) in enumerate(_by_rule(data)):
        answered = rows["hit"].dropna().astype(bool)
        hits, trials = int(answered.sum()), len(answered)
        silent = f" (+{total - trials})" if trials < total else ""
        texts.append(Text(f"{hits}/{trials}{silent}", place))
        if trials:
            look = looks[rule]
            words = f"{hits} of {trials} runs" + (f", {total - trials} without an answer" if silent else "")
            lines.append(Line(wilson(hits, trials), [place] * 2, look.color, width=1.6))
            mark: dict[str, Any] = {"dash": MARKS, "marker": look.marker, "size": 4.0, "words": (words,)}
            lines.append(Line([hits / trials], [place], look.color, **mark))
    x = Axis(MEASURES["hit"][0], limits=(-0.03, 1.03), percent=True)
    return Panel(x=x, y=y, lines=tuple(lines), texts=tuple(texts))


def _dots(rule: str, rows: pd.DataFrame, column: str, place: int, look: style.Look) -> list[Line]:
    """Every value as a dot (spread evenly in height), the quartiles as a bar and the median as a stroke."""
    rows = rows[np.isfinite(rows[column])]
    values = rows[column].to_numpy()
    if not values.size:
        return []
    spread = (np.arange(len(values)) * 0.618 % 1 - 0.5) * 0.5  # the golden ratio fills the width evenly
    words = tuple(f"{t}, n = {n}, seed {s}" for t, n, s in zip(rows["task"], rows["n"], rows["seed"], strict=True))
    size = 4.0 if len(values) < 12 else 2.5
    own: dict[str, Any] = {"dash": MARKS, "marker": look.marker, "size": size, "alpha": 0.6, "words": words}
    lines = [Line(values, place + spread, look.color, **own)]
    if len(values) >= 6:  # too few for quartiles: the dots say it all
        low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
        lines.append(Line([low, high], [place] * 2, look.color, width=2.2, alpha=0.6))
        stroke: dict[str, Any] = {
            "dash": MARKS,
            "marker": "|",
            "size": 8.0,
            "label": "median of the runs",
            "words": (f"{rule}: median {middle:.3g}",),
        }
        lines.append(Line([middle], [place], style.COLORS["black"], **stroke))
    return lines


def _by_rule(data: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    return [(rule, data[data["rule"] == rule]) for rule in ordered(data["rule"], style.RULES)]


def _symlog(column: str, values: pd.Series) -> Axis:
    """An axis with a place for zero; from the smallest value on its own floor."""
    floor = {"relative_regret": 0.01, "ratio": 0.1}[column]
    found = values[np.isfinite(values)]
    positive = found[found > 0]
    if not positive.empty:
        floor = max(floor, 10 ** np.floor(np.log10(positive.min())))
    return symlog(MEASURES[column][0], found, floor)


def panel(data: pd.DataFrame, measure: str, total: int, everything: pd.DataFrame) -> Panel:
    """One measure of the runs of one start; ``everything``: the rows of all starts, which give rules and scales."""
    rules = ordered(everything["rule"], style.RULES)
    looks = style.looks(rules, style.RULES)
    ticks = tuple((float(i), style.rule_label(rule)) for i, rule in enumerate(rules))
    y = Axis(limits=(len(rules) - 0.4, -0.6), ticks=ticks)
    shown = data.assign(rule=pd.Categorical(data["rule"], rules))
    if measure == "hit":
        made = _hit_rate(_padded(data, rules), total, looks, y)
    else:
        lines: list[Line] = []
        for rule, rows in shown.groupby("rule", observed=True):
            lines += _dots(str(rule), rows, measure, rules.index(str(rule)), looks[str(rule)])
        extra = [1.0] if measure == "ratio" else [0.0]
        x = _symlog(measure, pd.concat([everything[measure], pd.Series(extra)]))
        made = Panel(x=x, y=y, lines=tuple(lines))
    good = MEASURES[measure][1]
    if measure == "relative_regret":  # a stop of its own may be better than what every way sees
        good = min(good[0], 2 * float(everything[measure].min(skipna=True))), good[1]
    green: dict[str, Any] = {"alpha": 0.15, "label": "good"}
    spans = (Span("x", good[0], style.COLORS["green"], to=good[1], **green),)
    return replace(made, spans=spans)


def _padded(data: pd.DataFrame, rules: list[str]) -> pd.DataFrame:
    """A rule that has no row in a start keeps its place there."""
    missing = [rule for rule in rules if not (data["rule"] == rule).any()]
    return pd.concat([data, pd.DataFrame({"rule": missing})]) if missing else data


def says(table: pa.Table) -> str:
    """One sentence: the best rule that needs no validation set, and hold-out, over all runs, the better one first."""
    data = frame(table, COLUMNS, "F3")
    rate = data[data["hit"].notna()].groupby("rule")["hit"].agg(["sum", "count"])
    known = [rule for rule in rate.index if rule not in ("oracle", "holdout")]
    if not known:
        return ""
    best = max(known, key=lambda rule: (rate.loc[rule, "sum"], rule == "bayes"))
    found = [(rate.loc[best, "sum"], f"{style.rule_label(best)} (the best without a validation set)")]
    if "holdout" in rate.index:
        found.append((rate.loc["holdout", "sum"], "hold-out (with one)"))
    found.sort(key=lambda one: -one[0])  # stable: the rule first where they are even
    counts = [f"{name} in {hits:.0f}" + ("" if i else f" of {runs(data)} runs") for i, (hits, name) in enumerate(found)]
    return f"Stops within 5 % of the best loss: {', '.join(counts)}."


def views(table: pa.Table) -> Views:
    """One panel for each measure and start."""
    data = frame(table, COLUMNS, "F3")
    totals = {start: runs(rows) for start, rows in data.groupby("start")}
    judged = data[data["rule"] != "oracle"].sort_values(["start", "task", "seed", "n"])
    panels = {
        (label, start): panel(rows, measure, totals[start], judged)
        for start, rows in judged.groupby("start")
        for measure, (label, _) in MEASURES.items()
    }
    return Views((("measure", tuple(label for label, _ in MEASURES.values())), ("start", tuple(style.STARTS))), panels)


@style.styled
def draw(table: pa.Table) -> Figure:
    """Draw hit rate, regret and time over the oracle's of each rule but the oracle: measures down, starts across.

    A run for which a rule gave no answer is no trial of its hit rate; such runs are counted beside it.
    """
    data = frame(table, COLUMNS, "F3")
    totals = {start: runs(rows) for start, rows in data.groupby("start")}
    data = data[data["rule"] != "oracle"].sort_values(["start", "task", "seed", "n"])
    if data.empty:
        return paint([[Panel(note="no rule was judged")]])
    starts = ordered(data["start"], style.STARTS)
    grid = []
    for measure in MEASURES:
        own = [panel(data[data["start"] == start], measure, totals[start], data) for start in starts]
        titled = measure == "hit"
        grid.append([p.titled(f"{style.cut(s)} start") if titled else p for s, p in zip(starts, own, strict=True)])
    height = 0.12 + 0.14 * max(2, data["rule"].nunique())
    return paint(grid, says(table), height=height, share_y=True)
