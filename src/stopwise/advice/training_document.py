"""Advice for training under a schedule: the whole answer as Markdown (pure text: no torch, no files)."""

from __future__ import annotations

from pathlib import Path

from stopwise.advice.text import number, percent
from stopwise.advice.training_text import (
    LEVELS,
    TRAINED,
    epochs_in_words,
    headline,
    how,
    level_in_words,
    preamble,
    trust,
    trusted,
)
from stopwise.advice.under_schedule import TrainingAdvice

# The start's accuracy, as a multiple of the most frequent label's, below which its features say little.
WEAK = 1.5
FLAGS = {
    "clipped": "Gradients are clipped at the start; the clipping is replayed.",
    "subset": "Training has more examples than the kernel.",
    "order_unknown": "The order of the batches is not known beforehand; others of the same size were replayed.",
    "other_loss": "The Trainer's loss is not the cross-entropy of the labels (label smoothing, or a loss of its own).",
    "rule_without_answer": "The labels say nothing to the rule `bayes`; plain leave-one-out answered instead.",
    "second_order_left_out": (
        "Half of the adapter (its A) has no gradient at the start, where B is zero, and does not show in the kernel; A"
        " is drawn at random, and another draw has another kernel."
    ),
    "head_moves": "The head changes so much at this rate that the kernel of the network below it does not stay.",
}


def document(advice: TrainingAdvice) -> str:
    """Return the whole answer as Markdown."""
    first, *rest = headline(advice)
    parts = [
        f"# How long to fine-tune: advice for {Path(advice.plan.name).name}",
        "\n".join(preamble(advice)),
        f"**{first}**\n\n" + "\n".join(f"- {line}" for line in rest),
        "![Expected log-loss and accuracy by length of training](advice.svg)",
        _asked(advice),
        _lengths(advice),
        _folds(advice),
        _more(advice),
        _without(advice),
        _run(advice),
        _reservations(advice),
    ]
    return "\n\n".join(part for part in parts if part).rstrip() + "\n"


def _asked(advice: TrainingAdvice) -> str:
    plan, data = advice.plan, advice.data
    counts = ", ".join(f"{label} ({data.names.count(label)})" for label in data.classes)
    trained = f"a LoRA adapter of rank {plan.rank} trained" if plan.adapter else f"{TRAINED[plan.trained]} trained"
    what = f"a new head of {len(data.classes)} labels on `{plan.model}`, {trained}"
    if not plan.head:
        words = ", ".join(f"{name} = `{word}`" for name, word in zip(data.classes, advice.words, strict=True))
        what = f"`{plan.model}` answers a prompt with a word ({words}), {trained}"
    return (
        f"## What was asked\n\n{what[0].upper()}{what[1:]}. {len(data.labels)} examples were used of {data.rows} rows:"
        f" {counts}. The training is the Trainer's own: {how(advice)}, weight decay {plan.weight_decay:g}, gradients"
        f" {f'clipped at {plan.clip:g}' if plan.clip else 'not clipped'}."
    )


def _lengths(advice: TrainingAdvice) -> str:
    stop = advice.stop
    rows = []
    for k, steps in enumerate(stop.steps):
        mark = "**" if k == stop.best else ""
        right = stop.accuracy_interval(k)
        rows.append(
            f"| {mark}{steps / stop.steps_per_epoch:.1f}{mark} | {steps} | {_loss(stop.loss[k])} |"
            f" {_loss(stop.losses[k].mean())} | {percent(right[0])} |"
        )
    head = "| epochs | steps | expected log-loss | log-loss, left out | accuracy, left out |\n|---|---|---|---|---|"
    return (
        "## Every length\n\nEach row is a training of its own, with the whole schedule from its beginning to its end,"
        " replayed on the kernel once without each example; nothing was trained.\n\n" + "\n".join([head, *rows])
    )


def _loss(value: float) -> str:
    return f"{value:.3f}" if value < 100 else "diverges"


