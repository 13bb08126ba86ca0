"""Folds of real training: how examples are dealt, and which step the folds' curves name."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stopwise.stopping.folds import folded_stop, patient_step, stratified_folds


@given(labels=st.lists(st.integers(0, 4), min_size=8, max_size=60), count=st.integers(2, 8), seed=st.integers(0, 9))
def test_folds_are_even_and_so_are_the_shares_of_every_class(labels, count, seed):
    labels = np.array(labels)
    folds = stratified_folds(labels, count, seed)
    sizes = np.bincount(folds, minlength=count)
    assert sizes.max() - sizes.min() <= 1
    for label in np.unique(labels):
        own = np.bincount(folds[labels == label], minlength=count)
        assert own.max() - own.min() <= 1


def test_another_seed_deals_other_folds_and_the_same_seed_the_same():
    labels = np.arange(32) % 2
    assert (stratified_folds(labels, 4, 0) == stratified_folds(labels, 4, 0)).all()
    assert (stratified_folds(labels, 4, 0) != stratified_folds(labels, 4, 1)).any()


@pytest.mark.parametrize("count", [1, 9])
def test_a_number_of_folds_that_cannot_be_is_named_with_its_key(count):
    with pytest.raises(ValueError, match=r"folds: found \d, must be 2 to 8"):
        stratified_folds(np.zeros(8, dtype=int), count, 0)


def rows(fold, losses, examples=1):
    return [{"fold": fold, "step": 4 * i, "loss": loss, "examples": examples} for i, loss in enumerate(losses)]


def test_a_fold_counts_by_the_examples_that_it_leaves_out():
    parts = rows(0, [1.0, 0.0, 1.0], 3) + rows(1, [1.0, 1.0, 0.0], 1)
    t, loss, steps, curve = folded_stop(parts, "cross_validation", 2, 0.0)
    assert (t, loss) == (4, 0.25)
    assert steps.tolist() == [0, 4, 8]
    assert curve.tolist() == [1.0, 0.25, 0.75]


def test_a_step_that_a_diverged_fold_never_reached_is_not_chosen():
    parts = rows(0, [1.0, 0.5, 0.1]) + rows(1, [1.0, 0.5])
    t, _, _, curve = folded_stop(parts, "cross_validation", 2, 0.0)
    assert t == 4
    assert np.isnan(curve[2])


def test_holdout_refit_waits_with_patience_and_cross_validation_looks_at_the_whole_curve():
    parts = rows(0, [1.0, 0.8, 0.9, 0.9, 0.1])
    assert folded_stop(parts, "holdout_refit", 2, 0.0)[0] == 4
    assert folded_stop(parts, "cross_validation", 2, 0.0)[0] == 16
    assert patient_step([0, 1, 2, 3], [3.0, 2.0, 2.5, 1.0], 1) == 1
