"""A kernel computed in blocks of examples is the kernel of one job, whatever is trained and whatever is kept."""

from __future__ import annotations

import numpy as np
import pytest

from kernel_reference import VERBALIZERS, VOCAB, pico, relative, shaken
from stopwise.artifacts.block_pairs import pair_jobs
from stopwise.artifacts.blocks import assemble_blocks
from stopwise.artifacts.gram import assemble, layer_shares, shares_of_moments
from stopwise.artifacts.sample import Sample
from stopwise.artifacts.tables import table_of
from stopwise.network.pico import pico_classifier
from stopwise.training.jacobian_block import jacobian_block
from stopwise.training.jacobian_shard import jacobian_shard

N, NEW = 8, 5
# The float64 sums of one job and of blocks differ in their order; batches of other examples change no more than that.
ROUNDING = 1e-12
ADAM = {"objective": "cross_entropy", "batch_size": 4, "parameters": "all", "outputs": "contrast"}
ADAM |= {"intercept": "fitted", "target_scale": 1.0}


def sample(words):
    drawn = np.random.default_rng(0)
    splits = ["train"] * N + ["validation"] * 2 + ["test"] * (NEW - 2)
    rows = []
    for k, split in enumerate(splits):
        ids = drawn.integers(3, VOCAB, size=drawn.integers(3, 10)).tolist()
        place = k - splits.index(split)
        rows.append({"split": split, "position": place, "source_row": k, "group": None, "prompt": "", "input_ids": ids})
        rows[-1] |= {"label": int(k % len(words)), "label_name": "", "cut": False}
    return Sample(table_of(rows, "data"), list(words), [str(word) for word in words], "digest")


def both(model, own, kernel, blocks, **options):
    """Return the kernel of one job and that of blocks."""
    kernel = {"parameters": "all", "outputs": "contrast", "formula": "sgd", "memory_gb": 1, **kernel}
    whole = assemble({"one": jacobian_shard(model, own, kernel, (0, 1), **options)[0]})
    files = {
        f"{job.left}-{job.right}": jacobian_block(model, own, kernel, (job.left, job.right, blocks), **options)[0]
        for job in pair_jobs(blocks)
    }
    return whole, assemble_blocks(files, blocks, N, NEW)


def compared(whole, found):
    assert np.array_equal(found.train, found.train.T)
    for name in ("train", "new", "outputs", "outputs_new", "plain", "weights_move", "weights_move_new"):
        one, other = getattr(found, name), getattr(whole, name)
        assert (one is None) == (other is None), name
        assert one is None or relative(one, other) < ROUNDING, name


@pytest.mark.parametrize(("blocks", "layers"), [(2, True), (3, True), (3, False), (4, False)])
def test_blocks_of_words_are_the_kernel_of_one_job_with_its_layers(blocks, layers):
    own = sample(VERBALIZERS)
    whole, found = both(pico("gpt2"), own, {"layers": layers}, blocks)
    compared(whole, found)
    assert set(found.by_layer) == set(whole.by_layer)
    assert bool(found.by_layer) == layers
    for name, part in whole.by_layer.items():
        assert relative(found.by_layer[name], part) < ROUNDING
    assert set(found.moments) == set(whole.moments)
    for name, told in whole.moments.items():
        assert relative(found.moments[name], told) < 1e-10  # sums of squares: rounding twice
    y = own.targets("train", "contrast", 1.0)
    if layers:
        shares = [layer_shares(one, y - one.outputs, centred=True) for one in (whole, found)]
    else:
        shares = [shares_of_moments(one, y, 1.0, centred=True) for one in (whole, found)]
    for one, other in zip(*shares, strict=True):
        assert one.pop("layer") == other.pop("layer")
        assert one == pytest.approx(other, rel=1e-8)  # what cancels between a layer's sums costs a few digits


@pytest.mark.slow
def test_blocks_of_a_head_under_adam_are_the_kernel_of_one_job():
    own = sample(range(3))
    adam = ADAM | {"clip_norm": 0.5}
    options = {"adam": adam, "scheduled": {"clip_norm": 0.5, "weight_decay": 0.1}, "seed": 3}
    compared(*both(shaken(pico_classifier("bert", 3)), own, {"formula": "adam", "layers": False}, 3, **options))


@pytest.mark.slow
def test_blocks_under_adam_read_the_diagonal_from_all_training_examples():
    """One job reads it from its own rows, which two blocks do not all have."""
    adam = ADAM | {"parameters": "attention"}
    kernel = {"parameters": "attention", "formula": "adam", "layers": True}
    compared(*both(pico("gpt2"), sample(VERBALIZERS), kernel, 3, adam=adam, seed=3))


@pytest.mark.slow
def test_blocks_that_do_not_fit_into_memory_are_cut_again_inside_their_job(monkeypatch):
    monkeypatch.setattr("stopwise.kernel.memory.SMALLEST_TILE", 4)
    own, kernel = sample(VERBALIZERS), {"layers": False, "memory_gb": 1e-9}
    whole, found = both(pico("gpt2"), own, kernel, 2)
    compared(whole, found)
    for name, told in whole.moments.items():
        assert relative(found.moments[name], told) < 1e-10
    section = {"parameters": "all", "outputs": "contrast", "formula": "sgd", **kernel}
    assert jacobian_block(pico("gpt2"), own, section, (0, 1, 3))[1]["tiles"] > 1


def test_a_job_that_is_none_is_refused():
    with pytest.raises(ValueError, match="blocks 1 and 0 of 3 are no job"):
        jacobian_block(pico("gpt2"), sample(VERBALIZERS), {"parameters": "all", "outputs": "contrast"}, (1, 0, 3))
