"""Held-out estimates from the kernel: exact refits, no leak, fair folds, and intervals that mean something."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stopwise.advice.held_out import (
    Problem,
    accuracy_interval,
    curve_sizes,
    fold_splits,
    held_out,
    paired_gain,
    slope_interval,
    subset_splits,
)
from stopwise.linearized.coding import columns, targets
from stopwise.linearized.filters import GradientDescent, HeavyBall


def features(n=24, width=40, classes=3, seed=0):
    """Return a linear model's per-output features [n, columns, width], its outputs at the start, and labels."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    x = rng.normal(size=(n, columns(classes), width)) + 0.3 * labels[:, None, None]
    return x, rng.normal(size=(n, columns(classes))), labels


def problem_of(x, f0, labels, classes=3):
    rows = x.reshape(-1, x.shape[2])
    return Problem(rows @ rows.T, f0, labels, classes)


def trained_by_hand(x, f0, labels, train, test, lr, momentum, steps):
    """Return outputs [steps + 1, test, columns] of gradient descent on the weights of the linear model itself."""
    r = targets(labels, 3)[train] - f0[train]
    offset = r.mean(axis=0)
    a, w, v = x[train].reshape(-1, x.shape[2]), np.zeros(x.shape[2]), 0.0
    out = [f0[test] + offset]
    for _ in range(steps):
        v = momentum * v + a.T @ (a @ w - (r - offset).ravel()) / len(a)
        w = w - lr * v
        out.append(f0[test] + offset + x[test] @ w)
    return np.array(out)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_held_out_losses_are_those_of_a_linear_model_trained_without_the_examples(momentum):
    x, f0, labels = features()
    problem = problem_of(x, f0, labels)
    train, test = np.arange(16), np.arange(16, 24)

    def make(top):
        return HeavyBall(0.5 / top, momentum) if momentum else GradientDescent(0.5 / top)

    found = held_out(problem, make, lambda *parts: 7, 12, [(train, test)])
    lr = 0.5 / problem.spectrum(train).lambda_max
    outputs = trained_by_hand(x, f0, labels, train, test, lr, momentum, 12)
    expected = ((targets(labels, 3)[test] - outputs) ** 2).mean(axis=2)
    # Two ways through float64 of the same recursion, of order one.
    np.testing.assert_allclose(found.loss[:, test], expected, atol=1e-9)
    np.testing.assert_allclose(found.chosen_loss[test], expected[7], atol=1e-9)
    assert np.isnan(found.loss[:, train]).all()
    assert found.trained_on == 16


def test_a_left_out_label_changes_nothing_that_is_fitted():
    x, f0, labels = features()
    other = labels.copy()
    other[16:] = (other[16:] + 1) % 3
    seen = []

    def choose(spec, residual, y, filter):
        seen.append((spec.matrix.copy(), residual.copy(), filter.lr))
        return 3

    for given_labels in (labels, other):
        held_out(
            problem_of(x, f0, given_labels),
            lambda top: GradientDescent(1 / top),
            choose,
            5,
            [(np.arange(16), np.arange(16, 24))],
        )
    for one, two in zip(*seen, strict=True):
        np.testing.assert_array_equal(one, two)


@given(st.lists(st.integers(0, 2), min_size=12, max_size=60), st.integers(0, 5))
def test_folds_leave_every_example_out_once_a_round_and_deal_the_classes_out_evenly(labels, seed):
    labels = np.array([0, 1, 2] * 2 + labels)
    splits = fold_splits(labels, folds=5, repeats=2, seed=seed)
    half = len(splits) // 2
    for one_round in (splits[:half], splits[half:]):
        np.testing.assert_array_equal(np.sort(np.concatenate([test for _, test in one_round])), np.arange(len(labels)))
        for label in range(3):
            counts = [int((labels[test] == label).sum()) for _, test in one_round]
            assert max(counts) - min(counts) <= 1
    for train, test in splits:
        assert not set(train) & set(test)
        assert set(labels[train]) == {0, 1, 2}


@given(st.lists(st.integers(0, 1), min_size=20, max_size=50), st.integers(0, 5))
def test_subsets_are_nested_and_keep_the_classes_in_proportion(labels, seed):
    labels = np.array([0, 1] * 4 + labels)
    sizes = [6, 12, 24]
    by_size = subset_splits(labels, sizes, repeats=3, seed=seed)
    for repeat in range(3):
        parts = [set(splits[repeat][0]) for splits in by_size]
        assert parts[0] < parts[1] < parts[2]
        for size, part in zip(sizes, parts, strict=True):
            assert len(part) == size
            assert part | set(by_size[sizes.index(size)][repeat][1]) == set(range(len(labels)))
            ones = int(labels[sorted(part)].sum())
            assert abs(ones - size * labels.mean()) < 2


