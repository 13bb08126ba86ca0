"""Advice for training with AdamW on cross-entropy, in mini-batches, under a schedule: how many epochs, and what then.

The Trainer that would train is made, and read before its first step: its batches, its rates, its clipping. Every length
of training is replayed on one kernel, from the start of the schedule to its end. A new head starts as a logistic
regression on the network's features (``training.probe``), and the delivered script starts it in the same way.
"""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from stopwise.advice.data import make_task, read_file
from stopwise.advice.labelled import Labelled, labelled
from stopwise.advice.plan import Plan
from stopwise.advice.settings import AdviceError
from stopwise.stopping.horizon import Horizon

Say = Callable[[str], None]
# The learning rate of a plan without one: the largest whose predictions have been compared with real runs.
STEP_SIZE = 4.0
TRAINER = "the Trainer of transformers needs accelerate: pip install 'stopwise[trainer]'"


@dataclass(frozen=True, eq=False)
class TrainingAdvice:
    """How long to train, and what that is worth; ``stop`` is the length to choose among those of ``stop.steps``.

    ``data``: the examples used; ``folder``: where the model lies; ``head``: the tensors of a new head at its start, by
    name (of a language model none); ``baseline``: accuracy and log-loss of the shares of the labels; ``words``: of a
    language model, the words that answer, by class; ``penalty``: of the logistic regression (None: a random head).
    """

    plan: Plan
    data: Labelled
    stop: Horizon
    folder: str
    head: dict[str, Any] = field(repr=False)
    baseline: tuple[float, float]
    words: tuple[str, ...] = ()
    penalty: float | None = None
    provenance: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def warmup_steps(self) -> int:
        """The steps in which the learning rate rises, of the chosen length."""
        share = self.plan.warmup
        return int(share) if share >= 1 else math.ceil(share * self.stop.t)

    @property
    def epochs(self) -> float:
        """The epochs of the chosen length, rounded so that a Trainer makes of them exactly ``stop.t`` steps."""
        return math.floor(1e4 * self.stop.epochs) / 1e4

    def figure(self) -> Any:
        """Return the expected log-loss and accuracy by length of training, as a matplotlib figure."""
        from stopwise.advice.lengths_figure import draw
        from stopwise.advice.training_folder import lengths_table

        return draw(lengths_table(self))

    def training_arguments(self, args: Any = None) -> Any:
        """Return ``TrainingArguments`` (``args`` with what was advised, or new ones): epochs, rate, schedule, batch.

        ValueError where the advice is not to train.
        """
        if self.stop.t == 0:
            raise ValueError("advice: it is not to train, so there are no training arguments")
        args = make_arguments(self.plan, self.epochs) if args is None else copy.copy(args)
        args.num_train_epochs, args.max_steps = self.epochs, -1
        args.learning_rate, args.lr_scheduler_type = self.stop.learning_rate, _scheduler(self.plan.schedule)
        args.warmup_steps = self.warmup_steps
        return args

    def start(self, model: Any) -> None:
        """Write the head's start into a model of the same kind; nothing for a language model."""
        if self.head:
            model.load_state_dict(self.head, strict=False)

    def write(self, folder: str | Path) -> Path:
        """Write advice.md, the figure, tables and train.py with what it needs into a folder, whole or not at all."""
        from stopwise.advice.training_folder import write_training_advice

        return write_training_advice(self, folder)


def _scheduler(name: str) -> Any:
    from transformers import SchedulerType

    return SchedulerType(name)


def make_arguments(plan: Plan, epochs: float, folder: str = "trainer_output") -> Any:
    """Return the ``TrainingArguments`` of a plan, for so many epochs; AdviceError without accelerate."""
    from transformers import TrainingArguments

    try:
        return TrainingArguments(
            folder,
            num_train_epochs=epochs,
            # Without a rate of its own the plan takes the kernel's: any rate will do until the kernel is known.
            learning_rate=plan.learning_rate or 1e-5,
            lr_scheduler_type=plan.schedule,
            warmup_steps=plan.warmup,
            per_device_train_batch_size=plan.batch_size,
            weight_decay=plan.weight_decay,
            max_grad_norm=plan.max_grad_norm,
            seed=plan.seed,
            save_strategy="no",
            report_to="none",
        )
    except ImportError:
        raise AdviceError(f"advise: {TRAINER}") from None


