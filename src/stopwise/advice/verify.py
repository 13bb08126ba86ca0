"""``advise --verify``: the training of the advice, done for real without a part of the examples in turn."""

from __future__ import annotations

import copy
import math
import tempfile
import time
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers import PrinterCallback, TrainerCallback

from stopwise.advice.job import Job, Say
from stopwise.advice.plan import Plan
from stopwise.integrations.horizon import Reading
from stopwise.integrations.reading import TOKENS
from stopwise.network.heads import evaluating
from stopwise.network.learner import Learner, Prompts
from stopwise.training.folds import FoldCurves, cross_validated

# Looks at the examples left out, beside the one at the start.
LOOKS = 20


def planned_epochs(plan: Plan, reading: Reading) -> float:
    """Return how long the folds train: as planned, else twice as long as advised, at least two epochs."""
    if plan.epochs is not None:
        return plan.epochs
    return min(float(max(2, math.ceil(2 * reading.answer.epochs))), plan.longest)


def real_folds(job: Job, plan: Plan, reading: Reading, args: Any, say: Say, progress: bool = False) -> FoldCurves:
    """Return the left-out curves of ``plan.verify`` real trainings at the advised rate.

    The model comes back at its start. ``args``: the TrainingArguments of the whole training. A head that starts as a
    logistic regression is fitted anew without the examples left out. Cost: ``plan.verify`` trainings, and as many looks
    as there are half epochs, at most 20, at the examples left out.
    """
    epochs, labels, folds = planned_epochs(plan, reading), job.data.labels, int(plan.verify or 0)
    looks = np.linspace(0, epochs, min(LOOKS, max(2, round(2 * epochs))) + 1)
    kept = len(labels) - len(labels) // folds
    total = folds * math.ceil(epochs * math.ceil(kept / plan.batch_size))
    say(f"training {folds} folds for {epochs:g} epochs, {total} steps in all")
    chosen = {name: p.detach().clone() for name, p in job.model.named_parameters() if p.requires_grad}
    started = time.monotonic()
    with tqdm(total=total, desc="folds", unit="step", disable=not progress) as bar:

        def train(inside: np.ndarray, left: np.ndarray, number: int) -> np.ndarray:
            _restore(job.model, chosen)
            if job.probe is not None:
                _start_without(job, inside, plan.seed)
            found = _trained(job, reading, args, epochs, inside, left, looks, bar)
            took = time.monotonic() - started
            if not progress:
                rest = took / (number + 1) * (folds - number - 1)
                say(f"fold {number + 1} of {folds} after {minutes(took)}; about {minutes(rest)} left")
            return found

        try:
            return cross_validated(labels, looks, folds, train, plan.seed)
        finally:
            _restore(job.model, chosen)


def minutes(seconds: float) -> str:
    """Return a time in words: 42 s, 3 min 20 s."""
    whole = round(seconds)
    return f"{whole} s" if whole < 100 else f"{whole // 60} min {whole % 60} s"


def _restore(model: Any, values: dict[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in values:
                parameter.copy_(values[name])


def _start_without(job: Job, inside: np.ndarray, seed: int) -> None:
    """Fit the head to the examples of a fold alone."""
    from stopwise.training.probe import fit_probe, start_at

    batch = job.collate([job.rows[i] for i in inside])
    start_at(job.model, fit_probe(job.model, batch, job.data.labels[inside], seed, left_out=False))


def _trained(
    job: Job,
    reading: Reading,
    args: Any,
    epochs: float,
    inside: np.ndarray,
    left: np.ndarray,
    looks: np.ndarray,
    bar: tqdm,
) -> np.ndarray:
    """Train one fold and return the log-probabilities of the examples left out at the looks, [looks, left, C]."""
    given = copy.copy(args)
    given.num_train_epochs, given.max_steps = epochs, -1
    given.learning_rate = reading.answer.learning_rate
    given.disable_tqdm, given.logging_strategy = True, "no"
    with tempfile.TemporaryDirectory() as folder:
        given.output_dir = folder
        look = _Look(reading, left, looks, bar)
        trainer = job.trainer(given, [job.rows[i] for i in inside], [look])
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return look.found()


class _Look(TrainerCallback):
    """Predicts the examples left out whenever an epoch to look at is reached."""

    def __init__(self, reading: Reading, left: np.ndarray, looks: np.ndarray, bar: tqdm) -> None:
        self.reading, self.left, self.looks, self.bar = reading, left, looks, bar
        self.outputs: list[np.ndarray] = []

    def _look(self, model: Any) -> None:
        objective = self.reading.objective
        index = torch.as_tensor(self.left)
        own = {k: v if k == "verbalizers" else v[index] for k, v in self.reading.examples.batch.items()}
        with evaluating(model):
            f = Learner(model, {}, objective.outputs).predict(Prompts.of(own, TOKENS, model))
        logs = objective.rows(self.left).log_probabilities(f)
        self.outputs.append(logs[..., : objective.classes])

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Look before the first step."""
        self.outputs = []
        self._look(model)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Look where the next epoch of ``looks`` has been reached."""
        self.bar.update()
        due = len(self.outputs)
        while due < len(self.looks) and state.global_step >= round(self.looks[due] / self.looks[-1] * state.max_steps):
            self._look(model)
            due += 1

    def found(self) -> np.ndarray:
        """Return what was seen; every look is taken at the last step at the latest."""
        return np.stack(self.outputs)
