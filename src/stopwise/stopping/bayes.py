"""The expected test loss along the path, from a model of the task whose unknowns are averaged, not estimated.

The targets are modelled as y = s f0 + b + g + noise: the start's outputs f0 enter with a slope s of their own, since a
pretrained model's outputs order the examples well but have the wrong scale; g ~ N(0, tau^2 K_n), noise ~ N(0, sigma^2).
Training starts at f0, so it has to learn r = y - f0 = (s - 1) f0 + b + g + noise. How fast it unlearns (s - 1) f0 is
known exactly, for that part is known at every example; how fast it learns g, and how much noise it fits, follow from
the kernel. Nothing is plugged in: with flat priors on s, b and log tau, and mu = sigma^2/tau^2 spread evenly in log
between the smallest and the largest eigenvalue (from lower where the kernel has null directions), the posterior of all
four is explicit but for a sum over mu, so that an estimate at the end of its range (sigma = 0, tau = 0) does not
silence the rule.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from stopwise.linearized.filters import Filter
from stopwise.linearized.spectrum import Spectrum
from stopwise.stopping.leave_one_out import leave_out_groups
from stopwise.stopping.refits import Refit, Taker, watch

GRID_POINTS = 81
# Eigenvalues below this share of the largest are rounding: they do not widen the range of mu.
ROUNDING = 1e-9
# How far below the smallest eigenvalue mu may lie when the kernel has null directions.
NULL_RANGE = 1e-6
# A start whose outputs vary less than this share of the targets has no slope to fit.
CONSTANT_START = 1e-12
# The largest scale that is advised: larger targets are further away, and training departs from the kernel on the way.
LARGEST_SCALE = 8.0
# Up to so many steps for each refit the steps themselves are cheaper than a decomposition for each: a step costs 4 m^3
# operations for all refits together, a decomposition about 22 m^3, at less than half the speed of a product.
STEPS_PER_REFIT = 8


@dataclass(frozen=True)
class Posterior:
    """What the labels say of the task: posterior means, for one task or several stacked in a joint kernel (p of them).

    ``sigma2`` and ``tau2``: of the noise's and the signal's variance; ``slope`` float64 [p] of s; ``start`` float64
    [p, p] of (s - 1)(s - 1)', which weighs what training has not unlearned of f0 (nan and 0 where f0 is constant).
    """

    sigma2: float
    tau2: float
    slope: np.ndarray
    start: np.ndarray


def task_posterior(
    spec: Spectrum, targets: np.ndarray, start: np.ndarray, slope_known: bool = False, plug_in: bool = False
) -> Posterior | None:
    """Return the posterior given targets y and outputs f0 of the training examples, each [m] or [examples, columns].

    In the eigenvectors of P K_n P, for each mu: s by generalised least squares of z_y on z_f0 with weights
    1/(lambda + mu), tau^2 from its residual sum of squares, and the likelihood of mu with s and tau integrated out
    (Patterson & Thompson 1971; Wahba 1990, ch. 4). ``slope_known`` holds s at 1, as if all of r were g and noise;
    ``plug_in`` takes the most likely mu as if it were certain: both are there for comparison. None when the labels say
    nothing: fewer than 4 degrees of freedom beyond the slopes, a flat or zero spectrum, equal targets, or targets that
    f0 fits exactly. Examples that repeat another with the same target are left out. Cost O(81 m).
    """
    distinct, rows = spec.without_repeats(targets, start)
    if rows.size < spec.m:
        y, f0 = spec.rows(targets)[rows], spec.rows(start)[rows]
        found = task_posterior(distinct, y, f0, slope_known, plug_in)
        # The prior tau^2 K/m of all rows is that of the kept ones.
        return None if found is None else replace(found, tau2=found.tau2 * spec.m / rows.size)
    fit = _fit(spec, targets, start, slope_known, plug_in)
    if fit is None:
        return None
    tau2, belief, told = fit.left / (fit.freedom - 2), fit.belief, fit.told
    spread = np.linalg.inv(fit.gram) * tau2[:, None, None]
    outer = (fit.slope - 1)[:, :, None] * (fit.slope - 1)[:, None, :] + spread
    slopes, weighed = np.full(told.size, np.nan), np.zeros((told.size, told.size))
    slopes[told], weighed[np.ix_(told, told)] = belief @ fit.slope, np.einsum("g,gab->ab", belief, outer)
    return Posterior(float(belief @ (tau2 * fit.mu)), float(belief @ tau2), slopes, weighed)


def left_out_means(spec: Spectrum, targets: np.ndarray, start: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Return what the model expects of each example's targets given those of all others, and whose they are.

    float64 [examples, columns] and int64 [examples], without those that repeat another; None as in ``task_posterior``,
    of which the arguments are. For each mu the prediction of a left-out block is y_i - R_ii^-1 (R y)_i, where R is the
    inverse covariance with intercept and slope projected out (Dubrule 1983), and the mean over mu is taken with the
    posterior that all labels give. Cost O(81 m^2 columns).
    """
    spec, rows = spec.without_repeats(targets, start)
    kept = np.unique(rows // spec.columns)
    y, f0 = (np.reshape(values, -1)[rows] for values in (targets, start))
    fit = _fit(spec, y, f0, slope_known=False, plug_in=False)
    if fit is None:
        return None
    n, q, d = spec.examples, spec.columns, spec.degrees
    vectors, z, phi = spec.vectors[:, :d], spec.coefficients(y)[:d], fit.phi
    blocks = vectors.reshape(n, q, d)
    pairs = np.stack([blocks[:, a] * blocks[:, b] for a in range(q) for b in range(q)])
    means = np.zeros((n, q))
    for belief, weight, gram, slope in zip(fit.belief, fit.weight, fit.gram, fit.slope, strict=True):
        known = (vectors @ (weight[:, None] * phi)).reshape(n, q, -1)
        gone = (vectors @ (weight * (z - phi @ slope))).reshape(n, q, 1)
        inverse = (pairs @ weight).T.reshape(n, q, q)
        inverse = inverse - known @ np.linalg.solve(gram, known.transpose(0, 2, 1))
        means -= belief * np.linalg.solve(inverse, gone)[..., 0]
    return y.reshape(n, q) + means, kept


@dataclass(frozen=True)
class _Fit:
    """The model at every mu of the grid: ``weight`` 1/(lambda + mu) [g, d], ``gram`` [g, p, p] and ``slope`` [g, p] of
    the starts ``phi`` [d, p] that vary (``told``), ``left`` the residual sum of squares and ``belief`` of each [g].
    """

    mu: np.ndarray
    phi: np.ndarray
    told: np.ndarray
    weight: np.ndarray
    gram: np.ndarray
    slope: np.ndarray
    left: np.ndarray
    belief: np.ndarray
    freedom: int


def _fit(spec: Spectrum, targets: np.ndarray, start: np.ndarray, slope_known: bool, plug_in: bool) -> _Fit | None:
    """Sum the model up over the grid of mu; None when the labels say nothing."""
    lam, d = spec.eigenvalues[: spec.degrees], spec.degrees
    z = spec.coefficients(targets)[:d]
    phi = np.stack([spec.coefficients(f0)[:d] for f0 in _start_rows(spec, start).T], axis=1)
    energy = float(z @ z)
    told = (phi**2).sum(axis=0) > CONSTANT_START * energy
    if slope_known:
        z, told = z - phi.sum(axis=1), np.zeros_like(told)
    phi, k = phi[:, told], d - int(told.sum())
    equal = energy <= ROUNDING**2 * float(np.sum(spec.rows(targets) ** 2))
    if k < 4 or equal or {"zero_kernel", "flat_spectrum"} & set(spec.flags):
        return None
    mu = _noise_range(lam)
    weight = 1 / (lam + mu[:, None])
    gram = np.einsum("gi,ia,ib->gab", weight, phi, phi)
    slope = np.linalg.solve(gram, np.einsum("gi,ia,i->ga", weight, phi, z)[..., None])[..., 0]
    left = np.einsum("gi,gi->g", weight, (z - slope @ phi.T) ** 2)
    if left.min() <= 1e-20 * energy / lam[0]:
        return None
    score = k * np.log(left) - np.log(weight).sum(axis=1) + np.linalg.slogdet(gram)[1]
    belief = np.exp(-(score - score.min()) / 2)
    belief = (belief == belief.max()) * 1.0 if plug_in else belief
    return _Fit(mu, phi, told, weight, gram, slope, left, belief / belief.sum(), k)


def fitted_target_scale(spec: Spectrum, targets: np.ndarray, start: np.ndarray) -> float:
    """Return the scale a in 1..8 for which targets a y continue the start's outputs instead of shrinking them.

    A pretrained model orders the examples with outputs f0 that are larger than targets y of scale 1: the slope s of y
    on f0 is below 1, and training on y unlearns (s - 1) f0 first, the order with it. Against targets y/s nothing is to
    be unlearned. a = 1/s, s the posterior mean, to two digits; the largest where the labels do not follow the start
    (s below 1/8), 1 where they say nothing or the start is constant. ``targets`` of scale 1, ``start`` f0, each [m] or
    [examples, columns], of one task.
    """
    posterior = task_posterior(spec, targets, start)
    if posterior is None or not np.isfinite(posterior.slope[0]):
        return 1.0
    return float(f"{np.clip(1 / max(posterior.slope[0], 1 / LARGEST_SCALE), 1.0, LARGEST_SCALE):.2g}")


def expected_loss(
    spec: Spectrum,
    posterior: Posterior,
    start: np.ndarray,
    filter: Filter,
    times: np.ndarray,
    folds: int | None = None,
    seed: int = 0,
) -> np.ndarray:
    """Return the expected squared error on a new example at each time; float64 [len(times)].

    A new example is each training example in turn, the path refitted without it (folds above n = 256, as in
    ``loo_curve``); its label is never used. Without the examples left out, the prediction of r at x is h(t)' r with
    h = E-mean + U y, y = (I - V V') diag(s_i/(m lambda_i)) U' k, V the column means of U: so the signal's part is
    tau^2/m [k(x,x) - 2 h'k + h'Kh], the noise's sigma^2 (1 + h'h), the start's the error of the path that is given f0.
    Cost as ``loo_curve``; for few steps two products of m x m matrices a step, whatever the number of refits.
    """
    return expected_losses(spec, [posterior], start, filter, times, folds, seed)[0]


def expected_losses(
    spec: Spectrum,
    posteriors: Sequence[Posterior],
    start: np.ndarray,
    filter: Filter,
    times: np.ndarray,
    folds: int | None = None,
    seed: int = 0,
) -> list[np.ndarray]:
    """Return the ``expected_loss`` under each posterior; all of them share the refits."""
    if not posteriors:
        return []
    groups = leave_out_groups(spec.examples, folds, seed)
    if by_steps(filter, times, groups):
        return _iterated_losses(spec, posteriors, start, filter, times, groups)
    seen = [ExpectedLoss(spec, posterior, start, times) for posterior in posteriors]
    watch(spec, groups, filter, times, seen)
    return [one.curve() for one in seen]


def by_steps(filter: Filter, times: np.ndarray, groups: Sequence[np.ndarray]) -> bool:
    """Whether ``expected_loss`` follows the steps of all refits together instead of decomposing each."""
    return filter.iterates and int(np.max(times, initial=0)) <= STEPS_PER_REFIT * len(groups)


class ExpectedLoss:
    """The terms of ``expected_loss``, summed while refits go by (a ``Watcher``).

    All rows of a group are read off the same path: what is linear in y(t) = (I - V V') g(t) U'k/m is a product of
    g = s/lambda [times, m'] and U'k/m [m', rows], what is quadratic a product of g^2, less what V V' takes out. Cost:
    3 such products, 2 for each column of an intercept and 1 for each start; memory: 5 matrices of the size of U'k.
    """

    def __init__(self, spec: Spectrum, posterior: Posterior, start: np.ndarray, times: np.ndarray) -> None:
        self.spec, self.posterior, self.total = spec, posterior, np.zeros(len(times))
        self.column, self.known = _columns(spec), _start_rows(spec, start)

    def begin(self, refit: Refit) -> Taker:
        """Return what adds the expected errors of the group at a block of times."""
        spec, out, rows, energy = self.spec, refit.out, refit.rows, refit.m * refit.values
        means, shared = _intercept(spec, self.column[~out])
        offsets, passed = refit.vectors.T @ shared, refit.vectors.T @ self.known[~out]  # V [m', q], [m', p]
        at = means[self.column[rows]]  # E-mean of each row [rows, m']
        gone = self.known[out] - at @ self.known[~out]
        features = refit.vectors.T @ refit.across.T  # U'k [m', rows]
        crossed = 2 * energy[:, None] * (refit.vectors.T @ at.T) - 2 * features
        fixed = spec.matrix[rows, rows] - 2 * (refit.across * at).sum(1) + ((at @ refit.inside) * at).sum(1)
        moved, size = features / refit.m, (at**2).sum(1)
        weighed, direct, squared = energy[:, None] * offsets, moved * crossed, moved**2
        inner, inner_weighed = offsets.T @ offsets, offsets.T @ weighed
        inner_crossed, inner_passed = offsets.T @ crossed, offsets.T @ passed

        def take(block: slice, gain: np.ndarray) -> None:
            def along(directions: np.ndarray) -> np.ndarray:
                """d'y before V V' is taken out of y, for each direction d; [times, directions, rows]."""
                return np.stack([(gain * d) @ moved for d in directions.T], axis=1)

            mean, heavy, reached, gain2 = along(offsets), along(weighed), along(passed), gain**2
            signal = fixed + gain @ direct - (mean * inner_crossed).sum(1)
            signal += (gain2 * energy) @ squared - 2 * (mean * heavy).sum(1) + _form(mean, inner_weighed)
            noise = size + gain2 @ squared - 2 * (mean**2).sum(1) + _form(mean, inner)
            errors = gone.T - reached + np.einsum("tqr,qp->tpr", mean, inner_passed)
            unlearned = _form(errors, self.posterior.start)
            loss = self.posterior.tau2 / spec.m * signal + self.posterior.sigma2 * noise + unlearned
            self.total[block] += loss.sum(axis=1)

        return take

    def curve(self) -> np.ndarray:
        """Return the expected squared error at each time, float64 [times], once every group has gone by."""
        return self.total / self.spec.m + self.posterior.sigma2


def _form(x: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """x' M x over the middle axis of x [times, a, rows]; [times, rows]."""
    return (np.einsum("tar,ab->tbr", x, matrix) * x).sum(axis=1)


def _iterated_losses(
    spec: Spectrum,
    posteriors: Sequence[Posterior],
    start: np.ndarray,
    filter: Filter,
    times: np.ndarray,
    groups: list[np.ndarray],
) -> list[np.ndarray]:
    """Return what ``expected_losses`` does, all refits together, by the steps themselves instead of decompositions.

    Column j of each matrix belongs to row j left out: its entries in the rows of j's group are 0, so that the products
    with the whole kernel are those of the refit's own. Equal to the other way but for rounding.
    """
    kernel, column, known = spec.matrix, _columns(spec), _start_rows(spec, start)
    group_of = np.empty(spec.examples, dtype=int)
    for number, group in enumerate(groups):
        group_of[group] = number
    own = group_of[spec.row_examples()]
    kept = (own[:, None] != own).astype(np.float64)
    rows_kept = kept.sum(axis=0)
    # Indicators of the columns' kept rows over their number: the weights of a mean, [m, m] for each row left out.
    names = np.arange(sum(q for _, q in spec.layout))
    member = (column == names[:, None]) * float(spec.intercept)
    sizes = np.maximum(member @ kept, 1.0)
    means = kept * member.T[:, column] / sizes[column, np.arange(spec.m)]
    first = means.T @ known
    at = {int(t): i for i, t in enumerate(times)}
    losses = np.zeros((len(posteriors), len(times)))

    def loss(g: np.ndarray) -> list[float]:
        y = g - kept * (member.T @ ((member @ g) / sizes))
        h = means + y
        signal = np.diag(kernel).sum() - 2 * (h * kernel).sum() + (h * (kernel @ h)).sum()
        noise = (means**2).sum() + (y**2).sum()
        errors = known - first - y.T @ known
        unlearned = [((errors @ one.start) * errors).sum() for one in posteriors]
        parts = zip(posteriors, unlearned, strict=True)
        return [one.tau2 / spec.m * signal + one.sigma2 * noise + own for one, own in parts]

    def apply(g: np.ndarray) -> np.ndarray:
        return kept * (kernel @ g) / rows_kept

    path = filter.weights(apply, kept * kernel / rows_kept, max(at, default=0))
    for step, g in enumerate(itertools.chain([np.zeros_like(kernel)], path)):
        if step in at:
            losses[:, at[step]] = loss(g)
    return [own / spec.m + one.sigma2 for one, own in zip(posteriors, losses, strict=True)]


def _noise_range(lam: np.ndarray) -> np.ndarray:
    """The grid of mu: over the eigenvalues, and far below them when some are 0.

    Directions that the kernel cannot reach show the noise alone, so that the labels themselves bound it from below;
    where there are none, no direction tells noise below the smallest eigenvalue from signal.
    """
    reached = lam[lam > ROUNDING * lam[0]]
    low = reached.min() * (1.0 if reached.size == lam.size else NULL_RANGE)
    return np.geomspace(low, lam[0], GRID_POINTS)


def _columns(spec: Spectrum) -> np.ndarray:
    """The intercept of each row: columns numbered through all tasks; int64 [m]."""
    starts = np.cumsum([0, *(q for _, q in spec.layout)])
    return np.concatenate([starts[a] + np.tile(np.arange(q), n) for a, (n, q) in enumerate(spec.layout)])


def _intercept(spec: Spectrum, column: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row c: the weights that give column c's mean over the kept rows; and the same indicators with norm 1, [m, q]."""
    names = np.arange(sum(q for _, q in spec.layout))
    member = (column == names[:, None]) * float(spec.intercept)
    size = np.maximum(member.sum(axis=1, keepdims=True), 1.0)
    return member / size, (member / np.sqrt(size)).T


def _start_rows(spec: Spectrum, start: np.ndarray) -> np.ndarray:
    """f0 of each task in a column of its own, 0 in the other tasks' rows; [m, p]."""
    f0, owner = spec.rows(start), np.repeat(np.arange(len(spec.layout)), [n * q for n, q in spec.layout])
    return f0[:, None] * (owner[:, None] == np.arange(len(spec.layout)))
