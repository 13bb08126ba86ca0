"""A kernel from some of its columns, of a real network: its columns are the kernel's, and its certificate holds."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from kernel_reference import pico, prompts, relative, shaken
from stopwise.kernel import by_columns
from stopwise.kernel.by_columns import nystrom_ntk
from stopwise.kernel.ntk import empirical_ntk
from stopwise.linearized.coding import targets
from stopwise.linearized.decay import decay_fit
from stopwise.linearized.filters import GradientDescent
from stopwise.linearized.spectrum import Spectrum
from stopwise.network.pico import pico_classifier
from stopwise.stopping.stops import stopping_time

LENGTHS = [5, 9, 3, 7, 4, 6, 8]


def language_model():
    """A language model with three class words."""
    return pico("gpt2"), prompts(LENGTHS), {"parameters": "attention"}


def classifier():
    """A classifier with a head of four labels, two columns of padding on the left."""
    batch = prompts(LENGTHS, side="left")
    del batch["verbalizers"]
    return shaken(pico_classifier("bert", 4)), batch, {"parameters": "attention"}


def head_alone():
    """A classifier of two labels whose head alone is trained, in float32."""
    batch = prompts(LENGTHS)
    del batch["verbalizers"]
    model = shaken(pico_classifier("roberta", 2)).to(torch.float32)
    return model, batch, {"parameters": "head"}


NETWORKS = {"words": (language_model, 2), "classifier": (classifier, 3), "head": (head_alone, 1)}


@pytest.mark.parametrize("name", NETWORKS)
def test_pivots_columns_are_the_kernels_and_the_certificate_bounds_every_eigenvalue(name):
    make, width = NETWORKS[name]
    model, batch, options = make()
    whole = empirical_ntk(model, batch, **options)
    m, rank = len(whole.matrix), 5
    found, outputs = nystrom_ntk(model, batch, rank, block=3, **options)
    assert whole.columns == width
    assert len(found.pivots) == rank
    assert np.array_equal(outputs, whole.outputs)
    # K~ and K have the pivots' columns in common, and K~ nothing above K. float32 passes are exact to 1e-6.
    rounding = 1e-9 if name != "head" else 1e-5
    scale = np.abs(whole.matrix).max()
    assert np.abs(found.matrix() - whole.matrix)[:, found.pivots].max() < rounding * scale
    assert np.linalg.eigvalsh(whole.matrix - found.matrix()).min() > -rounding * np.trace(whole.matrix)
    assert found.trace == pytest.approx(np.trace(whole.matrix), rel=rounding)
    assert found.left == pytest.approx(np.trace(whole.matrix - found.matrix()), abs=rounding * found.trace)
    for intercept in (False, True):
        exact = Spectrum.of(whole, intercept=intercept).eigenvalues
        near = np.zeros(m)
        near[:rank] = found.eigenvalues(whole.columns, intercept)
        slack = rounding * exact[0] * m
        assert (near <= exact + slack).all()
        assert (exact <= near + found.bound + slack).all()


def test_as_many_columns_as_rows_give_the_kernel():
    model, batch, options = language_model()
    whole = empirical_ntk(model, batch, **options)
    found, _ = nystrom_ntk(model, batch, len(whole.matrix), block=8, **options)
    assert relative(found.matrix(), whole.matrix) < 1e-9
    assert found.left <= 1e-9 * found.trace


def test_a_network_gives_a_stop_and_a_decay_by_some_of_its_columns():
    """The way of docs/explanation/kernel.md."""
    model, batch, options = head_alone()
    found, outputs = nystrom_ntk(model, batch, 6, block=6, **options)
    y = targets(np.arange(len(LENGTHS)) % 2, 2)
    spectrum = found.spectrum(columns=outputs.shape[1], intercept=True)
    filter = GradientDescent(1 / spectrum.lambda_max)
    stop = stopping_time(spectrum, y - outputs, "loo", filter, t_max=50, targets=y)
    assert stop.t is not None
    assert "nystrom" in stop.flags
    assert spectrum.bound == found.bound
    assert decay_fit(found.eigenvalues(outputs.shape[1], intercept=True)).exponent >= 0


def test_no_pass_sees_more_than_a_block_of_columns(monkeypatch):
    model, batch, options = language_model()
    seen = []

    def counted(model, a, b, **given):
        seen.append((len(a["input_ids"]), len(b["input_ids"])))
        return empirical_ntk(model, a, b, **given)

    monkeypatch.setattr(by_columns, "empirical_ntk", counted)
    nystrom_ntk(model, batch, 4, block=3, **options)
    assert {examples for examples, _ in seen} == {len(LENGTHS)}
    assert max(columns for _, columns in seen) <= 3


def test_more_columns_repeat_the_passes_no_more_often(monkeypatch):
    """Of a made-up kernel whose eigenvalues fall slowly, as those of real ones do."""
    m, passes = 1500, []
    x = np.random.default_rng(0).normal(size=(m, m)) * np.arange(1, m + 1) ** -0.5
    k = x @ x.T

    def counted(model, a, b, **given):
        passes.append(len(b["input_ids"]))
        chosen = b["input_ids"][:, 0].numpy()
        norms = {"weight": np.sqrt(np.diag(k))}
        return SimpleNamespace(matrix=k[:, chosen], row_norms=norms, columns=1, outputs=np.zeros((m, 1)))

    monkeypatch.setattr(by_columns, "empirical_ntk", counted)
    found, _ = nystrom_ntk(None, {"input_ids": torch.arange(m)[:, None]}, 1024)
    assert len(found.pivots) == 1024
    assert max(passes) <= 128
    assert len(passes) < 1024 / 64  # what blocks of 64 would take at the least
    assert sum(passes) < 1.5 * 1024  # columns of pivots that were left out again


def test_pivots_follow_the_seed_and_options_reach_the_kernel():
    model, batch, options = head_alone()
    first, again, other = (nystrom_ntk(model, batch, 4, seed=seed, **options)[0] for seed in (3, 3, 4))
    assert np.array_equal(first.factor, again.factor)
    assert not np.array_equal(first.pivots, other.pivots)
    model, batch, options = language_model()
    words = nystrom_ntk(model, batch, 1, verbalizers=[11, 23], outputs="logits", **options)[0]
    assert len(words.factor) == 2 * len(LENGTHS)
    with pytest.raises(ValueError, match=r"kernel\.formula"):
        nystrom_ntk(model, batch, 4, formula="unknown", **options)
