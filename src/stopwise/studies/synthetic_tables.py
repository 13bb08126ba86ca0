"""The synthetic study in one table: rates against theory, and every rule against the oracle, with intervals."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from stopwise.stats import wilson
from stopwise.stopping.registry import NEED_SIGMA
from stopwise.studies.synthetic import DECAYS

RESAMPLES = 500
SLOPES_OF = (("worst_case", True), ("oracle", True), ("sure", False))
ALL = "all"
_TAILS = (0.025, 0.975)


def theory_slope(decay: str, sizes: Sequence[int]) -> float:
    """Return the slope of log risk in log m that theory gives, over these sizes.

    -1 for finite rank, -2 beta/(2 beta + 1) for k^-2beta, and that of log(m)/m for exponential decay.
    """
    if decay == "exponential":
        m = np.asarray(sizes, dtype=np.float64)
        return float(np.polyfit(np.log(m), np.log(np.log(m) / m), 1)[0])
    two_beta = {"finite_rank": np.inf, "beta1": 2.0, "beta2": 4.0}[decay]
    return -1.0 if np.isinf(two_beta) else -two_beta / (two_beta + 1)


def summarise(rows: Iterable[dict[str, Any]], seed: int = 0) -> list[dict[str, Any]]:
    """Return the long table of figure F10 from the rows of ``synthetic.study``.

    Each row: quantity, decay (``all`` = pooled), m (None = all sizes), rule, known, value, low, high, count. They are
    ``risk`` (mean), ``slope`` (of log mean risk in log m), ``theory_slope``, ``critical_slope`` (of the mean R^2 eps^2
    that the samples' own spectra give), ``regret`` (median, relative), ``regret_p90``, ``hit`` (rate; no answer counts
    as a miss), ``ratio`` (median t/t_oracle), ``answered`` (rate), ``bound_share`` (median; low and high are the
    extremes). Other intervals are 95 %: percentiles over 500 resamples of the data sets, Wilson's for rates.
    """
    table = _columns(list(rows))
    rng = np.random.default_rng(seed)
    out: list[dict[str, Any]] = []
    decays = [d for d in DECAYS if (table["decay"] == d).any()]
    for decay in decays:
        out += _rates(table, decay, rng)
    for decay in [*decays, ALL]:
        for known in (True, False):
            for rule in dict.fromkeys(table["rule"].tolist()):
                mask = (table["rule"] == rule) & (table["known"] == known)
                mask &= (table["decay"] == decay) | (decay == ALL)
                if mask.any() and rule != "oracle":
                    out += [
                        {"decay": decay, "m": None, "rule": rule, "known": known} | q for q in _judged(table, mask, rng)
                    ]
    return out


def _columns(rows: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    numbers = ("relative_regret", "ratio", "risk", "bound_share", "critical_risk", "t")
    table = {key: np.array([row[key] for row in rows]) for key in ("decay", "m", "repeat", "rule", "known", "hit")}
    for key in numbers:
        values = [row.get(key) for row in rows]
        table[key] = np.array([np.nan if v is None else v for v in values], dtype=np.float64)
    return table


def _rates(table: dict[str, np.ndarray], decay: str, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Mean risks by size and their slopes beside the two slopes that theory gives."""
    sizes, out = np.unique(table["m"][table["decay"] == decay]), []
    for rule, known in SLOPES_OF:
        mask = (table["decay"] == decay) & (table["rule"] == rule) & (table["known"] == known)
        by_size = [table["risk"][mask & (table["m"] == m)] for m in sizes]
        by_size = [values[np.isfinite(values)] for values in by_size]
        where = {"decay": decay, "rule": rule, "known": known}
        means = np.stack([_resampled(values, np.mean, rng) for values in by_size])
        for m, values, draws in zip(sizes, by_size, means, strict=True):
            low, high = np.quantile(draws, _TAILS)
            out.append(where | _entry("risk", values.mean(), low, high, values.size) | {"m": int(m)})
        value = _slope(sizes, np.array([values.mean() for values in by_size]))
        low, high = np.quantile(_slope(sizes, means), _TAILS)
        out.append(where | _entry("slope", value, low, high, sum(v.size for v in by_size)) | {"m": None})
    known = (table["decay"] == decay) & (table["rule"] == "worst_case") & table["known"].astype(bool)
    critical = np.array([np.nanmean(table["critical_risk"][known & (table["m"] == m)]) for m in sizes])
    theory = theory_slope(decay, sizes.tolist())
    for name, value in (("theory_slope", theory), ("critical_slope", _slope(sizes, critical))):
        out.append(
            {"decay": decay, "m": None, "rule": "worst_case", "known": True} | _entry(name, value, value, value, 0)
        )
    return out


