"""Advice for training under a schedule: the answer in a few plain sentences (pure text: no torch, no files)."""

from __future__ import annotations

import math

from stopwise.advice.baselines import Baseline
from stopwise.advice.text import between, number, percent, several
from stopwise.advice.under_schedule import TrainingAdvice
from stopwise.training.folds import FoldCurves

Interval = tuple[float, float, float]

WORDS = {"linear": "linear decay", "cosine": "cosine decay", "constant": "a constant rate"}
LEVELS = {
    "prompt": "the prompt alone",
    "with_offset": "the prompt with a fitted offset and temperature",
    "head": "the head alone, fitted to the features as they are",
    "shares": "always the most frequent label",
}
GUESS = "guessing by the labels' shares"
TRAINED = {"attention": "the attention layers alone", "linear": "the linear layers alone", "all": "all weights"}
UNTRUSTED = (
    "Not to be trusted at this learning rate: the steps are {times} the largest that the kernel describes. The network"
    " leaves the predicted path, mostly for the better: it learns more, and its best stop is not predicted. Real folds"
    " tell (`--verify 4`); without `--learning-rate` the steps are small and predictable, and may cost accuracy."
)
RANDOM = (
    "Not to be trusted: at a head that starts at random the kernel of the network is almost nothing, and it grows"
    " manyfold within the first epoch. Let the head start as a logistic regression (`--head-start probe`), or let real"
    " folds tell (`--verify 4`)."
)
SMALL = (
    "How sure: the steps are small enough for the kernel to describe training; the numbers are those of {n} examples,"
    " each left out in turn. Larger steps may reach a higher accuracy (`--learning-rate {usual}`); when those should"
    " stop only real folds tell (`--verify 4`)."
)
_HARDLY = (
    " So training at this rate changes little: at a usual one it would learn more, and real folds tell when to stop it"
    " (`--learning-rate {usual} --verify 4`)."
)
FOLDED = "How sure: the folds are real trainings; the numbers are those of {n} examples, each left out of one of them."


def trusted(advice: TrainingAdvice) -> bool:
    """Whether the kernel's path describes the training: its steps are not too large, and no head starts at random."""
    return "large_steps" not in advice.stop.flags and not advice.plan.random_head


def matters(advice: TrainingAdvice) -> bool:
    """Whether the length matters: some training that was looked at, longer than the best, costs more than 5 %."""
    return advice.stop.high < advice.stop.steps[-1]


def still_falling(advice: TrainingAdvice) -> bool:
    """Whether the longest training that was looked at is the best."""
    return "longest" in advice.stop.flags


def preamble(advice: TrainingAdvice) -> list[str]:
    """Return what comes before the answer: how the data were read, what was left out, which words were chosen."""
    return [f"Note: {note}." for note in advice.data.notes]


def headline(advice: TrainingAdvice) -> list[str]:
    """Return the answer in a few sentences: what to do, whether the length matters, what to expect, what to trust."""
    lines = [_what(advice), _range(advice), _expect(advice)]
    if advice.larger is not None and advice.stop.t and advice.folds is None:
        lines.append(_with_more(advice))
    if advice.folds is not None:
        lines.append(_verified(advice, advice.folds))
    planned = _planned(advice)
    return [*lines, *([planned] if planned else []), trust(advice)]


def how(advice: TrainingAdvice) -> str:
    """Return the training in words: optimizer, rate, schedule, batches and what is trained."""
    plan = advice.plan
    warm = f", {several(plan.warmup, 'step')} of warm-up" if plan.warmup >= 1 else ""
    if 0 < plan.warmup < 1 and plan.schedule != "constant":
        warm = f", warm-up over {percent(plan.warmup)} of the steps"
    trained = f", LoRA of rank {plan.rank}" if plan.adapter else ""
    if not plan.adapter and plan.trained != "all":
        trained = f", {TRAINED[plan.trained]}"
    return (
        f"AdamW on cross-entropy, learning rate {number(advice.stop.learning_rate)}, {WORDS[plan.schedule]}{warm},"
        f" batches of {plan.batch_size}{trained}"
    )


