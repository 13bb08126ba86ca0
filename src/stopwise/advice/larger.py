"""More labels than the kernel holds: the answer for them, from smaller samples and the decay of the eigenvalues.

Two laws carry an answer from n examples to N. The best training time grows as n^g, and the part of the error that more
labels take away falls as n^-g, with g = 2b/(2b+1) where eigenvalues decay as i^-2b (Raskutti, Wainwright & Yu, JMLR
2014): the kernel of n examples tells b. How large that part is, samples of a half and a quarter of the examples tell:
trainings on them are replayed on the kernel, and looked at where the others are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from stopwise.advice.held_out import stratified_order
from stopwise.linearized.decay import decay_fit, half_sample_eigenvalues, predicted_rate
from stopwise.linearized.objectives import Objective
from stopwise.linearized.replay import draw_batches
from stopwise.linearized.spectrum import Spectrum
from stopwise.stopping.horizon import Horizon
from stopwise.stopping.schedule_path import Linearised, Schedule, left_out_path

SHARES = (4, 2)  # a quarter and a half of the examples
DRAWS = 12
BOOTSTRAP = 1000
SMALLEST = 8
# Up to so many times as many labels as the kernel holds an answer is carried in earnest.
FAR = 16
# Exponents outside of this range are those of fits to a handful of eigenvalues.
EXPONENTS = (0.2, 1.0)

Interval = tuple[float, float, float]
# (examples trained on) -> outputs at the start of such a training, [n, columns].
StartOf = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, eq=False)
class Larger:
    """What to expect of training with ``size`` examples.

    ``steps`` to train for, ``low``..``high``: those within 5 % of the lowest log-loss; ``exponent`` g with its 95 %
    interval; ``loss`` and ``accuracy`` of new examples with 95 % intervals (None where there are too few examples to
    make smaller samples of). ``sizes`` and ``losses``: the samples replayed and their mean log-losses; ``examples`` of
    the kernel.
    """

    size: int
    steps: float
    low: float
    high: float
    steps_per_epoch: float
    exponent: Interval
    loss: Interval | None
    accuracy: Interval | None
    sizes: np.ndarray = field(repr=False)
    losses: np.ndarray = field(repr=False)
    examples: int = 0

    @property
    def far(self) -> bool:
        """Whether so many more labels are asked for than the kernel holds that the answer is a hint at most."""
        return self.size > FAR * self.examples

    @property
    def epochs(self) -> float:
        """The epochs to train for."""
        return self.steps / self.steps_per_epoch


def larger(
    net: Linearised,
    objective: Objective,
    schedules: Sequence[Schedule],
    found: Horizon,
    size: int,
    *,
    batch_size: int,
    seed: int = 0,
    start_of: StartOf | None = None,
) -> Larger:
    """Return the answer for ``size`` examples, more than the kernel has, from that for the kernel's.

    ``schedules``: of the lengths of ``found``, shortest first; ``start_of``: where training on some of the examples
    starts, if the start has seen labels (a head fitted to them). ValueError for a size that is not larger. Cost: the
    replay of 48 trainings, and 101 decompositions.
    """
    n = found.examples
    if size <= n:
        raise ValueError(f"size: found {size}, must be more than the {n} examples of the kernel")
    exponent = _exponent(net, seed)
    grown = size / n
    ratio = grown ** exponent[0]
    loss = accuracy = None
    sizes = [n // share for share in SHARES if n // share >= max(SMALLEST, 2 * objective.classes)]
    losses = [found.losses[found.best].mean()]
    if sizes and found.t > 0:
        seen = [_sample(net, objective, schedules, found, m, exponent[0], batch_size, seed, start_of) for m in sizes]
        by_size = np.stack([*(one[0] for one in seen), found.losses[found.best]])
        errors = np.stack([*(one[1] for one in seen), ~found.correct[found.best]])
        x = (np.array([*sizes, n]) / n) ** -exponent[0]
        loss = _carried(x, by_size, ratio, seed)
        wrong = _carried(x, errors.astype(np.float64), ratio, seed)
        accuracy = (1 - wrong[0], 1 - min(wrong[2], 1.0), 1 - wrong[1])
        losses = list(np.nanmean(by_size, axis=1))
    return Larger(
        size=size,
        steps=found.t * ratio,
        low=found.low * ratio,
        high=found.high * ratio,
        steps_per_epoch=float(-(-size // batch_size)),
        exponent=exponent,
        loss=loss,
        accuracy=accuracy,
        sizes=np.array([*sizes, n] if len(losses) > 1 else [n]),
        losses=np.array(losses),
        examples=n,
    )


def _exponent(net: Linearised, seed: int) -> Interval:
    """Return g with its 95 % interval, from the decay of the eigenvalues."""
    columns = net.start.shape[1]
    spec = Spectrum.of(net.matrix, columns, intercept=True)
    halves = half_sample_eigenvalues(net.matrix, columns, intercept=True, seed=seed)
    rate = predicted_rate(decay_fit(spec.eigenvalues[: spec.degrees], halves), spec.m)
    value, low, high = (float(np.clip(-v, *EXPONENTS)) for v in (rate.slope, rate.interval[1], rate.interval[0]))
    return value, low, high


def _sample(
    net: Linearised,
    objective: Objective,
    schedules: Sequence[Schedule],
    found: Horizon,
    size: int,
    exponent: float,
    batch_size: int,
    seed: int,
    start_of: StartOf | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the log-loss and the error of each example [n] after trainings on samples of ``size`` others.

    Each is read off between the two replayed lengths around the one that the law of training time names. nan: never
    left out.
    """
    n, rng = found.examples, np.random.default_rng(seed)
    steps = found.steps[1:]
    wanted = found.t * (size / n) ** exponent
    above = int(np.clip(np.searchsorted(steps, wanted), 1, len(steps) - 1)) if len(steps) > 1 else 0
    around = sorted({max(above - 1, 0), above})
    x = np.log1p(steps[around].astype(float))
    share = float(np.clip((np.log1p(wanted) - x[0]) / (x[-1] - x[0]), 0, 1)) if len(around) > 1 else 0.0
    sums, count = np.zeros((2, n)), np.zeros(n)
    for draw in range(DRAWS):
        order = stratified_order(objective.labels, rng)
        inside, out = np.sort(order[:size]), np.sort(order[size:])
        own = net if start_of is None else replace(net, left_start=start_of(inside)[None])
        ends = []
        for k in around:
            one = _drawn(schedules[k], inside, min(batch_size, size), seed + draw)
            outputs = left_out_path(own, objective, one, np.array([one.last]), groups=[out])[0][out]
            logs = objective.rows(out).log_probabilities(outputs)
            ends.append(np.stack([-logs[np.arange(len(out)), objective.labels[out]], _wrong(logs, objective, out)]))
        sums[:, out] += (1 - share) * ends[0] + share * ends[-1]
        count[out] += 1
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = sums / count
    return mean[0], mean[1]


