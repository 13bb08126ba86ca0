"""The ways of choosing when to stop, each a function of a recorded cell, and what it delivers (numpy, no torch).

A new way is a function under ``way``; one that needs more than a cell holds (training again, other data sets) hands in
its answers as a table of kind ``study_answers``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from stopwise.stopping.anchored import COHERENT
from stopwise.stopping.fitted import FITTED, guessing_loss
from stopwise.stopping.folds import patient_step
from stopwise.stopping.horizon import horizon
from stopwise.stopping.scheduled import Linearised, Schedule, scheduled_stop
from stopwise.studies.encoder_cells import Recorded
from stopwise.studies.encoder_design import Design
from stopwise.studies.encoder_rows import ALL, FOLDS, HOLDOUT, LEFT_OUT, PARTS, Cell, adamw_schedule

MORE = "more_labels"


@dataclass(frozen=True)
class Answer:
    """The step that a way names, and whose outputs it delivers: those of the run on all examples, or of hold-out's.

    ``trainings``: its cost, in trainings of the longest length on all n examples, where it depends on the answer.
    """

    step: float
    part: str = ALL
    trainings: float | None = None


@dataclass(frozen=True)
class Settings:
    """What ways of choosing know of the study beside the cell: its design, the optimizer, patience."""

    design: Design
    weight_decay: float
    patience: int


@dataclass(frozen=True)
class Way:
    """One way of choosing. ``words`` as tables have it; ``choose``: the answer, None where it has none.

    Its cost is ``final`` trainings of the longest length and ``searched`` searches over all evaluations, each on all
    n examples.
    """

    name: str
    words: str
    choose: Callable[[Recorded, Settings], Answer | None]
    final: float = 1
    searched: float = 0

    def trainings(self, design: Design, cell: Cell) -> float:
        """Return its cost on a cell, in trainings of the longest length on all n examples."""
        return self.final + self.searched * design.searched(cell.n, cell.recipe)


WAYS: dict[str, Way] = {}


def way(name: str, words: str, final: float = 1, searched: float = 0) -> Callable:
    """Make a function of a recorded cell the way of this name; its cost as ``Way`` has it."""

    def register(function: Callable[[Recorded, Settings], Answer | None]) -> Callable:
        WAYS[name] = Way(name, words, function, final, searched)
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

    return Way(f"epochs_{k}", f"{k} epoch{'s' if k > 1 else ''}", choose)


@way("all_steps", "all steps")
def _all_steps(recorded: Recorded, settings: Settings) -> Answer:
    return Answer(float(recorded.steps[-1]))


@way("holdout", "hold-out: a quarter of the labels", final=0, searched=0.75)
def _holdout(recorded: Recorded, settings: Settings) -> Answer | None:
    step = _holdout_step(recorded, settings)
    return None if step is None else Answer(step, HOLDOUT)


@way("holdout_refit", "hold-out, then trained on all", searched=0.75)
def _holdout_refit(recorded: Recorded, settings: Settings) -> Answer | None:
    step = _holdout_step(recorded, settings)
    return None if step is None else Answer(step)


@way("folds_8", "8 folds of real training", searched=7)
def _folds_8(recorded: Recorded, settings: Settings) -> Answer | None:
    losses = recorded.left_out(FOLDS)
    return None if losses is None else Answer(float(recorded.steps[int(np.argmin(losses))]))


@way("fitted", "the shortest length that fits the training examples")
def _fitted(recorded: Recorded, settings: Settings) -> Answer | None:
    """It trains the lengths from the shortest on, and delivers the first that fits; all of them where none does."""
    if (ALL, 0, "train") not in recorded.outputs:
        return None
    guessing = guessing_loss(recorded.labels.by_split["train"][: recorded.cell.n])
    fits = np.flatnonzero(recorded.curve(ALL, 0, "train") <= FITTED * guessing)
    chosen, steps = int(fits[0]) if len(fits) else len(recorded.steps) - 1, recorded.steps
    # Under a decaying rate every length up to it is a training of its own.
    decays = settings.design.recipes[recorded.cell.recipe].decays
    cost = (steps[: chosen + 1].sum() if decays else steps[chosen]) / steps[-1]
    return Answer(float(steps[chosen]), trainings=float(cost))


@way(MORE, "32 labels more, to stop on", final=0, searched=1)
def _more_labels(recorded: Recorded, settings: Settings) -> Answer | None:
    if (ALL, 0, "validation") not in recorded.outputs:
        return None
    return Answer(patient_step(recorded.steps, recorded.curve(ALL, 0, "validation"), settings.patience))


@way("loo", "`loo`, read off the kernel at the start")
def _loo(recorded: Recorded, settings: Settings) -> Answer | None:
    return _kernel_answer(recorded, settings, "loo")


@way("bayes", "`bayes`, read off the kernel at the start")
def _bayes(recorded: Recorded, settings: Settings) -> Answer | None:
    return _kernel_answer(recorded, settings, "bayes")


@way("anchored", "left-out loss of the network, read along every training", final=0, searched=1)
def _anchored(recorded: Recorded, settings: Settings) -> Answer | None:
    """It trains again (``study_anchored``), and its answers are handed in."""
    return None


@way("best", "the best evaluation (known afterwards only)")
def _best(recorded: Recorded, settings: Settings) -> Answer:
    return Answer(float(recorded.steps[recorded.best]))


def _holdout_step(recorded: Recorded, settings: Settings) -> int | None:
    if (HOLDOUT, 0, LEFT_OUT) not in recorded.outputs:
        return None
    losses = recorded.curve(HOLDOUT, PARTS[HOLDOUT][1][0], LEFT_OUT)
    return patient_step(recorded.steps, losses, settings.patience)


def _kernel_answer(recorded: Recorded, settings: Settings, rule: str) -> Answer | None:
    """Return what a rule reads off the kernel: under a decaying rate one of the lengths, else any step."""
    cell, design = recorded.cell, settings.design
    kernel = recorded.kernels.get(design.start(cell))
    if kernel is None or not recorded.rates:
        return None
    net = Linearised(kernel.matrix, kernel.start, kernel.plain, kernel.weights_move, left_start=kernel.left_start)
    objective = recorded.labels.objective("train", cell.n)
    schedules = [_schedule(recorded, settings, rates) for rates in recorded.rates.values()]
    if design.recipes[cell.recipe].decays:
        return Answer(float(horizon(net, objective, schedules, rule, seed=cell.seed).t))
    found = scheduled_stop(net, objective, schedules[-1], rule)
    return None if found.t is None else Answer(found.t)


def _schedule(recorded: Recorded, settings: Settings, rates: np.ndarray) -> Schedule:
    """Return the schedule of a training with these learning rates, on the first of the recorded batches."""
    cell = recorded.cell
    clip_norm = settings.design.recipes[cell.recipe].clip_norm
    return adamw_schedule(rates, recorded.batches, cell.n, settings.weight_decay, clip_norm)


def anchored_step(rows: Iterable[Mapping]) -> int:
    """Return the length with the least left-out loss, of rows of ``study_left_out`` that are coherent enough."""
    trusted = [row for row in rows if row["coherence"] >= COHERENT]
    return min(trusted, key=lambda row: row["log_loss"])["length"]


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
