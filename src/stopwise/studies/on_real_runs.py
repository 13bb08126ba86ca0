"""The stopping rules judged on real training beside what was tried to make up for its departure from the path.

Real training leaves the path of its first kernel, so that a rule that reads the path can be right there and wrong here.
``path_oracle``, which knows the path's test loss, bounds what any of them can reach.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from stopwise.artifacts.gram import AssembledKernel
from stopwise.artifacts.sample import Sample
from stopwise.linearized.filters import Filter
from stopwise.linearized.objectives import Objective
from stopwise.linearized.paths import linearized_path, squared_norm_path
from stopwise.linearized.spectrum import Spectrum
from stopwise.stopping.bayes import expected_loss, task_posterior
from stopwise.stopping.judging import HIT, evaluate_rules, regular
from stopwise.stopping.scores import rule_lines
from stopwise.stopping.stops import time_grid
from stopwise.studies.on_the_path import EXACT_ROWS
from stopwise.training.prediction import step_eigenvalue
from stopwise.training.settings import FinetuneSettings

# Draws of ``hits_by_halves``.
HALVES = 200
# How much further than the run ``bayes_far`` looks.
FAR = 6
LATE = {"bayes_late_1": 0.01, "bayes_late_2": 0.02, "bayes_late_5": 0.05}
# Weight of |theta_t - theta_0|, which is not free of the model's scale.
DRIFT = {"bayes_drift_03": 0.3, "bayes_drift_1": 1.0}
TITLES = {
    "bayes_far": f"bayes, looking {FAR} times as far",
    "bayes_late_1": "bayes, latest step within 1 % of the least",
    "bayes_late_2": "bayes, latest step within 2 %",
    "bayes_late_5": "bayes, latest step within 5 %",
    "bayes_drift_03": "bayes, times exp(−0.3 ‖θ_t − θ_0‖)",
    "bayes_drift_1": "bayes, times exp(−‖θ_t − θ_0‖)",
    "bayes_again": "bayes, read again at the first evaluation",
    "bayes_later": "the later of bayes and bayes read again",
    "bayes_level": "bayes, where training loss reaches the path's at its step",
    "path_oracle": "where the path's own test loss is lowest",
    "all_steps": "all steps of the run",
    "holdout_equal": "hold-out at equal labels, trained on n − validation",
}


def run_rows(
    kernel: AssembledKernel,
    targets: np.ndarray,
    settings: FinetuneSettings,
    trajectory: list[dict[str, Any]],
    predicted: Iterable[dict[str, Any]],
    rules: Iterable[str],
    seed: int = 0,
    again: tuple[int, np.ndarray] | None = None,
) -> list[dict[str, Any]]:
    """Return rows of ``evaluation`` for one run: the configured rules as predicted, and every variant of ``TITLES``.

    ``kernel``: of the run's n training examples, ``targets`` y [n, columns]; ``trajectory``: the run's evaluations;
    ``predicted``: its rows of ``stopping``; ``again``: the first evaluation after the start and the network's training
    outputs at it, [n, columns]. A variant of a rule without an answer has no row; where `bayes` replays cross-entropy,
    none has.
    """
    spec = kernel.spectrum(settings.intercept)
    filter = settings.filter(step_eigenvalue(spec, settings.batch_size))
    squared = not settings.replays_rules  # the variants are those of `bayes` on the filter's path
    found = variants(spec, targets, kernel.outputs, filter, settings.steps, seed) if squared else {}
    if settings.formula == "adam":  # whose kernel does not know the distance
        found = {name: t for name, t in found.items() if name not in DRIFT}
    predicted = list(predicted)
    first = next((row["t"] for row in predicted if row["rule"] == "bayes"), None)
    if again is not None and squared:
        found |= read_again(spec, targets, *again, filter, settings.steps, first, seed)
    interval = settings.evaluation_interval(trajectory[0]["n"])
    seen = regular([row["step"] for row in trajectory], interval)
    path = [row["linearised_test_loss"] for row in trajectory]
    if all(loss is not None for loss in path):
        found["path_oracle"] = trajectory[int(np.argmin(np.where(seen, path, np.inf)))]["step"]
        if first is not None and settings.follows_theory:
            found["bayes_level"] = level_step(spec, targets - kernel.outputs, filter, first, trajectory)
    found["all_steps"] = trajectory[-1]["step"]
    answers = [{"rule": name, "t": min(t, trajectory[-1]["step"]), "flags": []} for name, t in found.items()]
    order = [*rules, *found]
    return evaluate_rules(trajectory, [*predicted, *answers], order, settings.patience, settings.min_delta, interval)


def variants(
    spec: Spectrum, targets: np.ndarray, start: np.ndarray, filter: Filter, steps: int, seed: int = 0
) -> dict[str, int]:
    """Return the step that each variant of ``bayes`` names for a run of ``steps`` steps; none without a posterior."""
    posterior = task_posterior(spec, targets, start)
    if posterior is None:
        return {}
    times = np.unique(np.concatenate([time_grid(steps), time_grid(FAR * steps)]))
    folds = None if spec.m <= EXACT_ROWS else min(10, spec.examples)
    curve = expected_loss(spec, posterior, start, filter, times, folds, seed)
    inside = times <= steps
    out = {"bayes_far": int(times[np.argmin(curve)])}
    near, own = times[inside], curve[inside]
    out |= {name: int(near[own <= (1 + slack) * own.min()].max()) for name, slack in LATE.items()}
    distance = np.sqrt(np.maximum(squared_norm_path(spec, targets - start, filter, near), 0.0))
    return out | {name: int(near[np.argmin(np.log(own) - weight * distance)]) for name, weight in DRIFT.items()}


def read_again(
    spec: Spectrum,
    targets: np.ndarray,
    step: int,
    outputs: np.ndarray,
    filter: Filter,
    steps: int,
    first: int | None,
    seed: int = 0,
) -> dict[str, int]:
    """Return ``bayes_again``, what ``bayes`` says at a step of the run, and the later of that and its ``first`` answer.

    The network's own outputs at ``step`` take the place of f0, the first kernel stays, and training goes on from rest:
    the momentum gathered so far is left out. Costs no pass: training has these outputs anyway.
    """
    posterior = task_posterior(spec, targets, outputs)
    if posterior is None or step >= steps:
        return {}
    left = time_grid(steps - step)
    folds = None if spec.m <= EXACT_ROWS else min(10, spec.examples)
    t = step + int(left[np.argmin(expected_loss(spec, posterior, outputs, filter, left, folds, seed))])
    return {"bayes_again": t, **({} if first is None else {"bayes_later": max(t, first)})}


def level_step(
    spec: Spectrum, residual: np.ndarray, filter: Filter, t: int, trajectory: Iterable[Mapping[str, Any]]
) -> int:
    """Return the first evaluation whose training loss is at most the path's at step t; the last where none is.

    ``residual`` y - f0 of the training examples. As if a rule named how well to fit, and not how long to train.
    """
    gained = linearized_path(spec, residual, spec.matrix, filter, np.array([t]))[0]
    level = float(np.mean((spec.rows(residual) - gained) ** 2))
    rows = list(trajectory)
    return next((row["step"] for row in rows if row["train_loss"] <= level), rows[-1]["step"])


def equal_labels(rows: Iterable[Mapping[str, Any]], validation: int) -> list[dict[str, Any]]:
    """Return rows ``holdout_equal``: at n labels in all, hold-out stopping of the run on n − ``validation`` examples.

    ``rows``: evaluations of one task and seed at several n. It is charged the loss of the model so trained, against the
    oracle of all n; sizes without such a run have no row.
    """
    held = {row["n"]: row for row in rows if row["rule"] == "holdout"}
    out = []
    for oracle in (row for row in rows if row["rule"] == "oracle"):
        other = held.get(oracle["n"] - validation)
        if other is None:
            continue
        regret = other["loss"] / oracle["loss_oracle"] - 1
        ratio = other["t"] / oracle["t_oracle"] if oracle["t_oracle"] > 0 else None
        own = {"n": oracle["n"], "rule": "holdout_equal", "t_oracle": oracle["t_oracle"], "ratio": ratio}
        own |= {"loss_oracle": oracle["loss_oracle"], "relative_regret": regret, "hit": bool(regret <= HIT)}
        out.append({**other, **own})
    return out


def equal_labels_text(rows: Iterable[Mapping[str, Any]], rule: str = "bayes") -> str:
    """Return one sentence that compares a rule at n labels with hold-out stopping at n labels in all, run by run.

    ``rows``: of several tasks and seeds, with those of ``equal_labels``; empty without any.
    """
    losses: dict[tuple, dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        losses.setdefault((row["task"], row["seed"], row["n"]), {})[row["rule"]] = row
    pairs = [(own[rule], own["holdout_equal"]) for own in losses.values() if {rule, "holdout_equal"} <= own.keys()]
    if not pairs:
        return ""
    better = sum(own["loss"] < other["loss"] for own, other in pairs)
    hits, others = (sum(pair[i]["hit"] for pair in pairs) for i in (0, 1))
    total = len(pairs)
    return (
        f"At equal labels, in the {total} runs that have both: `{rule}` hits {hits / total:.0%}, hold-out stopping "
        f"{others / total:.0%}; `{rule}` has the lower test loss in {better / total:.0%}."
    )


def example_losses(objective: Objective, outputs: Iterable[np.ndarray]) -> np.ndarray:
    """Return the loss of every example at every evaluation, [evaluations, n], from outputs f_t [n, columns] each."""
    each = [objective.rows(np.array([i])) for i in range(len(objective.labels))]
    return np.array([[one.loss(f[i : i + 1]) for i, one in enumerate(each)] for f in outputs])


def hits_by_halves(
    losses: np.ndarray,
    steps: Sequence[int],
    stops: Mapping[str, int],
    seed: int = 0,
    draws: int = HALVES,
    interval: int = 1,
) -> dict[str, float]:
    """Return how often each rule hits when a random half of the test examples judges it: its share of the draws.

    ``losses``: of ``example_losses`` at ``steps``; ``stops``: the rules' steps. ``half_test`` is the step of the least
    loss on the other half: what a rule reaches that has as many fresh labels to choose with as judge it. It and the
    yardstick are evaluations that every way sees, ``interval`` steps apart. Empty with fewer than two examples.
    """
    if losses.shape[1] < 2:
        return {}
    rng, n = np.random.default_rng(seed), losses.shape[1]
    hits = dict.fromkeys(["half_test", *stops], 0)
    open_to_all = np.flatnonzero(regular(steps, interval))
    for _ in range(draws):
        order = rng.permutation(n)
        seen, judges = (losses[:, half].mean(axis=1) for half in (order[: n // 2], order[n // 2 :]))
        for rule, t in {"half_test": steps[open_to_all[np.argmin(seen[open_to_all])]], **stops}.items():
            hits[rule] += bool(np.interp(t, steps, judges) <= (1 + HIT) * judges[open_to_all].min())
    return {rule: count / draws for rule, count in hits.items()}


def run_halves(
    rows: Iterable[Mapping[str, Any]],
    settings: FinetuneSettings,
    sample: Sample,
    start: np.ndarray,
    tests: Mapping[int, np.ndarray],
    seed: int = 0,
) -> dict[str, float]:
    """Return ``hits_by_halves`` of one run, for `bayes` and hold-out stopping among its ``rows`` of ``evaluation``.

    ``start``: the training outputs f0 [n, columns]; ``tests``: the test outputs by step; both as they are kept, without
    the intercept that training and every evaluation add.
    """
    coding = sample.class_count, settings.outputs, settings.target_scale, np.zeros(1)
    judges = Objective(settings.objective, sample.labels("test"), *coding)
    if settings.intercept == "fitted" and settings.objective == "squared":
        trained = Objective(settings.objective, sample.labels("train", len(start)), *coding)
        judges = judges.with_intercept(trained.fitted_intercept(start))
    stops = {row["rule"]: row["t"] for row in rows if row["rule"] in ("bayes", "holdout")}
    interval = settings.evaluation_interval(len(start))
    return hits_by_halves(example_losses(judges, tests.values()), list(tests), stops, seed, interval=interval)


def runs_text(
    table: list[dict[str, Any]],
    rows: list[dict[str, Any]],
    halves: Iterable[Mapping[str, float]],
    examples: int,
) -> str:
    """Return the page of the judged runs: ``table`` of ``rule_table`` of ``rows``, and ``halves`` of each run."""
    words = [
        "Real training from the pretrained start. In brackets: 95 % intervals over tasks and seeds. Hold-out",
        "stopping has the validation examples beside the training examples, but for the row of equal labels.",
    ]
    sentences = [equal_labels_text(rows), halves_text(halves, examples)]
    return "\n".join([*words, "", *rule_lines(table, TITLES), "", *(f"{one}\n" for one in sentences if one)])


def halves_text(
    shares: Iterable[Mapping[str, float]], examples: int, rules: Sequence[str] = ("bayes", "holdout")
) -> str:
    """Return one sentence on ``hits_by_halves`` of several runs with ``examples`` test examples; empty without any."""
    shares = [own for own in shares if own]
    if not shares:
        return ""
    rates = {rule: [own[rule] for own in shares if rule in own] for rule in ("half_test", *rules)}
    others = ", ".join(f"`{rule}` {np.mean(rates[rule]):.0%}" for rule in rules if rates[rule])
    return (
        f"How much of a miss is the noise of {examples} test examples: judged by a random half of them ({HALVES} draws "
        f"a run), the step with the least loss on the other half hits {np.mean(rates['half_test']):.0%}"
        f"{', ' + others if others else ''}."
    )
