"""The ways of choosing when to stop, each a function of a recorded cell, and what it delivers (numpy, no torch).

A new way is a function under ``way``; one that needs more than a cell holds (training again, other data sets) hands in
its answers as a table of kind ``study_answers``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from stopwise.linearized.objectives import Objective
from stopwise.stopping.folds import patient_step, stratified_folds
from stopwise.stopping.scheduled import Linearised, Schedule, scheduled_stop
from stopwise.studies.encoder_cells import Recorded
from stopwise.studies.encoder_design import Design
from stopwise.studies.encoder_rows import ALL, PARTS, Cell

HOLDOUT_PART = "holdout"
MORE = "more_labels"


@dataclass(frozen=True)
class Answer:
    """The step that a way names, and whose outputs it delivers: those of the run on all examples, or of hold-out's."""

    step: float
    part: str = ALL


@dataclass(frozen=True)
class Settings:
    """What ways of choosing know of the study beside the cell: its design, the optimizer, patience."""

    design: Design
    weight_decay: float
    clip_norm: float | None
    patience: int


@dataclass(frozen=True)
class Way:
    """One way of choosing. ``words`` as tables have it; ``trainings``: its cost in trainings of n examples, the final
    one included; ``labels``: how many labels it has beside the n; ``choose``: the answer, None where it has none.
    """

    name: str
    words: str
    trainings: float
    choose: Callable[[Recorded, Settings], Answer | None]
    labels: Callable[[Recorded], int] = lambda recorded: 0


WAYS: dict[str, Way] = {}


def way(name: str, words: str, trainings: float) -> Callable:
    """Make a function of a recorded cell the way of this name."""

    def register(function: Callable[[Recorded, Settings], Answer | None]) -> Callable:
        WAYS[name] = Way(name, words, trainings, function)
        return function

    return register


def ways(design: Design) -> dict[str, Way]:
    """Return all ways in the order of tables: fixed lengths first, the yardstick last."""
    fixed = [_epochs_way(k) for k in design.fixed_epochs]
    own = {one.name: one for one in [*fixed, *WAYS.values()]}
    return own | {"best": own.pop("best")}


def _epochs_way(k: int) -> Way:
    def choose(recorded: Recorded, settings: Settings) -> Answer | None:
        n, design = recorded.cell.n, settings.design
        step = round(k * n / design.batch(n))
        return Answer(step) if step <= recorded.steps[-1] else None

    return Way(f"epochs_{k}", f"{k} epoch{'s' if k > 1 else ''}", 1, choose)


@way("all_steps", "all steps", 1)
def _all_steps(recorded: Recorded, settings: Settings) -> Answer:
    return Answer(float(recorded.steps[-1]))


@way("holdout", "hold-out: a quarter of the labels", 0.75)
def _holdout(recorded: Recorded, settings: Settings) -> Answer | None:
    step = _holdout_step(recorded, settings)
    return None if step is None else Answer(step, HOLDOUT_PART)


@way("holdout_refit", "hold-out, then trained on all", 1.75)
def _holdout_refit(recorded: Recorded, settings: Settings) -> Answer | None:
    step = _holdout_step(recorded, settings)
    return None if step is None else Answer(step)


@way("folds_4", "4 folds of real training", 4)
def _folds_4(recorded: Recorded, settings: Settings) -> Answer | None:
    return _fold_answer(recorded, 4)


@way("folds_8", "8 folds of real training", 8)
def _folds_8(recorded: Recorded, settings: Settings) -> Answer | None:
    return _fold_answer(recorded, 8)


@way(MORE, "32 labels more, to stop on", 1)
def _more_labels(recorded: Recorded, settings: Settings) -> Answer | None:
    if (ALL, 0, "validation") not in recorded.outputs:
        return None
    return Answer(patient_step(recorded.steps, recorded.curve(ALL, 0, "validation"), settings.patience))


@way("loo", "`loo`, read off the kernel at the start", 1)
def _loo(recorded: Recorded, settings: Settings) -> Answer | None:
    return _kernel_answer(recorded, settings, "loo")


