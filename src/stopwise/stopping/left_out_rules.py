"""The stopping rules that leave examples out: ``loo``, ``loo_shortcut`` and ``bayes``, on both losses."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from stopwise.stopping.bayes import ExpectedLoss, Posterior, by_steps, expected_loss, task_posterior
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
from stopwise.stopping.leave_one_out import LeftOutErrors, leave_out_groups, loo_shortcut_curve
from stopwise.stopping.refits import watch


@computes("loo")
def loo(known: Known) -> Choice:
    """Stop at the least error of examples left out of the fit; where training is replayed, at their least log-loss."""
    if _too_few(known):
        return _no_answer(known, "too_few_examples")
    if known.run.replay is not None:
        outputs = _shared(known).outputs
        return replace(minimum(known.path, loo_log_loss(known.run.replay.objective, outputs)), risk=np.nan)
    return minimum(known.path, _shared(known).curve("loo"))


@computes("loo_shortcut")
def loo_shortcut(known: Known) -> Choice:
    """Stop at the least error of examples left out, by the shortcut that is exact for ridge regression only."""
    if _too_few(known):
        return _no_answer(known, "too_few_examples")
    return minimum(known.path, loo_shortcut_curve(known.spec, known.run.residual, known.filter, known.path.times))


@computes("bayes")
def bayes(known: Known) -> Choice:
    """Stop at the least expected loss; what it believes of the noise and the radius goes with the choice."""
    if _too_few(known):
        return _no_answer(known, "too_few_examples")
    if known.run.replay is not None:
        return _bayes_log_loss(known, known.run.replay)
    shared = _shared(known)
    if shared.posterior is None:
        return _no_answer(known, "no_answer", "not_identifiable")
    posterior = shared.posterior
    choice, sigma2 = minimum(known.path, shared.curve("bayes")), posterior.sigma2
    risk = float(np.nanmin(choice.curve)) - sigma2
    return replace(choice, sigma=sigma2**0.5, rkhs_norm=posterior.tau2**0.5, risk=risk)


def _bayes_log_loss(known: Known, replay: Replay) -> Choice:
    """Stop at the least log-loss of examples left out, averaged over how probable each class is."""
    objective, start, outputs = replay.objective, _shared(known).start, _shared(known).outputs
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


@dataclass(frozen=True, eq=False)
class _LeftOut:
    """What the rules of one run that leave examples out have in common; each part is computed when first asked for."""

    known: Known
    curves: dict[str, np.ndarray] = field(default_factory=dict)

    @cached_property
    def start(self) -> np.ndarray:
        """The outputs f0, [m], and where training is replayed [n, columns]."""
        run, spec = self.known.run, self.known.spec
        if run.replay is None:
            return spec.rows(np.asarray(run.targets)) - spec.rows(run.residual)
        targets = run.replay.objective.targets
        return targets - spec.rows(run.residual).reshape(targets.shape)

    @cached_property
    def outputs(self) -> np.ndarray:
        """Each example's outputs along the replayed path without it; float64 [times, n, columns]."""
        run, times = self.known.run, self.known.path.times
        assert run.replay is not None
        return left_out_outputs(run.spec, self.start, run.replay, run.filter, times, run.folds, run.seed)

    @cached_property
    def posterior(self) -> Posterior | None:
        """What the labels say of the task, under squared loss."""
        return task_posterior(self.known.spec, self.known.spec.rows(np.asarray(self.known.run.targets)), self.start)

    def curve(self, rule: str) -> np.ndarray:
        """Return the curve of a rule under squared loss; all rules asked of the run see each refit as it goes by."""
        if rule not in self.curves:
            run, times = self.known.run, self.known.path.times
            groups = leave_out_groups(run.spec.examples, run.folds, run.seed)
            stepped = by_steps(run.filter, times, groups)
            asked = {rule, *self.known.rules} - ({"bayes"} if stepped else set())
            seen: dict[str, LeftOutErrors | ExpectedLoss] = {}
            if "loo" in asked:
                seen["loo"] = LeftOutErrors(run.spec, run.residual, times)
            if "bayes" in asked and self.posterior is not None:
                seen["bayes"] = ExpectedLoss(run.spec, self.posterior, self.start, times)
            if rule in seen:
                watch(run.spec, groups, run.filter, times, list(seen.values()))
                self.curves.update({name: one.curve() for name, one in seen.items()})
            else:
                assert self.posterior is not None
                options = run.filter, times, run.folds, run.seed
                self.curves[rule] = expected_loss(run.spec, self.posterior, self.start, *options)
        return self.curves[rule]


def _shared(known: Known) -> _LeftOut:
    return known.shared.setdefault("left_out", _LeftOut(known))


def _too_few(known: Known) -> bool:
    spec = known.spec
    return spec.examples < 2 or (spec.intercept and min(n for n, _ in spec.layout) < 2)


def _no_answer(known: Known, *flags: str) -> Choice:
    return Choice(None, np.full(known.path.times.size, np.nan), flags)
