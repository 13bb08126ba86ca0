"""The ``finetune`` section of the configuration as one checked, immutable object, and the step size of every step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from stopwise.linearized.coding import OUTPUTS
from stopwise.linearized.filters import (
    AdamMean,
    Filter,
    GradientDescent,
    HeavyBall,
    Nesterov,
    cosine_schedule,
    linear_schedule,
)
from stopwise.stopping.in_training import StopRule, make_stop_rule
from stopwise.stopping.registry import FIXED_STOP, MEASURED_STOPS, REPLAYING_RULES

OBJECTIVES = ("squared", "cross_entropy")
OPTIMIZERS = ("gradient_descent", "heavy_ball", "nesterov", "adamw")
INTERCEPTS = ("fitted", "none")
AUTOCAST = (None, "bfloat16")
SCHEDULES = ("constant", "linear", "cosine")
# The decay of AdamW's means of the gradient and of its square, and what its division is kept from zero by.
ADAM_BETAS = (0.9, 0.999)
ADAM_EPS = 1e-8
CALLER_KEYS = frozenset({"parameters", "outputs", "formula", "target_scale", "intercept", "stop_at"})


@dataclass(frozen=True)
class FinetuneSettings:
    """How to fine-tune: objective, update rule, step size, evaluation and stopping.

    ``step_size`` is c in alpha = c/lambda_1 for the three rules the theory covers, and for AdamW with a kernel of
    ``formula`` adam; ``learning_rate`` is absolute and, when given, used instead: AdamW with another kernel needs it.
    ``evaluate_every`` is in steps from 1 on and a fraction of an epoch below 1. ``stop`` is none, holdout, ``epochs``
    (that many), or what names its step ``stop_at`` before: a kernel rule, or training on all but one of ``folds``
    parts. ``tokens_per_batch`` bounds the padded tokens of one pass: a larger batch accumulates its gradient, with the
    same result. ``clip_norm``: the norm that a step's gradient is cut down to, over all trained parameters. ``tangent``
    trains the model linearised at its start. Raises ValueError naming the key of a wrong value.
    """

    objective: str = "squared"
    optimizer: str = "heavy_ball"
    momentum: float = 0.9
    step_size: float = 1.0
    learning_rate: float | None = None
    weight_decay: float = 0.0
    clip_norm: float | None = None
    schedule: str = "constant"
    warmup: int = 0
    steps: int = 12
    batch_size: int | None = None
    evaluate_every: float = 4
    patience: int = 2
    min_delta: float = 0.0
    stop: str = "holdout"
    stop_at: int | None = None
    folds: int = 8
    epochs: float | None = None
    continue_after_stop: bool = False
    autocast: str | None = None
    tokens_per_batch: int = 1024
    tangent: bool = False
    parameters: Any = "attention"
    outputs: str = "contrast"
    formula: str = "sgd"
    target_scale: float = 1.0
    intercept: str = "fitted"

    @classmethod
    def from_config(cls, section: Mapping[str, Any], **others: Any) -> FinetuneSettings:
        """Return the settings of a ``finetune`` section; ``others`` are the keys that live in other sections.

        ``stop`` may also be a mapping {rule, patience, min_delta, t}. Raises ValueError for a key that is not known.
        """
        values = dict(section)
        if isinstance(values.get("stop"), Mapping):
            stop = dict(values.pop("stop"))
            names = {"rule": "stop", "patience": "patience", "min_delta": "min_delta", "t": "stop_at"}
            unknown = sorted(stop.keys() - names.keys())
            if unknown:
                raise ValueError(f"finetune.stop: unknown key {unknown[0]!r}, allowed: {', '.join(names)}")
            values |= {names[key]: value for key, value in stop.items()}
        allowed = {field.name for field in fields(cls)}
        unknown = sorted(values.keys() - allowed)
        if unknown:
            choices = ", ".join(sorted(allowed - CALLER_KEYS))
            raise ValueError(f"finetune: unknown key {unknown[0]!r}, allowed: {choices}")
        return cls(**values | others)

    def __post_init__(self) -> None:
        self._check_choices()
        self._check_numbers()

    def _check_choices(self) -> None:
        choices: dict[str, tuple[Any, ...]] = {
            "objective": OBJECTIVES,
            "optimizer": OPTIMIZERS,
            "schedule": SCHEDULES,
            "autocast": AUTOCAST,
            "outputs": OUTPUTS,
            "intercept": INTERCEPTS,
        }
        for key, allowed in choices.items():
            if getattr(self, key) not in allowed:
                raise ValueError(f"finetune.{key}: {getattr(self, key)!r} is not one of {', '.join(map(str, allowed))}")
        if self.objective == "squared" and self.outputs == "logits":
            raise ValueError("finetune.objective: squared loss on outputs 'logits' has singular noise; use 'contrast'")
        if self.objective == "squared" and self.outputs == "vocabulary":
            raise ValueError("finetune.objective: outputs 'vocabulary' are for cross_entropy, not squared loss")
        if self.optimizer == "adamw" and self.formula != "adam" and self.learning_rate is None:
            raise ValueError(
                "finetune.learning_rate: optimizer 'adamw' needs a number > 0 or kernel.formula: adam, found null"
            )
        make_stop_rule(self.stop, self.steps, t=self.stop_at or 0, patience=self.patience, min_delta=self.min_delta)

    def _check_numbers(self) -> None:
        ranges = {
            "momentum": (0 <= self.momentum < 1, "in [0, 1)"),
            "step_size": (0 < self.step_size <= 1, "in (0, 1]"),
            "learning_rate": (self.learning_rate is None or self.learning_rate > 0, "greater than 0 or null"),
            "weight_decay": (
                self.weight_decay >= 0 and (not self.weight_decay or self.optimizer == "adamw"),
                "0 or more, and 0 for an optimizer that is not adamw",
            ),
            "clip_norm": (
                self.clip_norm is None or (self.clip_norm > 0 and self.optimizer != "nesterov"),
                "greater than 0, and absent for nesterov",
            ),
            "folds": (self.folds >= 2, "2 or more"),
            "epochs": (
                self.epochs > 0 if self.epochs is not None else self.stop != FIXED_STOP,
                "greater than 0, and given where stop is 'epochs'",
            ),
            "warmup": (
                self.warmup >= 0 and (not self.warmup or self.schedule != "constant"),
                "0 for a constant schedule",
            ),
            "steps": (self.steps >= 1, "1 or more"),
            "batch_size": (self.batch_size is None or self.batch_size >= 1, "1 or more, or null"),
            "tokens_per_batch": (self.tokens_per_batch >= 1, "1 or more"),
            "target_scale": (self.target_scale > 0, "greater than 0"),
            "evaluate_every": (
                self.evaluate_every > 0
                and (self.evaluate_every < 1 or self.evaluate_every == int(self.evaluate_every)),
                "a whole number of steps, or a fraction of an epoch below 1",
            ),
        }
        for key, (right, allowed) in ranges.items():
            if not right:
                raise ValueError(f"finetune.{key}: found {getattr(self, key)!r}, must be {allowed}")

    @property
    def reads_validation(self) -> bool:
        """Whether a run looks at validation data: not when training ends at the step that a kernel rule named.

        With ``continue_after_stop`` the curve is finished for the sake of judging every rule, hold-out among them; the
        stop and the kept state do not depend on it.
        """
        return self.stop in MEASURED_STOPS or self.continue_after_stop

    @property
    def follows_theory(self) -> bool:
        """Whether the rules' theory covers this training: squared loss, no AdamW, no clipping; else heuristics."""
        return self.objective == "squared" and self.optimizer != "adamw" and self.clip_norm is None

    @property
    def replays_rules(self) -> bool:
        """Whether ``loo`` and ``bayes`` replay this training: cross-entropy whose steps the kernel gives."""
        return self.objective == "cross_entropy" and self.has_path

    def heuristic(self, rule: str) -> bool:
        """Whether a rule is outside its theory here: under AdamW, and under cross-entropy unless it replays it."""
        return not self.follows_theory and (
            self.optimizer == "adamw" or not self.replays_rules or rule not in REPLAYING_RULES
        )

    def follows_filter(self, n: int) -> bool:
        """Whether the linearised run on n examples is the filter itself: squared loss, full batches and no AdamW."""
        return self.follows_theory and (self.batch_size is None or self.batch_size >= n)

    def stop_rule(self) -> StopRule:
        """Return a fresh stop rule; raises ValueError when a kernel rule has no ``stop_at``."""
        return make_stop_rule(self.stop, self.steps, t=self.stop_at, patience=self.patience, min_delta=self.min_delta)

    def steps_per_epoch(self, n: int) -> float:
        """Return the number of optimizer steps that draw n examples (at least one)."""
        return 1.0 if self.batch_size is None else max(1.0, n / min(n, self.batch_size))

    def evaluation_interval(self, n: int) -> int:
        """Return the evaluation interval in steps, at least 1: a fraction of an epoch is rounded to whole steps."""
        if self.evaluate_every >= 1:
            return int(self.evaluate_every)
        return max(1, round(self.evaluate_every * self.steps_per_epoch(n)))

    @property
    def has_path(self) -> bool:
        """Whether the kernel gives the linearised steps of this training: AdamW's only from its own kernel."""
        return self.optimizer != "adamw" or self.formula == "adam"

    @property
    def follows_schedule(self) -> bool:
        """Whether the path is replayed with what no filter has: clipped gradients or decayed weights."""
        return self.has_path and (self.clip_norm is not None or self.weight_decay > 0)

    def step_sizes(self, lambda_1: float | None = None, steps: int | None = None) -> np.ndarray:
        """Return the step size of every step, c/lambda_1 (or ``learning_rate``) by the schedule; float64 [steps]."""
        return GradientDescent(self._alpha(lambda_1), self._schedule()).step_sizes(
            self.steps if steps is None else steps
        )

    def filter(self, lambda_1: float | None = None) -> Filter:
        """Return the spectral filter of this training: step size c/lambda_1 (or ``learning_rate``), momentum, schedule.

        It predicts what training does to each eigen-direction. Under AdamW it is a heuristic: with a kernel of
        ``formula`` adam that of Adam's bias-corrected mean of gradients; with another kernel it only counts the
        learning rate. Raises ValueError when no step size can be formed.
        """
        alpha, schedule = self._alpha(lambda_1), self._schedule()
        if self.optimizer == "adamw" and self.formula == "adam":
            return AdamMean(alpha, ADAM_BETAS[0], schedule)
        if self.optimizer == "heavy_ball":
            return HeavyBall(alpha, self.momentum, schedule)
        if self.optimizer == "nesterov":
            return Nesterov(alpha, self.momentum, schedule)
        return GradientDescent(alpha, schedule)

    def _alpha(self, lambda_1: float | None) -> float:
        return self.learning_rate if self.learning_rate is not None else self._scaled_step(lambda_1)

    def _schedule(self) -> tuple[float, ...] | None:
        schedules = {"linear": linear_schedule, "cosine": cosine_schedule}
        return schedules[self.schedule](self.steps, self.warmup) if self.schedule in schedules else None

    def _scaled_step(self, lambda_1: float | None) -> float:
        if lambda_1 is None:
            raise ValueError(
                "finetune.step_size needs the kernel's spectrum (alpha = c/lambda_1); or set learning_rate"
            )
        if not (math.isfinite(lambda_1) and lambda_1 > 0):
            raise ValueError(f"finetune.step_size: the kernel's largest eigenvalue is {lambda_1}, it must be positive")
        return self.step_size / lambda_1

    def as_dict(self) -> dict[str, Any]:
        """Return all values as a JSON-able mapping."""
        return asdict(self)
