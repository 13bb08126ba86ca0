"""A Trainer whose head starts as a regression on the features of its own training set."""

import pytest
import torch
from transformers import set_seed

from stopwise.integrations.probe_first import probe_first
from stopwise.network.forward import class_outputs
from stopwise.training.probe import features
from trainer_runs import make


def test_the_head_gives_the_logits_of_the_probe_and_nothing_else_is_changed(tmp_path):
    trainer = make("bert", tmp_path)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    set_seed(3)
    drawn = torch.rand(3)
    set_seed(3)
    probe = probe_first(trainer)
    assert torch.equal(torch.rand(3), drawn)
    changed = {name for name, p in trainer.model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {"classifier.weight", "classifier.bias"}
    batch = trainer.data_collator(trainer.train_dataset)
    logits = features(trainer.model, batch) @ probe.weight.T + probe.bias
    found = class_outputs(trainer.model.eval(), batch, outputs="logits").detach().numpy()
    # Features are read in float64, as the model computes.
    assert abs(found - logits).max() < 1e-9
    trainer.train()
    assert trainer.state.global_step == trainer.state.max_steps


def test_a_language_model_has_no_head_to_start(tmp_path):
    with pytest.raises(ValueError, match="has no classification head to start with a probe"):
        probe_first(make("words", tmp_path))