@way("bayes", "`bayes`, read off the kernel at the start", 1)
def _bayes(recorded: Recorded, settings: Settings) -> Answer | None:
    return _kernel_answer(recorded, settings, "bayes")


@way("best", "the best evaluation (known afterwards only)", 1)
def _best(recorded: Recorded, settings: Settings) -> Answer:
    return Answer(float(recorded.steps[recorded.best]))


def folds_of(recorded: Recorded, count: int) -> np.ndarray:
    """Return the fold of each training example of a cell, as the runs had it."""
    cell = recorded.cell
    return stratified_folds(recorded.labels.by_split["train"][: cell.n], count, cell.seed)


def _holdout_step(recorded: Recorded, settings: Settings) -> int | None:
    if (HOLDOUT_PART, 0, "train") not in recorded.outputs:
        return None
    out = folds_of(recorded, PARTS[HOLDOUT_PART][0]) == 0
    losses = recorded.example_losses(HOLDOUT_PART, 0, "train")[:, out].mean(axis=1)
    return patient_step(recorded.steps, losses, settings.patience)


def _fold_answer(recorded: Recorded, count: int) -> Answer | None:
    losses = recorded.left_out(count, folds_of(recorded, count))
    return None if losses is None else Answer(float(recorded.steps[int(np.argmin(losses))]))


def _kernel_answer(recorded: Recorded, settings: Settings, rule: str) -> Answer | None:
    n, kernel = recorded.cell.n, recorded.kernel
    if kernel is None or recorded.rates is None or len(kernel.start) < n:
        return None
    own, batches = kernel.leading(n), recorded.batches
    net = Linearised(own.matrix, own.start, own.plain, own.weights_move)
    objective: Objective = recorded.labels.objective("train", n)
    schedule = Schedule(
        recorded.rates,
        batches,
        [np.full(len(batch), 1 / len(batch)) for batch in batches],
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.clip_norm or 0.0,
        epoch=n / settings.design.batch(n),
    )
    found = scheduled_stop(net, objective, schedule, rule)
    return None if found.t is None else Answer(found.t)


def constants(cells: Iterable[Recorded]) -> dict[Cell, Answer]:
    """Return for each cell the step that did best on the other data sets of the same recipe; none without any.

    Best is the least mean log ratio of the test log-loss to the best evaluation's, over the runs of the others; their
    losses between evaluations are interpolated in the logarithm of the step.
    """
    own = list(cells)
    out = {}
    for recorded in own:
        cell = recorded.cell
        others = [r for r in own if r.cell.recipe == cell.recipe and r.cell.task != cell.task]
        if not others:
            continue
        steps = np.unique(np.concatenate([r.steps for r in others]))
        ratios = [np.log(loss_at(r.steps, r.test_loss, steps) / r.test_loss.min()) for r in others]
        best = int(steps[int(np.argmin(np.mean(ratios, axis=0)))])
        out[cell] = Answer(float(min(best, recorded.steps[-1])))
    return out


def loss_at(steps: np.ndarray, values: np.ndarray, wanted: np.ndarray | float) -> np.ndarray:
    """Return values between evaluations, linear in log(1 + step); beyond the last evaluation the last value."""
    return np.interp(np.log1p(wanted), np.log1p(steps), values)


def answers(
    cells: Iterable[Recorded], settings: Settings, others: Iterable[Mapping] = ()
) -> dict[str, dict[Cell, Answer]]:
    """Return the answer of each way for each cell that it has one for; ``others``: rows of ``study_answers``."""
    own = list(cells)
    out: dict[str, dict[Cell, Answer]] = {}
    for name, one in ways(settings.design).items():
        found = {recorded.cell: one.choose(recorded, settings) for recorded in own}
        out[name] = {cell: answer for cell, answer in found.items() if answer is not None}
    out["constant"] = constants(own)
    for row in others:
        cell = Cell(row["task"], row["seed"], row["n"], row["recipe"])
        out.setdefault(row["way"], {})[cell] = Answer(float(row["step"]))
    return out
