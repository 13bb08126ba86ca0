"""Judge the answer for more labels than a kernel holds: 256 labels foretold from 64, beside the kernel of the 256.

    python tools/larger_labels.py                   every data set that is not finished yet, then the record
    python tools/larger_labels.py movie spam        these data sets, then the record

The data sets are the eight of development, the model the built-in encoder under a head that starts as a logistic
regression. 256 labels of each are drawn once. `stopwise.advise` is asked about them twice, at one learning rate: with a
kernel of 64 of them, carried to 256, and with a kernel of all. Both are replayed leave-one-out; no test example is read
and nothing is trained. The unit is the data set. A finished one is kept under results/larger-labels, and the record of
all is docs/records/larger-labels.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parents[1]
KEPT = ROOT / "results" / "larger-labels"
RECORD = ROOT / "docs" / "records" / "larger-labels"
ASSETS = ROOT / "results" / "assets"
TASKS = ("movie", "amazon", "tweets", "nyt", "trec", "spam", "privacyqa", "headlines")
FEW, MANY, TOKENS = 64, 256, 48
Row = dict[str, Any]


def rows_of(task: str) -> tuple[list[Row], list[str]]:
    """Return the labelled texts of a data set, balanced by class, and the names of its text columns."""
    from stopwise.tasks.head import head_task

    sizes = {"max_tokens": TOKENS, "train": MANY, "validation": 2, "test": 2}
    named = head_task({}, sizes, name=task, assets=ASSETS)
    labels = list(named.classes.labels)
    found = named.split(0)["train"]
    return [{**one.texts, "label_": labels[one.label]} for one in found], list(found[0].texts)


def judged(task: str) -> Row:
    """Return what 64 labels foretold of 256, and what the kernel of the 256 says."""
    import stopwise

    rows, text = rows_of(task)
    common: Row = {"text": text, "label": "label_", "head": True, "max_tokens": TOKENS, "assets": str(ASSETS)}
    few = stopwise.advise("minilm", rows, max_examples=FEW, size=MANY, **common)
    rate = few.stop.learning_rate
    many = stopwise.advise("minilm", rows, max_examples=MANY, learning_rate=rate, max_grad_norm=0, **common)
    told, found = few.larger, many.stop
    assert told is not None
    x, steps = np.log1p(found.steps.astype(float)), float(np.clip(told.steps, 0, found.steps[-1]))
    there = float(np.interp(np.log1p(steps), x, found.loss))
    best = int(np.argmin(found.loss))
    row: Row = {
        "task": task,
        "classes": len(many.data.classes),
        "examples": len(many.data.labels),
        "learning_rate": rate,
        "exponent": told.exponent[0],
        "steps_of_64": few.stop.t,
        "foretold_steps": told.steps,
        "steps": int(found.steps[best]),
        "low": found.low,
        "high": found.high,
        "last": int(found.steps[-1]),
        "cost": there / float(found.loss[best]) - 1,
        "cost_of_the_same_steps": float(np.interp(np.log1p(few.stop.t), x, found.loss)) / float(found.loss[best]) - 1,
        "loss_of_64": float(few.stop.loss[few.stop.best]),
        "loss": float(found.losses[best].mean()),
        "accuracy": float(found.correct[best].mean()),
    }
    for name, interval in (("loss", told.loss), ("accuracy", told.accuracy)):
        values = (None, None, None) if interval is None else interval
        row |= dict(zip((f"foretold_{name}", f"{name}_low", f"{name}_high"), values, strict=True))
    return row


def run(task: str) -> None:
    """Judge one data set and keep what was found."""
    began, path = time.monotonic(), KEPT / f"{task}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    found = judged(task)
    path.with_suffix(".part").write_text(json.dumps(found), encoding="utf-8")
    os.replace(path.with_suffix(".part"), path)
    print(f"{task}: {time.monotonic() - began:.0f} s", flush=True)


def record() -> None:
    """Write the table of all finished data sets, and its page."""
    kept = [KEPT / f"{task}.json" for task in TASKS]
    rows = [json.loads(path.read_text(encoding="utf-8")) for path in kept if path.is_file()]
    RECORD.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), RECORD / "labels.parquet")
    (RECORD / "README.md").write_text(page(rows), encoding="utf-8")


def page(rows: list[Row]) -> str:
    """Return the record as Markdown."""
    lines = [
        f"# {MANY} labels foretold from {FEW}",
        "",
        "Written by `python tools/larger_labels.py`.",
        f"The built-in encoder under a head that starts as a logistic regression, texts of at most {TOKENS} tokens.",
        f"Both kernels are read at the learning rate that the advice of {FEW} labels names.",
        f"*Cost* is the log-loss expected by the kernel of {MANY} after the foretold steps, over its lowest, minus 1.",
        "",
        f"| data set | classes | labels | steps for {FEW} | foretold | by the kernel of all, within 5 % | cost |"
        " cost of no carrying | log-loss foretold | found | accuracy foretold | found |",
        "|" + "---|" * 12,
    ]
    for row in rows:
        lines.append(
            f"| {row['task']} | {row['classes']} | {row['examples']} | {row['steps_of_64']} |"
            f" {row['foretold_steps']:.0f} | {row['steps']}, {row['low']:.0f} to {row['high']:.0f} |"
            f" {100 * row['cost']:.1f} % | {100 * row['cost_of_the_same_steps']:.1f} % |"
            f" {_interval(row, 'loss', 2)} | {row['loss']:.2f} | {_interval(row, 'accuracy', 2)} |"
            f" {row['accuracy']:.2f} |"
        )
    costs = np.array([row["cost"] for row in rows])
    same = np.array([row["cost_of_the_same_steps"] for row in rows])
    known = [row for row in rows if row["foretold_loss"] is not None]
    inside = {name: sum(row[f"{name}_low"] <= row[name] <= row[f"{name}_high"] for row in known) for name in NAMES}
    lines += [
        "",
        f"The foretold steps cost at most 5 % in {(costs <= 0.05).sum()} of {len(rows)} data sets (median"
        f" {100 * np.median(costs):.1f} %, largest {100 * costs.max():.1f} %); the steps for {FEW} labels, not carried,"
        f" in {(same <= 0.05).sum()}.",
        f"The interval of the log-loss held what was found in {inside['loss']} of {len(known)}, that of the accuracy in"
        f" {inside['accuracy']}.",
    ]
    if missing := [task for task in TASKS if task not in {row["task"] for row in rows}]:
        lines += ["", f"Not run yet: {', '.join(missing)}."]
    return "\n".join(lines) + "\n"


NAMES = ("loss", "accuracy")


def _interval(row: Row, name: str, digits: int) -> str:
    if row[f"foretold_{name}"] is None:
        return ""
    low, high = (f"{row[f'{name}_{end}']:.{digits}f}" for end in ("low", "high"))
    return f"{row[f'foretold_{name}']:.{digits}f} [{low}, {high}]"


def main(names: list[str]) -> None:
    """Judge the data sets of these names (all without names), then write the record."""
    if unknown := sorted(set(names) - set(TASKS)):
        raise SystemExit(f"larger_labels: {unknown[0]!r} is no data set; allowed: {', '.join(TASKS)}")
    for task in names or TASKS:
        if not (KEPT / f"{task}.json").is_file():
            run(task)
    record()


if __name__ == "__main__":
    main(sys.argv[1:])
