"""The stopping rules that leave examples out: ``loo``, ``loo_shortcut`` and ``bayes``, on both losses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from stopwise.linearized.objectives import Objective
from stopwise.stopping.bayes import expected_loss, task_posterior
from stopwise.stopping.closed_form import minimum
from stopwise.stopping.cross_entropy import (
    Replay,
    among_words,
    averaged_probabilities,
    expected_log_loss,
    folded,
    label_probabilities,
    left_out_outputs,
    loo_log_loss,
    words_only,
)
from stopwise.stopping.known import Choice, Known, computes
from stopwise.stopping.leave_one_out import loo_curve, loo_shortcut_curve


@computes("loo")
def loo(known: Known) -> Choice:
    """Stop at the least error of examples left out of the fit; where training is replayed, at their least log-loss."""
    run, times = known.run, known.path.times
    if _too_few(known):
        return _no_answer(known, "too_few_examples")
    if run.replay is not None:
        objective, _, outputs = _replayed(known, run.replay)
        return replace(minimum(known.path, loo_log_loss(objective, outputs)), risk=np.nan)
    return minimum(known.path, loo_curve(run.spec, run.residual, run.filter, times, run.folds, run.seed))


@computes("loo_shortcut")
def loo_shortcut(known: Known) -> Choice:
    """Stop at the least error of examples left out, by the shortcut that is exact for ridge regression only."""
    if _too_few(known):
        return _no_answer(known, "too_few_examples")
    return minimum(known.path, loo_shortcut_curve(known.spec, known.run.residual, known.filter, known.path.times))


@computes("bayes")
def bayes(known: Known) -> Choice:
    """Stop at the least expected loss; what it believes of the noise and the radius goes with the choice."""
    run, spec = known.run, known.spec
    if _too_few(known):
        return _no_answer(known, "too_few_examples")
    if run.replay is not None:
        return _bayes_log_loss(known, run.replay)
    y = spec.rows(np.asarray(run.targets))
    start = y - spec.rows(run.residual)
    posterior = task_posterior(spec, y, start)
    if posterior is None:
        return _no_answer(known, "no_answer", "not_identifiable")
    curve = expected_loss(spec, posterior, start, run.filter, known.path.times, run.folds, run.seed)
    choice, sigma2 = minimum(known.path, curve), posterior.sigma2
    risk = float(np.nanmin(choice.curve)) - sigma2
    return replace(choice, sigma=sigma2**0.5, rkhs_norm=posterior.tau2**0.5, risk=risk)


def _bayes_log_loss(known: Known, replay: Replay) -> Choice:
    """Stop at the least log-loss of examples left out, averaged over how probable each class is."""
    objective, start, outputs = _replayed(known, replay)
    words, fold = among_words(objective)
    spec, whole = folded(known.spec, fold), objective
    if words is not objective:
        start = known.spec.rows(start).reshape(len(objective.labels), -1) @ fold.T
    posterior = task_posterior(spec, words.targets, start)
    probable = label_probabilities(spec, words, start)
    if posterior is None or probable is None:
        return _no_answer(known, "no_answer", "not_identifiable")
    probabilities, kept = probable
    outputs, words, whole = outputs[:, kept], words.rows(kept), whole.rows(kept)
    seen = outputs if whole.outputs == words.outputs else outputs @ fold.T
    probabilities = averaged_probabilities(words, seen, known.path.times, probabilities)
    choice = minimum(known.path, expected_log_loss(whole, outputs, words_only(probabilities, whole)))
    return replace(choice, sigma=posterior.sigma2**0.5, rkhs_norm=posterior.tau2**0.5, risk=np.nan)


def _replayed(known: Known, replay: Replay) -> tuple[Objective, np.ndarray, np.ndarray]:
    """Return the objective, the outputs f0 at the start, and each example's outputs along the path without it."""
    run, objective = known.run, replay.objective
    start = objective.targets - run.spec.rows(run.residual).reshape(objective.targets.shape)
    outputs = left_out_outputs(run.spec, start, replay, run.filter, known.path.times, run.folds, run.seed)
    return objective, start, outputs


def _too_few(known: Known) -> bool:
    spec = known.spec
    return spec.examples < 2 or (spec.intercept and min(n for n, _ in spec.layout) < 2)


def _no_answer(known: Known, *flags: str) -> Choice:
    return Choice(None, np.full(known.path.times.size, np.nan), flags)
