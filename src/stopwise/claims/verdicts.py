"""The paper's claims held against a run: what was measured, its interval, and a verdict by a fixed criterion.

The criteria stand in ``paper``. A criterion is a range in which the measured quantity lies if the claim is true. The
claim **held** when the whole 95 % interval lies inside, **did not hold** when it lies outside, is **undecided** when it
reaches across an end (or there is no interval), and is **not tested** when the configuration measured nothing. Numpy
and scipy only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stopwise.stats import mean_interval

HELD, FAILED, UNDECIDED, UNTESTED = "held", "did not hold", "undecided", "not tested"
FEWEST_TASKS = 3  # from here on an interval speaks about tasks like these, below about these tasks' runs only
Row = Mapping[str, Any]


@dataclass
class Evidence:
    """What a run measured, as rows of its artifacts; every list may be empty.

    Rows carry start, task, seed and n where their artifact has them. ``ridge``: rows of ``ridge_rows``; ``slopes``: of
    F4; ``training``: of F6; ``pairs``: of F7; ``arithmetic``: of F8 (chosen or not); ``rates`` and ``study``: of F10
    and F5. ``batch_size`` None means full batches.
    """

    trajectories: list[Row] = field(default_factory=list)
    evaluations: list[Row] = field(default_factory=list)
    stoppings: list[Row] = field(default_factory=list)
    decays: list[Row] = field(default_factory=list)
    ridge: list[Row] = field(default_factory=list)
    slopes: list[Row] = field(default_factory=list)
    training: list[Row] = field(default_factory=list)
    pairs: list[Row] = field(default_factory=list)
    arithmetic: list[Row] = field(default_factory=list)
    rates: list[Row] = field(default_factory=list)
    study: list[Row] = field(default_factory=list)
    batch_size: int | None = None


@dataclass
class Measured:
    """One quantity: a value for each run, as (task, seed, value), or a value with an interval of its own."""

    runs: list[tuple[str, int, float]] = field(default_factory=list)
    given: tuple[float, float, float] | None = None
    count: int = 0
    over: str = ""
    unit: str = "task"  # what the first entry of a run names
    note: str = ""


@dataclass(frozen=True)
class Claim:
    """One claim with its test: ``low``..``high`` is where ``quantity`` lies if it is true, ``why`` where that is from.

    ``factor``: the quantity is a ratio, whose mean and interval are taken of its logarithm.
    """

    key: str
    statement: str
    quantity: str
    table: str
    figure: str
    low: float
    high: float
    why: str
    measure: Callable[[Evidence], Measured]
    factor: bool = False


def verdict(value: float, low: float, high: float, allowed_low: float, allowed_high: float) -> str:
    """Return what an interval says about a range: see the module."""
    if not math.isfinite(value):
        return UNTESTED
    if not (math.isfinite(low) and math.isfinite(high)):
        return UNDECIDED
    if allowed_low <= low and high <= allowed_high:
        return HELD
    return FAILED if high < allowed_low or low > allowed_high else UNDECIDED


def interval(
    runs: Sequence[tuple[str, int, float]], factor: bool = False, unit: str = "task"
) -> tuple[float, float, float, int, str]:
    """Return mean, both ends of its 95 % interval, the number of units and what they are.

    ``runs`` are (task, seed, value). From three tasks on the units are the tasks, each the mean over its seeds: runs of
    one task share its test examples. Below, they are the runs. Student's interval; NaN ends with a single unit. With
    ``factor`` everything is taken of the logarithm (values <= 0 are left out).
    """
    finite = [(task, v) for task, _, v in runs if v is not None and math.isfinite(v) and (v > 0 or not factor)]
    if factor:
        finite = [(task, math.log(v)) for task, v in finite]
    tasks = sorted({task for task, _ in finite})
    if len(tasks) >= FEWEST_TASKS:
        values = [float(np.mean([v for t, v in finite if t == task])) for task in tasks]
        over = f"{unit}s"
    else:
        values, over = [v for _, v in finite], "runs"
    found = mean_interval(values)
    mean, low, high = (math.exp(v) if factor else v for v in found)
    return mean, low, high, len(values), over


def judged(claims: Iterable[Claim], evidence: Evidence) -> list[dict[str, Any]]:
    """Return one row of the ``claims`` artifact for each claim, in their order."""
    rows = []
    for claim in claims:
        found = claim.measure(evidence)
        if found.given is not None:
            (value, low, high), count, over = found.given, found.count, found.over
        else:
            value, low, high, count, over = interval(found.runs, claim.factor, found.unit)
        rows.append(
            {
                "claim": claim.key,
                "statement": claim.statement,
                "quantity": claim.quantity,
                "table": claim.table,
                "figure": claim.figure or None,
                "value": _finite(value),
                "low": _finite(low),
                "high": _finite(high),
                "count": count,
                "over": over,
                "allowed_low": _finite(claim.low),
                "allowed_high": _finite(claim.high),
                "criterion": criterion(claim),
                "why": claim.why,
                "verdict": verdict(value, low, high, claim.low, claim.high),
                "note": found.note or None,
            }
        )
    return rows


def criterion(claim: Claim) -> str:
    """Return the range of a claim in words."""
    if math.isinf(claim.low):
        return f"at most {claim.high:.3g}"
    if math.isinf(claim.high):
        return f"at least {claim.low:.3g}"
    return f"from {claim.low:.3g} to {claim.high:.3g}"


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def measurement(row: Row) -> str:
    """Return value, interval and units of a row as a text; a dash when nothing was measured."""
    if row["value"] is None:
        return "–"
    ends = "no interval" if row["low"] is None else f"{row['low']:.3g}, {row['high']:.3g}"
    over = row["over"].removesuffix("s") if row["count"] == 1 else row["over"]
    return f"{row['value']:.3g} [{ends}], {row['count']} {over}"


def markdown(name: str, facts: Mapping[str, str], rows: Sequence[Row]) -> str:
    """Return the claims as Markdown: the verdicts, then how each was measured and why its criterion is what it is."""
    text = [
        "# The claims of the paper, tested",
        "",
        f"Written by the pipeline from the artifacts of the run `{name}`. Criteria are fixed in `claim_tests.py` of",
        "the library, whatever a run finds. A claim *held* when the whole 95 % interval lies",
        "inside its criterion and *did not hold* when it lies outside; *undecided* when the interval reaches across an",
        "end or there is none; *not tested* when this configuration measures nothing about it.",
        "",
        *(f"- {key}: {value}" for key, value in facts.items()),
        "",
        "| claim | measured, with its 95 % interval | held if | verdict |",
        "|---|---|---|---|",
    ]
    text += [f"| {r['statement']} | {measurement(r)} | {r['criterion']} | {_strong(r['verdict'])} |" for r in rows]
    text += ["", "## How each was measured", ""]
    for row in rows:
        place = f"Table `{row['table']}`" + (f", figure {row['figure']}." if row["figure"] else ".")
        note = f" {row['note']}" if row["note"] else ""
        text += [
            f"**{row['claim']}** ({row['verdict']}). {_sentence(row['quantity'])} Held if {row['criterion']}:"
            f" {row['why']} {place}{note}",
            "",
        ]
    text += [
        "Intervals are Student's over tasks (each the mean over its seeds) from three tasks on, and over runs with",
        "fewer tasks: those speak about these tasks only. Those of the synthetic study resample its data sets.",
    ]
    return "\n".join(text) + "\n"


def _strong(word: str) -> str:
    return word if word == UNTESTED else f"**{word}**"


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."
