"""Advice for training with AdamW on cross-entropy, in mini-batches, under a schedule: how many epochs, and what then.

The Trainer that would train is made, and read before its first step: its batches, its rates, its clipping. Every length
of training is replayed on one kernel, from the start of the schedule to its end. A new head starts as a logistic
regression on the network's features (``training.probe``), and the delivered script starts it in the same way.
"""

from __future__ import annotations

import copy
import math
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from stopwise.advice import baselines
from stopwise.advice.baselines import Baseline
from stopwise.advice.data import File
from stopwise.advice.job import TRAINER, Job, Say, make_job
from stopwise.advice.labelled import Labelled
from stopwise.advice.larger import Larger, larger
from stopwise.advice.plan import Plan
from stopwise.advice.rows import read_data
from stopwise.advice.settings import AdviceError
from stopwise.stats import mean_interval
from stopwise.stopping.horizon import Horizon
from stopwise.training.folds import FoldCurves

# The learning rate of a plan without one, in 1/lambda_1: the largest that is not flagged as large steps.
STEP_SIZE = 4.0


@dataclass(frozen=True, eq=False)
class TrainingAdvice:
    """How long to train, and what that is worth; ``stop`` is the length to choose among those of ``stop.steps``.

    ``data``: the examples used; ``folder``: where the model lies; ``head``: the tensors of a new head at its start, by
    name (of a language model none); ``levels``: what no training reaches, by name (``shares``, and ``prompt`` with
    ``with_offset``, or ``head``); ``words``: of a language model, the words that answer, by class; ``trained``: the
    names of the trained parameters; ``targets``: of an adapter, the layers beside which it stands; ``penalty``: of the
    logistic regression (None: a random head); ``larger``: the answer for more labels than the kernel holds; ``folds``:
    what real trainings said, where they were asked for. ``larger`` is the answer for the size asked for, ``whole`` for
    as many of them as the data hold.
    """

    plan: Plan
    data: Labelled
    stop: Horizon
    folder: str
    head: dict[str, Any] = field(repr=False)
    levels: dict[str, Baseline]
    words: tuple[str, ...] = ()
    trained: tuple[str, ...] = field(default=(), repr=False)
    targets: tuple[str, ...] = ()
    penalty: float | None = None
    larger: Larger | None = None
    whole: Larger | None = None
    folds: FoldCurves | None = None
    provenance: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def level(self) -> Baseline:
        """What training has to beat: the level with the lowest log-loss."""
        return baselines.best(self.levels)

    @property
    def gain(self) -> tuple[float, float, float]:
        """How much log-loss training takes away from ``level`` on the same examples left out, with 95 % interval."""
        return mean_interval(self.level.losses - self.losses)

    @property
    def losses(self) -> np.ndarray:
        """The log-loss of each example left out of the training that is advised, [n]: real where folds were trained."""
        return self.stop.losses[self.stop.best] if self.folds is None else self.folds.losses[self.folds.best]

    @property
    def kind(self) -> str:
        """``train``, ``unclear`` (the gain may be none) or ``do_not_train`` (there is none)."""
        value, low, _ = self.gain
        nothing = self.stop.t == 0 if self.folds is None else self.folds.best == 0
        if nothing or not value > 0:
            return "do_not_train"
        return "train" if low > 0 else "unclear"

    @property
    def carried(self) -> Larger | None:
        """The answer for all of the data, where ``train.py`` trains on them: not after folds, and not from afar."""
        usable = self.whole is not None and not self.whole.far
        return self.whole if usable and self.folds is None and self.stop.t else None

    @property
    def examples(self) -> list[tuple[tuple[str, ...], int]]:
        """What ``train.py`` trains on: texts and class of the kernel's examples, then of others as asked for."""
        used = list(zip(self.data.texts, self.data.labels.tolist(), strict=True))
        return [*used, *self.data.rest[: self.carried.size - len(used)]] if self.carried else used

    @property
    def epochs(self) -> float:
        """The epochs of the schedule to train under, so that a Trainer makes of them exactly ``steps`` steps.

        Those of the kernel's answer, carried to all of the data, or those that the folds were trained for.
        """
        if self.folds is not None:
            return float(self.folds.epochs[-1])
        per = self.carried.steps_per_epoch if self.carried else self.stop.steps_per_epoch
        return math.floor(1e4 * self.steps / per) / 1e4

    @property
    def steps(self) -> int:
        """The steps of the whole schedule."""
        if self.folds is not None:
            return math.ceil(float(self.folds.epochs[-1]) * self.stop.steps_per_epoch)
        return max(1, round(self.carried.steps)) if self.carried else self.stop.t

    @property
    def stop_at(self) -> int | None:
        """The step to stop at where the folds were best before the end of the schedule, else None."""
        if self.folds is None or self.folds.best == len(self.folds.epochs) - 1:
            return None
        return max(1, round(self.folds.epoch * self.stop.steps_per_epoch))

    @property
    def warmup_steps(self) -> int:
        """The steps in which the learning rate rises."""
        share = self.plan.warmup
        return int(share) if share >= 1 else math.ceil(share * self.steps)

    def __str__(self) -> str:
        """Return the answer in a few sentences, as the command prints it."""
        from stopwise.advice.training_text import headline

        return "\n".join(headline(self))

    def figure(self) -> Any:
        """Return the expected log-loss and accuracy by length of training, as a matplotlib figure."""
        from stopwise.advice.lengths_figure import draw
        from stopwise.advice.training_folder import lengths_table

        return draw(lengths_table(self))

    def training_arguments(self, args: Any = None) -> Any:
        """Return ``TrainingArguments`` (``args`` with what was advised, or new ones): epochs, rate, schedule, batch.

        ValueError where the advice is not to train.
        """
        if self.kind == "do_not_train":
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
            max_grad_norm=plan.clip,
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
    progress: bool = False,
) -> TrainingAdvice:
    """Return the advice for a plan; nothing is written, and nothing is trained but the folds that were asked for.

    ``data``: what ``rows.read_data`` takes (None: the file of the plan). ``args``: TrainingArguments whose training is
    meant (None: those of the plan). ``network`` and ``tokenizer``: a model at hand (None: the plan's, loaded from
    ``assets``); it comes back as it was. Raises ValueError, in one line, for what cannot be used. Cost: a kernel of at
    most ``max_examples`` examples (two where gradients are clipped), a few passes, and the replay.
    """
    file = read_data(plan, data)
    say_file(file, say)
    from stopwise.advice.door import check_present
    from stopwise.network.loading import model_fingerprint
    from stopwise.network.parameters import select_parameters

    check_present(device)
    job = make_job(plan, file, network, tokenizer, assets, say)
    n, classes = len(job.data.labels), len(job.data.classes)
    if plan.size is not None and plan.size < n:
        raise AdviceError(
            f"--size: found {plan.size}, must be at least the {n} examples of the kernel (--max-examples)"
        )
    try:
        with tempfile.TemporaryDirectory() as folder:
            args = _arguments(plan, args, folder, device, n)
            say(f"computing AdamW's kernel of {n} examples with {classes} classes")
            reading = _read(job, plan, args, progress)
            stop, folds = reading.answer, None
            if plan.verify is not None:
                from stopwise.advice.verify import real_folds

                folds = real_folds(job, plan, reading, args, say, progress)
        size, distinct = plan.size or job.data.distinct, job.data.distinct
        more = _for_more(job, plan, reading, size, say)
        whole = more if size <= distinct else _for_more(job, plan, reading, distinct, say)
        trained = tuple(select_parameters(job.model, "trainable"))
        config = asdict(plan) | {"text": list(plan.text), "verbalizers": list(plan.verbalizers)}
        record = {"config": config, "model": model_fingerprint(job.model)}
    finally:
        job.put_back()
    return TrainingAdvice(
        plan=plan,
        data=job.data,
        stop=stop,
        folder=job.folder,
        head=job.head,
        levels=_levels(job, reading, plan.seed),
        words=job.words,
        trained=trained,
        targets=job.targets,
        penalty=None if job.probe is None else job.probe.penalty,
        larger=more,
        whole=whole,
        folds=folds,
        provenance=record,
    )


