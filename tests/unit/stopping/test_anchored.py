"""The left-out curve: that of the replay for a linear network, near real retraining without each example otherwise."""

import numpy as np
import pytest

from stopwise.linearized.coding import columns
from stopwise.linearized.filters import AdamMean, HeavyBall
from stopwise.linearized.objectives import Objective
from stopwise.linearized.replay import draw_batches
from stopwise.linearized.spectrum import Spectrum
from stopwise.stopping.anchored import (
    Anchors,
    LeftOut,
    Recorded,
    anchored_outputs,
    best_time,
    has_risen,
    left_out_curve,
)
from stopwise.stopping.cross_entropy import Replay, left_out_outputs
from stopwise.stopping.schedule_path import Linearised, Schedule, left_out_path, trained_path

N, STEPS = 10, 12


class Linear:
    """A network linear in its weights, as its kernels, on uneven batches under a rate that rises and falls."""

    def __init__(self, classes=3, **values):
        rng, q = np.random.default_rng(0), columns(classes, "contrast")
        j, d = rng.standard_normal((N * q, 60)) / 4, rng.uniform(0.2, 2, 60)
        plain, theta = j @ j.T, rng.standard_normal(60)
        self.net = Linearised((j * d) @ j.T, rng.standard_normal((N, q)), plain, (j @ theta).reshape(N, q))
        self.objective = Objective(
            "cross_entropy", rng.permutation(np.arange(N) % classes), classes, "contrast", 1.0, np.zeros(q)
        )
        rates, batches = (
            0.8 * np.concatenate([np.arange(4) / 4, np.linspace(1, 0, STEPS - 4)]),
            draw_batches(N, 4, STEPS, 0),
        )
        self.schedule = Schedule(rates, batches, [rng.uniform(0.1, 0.4, 4) for _ in batches], epoch=2.5, **values)

    def recorded(self, begins=(0,)):
        """The run as it is recorded, with checkpoints between which nothing changes."""
        outputs = trained_path(self.net, self.objective, self.schedule, np.arange(STEPS + 1))
        k, p = self.net.matrix, self.net.plain
        return Recorded(
            self.objective,
            self.schedule,
            outputs,
            Anchors(begins, [[k] * len(begins)] * len(begins), [p] * len(begins)),
        )


SETTINGS = [{}, {"adam": False, "momentum": 0.5}, {"max_grad_norm": 0.3}, {"weight_decay": 0.2, "max_grad_norm": 0.3}]


@pytest.mark.parametrize("begins", [(0,), (0, 3, 8)])
@pytest.mark.parametrize("folds", [None, 3])
@pytest.mark.parametrize("values", SETTINGS)
def test_a_linear_network_has_the_path_of_the_replay(values, folds, begins):
    """With accumulated batches (uneven weights), clipping and decay; the segments' kernels are all the same."""
    model, times = Linear(**values), np.array([0, 1, 4, STEPS])
    found = anchored_outputs(model.recorded(begins), times, folds)
    expected = left_out_path(model.net, model.objective, model.schedule, times, folds)
    # The replay sums the whole path, this the real path and a difference: the same numbers in another order.
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-11)
    assert np.abs(found - model.recorded().outputs[times]).max() > 1e-2


@pytest.mark.parametrize("filter", [HeavyBall(0.2, 0.8), AdamMean(0.3, 0.9, (1.0, 0.5))])
def test_means_over_batches_are_what_the_rules_replay(filter):
    model, batches, times = Linear(), draw_batches(N, 4, STEPS, 1), np.array([0, 2, 7, STEPS])
    rates = HeavyBall(filter.lr, filter.momentum, filter.schedule).step_sizes(STEPS)
    adam, means = isinstance(filter, AdamMean), [np.full(4, 0.25)] * STEPS
    model.schedule = Schedule(rates, batches, means, filter.momentum, adam)
    spec = Spectrum.of(model.net.matrix, 2)
    expected = left_out_outputs(spec, model.net.start, Replay(model.objective, batches), filter, times)
    np.testing.assert_allclose(anchored_outputs(model.recorded(), times), expected, rtol=1e-10, atol=1e-11)


