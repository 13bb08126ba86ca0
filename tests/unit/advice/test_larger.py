"""More labels than the kernel holds: on problems whose truth is known, what is carried there comes true."""

import numpy as np
import pytest

from stopwise.advice.larger import _carried, larger
from stopwise.linearized.objectives import Objective
from stopwise.linearized.replay import draw_batches
from stopwise.stopping.horizon import horizon, lengths
from stopwise.stopping.schedule_path import Linearised, Schedule, left_out_path
from stopwise.stopping.scheduled import largest_step

SMALL, LARGE, TEST, BATCH, WIDTH = 64, 256, 500, 16, 150


def schedule(n, steps, rate, seed):
    drawn = draw_batches(n, BATCH, steps, seed)
    weights = [np.full(len(batch), 1 / len(batch)) for batch in drawn]
    return Schedule(rate * (1 - np.arange(steps) / steps), drawn, weights, epoch=n / BATCH)


def problem(seed):
    """Return a kernel and labels whose logits are a draw from it: eigenvalues decay as i^-2."""
    rng = np.random.default_rng(seed)
    eigenvalues = np.arange(1, WIDTH + 1) ** -2.0
    x = rng.normal(size=(LARGE + TEST, WIDTH)) * np.sqrt(eigenvalues)
    logit = 3 * x @ rng.normal(size=WIDTH) / np.sqrt(eigenvalues.sum())
    labels = (rng.random(len(x)) < 1 / (1 + np.exp(-logit))).astype(int)
    return x @ x.T, labels


def objective_of(labels):
    return Objective("cross_entropy", labels, 2, "contrast", 1.0, np.zeros(1))


def carried(seed):
    """Return the answer for 256 from 64, and the true losses of trainings on 256 by their steps."""
    kernel, labels = problem(seed)
    net, objective = Linearised(kernel[:SMALL, :SMALL], np.zeros((SMALL, 1))), objective_of(labels[:SMALL])
    rate = 4 / largest_step(net, schedule(SMALL, 4, 1.0, seed))
    plans = [schedule(SMALL, int(steps), rate, seed) for steps in lengths(SMALL / BATCH, 30, 8)]
    found = horizon(net, objective, plans, seed=seed)
    answer = larger(net, objective, plans, found, LARGE, batch_size=BATCH, seed=seed)
    whole, every = Linearised(kernel, np.zeros((len(labels), 1))), objective_of(labels)
    test = np.arange(LARGE, LARGE + TEST)
    truth = {}
    for steps in np.unique(np.rint(np.geomspace(4, 400, 8)).astype(int)):
        plan = schedule(LARGE, int(steps), rate, seed + 1)
        outputs = left_out_path(whole, every, plan, np.array([steps]), groups=[test])[0][test]
        truth[int(steps)] = every.rows(test).loss(outputs)
    return found, answer, truth


@pytest.fixture(scope="module")
def answers():
    return [carried(seed) for seed in range(4)]


@pytest.mark.slow
def test_the_steps_for_four_times_as_many_labels_cost_little(answers):
    regrets = []
    for _, answer, truth in answers:
        steps, losses = np.array(list(truth)), np.array(list(truth.values()))
        reached = np.interp(np.log(answer.steps), np.log(steps), losses)
        regrets.append(reached / losses.min() - 1)
    assert np.median(regrets) < 0.05  # the width of a hit in every study here


def test_the_expected_loss_lies_in_its_interval_as_often_as_it_should(answers):
    inside = [answer.loss[1] <= min(truth.values()) <= answer.loss[2] for _, answer, truth in answers]
    assert sum(inside) >= 3  # fewer than 3 of 4 at 95 % have a chance of 1 in 70; the draws are held


def test_more_labels_take_more_steps_in_fewer_epochs(answers):
    for found, answer, _ in answers:
        assert answer.steps > found.t
        assert answer.epochs < found.epochs
        assert answer.loss[0] <= found.losses[found.best].mean()


def test_an_error_that_falls_as_the_law_says_is_carried_exactly():
    sizes, exponent = np.array([16, 32, 64]), 0.6
    means = 0.3 + 0.4 * (sizes / 64) ** -exponent
    by_example = np.repeat(means[:, None], 50, axis=1)
    value, low, high = _carried((sizes / 64) ** -exponent, by_example, 16**exponent, 0)
    expected = 0.3 + 0.4 * 16**-exponent
    assert value == pytest.approx(expected)
    assert (low, high) == pytest.approx((expected, expected))


def test_a_size_that_the_kernel_holds_is_refused():
    kernel, labels = problem(0)
    net, objective = Linearised(kernel[:SMALL, :SMALL], np.zeros((SMALL, 1))), objective_of(labels[:SMALL])
    found = horizon(net, objective, [schedule(SMALL, 8, 0.01, 0)])
    with pytest.raises(ValueError, match=r"^size: found 64, must be more than the 64 examples"):
        larger(net, objective, [], found, SMALL, batch_size=BATCH)
