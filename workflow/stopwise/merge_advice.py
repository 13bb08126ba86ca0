"""Which pairs of task vectors to add, and at which coefficient: said from the kernels, and scored afterwards (numpy).

The advice reads kernels, training labels and validation labels, never a merged network. What a task *keeps* of its own
vector at coefficient x is (L(0) - L(x)) / (L(0) - L_own), L the loss with the intercept: 1 when merging costs nothing,
0 when the merged network is no better than the start.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

Row = Mapping[str, Any]
# A pair adds well when each task keeps at least this share of what its own vector gains.
KEPT = 0.5


def advise(points: Iterable[Row], effects: Iterable[Row], seed: int) -> list[dict[str, Any]]:
    """Return the advice on every pair, from predicted points of the grid and predicted effects of one method.

    The coefficient has the lowest mean over both tasks of L(x)/L(0) on validation. A task whose own vector is not
    expected to lower its loss keeps nothing.
    """
    rows, effects = list(points), list(effects)
    found = []
    for a, b in _pairs(rows):
        curve = _curve(rows, a, b, "validation")
        best = min(curve, key=lambda x: (curve[x]["ratio"], x))
        kept = curve[best]["kept"]
        between = [row for row in effects if row["grouping"] == "whole" and {row["task_a"], row["task_b"]} == {a, b}]
        found.append(
            {
                "seed": seed,
                "task_a": a,
                "task_b": b,
                "coefficient": best,
                "adds_well": kept is not None and kept >= KEPT,
                "kept": kept,
                "loss_ratio": curve[best]["ratio"],
                "cosine": _extreme(between, "cosine", None, min),
                "interference": _extreme(between, "interference", "train", max),
                "transfer": _extreme(between, "transfer", "train", min),
            }
        )
    return found


def score(advice: Sequence[Row], measured: Sequence[Row]) -> list[dict[str, Any]]:
    """Return each piece of advice beside what was measured, of one seed; ``measured`` are ``arithmetic`` rows.

    Regret is that of the mean over both tasks of L(x)/L(0) on test examples, relative to the best point of the grid:
    of the advised coefficient, of the one that measured validation losses choose, and of the plain sum (the coefficient
    nearest to 1). ``hit``: whether the pair adds well at the coefficient chosen on validation, as the advice said.
    """
    found = []
    for row in advice:
        validation = _curve(measured, row["task_a"], row["task_b"], "validation")
        test = _curve(measured, row["task_a"], row["task_b"], "test")
        if not test:
            continue
        chosen = min(validation, key=lambda x: (validation[x]["ratio"], x))
        best = min(test, key=lambda x: (test[x]["ratio"], x))
        plain = min(test, key=lambda x: (abs(x - 1), x))
        lowest, kept = test[best]["ratio"], test[chosen]["kept"]
        adds_well = kept is not None and kept >= KEPT
        found.append(
            {
                **{key: row[key] for key in ("seed", "task_a", "task_b", "coefficient", "adds_well", "kept")},
                "chosen": chosen,
                "best": best,
                "measured_adds_well": adds_well,
                "measured_kept": kept,
                "hit": adds_well == row["adds_well"],
                "regret": test[row["coefficient"]]["ratio"] / lowest - 1,
                "regret_chosen": test[chosen]["ratio"] / lowest - 1,
                "regret_plain": test[plain]["ratio"] / lowest - 1,
            }
            | {f"accuracy_{name}": test[x]["accuracy"] for name, x in _named(row["coefficient"], chosen, best).items()}
        )
    return found


def _named(advised: float, chosen: float, best: float) -> dict[str, float]:
    return {"advised": advised, "chosen": chosen, "best": best}


def _pairs(rows: Sequence[Row]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((r["task_a"], r["task_b"]) for r in rows if r["kind"] == "addition"))


def _curve(rows: Sequence[Row], a: str, b: str, split: str) -> dict[float, dict[str, Any]]:
    """Return by coefficient: the mean of L(x)/L(0), the least that a task keeps, and the mean accuracy of a pair."""
    points: dict[float, list[Row]] = {}
    for row in rows:
        if row["kind"] == "addition" and (row["task_a"], row["task_b"], row["split"]) == (a, b, split):
            points.setdefault(row["coefficient"], []).append(row)
    return {
        x: {
            "ratio": float(np.mean([_finite(row["loss"]) / row["loss_zero_shot"] for row in own])),
            "kept": _least([_kept(row) for row in own]),
            "accuracy": float(np.mean([row["accuracy"] for row in own])),
        }
        for x, own in points.items()
    }


def _kept(row: Row) -> float | None:
    gain = row["loss_zero_shot"] - row["loss_single"]
    return (row["loss_zero_shot"] - _finite(row["loss"])) / gain if gain > 0 else None


def _least(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return min(known) if len(known) == len(values) else None


def _finite(loss: float) -> float:
    """A merged network may overflow: then its loss is larger than any other."""
    return loss if math.isfinite(loss) else 1e300


def _extreme(rows: Sequence[Row], quantity: str, split: str | None, choose: Any) -> float | None:
    values = [r["value"] for r in rows if r["quantity"] == quantity and r["split"] == split and r["value"] is not None]
    return choose(values) if values else None
