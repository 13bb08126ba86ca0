"""The shortest training of a Trainer that fits its examples: lengths are tried from the shortest on, each anew."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from transformers import Trainer

from stopwise.stopping.fitted import FITTED, LENGTHS, guessing_loss


@dataclass(frozen=True)
class ShortestFit:
    """What was chosen: the ``trainer`` that has trained for ``epochs``, and whether its loss is small enough.

    ``losses``: the log-loss of the training examples after each length that was tried, in evaluation mode;
    ``guessing``: that of answering the labels' shares.
    """

    trainer: Trainer = field(repr=False)
    epochs: float
    fitted: bool
    losses: dict[float, float]
    guessing: float


def shortest_fit(
    make: Callable[[float], Trainer], lengths: Iterable[float] = LENGTHS, share: float = FITTED
) -> ShortestFit:
    """Train for each of ``lengths`` epochs from the start, shortest first, until the examples are fitted; return it.

    ``make(epochs)`` returns a new Trainer with a new model and ``num_train_epochs=epochs``, so that every length has
    its whole schedule. Examples count as fitted where their mean log-loss, in evaluation mode, is at most ``share`` of
    that of guessing by the labels' shares. Where no length fits them the longest is kept. No label is set aside. Cost:
    the lengths up to the one that is kept, at most about twice the longest. A heuristic, not judged
    yet (docs/results/encoder-study.md). Raises ValueError for lengths that are not positive, a share outside (0, 1), a
    model that an earlier length has trained, and training sets without two different labels.
    """
    tried = sorted(set(lengths))
    if not tried or tried[0] <= 0:
        raise ValueError(f"lengths: found {tried}; give one or more numbers of epochs above 0")
    if not 0 < share < 1:
        raise ValueError(f"share: found {share}; give a number between 0 and 1, such as {FITTED}")
    losses: dict[float, float] = {}
    before: Any = None
    for epochs in tried:
        trainer = make(epochs)
        if trainer.model is before:
            raise ValueError("make: returned the model that an earlier length has trained; it must make a new one")
        before = trainer.model
        guessing = guessing_loss(_labels(trainer))
        trainer.train()
        metrics = trainer.evaluate(trainer.train_dataset, metric_key_prefix="fit")
        losses[epochs] = float(metrics["fit_loss"])
        if losses[epochs] <= share * guessing:
            break
    return ShortestFit(trainer, epochs, losses[epochs] <= share * guessing, losses, guessing)


def _labels(trainer: Trainer) -> np.ndarray:
    """Return the labels of the training set as its collator gives them: classes, or the tokens that are answers."""
    found = []
    for batch in trainer.get_eval_dataloader(trainer.train_dataset):
        if "labels" not in batch:
            raise ValueError("train_dataset: its rows have no labels")
        labels = batch["labels"].cpu().numpy().ravel()
        found.append(labels[labels != -100])
    return np.concatenate(found) if found else np.zeros(0, dtype=int)
