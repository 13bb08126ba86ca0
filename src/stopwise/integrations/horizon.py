"""How long a Trainer should train, asked before it does: the lengths are replayed under its own schedule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from transformers import Trainer, get_scheduler

from stopwise.integrations.examples import Examples, read_examples
from stopwise.integrations.preview import run_of
from stopwise.integrations.reading import LARGEST_STEP, N_MAX, linearised, trained_objective
from stopwise.integrations.trainer_schedule import TrainerRun, learning_rates, trainer_schedule
from stopwise.linearized.coding import coding_matrix
from stopwise.linearized.objectives import Objective
from stopwise.network.quiet import untouched
from stopwise.stopping.horizon import Horizon, horizon, lengths, scaled
from stopwise.stopping.scheduled import Linearised, Schedule, largest_step

# A rate that was made to fit the largest step is not beyond it.
ROUNDING = 1 + 1e-6


@dataclass(frozen=True, eq=False)
class Reading:
    """What trainings of several lengths come to, and what that was computed from.

    ``schedules``: one for each length, shortest first.
    """

    answer: Horizon
    examples: Examples
    net: Linearised
    objective: Objective
    schedules: tuple[Schedule, ...]


def read_horizon(
    trainer: Trainer,
    *,
    step_size: float | None = None,
    words: Sequence[int | str] | None = None,
    rule: str = "bayes",
    n_max: int = N_MAX,
    left_logits: np.ndarray | None = None,
    progress: bool = False,
) -> Reading:
    """Return what trainings of several lengths, up to the Trainer's own, come to.

    Each length has the Trainer's schedule from its beginning to its end. ``step_size`` c: the learning rate is
    c/lambda_1, lambda_1 the largest eigenvalue of K_BB/m_B, and not the Trainer's (None: the Trainer's).
    ``left_logits`` [groups, n, C]: the logits at which training without each group of examples starts, where the start
    has seen the labels. ``progress``: show bars. Raises ValueError, in one line, for a run that cannot be predicted.
    Cost: as ``read_stop``, and the replay of every length.

    Flags: as ``read_stop``, ``scheduled.scheduled_stop`` and ``stopping.horizon``.
    """
    model: Any = trainer.model
    with untouched(model), run_of(trainer) as run:
        seed = run.args.seed if run.args.data_seed is None else run.args.data_seed
        examples = read_examples(run.model, run.dataset, run.collate, n_max, seed, words, run.processing_class)
        objective, flags = trained_objective(run, examples)
        whole, known = trainer_schedule(run, examples)
        net, whole, found = linearised(run, examples, objective, whole, progress)
        parts = [_of_length(run, whole, int(steps)) for steps in lengths(whole.epoch, run.max_steps / whole.epoch)]
    if left_logits is not None:
        net = replace(net, left_start=left_logits @ coding_matrix(examples.classes, objective.outputs).T)
    if step_size is not None:
        factor = step_size / largest_step(net, whole)
        parts = [scaled(part, factor) for part in parts]
    answer = horizon(net, objective, parts, rule, seed=seed, flags=(*flags, *known, *found))
    if answer.largest_step > LARGEST_STEP * ROUNDING:
        answer = replace(answer, flags=(*answer.flags, "large_steps"))
    return Reading(answer, examples, net, objective, tuple(parts))


def _of_length(run: TrainerRun, whole: Schedule, steps: int) -> Schedule:
    """Return the schedule of a training of so many steps: the same batches, learning rates of its own."""
    args = run.args
    scheduler = get_scheduler(
        args.lr_scheduler_type,
        getattr(run.optimizer, "optimizer", run.optimizer),
        num_warmup_steps=args.get_warmup_steps(steps),
        num_training_steps=steps,
        scheduler_specific_kwargs=_options(args),
    )
    rates = learning_rates(run.optimizer, scheduler, steps)
    return replace(whole, learning_rates=rates, batches=whole.batches[:steps], weights=whole.weights[:steps])


def _options(args: Any) -> dict[str, Any]:
    """Return what else the schedule of training arguments takes."""
    given = args.lr_scheduler_kwargs
    return dict(given) if given else {}
