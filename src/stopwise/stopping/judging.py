"""A stop judged on a measured loss curve, and every rule on that of the run it would have stopped (numpy, no torch).

A rule's step may lie between two evaluations: its loss is then read off the straight line between them. A step beyond
the last evaluation has no measured loss and is flagged; nothing is extrapolated.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from stopwise.stopping.in_training import Holdout

BEYOND_RUN = "beyond_the_run"
# The width of a hit: test loss within 5 % of the oracle's.
HIT = 0.05


def judge(
    t_hat: float | None,
    curve_t: Iterable[float],
    curve_loss: Iterable[float],
    hit: float = HIT,
    open_to_all: Iterable[bool] | None = None,
) -> dict:
    """Judge a stop on a measured loss curve: regret, relative regret, hit and ratio to the oracle's time.

    ``regret`` = loss at t_hat minus the best loss (absolute; ``relative_regret`` over the best), read off by linear
    interpolation; ``hit``: that loss is within 5 % of the best; ``low``, ``high``: the measured times around the oracle
    within 5 %; ``ratio`` = t_hat / t_oracle (nan when the oracle does not train). t_hat None: nan, and no hit.
    ``open_to_all``: which times may be the oracle, default all. At a time that one rule alone asked for the regret
    may be negative.
    """
    t, loss = np.asarray(list(curve_t), dtype=np.float64), np.asarray(list(curve_loss), dtype=np.float64)
    if t.shape != loss.shape or not t.size or (np.diff(t) <= 0).any():
        raise ValueError("a measured curve needs ascending times and one loss for each")
    finite = np.where(np.isfinite(loss), loss, np.inf)
    candidate = np.ones(t.size, dtype=bool) if open_to_all is None else np.asarray(list(open_to_all), dtype=bool)
    if candidate.shape != t.shape or not candidate.any():
        raise ValueError("the oracle needs one or more of the measured times")
    best = int(np.argmin(np.where(candidate, finite, np.inf)))
    inside = finite <= (1 + hit) * finite[best]
    low, high = best, best
    while low > 0 and inside[low - 1]:
        low -= 1
    while high < t.size - 1 and inside[high + 1]:
        high += 1
    out = {"t_oracle": t[best], "loss_oracle": finite[best], "low": t[low], "high": t[high]}
    if t_hat is None or not np.isfinite(t_hat):
        return out | {"loss": np.nan, "regret": np.nan, "relative_regret": np.nan, "hit": False, "ratio": np.nan}
    reached = float(np.interp(t_hat, t, finite))
    regret = reached - finite[best]
    relative = regret / finite[best] if finite[best] > 0 else np.nan
    ratio = t_hat / t[best] if t[best] > 0 else np.nan
    return {k: float(v) for k, v in out.items()} | {
        "loss": reached,
        "regret": float(regret),
        "relative_regret": float(relative),
        "hit": bool(reached <= (1 + hit) * finite[best]),
        "ratio": float(ratio),
    }


def holdout_step(
    rows: Iterable[Mapping[str, Any]], patience: int, min_delta: float, interval: int = 1
) -> tuple[int, tuple[str, ...]] | None:
    """Return the step that hold-out stopping keeps on these trajectory rows, and flags; None without validation.

    It sees every ``interval``-th step and the last, not the evaluation that a predicted stop adds to a run.
    """
    rows = list(rows)
    kept = regular([row["step"] for row in rows], interval)
    rows = [row for row, own in zip(rows, kept, strict=True) if own]
    if any(row["validation_loss"] is None for row in rows):
        return None
    rule = Holdout(patience, min_delta, end=rows[-1]["step"])
    for row in rows:
        rule.observe(row["step"], row)
    return rule.best_step, () if rule.stopped else ("still_improving",)


def evaluate_rules(
    trajectory: list[dict[str, Any]],
    predicted: list[dict[str, Any]],
    rules: Iterable[str],
    patience: int,
    min_delta: float,
    interval: int = 1,
) -> list[dict[str, Any]]:
    """Return the rows of the ``evaluation`` artifact for one training size.

    ``trajectory``: rows of one run in order of steps; ``predicted``: rows of the ``stopping`` artifact of the same
    size; ``interval``: steps between the evaluations of hold-out stopping. A rule without an answer has no row.
    The oracle is the best of these evaluations and the last: the one that a predicted stop adds is open to that rule
    alone.
    """
    n, times = trajectory[0]["n"], np.array([row["step"] for row in trajectory])
    curve = {key: _numbers(trajectory, key) for key in ("test_loss", "test_accuracy", "eta", "epoch")}
    answers = {row["rule"]: (row["t"], row["flags"]) for row in predicted if row["t"] is not None}
    held = holdout_step(trajectory, patience, min_delta, interval)
    if held is not None:
        answers["holdout"] = held
    seen = regular(times.tolist(), interval)
    oracle = judge(None, times, curve["test_loss"], open_to_all=seen)
    answers["oracle"] = (oracle["t_oracle"], ())
    rows = []
    for rule in rules:
        if rule not in answers:
            continue
        t, flags = answers[rule]
        beyond = t > times[-1]
        judged = judge(None if beyond else t, times, curve["test_loss"], open_to_all=seen)
        at = {key: float(np.interp(t, times, values)) for key, values in curve.items()}
        rows.append(
            {
                "n": n,
                "rule": rule,
                "t": int(t),
                "eta": at["eta"],
                "epochs": at["epoch"],
                "loss": None if beyond else judged["loss"],
                "accuracy": None if beyond else at["test_accuracy"],
                "t_oracle": int(oracle["t_oracle"]),
                "loss_oracle": float(oracle["loss_oracle"]),
                "relative_regret": None if beyond else judged["relative_regret"],
                "hit": None if beyond else judged["hit"],
                "ratio": float(t / oracle["t_oracle"]) if oracle["t_oracle"] > 0 else None,
                "flags": [*flags, *([BEYOND_RUN] if beyond else [])],
            }
        )
    return rows


def regular(steps: Sequence[int], interval: int) -> list[bool]:
    """Return which of these evaluations every way of stopping sees: each ``interval``-th step and the last."""
    return [step % interval == 0 or step == steps[-1] for step in steps]


def _numbers(rows: list[dict[str, Any]], key: str) -> np.ndarray:
    return np.array([np.nan if row[key] is None else row[key] for row in rows], dtype=float)
