"""What the findings come to: train or not, the accuracies behind it, and every reason to doubt it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from stopwise.advice.findings import Advice, Findings
from stopwise.advice.held_out import accuracy_interval, paired_gain
from stopwise.stopping.closed_form import BEYOND
from stopwise.stopping.registry import AGREEING
from stopwise.stopping.stops import Stop

Interval = tuple[float, float, float]  # estimate, low, high

FEW_EXAMPLES, VERY_FEW_EXAMPLES, FEW_OF_A_CLASS = 32, 16, 8
DISAGREE = 4.0  # ratio of training times: within it the held-out error hardly moves on the tasks of this project
MANY_CUT = 0.2
# Training time in units of 1/lambda_1. In real runs of two sentiment tasks the test loss followed the kernel's
# prediction within 2 % up to 12 in one and about 60 in the other, and turned away later.
LONG = 60.0
UNLIKE_MIX = 0.1
BETTER_ELSEWHERE = 0.05  # accuracy at another time beyond that at the stop, the best of many times looked at
WHY = {
    "sigma_at_boundary": "it estimated the noise of the labels as zero, which a few examples cannot establish",
    "not_identifiable": "noise and signal cannot be told apart in this kernel",
    BEYOND: "its best time lies beyond the longest one considered",
    "no_degrees_left": "there are too few examples for it",
    "too_few_examples": "there are too few examples for it",
}


@dataclass(frozen=True)
class Doubt:
    """One reason to doubt the advice: a short code for tables, and a sentence."""

    code: str
    text: str


@dataclass(frozen=True)
class Verdict:
    """``kind`` is train, unclear (the gain's interval holds 0), do_not_train or no_answer.

    Accuracies with 95 % intervals: ``trained`` held out, after training to the advised stop; ``zero_shot``: the prompt
    alone; ``with_offset``: the prompt with the intercept fitted. ``gain``: of training over ``baseline``, the better of
    the last two, on the same examples. ``confidence``: good without a doubt, low below 16 examples or with three.
    """

    kind: str
    confidence: str
    doubts: tuple[Doubt, ...]
    trained: Interval
    zero_shot: Interval
    with_offset: Interval
    baseline: str
    gain: Interval


def verdict_of(advice: Advice) -> Verdict:
    """Return the verdict: do not train when the rule says step 0 or no gain shows on examples left out."""
    found = advice.findings
    crossed = found.crossed
    zero_shot, with_offset = accuracy_interval(found.zero_shot), accuracy_interval(crossed.offset_correct)
    baseline = "with_offset" if with_offset[0] > zero_shot[0] else "zero_shot"
    before = crossed.offset_correct if baseline == "with_offset" else found.zero_shot
    gain = paired_gain(crossed.chosen_correct, before)
    if found.decision.stop.t is None:
        kind = "no_answer"
    elif found.decision.t == 0 or gain[0] <= 0:
        kind = "do_not_train"
    else:
        kind = "train" if gain[1] > 0 else "unclear"
    doubts = tuple(_doubts(advice))
    low = found.problem.examples < VERY_FEW_EXAMPLES or len(doubts) > 2
    confidence = "low" if low else "fair" if doubts else "good"
    trained = accuracy_interval(crossed.chosen_correct)
    return Verdict(kind, confidence, doubts, trained, zero_shot, with_offset, baseline, gain)


def _doubts(advice: Advice) -> list[Doubt]:
    return [*_about_rules(advice.findings, advice.settings.t_max), *_about_data(advice)]


def _about_rules(found: Findings, t_max: int) -> list[Doubt]:
    out, stop = [], found.decision.stop
    if stop.t is None:
        out.append(Doubt("no_rule", f"No rule gave a time: {why(stop)}."))
    elif found.decision.passed_over:
        reasons = "; ".join(f"`{one.rule}` gave no time because {why(one)}" for one in found.decision.passed_over)
        out.append(Doubt("fallback", f"{reasons}. `{stop.rule}` was used instead."))
    if BEYOND in stop.flags:
        out.append(
            Doubt("beyond", f"The error was still falling at {t_max} steps, the longest time considered (`--steps`).")
        )
    elif stop.t is not None and stop.eta * found.lambda_max > LONG:
        out.append(
            Doubt(
                "long", "So long a training may leave the range that the kernel predicts: watch held-out texts as well."
            )
        )
    answers = {one.rule: one for one in found.stops if one.rule in AGREEING and one.t is not None}
    etas = [one.eta for one in answers.values()]
    if len(etas) > 1 and max(etas) > DISAGREE * min(etas):
        times = ", ".join(f"`{rule}` {one.t}" for rule, one in answers.items())
        out.append(Doubt("disagreement", f"The rules disagree about the number of steps: {times}."))
    if stop.t is not None and not found.low_step <= stop.t <= found.high_step:
        out.append(
            Doubt(
                "not_best",
                f"On examples left out of the fit the error was lowest at {found.best_step} steps ({found.low_step} to"
                f" {found.high_step} are within 5 % of it), not at {stop.t}.",
            )
        )
    accuracies = found.crossed.correct.mean(axis=1)
    peak = int(np.argmax(accuracies))
    if stop.t is not None and accuracies[peak] > accuracies[stop.t] + BETTER_ELSEWHERE:
        shown = f"{100 * accuracies[peak]:.0f} % at {peak} steps, {100 * accuracies[stop.t]:.0f} % at {stop.t}"
        out.append(
            Doubt(
                "better_accuracy",
                f"The rules look at the squared error; the accuracy on examples left out is better elsewhere: {shown}."
                " As the best of many times looked at, that is partly luck.",
            )
        )
    if "duplicated_examples" in found.flags:
        out.append(Doubt("duplicates", "To the model some of the examples are the same: they count as fewer."))
    return out


def why(stop: Stop) -> str:
    """Return in words why a rule gave no time."""
    return next((text for flag, text in WHY.items() if flag in stop.flags), "it had no answer")


def _about_data(advice: Advice) -> list[Doubt]:
    n, out = advice.findings.problem.examples, []
    names = advice.sample["label_name"].to_pylist()
    counts = Counter(names)
    if n < FEW_EXAMPLES:
        out.append(Doubt("few_examples", f"There are only {n} examples."))
    shares = advice.file.used
    rows = sum(shares.values())
    rare = [f"{name} ({counts[name]})" for name in shares if counts[name] < FEW_OF_A_CLASS]
    if rare:
        out.append(Doubt("rare_class", f"Few examples of {', '.join(rare)}."))
    moved = max(abs(counts[name] / n - count / rows) for name, count in shares.items())
    if moved > UNLIKE_MIX:
        out.append(
            Doubt(
                "other_mix",
                "The examples hold the labels as evenly as possible, your file does not: the accuracies are those of"
                " the even mix.",
            )
        )
    cut = int(np.sum(advice.sample["cut"].to_numpy(zero_copy_only=False)))
    if cut > MANY_CUT * n:
        limit = advice.task.max_tokens
        out.append(
            Doubt("cut_texts", f"{cut} of {n} texts were cut to {limit} tokens of prompt: try a larger `--max-tokens`.")
        )
    return out
