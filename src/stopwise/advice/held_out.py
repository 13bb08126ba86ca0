"""What training would reach on examples that it has not seen, from the kernel alone (numpy, no torch).

Every estimate here refits the whole procedure (intercept, step size, stopping rule, linearised path) on some examples
and looks at the others, so that the choice of the stopping time is judged like everything else. The outputs follow the
linearised path: how far real training departs from it is outside of what a kernel can say.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy

from stopwise.linearized.coding import columns, predicted_class, targets
from stopwise.linearized.filters import Filter
from stopwise.linearized.paths import linearized_path
from stopwise.linearized.replay import batch_rows
from stopwise.linearized.spectrum import Spectrum
from stopwise.stats import wilson
from stopwise.stopping.folds import stratified_folds

Split = tuple[np.ndarray, np.ndarray]
# (spectrum, residual, targets, filter) -> the step to stop at
Chooser = Callable[[Spectrum, np.ndarray, np.ndarray, Filter], int]
# (spectrum, targets of scale 1, f0) -> the scale of the targets
Scaler = Callable[[Spectrum, np.ndarray, np.ndarray], float]

FOLDS = 10
REPEATS = 5
CURVE_REPEATS = 20
SMALLEST_SIZE = 8
BOOTSTRAP = 2000


@dataclass(frozen=True, eq=False)
class Problem:
    """A training kernel and what belongs to it.

    ``matrix`` [m, m] un-normalised, rows example-major; ``outputs`` f0 [n, columns]; ``labels`` [n] in 0..classes-1;
    ``scale`` of the targets.
    """

    matrix: np.ndarray
    outputs: np.ndarray
    labels: np.ndarray
    classes: int
    scale: float = 1.0

    @property
    def examples(self) -> int:
        """The number of examples n."""
        return len(self.labels)

    @cached_property
    def targets(self) -> np.ndarray:
        """y, float64 [n, columns]."""
        return targets(self.labels, self.classes, scale=self.scale)

    @cached_property
    def residual(self) -> np.ndarray:
        """y - f0, float64 [n, columns]."""
        return self.targets - self.outputs

    def block(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Return the kernel between the rows of examples a and b."""
        q = columns(self.classes)
        return self.matrix[np.ix_(batch_rows(a, q), batch_rows(b, q))]

    def spectrum(self, index: np.ndarray | None = None) -> Spectrum:
        """Return the spectrum of some examples (default: all) with the intercept fitted."""
        index = np.arange(self.examples) if index is None else index
        return Spectrum.of(self.block(index, index), columns(self.classes), intercept=True)


@dataclass(frozen=True, eq=False)
class HeldOut:
    """What examples left out of a fit come to, averaged over the fits that left them out (nan: never left out).

    ``correct`` and ``loss`` [times, n] along the steps 0..t_max; ``chosen_correct`` and ``chosen_loss`` [n] at the step
    that each fit chose for itself; ``steps`` and ``eta`` [fits] those choices; ``trained_on`` examples in the mean fit.
    Losses are those of outputs and targets divided by the fit's scale.
    """

    correct: np.ndarray
    loss: np.ndarray
    chosen_correct: np.ndarray
    chosen_loss: np.ndarray
    steps: np.ndarray
    eta: np.ndarray
    trained_on: int

    @property
    def offset_correct(self) -> np.ndarray:
        """Correctness [n] with nothing but the intercept fitted: the path at step 0."""
        return self.correct[0]


def held_out(
    problem: Problem,
    make_filter: Callable[[float], Filter],
    choose: Chooser,
    t_max: int,
    splits: Iterable[Split],
    scale: Scaler | None = None,
) -> HeldOut:
    """Refit on the first part of every split and look at the second; ``make_filter`` turns lambda_1 into a filter.

    ``scale`` chooses the scale of the targets in each fit (default: the problem's own). Cost per split: two
    decompositions of the part's m rows, the chooser, and O(t_max m) for each left-out row.
    """
    n, times = problem.examples, np.arange(t_max + 1)
    count, sums = np.zeros(n), np.zeros((2, times.size, n))
    at, steps, etas, sizes = np.zeros((2, n)), [], [], []
    unit = targets(problem.labels, problem.classes)
    for train, test in splits:
        spec = problem.spectrum(train)
        filter = make_filter(spec.lambda_max)
        a = problem.scale if scale is None else scale(spec, unit[train], problem.outputs[train])
        y = a * unit
        residual = y[train] - problem.outputs[train]
        t = choose(spec, residual, y[train], filter)
        path = linearized_path(spec, residual, problem.block(test, train), filter, times)
        f = problem.outputs[test] + path.reshape(times.size, len(test), -1)
        correct = predicted_class(f.reshape(-1, f.shape[2]), problem.classes).reshape(f.shape[:2])
        both = np.stack([correct == problem.labels[test], ((unit[test] - f / a) ** 2).mean(axis=2)])
        sums[:, :, test] += both
        at[:, test] += both[:, t]
        count[test] += 1
        steps.append(t)
        etas.append(float(filter.eta(t)))
        sizes.append(len(train))
    with np.errstate(invalid="ignore", divide="ignore"):
        sums, at = sums / count, at / count
    return HeldOut(sums[0], sums[1], at[0], at[1], np.array(steps), np.array(etas), round(float(np.mean(sizes))))


