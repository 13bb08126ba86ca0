"""Advice for training under a schedule, in plain words (pure text: no torch, no files)."""

from __future__ import annotations

from pathlib import Path

from stopwise.advice.text import between, number, percent, several
from stopwise.advice.under_schedule import TrainingAdvice

Interval = tuple[float, float, float]

WORDS = {"linear": "linear decay", "cosine": "cosine decay", "constant": "a constant rate"}
UNTRUSTED = (
    "Not to be trusted at this learning rate: the steps are {times} the largest that the kernel describes, and the"
    " network leaves the predicted path, mostly for the better. In recorded runs at usual rates the predicted stop was"
    " good in none of four. Decide by real trainings (leave a quarter of the labels out, in turn), or leave"
    " `--learning-rate` out: the smaller steps that you get then are easier to predict, and may cost accuracy."
)
RANDOM = (
    "Not to be trusted: at a head that starts at random the kernel of the network is almost nothing, and it grows"
    " manyfold within the first epoch. Let the head start as a logistic regression (`--head-start probe`), or decide by"
    " real trainings (leave a quarter of the labels out, in turn)."
)
# The start's accuracy, as a multiple of the most frequent label's, below which its features say little.
WEAK = 1.5
FLAGS = {
    "clipped": "Gradients are clipped at the start; the clipping is replayed.",
    "subset": "Training has more examples than the kernel.",
    "order_unknown": "The order of the batches is not known beforehand; others of the same size were replayed.",
    "other_loss": "The Trainer's loss is not the cross-entropy of the labels (label smoothing, or a loss of its own).",
    "rule_without_answer": "The labels say nothing to the rule `bayes`; plain leave-one-out answered instead.",
    "second_order_left_out": "Half of the adapters does not show in the kernel at the start.",
}


def kind_of(advice: TrainingAdvice) -> str:
    """Return train, unclear (the gain over the start may be none) or do_not_train."""
    stop = advice.stop
    if stop.t == 0:
        return "do_not_train"
    return "train" if stop.gain_interval(stop.best)[1] > 0 else "unclear"


def trusted(advice: TrainingAdvice) -> bool:
    """Whether the kernel's path describes the training: its steps are not too large, and no head starts at random."""
    return "large_steps" not in advice.stop.flags and not advice.plan.random_head


def matters(advice: TrainingAdvice) -> bool:
    """Whether the length matters: some training that was looked at, longer than the best, costs more than 5 %."""
    return advice.stop.high < advice.stop.steps[-1]


def still_falling(advice: TrainingAdvice) -> bool:
    """Whether the longest training that was looked at is the best."""
    return "longest" in advice.stop.flags


def headline(advice: TrainingAdvice) -> list[str]:
    """Return the answer in a few sentences: what to do, whether the length matters, what to expect, what to trust."""
    lines = [_what(advice), _range(advice), _expect(advice)]
    planned = _planned(advice)
    lines += [planned] if planned else []
    lines.append(_trust(advice))
    return lines


def _how(advice: TrainingAdvice) -> str:
    plan = advice.plan
    warm = f", {several(plan.warmup, 'step')} of warm-up" if plan.warmup >= 1 else ""
    if 0 < plan.warmup < 1 and plan.schedule != "constant":
        warm = f", warm-up over {percent(plan.warmup)} of the steps"
    return (
        f"AdamW on cross-entropy, learning rate {number(advice.stop.learning_rate)}, {WORDS[plan.schedule]}{warm},"
        f" batches of {plan.batch_size}"
    )


def _what(advice: TrainingAdvice) -> str:
    stop, n = advice.stop, advice.stop.examples
    kind, start = kind_of(advice), _start(advice)
    if kind == "do_not_train":
        longest = _epochs(stop.steps[-1], advice)
        return f"Do not train the network: {start} does as well as any training of up to {longest}."
    about = "at least" if still_falling(advice) else "about"
    unclear = f"It is unclear whether training improves on {start}; if you train, do so for {about}"
    return (
        f"{f'Train for {about}' if kind == 'train' else unclear} {several(round(stop.epochs, 1), 'epoch')} of the {n}"
        f" examples ({several(stop.t, 'step')}; {_how(advice)})."
    )


def _start(advice: TrainingAdvice) -> str:
    if not advice.plan.head:
        return "the prompt alone"
    return "the head alone, fitted to the features as they are," if advice.penalty is not None else "the new head"


def _epochs(steps: float, advice: TrainingAdvice) -> str:
    return several(round(float(steps) / advice.stop.steps_per_epoch, 1), "epoch")


def _range(advice: TrainingAdvice) -> str:
    stop = advice.stop
    low = f"{stop.low / stop.steps_per_epoch:.1f}"
    if still_falling(advice):
        return (
            f"The expected log-loss still falls at {_epochs(stop.steps[-1], advice)}, the longest looked at: ask for"
            f" more (`--epochs {2 * advice.plan.longest:g}`), or train at a larger rate and decide by real trainings."
        )
    if not matters(advice):
        return (
            f"When to stop hardly matters: every training from {low} to {_epochs(stop.steps[-1], advice)}, the longest"
            " looked at, costs less than 5 % of the expected log-loss."
        )
    worst = f"{stop.loss[-1]:.2f}" if stop.loss[-1] < 100 else "far more"
    return (
        f"Any training of {low} to {_epochs(stop.high, advice)} costs less than 5 % of the expected log-loss;"
        f" {_epochs(stop.steps[-1], advice)} would end at {worst}."
    )