class Bent:
    """f = a tanh(W x), trained for real: by itself, or n networks at once, each without one example."""

    def __init__(self, seed, examples=16, inputs=6, width=16):
        rng = np.random.default_rng(seed)
        self.x, self.shape = rng.standard_normal((examples, inputs)), (inputs, width)
        score = self.x @ rng.standard_normal(inputs) + self.x[:, 0] * self.x[:, 1] + rng.standard_normal(examples)
        self.objective = Objective("cross_entropy", (score > 0).astype(int), 2, "contrast", 1.0, np.zeros(1))
        first, last = rng.standard_normal(self.shape) / inputs**0.5, 0.3 * rng.standard_normal(width) / width**0.5
        self.theta = np.concatenate([first.ravel(), last])

    def parts(self, theta, x):
        """Hidden units [..., n, width] and the last layer [..., 1, width]."""
        cut = self.shape[0] * self.shape[1]
        hidden = np.tanh(x @ theta[..., :cut].reshape(*theta.shape[:-1], *self.shape))
        return hidden, theta[..., None, cut:]

    def outputs(self, theta, x):
        hidden, last = self.parts(theta, x)
        return (hidden * last).sum(-1)[..., None]

    def jacobian(self, theta, x):
        """Gradients of the outputs [..., n, P] of one network or several."""
        hidden, last = self.parts(theta, x)
        inner = x[..., :, None] * ((1 - hidden**2) * last)[..., None, :]
        return np.concatenate([inner.reshape(*inner.shape[:-2], -1), hidden], axis=-1)

    def train(self, schedule, without=(None,)):
        """Weights of each network before every step and after the last [T + 1, networks, P], and D as often."""
        theta = np.tile(self.theta, (len(without), 1))
        mean, square, weights, metrics = np.zeros_like(theta), np.zeros_like(theta), [theta], [np.ones(theta.shape[1])]
        for t, batch in enumerate(schedule.batches):
            inside = np.array([[i != one for i in batch] for one in without])
            share = inside / np.maximum(inside.sum(axis=1, keepdims=True), 1)
            raw = self.objective.rows(batch).gradient(self.outputs(theta, self.x[batch]), np.arange(len(batch)))
            g = np.einsum("rb,rbp->rp", raw[..., 0] * len(batch) * share, self.jacobian(theta, self.x[batch]))
            norm = np.linalg.norm(g, axis=1, keepdims=True)
            g = g * np.minimum(1, schedule.max_grad_norm / norm) if schedule.max_grad_norm else g
            rate, beta, d = schedule.learning_rates[t], schedule.momentum, 1.0
            mean = beta * mean + (1 - beta if schedule.adam else 1) * g
            if schedule.adam:
                square = 0.99 * square + 0.01 * g**2
                d = 1 / (np.sqrt(square / (1 - 0.99 ** (t + 1))) + 1e-8)
            step = d * mean / (1 - beta ** (t + 1) if schedule.adam else 1)
            theta = (1 - rate * schedule.weight_decay) * theta - rate * step
            weights.append(theta)
            metrics.append(d[0] if schedule.adam else np.ones(theta.shape[1]))
        return np.array(weights), metrics

    def anchors(self, weights, metrics, taken):
        """Checkpoints of the first network after these steps."""
        j = [self.jacobian(weights[t, 0], self.x) for t in taken]
        grams = [[(j[a] * metrics[taken[b]]) @ j[b].T for b in range(a + 1)] for a in range(len(taken))]
        return Anchors([0, *taken[1:]], grams, [one @ one.T for one in j])


RATES = {"adam": 0.02, "heavy ball": 0.1, "clipped and decayed": 0.02}


@pytest.mark.parametrize("training", RATES)
def test_the_moves_are_near_those_of_real_training_without_each_example(training):
    """A network that leaves its path, three checkpoints, against n trainings: by size, and by direction.

    Found, as means of three seeds: errors of 0.31 to 0.44 of the moves' size, where the replay from the start alone has
    0.56 to 0.83; correlations from 0.985, where real outputs with the first kernel have up to 0.976.
    """
    size: dict[str, list] = {"anchored": [], "path": []}
    direction: dict[str, list] = {"anchored": [], "first kernel": []}
    for seed in range(3):
        model, steps, times = Bent(seed, width=32), 60, np.arange(5, 61, 5)
        batches = draw_batches(16, 4, steps, seed)
        rates = RATES[training] * np.minimum((np.arange(steps) + 1) / 6, (steps - np.arange(steps)) / (steps - 6))
        harder = {"max_grad_norm": 0.2, "weight_decay": 0.1} if training == "clipped and decayed" else {}
        schedule = Schedule(rates, batches, [np.full(4, 0.25)] * steps, adam=training != "heavy ball", **harder)
        weights, metrics = model.train(schedule)
        real, without = model.outputs(weights[:, 0], model.x), model.train(schedule, range(16))[0]
        wanted = np.array([model.outputs(without[t], model.x[:, None])[range(16), 0] for t in times]) - real[times]
        first = model.jacobian(model.theta, model.x)
        kernel, plain, decayed = (first * metrics[6]) @ first.T, first @ first.T, (first @ model.theta)[:, None]
        net = Linearised(kernel, real[0], plain, decayed if schedule.weight_decay else None)
        anchors = {"anchored": model.anchors(weights, metrics, [6, 13, 28])}
        anchors["first kernel"] = Anchors([0], [[kernel]], [plain])
        runs = {name: Recorded(model.objective, schedule, real, own) for name, own in anchors.items()}
        found = {name: anchored_outputs(run, times) - real[times] for name, run in runs.items()}
        found["path"] = left_out_path(net, model.objective, schedule, times) - real[times]
        for name, moves in found.items():
            size.get(name, []).append(np.linalg.norm(moves - wanted) / np.linalg.norm(wanted))
            direction.get(name, []).append(np.corrcoef(moves.ravel(), wanted.ravel())[0, 1])
    errors, alike = ({name: np.mean(values) for name, values in kind.items()} for kind in (size, direction))
    assert errors["anchored"] < 0.5
    assert errors["anchored"] < 0.75 * errors["path"]
    assert alike["anchored"] > max(0.97, alike["first kernel"])


