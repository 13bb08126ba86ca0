"""The anchored leave-one-out of one cell of the study: what a network says of each example without it, by length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from stopwise.linearized.replay import draw_batches
from stopwise.network.quiet import untouched
from stopwise.stopping.anchored import left_out_curve
from stopwise.stopping.schedule_path import Schedule
from stopwise.studies.encoder_rows import WARMUP, adamw_schedule
from stopwise.studies.encoder_runs import TOKENS, Looks, Runner
from stopwise.training.adam_preconditioner import preconditioner_from_optimizer
from stopwise.training.left_out_run import LeftOutRun, State, anchor_steps, first_anchor

ANCHORS = 4  # checkpoints of a training, the start among them


@dataclass(frozen=True)
class LeftOutLength:
    """What the anchored leave-one-out says at the end of a training: mean log-loss, accuracy, the least coherence."""

    length: int
    log_loss: float
    accuracy: float
    coherence: float


def left_out_lengths(
    runner: Runner,
    rates: Callable[[int], np.ndarray],
    steps: Sequence[int],
    batch_size: int,
    seed: int,
    title: str = "",
    memory_gb: float | None = None,
) -> list[LeftOutLength]:
    """Train every length again on all examples, and say at its end what each example is answered without it.

    ``rates``: of a training of so many steps; ``steps``: the lengths, 0 the first; a length of one step has no
    checkpoint before its end and is left out. ``memory_gb``: room for the kernels. Cost: the trainings, and for each of
    them the kernels between its checkpoints, ten products of the gradients of all examples.
    """
    n = len(runner.labels)
    objective, every = runner.objective(np.arange(n)), np.arange(n)
    start = runner.start_outputs()
    loss, right = (float(one[0]) for one in left_out_curve(objective, start[None]))
    found = [LeftOutLength(0, loss, right, 1.0)]
    for length in steps:
        if length < 2:
            continue
        own = rates(length)
        batches = draw_batches(n, batch_size, length, seed)
        schedule = adamw_schedule(own, batches, n, runner.weight_decay, runner.clip_norm)
        watch = _Watch(runner, schedule, seed, memory_gb)
        runner.run(every, own, {}, batch_size, seed, Looks([]), f"{title} {length} steps", watch.look)
        found.append(watch.end(length))
    return found


class _Watch:
    """Follows the networks without each example along one training of a runner."""

    def __init__(self, runner: Runner, schedule: Schedule, seed: int, memory_gb: float | None) -> None:
        self.runner, length = runner, len(schedule.batches)
        self.anchors = anchor_steps(first_anchor(round(WARMUP * length), schedule.epoch, length), ANCHORS - 1, length)
        self.optimizer: torch.optim.Optimizer | None = None
        self.coherence = 1.0
        model = runner.learner.model
        self.followed = LeftOutRun(
            model,
            runner.batch,
            runner.objective(np.arange(len(runner.labels))),
            schedule,
            self._metric,
            seed=seed,
            tokens=TOKENS,
            quiet=partial(untouched, model),
            memory_gb=memory_gb,
        )

    def look(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        """Take what is due before a step."""
        self.optimizer = optimizer
        if step == 0:
            self.followed.begin()
        if step in self.anchors:
            self.followed.take()
            self.coherence = min(self.coherence, self.followed.network.coherence)
        self.followed.begin_step(step)

    def end(self, length: int) -> LeftOutLength:
        """Return what is said of the examples left out, now that training has ended."""
        left = self.followed.left_out(self.followed.outputs())
        loss, right = (float(one[0]) for one in left_out_curve(self.followed.network.objective, left[None]))
        return LeftOutLength(length, loss, right, self.coherence)

    def _metric(self) -> State:
        assert self.optimizer is not None
        found = preconditioner_from_optimizer(self.runner.learner.model, self.optimizer)
        return {name: d.detach().to("cpu", copy=True) for name, d in found.items()}