def epochs_in_words(steps: float, advice: TrainingAdvice) -> str:
    """Return so many steps as epochs: one epoch, 3.2 epochs."""
    return several(round(float(steps) / advice.stop.steps_per_epoch, 1), "epoch")


def _what(advice: TrainingAdvice) -> str:
    stop, folds, n = advice.stop, advice.folds, advice.stop.examples
    kind, level = advice.kind, level_in_words(advice)
    if kind == "do_not_train":
        longest = epochs_in_words(stop.steps[-1], advice)
        if folds is not None:
            longest = several(float(folds.epochs[-1]), "epoch")
        return f"Do not train: {level} does as well as any training of up to {longest}."
    about = "at least" if folds is None and still_falling(advice) else "about"
    unclear = f"It is unclear whether training improves on {level}; if you train, do so for {about}"
    first = f"Train for {about}" if kind == "train" else unclear
    if folds is None:
        length = f"{several(round(stop.epochs, 1), 'epoch')} of the {n} examples ({several(stop.t, 'step')}"
    else:
        length = f"{several(round(folds.epoch, 1), 'epoch')} of the {n} examples ({several(_steps(advice), 'step')}"
        if advice.stop_at is not None:
            length += f" of a schedule of {several(advice.epochs, 'epoch')}"
    return f"{first} {length}; {how(advice)})."


def level_in_words(advice: TrainingAdvice) -> str:
    """Return in words what training has to beat."""
    return GUESS if advice.level.name == "shares" else LEVELS[advice.level.name]


def _steps(advice: TrainingAdvice) -> int:
    return advice.steps if advice.stop_at is None else advice.stop_at


def _range(advice: TrainingAdvice) -> str:
    stop = advice.stop
    if advice.folds is not None:
        first, last = advice.folds.within
        return (
            f"In the folds the log-loss of every stop between {first:.1f} and {several(round(last, 1), 'epoch')} was"
            " within 5 % of the lowest."
        )
    low = f"{stop.low / stop.steps_per_epoch:.1f}"
    if still_falling(advice):
        return (
            f"The expected log-loss still falls at {epochs_in_words(stop.steps[-1], advice)}, the longest looked at:"
            f" ask for more (`--epochs {advice.plan.longest:g}` looks at up to {2 * advice.plan.longest:g}), or"
            " train at a larger rate and let real folds tell (`--verify 4`)."
        )
    if not matters(advice):
        return (
            f"When to stop hardly matters: from {low} to {epochs_in_words(stop.steps[-1], advice)}, the longest looked"
            " at, the expected log-loss is within 5 % of the lowest." + _hardly(advice)
        )
    worst = f"{stop.loss[-1]:.2f}" if stop.loss[-1] < 100 else "far more"
    return (
        f"From {low} to {epochs_in_words(stop.high, advice)} the expected log-loss is within 5 % of the lowest;"
        f" {epochs_in_words(stop.steps[-1], advice)} would end at {worst}."
    )


def _hardly(advice: TrainingAdvice) -> str:
    """Say what to do where no training at the kernel's own small rate does better than none; else nothing."""
    if advice.stop.low or advice.plan.learning_rate is not None:
        return ""
    return _HARDLY.format(usual=_usual_rate(advice))


def _usual_rate(advice: TrainingAdvice) -> str:
    return "2e-4" if advice.plan.adapter else "5e-5" if advice.plan.head else "1e-4"


def _expect(advice: TrainingAdvice) -> str:
    stop, folds = advice.stop, advice.folds
    loss, right = stop.loss_interval(stop.best), stop.accuracy_interval(stop.best)
    if folds is not None:
        loss, right = folds.loss_interval(folds.best), folds.accuracy_interval(folds.best)
    text = (
        f"Expect an accuracy of about {percent(right[0])} ({between(right)}) and a log-loss of {_interval(loss)} on new"
        " texts of this kind"
    )
    order = [name for name in LEVELS if name in advice.levels]
    said = "; ".join([text, *(_level(advice.levels[name]) for name in order)]) + "."
    if advice.kind != "do_not_train" and right[0] <= advice.level.accuracy_interval()[0]:
        said += (
            f" Accuracy is not expected to rise above that of {level_in_words(advice)}: what training improves is how"
            " well its probabilities fit (the log-loss)."
        )
    return said


