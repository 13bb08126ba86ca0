"""When a run ends and which of its states is kept: hold-out patience, a predicted time, or neither (no torch).

A rule is fed the evaluations in order and answers whether the newest state is the one to keep. Its memory is a small
dict of numbers, so that a checkpoint can hold it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from stopwise.stopping.registry import FIXED_STOP, FOLDED_STOPS, MEASURED, RULES


class StopRule:
    """Run to the end and keep the last finite state: ``stop: none``."""

    needs_validation = False

    def __init__(self, end: int) -> None:
        self.end = end
        self.best_step = 0
        self.stop_step: int | None = None
        self.reason = "steps"

    @property
    def stopped(self) -> bool:
        """Whether the rule has fired."""
        return self.stop_step is not None

    def observe(self, step: int, row: Mapping[str, Any]) -> bool:
        """Take one evaluation; True when its state is the one to keep so far."""
        if self.stopped or not math.isfinite(row["train_loss"]):
            return False
        self.best_step = step
        return True

    def state(self) -> dict[str, Any]:
        """Return the memory of the rule as JSON-able numbers."""
        return {key: value for key, value in vars(self).items() if not key.startswith("_")}

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore a saved memory."""
        vars(self).update(state)


class Predicted(StopRule):
    """Stop at step t, chosen before training by a kernel rule, folds or a number; no validation data is read."""

    def __init__(self, rule: str, t: int, end: int) -> None:
        super().__init__(end)
        self.t = t
        self.reason = "predicted" if t <= end else "steps"
        self.rule = rule

    def observe(self, step: int, row: Mapping[str, Any]) -> bool:
        """Keep every finite state up to t, so that a run that diverges before t keeps its last finite one."""
        keep = step <= self.t and super().observe(step, row)
        if step >= self.t and not self.stopped:
            self.stop_step = step
        return keep


class Holdout(StopRule):
    """Keep the lowest validation loss; stop after ``patience`` evaluations without improving by ``min_delta``."""

    needs_validation = True

    def __init__(self, patience: int, min_delta: float, end: int) -> None:
        super().__init__(end)
        self.patience, self.min_delta = patience, min_delta
        self.best_value: float | None = None
        self.waited = 0

    def observe(self, step: int, row: Mapping[str, Any]) -> bool:
        """Compare one validation loss with the best so far; NaN never improves."""
        if self.stopped:
            return False
        value = row["validation_loss"]
        if math.isfinite(value) and (self.best_value is None or value < self.best_value - self.min_delta):
            self.best_value, self.best_step, self.waited = value, step, 0
            return True
        self.waited += 1
        if self.waited >= self.patience:
            self.stop_step, self.reason = step, "patience"
        return False


def allowed_rules() -> tuple[str, ...]:
    """Return every value of ``finetune.stop``: none, holdout, and whatever names a step before training begins."""
    return ("none", "holdout", FIXED_STOP, *FOLDED_STOPS, *(name for name in RULES if name not in MEASURED))


def make_stop_rule(rule: str, end: int, *, t: int | None = None, patience: int = 2, min_delta: float = 0.0) -> StopRule:
    """Return the named rule for a run of at most ``end`` steps.

    A kernel rule needs ``t``, the step that ``stopping_time`` predicted. Raises ValueError for an unknown rule, a
    missing or negative t, a patience below 1 or a negative min_delta.
    """
    if patience < 1:
        raise ValueError(f"finetune.patience must be at least 1, found {patience}")
    if not min_delta >= 0:
        raise ValueError(f"finetune.min_delta must not be negative, found {min_delta}")
    if rule == "none":
        return StopRule(end)
    if rule == "holdout":
        return Holdout(patience, min_delta, end)
    if rule not in allowed_rules():
        raise ValueError(f"finetune.stop: {rule!r} is not one of {', '.join(allowed_rules())}")
    if t is None or t < 0:
        raise ValueError(f"finetune.stop: rule {rule!r} needs the step it predicted (stop_at, 0 or more), found {t!r}")
    return Predicted(rule, int(t), end)
