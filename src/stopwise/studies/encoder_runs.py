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
from stopwise.studies.encoder_rows import LEFT_OUT, fold_steps
from stopwise.training.adam_preconditioner import own_metric
from stopwise.training.probe import fit_probe, start_at
from stopwise.training.settings import ADAM_BETAS, ADAM_EPS, FinetuneSettings

TOKENS = 1024  # padded tokens of one pass


@dataclass(eq=False)
class Looks:
    """What is looked at along the trainings of a cell, and the outputs that were seen.

    ``names``: the batches whose outputs are kept. ``held_out``: examples that this training leaves out, kept as the
    split ``left_out``. ``only_least``: the batches are looked at only where the log-loss of those left out is the least
    so far, for hold-out stopping delivers no other step. ``outputs``: of each split its steps and its [evaluations]
    arrays [examples, columns].
    """

    names: Sequence[str]
    held_out: np.ndarray | None = None
    only_least: bool = False
    outputs: dict[str, tuple[list[int], list[np.ndarray]]] = field(default_factory=dict)
    least: float = np.inf

    def look(self, runner: Runner, step: int) -> None:
        """Keep the outputs of the network as it is now, under the name of a step."""
        better = True
        if self.held_out is not None:
            f = self._keep(LEFT_OUT, step, runner.predict_examples(self.held_out))
            loss = runner.objective(self.held_out).loss(f)
            better, self.least = loss < self.least, min(self.least, loss)
        for name in self.names if better or not self.only_least else ():
            self._keep(name, step, runner.predict(name))

    def _keep(self, name: str, step: int, f: np.ndarray) -> np.ndarray:
        steps, kept = self.outputs.setdefault(name, ([], []))
        steps.append(step)
        kept.append(f)
        return f


Taken = list[tuple[float, np.ndarray, np.ndarray]]


class Runner:
    """Trains one model again and again from the same start; cross-entropy, AdamW, no dropout.

    ``watched`` are the batches whose outputs can be kept beside those of the training examples. Each training leaves
    the model at its last weights; the next begins with putting the start back.
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
        self.batch, self.labels = train, np.asarray(train["labels"])
        self.prompts = {name: Prompts.of(batch, TOKENS, model) for name, batch in {"train": train, **watched}.items()}
        self.weight_decay, self.clip_norm = weight_decay, clip_norm
        self.given = [tensor.clone() for tensor in self.learner.tensors]
        self.start = self.given

    def objective(self, index: np.ndarray) -> Objective:
        """Return the objective of some training examples."""
        classes = len(self.prompts["train"].verbalizers)
        return Objective("cross_entropy", self.labels[index], classes, "contrast", 1.0, np.zeros(1))

    def predict(self, name: str) -> np.ndarray:
        """Return the outputs of the training examples, or of a batch that is watched; [n, columns]."""
        return self.learner.predict(self.prompts[name])

    def predict_examples(self, index: np.ndarray) -> np.ndarray:
        """Return the outputs of some training examples, [len(index), columns]."""
        return self.learner.predict(self.prompts["train"].rows(index, TOKENS))

    def start_outputs(self) -> np.ndarray:
        """Return the outputs of the training examples before any step, float64 [n, columns]."""
        self._restore(self.start)
        return self.predict("train").astype(np.float64)

    def start_head(self, examples: np.ndarray, seed: int) -> None:
        """Let trainings begin with the head at the logistic regression on the features of some training examples."""
        self._restore(self.given)
        fit_start(self.learner.model, self.batch, examples, seed)
        self.start = [tensor.clone() for tensor in self.learner.tensors]

    def _restore(self, values: Sequence[torch.Tensor]) -> None:
        for tensor, value in zip(self.learner.tensors, values, strict=True):
            tensor.copy_(value)

    def run(
        self,
        examples: np.ndarray,
        rates: np.ndarray,
        names: Mapping[int, Sequence[int]],
        batch_size: int,
        seed: int,
        looks: Looks,
        title: str = "",
        look: Callable[[int, torch.optim.Optimizer], None] | None = None,
    ) -> Taken:
        """Train on ``examples`` (their places among the training examples); return what every step took.

        ``rates``: of every step. ``names``: the steps at which ``looks`` looks, each with the names it has there.
        ``look(step, optimizer)`` is called before every step, while the model holds its weights: for a way of choosing
        that reads the network along a run. Returned: (learning rate, examples of the batch, their outputs before the
        step) of every step. Cost: a pass forth and back over a batch a step, and a pass forth over all that is looked
        at.
        """
        batches = [examples[b] for b in draw_batches(len(examples), batch_size, len(rates), seed)]
        taken: Taken = []
        self._restore(self.start)
        weights = list(self.learner.parameters.values())
        with self.learner.trainable():
            optimizer = torch.optim.AdamW(
                weights, lr=0.0, betas=ADAM_BETAS, eps=ADAM_EPS, weight_decay=self.weight_decay, fused=True
            )
            for step in tqdm(range(len(rates) + 1), desc=title, unit="step", disable=not title, mininterval=10):
                for name in names.get(step, ()):
                    looks.look(self, name)
                if look is not None and step < len(rates):
                    look(step, optimizer)
                if step < len(rates):
                    f = self._step(optimizer, weights, batches[step], float(rates[step]))
                    taken.append((float(rates[step]), batches[step], f))
        return taken

    def follow(
        self,
        examples: np.ndarray,
        rates: Callable[[int], np.ndarray],
        steps: Sequence[int],
        apart: bool,
        batch_size: int,
        seed: int,
        looks: Looks,
        title: str = "",
    ) -> dict[int, Taken]:
        """Train a cell on some of its n examples, and look at the ``steps`` of the run on all of them.

        ``rates``: of a training of so many steps. ``apart``: whether every step is the length of a training of its own.
        On fewer than n examples a training takes as many epochs, and what is seen keeps the names in ``steps``, 0 the
        first. Returned: what the training of each length took.
        """
        own = dict(zip(steps, fold_steps(steps, len(examples), len(self.labels)), strict=True))
        if not apart:
            names = {at: [step for step in steps if own[step] == at] for at in own.values()}
            return {steps[-1]: self.run(examples, rates(own[steps[-1]]), names, batch_size, seed, looks, title)}
        taken = {}
        for k, length in enumerate(steps[1:]):
            names = {own[length]: [length]} | ({0: [0]} if k == 0 else {})
            taken[length] = self.run(examples, rates(own[length]), names, batch_size, seed, looks, title)
        return taken

    def _step(
        self, optimizer: torch.optim.Optimizer, weights: list[nn.Parameter], batch: np.ndarray, rate: float
    ) -> np.ndarray:
        """Take one step and return the batch's outputs before it."""
        objective = self.objective(batch)
        f, _ = self.learner.gradient(self.prompts["train"].rows(batch, TOKENS), objective.gradient)
        if self.clip_norm is not None:
            norm = nn.utils.get_total_norm([weight.grad for weight in weights if weight.grad is not None])
            if norm > self.clip_norm:  # else it would be a pass over all gradients that multiplies them by 1
                nn.utils.clip_grads_with_norm_(weights, self.clip_norm, norm)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        return f


