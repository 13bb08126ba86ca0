"""What a training job of the study needs: the names of its cell, its recipe and folds, and the rows that it writes.

A *cell* is a data set, a seed, a training size and a recipe. One job trains it on all n examples, one on the three
quarters that hold-out stopping leaves, and for some cells one on each of eight folds. No torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from stopwise.linearized.filters import linear_schedule
from stopwise.stopping.schedule_path import Schedule

WARMUP = 0.1  # share of a run
# What a job trains beside the run on all examples: how many folds there are, and which of them it leaves out in turn.
HOLDOUT, FOLDS = "holdout", "folds8"
PARTS = {HOLDOUT: (4, (0,)), FOLDS: (8, tuple(range(8)))}
ALL, LEFT_OUT = "all", "left_out"  # a part, and the split of the examples that a fold leaves out
RANDOM, PROBE = "random", "probe"  # how a head starts
HALF = "<f2"  # how outputs are kept: their error is below a thousandth of a logit
SINGLE = "<f4"


class Cell(NamedTuple):
    """One run of the study: its data set, seed, number of training examples and recipe."""

    task: str
    seed: int
    n: int
    recipe: str


@dataclass(frozen=True)
class Recipe:
    """A learning rate, absolute or c in c/lambda_1 of AdamW's own kernel, its schedule, and the start of the head.

    ``schedule``: constant, one training that is looked at along the way; or decay, every length a training of its own.
    ``start``: pretrained where words answer; of a new head random, or probe, the logistic regression on the features
    of the examples of this training.
    ``clip_norm``: the norm that gradients are cut to, None for none.
    """

    name: str
    learning_rate: float | None
    step_size: float | None
    schedule: str
    start: str = RANDOM
    clip_norm: float | None = None

    @property
    def decays(self) -> bool:
        """Whether every length is a training of its own."""
        return self.schedule != "constant"

    @property
    def followed(self) -> bool:
        """Whether the anchored leave-one-out is made for it: every length a training, whose start knows no label.

        A rate that the kernel gives would need that kernel as well.
        """
        return self.decays and self.start != PROBE and self.learning_rate is not None

    def rates(self, steps: int, lambda_1: float | None = None) -> np.ndarray:
        """Return the learning rate of every step of a training of so many, float64 [steps].

        ``lambda_1`` is needed with a step size only.
        """
        if self.learning_rate is not None:
            rate = self.learning_rate
        elif self.step_size is not None and lambda_1 is not None:
            rate = self.step_size / lambda_1
        else:
            raise ValueError(f"study.recipes.{self.name}: step_size needs the kernel's largest eigenvalue")
        if not self.decays:
            return np.full(steps, rate)
        return rate * np.asarray(linear_schedule(steps, round(WARMUP * steps)))


def adamw_schedule(
    rates: np.ndarray, batches: Sequence[np.ndarray], n: int, weight_decay: float, clip_norm: float | None
) -> Schedule:
    """Return what AdamW does at these learning rates on the first of these batches of n examples, each their mean."""
    own = list(batches[: len(rates)])
    return Schedule(
        rates,
        own,
        [np.full(len(batch), 1 / len(batch)) for batch in own],
        weight_decay=weight_decay,
        max_grad_norm=clip_norm or 0.0,
        epoch=n / len(own[0]),
    )


def own_test_rows(splits: Sequence[str], positions: Sequence[int], place: int, count: int) -> np.ndarray:
    """Return which rows of a sample the seed at ``place`` in the list of seeds keeps: its own ``count`` test rows.

    The sample holds the test rows of all seeds, one seed's after another's: no two seeds share one.
    """
    split, position = np.asarray(splits), np.asarray(positions)
    return (split != "test") | ((position >= place * count) & (position < (place + 1) * count))


def output_rows(cell: Cell, part: str, fold: int, steps: Iterable[int], split: str, outputs: np.ndarray) -> list[dict]:
    """Return rows of ``study_outputs``: outputs [evaluations, examples, columns] of one split along one training."""
    about = {**cell._asdict(), "part": part, "fold": fold, "split": split}
    kept = np.asarray(outputs).astype(HALF)
    return [
        {**about, "step": int(step), "rows": f.shape[0], "values": np.ascontiguousarray(f).tobytes()}
        for step, f in zip(steps, kept, strict=True)
    ]


def fold_steps(steps: Iterable[int], inside: int, n: int) -> list[int]:
    """Return the steps after which a training on ``inside`` of n examples has seen as many epochs; 0 stays 0."""
    return [max(1, round(step * inside / n)) if step else 0 for step in steps]


def step_rows(cell: Cell, length: int, taken: Iterable[tuple[float, np.ndarray, np.ndarray]]) -> list[dict]:
    """Return rows of ``study_steps`` of one training of ``length`` steps.

    ``taken``: of each step its learning rate, its examples and their outputs before it.
    """
    return [
        {
            **cell._asdict(),
            "length": length,
            "step": step,
            "learning_rate": rate,
            "examples": [int(i) for i in batch],
            "values": np.ascontiguousarray(f, dtype=SINGLE).tobytes(),
        }
        for step, (rate, batch, f) in enumerate(taken)
    ]
