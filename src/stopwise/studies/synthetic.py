"""Regression in a known RKHS: f*, sigma, R and the decay exactly known, to check what the theory says.

Kernel K(x, x') = sum_k lambda_k phi_k(x) phi_k(x') on [0, 1] with phi_k(x) = sqrt(2) cos(pi k x), orthonormal under the
uniform law of x, so population risks are exact sums. The start f0 is not zero and the target is f* = f0 + sum_k a_k
sqrt(lambda_k) phi_k with |a|^2 = R^2: theory speaks of f* - f0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from stopwise.linearized.filters import Filter, GradientDescent, Ridge
from stopwise.linearized.spectrum import Spectrum
from stopwise.stopping.judging import HIT, judge
from stopwise.stopping.known import BeforeTraining
from stopwise.stopping.registry import NEED_SIGMA, PREDICTED, REFITTED, ROW, SCALE
from stopwise.stopping.stops import stops, time_grid

FEATURES = 512
SIGMA = 0.25
RADIUS = 1.0
# Equal eigenvalues make the bias of early stopping vanish exponentially: noise small enough to see the rate r/m alone.
FINITE_RANK_SIGMA = 0.1
RANK = 4
DECAYS = ("finite_rank", "beta1", "beta2", "exponential")
# Leave-one-out is exact up to this many examples, ten folds above: the study repeats it hundreds of times.
EXACT_LOO = 64
T_MAX = 20_000
TIME_POINTS = 240
# The scale of a prior is no property of a fixed f*, and so estimated even where sigma and R are known.
KNOW_ALL = tuple(rule for rule in NEED_SIGMA if SCALE not in ROW[rule].needs)
KNOW_SIGMA = tuple(rule for rule in NEED_SIGMA if SCALE in ROW[rule].needs)
FREE_OF_NOISE = tuple(rule for rule in PREDICTED if rule not in NEED_SIGMA)


@dataclass(frozen=True)
class Problem:
    """A regression problem: population ``eigenvalues`` [D], target weights ``weights`` [D], |weights| = R, noise."""

    name: str
    eigenvalues: np.ndarray
    weights: np.ndarray
    sigma: float

    @classmethod
    def of(cls, decay: str, sigma: float | None = None, radius: float = RADIUS) -> Problem:
        """Return the problem of a named decay: ``finite_rank``, ``beta1``, ``beta2`` (k^-2 beta) or ``exponential``.

        The target's weights a_k^2 fall like 1/k (equal over the rank, and over the first 16 directions of the
        exponential): at the edge of the RKHS, where the bias is of the order R^2/eta and the worst-case rate shows.
        ``sigma`` None is 0.25 (0.1 for finite rank). Raises ValueError for another name.
        """
        k = np.arange(1, FEATURES + 1, dtype=np.float64)
        laws = {
            "finite_rank": np.where(k <= RANK, 1.0, 0.0),
            "beta1": k**-2.0,
            "beta2": k**-4.0,
            "exponential": np.exp(-(k - 1) / 2),
        }
        if decay not in laws:
            raise ValueError(f"decay {decay!r} is not one of {', '.join(DECAYS)}")
        lam = laws[decay]
        flat = {"finite_rank": RANK, "exponential": 16}
        share = np.where(k <= flat[decay], 1.0, 0.0) if decay in flat else 1 / k
        signs = np.where(np.arange(k.size) % 3 == 1, -1.0, 1.0)
        sigma = sigma if sigma is not None else FINITE_RANK_SIGMA if decay == "finite_rank" else SIGMA
        return cls(decay, lam, signs * radius * np.sqrt(share / share.sum()), sigma)

    @property
    def radius(self) -> float:
        """R = |f* - f0| in the RKHS norm."""
        return float(np.linalg.norm(self.weights))

    def features(self, x: np.ndarray) -> np.ndarray:
        """Return phi_k(x), float64 [len(x), D]."""
        return np.sqrt(2) * np.cos(np.pi * np.outer(x, np.arange(1, FEATURES + 1)))

    def draw(self, m: int, rng: np.random.Generator) -> Sample:
        """Draw m inputs and noisy outputs; the residual is y - f0(x), with f0 the fixed non-zero start."""
        x = rng.uniform(size=m)
        phi = self.features(x)
        start = 1.5 - 2.0 * x + np.sin(5.0 * x)
        signal = phi @ (np.sqrt(self.eigenvalues) * self.weights)
        y = start + signal + self.sigma * rng.standard_normal(m)
        return Sample(self, phi, signal, y - start, (phi * self.eigenvalues) @ phi.T, start)


@dataclass(frozen=True)
class Sample:
    """One data set: features [m, D], f* - f0 at the inputs [m], the residual [m], the Gram matrix [m, m], f0 [m]."""

    problem: Problem
    phi: np.ndarray
    signal: np.ndarray
    residual: np.ndarray
    matrix: np.ndarray
    start: np.ndarray

    def part(self, rows: slice) -> Sample:
        """Return the data set of some of the examples."""
        phi, signal, residual = self.phi[rows], self.signal[rows], self.residual[rows]
        return Sample(self.problem, phi, signal, residual, self.matrix[rows, rows], self.start[rows])

    def risk_path(self, spec: Spectrum, filter: Filter, times: np.ndarray) -> np.ndarray:
        """Return the population risk |f_t - f*|^2 in L2 along the path, exactly; float64 [len(times)]."""
        lam, z, eta = spec.eigenvalues, spec.coefficients(self.residual) / spec.m, filter.eta(times)
        basis = self.problem.eigenvalues[:, None] * (self.phi.T @ spec.vectors) * z
        truth, out = np.sqrt(self.problem.eigenvalues) * self.problem.weights, np.empty(len(times))
        for rows, s in filter.sweep(lam, times):
            fitted = filter.gain_of(s, lam, eta[rows]) @ basis.T
            out[rows] = ((fitted - truth) ** 2).sum(axis=1)
        return out

    def in_sample_risk(self, spec: Spectrum, filter: Filter, t: int) -> float:
        """Return (1/m) |f_t - f*|^2 at the inputs: what the theorem bounds."""
        s = filter.shrinkage(spec.eigenvalues, t)
        fitted = spec.vectors @ (s * spec.coefficients(self.residual))
        return float(np.mean((fitted - self.signal) ** 2))


def _row(rule: str, known: bool, t: int | None, flags: Sequence[str], times: np.ndarray, loss: np.ndarray) -> dict:
    """A judged stop: the loss is risk + sigma^2, what a test set would show."""
    seen = judge(t, times, loss)
    return {
        "rule": rule,
        "known": known,
        "t": t,
        "t_oracle": seen["t_oracle"],
        "loss": seen["loss"],
        "loss_oracle": seen["loss_oracle"],
        "relative_regret": seen["relative_regret"],
        "hit": seen["hit"],
        "ratio": seen["ratio"],
        "flags": list(flags),
        "risk": None,
        "sigma": None,
        "rkhs_norm": None,
        "critical_risk": None,
        "bound_share": None,
    }


def judge_rules(sample: Sample, loo: bool = True, seed: int = 0) -> list[dict]:
    """Judge every rule on one data set, with sigma and R known and with both estimated; plain rows.

    ``known`` rows exist for the rules that use sigma, ``estimated`` ones for all (``balance`` has tau estimated even
    there: its prior scale is no property of a fixed f*). ``holdout`` trains on three quarters
    of the same examples and chooses on the rest: both ways of stopping get m labels. Losses are population risk +
    sigma^2; ``bound_share`` is the in-sample risk of worst_case over 12 R^2 / eta*, ``critical_risk`` = R^2 / eta* is
    the R^2 eps^2 of the theorem.
    """
    problem, m = sample.problem, len(sample.residual)
    spec = Spectrum.of(sample.matrix)
    filter, times = GradientDescent(1 / spec.lambda_max), time_grid(T_MAX, TIME_POINTS)
    risk = sample.risk_path(spec, filter, times)
    loss, rows = risk + problem.sigma**2, []
    folds, y = None if m <= EXACT_LOO else 10, sample.start + sample.residual
    run = BeforeTraining(spec, sample.residual, filter, T_MAX, times=times, folds=folds, seed=seed, targets=y)
    noisy = replace(run, sigma=problem.sigma)
    known = [*stops(noisy, KNOW_SIGMA), *stops(replace(noisy, rkhs_norm=problem.radius), KNOW_ALL)]
    names = [*NEED_SIGMA, *(rule for rule in FREE_OF_NOISE if loo or rule not in REFITTED)]
    estimated = stops(run, names)
    for is_known, found in ((True, known), (False, estimated)):
        for stop in found:
            row = _row(stop.rule, is_known, stop.t, stop.flags, times, loss)
            row |= {"risk": row["loss"] - problem.sigma**2, "sigma": stop.sigma, "rkhs_norm": stop.rkhs_norm}
            if stop.rule == "worst_case" and stop.t is not None:
                inside = sample.in_sample_risk(spec, filter, stop.t)
                row |= {"critical_risk": stop.bound / 12, "bound_share": inside / stop.bound}
            rows.append(row)
    rows.append(_holdout_row(sample, times, loss))
    best = int(np.argmin(loss))
    rows.append(_row("oracle", True, int(times[best]), (), times, loss) | {"risk": risk[best]})
    return rows


def _holdout_row(sample: Sample, times: np.ndarray, loss: np.ndarray) -> dict:
    """Hold-out at equal data: its loss is that of the model trained on three quarters, judged by the whole's oracle."""
    m = len(sample.residual)
    cut = m - m // 4
    train = sample.part(slice(0, cut))
    spec = Spectrum.of(train.matrix)
    filter = GradientDescent(1 / spec.lambda_max)
    c = sample.matrix[cut:, :cut] @ spec.vectors * (spec.coefficients(train.residual) / cut)
    validation, eta = np.empty(len(times)), filter.eta(times)
    for rows, s in filter.sweep(spec.eigenvalues, times):
        fitted = filter.gain_of(s, spec.eigenvalues, eta[rows]) @ c.T
        validation[rows] = ((sample.residual[cut:] - fitted) ** 2).mean(axis=1)
    chosen = int(np.argmin(validation))
    reached = float(train.risk_path(spec, filter, times[[chosen]])[0]) + sample.problem.sigma**2
    best = float(loss.min())
    row = _row("holdout", False, int(times[chosen]), (), times, loss)
    return row | {
        "loss": reached,
        "risk": reached - sample.problem.sigma**2,
        "relative_regret": reached / best - 1,
        "hit": reached <= (1 + HIT) * best,
    }


