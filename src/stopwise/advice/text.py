"""Advice in plain words, for someone who has never heard of kernels (pure text: no torch, no files)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from stopwise.advice.findings import Advice
from stopwise.advice.rule import DEFAULT_RULE
from stopwise.advice.verdict import Interval, Verdict, why
from stopwise.linearized.coding import targets
from stopwise.stopping.closed_form import BEYOND
from stopwise.stopping.registry import ROW

CONFIDENCE = {"good": "fairly sure", "fair": "with a grain of salt", "low": "not very sure"}


def percent(value: float) -> str:
    """Return a share as whole per cent."""
    return f"{100 * value:.0f} %"


def points(value: float) -> str:
    """Return a difference of shares in points, signed."""
    shown = round(100 * value)
    return f"{'−' if shown < 0 else '+'}{abs(shown)}"


def number(value: float) -> str:
    """Return a number to three figures, without an exponent where it can be read without."""
    return f"{value:.3g}" if 1e-4 <= abs(value) < 1e6 or value == 0 else f"{value:.2e}"


def several(count: float, what: str) -> str:
    """Return a count with its noun: one step, 12 steps."""
    shown = f"{count:.0f}" if count >= 10 or count == int(count) else f"{count:.1f}"
    return f"{'one' if count == 1 else shown} {what}{'' if count == 1 else 's'}"


def between(interval: Interval) -> str:
    """Return the ends of an interval of accuracies."""
    return f"{100 * interval[1]:.0f} to {100 * interval[2]:.0f} %"


def headline(advice: Advice, verdict: Verdict) -> list[str]:
    """Return the answer in three sentences or four: what to do, what to expect, more data, how sure."""
    return [
        {"train": _train, "unclear": _train, "do_not_train": _do_not_train, "no_answer": _no_answer}[verdict.kind](
            advice, verdict
        ),
        _expect(advice, verdict),
        _more_data(advice),
        f"How sure: {CONFIDENCE[verdict.confidence]}"
        + (f" ({several(len(verdict.doubts), 'reservation')} below)." if verdict.doubts else "."),
    ]


def preamble(advice: Advice) -> list[str]:
    """Return what comes before the answer: how the file was read, what was left out, which words were chosen."""
    return [f"Note: {note}." for note in advice.notes]


def _train(advice: Advice, verdict: Verdict) -> str:
    recipe, n = advice.findings.recipes[0], advice.findings.problem.examples
    unclear = "It is unclear whether training helps; if you train, stop after"
    if advice.settings.adam:
        times = (
            f"{several(recipe.steps, 'AdamW step')} with batches of {recipe.batch_size}"
            f" ({several(recipe.epochs, 'epoch')} of the {n} examples; learning rate {number(recipe.learning_rate)}, no"
            " weight decay)"
        )
        return f"{'Train for about' if verdict.kind == 'train' else unclear} {times}."
    how = f"SGD with momentum {recipe.momentum:g}, learning rate {number(recipe.learning_rate)}"
    times = f"{several(recipe.steps, 'full-batch step')} on the {n} examples ({several(recipe.epochs, 'epoch')}; {how})"
    small = next((r for r in advice.findings.recipes if not r.full_batch and r.momentum == recipe.momentum), None)
    if small:
        rate = number(small.learning_rate)
        times += f", or {several(small.steps, 'step')} with batches of {small.batch_size} at learning rate {rate}"
    return f"{'Train for about' if verdict.kind == 'train' else unclear} {times}."


def _do_not_train(advice: Advice, verdict: Verdict) -> str:
    alone = "the prompt alone does as well"
    if verdict.baseline == "with_offset":
        alone = "the prompt with a fixed offset added to its answers does as well"
    t = advice.findings.decision.t
    reason = "The rule stops before the first step." if t == 0 else "No gain shows on examples left out of training."
    return f"Do not train: {alone}. {reason}"


def _no_answer(advice: Advice, verdict: Verdict) -> str:
    return (
        "No rule can say when to stop on these examples. Hold a quarter of them out while training, and stop when the"
        " error on them no longer falls."
    )


def _expect(advice: Advice, verdict: Verdict) -> str:
    alone = f"the prompt alone gets {percent(verdict.zero_shot[0])}"
    offset = f", with a fitted offset {percent(verdict.with_offset[0])}"
    gain = f"{points(verdict.gain[0])} points, 95 % interval {points(verdict.gain[1])} to {points(verdict.gain[2])}"
    if verdict.kind == "do_not_train" and advice.findings.decision.t == 0:
        return f"On your examples {alone}{offset}."
    over = "over the prompt with its offset" if verdict.baseline == "with_offset" else "over the prompt alone"
    return (
        f"Expect an accuracy of about {percent(verdict.trained[0])} on new texts of this kind"
        f" ({between(verdict.trained)}); {alone}{offset}. Training brings {gain}, {over}."
    )


def _more_data(advice: Advice) -> str:
    value, low, high = advice.findings.doubling
    if not math.isfinite(value):
        return "More data: there are too few examples to see a trend."
    trend = f"{points(value)} points for each doubling ({points(low)} to {points(high)})"
    if low > 0:
        return f"More data helps: accuracy has grown by {trend}."
    if high < 0.01:
        return f"More data would not help much: accuracy has changed by {trend}."
    return f"Whether more data helps is open: accuracy has changed by {trend}."


def document(advice: Advice, verdict: Verdict) -> str:
    """Return the whole answer as Markdown."""
    first, *rest = headline(advice, verdict)
    sections = [
        f"# When to stop fine-tuning: advice for {Path(advice.file.path).name}",
        "\n".join(f"- {line}" for line in preamble(advice)),
        f"**{first}**\n\n" + "\n".join(f"- {line}" for line in rest),
        "![Accuracy on examples left out: along training, and by number of examples](advice.svg)",
        _asked(advice),
        _how(advice, verdict),
        _accuracies(advice, verdict),
        _data(advice),
        _sure(advice, verdict),
        _rules(advice),
        _go_on(advice),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _asked(advice: Advice) -> str:
    n, file = advice.findings.problem.examples, advice.file
    words = ", ".join(f"{label} = `{word}`" for label, word in advice.task.verbalizers.items())
    prompt = advice.sample["prompt"][0].as_py()
    counts = advice.task.counts
    out = counts["duplicates"] + counts["conflicts"]
    left_out = f" ({out} repeat others or contradict a copy)" if out else ""
    hint = ""
    if advice.settings.template is None:
        hint = "\n\nThe prompt is made of the column names: your own words (`--template`) may do more than training."
    return (
        f"## What was asked\n\n`{advice.settings.model}` reads a prompt; whichever label's word it finds likelier as"
        f" the next one is its answer. {n} examples were used of {file.rows} rows{left_out}, the labels as even as they"
        f" come. Words: {words}. One prompt:\n\n```\n{prompt}\n```{hint}"
    )


def _how(advice: Advice, verdict: Verdict) -> str:
    found, n = advice.findings, advice.findings.problem.examples
    text = "## How to train\n\n"
    if verdict.kind in ("do_not_train", "no_answer"):
        text = "## If you train all the same\n\n" if verdict.kind == "no_answer" else "## What to do instead\n\n"
    if verdict.kind == "do_not_train":
        return text + _offset_recipe(advice, verdict)
    if verdict.kind == "no_answer":
        rows = [f"| {r.momentum:g} | {r.batch_size} | {number(r.learning_rate)} |" for r in found.recipes]
        table = "\n".join(["| momentum | batch | learning rate at most |", "|---|---|---|", *rows])
        return f"{text}{table}\n\n{_loss(advice)}"
    if advice.settings.adam:
        recipe = found.recipes[0]
        return (
            f"{text}| batch | learning rate | steps | epochs |\n|---|---|---|---|\n| {recipe.batch_size} |"
            f" {number(recipe.learning_rate)} | {recipe.steps} | {recipe.epochs:.1f} |\n\n{_loss(advice)} Any time from"
            f" {found.low_step} to {found.high_step} steps is within 5 % of the lowest error seen on examples left out."
            f" The numbers are for training on {n} examples: for more, ask again with `--max-examples`."
        )
    rows = [
        f"| {r.momentum:g} | {'all ' if r.full_batch else ''}{r.batch_size} | {number(r.learning_rate)} | {r.steps} |"
        f" {r.epochs:.1f} |"
        for r in found.recipes
    ]
    table = "\n".join(["| momentum | batch | learning rate | steps | epochs |", "|---|---|---|---|---|", *rows])
    range_ = f"Any time from {found.low_step} to {found.high_step} full-batch steps in the first row is within 5 % of"
    return (
        f"{text}Any one of these lines; all stop at the same training time.\n\n{table}\n\n{_loss(advice)} {range_} the"
        f" lowest error seen on examples left out. The numbers are for training on {n} examples: for more,"
        f" ask again with `--max-examples`."
    )


def _loss(advice: Advice) -> str:
    """Say what is minimised, so that a learning rate means something."""
    found, words = advice.findings, list(advice.task.verbalizers.values())
    adam = advice.settings.adam
    how = "AdamW (betas 0.9 and 0.999), a constant learning rate and" if adam else "plain SGD,"
    which = f"Train the {advice.settings.parameters} parameters with {how} no weight decay, on the squared loss."
    others = "Cross-entropy needs a learning rate of its own"
    if not adam:
        others = "AdamW has an answer of its own (`--optimizer adamw`); cross-entropy needs a learning rate of its own"
    aside = f" {others}; the number of epochs is then a rough guide."
    if found.problem.scale != 1:
        aside = f" The targets are {found.problem.scale:g} times as large as usual{_reason(advice)}.{aside}"
    if len(words) == 2:
        target = float(targets(np.array([1]), 2, scale=found.problem.scale)[0, 0])
        shift = float(found.offsets[1] * 2 / math.sqrt(2))
        low, high = -target - shift, target - shift
        return (
            f"{which} For each text f = (logit of `{words[1]}` − logit of `{words[0]}`)/√2 at the last token of the"
            f" prompt; the loss is the mean of ½(y − f)², with y = {high:.3f} for `{words[1]}` and {low:.3f} for"
            f" `{words[0]}`"
            f" (±{target:.3f} less the prompt's own offset of {shift:.3f}, which you add to f when you predict).{aside}"
        )
    return (
        f"{which} f are the {len(words) - 1} orthonormal contrasts of the words' logits"
        " (`stopwise.linearized.coding.coding_matrix`), the loss is the mean of ½(y − f)² over examples and"
        f" contrasts, y from `stopwise.targets` of scale {found.problem.scale:g} less the prompt's own offset.{aside}"
    )


def _reason(advice: Advice) -> str:
    if advice.settings.target_scale is not None:
        return ", as you asked"
    return ": smaller ones would make training shrink the model's outputs first, and lose what they know"


def _offset_recipe(advice: Advice, verdict: Verdict) -> str:
    if verdict.baseline == "zero_shot":
        return "Use the model as it is, with the prompt above."
    offsets = zip(advice.task.verbalizers.values(), advice.findings.offsets, strict=True)
    shifts = ", ".join(f"{offset:+.2f} to `{word}`" for word, offset in offsets)
    return f"Add a constant to the logits of the words before you compare them, and train nothing: {shifts}."


def _accuracies(advice: Advice, verdict: Verdict) -> str:
    rows = [
        ("the prompt alone", verdict.zero_shot),
        ("the prompt with a fitted offset", verdict.with_offset),
        ("after training to the advised stop", verdict.trained),
    ]
    table = "\n".join(f"| {name} | {percent(v[0])} | {between(v)} |" for name, v in rows)
    seen = " Only what AdamW divides by was read from all examples, those left out too." if advice.settings.adam else ""
    return (
        f"## What to expect\n\n| | accuracy | 95 % interval |\n|---|---|---|\n{table}\n\n"
        "The last two are measured on examples left out: the examples are divided into parts (ten where the labels"
        " allow), five times over, and each part is predicted by a fit to the others, with its own offset, step size"
        " and stopping time. Nothing was trained for this: the fit is the one that the model's tangent kernel predicts."
        f"{seen}"
        " Real training follows it at first and drifts away later: the longer, the less certain."
        " The intervals hold the luck of which examples were seen."
    )


def _data(advice: Advice) -> str:
    found = advice.findings
    rows = [
        f"| {size.trained_on} | {percent(float(np.nanmean(size.chosen_correct)))} |"
        f" {np.nanmean(size.chosen_loss):.3f} | {np.median(size.steps):.0f} |"
        for size in found.sizes
    ]
    table = "\n".join(["| examples | accuracy | squared error | steps |", "|---|---|---|---|", *rows])
    text = f"## Would more data help?\n\n{_more_data(advice)}\n\n{table}\n\n"
    value, low, high = found.exponent
    if math.isfinite(value):
        text += f"The squared error falls like n^{value:.2f} ({low:.2f} to {high:.2f}) over these sizes"
        ends = sorted(found.rate.interval)
        spread = f" ({ends[0]:.2f} to {ends[1]:.2f})" if ends[1] > ends[0] else ""
        text += f"; its part above the noise should fall like n^{found.rate.slope:.2f}{spread}"
        text += " by the decay of the kernel's eigenvalues. A trend over so few sizes need not go on."
    return text.rstrip()


def _sure(advice: Advice, verdict: Verdict) -> str:
    lines = [f"- {doubt.text}" for doubt in verdict.doubts] or ["- No reservation: the rules agree."]
    return f"## How sure is this?\n\nAs a whole: {CONFIDENCE[verdict.confidence]}.\n\n" + "\n".join(lines)


def _rules(advice: Advice) -> str:
    found = advice.findings
    rows = []
    for stop in found.stops:
        mark = "**" if stop.rule == found.decision.stop.rule else ""
        late = ", the longest considered" if BEYOND in stop.flags else ""
        answer = f"{stop.t}{late}" if stop.t is not None else f"none: {why(stop)}"
        rows.append(f"| {mark}{stop.rule}{mark} | {answer} | {ROW[stop.rule].words} |")
    unit = "steps" if advice.settings.adam else "full-batch steps"
    table = "\n".join([f"| rule | {unit} | what it does |", "|---|---|---|", *rows])
    rule = found.decision.stop.rule
    first = f"The advice follows `{rule}`, " + (
        "the first choice." if rule == DEFAULT_RULE else f"since the first choice, `{DEFAULT_RULE}`, gave no time."
    )
    return f"## Every rule's answer\n\n{first}\n\n{table}"


def follow_up(advice: Advice) -> dict[str, Any] | None:
    """Return a configuration of the workflow that really trains on these data, or None when too few rows are left."""
    settings, found = advice.settings, advice.findings
    n, spare = found.problem.examples, advice.task.counts["examples"] - found.problem.examples
    if found.decision.t == 0 or spare < 24:
        return None
    kind, path = next(iter(advice.file.source.items()))
    source = {**advice.file.source, kind: str(Path(path).expanduser().resolve())}
    task = {"source": source, "text": list(advice.file.text), "label": advice.file.label, **_words(advice)}
    budget = advice.task.max_tokens - (0 if "verbalizers" in task else advice.task.options)
    steps = max(2 * found.decision.t, 4)
    training: dict[str, Any] = {"objective": "squared", "optimizer": settings.optimizer, "learning_rate": None}
    if settings.adam:
        training["batch_size"] = found.recipes[0].batch_size
    else:
        training["momentum"] = settings.momentum
    return {
        "name": "advice",
        "seeds": [settings.seed],
        "sizes": [n],
        "model": {"source": settings.model, "revision": settings.revision},
        "tasks": {"mine": task},
        "data": {"max_tokens": budget, "validation": min(32, spare // 3), "test": min(96, spare // 2)},
        "kernel": {"parameters": settings.parameters, "formula": "adam" if settings.adam else "sgd"},
        "stopping": {"target_scale": found.problem.scale},
        "finetune": {
            **training,
            "step_size": settings.step_size,
            "steps": steps,
            "evaluate_every": max(1, steps // 8),
            "patience": 3,
            "stop": "none",
        },
        "arithmetic": {"enabled": False},
    }


def _words(advice: Advice) -> dict[str, Any]:
    """Return the template and the words of the follow-up: those of the task, or none where they are chosen anew."""
    settings, left_out = advice.settings, advice.file.task.classes.left_out
    if settings.verbalizers or not (advice.task.options or left_out):
        others = {"other_labels": "leave_out"} if left_out else {}
        return {"template": advice.task.template.text, "verbalizers": dict(advice.task.verbalizers), **others}
    return {"template": advice.file.task.template.text}


def _go_on(advice: Advice) -> str:
    config = follow_up(advice)
    if config is None:
        return ""
    text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=120)
    return (
        "## Try it\n\nTwice as long, measured on other rows of your file, with the workflow: save this as `advice.yaml`"
        f" and run `snakemake --cores 2 --configfile advice.yaml`.\n\n```yaml\n{text}```"
    )