def advise_training(
    plan: Plan,
    data: Any = None,
    *,
    args: Any = None,
    network: Any = None,
    tokenizer: Any = None,
    assets: str | None = None,
    device: str = "auto",
    say: Say = lambda message: None,
) -> TrainingAdvice:
    """Return the advice for a plan; nothing is written, nothing is trained.

    ``data``: what ``labelled`` takes (None: the file of the plan). ``args``: TrainingArguments whose training is meant
    (None: those of the plan). ``network`` and ``tokenizer``: a model at hand (None: the plan's, loaded from
    ``assets``); it comes back as it was. Raises ValueError, in one line, for what cannot be used. Cost: a kernel of at
    most ``max_examples`` examples (two where gradients are clipped), a few passes, and the replay.
    """
    make = _head_rows if plan.head else _word_rows
    job = make(plan, plan.data if data is None else data, network, tokenizer, assets, say)
    n, classes = len(job.data.labels), len(job.data.classes)
    own = {} if network is None else {k: v.clone() for k, v in job.model.state_dict().items() if k in job.head_names}
    try:
        left, penalty = _start_head(job, plan, say)
        head = {k: v.detach().cpu().clone() for k, v in job.model.state_dict().items() if k in job.head_names}
        say(f"computing AdamW's kernel of {n} examples with {classes} classes")
        stop = _read(job, plan, args, device, left)
    finally:
        if own:
            job.model.load_state_dict(own, strict=False)
    share = np.bincount(job.data.labels, minlength=classes) / n
    baseline = float(share.max()), float(-(share[share > 0] * np.log(share[share > 0])).sum())
    from stopwise.network.loading import model_fingerprint

    config = asdict(plan) | {"text": list(plan.text), "verbalizers": list(plan.verbalizers)}
    record = {"config": config, "model": model_fingerprint(job.model)}
    return TrainingAdvice(plan, job.data, stop, job.folder, head, baseline, job.words, penalty, record)


@dataclass
class _Job:
    """A model, its tokenizer, and the rows that its Trainer is given."""

    model: Any
    tokenizer: Any
    folder: str
    data: Labelled
    rows: list[dict[str, Any]]
    head_names: frozenset[str] = frozenset()
    words: tuple[str, ...] = ()
    tokens: tuple[int, ...] = ()


def _head_rows(plan: Plan, data: Any, network: Any, tokenizer: Any, assets: str | None, say: Say) -> _Job:
    """Load a classifier with a new head, and tokenize the examples."""
    examples = labelled(plan, data)
    counts = ", ".join(f"{name} ({count})" for name, count in list(examples.shares.items())[:8])
    say(f"{examples.rows} rows, {len(examples.classes)} labels: {counts}; {len(examples.labels)} examples are used")
    from stopwise.network.classifiers import load_classifier
    from stopwise.network.heads import head_names, is_classifier

    folder = plan.model
    if network is None:
        folder = model_folder(plan, assets, say)
        names = examples.classes
        network, tokenizer = load_classifier(folder, len(names), labels=names, seed=plan.seed, new_head=True)
    elif not is_classifier(network) or network.num_labels != len(examples.classes):
        raise AdviceError(
            f"model: needs a classification head of {len(examples.classes)} labels, as the data have; found"
            f" {type(network).__name__} with {getattr(network, 'num_labels', 0)}"
        )
    rows = [
        {**tokenizer(*texts, truncation=True, max_length=plan.max_tokens), "labels": int(label)}
        for texts, label in zip(examples.texts, examples.labels, strict=True)
    ]
    return _Job(network, tokenizer, folder, examples, rows, frozenset(head_names(network)))


