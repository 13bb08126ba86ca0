"""What ``StopwiseCallback`` would do, asked before training: ``preview(trainer)`` and ``predict_stop(model, ...)``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from transformers import Trainer, TrainingArguments

from stopwise.integrations.reading import N_MAX, read_stop
from stopwise.integrations.trainer_schedule import TrainerRun
from stopwise.network.quiet import untouched
from stopwise.stopping.scheduled import ScheduledStop


def preview(
    trainer: Trainer, words: Sequence[int | str] | None = None, rule: str = "bayes", n_max: int = N_MAX
) -> ScheduledStop:
    """Return where ``StopwiseCallback`` with these options would stop this Trainer's run; it does not train.

    The Trainer is left as it was: its optimizer and scheduler are made and dropped. Raises ValueError as the callback
    does.
    """
    model: Any = trainer.model
    with untouched(model), run_of(trainer) as run:
        return read_stop(run, words=words, rule=rule, n_max=n_max)


@contextmanager
def run_of(trainer: Trainer) -> Iterator[TrainerRun]:
    """Yield what a Trainer's run is made of before its first step; its optimizer and scheduler are dropped after."""
    before = trainer.optimizer, trainer.lr_scheduler, trainer._created_lr_scheduler
    dataloader = trainer.get_train_dataloader()
    max_steps = trainer.set_initial_training_values(trainer.args, dataloader)[-1]
    try:
        optimizer = trainer.create_optimizer()
        scheduler = trainer.create_scheduler(num_training_steps=max_steps)
    finally:
        trainer.optimizer, trainer.lr_scheduler, trainer._created_lr_scheduler = before
    processing_class = getattr(trainer, "processing_class", None)
    parts = trainer.model, trainer.args, optimizer, scheduler, dataloader, max_steps, trainer, processing_class
    yield TrainerRun(*parts)


def predict_stop(
    model: Any,
    dataset: Any,
    args: TrainingArguments,
    *,
    words: Sequence[int | str] | None = None,
    rule: str = "bayes",
    n_max: int = N_MAX,
    **trainer: Any,
) -> ScheduledStop:
    """Return where to stop the training of ``model`` on ``dataset`` under ``args``, before it begins.

    ``dataset``: rows as a Trainer takes them (a ``datasets.Dataset`` or a list of mappings); ``trainer``: what else
    ``transformers.Trainer`` needs (``data_collator``, ``processing_class``, ``compute_loss_func``). As ``preview``.
    """
    return preview(Trainer(model, args, train_dataset=dataset, **trainer), words, rule, n_max)
