"""The tables of the results pages, computed from the records of runs in docs/records (no torch)."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from stopwise.stats import mean_interval, wilson
from stopwise.stopping.judging import HIT
from stopwise.stopping.scores import rule_lines, rule_table
from stopwise.studies.on_real_runs import TITLES, equal_labels, equal_labels_text
from stopwise.tasks.task import Task

RECORDS = Path(__file__).resolve().parents[1] / "docs" / "records"
# How a regime of real training is written; the number of hold-out labels is that of its configuration.
REGIMES = {
    "study-heavy-ball": "heavy ball, target scale 1",
    "paper-small": "heavy ball, target scale 1, the runs of `paper-small`",
    "target-scale": "heavy ball, target scale 4",
    "set-aside": "heavy ball, target scale 1, set aside",
    "study-sgd": "mini-batch SGD",
    "study-adam": "AdamW, its own kernel, squared loss",
    "set-aside-adam": "AdamW, its own kernel, squared loss, set aside",
    "study-adamw": "AdamW at 1e-4, cross-entropy, the plain kernel",
}
# How the kernel's own path is written: record and objective.
PATHS = {
    ("stopping-study", "squared"): "the kernel's path, squared loss",
    ("set-aside", "squared"): "the kernel's path, squared loss, set aside",
    ("stopping-study", "cross_entropy"): "the kernel's path, cross-entropy",
}
VALIDATION = 32
# What the study set out to reach: hit rate, median regret, 90th percentile, share that beats hold-out stopping.
GOAL = (0.8, 0.02, 0.1, 0.6)
Rows = list[dict[str, Any]]


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def percent(value: float, digits: int = 0) -> str:
    """Return a share as per cent."""
    return f"{100 * value:.{digits}f} %"


def rows_of(record: str, name: str) -> Rows:
    """Return the rows of one recorded table that belong to the pretrained start."""
    return [row for row in pq.read_table(RECORDS / record / f"{name}.parquet").to_pylist() if _pretrained(row)]


def _pretrained(row: dict[str, Any]) -> bool:
    return row.get("start", "pretrained") == "pretrained"


def run_of(row: dict[str, Any]) -> tuple:
    """Return which run a row belongs to."""
    return row["task"], row["seed"], row["n"]


def curves(record: str) -> dict[tuple, Rows]:
    """Return the evaluations of each recorded run, in order of steps; none where no curve was recorded."""
    if not (RECORDS / record / "trajectory.parquet").is_file():
        return {}
    found = grouped(rows_of(record, "trajectory"), run_of)
    return {run: sorted(own, key=lambda row: row["step"]) for run, own in found.items()}


def grouped(rows: Rows, key: Callable[[dict[str, Any]], Hashable]) -> dict[Any, Rows]:
    """Return the rows by key, in the order of their first appearance, on which the bootstrap's draws depend."""
    groups: dict[Any, Rows] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


@cache
def evaluations(record: str) -> Rows:
    """Return what was judged on real runs: the configured rules, all steps, the path's own best step, equal labels."""
    if record == "set-aside":
        return rows_of(record, "runs")
    rows, runs = rows_of(record, "evaluation"), curves(record)
    oracles = {run_of(row): row for row in rows if row["rule"] == "oracle"}
    for run, curve in runs.items():
        path = [row["linearised_test_loss"] for row in curve]
        if all(loss is not None for loss in path):
            rows.append(_judged("path_oracle", curve[int(np.argmin(path))], oracles[run]))
        rows.append(_judged("all_steps", curve[-1], oracles[run]))
    for own in grouped(rows, lambda row: (row["task"], row["seed"])).values():
        rows += equal_labels(own, VALIDATION)
    return rows


def _judged(rule: str, at: dict[str, Any], oracle: dict[str, Any]) -> dict[str, Any]:
    """Return the row of a method that takes one evaluation of the run."""
    regret = at["test_loss"] / oracle["loss_oracle"] - 1
    ratio = at["step"] / oracle["t_oracle"] if oracle["t_oracle"] > 0 else None
    judged = {"rule": rule, "t": at["step"], "loss": at["test_loss"], "accuracy": at["test_accuracy"], "ratio": ratio}
    return {**oracle, **judged, "relative_regret": regret, "hit": bool(regret <= HIT)}


