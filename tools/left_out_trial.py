"""The left-out curve against the test curve, in real Trainers: the built-in encoder with a new head, 64 labels.

    python tools/left_out_trial.py                      all runs, into docs/records/left-out/runs.parquet
    python tools/left_out_trial.py --tasks movie --seeds 0 --rates 1e-4

Each run is the usual recipe: AdamW, batches of 8, ten epochs with linear decay, no warm-up. Two callbacks watch it and
change nothing: `StopwiseCallback(stop=False)`, which reads the kernel before the first step, and the same with
`left_out="anchored"`. At every value of the curve the test examples are asked too. A row is one step of one run:

- `left_out_loss`, `left_out_accuracy`: what the curve says, without a test example;
- `coherence`: how alike the kernels of its latest two checkpoints are;
- `predicted_loss`: what the kernel at the start said of this step, by the rule `bayes`;
- `train_loss`, `test_loss`, `test_accuracy`: as measured, in evaluation mode;
- `seconds`, `curve_seconds`: of the whole run without its test, and the part of it that the curve took.

A run that is finished is kept in the folder of `--parts` and not repeated.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import DataCollatorWithPadding, Trainer, TrainerCallback, TrainingArguments

from stopwise.assets.wheels import ASSETS
from stopwise.integrations.callback import StopwiseCallback
from stopwise.network.classifiers import load_classifier
from stopwise.network.quiet import untouched
from stopwise.tasks.head import head_task

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "docs" / "records" / "left-out" / "runs.parquet"
# Tasks of development: no choice is judged on them.
TASKS = ("movie", "amazon", "spam", "nyt")
TRAIN, TEST, TOKENS, BATCH, EPOCHS = 64, 500, 64, 8, 10
ANCHORS = 4


class Judge(TrainerCallback):
    """Ask the test examples whenever the curve has a value, and count the seconds that this takes."""

    def __init__(self, curve: StopwiseCallback, train: list[dict], test: list[dict], collator: Any) -> None:
        self.curve, self.parts, self.collator = curve, {"train": train, "test": test}, collator
        self.rows: dict[int, dict[str, float]] = {}
        self.seconds = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Ask before the first step."""
        self._ask(0, model)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Ask where the curve has just got a value."""
        if self.curve.curve and self.curve.curve[-1][0] == state.global_step:
            self._ask(state.global_step, model)

    def _ask(self, step: int, model: Any) -> None:
        began, row = time.monotonic(), {}
        for name, rows in self.parts.items():
            labels = torch.tensor([one["labels"] for one in rows])
            with untouched(model), torch.no_grad():
                parts = [rows[s : s + 64] for s in range(0, len(rows), 64)]
                logits = torch.cat([model(**self.collator(part)).logits for part in parts]).double()
            row[f"{name}_loss"] = float(torch.nn.functional.cross_entropy(logits, labels))
            row[f"{name}_accuracy"] = float((logits.argmax(1) == labels).double().mean())
        self.rows[step] = row
        self.seconds += time.monotonic() - began


def run(task: str, seed: int, rate: float, assets: str) -> pa.Table:
    """Train once, watched, and return a row for every value of the curve."""
    sizes = {"train": TRAIN, "validation": 1, "test": TEST, "max_tokens": TOKENS}
    described = head_task(None, sizes, name=task, assets=assets)
    classes = len(described.verbalizers)
    model, tokenizer = load_classifier("minilm", classes, seed=seed, new_head=True, assets=assets)
    rows: dict[str, list[dict]] = {"train": [], "test": []}
    for one in described.sample(tokenizer, seed).to_pylist():
        if one["split"] in rows:
            mask = [1] * len(one["input_ids"])
            example = {"input_ids": one["input_ids"], "attention_mask": mask, "labels": one["label"]}
            rows[one["split"]].append(example)
    collator = DataCollatorWithPadding(tokenizer)
    before, curve = StopwiseCallback(stop=False), StopwiseCallback(stop=False, left_out="anchored", anchors=ANCHORS)
    judge = Judge(curve, rows["train"], rows["test"], collator)
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            folder,
            num_train_epochs=EPOCHS,
            per_device_train_batch_size=BATCH,
            learning_rate=rate,
            lr_scheduler_type="linear",
            seed=seed,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
        )
        watching = [before, curve, judge]
        trainer = Trainer(
            model.requires_grad_(True),
            args,
            train_dataset=rows["train"],  # type: ignore[arg-type]
            data_collator=collator,
            callbacks=watching,
        )
        began = time.monotonic()
        trainer.train()
        seconds = time.monotonic() - began - judge.seconds
    labels = np.array([one["labels"] for one in rows["train"]])
    share = np.bincount(labels, minlength=classes) / len(labels)
    tested = np.array([one["labels"] for one in rows["test"]])
    constant = float(-np.log(np.maximum(share[tested], 0.5 / len(labels))).mean())
    assert before.answer is not None
    said = dict(zip(before.answer.times.tolist(), before.answer.curve.tolist(), strict=True))
    table = []
    for step, loss, right, coherence in curve.curve:
        one = {"task": task, "seed": seed, "rate": rate, "classes": classes, "step": step}
        one |= {
            "epoch": step * BATCH / TRAIN,
            "left_out_loss": loss,
            "left_out_accuracy": right,
            "coherence": coherence,
        }
        one |= {"predicted_loss": said.get(step), "constant_loss": constant, **judge.rows[step]}
        table.append(one | {"seconds": seconds, "curve_seconds": curve.seconds})
    return pa.Table.from_pylist(table)


def main() -> int:
    """Run what is not finished, and write the record of all runs asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--rates", nargs="+", type=float, default=[1e-4])
    parser.add_argument("--assets", default=ASSETS, help="folder of models and wheels (default: %(default)s)")
    parser.add_argument("--parts", default="build/left-out", help="folder of finished runs (default: %(default)s)")
    parser.add_argument("--record", default=str(RECORD), help="the file to write (default: %(default)s)")
    given = parser.parse_args()
    torch.set_num_threads(1)
    folder, tables = Path(given.parts), []
    folder.mkdir(parents=True, exist_ok=True)
    for seed, rate, task in itertools.product(given.seeds, given.rates, given.tasks):
        part = folder / f"{task}-{seed}-{rate:g}.parquet"
        if not part.is_file():
            _write(run(task, seed, rate, given.assets), part)
        tables.append(pq.read_table(part))
        print(part.name, "done", flush=True)
    Path(given.record).parent.mkdir(parents=True, exist_ok=True)
    _write(pa.concat_tables(tables), Path(given.record))
    return 0


def _write(table: pa.Table, path: Path) -> None:
    """Write a table whole or not at all."""
    part = path.with_name(path.name + ".part")
    pq.write_table(table, part, compression="zstd")
    part.replace(path)


if __name__ == "__main__":
    sys.exit(main())
