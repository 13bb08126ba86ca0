"""Training under a schedule, replayed on the kernel: against training the parameters of a linear model themselves."""

import numpy as np
import pytest

from stopwise.linearized.coding import coding_matrix, columns
from stopwise.linearized.filters import AdamMean, GradientDescent, HeavyBall
from stopwise.linearized.objectives import Objective
from stopwise.linearized.replay import draw_batches
from stopwise.linearized.spectrum import Spectrum
from stopwise.stopping.cross_entropy import Replay, left_out_outputs
from stopwise.stopping.leave_one_out import leave_out_groups
from stopwise.stopping.scheduled import Linearised, Schedule, ScheduledStop, left_out_path, scheduled_stop, trained_path

N, STEPS, PARAMETERS = 10, 12, 60


class Linear:
    """A linear model f0 + J delta with parameters, weights theta_0 and a diagonal D of its own."""

    def __init__(self, classes=3, outputs="contrast", seed=0):
        rng, self.q = np.random.default_rng(seed), columns(classes, outputs)
        self.j = rng.standard_normal((N * self.q, PARAMETERS)) / 4
        self.f0, self.theta, self.velocity = rng.standard_normal((N, self.q)), *rng.standard_normal((2, PARAMETERS))
        self.d = rng.uniform(0.2, 2, PARAMETERS)
        labels = rng.permutation(np.arange(N) % classes)
        self.objective = Objective("cross_entropy", labels, classes, outputs, 1.0, np.zeros(self.q))

    def seen(self, done):
        """The model as the replay takes it: its kernels and the two fixed directions."""
        moves = [(self.j @ v).reshape(N, -1) for v in (self.theta, self.d * self.velocity)]
        kernels = (self.j * self.d) @ self.j.T, self.j @ self.j.T
        return Linearised(kernels[0], self.f0, kernels[1], moves[0], moves[1] if done else None)

    def train(self, schedule, without=()):
        """Move the parameters one step after another; the outputs before each step and after the last."""
        delta, v, out = np.zeros(PARAMETERS), self.velocity * (schedule.done > 0), []
        rows = np.arange(N * self.q).reshape(N, self.q)
        for s, (batch, weights) in enumerate(zip(schedule.batches, schedule.weights, strict=True)):
            f = self.f0 + (self.j @ delta).reshape(N, -1)
            out.append(f)
            kept = ~np.isin(batch, without)
            gradient, share = np.zeros(PARAMETERS), weights[kept] / max(weights[kept].sum(), 1e-300) * weights.sum()
            for i, w in zip(batch[kept], share, strict=True):
                one = self.objective.rows(np.array([i])).gradient(f[[i]], np.array([0]))[0]
                gradient += w * one @ self.j[rows[i]]
            norm = np.sqrt(gradient @ gradient)
            gradient *= min(1.0, schedule.max_grad_norm / (norm + 1e-6)) if schedule.max_grad_norm else 1.0
            v = schedule.momentum * v + gradient
            rate, mean = schedule.learning_rates[s], v
            if schedule.adam:
                mean = v * (1 - schedule.momentum) / (1 - schedule.momentum ** (schedule.done + s + 1))
            delta = (1 - rate * schedule.weight_decay) * (self.theta + delta) - self.theta - rate * self.d * mean
        return np.array([*out, self.f0 + (self.j @ delta).reshape(N, -1)])


def schedule(seed=0, **values):
    """Steps of four examples with uneven weights; the rate rises and falls."""
    rng = np.random.default_rng(seed)
    batches = draw_batches(N, 4, STEPS, seed)
    rates = 0.8 * np.concatenate([np.arange(4) / 4, np.linspace(1, 0, STEPS - 4)])
    return Schedule(rates, batches, [rng.uniform(0.1, 0.4, len(b)) for b in batches], epoch=2.5, **values)