def _level(level: Baseline) -> str:
    loss, right = level.loss_interval(), level.accuracy_interval()
    if level.name == "shares":
        return f"{LEVELS[level.name]}: {percent(right[0])}, and {loss[0]:.2f} with the labels' shares"
    return f"{LEVELS[level.name].rstrip(',')}: {percent(right[0])}, and {_interval(loss)}"


def _interval(values: Interval) -> str:
    return f"{values[0]:.2f} ({max(values[1], 0.0):.2f} to {values[2]:.2f})"


def _with_more(advice: TrainingAdvice) -> str:
    """Say what training on all labels would come to, carried there by the decay of the eigenvalues."""
    more = advice.larger
    assert more is not None
    per = more.steps_per_epoch
    text = (
        f"With {more.size} labels train for about {several(round(more.epochs, 1), 'epoch')}"
        f" ({several(round(more.steps), 'step')}; {more.low / per:.1f} to"
        f" {several(round(more.high / per, 1), 'epoch')} within 5 %)"
    )
    if more.loss is not None and more.accuracy is not None:
        text += (
            f", and expect a log-loss of {_interval(more.loss)} and an accuracy of {percent(more.accuracy[0])}"
            f" ({between(more.accuracy)})"
        )
    text += f": carried there from {advice.stop.examples} by the decay of the kernel's eigenvalues"
    if more.far:
        text += ", which is a hint at most so far away; with so many labels, keep some aside and stop on them"
    if advice.kind == "do_not_train":
        return f"{text}."
    used = f"the {advice.stop.examples} of the first answer"
    if advice.carried is not None:
        used = f"all {advice.carried.size} of the data"
    return f"{text}. `train.py` trains on {used}."


def _verified(advice: TrainingAdvice, folds: FoldCurves) -> str:
    """Say what the folds found beside the kernel's answer, and what they took."""
    loss, right = folds.loss_interval(folds.best), folds.accuracy_interval(folds.best)
    epochs = several(float(folds.epochs[-1]), "epoch")
    text = (
        f"Verified by {folds.folds} real folds of {epochs}: the log-loss of examples left out was lowest after"
        f" {several(round(folds.epoch, 1), 'epoch')}, {_interval(loss)}, with an accuracy of {percent(right[0])}"
        f" ({between(right)})"
    )
    kernel = advice.stop.epochs
    at = folds.loss_at(kernel)
    if math.isfinite(at):
        text += f"; after {several(round(kernel, 1), 'epoch')}, the kernel's answer, it was {at:.2f}"
    else:
        text += f"; the kernel's answer, {several(round(kernel, 1), 'epoch')}, lies beyond"
    from_now = round(folds.seconds)
    took = f"{from_now} s" if from_now < 100 else f"{from_now // 60} min {from_now % 60} s"
    if folds.best == len(folds.epochs) - 1:
        text += f". It was still falling there: ask for more (`--epochs {2 * folds.epochs[-1]:g}`)"
    return f"{text}. The folds took {took}."


def _planned(advice: TrainingAdvice) -> str:
    """Say what the training that was planned costs beside the advised one."""
    plan, stop = advice.plan, advice.stop
    if plan.epochs is None or advice.folds is not None:
        return ""
    loss, best = stop.at(plan.epochs * stop.steps_per_epoch), float(stop.loss[stop.best])
    more = loss / best - 1
    said = "as good" if more < 0.005 else f"{percent(more)} worse" if more < 10 else "far worse"
    return f"The {several(plan.epochs, 'epoch')} that you plan would end at an expected log-loss of {loss:.2f}: {said}."


def trust(advice: TrainingAdvice) -> str:
    """Say how far the answer can be trusted, and what to do where it cannot."""
    n = advice.stop.examples
    if advice.folds is not None:
        return FOLDED.format(n=n)
    if advice.plan.random_head:
        return RANDOM
    if not trusted(advice):
        return UNTRUSTED.format(times=several(round(advice.stop.largest_step / 4, 1), "time"))
    return SMALL.format(n=n, usual=_usual_rate(advice))
