"""Every way of choosing judged on every recorded cell: loss, accuracy, calibration, regret, labels, cost (numpy)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import log_softmax

from stopwise.linearized.coding import coding_matrix
from stopwise.stopping.judging import HIT
from stopwise.studies.encoder_cells import Recorded
from stopwise.studies.encoder_design import Design
from stopwise.studies.encoder_rows import Cell
from stopwise.studies.encoder_ways import MORE, Answer, Settings, Way, answers, loss_at, ways

CEILING_DRAWS = 200
BINS = 15
OTHER_TRAININGS = 1.0


def judged_rows(
    cells: Sequence[Recorded], settings: Settings, others: Iterable[Mapping[str, Any]] = ()
) -> list[dict[str, Any]]:
    """Return rows of ``study_judged``: one for each cell and way that has an answer there.

    ``loss``, ``accuracy``, ``calibration``: of what the way delivers on the cell's test rows; ``regret``: loss over
    that of the best evaluation of the run on all n, less 1; ``labels``: spent in all; ``trainings``: of the longest
    length on n examples.
    """
    found, design = answers(cells, settings, others), settings.design
    known, recorded = ways(design), {one.cell: one for one in cells}
    return [
        _row(recorded[cell], name, answer, _trainings(known.get(name), answer, design, cell))
        for name, own in found.items()
        for cell, answer in own.items()
        if cell in recorded and (answer.part, 0, "test") in recorded[cell].outputs
    ]


def _trainings(way: Way | None, answer: Answer, design: Design, cell: Cell) -> float:
    """Return what an answer cost, in trainings of the longest length on all n examples."""
    if answer.trainings is not None:
        return answer.trainings
    return OTHER_TRAININGS if way is None else way.trainings(design, cell)


def _row(recorded: Recorded, name: str, answer: Answer, trainings: float) -> dict[str, Any]:
    key = answer.part, 0, "test"
    steps = recorded.kept[key]
    measured = _measures(recorded, key)
    at = {measure: float(loss_at(steps, values, answer.step)) for measure, values in measured.items()}
    best = float(recorded.test_loss.min())
    extra = len(recorded.labels.by_split["validation"]) if name == MORE else 0
    n = recorded.cell.n
    return {
        **recorded.cell._asdict(),
        "way": name,
        "step": float(answer.step),
        **at,
        "regret": at["loss"] / best - 1,
        "hit": bool(at["loss"] <= (1 + HIT) * best),
        "labels": n + extra,
        "trainings": trainings,
    }


def _measures(recorded: Recorded, key: tuple[str, int, str]) -> dict[str, np.ndarray]:
    """Return the weighted test log-loss, accuracy and calibration error at every evaluation of one training."""
    f = recorded.outputs[key].astype(np.float64)
    labels, weights = recorded.labels.by_split["test"], recorded.labels.test_weights
    logs = log_softmax(f @ coding_matrix(recorded.labels.classes), axis=-1)
    right = logs.argmax(axis=-1) == labels
    return {
        "loss": -logs[:, np.arange(len(labels)), labels] @ weights / len(labels),
        "accuracy": right @ weights / len(labels),
        "calibration": np.array(
            [calibration_error(np.exp(p).max(axis=1), r, weights) for p, r in zip(logs, right, strict=True)]
        ),
    }


def calibration_error(
    confidence: np.ndarray, right: np.ndarray, weights: np.ndarray | None = None, bins: int = BINS
) -> float:
    """Return the mean gap between confidence and accuracy over bins of equal width, weighted by their examples."""
    weights = np.ones(len(confidence)) if weights is None else weights
    place, gap = np.minimum((confidence * bins).astype(int), bins - 1), weights * (confidence - right)
    return float(np.abs(np.bincount(place, weights=gap)).sum() / weights.sum())


def cell_rows(cells: Iterable[Recorded], seed: int = 0) -> list[dict[str, Any]]:
    """Return rows of ``study_cells``: what limits every way on a cell, and how much there was to choose.

    ``constant_loss``: of the shares of classes among the training labels; ``ceiling``: how often the best evaluation is
    within 5 % of the best on test rows drawn anew; ``informative``: the best is 5 % below the constant;
    ``last_misses``: the last step is no hit; ``censored``: the best evaluation is the last.
    """
    out = []
    for recorded in cells:
        labels, n = recorded.labels, recorded.cell.n
        shares = np.bincount(labels.by_split["train"][:n], minlength=labels.classes) / n
        # A class without a training label would cost infinitely: it counts as half an example.
        shares = np.maximum(shares, 0.5 / n) / np.maximum(shares, 0.5 / n).sum()
        constant = float(-np.log(shares[labels.by_split["test"]]) @ labels.test_weights / len(labels.test_weights))
        losses = recorded.test_loss
        out.append(
            {
                **recorded.cell._asdict(),
                "classes": labels.classes,
                "test_rows": len(labels.by_split["test"]),
                "evaluations": len(recorded.steps),
                "best_step": int(recorded.steps[recorded.best]),
                "best_loss": float(losses.min()),
                "constant_loss": constant,
                "ceiling": ceiling(recorded.test, labels.test_weights, seed),
                "informative": bool(losses.min() <= 0.95 * constant),
                "last_misses": bool(losses[-1] > (1 + HIT) * losses.min()),
                "censored": recorded.best == len(losses) - 1,
            }
        )
    return out


def ceiling(losses: np.ndarray, weights: np.ndarray, seed: int = 0, draws: int = CEILING_DRAWS) -> float:
    """Return how often the evaluation with the least loss is a hit when the test rows are drawn anew.

    ``losses``: of each test row at every evaluation, [evaluations, rows]; ``weights``: of the rows.
    """
    rng, (_, rows) = np.random.default_rng(seed), losses.shape
    counts = rng.multinomial(rows, np.full(rows, 1 / rows), size=draws) * weights
    drawn = counts @ losses.T / counts.sum(axis=1, keepdims=True)
    return float(np.mean(drawn[:, int((losses @ weights).argmin())] <= (1 + HIT) * drawn.min(axis=1)))


def worth_rows(judged: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return for each row of ``judged`` with a curve to read it off how many labels hold-out with refit would need.

    ``factor``: those labels over the labels that the way spent, read off hold-out's own curve of log-loss over n (made
    to fall, linear in both logarithms) of the same data set, seed and recipe; ``censored`` below or above where the way
    does better or worse than that whole curve: the factor is then that of the curve's end. Needs two sizes.
    """
    rows = list(judged)
    curves: dict[tuple, dict[int, float]] = {}
    for row in rows:
        if row["way"] == "holdout_refit":
            curves.setdefault((row["task"], row["seed"], row["recipe"]), {})[row["n"]] = row["loss"]
    out = []
    for row in rows:
        curve = curves.get((row["task"], row["seed"], row["recipe"]), {})
        if len(curve) < 2 or row["way"] == "best":
            continue
        sizes = np.array(sorted(curve))
        falling = np.minimum.accumulate(np.log([curve[n] for n in sizes]))
        needed, beyond = _needed(np.log(row["loss"]), np.log(sizes), falling)
        who = {key: row[key] for key in ("task", "seed", "n", "recipe", "way")}
        out.append({**who, "factor": float(np.exp(needed) / row["labels"]), "censored": beyond})
    return out


def _needed(loss: float, sizes: np.ndarray, falling: np.ndarray) -> tuple[float, str]:
    """Return the log size at which a falling curve of log-losses reaches a loss, and where it does not."""
    if loss < falling[-1]:
        return float(sizes[-1]), "above"
    if loss > falling[0]:
        return float(sizes[0]), "below"
    return float(np.interp(-loss, -falling, sizes)), ""
