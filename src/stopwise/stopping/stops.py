"""When to stop: every rule of the registry behind one function.

All but those that read a measured curve are computed before the first step, from the spectrum and the residual.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from stopwise.linearized.filters import Filter
from stopwise.linearized.noise import Noise, estimate_noise
from stopwise.linearized.spectrum import Spectrum
from stopwise.stopping import closed_form as rules
from stopwise.stopping import left_out_rules
from stopwise.stopping.known import COMPUTED, READ, BeforeTraining, Choice, Known, MeasuredCurve, path_moments
from stopwise.stopping.registry import MEASURED, RADIUS, ROW, RULES, SCALE, SIGMA, TARGETS

MEASURING = ("curve", "patience", "min_delta")


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
    """Return where one rule stops a filter's path, before training; see ``BeforeTraining`` for the options.

    ``residual`` is y - f0, [m] or [examples, columns]; ``t_max`` the last step considered; ``sigma`` and ``rkhs_norm``
    None are estimated. A rule that reads a measured curve takes ``curve`` = (times, values), ``patience`` and
    ``min_delta``. Raises ValueError for an unknown rule, a diverging step size, or a measured rule without its
    curve. Cost O(t_max m) beside the decomposition; ``loo`` O(n m^3), ``loo_shortcut`` O(t_max m^2).
    """
    options.pop("kernel", None)  # accepted for callers that hold it; the spectrum keeps its matrix
    measuring = {key: options.pop(key) for key in MEASURING if key in options}
    run = BeforeTraining(spec, residual, filter, t_max, batch_size, sigma, rkhs_norm, **options)  # type: ignore[arg-type]
    curve = measuring.pop("curve", None)
    measured = {} if curve is None else {rule: MeasuredCurve(*curve, **measuring)}  # type: ignore[misc, arg-type]
    return stops(run, [rule], measured)[0]


def stops(run: BeforeTraining, names: Sequence[str], measured: Mapping[str, MeasuredCurve] | None = None) -> list[Stop]:
    """Return the stops of several rules on one path, which share the noise, the sweep over time and the refits.

    ``measured``: the curves of the rules that read one, by rule. Raises ValueError for an unknown rule, a rule without
    what it needs, a diverging step size, or fewer replayed batches than steps.
    """
    _check(run, names)
    steps, plug_in = run.steps, _plug_in(run)
    flags = (*run.spec.flags, *plug_in.flags)
    if run.targets is not None and _single_class(run.spec, run.targets):
        flags = (*flags, "one_class")
    path = path_moments(run.spec, run.residual, run.filter, steps)
    known = Known(run, path, plug_in.sigma, plug_in.rkhs_norm, tuple(names))
    out = []
    for rule in names:
        at = steps
        if rule in READ:
            curve = _curve(rule, measured or {})
            choice, at = READ[rule](curve), np.asarray(curve.times)
        elif {"zero_residual", "zero_kernel"} & set(flags):
            choice = Choice(0, np.zeros(steps.size), ("do_not_train",))
        elif not plug_in.serves(rule):
            choice = Choice(None, np.full(steps.size, np.nan), ("no_answer",))
        else:
            choice = COMPUTED[rule](known)
        out.append(_stop(rule, choice, at, flags, run, plug_in))
    return out


def _curve(rule: str, measured: Mapping[str, MeasuredCurve]) -> MeasuredCurve:
    if rule not in measured:
        raise ValueError(f"the rule {rule!r} reads a measured curve: pass curve=(times, values)")
    return measured[rule]


@dataclass(frozen=True)
class _PlugIn:
    """The sigma and R that the rules use; sigma is nan where it may not be used."""

    sigma: float
    shown_sigma: float
    rkhs_norm: float
    flags: tuple[str, ...]

    def serves(self, rule: str) -> bool:
        """Return whether all numbers that the rule needs are there."""
        numbers = {SIGMA: self.sigma, RADIUS: self.rkhs_norm, SCALE: self.rkhs_norm}
        return all(np.isfinite(numbers.get(need, 0.0)) for need in ROW[rule].needs)


def _plug_in(run: BeforeTraining) -> _PlugIn:
    """What the caller knows, and the estimate of the rest."""
    sigma, rkhs_norm, noise = run.sigma, run.rkhs_norm, run.noise
    if sigma is not None and rkhs_norm is not None and not isinstance(noise, Noise):
        return _PlugIn(sigma, sigma, rkhs_norm, ())
    estimate = noise if isinstance(noise, Noise) else estimate_noise(run.spec, run.residual, noise, sigma)
    shown = sigma if sigma is not None else estimate.sigma
    usable = sigma is not None or estimate.usable
    norm = rkhs_norm if rkhs_norm is not None else estimate.radius(run.radius)
    return _PlugIn(shown if usable else np.nan, shown, norm, estimate.flags)


def _stop(
    rule: str, choice: Choice, times: np.ndarray, flags: tuple[str, ...], run: BeforeTraining, plug_in: _PlugIn
) -> Stop:
    t, bound = choice.t, 12 * plug_in.rkhs_norm**2 / choice.crossing if choice.crossing > 0 else np.nan
    batch_size = run.batch_size or run.spec.examples
    return Stop(
        rule=rule,
        t=t,
        eta=np.nan if t is None else float(run.filter.eta(t)),
        epochs=np.nan if t is None else t * min(1.0, batch_size / run.spec.examples),
        sigma=plug_in.shown_sigma if choice.sigma is None else choice.sigma,
        rkhs_norm=plug_in.rkhs_norm if choice.rkhs_norm is None else choice.rkhs_norm,
        predicted_risk=_risk_at(t, run, plug_in.sigma) if choice.risk is None else choice.risk,
        flags=tuple(dict.fromkeys([*choice.flags, *flags])),
        curve=choice.curve,
        times=times,
        crossing=choice.crossing,
        bound=bound,
    )


def stopping_table(
    run: BeforeTraining, names: Sequence[str]
) -> tuple[list[dict[str, object]], list[dict[str, object]]]:
    """Return (one row per rule, one row per rule and time) for the tables of a pipeline."""
    found = stops(run, names)
    curves = [
        {"rule": stop.rule, "t": int(t), "eta": float(eta), "value": float(value)}
        for stop in found
        for t, eta, value in zip(stop.times, run.filter.eta(stop.times), stop.curve, strict=True)
    ]
    return [stop.row() for stop in found], curves


def _check(run: BeforeTraining, names: Sequence[str]) -> None:
    unknown = [rule for rule in names if rule not in RULES]
    if unknown:
        raise ValueError(f"stopping.rules: {unknown[0]!r} is not one of {', '.join(RULES)}")
    for rule in names:
        _check_function(rule)
        if TARGETS in ROW[rule].needs and run.targets is None:
            raise ValueError(f"the rule {rule!r} needs the targets y beside the residual y - f0: pass targets=")
    t_max, spec, filter = run.t_max, run.spec, run.filter
    if t_max < 0:
        raise ValueError(f"stopping.t_max must not be negative, found {t_max}")
    largest = float(filter.step_sizes(max(t_max, 1)).max()) * spec.lambda_max
    if largest >= filter.stability:
        raise ValueError(
            f"the step size diverges: lr * lambda_1 = {largest:.4g} must stay below {filter.stability:.4g} "
            f"(lambda_1 of K/m = {spec.lambda_max:.6g}); lower finetune.step_size (or finetune.learning_rate)"
        )
    if run.replay is not None and len(run.replay.batches) < run.steps.max():
        last = run.steps.max()
        raise ValueError(f"replay: {len(run.replay.batches)} batches, but the last step considered is {last}")


def _check_function(rule: str) -> None:
    """Refuse a rule that has a row in the registry and no function."""
    how, known = ("reads", READ) if rule in MEASURED else ("computes", COMPUTED)
    if rule not in known:
        raise ValueError(
            f"the rule {rule!r} has a row in the registry and no function: write one under @{how}({rule!r}) in"
            f" {rules.__name__} or {left_out_rules.__name__}"
        )


def _single_class(spec: Spectrum, targets: np.ndarray) -> bool:
    if len(spec.layout) > 1:
        return False
    y = np.asarray(targets, dtype=np.float64).reshape(-1, spec.columns)
    return bool((y == y[0]).all())


def _risk_at(t: int | None, run: BeforeTraining, sigma: float) -> float:
    """SURE at one time."""
    if t is None or not np.isfinite(sigma):
        return np.nan
    path = path_moments(run.spec, run.residual, run.filter, np.array([t]))
    return float(rules.unbiased_risk(path, run.spec.m, sigma)[0])