def included(file: str, number: str = "1", first: str | None = None) -> str:
    """Return the table of that number (from 1) in a page of the records; ``first`` keeps rows that begin with it."""
    tables, text = [], (RECORDS / file).read_text(encoding="utf-8").splitlines()
    for is_table, lines in groupby(text, key=lambda line: line.startswith("|")):
        tables += [list(lines)] if is_table else []
    found = tables[int(number) - 1]
    if first is not None:
        head, rows = found[:2], [line for line in found[2:] if line.split("|")[1].strip() == first]
        found = without_first_column([*head, *rows])
    return "\n".join(found)


def without_first_column(lines: Iterable[str]) -> list[str]:
    """Return table lines without their first cells."""
    return ["|" + line.split("|", 2)[2] for line in lines]


def runs(record: str) -> str:
    """Return how every method did on the real runs of a record."""
    rows = evaluations(record)
    lines = rule_lines([row for row in rule_table(rows) if row["rule"] != "oracle"], TITLES)
    return "\n".join(without_first_column(lines))


def equal(record: str) -> str:
    """Return the sentence that compares `bayes` and hold-out stopping at equal labels."""
    return equal_labels_text(evaluations(record))


def fixed_runs() -> str:
    """Return the rules on the 20 runs fixed beforehand (n = 32 and 128, seeds 0 and 1), in the two runs with them."""
    out = []
    for record in ("study-heavy-ball", "paper-small"):
        rows = [row for row in evaluations(record) if row["n"] in (32, 128) and row["seed"] < 2]
        shown_rules = ("sure", "loo", "bayes", "holdout", "all_steps")
        for row in rule_table([row for row in rows if row["rule"] in shown_rules]):
            if row["answered"]:
                values = (row["hits"], row["regret"], row["regret_90"], row["no_worse"])
                answers = f"{row['answered']} of {row['runs']}"
                shown = [percent(value[0], digits) for value, digits in zip(values, (0, 1, 0, 0), strict=True)]
                out.append([f"`{record}`", TITLES.get(row["rule"], row["rule"]), answers, *shown])
    head = ["record", "method", "answers", "hit rate", "median regret", "90th percentile", "no worse than hold-out"]
    return table(head, out)


def cells(record: str, objective: str) -> Rows:
    """Return the judged cells of a study on the kernel's path."""
    return [row for row in rows_of(record, "study/cells") if row.get("objective", "squared") == objective]


def goal() -> str:
    """Return how `bayes` stands to the goal in every regime, on the path and in real training."""
    out = []
    for (record, objective), name in PATHS.items():
        own = [row for row in cells(record, objective) if row["method"] == "bayes"]
        regret = np.array([row["relative_regret"] for row in own])
        better = np.mean([row["loss"] < row["loss_holdout"] for row in own])
        found = (np.mean([row["hit"] for row in own]), np.median(regret), np.quantile(regret, 0.9), better)
        out.append([name, f"{len(own)} cells", *_goal_cells(found, "equal labels")])
    for record, name in REGIMES.items():
        rows = [row for row in evaluations(record) if row["rule"] in ("bayes", "holdout")]  # each rule is redrawn
        row = next(row for row in rule_table(rows) if row["rule"] == "bayes")
        found = tuple(row[key][0] for key in ("hits", "regret", "regret_90", "no_worse"))
        out.append([name, f"{row['runs']} runs", *_goal_cells(found, f"{VALIDATION} labels more")])
    head = ["where", "judged on", "hit rate", "median regret", "90th percentile", "no worse than hold-out", "goal"]
    return table(head, out)


def _goal_cells(found: tuple, labels: str) -> list[str]:
    """Return the four measures and whether the goal is met."""
    hit, median, tail, better = found
    missed = [
        word
        for word, met in (
            ("hit rate", hit >= GOAL[0]),
            ("median", median <= GOAL[1]),
            ("90th percentile", tail <= GOAL[2]),
            ("hold-out", better >= GOAL[3]),
        )
        if not met
    ]
    words = "met" if not missed else f"not met: {', '.join(missed)}"
    return [percent(hit), percent(median, 1), percent(tail), f"{percent(better)}, {labels}", words]


def data_sets() -> str:
    """Return the hit rate of `bayes` with its interval over data sets, the units that share no text."""
    found: list[tuple[str, Rows]] = []
    for (record, objective), name in PATHS.items():
        found.append((name, [row for row in cells(record, objective) if row["method"] == "bayes"]))
    for record, name in REGIMES.items():
        found.append((name, [row for row in evaluations(record) if row["rule"] == "bayes"]))
    out = []
    for name, rows in found:
        groups = by_data_set(rows)
        rates = [float(np.mean([row["hit"] for row in own])) for own in groups.values()]
        _, low, high = mean_interval(rates)
        if len(set(rates)) == 1:  # Student's interval of equal numbers is empty
            low, high = wilson(rates[0] * len(rates), len(rates))
        each = ", ".join(f"{task} {percent(rate)}" for task, rate in zip(groups, rates, strict=True))
        interval = f"[{100 * max(0, low):.0f}, {100 * min(1, high):.0f}]"
        out.append([name, percent(np.mean([row["hit"] for row in rows])), interval, each])
    return table(["where", "hit rate of `bayes`", "95 % over data sets", "each data set"], out)


