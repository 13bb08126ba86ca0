"""``StopwiseCallback``: when a ``Trainer`` of transformers should stop, read from the kernel."""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import ExportableState

from stopwise.integrations.left_out import FILE, FOLDER, LeftOutCurve, Value
from stopwise.integrations.reading import N_MAX, read_stop
from stopwise.integrations.trainer_schedule import TrainerRun
from stopwise.stopping.anchored import COHERENT
from stopwise.stopping.registry import REPLAYING_RULES
from stopwise.stopping.scheduled import ScheduledStop

logger = logging.getLogger("stopwise")

WHEN = ("start", "warmup")
LEFT_OUT = (None, "anchored")


class StopwiseCallback(TrainerCallback, ExportableState):
    """Stop a Trainer where the kernel says that the loss of new examples is least, or only say so.

    ``Trainer(callbacks=[StopwiseCallback()])``. ``words``: of a language model, its answers, as token ids or as words
    of one token (None: the answers in the training set); a classification head needs none. ``stop`` False only
    reports: the run is then the same to the last bit. ``when``: ``start``, ``warmup`` (the end of the warm-up, with
    AdamW's own second moments) or a number of steps. ``rule``: ``bayes`` or ``loo``. ``n_max``: examples of the kernel;
    with more of them in training the answer is that of a subset, which is reported but stops nothing.

    ``left_out`` "anchored" predicts nothing: it measures, while training runs, the log-loss of every training example
    by the network without it, from ``anchors`` checkpoints of the run: the start, one at ``when`` (``start``: the end
    of the warm-up or of the first epoch, whichever is later) and others. The curve is logged as
    ``stopwise/left_out_loss`` and kept in ``curve``, as (step, log-loss, accuracy, coherence). With ``stop`` training
    ends when the curve has risen past its minimum, and the model has the weights of the minimum, as it has at the end
    of a run whose curve has not. Where the coherence of two checkpoints is below 0.5 the curve is not logged any more
    and stops nothing.

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
        left_out: str | None = None,
        anchors: int = 4,
    ) -> None:
        if when not in WHEN and not (isinstance(when, int) and when >= 1):
            raise ValueError(f"when: {when!r} is not start, warmup or a number of steps from 1 on")
        if rule not in REPLAYING_RULES:
            raise ValueError(f"rule: {rule!r} is not one of {', '.join(REPLAYING_RULES)}")
        if n_max < 2:
            raise ValueError(f"n_max: found {n_max}, must be 2 or more")
        if left_out not in LEFT_OUT:
            raise ValueError(f"left_out: {left_out!r} is not None or 'anchored'")
        if anchors < 2:
            raise ValueError(f"anchors: found {anchors}, must be 2 or more, the start and others")
        self.words, self.stop, self.when = None if words is None else list(words), stop, when
        self.rule, self.n_max, self.left_out, self.anchors = rule, n_max, left_out, anchors
        self.found: dict[str, Any] | None = None
        self.curve: list[Value] = []
        self.ended: int | None = None
        self.seconds = 0.0
        self._following: LeftOutCurve | None = None
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
        names = ("words", "stop", "when", "rule", "n_max", "left_out", "anchors")
        attributes = {"found": self.found, "curve": [list(value) for value in self.curve], "ended": self.ended}
        return {"args": {name: getattr(self, name) for name in names}, "attributes": attributes}

    @property
    def stops_at(self) -> int | None:
        """The step at which training is stopped; None when it is not."""
        if self.left_out:
            return self.ended
        answer = self.answer
        acts = self.stop and answer is not None and "subset" not in answer.flags
        return answer.t if acts and answer is not None else None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Read the kernel, or take the answer of the checkpoint that training resumes from."""
        if state.global_step == 0:
            self.found = self._answer = self.ended = None
            self.curve, self.seconds = [], 0.0
        elif self.found is None or self.left_out:
            saved = state.stateful_callbacks.get(type(self).__name__) or {}
            kept = (saved[0] if isinstance(saved, list) else saved).get("attributes", {})
            self.found, self.ended = kept.get("found"), kept.get("ended")
            self.curve = [tuple(value) for value in kept.get("curve", [])]
        if self.left_out:
            self._follow(args, state, kwargs)
        elif self.found is None and state.global_step >= self._read_at(args, state):
            self._read(args, state, control, kwargs)
        return control

    def on_step_begin(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        """Follow the step; one that the Trainer takes before it looks at its controls moves nothing, if none is due."""
        if self._following is not None and self.ended is None:
            began = time.monotonic()
            self._following.begin_step(state.global_step)
            self.seconds += time.monotonic() - began
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
        if self._following is not None and self.ended is None:
            self._value(self._following, args, state, control)
        elif self.found is None and not self.left_out and state.global_step >= self._read_at(args, state):
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

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write what a resumed run needs of the left-out curve beside the checkpoint."""
        if self._following is not None and state.is_world_process_zero:
            self._following.save(*_folders(args, state))

    def _follow(self, args: Any, state: Any, given: dict[str, Any]) -> None:
        """Begin the left-out curve, or take it up where the checkpoint that training resumes from has left it."""
        self._following = None
        if self.ended is not None:
            return
        options: dict[str, Any] = {"words": self.words, "anchors": self.anchors, "n_max": self.n_max}
        first = None if self.when == "start" else self._read_at(args, state)
        self._following = LeftOutCurve(_run_of(args, state, given), first=first, keep_best=self.stop, **options)
        if state.global_step == 0:
            logger.info(self._following.plan.sentence(len(self._following.objective.labels)))
            self._following.begin()
            return
        folder, shared = _folders(args, state)
        if not (folder / FILE).is_file():
            raise ValueError(
                f"left_out: {folder} has no {FILE}, so the curve cannot go on; resume from a checkpoint of this"
                " output_dir that was saved with it, or leave left_out out"
            )
        self._following.restore(folder, shared)

    def _value(self, following: LeftOutCurve, args: Any, state: Any, control: Any) -> None:
        """Follow the step that has been taken, log a value of the curve, and end the run where it has risen."""
        began = time.monotonic()
        value = following.end_step(state.global_step)
        self.seconds += time.monotonic() - began
        self.curve = list(following.curve)
        if value is None:
            return
        logs = {"stopwise/left_out_coherence": value[3], "stopwise/seconds": self.seconds}
        if not following.lost:
            logs |= {"stopwise/left_out_loss": value[1], "stopwise/left_out_accuracy": value[2]}
        elif len(following.curve) == len(following.trusted) + 1:
            logger.warning("%s", _lost(value))
        _log(logs, state, control)
        if self.stop and not following.lost and (following.risen or state.global_step >= state.max_steps):
            following.use_best()
            self.ended = state.global_step
            _log({"stopwise/stop_step": float(following.best_step or 0)}, state, control)

    def _read(self, args: Any, state: Any, control: Any, given: dict[str, Any]) -> None:
        """Read the kernel on one rank, tell the others, and log."""
        start, run = time.monotonic(), _run_of(args, state, given)
        answer = _on_one_rank(run, state, words=self.words, rule=self.rule, n_max=self.n_max, done=state.global_step)
        self._answer, self.found = answer, answer.row()
        if state.is_world_process_zero:
            logger.info(sentence(answer))
        _log(numbers(answer) | {"stopwise/seconds": time.monotonic() - start}, state, control)


def _run_of(args: Any, state: Any, given: dict[str, Any]) -> TrainerRun:
    """Return what a run is made of, from what a callback is given."""
    return TrainerRun(
        model=given["model"],
        args=args,
        optimizer=given["optimizer"],
        lr_scheduler=given["lr_scheduler"],
        dataloader=given["train_dataloader"],
        max_steps=state.max_steps,
        trainer=running_trainer(),
        processing_class=given.get("processing_class"),
    )


def _lost(value: Value) -> str:
    return (
        f"stopwise: the left-out curve ends before step {value[0]}: the network has changed so much between two"
        f" checkpoints (coherence {value[3]:.2f}, at least {COHERENT} is needed) that it says nothing from there on; it"
        " stops nothing any more; take more checkpoints (anchors), a smaller learning rate, or hold labels out"
    )


def _folders(args: Any, state: Any) -> tuple[Path, Path]:
    """Return the folder of the checkpoint of this step, and the one that all checkpoints of the run share."""
    return Path(args.output_dir) / f"checkpoint-{state.global_step}", Path(args.output_dir) / FOLDER


def _log(logs: dict[str, float], state: Any, control: Any) -> None:
    """Log where the Trainer logs, and change nothing of what it does next."""
    kept, trainer = (control.should_log, control.should_evaluate, control.should_save), running_trainer()
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
        f"{answer.low_epochs:.2f} to {answer.high_epochs:.2f} epochs are within 5 % of the lowest; expected log-loss "
        f"{answer.expected_loss:.3f} ({answer.loss_at_start:.3f} now, {answer.loss_at_end:.3f} at the end){flags}"
    )
