"""A training that runs, and beside it what its network would say of each training example without that example.

Beside the real run stand L checkpoints of its trained weights and of what its optimizer divides by. At each of them the
kernels with all earlier ones are read; between them every step is followed for every example left out, from the outputs
of its batch (``stopwise.stopping.anchored``). Who trains calls ``begin`` before the first step, ``begin_step`` before
and, where a checkpoint is due, ``take`` after a step. The run itself is not touched.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch

from stopwise.kernel.between_states import anchored_grams, trained_state
from stopwise.linearized.objectives import Objective
from stopwise.network.learner import Learner, Prompts
from stopwise.stopping.anchored import LeftOut
from stopwise.stopping.schedule_path import Schedule

State = dict[str, torch.Tensor]


def anchor_steps(first: int, count: int, steps: int) -> tuple[int, ...]:
    """Return the steps after which checkpoints are taken: from ``first`` on, evenly spaced in log t, below ``steps``.

    Raises ValueError where the first does not come before the last step.
    """
    if not 1 <= first < steps:
        raise ValueError(f"left_out: the first checkpoint, after step {first}, must come before the last step, {steps}")
    spaced = np.rint(np.geomspace(first, steps, count + 1)[:-1]).astype(int)
    return tuple(int(step) for step in np.unique(spaced))


def first_anchor(warmup: int, epoch: float, steps: int) -> int:
    """Return after how many of the steps the first checkpoint is taken: the warm-up, or an epoch if that is soon."""
    return max(1, warmup, min(math.ceil(epoch), steps // 4))


class LeftOutRun:
    """The networks without each of n examples, followed beside one that trains on all of them.

    ``batch``: the training examples. ``metric`` returns what the optimizer divides by now, by parameter on the CPU, or
    None where that is 1. ``tokens``: padded tokens of one pass. ``quiet``: a context in which the model may be asked
    for outputs and gradients without the run noticing. ``memory_gb``: room for the kernels, in 10^9 bytes (None: what
    is free). Memory beside it: two copies of the trained weights a checkpoint.
    """

    def __init__(
        self,
        model: Any,
        batch: Mapping[str, Any],
        objective: Objective,
        schedule: Schedule,
        metric: Callable[[], State | None],
        *,
        seed: int = 0,
        tokens: int = 1024,
        quiet: Callable[[], AbstractContextManager] = nullcontext,
        memory_gb: float | None = None,
    ) -> None:
        self.memory_gb = memory_gb
        self.model, self.batch, self.metric, self.quiet = model, batch, metric, quiet
        self.network = LeftOut(objective, schedule, seed=seed)
        self.prompts = Prompts.of(batch, tokens, model)
        self.learner, self.tokens = Learner(model, {}, objective.outputs), tokens
        self.states: list[State] = []
        self.metrics: list[State | None] = []
        self.pending: list[np.ndarray] = []

    def begin(self) -> None:
        """Note the weights at the start, before any step."""
        self.states = [trained_state(self.model)]

    def begin_step(self, step: int) -> None:
        """Follow step number ``step`` (from 0), which is about to be taken."""
        outputs = self.outputs(self.network.schedule.batches[step])
        if self.metrics:
            self.network.step(outputs)
        else:
            self.pending.append(outputs)

    def take(self) -> None:
        """Take a checkpoint and read its kernels; after the start's own, follow the steps between the two."""
        first = not self.metrics
        self.states.append(trained_state(self.model))
        # What the optimizer divides by at the start is not known there: it is what it has gathered by now.
        self.metrics += [self.metric()] * (2 if first else 1)
        with self.quiet():
            found = anchored_grams(
                self.model,
                self.batch,
                self.states,
                self.metrics,
                last=not first,
                plain=bool(self.network.schedule.max_grad_norm),
                outputs=self.network.objective.outputs,
                device=next(self.model.parameters()).device,
                memory_gb=self.memory_gb,
            )
        if first:
            self.network.anchor(found.row(0), found.plain.get(0))
            for outputs in self.pending:
                self.network.step(outputs)
            self.pending.clear()
        last = len(self.states) - 1
        self.network.anchor(found.row(last), found.plain.get(last))

    def outputs(self, index: np.ndarray | None = None) -> np.ndarray:
        """Return the network's outputs of some examples (None: all) in evaluation mode; float64 [n, columns]."""
        prompts = self.prompts if index is None else self.prompts.rows(index, self.tokens)
        with self.quiet():
            return self.learner.predict(prompts).astype(np.float64)

    def left_out(self, outputs: np.ndarray) -> np.ndarray:
        """Return the outputs of each example without it, float64 [n, columns]; ``outputs``: of the real network now."""
        return self.network.outputs(outputs)
