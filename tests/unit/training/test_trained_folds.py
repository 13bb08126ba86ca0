"""Real folds: the curves are those of the trainings without each example."""

import numpy as np
import pytest

from stopwise.training.folds import cross_validated

LABELS = np.array([0] * 14 + [1] * 7 + [2] * 3)


def test_the_curve_is_the_mean_over_examples_each_by_the_training_without_it():
    seen = []

    def train(inside, left, number):
        assert set(inside).isdisjoint(left)
        seen.append(number)
        # Right from the second look on, and surest there.
        sure = np.array([1 / 3, 0.8, 0.5])
        chance = np.full((3, len(left), 3), ((1 - sure) / 2)[:, None, None])
        chance[:, np.arange(len(left)), LABELS[left]] = sure[:, None]
        return np.log(chance)

    found = cross_validated(LABELS, np.array([0.0, 1.0, 2.0]), 4, train)
    assert seen == [0, 1, 2, 3]
    assert (found.best, found.epoch) == (1, 1.0)
    assert found.loss_interval(1)[0] == pytest.approx(-np.log(0.8))
    assert found.accuracy_interval(2)[0] == 1
    assert found.loss_at(1.5) == pytest.approx(-(np.log(0.8) + np.log(0.5)) / 2)
    assert np.isnan(found.loss_at(2.5))
    assert found.within == (1.0, 1.0)