def study(
    decay: str, sizes: Sequence[int], repeats: int, seed: int = 0, first: int = 0, loo: bool = True
) -> list[dict]:
    """Judge all rules on ``repeats`` data sets of each size; rows carry decay, m and repeat.

    Each data set has its own random stream, seeded by (seed, decay, m, repeat), so that ``first`` splits a study into
    jobs with equal numbers. Cost about 0.3 s a data set at m = 256.
    """
    problem, out = Problem.of(decay), []
    for m in sizes:
        for repeat in range(first, first + repeats):
            rng = np.random.default_rng([seed, DECAYS.index(decay), m, repeat])
            rows = judge_rules(problem.draw(m, rng), loo, seed=repeat)
            out += [{"decay": decay, "m": m, "repeat": repeat} | row for row in rows]
    return out


def ridge_and_descent(
    decay: str, m: int, repeats: int, seed: int = 0, points: int = 60, etas: tuple[float, float] = (1.0, 1e5)
) -> list[dict]:
    """Return the risk of gradient descent at eta and of ridge at mu = 1/eta, on the same data sets; plain rows.

    One row per (filter, eta): mean risk over repeats with its 95 % interval (normal), and the mean over repeats of each
    one's own best risk. Descent runs at alpha = 1/lambda_1, so its etas are the nearest whole steps.
    """
    problem, grid = Problem.of(decay), np.geomspace(*etas, points)
    risks: dict[str, list[np.ndarray]] = {"descent": [], "ridge": []}
    for repeat in range(repeats):
        rng = np.random.default_rng([seed, 100 + DECAYS.index(decay), m, repeat])
        sample = problem.draw(m, rng)
        spec = Spectrum.of(sample.matrix)
        descent = GradientDescent(0.1 / spec.lambda_max)
        risks["descent"].append(sample.risk_path(spec, descent, np.rint(grid / descent.lr).astype(np.int64)))
        risks["ridge"].append(sample.risk_path(spec, Ridge(), grid))
    rows = []
    for name, found in risks.items():
        stack = np.stack(found)
        mean, half = stack.mean(axis=0), 1.96 * stack.std(axis=0, ddof=1) / np.sqrt(repeats)
        best = float(stack.min(axis=1).mean())
        rows += [
            {"source": decay, "m": m, "filter": name, "eta": eta, "risk": a, "low": a - h, "high": a + h, "best": best}
            for eta, a, h in zip(grid.tolist(), mean.tolist(), half.tolist(), strict=True)
        ]
    return rows