def test_only_what_is_needed_has_to_be_recorded():
    model, times = Linear(), np.array([0, 5, STEPS])
    run = model.recorded()
    sparse = np.full_like(run.outputs, np.nan)
    for t, batch in enumerate(model.schedule.batches):
        sparse[t, batch] = run.outputs[t, batch]
    sparse[times] = run.outputs[times]
    again = Recorded(run.objective, run.schedule, sparse, run.anchors)
    assert np.array_equal(anchored_outputs(again, times), anchored_outputs(run, times))
    with pytest.raises(ValueError, match="those of all examples at step 4 are not recorded"):
        anchored_outputs(again, np.array([4]))
    sparse[3] = np.nan
    with pytest.raises(ValueError, match="those of the batch of step 3 are not all recorded"):
        anchored_outputs(again, times)


def test_a_replay_put_down_goes_on_with_the_same_bits():
    model = Linear(max_grad_norm=0.3)
    run, rows, plain = model.recorded((0, 5)), [model.net.matrix], model.net.plain
    whole, parts = (LeftOut(model.objective, model.schedule) for _ in range(2))
    for network in (whole, parts):
        network.anchor(rows, plain)
    for t, batch in enumerate(model.schedule.batches):
        if t == 7:
            kept, parts = parts.state(), LeftOut(model.objective, model.schedule)
            parts.restore({name: array.copy() for name, array in kept.items()})
        for network in (whole, parts):
            if t == 5:
                network.anchor(rows * 2, plain)
            network.step(run.outputs[t, batch])
    assert np.array_equal(whole.outputs(run.outputs[-1]), parts.outputs(run.outputs[-1]))


def test_checkpoints_of_one_kernel_are_alike_and_of_strange_ones_are_not():
    model, other = Linear(), np.eye(20)
    network = LeftOut(model.objective, model.schedule)
    network.anchor([model.net.matrix])
    assert network.coherence == 1
    network.anchor([model.net.matrix] * 2)
    assert network.coherence == pytest.approx(1)
    network.anchor([other, 0 * other, other])
    assert network.coherence == 0


def test_the_curve_is_the_loss_and_the_accuracy_of_the_labels():
    objective = Objective("cross_entropy", np.array([0, 1, 1]), 2, "contrast", 1.0, np.zeros(1))
    margin = np.sqrt(2) * np.array([[-3.0], [1.0], [-1.0]])
    losses, right = left_out_curve(objective, margin[None] / 2)
    np.testing.assert_allclose(losses, [np.mean(np.log1p(np.exp([-3.0, -1.0, 1.0])))])
    assert right == [pytest.approx(2 / 3)]
    assert best_time(np.array([0, 4, 9, 16]), np.array([np.nan, 0.5, 0.4, 0.4])) == 9


@pytest.mark.parametrize(
    ("losses", "risen"),
    [([0.7, 0.5, 0.6], False), ([0.7, 0.5, 0.53, 0.53], True), ([0.7, 0.5, 0.6, 0.52], False), ([0.5, 0.6], False)],
)
def test_a_curve_has_risen_when_two_values_stand_above_its_least(losses, risen):
    assert has_risen(losses) == risen


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Anchors([1], [[np.eye(3)]]), r"begins \[1\] must ascend from 0"),
        (lambda: Anchors([0, 4], [[np.eye(3)], [np.eye(3)]]), r"row 1 needs the kernels with the 2 checkpoints"),
        (lambda: anchored_outputs(Linear().recorded(), np.array([13])), r"times must lie in 0\.\.12, found 13\.\.13"),
        (lambda: LeftOut(Linear().objective, Linear().schedule).anchor([np.eye(3)]), r"1 kernels of shape \(20, 20\)"),
        (
            lambda: LeftOut(Linear().objective, Linear(max_grad_norm=1.0).schedule).anchor([np.eye(20)]),
            "gradients are clipped",
        ),
    ],
)
def test_what_cannot_be_followed_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_none_finite_has_no_best_time():
    with pytest.raises(ValueError, match="none is finite"):
        best_time(np.arange(2), np.array([np.nan, np.inf]) * np.nan)