def by_data_set(rows: Rows) -> dict[str, Rows]:
    """Return the rows of each data set; a task asked in other words (`movie_liked`) shares the texts of `movie`."""
    return grouped(rows, lambda row: row["task"].split("_")[0])


def by_size(record: str, objective: str) -> str:
    """Return the hit rates by number of examples on the path."""
    rows, methods = cells(record, objective), ("bayes", "loo", "holdout")
    sizes = sorted({row["n"] for row in rows})
    out = []
    for method in methods:
        own = [row for row in rows if row["method"] == method]
        rates = [np.mean([row["hit"] for row in own if row["n"] == n]) for n in sizes]
        out.append([TITLES.get(method, method), *map(percent, rates)])
    return table(["hit rate", *(f"n = {n}" for n in sizes)], out)


def constants() -> str:
    """Return what one training time for all does, chosen on development's other data sets, beside `bayes`."""
    out = []
    for (record, objective), name in PATHS.items():
        rows = cells(record, objective)
        etas = list(dict.fromkeys(row["method"] for row in rows if row["method"].startswith("eta_")))
        groups, hits = by_data_set(rows), []
        known = by_data_set(cells("stopping-study", objective))
        for left_out in groups:
            others = [row for key, own in known.items() if key != left_out for row in own]
            best = max(etas, key=lambda eta: np.mean([row["hit"] for row in others if row["method"] == eta]))
            hits += [row["hit"] for row in groups[left_out] if row["method"] == best]
        oracle = [row for row in rows if row["method"] == "oracle"]
        window = np.median([row["high"] / max(row["low"], 1) for row in oracle])
        bayes = np.mean([row["hit"] for row in rows if row["method"] == "bayes"])
        out.append([name, percent(bayes), percent(np.mean(hits)), f"{window:.0f}"])
    chosen = "one η = c/λ̂₁, c chosen on the other data sets of development"
    return table(["where", "`bayes`", chosen, "last / first step within 5 %, median"], out)


# Whom `bayes` is held against, run by run: method and words.
OPPONENTS = {
    "holdout": "hold-out",
    "cv5": "5-fold cross-validation",
    "loo": "`loo`",
    "bayes_slope_1": "`bayes` with the slope of f0 held at 1",
    "bayes_plug_in": "`bayes` with the most likely noise only",
    "eta_100": "one η = 100/λ̂₁",
}


def paired() -> str:
    """Return how many more points `bayes` hits than others on the same runs, with intervals over data sets."""
    out = []
    for (record, objective), name in PATHS.items():
        rows = cells(record, objective)
        here = {row["method"] for row in rows}
        for other, words in OPPONENTS.items():
            if other in here:
                labels = ", equal labels" if other == "holdout" else ""
                out.append([name, words + labels, *_differences(rows, "method", other)])
    equal = _differences(evaluations("study-heavy-ball"), "rule", "holdout_equal")
    for record, name in REGIMES.items():
        rows = [row for row in evaluations(record) if row["hit"] is not None]
        out.append([name, "hold-out, 32 labels more", *_differences(rows, "rule", "holdout")])
        if record == "study-heavy-ball":
            out.append([name, "hold-out, equal labels", *equal])
    return table(["where", "`bayes` against", "won, lost", "points more, 95 % over data sets"], out)


def _differences(rows: Rows, key: str, other: str) -> list[str]:
    """Return the runs that `bayes` alone hits and those that the other alone hits, and the mean difference in hits."""
    answers = {name: {run_of(row): row["hit"] for row in rows if row[key] == name} for name in ("bayes", other)}
    both = [run for run in answers["bayes"] if run in answers[other]]
    differences = [int(answers["bayes"][run]) - int(answers[other][run]) for run in both]
    groups = by_data_set([{"task": run[0], "more": more} for run, more in zip(both, differences, strict=True)])
    value, low, high = mean_interval([float(np.mean([row["more"] for row in own])) for own in groups.values()])
    low, high = max(-1.0, low), min(1.0, high)
    counts = f"{sum(d > 0 for d in differences)}, {sum(d < 0 for d in differences)} of {len(both)}"
    return [counts, f"{100 * value:+.0f} [{100 * low:+.0f}, {100 * high:+.0f}]"]