def _wrong(logs: np.ndarray, objective: Objective, out: np.ndarray) -> np.ndarray:
    return logs[:, : objective.classes].argmax(axis=1) != objective.labels[out]


def _drawn(schedule: Schedule, inside: np.ndarray, batch_size: int, seed: int) -> Schedule:
    """Return a schedule whose batches are drawn from some of the examples."""
    drawn = draw_batches(len(inside), batch_size, len(schedule.batches), seed)
    weights = [np.full(len(batch), 1 / len(batch)) for batch in drawn]
    return replace(schedule, batches=[inside[batch] for batch in drawn], weights=weights)


def _carried(x: np.ndarray, by_example: np.ndarray, ratio: float, seed: int) -> Interval:
    """Return a mean over examples carried to a larger size, with its 95 % bootstrap interval over examples.

    ``by_example`` [sizes, n], nan where an example was not looked at; ``x`` [sizes] = (size/n)^-g, 1 for the last.
    Means are fitted as c + a x with a and c of 0 or more, and the last mean moves by a (1 - 1/ratio).
    """
    n = by_example.shape[1]
    known = np.isfinite(by_example)
    values, rng = np.where(known, by_example, 0.0), np.random.default_rng(seed)
    weights = np.vstack([np.ones(n), rng.multinomial(n, np.full(n, 1 / n), size=BOOTSTRAP)])
    means = (weights @ values.T) / np.maximum(weights @ known.T, 1e-9)
    centred = x - x.mean()
    slope = np.maximum((means - means.mean(axis=1, keepdims=True)) @ centred / (centred @ centred), 0.0)
    slope = np.where(means.mean(axis=1) < slope * x.mean(), means @ x / (x @ x), slope)  # c would be negative
    carried = np.maximum(means[:, -1] - slope * (1 - 1 / ratio), 0.0)
    low, high = np.quantile(carried[1:], [0.025, 0.975])
    return float(carried[0]), float(low), float(high)
