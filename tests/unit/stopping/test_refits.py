"""The kernel without a group is decomposed once, whoever asks, and every rule reads off it what it reads alone."""

from __future__ import annotations

import collections

import numpy as np
import pytest
import scipy

from stopwise.linearized.filters import GradientDescent, HeavyBall, Ridge
from stopwise.linearized.objectives import Objective
from stopwise.linearized.spectrum import Spectrum
from stopwise.linearized.spectrum_rows import decay_row, spectrum_rows
from stopwise.stopping import left_out_rules
from stopwise.stopping.bayes import Posterior, expected_loss, expected_losses, task_posterior
from stopwise.stopping.cross_entropy import Replay
from stopwise.stopping.known import BeforeTraining
from stopwise.stopping.leave_one_out import leave_out_groups, loo_curve
from stopwise.stopping.refits import refits
from stopwise.stopping.registry import PREDICTED
from stopwise.stopping.stops import stops, time_grid

EXAMPLES, FOLDS, LAST = 40, 8, 400  # more steps than the rule bayes would follow one by one


def task(n=EXAMPLES, columns=1, repeats=0):
    """A kernel, targets and start outputs, the first examples of which come once more."""
    rng = np.random.default_rng(0)
    m = n * columns
    x = rng.normal(size=(m, m)) * np.arange(1, m + 1.0) ** -0.7
    f0, y = x @ rng.normal(size=m), np.sign(x @ rng.normal(size=m) + 0.3 * rng.normal(size=m))
    index = np.concatenate([np.arange(m), np.arange(repeats * columns)])
    return (x @ x.T)[np.ix_(index, index)], y[index], f0[index]


def run_of(spec, y, f0, filter=None, **options):
    filter = filter or HeavyBall(1 / spec.lambda_max, 0.9)
    options = {"times": time_grid(LAST), "targets": y, "folds": FOLDS} | options
    return BeforeTraining(spec, y - f0, filter, LAST, **options)


@pytest.fixture
def decomposed(monkeypatch):
    """How often a matrix of each size was decomposed."""
    counts = collections.Counter()
    for module in (np.linalg, scipy.linalg):

        def counted(matrix, *args, call=module.eigh, **options):
            counts[len(matrix)] += 1
            return call(matrix, *args, **options)

        monkeypatch.setattr(module, "eigh", counted)
    return counts