def fit_start(
    model: Any, batch: Mapping[str, Any], examples: np.ndarray, seed: int, left_out: bool = False
) -> np.ndarray:
    """Start the head of a model at the logistic regression on the features of some examples.

    Returned with ``left_out``: the logits of these examples by the regression without each of them, [groups, n, C].
    """
    own = {key: value if key == "verbalizers" else value[torch.as_tensor(examples)] for key, value in batch.items()}
    probe = fit_probe(model, own, np.asarray(own["labels"]), seed, left_out)
    start_at(model, probe)
    return probe.left_out


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


@contextmanager
def first_token_only(model: Any) -> Iterator[None]:
    """Let the last layer of a BERT classifier end with the first token, for the time of a block.

    Its head reads no other. The outputs and gradients are the same to rounding, for a ninth less of the products of a
    network of six layers.
    """
    if type(model).__name__ != "BertForSequenceClassification":
        yield
        return
    attention = model.bert.encoder.layer[-1].attention
    handle = attention.register_forward_hook(lambda module, given, out: (out[0][:, :1], *out[1:]))
    try:
        yield
    finally:
        handle.remove()


def kernel_rows(
    model: Any,
    train: Mapping[str, Any],
    settings: FinetuneSettings,
    section: Mapping[str, Any],
    seed: int,
    device: str,
    plain: bool = False,
) -> list[dict[str, Any]]:
    """Return rows of ``study_kernel``: AdamW's own kernel J D J', f0 and J theta_0 at the model's weights.

    ``section``: the configuration's kernel section. ``plain``: J J' too, for training that clips. Cost: a kernel's
    passes over ``train``, twice with the plain one.
    """
    chosen = {key: section[key] for key in ("parameters", "memory_gb")} | {"device": device, "outputs": "contrast"}
    metric = own_metric(model, train, settings, seed)
    weights = {name: own.detach() for name, own in select_parameters(model, section["parameters"]).items()}
    own = empirical_ntk(model, train, formula="adam", preconditioner=metric, along=weights, **chosen)
    assert own.moves is not None  # a direction was asked for
    blocks = {"train": own.matrix, "outputs": own.outputs, "weights_move": own.moves}
    if plain:
        blocks["plain"] = empirical_ntk(model, train, formula="sgd", **chosen).matrix
    return [row for name, block in blocks.items() for row in matrix_rows(block, block=name)]