def cross_entropy_runs() -> str:
    """Return how `bayes` did on the small runs of real training on cross-entropy with the rules that follow it."""
    out = []
    for record, words in (("demo", "language model, words, AdamW"), ("demo-encoder", "encoder, new head, AdamW")):
        rows = rows_of(record, "evaluation")
        total = len({run_of(row) for row in rows})
        hits = {rule: sum(row["hit"] for row in rows if row["rule"] == rule) for rule in ("bayes", "holdout")}
        out.append([f"[`{record}`](../records/{record}/README.md)", words, total, hits["bayes"], hits["holdout"]])
    rows = pq.read_table(RECORDS / "trainer" / "runs.parquet").to_pylist()
    hits = sum(row["regret"] <= HIT for row in rows)
    out.append(["[`trainer`](../records/trainer/README.md)", "the stock Trainer, both models", len(rows), hits, "–"])
    return table(["record", "training", "runs", "`bayes` hits", "hold-out hits, 32 labels more"], out)


def accuracy_changes() -> str:
    """Return by how many points accuracy changes from the prompt with offset to the stop of `bayes`, by data set."""
    out = []
    for record, name in REGIMES.items():
        if not (RECORDS / record / "summary.parquet").is_file():
            continue
        rows = [row for row in rows_of(record, "summary") if row["n"] == 64]
        at = {(row["task"], row["method"]): row["accuracy"] for row in rows}
        tasks = list(dict.fromkeys(row["task"] for row in rows))
        if not tasks:
            continue
        each = [at[task, "bayes"] - at[task, "zero_shot_intercept"] for task in tasks]
        value, low, high = mean_interval(each)
        shown = ", ".join(f"{task} {100 * change:+.0f}" for task, change in zip(tasks, each, strict=True))
        out.append([name, f"{100 * value:+.1f} [{100 * low:+.0f}, {100 * high:+.0f}]", shown])
    return table(["training, n = 64", "points, 95 % over data sets", "each data set"], out)


def accuracies_on_the_path() -> str:
    """Return the mean accuracy on the path of cross-entropy: stopping hardly changes it."""
    rows, out = cells("stopping-study", "cross_entropy"), []
    names = {"eta_0": "no training", "bayes": "bayes", "oracle": "oracle", "eta_1000": "η = 1000/λ̂₁"}
    for method, name in names.items():
        own = [row for row in rows if row["method"] == method]
        regret = np.median([row["relative_regret"] for row in own])
        out.append([name, f"{np.mean([row['accuracy'] for row in own]):.3f}", percent(regret, 1)])
    return table(["stop", "mean accuracy", "median regret in log-loss"], out)


def regimes() -> str:
    """Return what each regime of real training does, and the trivial rules beside `bayes`."""
    out = []
    for record, name in REGIMES.items():
        rows = evaluations(record)
        total = len({run_of(row) for row in rows})
        rates = {rule: _rate(rows, rule) for rule in ("bayes", "all_steps", "holdout")}
        last = sum(row["t_oracle"] == row["t"] for row in rows if row["rule"] == "all_steps")
        out.append([name, total, f"{last} of {total}", *(rates[rule] for rule in ("bayes", "all_steps", "holdout"))])
    head = ["training", "runs", "best step is the last", "`bayes`", "all steps", "hold-out, 32 labels more"]
    return table(head, out)


def _rate(rows: Rows, rule: str) -> str:
    own = [row["hit"] for row in rows if row["rule"] == rule and row["relative_regret"] is not None]
    return percent(np.mean(own)) if own else "–"


def learning() -> str:
    """Return how much the runs of n = 64 learn: accuracy before, at `bayes`, at the best step and at the end."""
    out = []
    for record, name in REGIMES.items():
        found = {run: curve for run, curve in curves(record).items() if run[2] == 64}
        if not found:
            continue
        rows = [row for row in evaluations(record) if row["n"] == 64]
        at = {rule: _accuracy(rows, rule) for rule in ("bayes", "oracle", "all_steps")}
        start = np.mean([curve[0]["test_accuracy"] for curve in found.values()])
        out.append([name, len(found), f"{start:.3f}", *(f"{at[rule]:.3f}" for rule in at), constant(record, rows)])
    head = ["training, n = 64", "runs", "before", "`bayes`", "best step", "last step", "best loss above that of 0"]
    return table(head, out)


