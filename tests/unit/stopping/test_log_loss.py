"""Log-loss along the path without an example: against refits one by one, dense regression and simulated tasks."""

from dataclasses import replace

import numpy as np
import pytest

from stopwise.linearized.filters import AdamMean, GradientDescent, HeavyBall, Nesterov
from stopwise.linearized.objectives import Objective
from stopwise.linearized.replay import draw_batches
from stopwise.linearized.spectrum import Spectrum
from stopwise.stopping.bayes import GRID_POINTS, left_out_means, task_posterior
from stopwise.stopping.cross_entropy import (
    Replay,
    averaged_probabilities,
    expected_log_loss,
    label_probabilities,
    left_out_outputs,
    loo_log_loss,
    time_points,
)
from stopwise.stopping.known import BeforeTraining
from stopwise.stopping.leave_one_out import leave_out_groups
from stopwise.stopping.stops import stopping_time, stops

TIMES = np.array([0, 1, 2, 5, 9])


def task(seed=0, n=9, classes=2, slope=0.4, strength=2.0):
    """A spectrum, the start's outputs and labels drawn from the softmax of slope f0 plus a smooth function."""
    rng, q = np.random.default_rng(seed), classes - 1
    u = np.linalg.qr(rng.standard_normal((n * q, n * q)))[0]
    k = n * q * (u * np.arange(1, n * q + 1) ** -1.2) @ u.T
    root = np.linalg.cholesky(k / (n * q) + 1e-12 * np.eye(n * q))
    f0 = 3 * (root @ rng.standard_normal(n * q)).reshape(n, q)
    true = slope * f0 + strength * (root @ rng.standard_normal(n * q)).reshape(n, q) * np.sqrt(n)
    objective = Objective("cross_entropy", np.zeros(n, dtype=int), classes, "contrast", 1.0, np.zeros(q))
    p = np.exp(objective.log_probabilities(true))
    labels = np.array([rng.choice(classes, p=own) for own in p])
    return Spectrum.of(k, q, True), f0, Objective("cross_entropy", labels, classes, "contrast", 1.0, np.zeros(q)), p


def path_without(spec, f0, objective, batches, filter, group):
    """Train the linearised model on the examples not in the group, one gradient after another."""
    n, q = f0.shape
    f, v = f0.copy(), np.zeros(spec.m)
    out, nesterov = [f0], isinstance(filter, Nesterov)
    for batch, alpha in zip(batches, filter.step_sizes(len(batches)), strict=True):
        kept = batch[~np.isin(batch, group)]
        step = np.zeros((n, q))
        if len(kept):
            step[kept] = objective.rows(kept).gradient(f[kept], np.arange(len(kept)))
        v = filter.momentum * v + step.ravel()
        direction = step.ravel() + filter.momentum * v if nesterov else v
        f = f - alpha * (spec.matrix @ direction).reshape(n, q)
        out.append(f)
    return np.array(out)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("folds", [None, 4])
