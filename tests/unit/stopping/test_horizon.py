"""Lengths of training compared at their ends: against training a linear model without each example, from its start."""

import numpy as np
import pytest

from stopwise.linearized.objectives import Objective
from stopwise.stopping.horizon import horizon, lengths
from stopwise.stopping.scheduled import Linearised, Schedule, left_out_path

N, Q, P = 9, 2, 7


def problem(seed=0, own_starts=True):
    rng = np.random.default_rng(seed)
    j, labels = rng.normal(size=(N * Q, P)), np.arange(N) % 3
    start = rng.normal(size=(N, Q))
    starts = start + 0.3 * rng.normal(size=(N, N, Q)) if own_starts else None
    net = Linearised(j @ j.T, start, left_start=starts)
    return j, net, Objective("cross_entropy", labels, 3, "contrast", 1.0, np.zeros(Q))


def schedule(steps, rate=0.05, seed=1):
    rng = np.random.default_rng(seed)
    batches = [np.sort(rng.permutation(N)[:4]) for _ in range(steps)]
    rates = rate * (1 - np.arange(steps) / steps)
    return Schedule(rates, batches, [np.full(4, 0.25)] * steps, epoch=2.0)


def simulated(j, start, objective, plan, left_out):
    """The outputs of all examples after training the linear model in its weights without one example."""
    delta, mean = np.zeros(P), np.zeros(P)
    for s, batch in enumerate(plan.batches):
        batch = batch[batch != left_out]
        f = start + (j @ delta).reshape(N, Q)
        rows = (batch[:, None] * Q + np.arange(Q)).ravel()
        gradient = objective.rows(batch).gradient(f[batch], np.arange(len(batch))).ravel() @ j[rows]
        mean = 0.9 * mean + 0.1 * gradient
        delta -= plan.learning_rates[s] * mean / (1 - 0.9 ** (s + 1))
    return start + (j @ delta).reshape(N, Q)


@pytest.mark.parametrize("own_starts", [True, False])
def test_each_length_ends_where_training_without_the_example_does(own_starts):
    j, net, objective = problem(own_starts=own_starts)
    plans = [schedule(steps) for steps in (2, 5, 12)]
    found = horizon(net, objective, plans, "loo")
    for k, plan in enumerate(plans, start=1):
        for i in range(N):
            start = net.left_start[i] if own_starts else net.start
            f = simulated(j, start, objective, plan, i)[i]
            loss = objective.rows(np.array([i])).loss(f[None])
            assert found.losses[k, i] == pytest.approx(loss, rel=1e-9)  # the same sums in another order
    assert found.steps.tolist() == [0, 2, 5, 12]
    assert found.loss == pytest.approx(found.losses.mean(axis=1))
    assert found.best == int(found.loss.argmin())


def test_a_start_that_saw_no_label_is_the_plain_path():
    _, net, objective = problem(own_starts=False)
    same = Linearised(net.matrix, net.start, left_start=np.repeat(net.start[None], N, axis=0))
    plan = schedule(6)
    one, other = (left_out_path(x, objective, plan, np.arange(7)) for x in (net, same))
    assert np.array_equal(one, other)


def test_the_interval_holds_the_best_and_no_length_beyond_five_per_cent():
    _, net, objective = problem(3)
    found = horizon(net, objective, [schedule(steps, 0.4) for steps in (1, 2, 4, 8, 16, 32)], "loo")
    assert found.low <= found.t <= found.high
    for steps, loss in zip(found.steps, found.loss, strict=True):
        if found.low <= steps <= found.high:
            assert loss <= 1.05 * found.loss[found.best] * (1 + 1e-12)
    assert found.at(found.t) == pytest.approx(found.loss[found.best])


def test_lengths_end_with_the_longest():
    assert lengths(4.0, 20.0)[-1] == 80
    assert lengths(4.0, 20.0)[0] == 2
    assert lengths(1.0, 1.0).tolist() == [1]


def test_another_rule_is_refused():
    _, net, objective = problem()
    with pytest.raises(ValueError, match="rule: 'gcv' is not one of"):
        horizon(net, objective, [schedule(2)], "gcv")