def _folds(advice: TrainingAdvice) -> str:
    folds = advice.folds
    if folds is None:
        return ""
    rows = []
    for k, epoch in enumerate(folds.epochs):
        mark = "**" if k == folds.best else ""
        right = folds.accuracy_interval(k)
        rows.append(f"| {mark}{epoch:.1f}{mark} | {_loss(folds.losses[k].mean())} | {percent(right[0])} |")
    return (
        f"## The folds\n\n{folds.folds} real trainings, each without a part of the examples and looked at on this part"
        " along the way. The schedule belongs to the whole length: a stop in the middle cuts it short.\n\n"
        "| epochs | log-loss, left out | accuracy, left out |\n|---|---|---|\n" + "\n".join(rows)
    )


def _more(advice: TrainingAdvice) -> str:
    more = advice.larger
    if more is None:
        return ""
    value, low, high = more.exponent
    text = (
        f"## With {more.size} labels\n\nThe kernel holds {advice.stop.examples} examples. The best training time grows"
        f" as n^{value:.2f} (95 % interval {low:.2f} to {high:.2f}), by the decay of the kernel's eigenvalues."
    )
    if len(more.sizes) > 1:
        shown = ", ".join(f"{n}: {loss:.3f}" for n, loss in zip(more.sizes, more.losses, strict=True))
        text += f" Log-loss of examples left out, by the number of examples trained on: {shown}."
    return text + " To be surer, ask again with a larger `--max-examples`."


def _without(advice: TrainingAdvice) -> str:
    """Say how to use the prompt without training, where that is the answer or close to it."""
    level = advice.levels.get("with_offset")
    if level is None or level.offsets is None or advice.kind == "train":
        return ""
    offsets = ", ".join(f"{value:+.2f} to `{word}`" for word, value in zip(advice.words, level.offsets, strict=True))
    return (
        f"## Without training\n\n{LEVELS['with_offset'].capitalize()}: divide the logits of the words by"
        f" {level.temperature:.2f} and add {offsets}."
    )


def _run(advice: TrainingAdvice) -> str:
    start, task = "", "text-classification" if advice.plan.head else "text-generation"
    if advice.penalty is not None:
        start = (
            " The head does not start at random but as a regularised logistic regression on the features"
            f" (`head.safetensors`; penalty {advice.penalty:g}, chosen by cross-validation): the start is already a"
            " classifier, and the kernel read there describes more of the training."
        )
    if advice.plan.adapter:
        start += " The adapter is in `adapter/`, which `peft` loads; in `model/` it is added to the weights."
    end = ""
    if advice.stop_at is not None:
        end = f" It stops at step {advice.stop_at} of {epochs_in_words(advice.steps, advice)}, as the folds say."
    return (
        f"## Run it\n\n`python train.py`, in this folder, trains on the {len(advice.examples)} examples of"
        " `examples.csv` with exactly these settings, and"
        f' leaves the model in `model/`, which `pipeline("{task}")` loads.{start}{end}'
    )


def _reservations(advice: TrainingAdvice) -> str:
    lines = [FLAGS[flag] for flag in advice.stop.flags if flag in FLAGS]
    if not trusted(advice):
        lines.insert(0, trust(advice))
    head = advice.levels.get("head")
    if head is not None and head.correct.mean() < WEAK * advice.levels["shares"].correct.mean():
        lines.append(
            "The features say little about these labels before training: from a head at random the network may come"
            " further at the same rate, and nobody can predict how far."
        )
    gain = advice.gain
    if advice.kind != "do_not_train":
        lines.append(
            f"Training takes {number(gain[0])} off the log-loss of {level_in_words(advice)} (95 % interval"
            f" {number(gain[1])} to {number(gain[2])}), on the same examples left out."
        )
    lines.append("Dropout is left out of the kernel, and on in training.")
    return "## Reservations\n\n" + "\n".join(f"- {line}" for line in lines)