@pytest.mark.parametrize("batch_size", [None, 4, 1])
@pytest.mark.parametrize(
    "filter", [GradientDescent(0.3), HeavyBall(0.2, 0.8), Nesterov(0.2, 0.5), AdamMean(0.3, 0.9, (1.0, 0.5))]
)
def test_the_path_without_an_example_is_that_of_training_without_it(classes, folds, batch_size, filter):
    spec, f0, objective, _ = task(classes=classes)
    batches = draw_batches(spec.examples, batch_size, 9, seed=3)
    found = left_out_outputs(spec, f0, Replay(objective, batches), filter, TIMES, folds, seed=1)
    for group in leave_out_groups(spec.examples, folds, 1):
        path = path_without(spec, f0, objective, batches, filter, group)
        np.testing.assert_allclose(found[:, group], path[TIMES][:, group], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("classes", [2, 3])
def test_left_out_targets_are_predicted_as_by_regression_on_the_others(classes, intercept):
    spec, f0, objective, _ = task(seed=2, n=10, classes=classes)
    spec = Spectrum.of(spec.matrix, spec.columns, intercept)
    y, n, q = objective.targets, 10, spec.columns
    means, kept = left_out_means(spec, y, f0)
    assert kept.tolist() == list(range(n))
    design = [np.tile(np.eye(q), (n, 1))] if intercept else []
    design = np.column_stack([*design, f0.ravel()])
    lam = spec.eigenvalues[: spec.degrees]
    score, predicted = [], []
    for mu in np.geomspace(lam.min(), lam[0], GRID_POINTS):
        cov, own = spec.matrix / spec.m + mu * np.eye(spec.m), np.zeros((n, q))
        for i in range(n):
            out = np.arange(i * q, (i + 1) * q)
            rest = np.setdiff1d(np.arange(spec.m), out)
            inverse = np.linalg.inv(cov[np.ix_(rest, rest)])
            x = design[rest]
            beta = np.linalg.solve(x.T @ inverse @ x, x.T @ inverse @ y.ravel()[rest])
            left = y.ravel()[rest] - x @ beta
            own[i] = design[out] @ beta + cov[np.ix_(out, rest)] @ inverse @ left
        inverse = np.linalg.inv(cov)
        information = design.T @ inverse @ design
        left = y.ravel() - design @ np.linalg.solve(information, design.T @ inverse @ y.ravel())
        freedom = spec.m - design.shape[1]
        dets = np.linalg.slogdet(inverse)[1] - np.linalg.slogdet(information)[1]
        score.append(dets / 2 - freedom / 2 * np.log(left @ inverse @ left))
        predicted.append(own)
    belief = np.exp(np.array(score) - max(score))
    np.testing.assert_allclose(means, np.tensordot(belief / belief.sum(), predicted, 1), rtol=1e-6, atol=1e-8)


def test_a_repeated_example_is_predicted_once_and_not_from_its_copy():
    spec, f0, objective, _ = task(seed=4, n=12)
    order = np.array([*range(12), 3])
    twice = Spectrum.of(spec.matrix[np.ix_(order, order)], 1, True)
    means, kept = left_out_means(twice, objective.targets[order], f0[order])
    assert kept.tolist() == list(range(12))
    alone, _ = left_out_means(spec, objective.targets, f0)
    np.testing.assert_allclose(means, alone, atol=0.02)


def test_probabilities_ignore_the_example_they_are_of_but_for_what_all_share():
    """Flipping one label moves its own probability far less than the probabilities of its neighbours in the kernel."""
    spec, f0, objective, _ = task(seed=1, n=40)
    p, kept = label_probabilities(spec, objective, f0)
    assert kept.size == 40
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-12)
    assert (p > 0).all()
    flipped = objective.labels.copy()
    flipped[7] = 1 - flipped[7]
    other = Objective("cross_entropy", flipped, 2, "contrast", 1.0, np.zeros(1))
    moved = np.abs(label_probabilities(spec, other, f0)[0] - p).max(axis=1)
    assert moved[7] < np.delete(moved, 7).max()


def test_probabilities_are_nearer_to_the_true_ones_than_labels_are():
    """On noisy tasks: squared error against the probabilities that the labels were drawn from, averaged over tasks."""
    errors = np.zeros((2, 20))
    for seed in range(20):
        spec, f0, objective, true = task(seed=seed, n=48, strength=0.4)
        found, _ = label_probabilities(spec, objective, f0)
        errors[:, seed] = np.mean((found - true) ** 2), np.mean((np.eye(2)[objective.labels] - true) ** 2)
    assert errors[0].mean() < 0.7 * errors[1].mean()
    assert (errors[0] < errors[1]).mean() >= 0.9


def test_the_expected_loss_with_certain_labels_is_the_loss():
    spec, f0, objective, _ = task(classes=3)
    replay = Replay(objective, draw_batches(spec.examples, 4, 9, 0))
    outputs = left_out_outputs(spec, f0, replay, HeavyBall(0.2), TIMES)
    certain = np.eye(3)[objective.labels]
    np.testing.assert_allclose(
        expected_log_loss(objective, outputs, certain), loo_log_loss(objective, outputs), rtol=1e-12
    )
    assert loo_log_loss(objective, outputs)[0] == pytest.approx(objective.loss(f0))


def test_models_are_averaged_by_how_probable_they_make_the_labels():
    """By hand on three times; a time that is not finite counts for nothing."""
    labels = np.array([0, 1, 1])
    objective = Objective("cross_entropy", labels, 2, "contrast", 1.0, np.zeros(1))
    rng, times = np.random.default_rng(0), np.array([0, 1, 2])
    outputs, p = rng.standard_normal((3, 3, 1)), np.array([[0.7, 0.3], [0.4, 0.6], [0.9, 0.1]])
    models = [p, *np.exp(objective.log_probabilities(outputs))]
    prior = [1, 1 / 3, 1 / 3, 1 / 3]
    weights = [a * np.prod(model[np.arange(3), labels]) for a, model in zip(prior, models, strict=True)]
    expected = sum(w * model for w, model in zip(weights, models, strict=True)) / sum(weights)
    np.testing.assert_allclose(averaged_probabilities(objective, outputs, times, p), expected)
    outputs[2] = np.nan
    expected = sum(w * model for w, model in zip(weights[:3], models[:3], strict=True)) / sum(weights[:3])
    np.testing.assert_allclose(averaged_probabilities(objective, outputs, times, p), expected)