def test_all_rules_of_a_run_decompose_each_fold_once(decomposed):
    k, y, f0 = task()
    found = stops(run_of(Spectrum.of(k, intercept=True), y, f0), PREDICTED)
    assert {stop.rule for stop in found if stop.t is not None} >= {"loo", "bayes"}
    # The centred kernel, the kernel itself, and each fold.
    assert decomposed == {EXAMPLES - 1: 1, EXAMPLES: 1, EXAMPLES - EXAMPLES // FOLDS: FOLDS}


@pytest.mark.parametrize("columns", [1, 2])
@pytest.mark.parametrize("kind", [GradientDescent, HeavyBall, Ridge])
def test_a_rule_answers_alone_as_it_does_among_others(columns, kind):
    k, y, f0 = task(24, columns)
    spec = Spectrum.of(k, columns, intercept=True)
    run = run_of(spec, y, f0, kind(1 / spec.lambda_max))
    together = {stop.rule: stop for stop in stops(run, PREDICTED)}
    for rule in ("loo", "bayes"):
        alone = stops(run, [rule])[0]
        assert np.array_equal(alone.curve, together[rule].curve)
        assert alone.row() == together[rule].row()
    options = run.filter, run.times, FOLDS, 0
    assert np.array_equal(together["loo"].curve, loo_curve(spec, y - f0, *options))
    start = y - run.residual  # f0, to the bit of what the rule has
    own = expected_loss(spec, task_posterior(spec, y, start), start, *options)
    assert np.array_equal(together["bayes"].curve, own)


def test_several_posteriors_share_the_refits_and_few_steps_take_none(decomposed):
    k, y, f0 = task()
    spec = Spectrum.of(k)
    filter = GradientDescent(1 / spec.lambda_max)
    beliefs = [task_posterior(spec, y, f0), Posterior(0.1, 2.0, np.ones(1), np.zeros((1, 1)))]
    for times in (np.array([0, 1, 7, LAST]), np.array([0, 1, 7])):
        decomposed.clear()
        together = expected_losses(spec, beliefs, f0, filter, times, FOLDS)
        assert sum(decomposed.values()) == (FOLDS if times[-1] == LAST else 0)
        for belief, curve in zip(beliefs, together, strict=True):
            assert np.array_equal(curve, expected_loss(spec, belief, f0, filter, times, FOLDS))
    decomposed.clear()
    assert expected_losses(spec, [], f0, filter, np.array([0, LAST]), FOLDS) == []
    assert not decomposed


def test_the_steps_and_the_decompositions_give_the_same_expected_loss(monkeypatch):
    k, y, f0 = task(20, 2)
    spec = Spectrum.of(k, 2, intercept=True)
    filter, times, belief = HeavyBall(1 / spec.lambda_max, 0.9), np.arange(30), task_posterior(spec, y, f0)
    by_steps = expected_loss(spec, belief, f0, filter, times)
    monkeypatch.setattr("stopwise.stopping.bayes.STEPS_PER_REFIT", 0)
    # Two ways to the same sums: 1e-12 is 5,000 times the rounding of one number.
    np.testing.assert_allclose(expected_loss(spec, belief, f0, filter, times), by_steps, rtol=1e-12)


def test_a_refit_is_that_of_the_kernel_without_its_group():
    k, _, _ = task(12, 2)
    spec = Spectrum.of(k, 2)
    groups = leave_out_groups(12, 4)
    for refit, group in zip(refits(spec, groups), groups, strict=True):
        assert np.array_equal(np.unique(refit.rows // 2), group)
        kept = np.setdiff1d(np.arange(24), refit.rows)
        assert np.array_equal(refit.inside, k[np.ix_(kept, kept)])
        assert np.array_equal(refit.across, k[np.ix_(refit.rows, kept)])
        made = (refit.vectors * refit.values) @ refit.vectors.T * refit.m
        np.testing.assert_allclose(made, refit.inside, atol=1e-12 * np.abs(k).max())


def test_examples_that_come_twice_are_taken_out_of_the_spectrum_once(decomposed):
    k, y, f0 = task(30, repeats=5)
    spec = Spectrum.of(k, intercept=True)
    assert "duplicated_examples" in spec.flags
    decomposed.clear()
    stops(run_of(spec, y, f0), PREDICTED)
    spectrum_rows(35, spec, y - f0)
    decay_row(35, spec, y - f0, "reml")
    assert decomposed[29] == 1
    other = y.copy()
    other[-1] *= -1  # a copy with another label is kept: another spectrum
    distinct, rows = spec.without_repeats(other)
    assert len(rows) == 31
    assert distinct.degrees == 30
    assert spec.without_repeats(y)[0].degrees == 29


def test_both_rules_read_one_replay_of_cross_entropy(monkeypatch):
    k, _, f0 = task(16)
    objective = Objective("cross_entropy", np.arange(16) % 2, 2, "contrast", 1.0, np.zeros(1))
    spec, last = Spectrum.of(k), 20
    replay = Replay(objective, [np.arange(16)] * last)
    replays = []
    whole = left_out_rules.left_out_outputs
    monkeypatch.setattr(left_out_rules, "left_out_outputs", lambda *given: replays.append(given) or whole(*given))
    residual = objective.targets - f0[:, None]
    times = np.arange(last + 1)
    run = BeforeTraining(
        spec, residual, GradientDescent(1), last, times=times, targets=objective.targets, replay=replay
    )
    found = stops(run, ["loo", "bayes"])
    assert [stop.t is not None for stop in found] == [True, True]
    assert len(replays) == 1
