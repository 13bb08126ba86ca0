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

from stopwise.stats import mean_interval, rank_correlation, wilson

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


NOTE = f"""A pair *adds well* when each of its tasks keeps at least {100 * KEPT:.0f} % of what its own vector gains
in loss. Written from the kernels and the labels of training and validation, before anything is merged."""
OUTSIDE = """The training lies outside the theory ({}): the weights of the vectors are fitted to the trained outputs."""


def advice_markdown(advice: Sequence[Row], outside: str | None = None) -> str:
    """Return the advice, one line a pair, averaged over seeds; the most promising pairs first."""
    lines = ["# Which task vectors to add", "", *NOTE.splitlines()]
    lines += ["", OUTSIDE.format(outside)] if outside else []
    lines += [
        "",
        "| pair | adds well | coefficient | keeps, at least | cosine | interference | transfer |",
        "|---|---|---|---|---|---|---|",
    ]
    for (a, b), rows in sorted(_by_pair(advice), key=lambda item: -_mean(item[1], "kept", -np.inf)):
        votes = sum(row["adds_well"] for row in rows)
        says = ("no", "yes")[votes > 0] if votes in (0, len(rows)) else f"{votes} of {len(rows)} seeds"
        cells = [_percent(rows, "kept"), *(_number(rows, key) for key in ("cosine", "interference", "transfer"))]
        lines.append(f"| {a} + {b} | {says} | {_coefficients(rows, 'coefficient')} | {' | '.join(cells)} |")
    lines += [
        "",
        "Coefficient: of θ0 + x (τ_a + τ_b), the lowest expected mean loss on validation. Interference: the larger of",
        "|K_ab c_b|/|r_a| and |K_ba c_a|/|r_b| on training examples; transfer: the smaller share of a task's residual",
        "that the other vector brings (negative: takes away).",
    ]
    return "\n".join(lines) + "\n"


def score_markdown(scores: Sequence[Row]) -> str:
    """Return the scored advice: hit rate, regret of the coefficients, and one line a pair."""
    hits, n = sum(row["hit"] for row in scores), len(scores)
    low, high = wilson(hits, n)
    lines = ["# The merge advice, scored", ""]
    if n:
        base = max(rate := float(np.mean([row["measured_adds_well"] for row in scores])), 1 - rate)
        lines.append(
            f"- Right about {hits} of {n} pairs ({100 * hits / n:.0f} %, 95 % interval {100 * low:.0f} to "
            f"{100 * high:.0f} %); always giving the more frequent answer would be right about {100 * base:.0f} %."
        )
    known = [r for r in scores if r["kept"] is not None and r["measured_kept"] is not None]
    correlation = rank_correlation([r["kept"] for r in known], [r["measured_kept"] for r in known])
    if np.isfinite(correlation):
        lines.append(f"- Rank correlation of the expected and the measured share kept: {correlation:.2f}.")
    labels = {"regret": "advised", "regret_chosen": "chosen on measured validation losses", "regret_plain": "plain sum"}
    lines += ["", "| coefficient | mean regret in test loss | largest |", "|---|---|---|"]
    for key, label in labels.items():
        mean, below, above = mean_interval([row[key] for row in scores])
        interval = f" [{100 * below:.1f}, {100 * above:.1f}]" if np.isfinite(below) else ""
        largest = max((row[key] for row in scores), default=np.nan)
        lines.append(f"| {label} | {100 * mean:.1f} %{interval} | {100 * largest:.1f} % |")
    lines += [
        "",
        "| pair | advice | found | expected to keep | kept | advised | chosen | best | accuracy at each |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (a, b), rows in _by_pair(scores):
        says = [f"{sum(row[key] for row in rows)}/{len(rows)}" for key in ("adds_well", "measured_adds_well")]
        cells = [*says, _percent(rows, "kept"), _percent(rows, "measured_kept")]
        cells += [_coefficients(rows, key) for key in ("coefficient", "chosen", "best")]
        accuracies = [f"{100 * _mean(rows, f'accuracy_{key}'):.1f}" for key in ("advised", "chosen", "best")]
        lines.append(f"| {a} + {b} | {' | '.join(cells)} | {', '.join(accuracies)} % |")
    lines += ["", "Regret: the mean over both tasks of L(x)/L(0), relative to the best point of the grid on test data."]
    return "\n".join(lines) + "\n"


def _by_pair(rows: Iterable[Row]) -> list[tuple[tuple[str, str], list[Row]]]:
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["task_a"], row["task_b"]), []).append(row)
    return list(groups.items())


def _mean(rows: Sequence[Row], key: str, empty: float = np.nan) -> float:
    values = [row[key] for row in rows if row[key] is not None]
    return float(np.mean(values)) if values else empty


def _number(rows: Sequence[Row], key: str) -> str:
    value = _mean(rows, key)
    return f"{value:.2f}" if np.isfinite(value) else "–"


def _percent(rows: Sequence[Row], key: str) -> str:
    value = _mean(rows, key)
    return f"{100 * value:.0f} %" if np.isfinite(value) else "–"


def _coefficients(rows: Sequence[Row], key: str) -> str:
    low, high = (choose(row[key] for row in rows) for choose in (min, max))
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"
