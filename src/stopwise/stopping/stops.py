"""When to stop: ten rules behind one function, and the judgement of a stop on a measured curve.

All but ``holdout`` and ``oracle`` are computed before the first training step, from the spectrum and the residual.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from stopwise.linearized.filters import Filter
from stopwise.linearized.noise import Noise, estimate_noise, noise_intervals
from stopwise.linearized.spectrum import Spectrum
from stopwise.stopping import closed_form as _rules
from stopwise.stopping.bayes import expected_loss, task_posterior
from stopwise.stopping.closed_form import Choice, Moments, critical_eta, local_complexity, path_moments
from stopwise.stopping.cross_entropy import (
    Replay,
    averaged_probabilities,
    expected_log_loss,
    label_probabilities,
    left_out_outputs,
    loo_log_loss,
)
from stopwise.stopping.leave_one_out import loo_curve, loo_shortcut_curve
from stopwise.stopping.registry import MEASURED, NEED_SIGMA, REPLAYING_RULES, RULES

__all__ = [
    "RULES",
    "Noise",
    "Replay",
    "Stop",
    "critical_eta",
    "estimate_noise",
    "judge",
    "local_complexity",
    "noise_intervals",
    "stopping_table",
    "stopping_time",
    "stops",
    "time_grid",
]

# The width of a hit: test loss within 5 % of the oracle's.
HIT = 0.05


@dataclass(frozen=True)
class Stop:
    """A stopping time and why.

    ``t`` steps (None when the rule has no answer: see ``flags``), ``eta`` training time, ``epochs`` = t * batch_size /
    n (full batch: t), ``sigma`` and ``rkhs_norm`` as used, ``predicted_risk`` = SURE at t (the estimated in-sample risk
    (1/m)|f_t - f*|^2; of ``bayes`` the expected squared error of a new example's f*; nan where log-losses are read),
    ``curve`` over ``times``, which are 0..t_max unless others were asked for, ``crossing`` = eta* and ``bound`` =
    12 R^2 / eta* of the worst-case rule (nan for the others).
    """

    rule: str
    t: int | None
    eta: float
    epochs: float
    sigma: float
    rkhs_norm: float
    predicted_risk: float
    flags: tuple[str, ...]
    curve: np.ndarray = field(repr=False)
    times: np.ndarray = field(repr=False)
    crossing: float = np.nan
    bound: float = np.nan

    def row(self) -> dict[str, object]:
        """Return the plain row of a table: everything but the curve, flags joined by spaces."""
        skip = ("curve", "times", "flags")
        return {k: v for k, v in vars(self).items() if k not in skip} | {"flags": " ".join(self.flags)}


def time_grid(t_max: int, points: int = 1000) -> np.ndarray:
    """Return at most ``points`` whole times from 0 to t_max: every one when they fit, else spaced evenly in log t."""
    if t_max + 1 <= points:
        return np.arange(t_max + 1)
    grid = np.unique(np.rint(np.geomspace(1, t_max, points - 1)).astype(np.int64))
    return np.concatenate([[0], grid])


def stopping_time(
    spec: Spectrum,
    residual: np.ndarray,
    rule: str,
    filter: Filter,
    t_max: int,
    batch_size: int | None = None,
    sigma: float | None = None,
    rkhs_norm: float | None = None,
    **options: object,
) -> Stop:
    """Return where one rule stops a filter's path, before training; see ``stops`` for the options.

    ``residual`` is y - f0, [m] or [examples, columns]; ``t_max`` the last step considered; ``sigma`` and ``rkhs_norm``
    None are estimated. Raises ValueError for an unknown rule, a diverging step size, or a measured rule without its
    curve. Cost O(t_max m) beside the decomposition; ``loo`` O(n m^3), ``loo_shortcut`` O(t_max m^2).
    """
    return stops(spec, residual, filter, t_max, [rule], batch_size, sigma, rkhs_norm, **options)[0]  # type: ignore[arg-type]


def stops(
    spec: Spectrum,
    residual: np.ndarray,
    filter: Filter,
    t_max: int,
    rules: Sequence[str],
    batch_size: int | None = None,
    sigma: float | None = None,
    rkhs_norm: float | None = None,
    *,
    noise: str | Noise = "reml",
    radius: str = "prior",
    curves: dict[str, tuple[Sequence[int], Sequence[float]]] | None = None,
    curve: tuple[Sequence[int], Sequence[float]] | None = None,
    patience: int | None = None,
    min_delta: float = 0.0,
    times: np.ndarray | None = None,
    folds: int | None = None,
    seed: int = 0,
    targets: np.ndarray | None = None,
    replay: Replay | None = None,
    kernel: object = None,
) -> list[Stop]:
    """Return the stops of several rules on one path, which share one noise estimate and one sweep over time.

    ``noise``: ``reml``, ``gcv`` or a Noise; ``radius``: ``prior`` or ``fit``. ``curves``: measured (times, values) of
    ``holdout`` and ``oracle`` by rule (``curve`` serves one rule alone). ``times``: evaluate at these steps only
    (``time_grid``); the last of them then stands for t_max.
    ``folds``, ``seed``: refits of ``loo`` and ``bayes``. ``targets`` y, when given, are checked for a single class;
    ``bayes`` needs them, for f0 = y - residual. ``replay``: training is on cross-entropy, and ``loo`` and ``bayes``
    read the log-loss of left-out examples along its steps; all other rules are those of squared loss still.
    ``kernel`` is accepted for callers that hold it; the spectrum keeps its matrix.
    """
    _check(spec, filter, t_max, rules, targets)
    steps = np.arange(t_max + 1) if times is None else np.unique(np.asarray(times))
    if replay is not None and len(replay.batches) < steps.max():
        raise ValueError(f"replay: {len(replay.batches)} batches, but the last step considered is {steps.max()}")
    known = _plug_in(spec, residual, noise, radius, sigma, rkhs_norm)
    flags = (*spec.flags, *known.flags)
    if targets is not None and _single_class(spec, targets):
        flags = (*flags, "one_class")
    path = path_moments(spec, residual, filter, steps)
    out = []
    for rule in rules:
        at = steps
        if rule in MEASURED:
            choice, at = _measured(rule, (curves or {}).get(rule) or curve, patience, min_delta)
        elif {"zero_residual", "zero_kernel"} & set(flags):
            choice = Choice(0, np.zeros(steps.size), ("do_not_train",))
        elif not known.serves(rule):
            choice = Choice(None, np.full(steps.size, np.nan), ("no_answer",))
        else:
            choice = _computed(rule, spec, residual, filter, path, known, folds, seed, targets, replay)
        out.append(_stop(rule, choice, at, flags, spec, residual, filter, known, batch_size or spec.examples))
    return out


@dataclass(frozen=True)
class _PlugIn:
    """The sigma and R that the rules use; sigma is nan where it may not be used."""

    sigma: float
    shown_sigma: float
    rkhs_norm: float
    flags: tuple[str, ...]

    def serves(self, rule: str) -> bool:
        needs = {"worst_case": (self.sigma, self.rkhs_norm), "balance": (self.sigma, self.rkhs_norm)}
        return bool(np.isfinite(needs.get(rule, (self.sigma,) if rule in NEED_SIGMA else (0.0,))).all())


def _plug_in(
    spec: Spectrum,
    residual: np.ndarray,
    noise: str | Noise,
    radius: str,
    sigma: float | None,
    rkhs_norm: float | None,
) -> _PlugIn:
    """What the caller knows, and the estimate of the rest."""
    if sigma is not None and rkhs_norm is not None and not isinstance(noise, Noise):
        return _PlugIn(sigma, sigma, rkhs_norm, ())
    estimate = noise if isinstance(noise, Noise) else estimate_noise(spec, residual, noise, sigma)
    shown = sigma if sigma is not None else estimate.sigma
    usable = sigma is not None or estimate.usable
    norm = rkhs_norm if rkhs_norm is not None else estimate.radius(radius)
    return _PlugIn(shown if usable else np.nan, shown, norm, estimate.flags)


def _stop(
    rule: str,
    choice: Choice,
    times: np.ndarray,
    flags: tuple[str, ...],
    spec: Spectrum,
    residual: np.ndarray,
    filter: Filter,
    known: _PlugIn,
    batch_size: int,
) -> Stop:
    t, bound = choice.t, 12 * known.rkhs_norm**2 / choice.crossing if choice.crossing > 0 else np.nan
    return Stop(
        rule=rule,
        t=t,
        eta=np.nan if t is None else float(filter.eta(t)),
        epochs=np.nan if t is None else t * min(1.0, batch_size / spec.examples),
        sigma=known.shown_sigma if choice.sigma is None else choice.sigma,
        rkhs_norm=known.rkhs_norm if choice.rkhs_norm is None else choice.rkhs_norm,
        predicted_risk=_risk_at(t, spec, residual, filter, known.sigma) if choice.risk is None else choice.risk,
        flags=tuple(dict.fromkeys([*choice.flags, *flags])),
        curve=choice.curve,
        times=times,
        crossing=choice.crossing,
        bound=bound,
    )


def stopping_table(
    spec: Spectrum,
    residual: np.ndarray,
    filter: Filter,
    t_max: int,
    rules: Sequence[str],
    batch_size: int | None = None,
    **options: object,
) -> tuple[list[dict[str, object]], list[dict[str, object]]]:
    """Return (one row per rule, one row per rule and time) for the tables of a pipeline; options as in ``stops``."""
    found = stops(spec, residual, filter, t_max, rules, batch_size, **options)  # type: ignore[arg-type]
    curves = [
        {"rule": stop.rule, "t": int(t), "eta": float(eta), "value": float(value)}
        for stop in found
        for t, eta, value in zip(stop.times, filter.eta(stop.times), stop.curve, strict=True)
    ]
    return [stop.row() for stop in found], curves


def judge(t_hat: float | None, curve_t: Iterable[float], curve_loss: Iterable[float], hit: float = HIT) -> dict:
    """Judge a stop on a measured loss curve: regret, relative regret, hit and ratio to the oracle's time.

    ``regret`` = loss at t_hat minus the best loss (absolute; ``relative_regret`` over the best), read off by linear
    interpolation; ``hit``: that loss is within 5 % of the best; ``low``, ``high``: the measured times around the oracle
    within 5 %; ``ratio`` = t_hat / t_oracle (nan when the oracle does not train). t_hat None: nan, and no hit.
    """
    t, loss = np.asarray(list(curve_t), dtype=np.float64), np.asarray(list(curve_loss), dtype=np.float64)
    if t.shape != loss.shape or not t.size or (np.diff(t) <= 0).any():
        raise ValueError("a measured curve needs ascending times and one loss for each")
    finite = np.where(np.isfinite(loss), loss, np.inf)
    best = int(np.argmin(finite))
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


def _check(spec: Spectrum, filter: Filter, t_max: int, rules: Sequence[str], targets: np.ndarray | None) -> None:
    unknown = [rule for rule in rules if rule not in RULES]
    if unknown:
        raise ValueError(f"stopping.rules: {unknown[0]!r} is not one of {', '.join(RULES)}")
    if "bayes" in rules and targets is None:
        raise ValueError("the rule 'bayes' needs the targets y beside the residual y - f0: pass targets=")
    if t_max < 0:
        raise ValueError(f"stopping.t_max must not be negative, found {t_max}")
    largest = float(filter.step_sizes(max(t_max, 1)).max()) * spec.lambda_max
    if largest >= filter.stability:
        raise ValueError(
            f"the step size diverges: lr * lambda_1 = {largest:.4g} must stay below {filter.stability:.4g} "
            f"(lambda_1 of K/m = {spec.lambda_max:.6g}); lower finetune.step_size (or finetune.learning_rate)"
        )


def _single_class(spec: Spectrum, targets: np.ndarray) -> bool:
    if len(spec.layout) > 1:
        return False
    y = np.asarray(targets, dtype=np.float64).reshape(-1, spec.columns)
    return bool((y == y[0]).all())


def _measured(rule: str, curve: tuple | None, patience: int | None, min_delta: float) -> tuple[Choice, np.ndarray]:
    if curve is None:
        raise ValueError(f"the rule {rule!r} reads a measured curve: pass curve=(times, values)")
    times = np.asarray(curve[0])
    if rule == "oracle":
        return _rules.oracle(times, curve[1]), times
    return _rules.holdout(times, curve[1], patience, min_delta), times


def _computed(
    rule: str,
    spec: Spectrum,
    residual: np.ndarray,
    filter: Filter,
    path: Moments,
    known: _PlugIn,
    folds: int | None,
    seed: int,
    targets: np.ndarray | None,
    replay: Replay | None,
) -> Choice:
    if rule == "worst_case":
        return _rules.worst_case(spec, path, filter, known.sigma, known.rkhs_norm)
    if rule == "balance":
        return _rules.balance(path, known.sigma, known.rkhs_norm)
    if rule == "sure":
        return _rules.sure(path, spec.m, known.sigma)
    if rule == "gcv":
        return _rules.gcv(path, spec.m)
    if rule == "discrepancy":
        return _rules.discrepancy(path, known.sigma)
    if spec.examples < 2 or (spec.intercept and min(n for n, _ in spec.layout) < 2):
        return Choice(None, np.full(path.times.size, np.nan), ("too_few_examples",))
    if replay is not None and rule in REPLAYING_RULES:
        return _log_loss(rule, spec, residual, filter, path, folds, seed, replay)
    if rule == "bayes":
        return _bayes(spec, residual, filter, path, folds, seed, targets)
    curve = (
        loo_curve(spec, residual, filter, path.times, folds, seed)
        if rule == "loo"
        else loo_shortcut_curve(spec, residual, filter, path.times)
    )
    return _rules._minimum(path, curve)


def _bayes(
    spec: Spectrum,
    residual: np.ndarray,
    filter: Filter,
    path: Moments,
    folds: int | None,
    seed: int,
    targets: np.ndarray | None,
) -> Choice:
    """Stop at the least expected loss; what it believes of the noise and the radius goes with the choice."""
    y = spec.rows(np.asarray(targets))
    start = y - spec.rows(residual)
    posterior = task_posterior(spec, y, start)
    if posterior is None:
        return _not_identifiable(path)
    choice = _rules._minimum(path, expected_loss(spec, posterior, start, filter, path.times, folds, seed))
    sigma2, risk = posterior.sigma2, float(np.nanmin(choice.curve)) - posterior.sigma2
    return replace(choice, sigma=sigma2**0.5, rkhs_norm=posterior.tau2**0.5, risk=risk)


def _not_identifiable(path: Moments) -> Choice:
    """No answer, for the labels say nothing of the task."""
    return Choice(None, np.full(path.times.size, np.nan), ("no_answer", "not_identifiable"))


def _log_loss(
    rule: str,
    spec: Spectrum,
    residual: np.ndarray,
    filter: Filter,
    path: Moments,
    folds: int | None,
    seed: int,
    replay: Replay,
) -> Choice:
    """Stop at the least log-loss of examples left out, by their labels or by how probable each class is."""
    objective = replay.objective
    start = objective.targets - spec.rows(residual).reshape(objective.targets.shape)
    outputs = left_out_outputs(spec, start, replay, filter, path.times, folds, seed)
    if rule == "loo":
        return replace(_rules._minimum(path, loo_log_loss(objective, outputs)), risk=np.nan)
    posterior, known = task_posterior(spec, objective.targets, start), label_probabilities(spec, objective, start)
    if posterior is None or known is None:
        return _not_identifiable(path)
    probabilities, kept = known
    outputs, objective = outputs[:, kept], objective.rows(kept)
    probabilities = averaged_probabilities(objective, outputs, path.times, probabilities)
    choice = _rules._minimum(path, expected_log_loss(objective, outputs, probabilities))
    return replace(choice, sigma=posterior.sigma2**0.5, rkhs_norm=posterior.tau2**0.5, risk=np.nan)


def _risk_at(t: int | None, spec: Spectrum, residual: np.ndarray, filter: Filter, sigma: float) -> float:
    """SURE at one time."""
    if t is None or not np.isfinite(sigma):
        return np.nan
    return float(_rules.sure(path_moments(spec, residual, filter, np.array([t])), spec.m, sigma).curve[0])