def _judged(table: dict[str, np.ndarray], mask: np.ndarray, rng: np.random.Generator) -> list[dict[str, Any]]:
    count = int(mask.sum())
    hits, answered = int(table["hit"][mask].astype(bool).sum()), int(np.isfinite(table["t"][mask]).sum())
    out = [_entry("hit", hits / count, *wilson(hits, count), count)]
    out.append(_entry("answered", answered / count, *wilson(answered, count), count))
    medians: tuple[tuple[str, str, Callable], ...] = (
        ("regret", "relative_regret", np.median),
        ("regret_p90", "relative_regret", lambda x, axis: np.quantile(x, 0.9, axis=axis)),
        ("ratio", "ratio", np.median),
    )
    for name, key, statistic in medians:
        values = table[key][mask]
        values = values[np.isfinite(values)]
        if values.size:
            low, high = np.quantile(_resampled(values, statistic, rng), _TAILS)
            out.append(_entry(name, float(statistic(values, axis=0)), low, high, values.size))
    share = table["bound_share"][mask]
    share = share[np.isfinite(share)]
    if share.size:
        out.append(_entry("bound_share", float(np.median(share)), share.min(), share.max(), share.size))
    return out


def _entry(quantity: str, value: float, low: float, high: float, count: int) -> dict[str, Any]:
    return {"quantity": quantity, "value": float(value), "low": float(low), "high": float(high), "count": int(count)}


def _resampled(values: np.ndarray, statistic: Callable, rng: np.random.Generator) -> np.ndarray:
    """A statistic over resamples of the data sets with replacement."""
    return statistic(values[rng.integers(values.size, size=(RESAMPLES, values.size))], axis=1)


def _slope(sizes: np.ndarray, means: np.ndarray) -> Any:
    """Least-squares slope of log means [sizes, ...] in log sizes."""
    return np.polyfit(np.log(sizes.astype(np.float64)), np.log(means), 1)[0]


def markdown(summary: list[dict[str, Any]]) -> str:
    """Return the tables of the README: slopes against theory, and every rule against the oracle, pooled."""
    pick = {(r["quantity"], r["decay"], r["rule"], bool(r["known"])): r for r in summary if r["m"] is None}
    lines = [
        "| decay | slope of risk in m, worst_case | theory | R²ε̂² of the samples | at the oracle | sure, σ̂ "
        "| risk / bound: median (largest) |",
        "|---|---|---|---|---|---|---|",
    ]
    for decay in dict.fromkeys(r["decay"] for r in summary if r["quantity"] == "theory_slope"):
        cells = [_interval(pick["slope", decay, rule, known], 2) for rule, known in SLOPES_OF]
        theory = pick["theory_slope", decay, "worst_case", True]["value"]
        critical = pick["critical_slope", decay, "worst_case", True]["value"]
        share = pick["bound_share", decay, "worst_case", True]
        cells += [f"{share['value']:.3f} ({share['high']:.2f})"]
        lines.append(f"| {decay} | {cells[0]} | {theory:.2f} | {critical:.2f} | {' | '.join(cells[1:])} |")
    head = ["", "| rule | σ, R | median regret | 90th percentile | hit rate | median T̂/T_oracle | answers |"]
    lines += [*head, "|---|---|---|---|---|---|---|"]
    for rule in dict.fromkeys(r["rule"] for r in summary):
        for known in (True, False):
            found = {q: pick.get((q, ALL, rule, known)) for q in ("regret", "regret_p90", "hit", "ratio", "answered")}
            if found["hit"] is None:
                continue
            cells = [_interval(found["regret"], 1, 100, " %"), _interval(found["regret_p90"], 0, 100, " %")]
            cells += [_interval(found["hit"], 0, 100, " %"), _interval(found["ratio"], 2)]
            answers = found["answered"]["value"] if found["answered"] else 0.0
            lines.append(f"| {rule} | {_source(rule, known)} | {' | '.join(cells)} | {100 * answers:.0f} % |")
    return "\n".join(lines) + "\n"


def _source(rule: str, known: bool) -> str:
    if rule not in NEED_SIGMA:
        return "not used"
    return "known" if known else "estimated"


def _interval(row: dict[str, Any] | None, digits: int, factor: float = 1.0, unit: str = "") -> str:
    if row is None:
        return "–"
    value, low, high = (f"{factor * row[key]:.{digits}f}" for key in ("value", "low", "high"))
    return f"{value}{unit} [{low}, {high}]"


def linearity_markdown(rows: list[dict[str, Any]]) -> str:
    """Return the table of the pico transformer: its largest distance from the linearised path over all steps."""
    lines = ["| width | scale of the targets | optimizer | steps | largest deviation, training | new prompts |"]
    lines.append("|---|---|---|---|---|---|")
    for width, scale, optimizer in dict.fromkeys((r["width"], r["scale"], r["optimizer"]) for r in rows):
        found = [r for r in rows if (r["width"], r["scale"], r["optimizer"]) == (width, scale, optimizer)]
        own, new = (100 * max(r[key] for r in found) for key in ("deviation", "deviation_new"))
        lines.append(f"| {width} | {scale:g} | {optimizer} | {len(found)} | {own:.2g} % | {new:.2g} % |")
    return "\n".join(lines) + "\n"