def test_even_folds_do_not_turn_the_offset_against_the_class_left_out():
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 2
    problem = Problem(np.eye(40), rng.normal(scale=1e-3, size=(40, 1)), labels, 2)

    def offset_accuracy(splits):
        make = lambda top: GradientDescent(1 / top)  # noqa: E731
        return held_out(problem, make, lambda *parts: 0, 1, splits).offset_correct.mean()

    alone = [(np.delete(np.arange(40), i), np.array([i])) for i in range(40)]
    assert offset_accuracy(alone) == 0.0  # the reason why single examples are not left out
    assert 0.25 < offset_accuracy(fold_splits(labels, folds=10)) < 0.75  # chance is 0.5 +- 0.08


def test_accuracy_intervals_ignore_what_was_never_left_out():
    values = np.array([1.0, 0.5, 0.0, np.nan, 1.0])
    rate, low, high = accuracy_interval(values)
    assert rate == pytest.approx(2.5 / 4)
    assert 0 < low < rate < high < 1
    assert accuracy_interval(np.ones(20))[1] < 0.9  # certain-looking results keep Wilson's room


def test_a_gain_without_any_change_is_not_certain():
    value, low, high = paired_gain(np.ones(30), np.ones(30))
    assert value == 0
    assert low < 0 < high
    assert high == pytest.approx(1.96 / 32, rel=1e-3)  # sqrt(1)/(n + 2), Agresti & Min's two pseudo-pairs


def test_a_gain_follows_the_published_formula():
    before, after = np.zeros(50), np.zeros(50)
    after[:12], before[12:15] = 1, 1  # 12 gained, 3 lost
    value, low, high = paired_gain(after, before)
    centre, spread = 9 / 52, np.sqrt(16 - 81 / 52) / 52
    assert value == pytest.approx(9 / 50)
    assert (low, high) == pytest.approx((centre - 1.959964 * spread, centre + 1.959964 * spread), rel=1e-6)


def test_a_power_law_is_read_off_with_its_exponent():
    sizes = np.array([8.0, 16, 32, 64])
    noise = np.random.default_rng(0).lognormal(sigma=0.2, size=(1, 200))
    by_example = 2 * sizes[:, None] ** -0.5 * noise
    by_example[0, ::3] = np.nan  # a third was never left out of the smallest size
    value, low, high = slope_interval(np.log(sizes), by_example, np.log)
    assert low <= value <= high
    assert low - 0.03 < -0.5 < high + 0.03  # the noise of an example is shared by the sizes, but for the missing third
    assert all(np.isnan(slope_interval(np.log(sizes[:2]), by_example[:2])))


def test_too_small_sizes_are_left_out_of_the_curve():
    assert curve_sizes(64, 2) == [8, 16, 32]
    assert curve_sizes(20, 2) == [10]
    assert curve_sizes(64, 6) == [16, 32]


def test_the_scale_is_chosen_anew_in_each_fit_and_from_its_examples_only():
    x, f0, labels = features()
    problem = problem_of(x, f0, labels)
    seen = []

    def scale(spec, unit, start):
        seen.append(len(start))
        assert unit.shape == start.shape
        return 2.0 if len(start) == 16 else 5.0

    splits = [(np.arange(16), np.arange(16, 24)), (np.arange(18), np.arange(18, 24))]
    own = [held_out(problem, GradientDescent, lambda *parts: 3, 6, [split], scale) for split in splits]
    assert seen == [16, 18]
    for split, found, a in zip(splits, own, (2.0, 5.0), strict=True):
        same = held_out(dataclasses.replace(problem, scale=a), GradientDescent, lambda *parts: 3, 6, [split])
        np.testing.assert_array_equal(found.loss, same.loss)
        # Step 0: f0 and its offset against targets a times as large, in units of the targets.
        train, test = split
        y = a * targets(labels, 3)
        wanted = ((y[test] - f0[test] - (y - f0)[train].mean(axis=0)) ** 2).mean(axis=1) / a**2
        np.testing.assert_allclose(found.loss[0, test], wanted, rtol=1e-12)