def _accuracy(rows: Rows, rule: str) -> float:
    return float(np.mean([row["accuracy"] for row in rows if row["rule"] == rule]))


def constant(record: str, rows: Rows) -> str:
    """Return in how many runs the best squared loss is above that of outputs that are 0 for every example.

    With targets s B e_label of C classes in C - 1 contrasts that loss is s² / C, the same for every label.
    """
    if "cross-entropy" in REGIMES[record]:
        return "–"
    scale = 4.0 if record == "target-scale" else 1.0
    own = [row for row in rows if row["rule"] == "oracle"]
    above = sum(row["loss"] > scale**2 / len(Task.from_config(row["task"]).verbalizers) for row in own)
    return f"{above} of {len(own)}"


def on_the_path() -> str:
    """Return how much of the regret of `bayes` in real training is there on the path already."""
    out = []
    for record, name in REGIMES.items():
        real, path = [], []
        stops = {run_of(row): row for row in evaluations(record) if row["rule"] == "bayes"}
        for run, curve in curves(record).items():
            losses = [row["linearised_test_loss"] for row in curve]
            if run in stops and all(loss is not None for loss in losses):
                at = float(np.interp(stops[run]["t"], [row["step"] for row in curve], losses))
                path.append(at / min(losses) - 1)
                real.append(stops[run]["relative_regret"])
        if real:
            missed = np.array(real) > HIT
            both = f"{int((missed & (np.array(path) > HIT)).sum())} of {int(missed.sum())}"
            out.append([name, percent(np.mean(real), 1), percent(np.mean(path), 1), both])
    head = ["training", "mean regret of `bayes`", "at the same step of the path", "misses that are misses on the path"]
    return table(head, out)


def last_steps() -> str:
    """Return how often `bayes` names the last step under AdamW's own kernel, and how often it hits then."""
    last, inside = [], []
    for record in ("study-adam", "set-aside-adam"):
        ends = {run: curve[-1]["step"] for run, curve in curves(record).items()}
        for row in rows_of(record, "evaluation"):
            if row["rule"] == "bayes":
                (last if row["t"] >= ends[run_of(row)] else inside).append(row["hit"])
    rows = [["the last step: no reason to stop", len(last), sum(last)], ["an earlier step", len(inside), sum(inside)]]
    return table(["`bayes` names", "runs", "hits"], rows)


def target_scale() -> str:
    """Return test accuracy at n = 64: without training, and stopped by `bayes` at two scales of the targets."""
    before = {(row["task"], row["method"]): row["accuracy"] for row in rows_of("target-scale", "summary")}
    tasks, out = dict.fromkeys(task for task, _ in before), []
    trained: dict[tuple, list[float]] = {}
    for record in ("study-heavy-ball", "target-scale"):
        for row in rows_of(record, "evaluation"):
            if row["rule"] == "bayes" and row["n"] == 64 and row["seed"] < 2:
                trained.setdefault((row["task"], record), []).append(row["accuracy"])
    for task in tasks:
        levels = [before[task, "zero_shot"], before[task, "zero_shot_intercept"]]
        levels += [float(np.mean(trained[task, record])) for record in ("study-heavy-ball", "target-scale")]
        out.append([task, *(f"{level:.3f}" for level in levels)])
    head = ["task", "zero-shot", "zero-shot + intercept", "trained, scale 1", "trained, scale 4"]
    return table(head, out)


def verdicts(record: str) -> str:
    """Return each claim of a record's page with its verdict, without the numbers, which stand on that page."""
    found = [line.strip("|").split("|") for line in included(f"{record}/claims.md").splitlines()]
    return table(["claim", "verdict"], [[cells[0].strip(), cells[-1].strip()] for cells in found[2:]])


def cost() -> str:
    """Return the estimate of what the paper's model costs on GPUs."""
    from stopwise.cost.estimate import cost_text

    return cost_text()


GENERATORS = {
    "included": included,
    "runs": runs,
    "equal": equal,
    "fixed_runs": fixed_runs,
    "goal": goal,
    "data_sets": data_sets,
    "by_size": by_size,
    "constants": constants,
    "paired": paired,
    "cross_entropy_runs": cross_entropy_runs,
    "accuracy_changes": accuracy_changes,
    "accuracies_on_the_path": accuracies_on_the_path,
    "regimes": regimes,
    "learning": learning,
    "on_the_path": on_the_path,
    "last_steps": last_steps,
    "target_scale": target_scale,
    "verdicts": verdicts,
    "cost": cost,
}
