"""The rules that replay training, on outputs of the vocabulary: believed among the words, charged for the rest."""

import numpy as np
import pytest

from stopwise.linearized.coding import coding_matrix
from stopwise.linearized.filters import GradientDescent
from stopwise.linearized.objectives import Objective
from stopwise.linearized.replay import draw_batches
from stopwise.linearized.spectrum import Spectrum
from stopwise.stopping.cross_entropy import Replay, among_words, folded
from stopwise.stopping.known import BeforeTraining
from stopwise.stopping.stops import stopping_table

N, CLASSES = 16, 3


@pytest.fixture(scope="module")
def problem():
    """Labels that are a function of the inputs, a kernel of vocabulary outputs, f0 with most weight on other tokens."""
    draw = np.random.default_rng(3)
    x = draw.normal(size=(N, 4))
    labels = (x @ draw.normal(size=(4, CLASSES))).argmax(axis=1)
    matrix = np.kron(x @ x.T + 0.1, np.eye(CLASSES))
    start = np.tile(np.array([0.0, 0.0, 0.0, 3.0]) @ coding_matrix(CLASSES, "vocabulary").T, (N, 1))
    objective = Objective("cross_entropy", labels, CLASSES, "vocabulary", 1.0, np.zeros(1))
    return Spectrum.of(matrix, CLASSES, intercept=True), start, objective


def test_the_fold_among_words_keeps_their_differences(problem):
    spec, _start, objective = problem
    _words, fold = among_words(objective)
    logits = np.random.default_rng(0).normal(size=(5, CLASSES + 1))
    f = logits @ coding_matrix(CLASSES, "vocabulary").T
    np.testing.assert_allclose(f @ fold.T, logits[:, :CLASSES] @ coding_matrix(CLASSES).T, atol=1e-12)
    whole = np.kron(np.eye(N), fold)
    np.testing.assert_allclose(folded(spec, fold).matrix, whole @ spec.matrix @ whole.T, atol=1e-12)
    contrast = Objective("cross_entropy", objective.labels, CLASSES, "contrast", 1.0, np.zeros(1))
    assert among_words(contrast)[0] is contrast


def test_bayes_and_loo_stop_on_the_loss_of_the_label_token(problem):
    """Most of the loss is the other tokens' at first, so that training pays: both stop after the start."""
    spec, start, objective = problem
    run = BeforeTraining(
        spec,
        objective.targets - start,
        GradientDescent(0.5),
        40,
        times=np.arange(41),
        targets=objective.targets,
        replay=Replay(objective, draw_batches(N, None, 40, 0)),
    )
    rows, curves = stopping_table(run, ["loo", "bayes"])
    assert all(row["t"] > 0 for row in rows), rows
    first = -objective.log_probabilities(start)[np.arange(N), objective.labels].mean()
    for rule in ("loo", "bayes"):
        values = [row["value"] for row in curves if row["rule"] == rule]
        assert values[0] == pytest.approx(first, rel=0.02)
        assert min(values) < 0.7 * first
