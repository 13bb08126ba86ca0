"""The anchored leave-one-out of the study touches no training, and answers where its checkpoints are alike."""

import numpy as np
import pytest
from test_encoder_runs import batch_of

from stopwise.network.pico import pico_classifier
from stopwise.studies.anchored_runs import left_out_lengths
from stopwise.studies.encoder_rows import Recipe
from stopwise.studies.encoder_runs import Looks, Runner
from stopwise.studies.encoder_ways import anchored_step

RECIPE = Recipe("usual", 1e-3, None, "decay", clip_norm=1.0)


def test_the_training_that_is_watched_is_the_training():
    found = []
    for watched in (True, False):
        own = Runner(pico_classifier("bert", 2), batch_of(12), {}, "all", 0.01, 1.0)
        if watched:
            left_out_lengths(own, RECIPE.rates, [0, 6], 4, 0)
        else:
            own.run(np.arange(12), RECIPE.rates(6), {}, 4, 0, Looks([]))
        found.append(own.predict("train"))
    assert (found[0] == found[1]).all()


def test_a_length_of_one_step_has_no_checkpoint_and_is_left_out():
    own = Runner(pico_classifier("bert", 2), batch_of(12), {}, "all", 0.01, 1.0)
    assert [one.length for one in left_out_lengths(own, RECIPE.rates, [0, 1, 2], 12, 0, memory_gb=1)] == [0, 2]


@pytest.mark.parametrize(
    ("recipe", "followed"),
    [
        (RECIPE, True),
        (Recipe("constant", 1e-3, None, "constant"), False),
        (Recipe("probe", 1e-3, None, "decay", start="probe"), False),
        (Recipe("kernel", None, 4, "decay"), False),
    ],
)
def test_it_is_made_for_lengths_whose_start_and_rate_know_no_label(recipe, followed):
    assert recipe.followed is followed


def test_lengths_whose_checkpoints_are_not_alike_are_no_answer():
    rows = [(0, 0.7, 1.0), (4, 0.6, 0.8), (8, 0.1, 0.4)]
    keys = ("length", "log_loss", "coherence")
    assert anchored_step([dict(zip(keys, row, strict=True)) for row in rows]) == 4
