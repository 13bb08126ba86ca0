"""Compare how a new head may start: as a regression on the features, or at random; and record both beside real runs.

    python tools/head_starts.py        trains minilm on trec, and writes docs/records/trainer/starts.{parquet,md}

For each start and learning rate the kernel says what trainings of several lengths come to. Then each length is trained
for real, with its whole schedule, and measured on test examples that training does not see. Takes a few minutes.
"""

from __future__ import annotations

import tempfile
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stock_trainer import RECORD, Case, Row, measured, prepared

CASE = Case("starts", "minilm", False, 1e-4, 16, (("trec", 0),), every=1, test=200)
BATCH, LENGTHS = 16, (4, 8, 16, 32, 64)
NATURAL = 4.0  # a learning rate of so many 1/lambda_1: the largest whose predictions were compared with real runs
STARTS = (("probe", None), ("probe", 1e-4), ("random", 1e-4))


def made_trainer(start: str, rate: float, steps: int, folder: str) -> tuple[Any, Any, np.ndarray | None]:
    """Return a Trainer of so many steps with its head started, its data, and the head's logits without each example."""
    from transformers import DataCollatorWithPadding, Trainer, TrainingArguments, set_seed

    from stopwise.training.probe import fit_probe, start_at

    data = prepared(CASE, "trec", 0)
    collator, left = DataCollatorWithPadding(data.tokenizer), None
    if start == "probe":
        probe = fit_probe(data.model, collator(data.rows), np.array([row["labels"] for row in data.rows]), 0)
        start_at(data.model, probe)
        left = probe.left_out
    args = TrainingArguments(
        folder,
        max_steps=steps,
        learning_rate=rate,
        per_device_train_batch_size=BATCH,
        warmup_steps=0.1,
        seed=0,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    set_seed(0)
    return Trainer(data.model, args, train_dataset=data.rows, data_collator=collator), data, left


def rows_of(start: str, rate: float | None) -> list[Row]:
    """Return what the kernel expects of each length, and what its real training came to."""
    from stopwise.integrations.horizon import read_horizon

    with tempfile.TemporaryDirectory() as folder:
        trainer, data, left = made_trainer(start, rate or 1e-5, LENGTHS[-1], folder)
        found, _ = read_horizon(trainer, step_size=NATURAL if rate is None else None, left_logits=left)
        begin = measured(data.model, data.test)
        rows = []
        for steps in (0, *LENGTHS):
            loss, accuracy = begin
            if steps:
                trainer, data, _ = made_trainer(start, found.learning_rate, steps, folder)
                trainer.train()
                loss, accuracy = measured(data.model, data.test)
            expected = float(np.interp(np.log1p(steps), np.log1p(found.steps), found.accuracy))
            rows.append(
                {
                    "start": start,
                    "learning_rate": found.learning_rate,
                    "largest_step": found.largest_step,
                    "named": found.t,
                    "steps": steps,
                    "expected_loss": found.at(steps),
                    "loss": loss,
                    "expected_accuracy": expected,
                    "accuracy": accuracy,
                }
            )
    return rows


def page(rows: list[Row]) -> str:
    """Return the record as Markdown: one row a start and rate."""
    lines = [
        "# How a new head may start",
        "",
        "Written by `python tools/head_starts.py`: `minilm` on `trec`, 64 questions, batches of 16, one seed, 200 test"
        " questions, a real training of every length.",
        "",
        "| start | rate | stop by the kernel | best real length | log-loss at the last: expected, real | accuracy at"
        " the last: expected, real | log-loss at the start |",
        "|" + "---|" * 7,
    ]
    for key in dict.fromkeys((row["start"], row["learning_rate"]) for row in rows):
        own = [row for row in rows if (row["start"], row["learning_rate"]) == key]
        best, last = min(own, key=lambda row: row["loss"]), own[-1]
        trusted = f" ({last['largest_step']:.1f}/λ₁)"
        lines.append(
            f"| {key[0]} | {key[1]:.2g}{trusted} | {last['named']} | {best['steps']} |"
            f" {last['expected_loss']:.2f}, {last['loss']:.2f} |"
            f" {100 * last['expected_accuracy']:.0f} %, {100 * last['accuracy']:.0f} % | {own[0]['loss']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure every start, and write the record."""
    rows = [row for start, rate in STARTS for row in rows_of(start, rate)]
    RECORD.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), RECORD / "starts.parquet")
    (RECORD / "starts.md").write_text(page(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