SETTINGS = [
    {},
    {"adam": False, "momentum": 0.0},
    {"max_grad_norm": 0.3},
    {"weight_decay": 0.2},
    {"weight_decay": 0.2, "max_grad_norm": 0.3, "done": 5},
    {"adam": False, "momentum": 0.5, "done": 5},
]


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("values", SETTINGS)
def test_the_path_is_that_of_the_parameters(values, classes):
    model, own = Linear(classes), schedule(**values)
    times = np.arange(own.done, own.last + 1)
    found = trained_path(model.seen(own.done), model.objective, own, times)
    # Float64 throughout: what is left is rounding, which grows with the steps.
    np.testing.assert_allclose(found, model.train(own), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("folds", [None, 3])
@pytest.mark.parametrize("values", SETTINGS[2:5])
def test_the_path_without_an_example_is_that_of_training_without_it(values, folds):
    model, own = Linear(2), schedule(**values)
    times = own.done + np.array([0, 1, 3, STEPS])
    found = left_out_path(model.seen(own.done), model.objective, own, times, folds)
    for group in leave_out_groups(N, folds):
        path = model.train(own, without=group)
        np.testing.assert_allclose(found[:, group], path[times - own.done][:, group], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("filter", [GradientDescent(0.3), HeavyBall(0.2, 0.8), AdamMean(0.3, 0.9, (1.0, 0.5))])
def test_means_over_batches_are_what_the_rules_replay(filter):
    """Without clipping and decay, and with each loss a mean, it is the path that ``loo`` and ``bayes`` read."""
    model, batches, times = Linear(3), draw_batches(N, 4, STEPS, 1), np.array([0, 2, 7, STEPS])
    adam = isinstance(filter, AdamMean)
    rates = filter.step_sizes(STEPS)
    if adam:
        rates = HeavyBall(filter.lr, filter.momentum, filter.schedule).step_sizes(STEPS)
    own = Schedule(rates, batches, [np.full(len(b), 1 / len(b)) for b in batches], filter.momentum, adam)
    kernel = model.seen(0)
    found = left_out_path(Linearised(kernel.matrix, model.f0), model.objective, own, times)
    spec = Spectrum.of(kernel.matrix, model.q)
    expected = left_out_outputs(spec, model.f0, Replay(model.objective, batches), filter, times)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-13)


def test_clipping_that_never_binds_changes_nothing():
    model, free, loose = Linear(2), schedule(), schedule(max_grad_norm=1e6)
    times = np.arange(STEPS + 1)
    paths = [trained_path(model.seen(0), model.objective, own, times) for own in (free, loose)]
    assert np.array_equal(*paths)


@pytest.mark.parametrize("rule", ["bayes", "loo"])
def test_the_stop_is_where_the_predicted_loss_is_least(rule):
    model, own = Linear(2, seed=3), schedule()
    stop = scheduled_stop(model.seen(0), model.objective, own, rule)
    assert stop.t == stop.times[np.argmin(stop.curve)]
    assert stop.epochs == stop.t / 2.5
    inside = stop.curve <= 1.05 * stop.expected_loss
    assert inside[stop.low : stop.high + 1].all()
    assert stop.low == 0 or not inside[stop.low - 1]
    assert stop.high == STEPS or not inside[stop.high + 1]
    assert (stop.loss_at_start, stop.loss_at_end) == (stop.curve[0], stop.curve[-1])
    assert ScheduledStop.of_row(stop.row()) == stop


def test_a_rest_of_the_vocabulary_that_is_never_predicted_changes_nothing():
    """With the rest's logits far below the words', the loss over the vocabulary is that over the words."""
    words, own = Linear(3, seed=5), schedule()
    wide = coding_matrix(3, "vocabulary")
    lift = wide[:, :3] @ coding_matrix(3).T  # outputs of the words' logits alone
    matrix = np.kron(np.eye(N), lift) @ words.seen(0).matrix @ np.kron(np.eye(N), lift.T)
    start = words.f0 @ lift.T + (-50.0) * wide[:, 3]
    objective = Objective("cross_entropy", words.objective.labels, 3, "vocabulary", 1.0, np.zeros(3))
    found = scheduled_stop(Linearised(matrix, start), objective, own)
    expected = scheduled_stop(Linearised(words.seen(0).matrix, words.f0), words.objective, own)
    assert found.t == expected.t
    np.testing.assert_allclose(found.curve, expected.curve, rtol=1e-6)
    assert found.expected_accuracy == pytest.approx(expected.expected_accuracy, rel=1e-6)


def test_labels_of_one_class_say_nothing():
    model, own = Linear(2), schedule()
    objective = Objective("cross_entropy", np.zeros(N, dtype=int), 2, "contrast", 1.0, np.zeros(1))
    stop = scheduled_stop(model.seen(0), objective, own)
    assert stop.t is None
    assert "no_answer" in stop.flags


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: scheduled_stop(Linear().seen(0), Linear().objective, schedule(), "sure"),
            r"rule: 'sure' is not one of",
        ),
        (lambda: Schedule(np.ones(3), [], []), r"schedule: 3 learning rates, 0 batches"),
        (
            lambda: trained_path(Linear().seen(0), Linear().objective, schedule(done=5), np.array([4])),
            r"times must lie in 5\.\.17, found 4\.\.4",
        ),
    ],
)
def test_what_cannot_be_replayed_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
