"""Real training of one cell of the study: the outputs along a run, on all its examples or without some of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from stopwise.artifacts.tables import matrix_rows
from stopwise.kernel.ntk import empirical_ntk
from stopwise.linearized.objectives import Objective
from stopwise.linearized.replay import draw_batches
from stopwise.network.heads import is_classifier
from stopwise.network.learner import Learner, Prompts
from stopwise.network.parameters import select_parameters
from stopwise.training.adam_preconditioner import own_metric
from stopwise.training.decayed import weights_move
from stopwise.training.settings import ADAM_BETAS, ADAM_EPS, FinetuneSettings

TOKENS = 1024  # padded tokens of one pass


@dataclass(frozen=True, eq=False)
class Run:
    """What a run left: the steps of its evaluations, outputs by split at each, and every step's batch.

    ``outputs``: of each split its steps and [its evaluations, examples, columns] float32; ``taken``: (learning rate,
    examples of the batch, their outputs before the step) of every step.
    """

    steps: Sequence[int]
    outputs: dict[str, tuple[list[int], np.ndarray]]
    taken: list[tuple[float, np.ndarray, np.ndarray]] = field(default_factory=list)


class Runner:
    """Trains one model again and again from the same start; cross-entropy, AdamW, no dropout.

    ``watched`` are the batches whose outputs are kept beside those of the training examples. Each run leaves the model
    at its last weights; the next begins with putting them back.
    """

    def __init__(
        self,
        model: Any,
        train: Mapping[str, Any],
        watched: Mapping[str, Mapping[str, Any]],
        parameters: Any,
        weight_decay: float,
        clip_norm: float | None,
    ) -> None:
        self.learner = Learner(model, select_parameters(model, parameters), "contrast")
        self.train, self.labels = Prompts.of(train, TOKENS, model), np.asarray(train["labels"])
        self.watched = {name: Prompts.of(batch, TOKENS, model) for name, batch in watched.items()}
        self.weight_decay, self.clip_norm = weight_decay, clip_norm
        self.start = [tensor.clone() for tensor in self.learner.tensors]

    def objective(self, index: np.ndarray) -> Objective:
        """Return the objective of some training examples."""
        classes = len(self.train.verbalizers)
        return Objective("cross_entropy", self.labels[index], classes, "contrast", 1.0, np.zeros(1))

    def run(
        self,
        examples: np.ndarray,
        rates: np.ndarray,
        steps: Sequence[int],
        batch_size: int,
        seed: int,
        watched: Sequence[str],
        held_out: np.ndarray | None = None,
        title: str = "",
        look: Callable[[int, torch.optim.Optimizer], None] | None = None,
    ) -> Run:
        """Train on ``examples`` (their places among the training examples) and return the outputs at ``steps``.

        ``rates``: of every step. ``held_out``: examples that hold-out stopping looks at; what is watched is then looked
        at only where their loss is the least so far, for hold-out stopping delivers no other step.
        ``look(step, optimizer)`` is called before every step, while the model holds its weights: for a way of choosing
        that reads the network along a run. The outputs are those of all training examples, whether trained on or not
        (split ``train``), and of the ``watched`` ones. Cost: a pass forth and back over a batch a step, and a pass
        forth over all that is watched an evaluation.
        """
        batches = [examples[b] for b in draw_batches(len(examples), batch_size, len(rates), seed)]
        kept: dict[str, tuple[list[int], list[np.ndarray]]] = {name: ([], []) for name in ("train", *watched)}
        taken, least = [], np.inf
        for tensor, start in zip(self.learner.tensors, self.start, strict=True):
            tensor.copy_(start)
        weights = list(self.learner.parameters.values())
        wanted = set(steps)
        with self.learner.trainable():
            optimizer = torch.optim.AdamW(
                weights, lr=0.0, betas=ADAM_BETAS, eps=ADAM_EPS, weight_decay=self.weight_decay, fused=True
            )
            for step in tqdm(range(len(rates) + 1), desc=title, unit="step", disable=not title, mininterval=10):
                if step in wanted:
                    f = self._keep(kept, "train", step, self.train)
                    loss = -np.inf if held_out is None else self.objective(held_out).loss(f[held_out])
                    for name in watched if loss < least else ():
                        self._keep(kept, name, step, self.watched[name])
                    least = least if held_out is None else min(least, loss)
                if look is not None and step < len(rates):
                    look(step, optimizer)
                if step < len(rates):
                    f = self._step(optimizer, weights, batches[step], float(rates[step]))
                    taken.append((float(rates[step]), batches[step], f))
        return Run(list(steps), {name: (at, np.stack(own)) for name, (at, own) in kept.items()}, taken)

    def _keep(
        self, kept: dict[str, tuple[list[int], list[np.ndarray]]], name: str, step: int, own: Prompts
    ) -> np.ndarray:
        """Return the outputs of a split now, and add them to what is kept."""
        f = self.learner.predict(own)
        kept[name][0].append(step)
        kept[name][1].append(f)
        return f

    def _step(
        self, optimizer: torch.optim.Optimizer, weights: list[nn.Parameter], batch: np.ndarray, rate: float
    ) -> np.ndarray:
        """Take one step and return the batch's outputs before it."""
        objective = self.objective(batch)
        f, _ = self.learner.gradient(self.train.rows(batch, TOKENS), objective.gradient)
        if self.clip_norm is not None:
            nn.utils.clip_grad_norm_(weights, self.clip_norm)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        return f


@contextmanager
def small_vocabulary(model: Any, batches: Sequence[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Keep only the rows of the token table that the batches use, for the time of a block; yields the batches renamed.

    A row whose token occurs nowhere gets no gradient and changes no output, so that the run is the same and the table
    is no burden. Only a classifier's table is cut: that of a language model is its head as well.
    """
    if not is_classifier(model):
        yield list(batches)
        return
    table = model.get_input_embeddings()
    padding = table.padding_idx
    used = [batch["input_ids"].flatten() for batch in batches]
    known = torch.cat([*used, torch.tensor([0 if padding is None else padding])]).unique()
    place = {int(token): i for i, token in enumerate(known)}
    small = nn.Embedding(len(known), table.embedding_dim, None if padding is None else place[padding])
    small.weight = nn.Parameter(table.weight.detach()[known].clone(), requires_grad=False)
    model.set_input_embeddings(small)
    config = model.config.get_text_config()
    before = config.pad_token_id
    if isinstance(before, int):
        config.pad_token_id = place.get(before, before)
    try:
        yield [{**batch, "input_ids": torch.searchsorted(known, batch["input_ids"])} for batch in batches]
    finally:
        model.set_input_embeddings(table)
        config.pad_token_id = before


def kernel_rows(
    model: Any, train: Mapping[str, Any], settings: FinetuneSettings, section: Mapping[str, Any], seed: int, device: str
) -> list[dict[str, Any]]:
    """Return rows of ``study_kernel``: AdamW's own kernel J D J', the plain J J', f0 and J theta_0 at the start.

    ``section``: the configuration's kernel section. Cost: three times a kernel's passes over ``train``.
    """
    chosen = {key: section[key] for key in ("parameters", "memory_gb")} | {"device": device, "outputs": "contrast"}
    metric = own_metric(model, train, settings, seed)
    own = empirical_ntk(model, train, formula="adam", preconditioner=metric, **chosen)
    plain = empirical_ntk(model, train, formula="sgd", **chosen)
    moves = weights_move(model, train, {**chosen})
    blocks = {"train": own.matrix, "plain": plain.matrix, "outputs": own.outputs, "weights_move": moves}
    return [row for name, block in blocks.items() for row in matrix_rows(block, block=name)]
