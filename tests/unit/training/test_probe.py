"""A head started as a logistic regression: the model's own logits, its optimum, and refits without each example."""

import numpy as np
import pytest
import torch
from scipy.special import softmax

from stopwise.network.pico import pico_classifier
from stopwise.training.probe import features, final_layer, fit_probe, start_at
from training_reference import made_up_batch

ARCHITECTURES = ["bert", "distilbert", "gpt2"]  # two layers of head, a ReLU between them, one token of many


def batch_of(n=12, classes=3):
    made = made_up_batch(n, 0, classes)
    batch = {key: made[key] for key in ("input_ids", "attention_mask")}
    return batch, np.arange(n) % classes


def logits(model, batch):
    with torch.no_grad():
        return model(**batch).logits.double().numpy()


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_head_gives_the_regressions_logits(arch):
    model = pico_classifier(arch, 3)
    batch, labels = batch_of()
    phi = features(model, batch, size=5)
    probe = fit_probe(model, batch, labels)
    start_at(model, probe)
    expected = phi @ probe.weight.T + (0 if probe.bias is None else probe.bias)
    assert logits(model, batch) == pytest.approx(expected, abs=1e-6)  # the weights of the head may be single precision
    assert (final_layer(model).bias is None) == (probe.bias is None)


def test_the_regression_is_where_its_gradient_vanishes():
    model = pico_classifier("bert", 3)
    batch, labels = batch_of()
    phi, probe = features(model, batch), fit_probe(model, batch, labels)
    centred = phi - phi.mean(axis=0)
    scale2 = (centred**2).sum() / len(phi)
    error = (softmax(phi @ probe.weight.T + probe.bias, axis=1) - np.eye(3)[labels]) / len(labels)
    gradient = error.T @ centred + probe.penalty * scale2 * probe.weight
    assert np.abs(gradient).max() < 1e-4 * np.sqrt(scale2)  # L-BFGS stops at 1e-6 in scaled coordinates
    assert error.sum(axis=0) == pytest.approx(np.zeros(3), abs=1e-5)


def test_without_an_example_its_label_changes_nothing():
    model = pico_classifier("bert", 3)
    batch, labels = batch_of()
    changed = labels.copy()
    changed[4] = (labels[4] + 1) % 3
    one, other = (fit_probe(model, batch, y).left_out[4] for y in (labels, changed))
    own = fit_probe(model, batch, labels)
    if fit_probe(model, batch, changed).penalty == own.penalty:
        assert one == pytest.approx(other, abs=1e-3)  # both are optima of the same sum, to the optimiser's tolerance
    full = features(model, batch) @ own.weight.T + own.bias
    assert np.abs(softmax(one, axis=1) - softmax(full, axis=1)).max() > 1e-3
