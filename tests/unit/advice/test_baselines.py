"""What no training reaches: labels drawn at random are not worth training on, however bad the prompt's log-loss is."""

import numpy as np
import pytest

from stopwise.advice import baselines
from stopwise.advice.labelled import Labelled
from stopwise.advice.plan import Plan
from stopwise.advice.under_schedule import TrainingAdvice
from stopwise.linearized.coding import coding_matrix
from stopwise.linearized.objectives import Objective
from stopwise.linearized.replay import draw_batches
from stopwise.stopping.horizon import horizon, lengths
from stopwise.stopping.scheduled import Linearised, Schedule, largest_step

N, BATCH = 48, 16


def constant(steps, rate, seed=0):
    drawn = draw_batches(N, BATCH, steps, seed)
    weights = [np.full(len(batch), 1 / len(batch)) for batch in drawn]
    return Schedule(np.full(steps, rate), drawn, weights, epoch=N / BATCH)


def advised(labels, kernel, start):
    """Return the advice of a made-up kernel, for a prompt with these outputs."""
    net, classes = Linearised(kernel, start), int(labels.max()) + 1
    objective = Objective("cross_entropy", labels, classes, "contrast", 1.0, np.zeros(classes - 1))
    rate = 4 / largest_step(net, constant(3, 1.0))
    plans = [constant(int(steps), rate) for steps in lengths(N / BATCH, 20, 8)]
    stop = horizon(net, objective, plans)
    levels = {
        "shares": baselines.shares(labels, classes),
        "prompt": baselines.start(stop.losses[0], stop.correct[0], "prompt"),
        "with_offset": baselines.with_offset(start, labels, classes),
    }
    names = tuple(map(str, range(classes)))
    data = Labelled((("x",),) * N, labels, names, N, dict.fromkeys(names, N // classes))
    return TrainingAdvice(Plan("m", "d", ("text",), "label", head=False), data, stop, "m", {}, levels, names)


def features(rng, width=40):
    return rng.normal(size=(N, width)) * np.arange(1, width + 1) ** -0.7


@pytest.mark.parametrize("scale", [0.2, 3.0])
def test_permuted_labels_are_not_trained_on(scale):
    """A prompt that is sure of itself (scale 3) has a log-loss that any training improves: the shares are as good."""
    kinds = []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        x, labels = features(rng), rng.permutation(np.arange(N) % 2)
        found = advised(labels, x @ x.T, scale * rng.normal(size=(N, 1)))
        if scale > 1:
            assert found.levels["prompt"].loss > found.levels["shares"].loss
        kinds.append(found.kind)
    # One in forty intervals of a gain of nothing lies above 0.
    assert kinds.count("train") <= 1
    assert kinds.count("do_not_train") >= 3


def test_labels_that_follow_the_features_are_trained_on():
    rng = np.random.default_rng(0)
    x = features(rng)
    labels = (x[:, :3].sum(axis=1) > 0).astype(int)
    found = advised(labels, x @ x.T, 0.5 * rng.normal(size=(N, 1)))
    assert found.kind == "train"
    assert found.gain[1] > 0


def test_a_prompt_that_only_leans_to_one_word_is_set_right_by_its_offset():
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 3, size=120)
    logits = 4 * np.eye(3)[labels] + rng.normal(size=(120, 3)) * 2 + np.array([0.0, 6.0, 0.0])
    level = baselines.with_offset(logits @ coding_matrix(3).T, labels, 3)
    plain = (logits.argmax(axis=1) == labels).mean()
    assert level.correct.mean() > plain + 0.2
    assert level.offsets.argmin() == 1
    assert level.offsets.sum() == pytest.approx(0, abs=1e-9)


def test_the_offset_of_an_example_does_not_see_its_label():
    """Outputs without any information: fitted without the example, the offset is no better than guessing."""
    labels = np.random.default_rng(0).integers(0, 3, size=60)
    level = baselines.with_offset(np.zeros((60, 2)), labels, 3)
    assert level.loss >= baselines.shares(labels, 3).loss - 1e-6


def test_an_offset_does_not_turn_against_the_class_of_the_example_left_out():
    labels = np.arange(40) % 2
    level = baselines.with_offset(np.zeros((40, 1)), labels, 2)
    assert level.loss == pytest.approx(np.log(2), abs=1e-3)  # left out one by one, it would be 0.72