def stratified_order(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a random order of the examples whose every prefix holds the classes in their overall proportion."""
    place = np.empty(len(labels))
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        place[members] = (np.arange(len(members)) + rng.random()) / len(members)
    return np.argsort(place, kind="stable")


def fold_splits(labels: np.ndarray, folds: int = FOLDS, repeats: int = REPEATS, seed: int = 0) -> list[Split]:
    """Return (kept, left out) of repeated cross-validation whose folds hold the classes in proportion.

    At most as many folds as the rarest class has members. Leaving out single examples would not do: in a balanced
    sample the class left out becomes the rarer one, the fitted intercept turns against it, and accuracy is understated.
    """
    rng = np.random.default_rng(seed)
    count = max(2, min(folds, int(np.unique(labels, return_counts=True)[1].min())))
    out = []
    for _ in range(repeats):
        fold = stratified_folds(labels, count, rng)
        out += [(np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in range(count)]
    return out


def subset_splits(labels: np.ndarray, sizes: Sequence[int], repeats: int = CURVE_REPEATS, seed: int = 0) -> list[list]:
    """Return, for each size, ``repeats`` splits (the size's examples, all others); a repeat's subsets are nested."""
    rng = np.random.default_rng(seed)
    orders = [stratified_order(labels, rng) for _ in range(repeats)]
    return [[(np.sort(order[:size]), np.sort(order[size:])) for order in orders] for size in sizes]


def curve_sizes(n: int, classes: int) -> list[int]:
    """Return the halvings n/2, n/4, n/8 that are worth a fit, ascending: at least 8 examples and 2 for each class."""
    sizes = [n // k for k in (8, 4, 2)]
    return [size for size in sizes if size >= max(SMALLEST_SIZE, 2 * classes)]


def accuracy_interval(correct: np.ndarray, level: float = 0.95) -> tuple[float, float, float]:
    """Return the mean of correctness values in [0, 1] and Wilson's interval for as many examples as are not nan.

    It covers the luck of which examples were looked at, not of which were trained on.
    """
    known = correct[np.isfinite(correct)]
    return (float(known.mean()) if known.size else math.nan, *wilson(float(known.sum()), known.size, level))


def paired_gain(after: np.ndarray, before: np.ndarray, level: float = 0.95) -> tuple[float, float, float]:
    """Return the mean gain in correctness on the same examples, and an interval that is honest without any change.

    Two pseudo-examples, half of them changed in each direction: Agresti & Min (Stat. Med. 2005) for paired proportions.
    """
    change = after - before
    change = change[np.isfinite(change)]
    n = change.size + 2
    centre = float(change.sum()) / n
    spread = math.sqrt(max(float((change**2).sum()) + 1 - change.sum() ** 2 / n, 0.0)) / n
    half = float(scipy.special.ndtri(0.5 + level / 2)) * spread
    return float(change.mean()), centre - half, centre + half


def slope_interval(
    x: np.ndarray, by_example: np.ndarray, of: Callable[[np.ndarray], np.ndarray] = np.asarray, seed: int = 0
) -> tuple[float, float, float]:
    """Return the least-squares slope of ``of``(mean over examples) in x, and its 95 % bootstrap interval.

    ``by_example`` [len(x), n], nan where an example was not looked at. Whole examples are redrawn, so that the sizes
    keep their pairing; which examples were trained on is not redrawn. nan three times for fewer than three x.
    """
    if len(x) < 3:
        return math.nan, math.nan, math.nan
    known, rng = np.isfinite(by_example), np.random.default_rng(seed)
    values, n = np.where(known, by_example, 0.0), by_example.shape[1]
    weights = np.vstack([np.ones(n), rng.multinomial(n, np.full(n, 1 / n), size=BOOTSTRAP)])
    with np.errstate(invalid="ignore", divide="ignore"):
        means = of((weights @ values.T) / (weights @ known.T))
    centred = x - np.mean(x)
    slopes = means @ centred / (centred @ centred)
    low, high = np.nanpercentile(slopes[1:], [2.5, 97.5])
    return float(slopes[0]), float(low), float(high)