def say_file(file: File, say: Say, most: int = 8) -> None:
    """Tell what a file holds, and how it was read."""
    shares = list(file.shares.items())
    if len(shares) > most:
        shares = sorted(shares, key=lambda one: -one[1])[:most]
    more = f" and {len(file.shares) - most} more" if len(file.shares) > most else ""
    say(f"{file.path}: {file.rows} rows, labels {', '.join(f'{name} ({count})' for name, count in shares)}{more}")
    for note in file.notes:
        say(note)


def _arguments(plan: Plan, args: Any, folder: str, device: str, n: int) -> Any:
    """Return the arguments of the longest training; AdviceError for a warm-up that never ends."""
    args = make_arguments(plan, plan.longest, folder) if args is None else copy.copy(args)
    args.num_train_epochs, args.max_steps, args.output_dir = plan.longest, -1, folder
    args.remove_unused_columns, args.report_to = False, []
    if device == "cpu":
        args.use_cpu = True
    epochs = plan.epochs or plan.longest
    steps = math.ceil(epochs * math.ceil(n / plan.batch_size))
    if plan.warmup >= 1 and plan.warmup >= steps:
        raise AdviceError(
            f"--warmup: {plan.warmup:g} steps are no fewer than the {steps} of {epochs:g} epochs of {n} examples, so"
            " that the rate would never be reached; give fewer, or a share"
        )
    return args


def _read(job: Job, plan: Plan, args: Any, progress: bool) -> Any:
    """Make the Trainer of the longest training, and read what its shorter ones come to."""
    from stopwise.integrations.horizon import read_horizon

    trainer = job.trainer(args)
    return read_horizon(
        trainer,
        step_size=STEP_SIZE if plan.learning_rate is None else None,
        words=list(job.tokens) or None,
        n_max=len(job.rows),
        left_logits=None if job.probe is None else job.probe.left_out,
        progress=progress,
    )


def _for_more(job: Job, plan: Plan, reading: Any, size: int, say: Say) -> Larger | None:
    """Return the answer for so many labels, where the kernel holds fewer."""
    if size == len(job.data.labels):
        return None
    from stopwise.linearized.coding import coding_matrix

    say(f"carrying the answer to {size} examples")
    start_of = None
    if job.probe is not None:
        coding, probe = coding_matrix(len(job.data.classes)), job.probe

        def start_of(inside: np.ndarray) -> np.ndarray:
            return probe.trained_on(inside) @ coding.T

    return larger(
        reading.net,
        reading.objective,
        reading.schedules,
        reading.answer,
        size,
        batch_size=plan.batch_size,
        seed=plan.seed,
        start_of=start_of,
    )


def _levels(job: Job, reading: Any, seed: int) -> dict[str, Baseline]:
    """Return what is reached without training, by name."""
    stop, labels, classes = reading.answer, job.data.labels, len(job.data.classes)
    found = {"shares": baselines.shares(labels, classes)}
    if job.words:
        found["prompt"] = baselines.start(stop.losses[0], stop.correct[0], "prompt")
        found["with_offset"] = baselines.with_offset(reading.net.start, labels, classes, seed)
    elif job.probe is not None:
        found["head"] = baselines.start(stop.losses[0], stop.correct[0], "head")
    return found
