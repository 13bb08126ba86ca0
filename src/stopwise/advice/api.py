"""``stopwise.advise``: the advice of the console script, for data and training settings at hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from stopwise.advice.choice import made_for_head
from stopwise.advice.data import in_options
from stopwise.advice.plan import Plan
from stopwise.advice.rows import columns_of
from stopwise.advice.settings import AdviceError
from stopwise.advice.under_schedule import TrainingAdvice, advise_training
from stopwise.training.settings import FinetuneSettings

_SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant", "constant_with_warmup": "constant"}


def advise(
    model: Any,
    data: Any,
    *,
    training: Any = None,
    text: str | Sequence[str] | None = None,
    label: str | None = None,
    tokenizer: Any = None,
    assets: str | None = None,
    **options: Any,
) -> TrainingAdvice:
    """Return how many epochs to fine-tune a model on labelled texts, before training; nothing is written.

    ``model``: a built-in name, a folder or a hub id, or a model at hand with its ``tokenizer``, which comes back as it
    was and trains what requires a gradient (so a PEFT model its adapter). ``head=True`` gives a named model a new
    classification head, ``head=False`` lets it answer with words; without it, whatever the model is made for.
    ``data``: a ``datasets.Dataset``, a pandas DataFrame, rows, or a file's path; ``text`` and ``label`` name its
    columns (None: the usual names). ``training``: ``TrainingArguments``, a
    ``FinetuneSettings`` of AdamW on cross-entropy, or None for AdamW under a linear schedule at the kernel's own rate.
    ``options``: other fields of ``Plan``, such as ``epochs``, ``learning_rate``, ``max_examples``, ``adapter="lora"``,
    ``verify=4``, ``seed``.

    The answer's ``stop`` has the epochs, their interval and what to expect; ``figure()``, ``training_arguments(args)``
    and ``write(folder)`` deliver it. Raises ValueError, in one line, for what cannot be used.
    """
    try:
        return _advise(model, data, training, text, label, tokenizer, assets, options)
    except AdviceError:
        raise
    except ValueError as error:
        raise AdviceError(in_options(str(error))) from error


def _advise(
    model: Any,
    data: Any,
    training: Any,
    text: str | Sequence[str] | None,
    label: str | None,
    tokenizer: Any,
    assets: str | None,
    options: dict[str, Any],
) -> TrainingAdvice:
    """Make the plan, and return its advice."""
    texts, target = columns_of(data, text, label)
    named = isinstance(model, (str, Path))
    if not named and tokenizer is None:
        raise AdviceError("tokenizer: a model that is given itself needs its tokenizer")
    if isinstance(data, Path):
        data = str(data)
    name = str(model) if named else str(getattr(model, "name_or_path", "") or type(model).__name__)
    wrong = sorted(options.keys() - Plan.__dataclass_fields__.keys())
    if wrong:
        raise AdviceError(f"advise: unknown option {wrong[0]!r}; allowed: {', '.join(Plan.__dataclass_fields__)}")
    if options.get("head") is None:
        options = options | {"head": _takes_head(model, named, options.get("revision"), assets)}
    plan = Plan(name, data if isinstance(data, str) else type(data).__name__, texts, target, **options)
    args = None
    if isinstance(training, FinetuneSettings):
        plan = _of_settings(plan, training)
    elif training is not None:
        plan, args = _of_arguments(plan, training), training
    own = {} if named else {"network": model, "tokenizer": tokenizer}
    return advise_training(plan, data, args=args, assets=assets, **own)


def _takes_head(model: Any, named: bool, revision: str | None, assets: str | None) -> bool:
    """Tell whether a model is made for a head, rather than for words."""
    if named:
        return made_for_head(str(model), revision, assets)
    from stopwise.network.heads import is_classifier

    return is_classifier(model)


def _of_settings(plan: Plan, training: FinetuneSettings) -> Plan:
    """Return a plan with the training of a ``finetune`` section; AdviceError for one that has no such advice."""
    if training.optimizer != "adamw" or training.objective != "cross_entropy":
        raise AdviceError(
            f"training: this advice is for adamw on cross_entropy, found {training.optimizer} on {training.objective};"
            " ask stopwise advise with --objective squared"
        )
    return replace(
        plan,
        learning_rate=training.learning_rate,
        schedule=training.schedule,
        warmup=training.warmup,
        batch_size=training.batch_size or plan.max_examples,
        weight_decay=training.weight_decay,
        max_grad_norm=training.clip_norm or 0.0,
    )


def _of_arguments(plan: Plan, training: Any) -> Plan:
    """Return a plan with the values of ``TrainingArguments``."""
    schedule = str(getattr(training.lr_scheduler_type, "value", training.lr_scheduler_type))
    if schedule not in _SCHEDULES:
        raise AdviceError(f"training: lr_scheduler_type {schedule!r} is not one of {', '.join(_SCHEDULES)}")
    if training.max_steps > 0:
        raise AdviceError(
            f"training: max_steps {training.max_steps} is given; give num_train_epochs, and -1 for max_steps"
        )
    return replace(
        plan,
        learning_rate=training.learning_rate,
        schedule=_SCHEDULES[schedule],
        warmup=training.warmup_steps,
        epochs=float(training.num_train_epochs),
        batch_size=training.per_device_train_batch_size * training.gradient_accumulation_steps,
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm or 0.0,
        seed=training.seed,
    )
