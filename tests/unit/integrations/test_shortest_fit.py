"""The shortest training that fits: lengths from the start, the first that fits is kept, and what cannot be used."""

import numpy as np
import pytest

from stopwise import shortest_fit
from stopwise.stopping.fitted import FITTED, guessing_loss
from trainer_runs import make


def making(kind, folder, made, **changes):
    def one(epochs):
        made.append(make(kind, folder, num_train_epochs=epochs, **changes))
        return made[-1]

    return one


@pytest.mark.parametrize("kind", ["bert", "words"])
def test_the_first_length_that_fits_is_kept_and_every_length_starts_anew(kind, tmp_path):
    made = []
    found = shortest_fit(making(kind, tmp_path, made, learning_rate=3e-2), (40, 1, 2, 20), share=0.9)
    assert [t.args.num_train_epochs for t in made] == sorted(found.losses)
    assert found.trainer is made[-1]
    assert found.epochs == made[-1].args.num_train_epochs
    assert found.trainer.state.global_step == found.trainer.state.max_steps
    below = [loss <= 0.9 * found.guessing for loss in found.losses.values()]
    assert below == [False] * (len(below) - 1) + [True]
    assert found.fitted
    assert found.guessing == pytest.approx(np.log(2), abs=0.1)


def test_where_none_fits_the_longest_is_kept(tmp_path):
    made = []
    found = shortest_fit(making("bert", tmp_path, made, learning_rate=1e-9), (1, 2))
    assert (found.epochs, found.fitted, len(made)) == (2, False, 2)


def test_the_loss_is_that_of_the_training_examples_in_evaluation_mode(tmp_path):
    found = shortest_fit(making("bert", tmp_path, []), (1,))
    again = found.trainer.evaluate(found.trainer.train_dataset)["eval_loss"]
    assert found.losses == {1: pytest.approx(again)}


def test_guessing_is_the_entropy_of_the_labels():
    assert guessing_loss([0, 1, 2, 3]) == pytest.approx(np.log(4))
    assert guessing_loss([0, 0, 0, 1]) == pytest.approx(-0.75 * np.log(0.75) - 0.25 * np.log(0.25))
    with pytest.raises(ValueError, match="two different labels"):
        guessing_loss([1, 1])


def test_what_cannot_be_used_is_one_line(tmp_path):
    same = make("bert", tmp_path, learning_rate=1e-9)

    def again(epochs):
        return same

    with pytest.raises(ValueError, match=r"^make: returned the model that an earlier length has trained"):
        shortest_fit(again, (1, 2))
    for lengths in ((), (0, 1), (-1,)):
        with pytest.raises(ValueError, match=r"^lengths: found "):
            shortest_fit(again, lengths)
    for share in (0, 1, 2):
        with pytest.raises(ValueError, match=r"^share: found "):
            shortest_fit(again, (1,), share)
    assert 0 < FITTED < 1
