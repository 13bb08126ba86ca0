"""The merge advice as text: what the kernels expect of every pair, and afterwards what became of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from stopwise.merge_advice import KEPT
from stopwise.plots.intervals import mean_interval, rank_correlation, wilson

Row = Mapping[str, Any]
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