def _word_rows(plan: Plan, data: Any, network: Any, tokenizer: Any, assets: str | None, say: Say) -> _Job:
    """Load a language model, and make prompts that one word answers."""
    if not isinstance(data, (str, Path)) or network is not None:
        raise AdviceError("model: words of a language model need a file and the name of a model; or ask for a head")
    from stopwise.integrations.losses import answer_example
    from stopwise.network.loading import load_model
    from stopwise.tasks.batch import batch_from_table

    file = read_file(data, plan.text, plan.label, template=plan.template, **plan.reading)
    folder = model_folder(plan, assets, say)
    network, tokenizer = load_model(folder)
    options: dict[str, Any] = {"template": plan.template, "verbalizers": plan.verbalizers}
    task = make_task(file, tokenizer, max_tokens=plan.max_tokens, max_examples=plan.max_examples, **options)
    sample = task.sample(tokenizer, plan.seed)
    batch = batch_from_table(sample, "train")
    labels, tokens = batch["labels"].numpy(), tuple(map(int, batch["verbalizers"]))
    prompts = [ids[mask.bool()].tolist() for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
    rows: list[dict[str, Any]] = [
        answer_example(ids, tokens[label]) for ids, label in zip(prompts, labels, strict=True)
    ]
    texts = tuple((prompt,) for prompt in sample["prompt"].to_pylist())
    examples = Labelled(texts, labels, tuple(task.verbalizers), file.rows, dict(file.shares))
    say(f"{file.rows} rows; {len(labels)} examples are used; words: {', '.join(map(repr, task.verbalizers.values()))}")
    return _Job(network, tokenizer, folder, examples, rows, words=tuple(task.verbalizers.values()), tokens=tokens)


def model_folder(plan: Plan, assets: str | None, say: Say) -> str:
    """Return the folder of the plan's model, fetched where Hugging Face keeps models when it is not there yet."""
    from stopwise.network.loading import prepare_model
    from stopwise.network.model_cache import cached_model

    say(f"loading {plan.model}")
    if assets is not None:
        return str(prepare_model(plan.model, assets, revision=plan.revision).resolve())
    return str(cached_model(plan.model, plan.revision).resolve())


def _start_head(job: _Job, plan: Plan, say: Say) -> tuple[np.ndarray | None, float | None]:
    """Start a new head as a logistic regression; return its logits without each example, and its penalty."""
    if not plan.head or plan.head_start == "random":
        return None, None
    from stopwise.training.probe import fit_probe, start_at

    say("fitting the head to the features")
    batch = _collator(job)(job.rows)
    probe = fit_probe(job.model, batch, job.data.labels, plan.seed)
    start_at(job.model, probe)
    return probe.left_out, probe.penalty


def _collator(job: _Job) -> Callable[[list[Any]], Any]:
    from transformers import DataCollatorForSeq2Seq, DataCollatorWithPadding

    if job.words:
        if job.tokenizer.pad_token_id is None:
            job.tokenizer.pad_token = job.tokenizer.eos_token
        return DataCollatorForSeq2Seq(job.tokenizer)
    return DataCollatorWithPadding(job.tokenizer)


def _read(job: _Job, plan: Plan, args: Any, device: str, left: np.ndarray | None) -> Horizon:
    """Make the Trainer of the longest training, and read what its shorter ones come to."""
    from transformers import Trainer

    from stopwise.integrations.horizon import read_horizon
    from stopwise.integrations.losses import answer_loss
    from stopwise.network.heads import is_classifier

    with tempfile.TemporaryDirectory() as folder:
        args = make_arguments(plan, plan.longest, folder) if args is None else copy.copy(args)
        args.num_train_epochs, args.max_steps, args.output_dir = plan.longest, -1, folder
        args.remove_unused_columns, args.report_to = False, []
        if device == "cpu":
            args.use_cpu = True
        job.model.requires_grad_(True)
        loss = None if is_classifier(job.model) else answer_loss(job.tokens)
        trainer = Trainer(job.model, args, train_dataset=job.rows, data_collator=_collator(job), compute_loss_func=loss)
        step_size = STEP_SIZE if plan.learning_rate is None else None
        words = list(job.tokens) or None
        stop, _ = read_horizon(trainer, step_size=step_size, words=words, n_max=len(job.rows), left_logits=left)
    return stop