def test_the_averaged_times_are_few_and_reach_the_end():
    for last in (0, 1, 7, 96, 1000, 20_000):
        found = time_points(last)
        assert found[0] == 0
        assert found[-1] == max(last, 1)
        assert found.size <= 61
        assert (np.diff(found) > 0).all()


def test_rules_stop_at_the_least_log_loss_and_the_others_are_as_they_were():
    spec, f0, objective, _ = task(seed=5, n=24)
    y, filter = objective.targets, HeavyBall(1 / spec.lambda_max)
    replay = Replay(objective, draw_batches(24, 8, 40, 0))
    rules = ["sure", "gcv", "loo", "bayes"]
    path = BeforeTraining(spec, y - f0, filter, 40, targets=y)
    plain = {stop.rule: stop for stop in stops(path, rules)}
    found = {stop.rule: stop for stop in stops(replace(path, replay=replay), rules)}
    assert [found[r].t for r in ("sure", "gcv")] == [plain[r].t for r in ("sure", "gcv")]
    outputs = left_out_outputs(spec, f0, replay, filter, np.arange(41))
    np.testing.assert_allclose(found["loo"].curve, loo_log_loss(objective, outputs))
    p, kept = label_probabilities(spec, objective, f0)
    assert kept.size == 24
    p = averaged_probabilities(objective, outputs, np.arange(41), p)
    np.testing.assert_allclose(found["bayes"].curve, expected_log_loss(objective, outputs, p))
    for rule in ("loo", "bayes"):
        assert found[rule].t == int(np.argmin(found[rule].curve))
        assert np.isnan(found[rule].predicted_risk)
    posterior = task_posterior(spec, y, f0)
    assert found["bayes"].sigma == pytest.approx(posterior.sigma2**0.5)


def test_equal_labels_give_no_answer_and_too_few_batches_an_error():
    spec, f0, _, _ = task(seed=5, n=12)
    same = Objective("cross_entropy", np.ones(12, dtype=int), 2, "contrast", 1.0, np.zeros(1))
    y, filter = same.targets, GradientDescent(0.5 / spec.lambda_max)
    stop = stopping_time(spec, y - f0, "bayes", filter, 4, targets=y, replay=Replay(same, draw_batches(12, 4, 4, 0)))
    assert stop.t is None
    assert {"no_answer", "not_identifiable"} <= set(stop.flags)
    with pytest.raises(ValueError, match="replay: 3 batches, but the last step considered is 4"):
        stopping_time(spec, y - f0, "loo", filter, 4, replay=Replay(same, draw_batches(12, 4, 3, 0)))


@pytest.mark.slow
def test_the_stop_on_the_path_is_near_the_best_of_new_examples():
    """Thirty tasks of 48 labels: the loss under the true probabilities, at the stop over the least on the path."""
    regrets, never = [], []
    for seed in range(30):
        spec, f0, objective, true = task(seed=seed, n=96, strength=1.0)
        train = spec.leading(48)
        own = Objective("cross_entropy", objective.labels[:48], 2, "contrast", 1.0, np.zeros(1))
        filter, batches = HeavyBall(1 / train.lambda_max), draw_batches(48, None, 120, 0)
        y = own.targets
        stop = stopping_time(train, y - f0[:48], "bayes", filter, 120, targets=y, replay=Replay(own, batches))
        weights, velocity, curve = np.zeros(48), np.zeros(48), []
        for _ in range(121):
            new = f0[48:] + (spec.matrix[48:, :48] @ weights)[:, None]
            curve.append(expected_log_loss(objective, new[None], true[48:])[0])
            f = f0[:48] + (train.matrix @ weights)[:, None]
            velocity = 0.9 * velocity + own.gradient(f, np.arange(48)).ravel()
            weights = weights - filter.lr * velocity
        regrets.append(curve[stop.t] / min(curve) - 1)
        never.append(curve[-1] / min(curve) - 1)
    assert np.median(regrets) < 0.05
    assert np.median(regrets) < np.median(never) / 3
