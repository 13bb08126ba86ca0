"""A Trainer whose new head starts as a logistic regression on the network's features: linear probing first."""

from __future__ import annotations

from typing import Any

from transformers import Trainer

from stopwise.integrations.examples import read_examples
from stopwise.network.heads import is_classifier
from stopwise.network.quiet import untouched
from stopwise.training.probe import Probe, fit_probe, start_at


def probe_first(trainer: Trainer) -> Probe:
    """Fit the head of a Trainer's classifier to the features of its training set, write it into the model, return it.

    To be called before ``trainer.train()``. The penalty is chosen by cross-validation. Raises ValueError for a language
    model, a head without a linear last layer, and a training set without labels. Cost: one forward pass over the
    examples, and n + 73 regressions in n dimensions. The head has then seen the labels: a prediction needs
    ``Probe.left_out`` (``read_horizon``), and a left-out curve is too low at its beginning.
    """
    model: Any = trainer.model
    if not is_classifier(model):
        raise ValueError(f"model: {type(model).__name__} has no classification head to start with a probe")
    loader, args = trainer.get_train_dataloader(), trainer.args
    dataset: Any = loader.dataset
    seed = args.seed if args.data_seed is None else args.data_seed
    with untouched(model):
        examples = read_examples(model, dataset, loader.collate_fn, len(dataset), seed)
        probe = fit_probe(model, examples.batch, examples.labels, seed)
    start_at(model, probe)
    return probe
