"""What ``StopwiseCallback`` would do, asked before training: ``preview(trainer)`` and ``predict_stop(model, ...)``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import Trainer, TrainingArguments

from stopwise.integrations.reading import N_MAX, read_stop, untouched
from stopwise.integrations.trainer_schedule import TrainerRun
from stopwise.stopping.scheduled import ScheduledStop


def preview(
    trainer: Trainer, words: Sequence[int | str] | None = None, rule: str = "bayes", n_max: int = N_MAX
) -> ScheduledStop:
    """Return where ``StopwiseCallback`` with these options would stop this Trainer's run; it does not train.

    The Trainer is left as it was: its optimizer and scheduler are made and dropped. Raises ValueError as the callback
    does.
    """
    model: Any = trainer.model
    before = trainer.optimizer, trainer.lr_scheduler, trainer._created_lr_scheduler
    with untouched(model):
        dataloader = trainer.get_train_dataloader()
        max_steps = trainer.set_initial_training_values(trainer.args, dataloader)[-1]
        try:
            optimizer = trainer.create_optimizer()
            scheduler = trainer.create_scheduler(num_training_steps=max_steps)
        finally:
            trainer.optimizer, trainer.lr_scheduler, trainer._created_lr_scheduler = before
        processing_class = getattr(trainer, "processing_class", None)
        parts = model, trainer.args, optimizer, scheduler, dataloader, max_steps, trainer, processing_class
        return read_stop(TrainerRun(*parts), words=words, rule=rule, n_max=n_max)


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