def _expect(advice: TrainingAdvice) -> str:
    stop, (share, entropy) = advice.stop, advice.baseline
    loss, right = stop.loss_interval(stop.best), stop.accuracy_interval(stop.best)
    text = (
        f"Expect an accuracy of about {percent(right[0])} ({between(right)}) and a log-loss of {_interval(loss)} on new"
        f" texts of this kind; always the most frequent label: {percent(share)}, and {entropy:.2f} with the labels'"
        " shares"
    )
    if stop.t == 0 or (advice.plan.head and advice.penalty is None):
        return f"{text}."
    start, first = stop.loss_interval(0), stop.accuracy_interval(0)
    return f"{text}; {_start(advice).rstrip(',')}: {percent(first[0])}, and {_interval(start)}."


def _interval(values: Interval) -> str:
    return f"{values[0]:.2f} ({values[1]:.2f} to {values[2]:.2f})"


def _planned(advice: TrainingAdvice) -> str:
    """Say what the training that was planned costs beside the advised one."""
    plan, stop = advice.plan, advice.stop
    if plan.epochs is None:
        return ""
    loss, best = stop.at(plan.epochs * stop.steps_per_epoch), float(stop.loss[stop.best])
    more = loss / best - 1
    said = "as good" if more < 0.005 else f"{percent(more)} worse" if more < 10 else "far worse"
    return f"The {several(plan.epochs, 'epoch')} that you plan would end at an expected log-loss of {loss:.2f}: {said}."


def _trust(advice: TrainingAdvice) -> str:
    if advice.plan.random_head:
        return RANDOM
    if not trusted(advice):
        times = several(round(advice.stop.largest_step, 1), "time")
        return UNTRUSTED.format(times=times)
    small = "How sure: the steps are small enough for the kernel to describe training"
    return f"{small}; the numbers are those of {advice.stop.examples} examples, each left out in turn."


def document(advice: TrainingAdvice) -> str:
    """Return the whole answer as Markdown."""
    first, *rest = headline(advice)
    name = Path(advice.plan.data).name
    return (
        "\n\n".join(
            [
                f"# How long to fine-tune: advice for {name}",
                f"**{first}**\n\n" + "\n".join(f"- {line}" for line in rest),
                "![Expected log-loss and accuracy by length of training](advice.svg)",
                _asked(advice),
                _lengths(advice),
                _run(advice),
                _reservations(advice),
            ]
        ).rstrip()
        + "\n"
    )


def _asked(advice: TrainingAdvice) -> str:
    plan, data = advice.plan, advice.data
    counts = ", ".join(f"{label} ({data.names.count(label)})" for label in data.classes)
    what = f"a new head of {len(data.classes)} labels on `{plan.model}`, all of its weights trained"
    if not plan.head:
        what = f"`{plan.model}` answers a prompt with a word, all of its weights trained"
    more = ""
    if len(data.labels) < data.distinct:
        more = (
            f" The answer is for training on these examples; with all {data.distinct} take at least as many *steps*,"
            f" and ask again with a larger `--max-examples`."
        )
    return (
        f"## What was asked\n\n{what}. {len(data.labels)} examples were used of {data.rows} rows: {counts}.{more}"
        f" The training is the Trainer's own: {_how(advice)}, weight decay {plan.weight_decay:g}, gradients clipped at"
        f" {plan.max_grad_norm:g}."
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


def _run(advice: TrainingAdvice) -> str:
    start, task = "", "text-classification" if advice.plan.head else "text-generation"
    if advice.penalty is not None:
        start = (
            " The head does not start at random but as a regularised logistic regression on the features"
            f" (`head.safetensors`; penalty {advice.penalty:g}, chosen by cross-validation): the start is already a"
            " classifier, and the kernel read there describes more of the training."
        )
    return (
        "## Run it\n\n`python train.py`, in this folder, trains on `examples.csv` with exactly these settings, and"
        f' leaves the model in `model/`, which `pipeline("{task}")` loads.{start}'
    )


def _reservations(advice: TrainingAdvice) -> str:
    lines = [FLAGS[flag] for flag in advice.stop.flags if flag in FLAGS]
    if not trusted(advice):
        lines.insert(0, _trust(advice))
    if advice.penalty is not None and advice.stop.correct[0].mean() < WEAK * advice.baseline[0]:
        lines.append(
            "The features say little about these labels before training: from a head at random the network may come"
            " further at the same rate, and nobody can predict how far."
        )
    lines.append("Dropout is left out of the kernel, and on in training.")
    return "## Reservations\n\n" + "\n".join(f"- {line}" for line in lines)
