"""``StopwiseCallback``: when a ``Trainer`` of transformers should stop, read from the kernel."""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Sequence
from typing import Any

from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import ExportableState

from stopwise.integrations.reading import N_MAX, read_stop
from stopwise.integrations.trainer_schedule import TrainerRun
from stopwise.stopping.registry import REPLAYING_RULES
from stopwise.stopping.scheduled import ScheduledStop

logger = logging.getLogger("stopwise")

WHEN = ("start", "warmup")


class StopwiseCallback(TrainerCallback, ExportableState):
    """Stop a Trainer where the kernel says that the loss of new examples is least, or only say so.

    ``Trainer(callbacks=[StopwiseCallback()])``. ``words``: of a language model, its answers, as token ids or as words
    of one token (None: the answers in the training set); a classification head needs none. ``stop`` False only
    reports: the run is then the same to the last bit. ``when``: ``start``, ``warmup`` (the end of the warm-up, with
    AdamW's own second moments) or a number of steps. ``rule``: ``bayes`` or ``loo``. ``n_max``: examples of the kernel;
    with more of them in training the answer is that of a subset, which is reported but stops nothing.

    The answer is logged where the Trainer logs, with keys that begin with ``stopwise/``, is kept in ``answer`` (a
    ``ScheduledStop``), and is saved with every checkpoint. Raises ValueError at the beginning of training, in one line,
    for a run that cannot be predicted.
    """

    def __init__(
        self,
        words: Sequence[int | str] | None = None,
        stop: bool = True,
        when: str | int = "start",
        rule: str = "bayes",
        n_max: int = N_MAX,
    ) -> None:
        if when not in WHEN and not (isinstance(when, int) and when >= 1):
            raise ValueError(f"when: {when!r} is not start, warmup or a number of steps from 1 on")
        if rule not in REPLAYING_RULES:
            raise ValueError(f"rule: {rule!r} is not one of {', '.join(REPLAYING_RULES)}")
        if n_max < 2:
            raise ValueError(f"n_max: found {n_max}, must be 2 or more")
        self.words, self.stop, self.when = None if words is None else list(words), stop, when
        self.rule, self.n_max = rule, n_max
        self.found: dict[str, Any] | None = None
        self._answer: ScheduledStop | None = None
        self._rates: list[float] | None = None

    @property
    def answer(self) -> ScheduledStop | None:
        """The stop, once the kernel has been read (after a resumption without its curve)."""
        if self._answer is None and self.found is not None:
            self._answer = ScheduledStop.of_row(self.found)
        return self._answer

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps: the arguments and the answer."""
        names = ("words", "stop", "when", "rule", "n_max")
        return {"args": {name: getattr(self, name) for name in names}, "attributes": {"found": self.found}}

    @property
    def stops_at(self) -> int | None:
        """The step at which training is stopped; None when it is not."""
        answer = self.answer
        acts = self.stop and answer is not None and "subset" not in answer.flags
        return answer.t if acts and answer is not None else None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Read the kernel, or take the answer of the checkpoint that training resumes from."""
        if state.global_step == 0:
            self.found = self._answer = None
        elif self.found is None:
            saved = state.stateful_callbacks.get(type(self).__name__) or {}
            self.found = (saved[0] if isinstance(saved, list) else saved).get("attributes", {}).get("found")
        if self.found is None and state.global_step >= self._read_at(args, state):
            self._read(args, state, control, kwargs)
        return control

    def on_step_begin(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        """Let the step that the Trainer takes before it looks at its controls move nothing, when none is due."""
        if self.stops_at is not None and state.global_step >= self.stops_at and self._rates is None:
            self._rates = [group["lr"] for group in optimizer.param_groups]
            for group in optimizer.param_groups:
                group["lr"] = 0.0

    def on_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        """Give the optimizer its learning rates back."""
        if self._rates is not None:
            for group, rate in zip(optimizer.param_groups, self._rates, strict=True):
                group["lr"] = rate
            self._rates = None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Read the kernel when it is due; stop at the step that it named."""
        if self.found is None and state.global_step >= self._read_at(args, state):
            self._read(args, state, control, kwargs)
        if self.stops_at is not None and state.global_step >= self.stops_at:
            control.should_training_stop = True
            control.should_save = control.should_save or args.save_strategy != "no"
            control.should_evaluate = control.should_evaluate or args.eval_strategy != "no"
        return control

    def _read_at(self, args: Any, state: Any) -> int:
        """Return the step at which the kernel is read."""
        if self.when == "start":
            return 0
        steps = self.when if isinstance(self.when, int) else int(args.get_warmup_steps(state.max_steps))
        if steps < 1:
            raise ValueError("when: 'warmup' needs a warm-up (warmup_steps); give a number of steps, or 'start'")
        if steps >= state.max_steps:
            raise ValueError(
                f"when: {self.when!r} is step {steps}, and training ends with step {state.max_steps}; give an earlier"
                " step, or 'start'"
            )
        return steps

    def _read(self, args: Any, state: Any, control: Any, given: dict[str, Any]) -> None:
        """Read the kernel on one rank, tell the others, and log."""
        start, trainer = time.monotonic(), running_trainer()
        run = TrainerRun(
            model=given["model"],
            args=args,
            optimizer=given["optimizer"],
            lr_scheduler=given["lr_scheduler"],
            dataloader=given["train_dataloader"],
            max_steps=state.max_steps,
            trainer=trainer,
            processing_class=given.get("processing_class"),
        )
        answer = _on_one_rank(run, state, words=self.words, rule=self.rule, n_max=self.n_max, done=state.global_step)
        self._answer, self.found = answer, answer.row()
        if state.is_world_process_zero:
            logger.info(sentence(answer))
        logs = numbers(answer) | {"stopwise/seconds": time.monotonic() - start}
        kept = control.should_log, control.should_evaluate, control.should_save
        if trainer is not None:
            # Not a subclass's: TRL's would also empty its own running averages.
            Trainer.log(trainer, logs)
        else:
            state.log_history.append(logs | {"step": state.global_step})
        control.should_log, control.should_evaluate, control.should_save = kept


def running_trainer() -> Trainer | None:
    """Return the Trainer that is calling, None outside of one.

    A Trainer gives its callbacks everything but itself, and its loggers are reached through it alone: it is looked up
    on the call stack.
    """
    frame = sys._getframe()
    while frame is not None:
        found = frame.f_locals.get("self")
        if isinstance(found, Trainer):
            return found
        frame = frame.f_back  # type: ignore[assignment]
    return None


def _on_one_rank(run: TrainerRun, state: Any, **options: Any) -> ScheduledStop:
    """Read on the first rank and give every rank its answer, or its error."""
    import torch.distributed as dist

    if run.args.world_size == 1 or not dist.is_initialized():
        return read_stop(run, **options)
    told: list[Any] = [None]
    if state.is_world_process_zero:
        try:
            told = [read_stop(run, **options)]
        except ValueError as error:
            told = [error]
    dist.broadcast_object_list(told, src=0)
    if isinstance(told[0], ValueError):
        raise told[0]
    return told[0]


def numbers(answer: ScheduledStop) -> dict[str, float]:
    """Return the answer as numbers to log; the step is nan where there is none."""
    values = {
        "stop_step": answer.t,
        "stop_epoch": answer.epochs,
        "low_epoch": answer.low_epochs,
        "high_epoch": answer.high_epochs,
        "predicted_loss": answer.expected_loss,
        "predicted_loss_at_start": answer.loss_at_start,
        "predicted_loss_at_end": answer.loss_at_end,
        "predicted_accuracy": answer.expected_accuracy,
        "largest_step": answer.largest_step,
    }
    return {f"stopwise/{key}": float(math.nan if value is None else value) for key, value in values.items()}


def sentence(answer: ScheduledStop) -> str:
    """Return the answer in one sentence."""
    flags = f" [{' '.join(answer.flags)}]" if answer.flags else ""
    if answer.t is None:
        return f"stopwise: the labels do not say when to stop; training goes on to step {answer.max_steps}{flags}"
    end = answer.max_steps / answer.steps_per_epoch
    return (
        f"stopwise: stop after {answer.epochs:.2f} of {end:.2f} epochs (step {answer.t} of {answer.max_steps}); "
        f"{answer.low_epochs:.2f} to {answer.high_epochs:.2f} epochs cost less than 5 % more; expected log-loss "
        f"{answer.expected_loss:.3f} ({answer.loss_at_start:.3f} now, {answer.loss_at_end:.3f} at the end){flags}"
    )
