"""Train real models with the stock transformers Trainer beside StopwiseCallback, and record what was best.

    python tools/stock_trainer.py                  every case that is not finished yet, then the record
    python tools/stock_trainer.py minilm-lora      the cases of these names, then the record
    python tools/stock_trainer.py --record         the record alone, of what is finished

Each case trains to its last step while the callback only reports, and measures the log-loss of set-aside test examples
on the way. Where the callback names an earlier step, a second run lets it stop there. A finished run is kept under
results/trainer, so that a killed call goes on where it was; the record of all finished runs is docs/records/trainer.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parents[1]
KEPT = ROOT / "results" / "trainer"
RECORD = ROOT / "docs" / "records" / "trainer"
ASSETS = ROOT / "results" / "assets"
N, BATCH, WARMUP = 64, 8, 0.1
Row = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A training: the model, what of it trains, its runs (task and seed), and the arguments that differ."""

    name: str
    model: str
    adapter: bool
    learning_rate: float
    epochs: int
    runs: tuple[tuple[str, int], ...]
    every: int
    test: int = 300

    @property
    def head(self) -> bool:
        """Whether a new head answers, and not words."""
        return self.model == "minilm"

    def kept(self, task: str, seed: int) -> Path:
        """Return the file of a finished run."""
        return KEPT / f"{self.name}-{task}-{seed}.json"


BOTH = (("movie", 0), ("trec", 0))
CASES = (
    Case("minilm-full", "minilm", False, 5e-5, 4, (*BOTH, ("movie", 1)), every=2),
    Case("minilm-full-fast", "minilm", False, 3e-4, 8, BOTH, every=8, test=200),
    Case("minilm-lora", "minilm", True, 2e-3, 8, BOTH, every=8, test=200),
    Case("smollm2-full", "smollm2-135m", False, 2e-5, 4, (("movie", 0),), every=8, test=100),
    Case("smollm2-lora", "smollm2-135m", True, 2e-4, 4, (("movie", 0),), every=8, test=100),
)


@dataclass(frozen=True)
class Data:
    """A model at its start, with its rows as a Trainer takes them and the test examples as a batch."""

    model: Any
    tokenizer: Any
    rows: list[Row]
    test: dict[str, Any]
    words: list[int] | None


def prepared(case: Case, task: str, seed: int) -> Data:
    """Return the model at its start and its data. The head and the adapter are drawn by the seed."""
    from transformers import set_seed

    from stopwise.integrations.losses import answer_example
    from stopwise.network.loading import load_model
    from stopwise.tasks.batch import batch_from_table
    from stopwise.tasks.head import head_task
    from stopwise.tasks.task import Task

    sizes = {"max_tokens": 48, "train": N, "validation": 2, "test": case.test}
    make = head_task if case.head else Task.from_config
    named = make({}, sizes, name=task, assets=ASSETS)
    classes = {"num_labels": len(named.verbalizers)} if case.head else {}
    model, tokenizer = load_model(case.model, assets=ASSETS, seed=seed, frozen=False, **classes)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    table = named.sample(tokenizer, seed)
    train, test = (batch_from_table(table, split) for split in ("train", "test"))
    words = None if case.head else train["verbalizers"].tolist()
    rows = []
    for ids, mask, label in zip(train["input_ids"], train["attention_mask"], train["labels"].tolist(), strict=True):
        prompt = ids[mask.bool()].tolist()
        if words is None:
            rows.append({"input_ids": prompt, "attention_mask": [1] * len(prompt), "labels": label})
        else:
            rows.append(answer_example(prompt, words[label]))
    set_seed(seed)
    return Data(_adapted(model, case) if case.adapter else model, tokenizer, rows, test, words)


def _adapted(model: Any, case: Case) -> Any:
    from peft import LoraConfig, get_peft_model

    kind = "SEQ_CLS" if case.head else "CAUSAL_LM"
    return get_peft_model(model, LoraConfig(task_type=kind, r=8, lora_alpha=16, target_modules="all-linear"))


def measured(model: Any, test: dict[str, Any]) -> tuple[float, float]:
    """Return the mean log-loss and the accuracy of the test examples; the run does not notice."""
    import torch

    from stopwise.linearized.coding import coding_matrix
    from stopwise.network.learner import Learner, Prompts
    from stopwise.network.quiet import untouched

    with untouched(model), torch.no_grad():
        f = Learner(model, {}, "contrast").predict(Prompts.of(test, 1024, model))
    logits = torch.as_tensor(f @ coding_matrix(len(test["verbalizers"])))
    right = logits.argmax(1) == test["labels"]
    return float(torch.nn.functional.cross_entropy(logits, test["labels"])), float(right.double().mean())


def trained(case: Case, task: str, seed: int, stop: bool) -> tuple[Row, list[Row]]:
    """Train one run and return what the callback said, and a row of each measured step.

    The step that the callback names is measured in any case.
    """
    from transformers import (
        DataCollatorForSeq2Seq,
        DataCollatorWithPadding,
        Trainer,
        TrainerCallback,
        TrainingArguments,
        set_seed,
    )

    from stopwise import StopwiseCallback, answer_loss

    data, own, curve = prepared(case, task, seed), StopwiseCallback(stop=stop), []

    class Measure(TrainerCallback):
        """Measure the test examples at the steps asked for."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.look(state)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            step = state.global_step
            if step % case.every == 0 or step in (own.answer.t, state.max_steps):
                self.look(state)

        def look(self, state: Any) -> None:
            loss, accuracy = measured(data.model, data.test)
            curve.append({"step": state.global_step, "loss": loss, "accuracy": accuracy})

    collator = DataCollatorWithPadding if case.head else DataCollatorForSeq2Seq
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            folder,
            num_train_epochs=case.epochs,
            learning_rate=case.learning_rate,
            per_device_train_batch_size=BATCH,
            warmup_steps=WARMUP,
            seed=seed,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        )
        loss = None if data.words is None else answer_loss(data.words)
        given: dict[str, Any] = {"train_dataset": data.rows, "data_collator": collator(data.tokenizer)}
        trainer = Trainer(data.model, args, compute_loss_func=loss, callbacks=[own, Measure()], **given)
        set_seed(seed)
        trainer.train()
    answer = own.answer
    predicted = {int(t): float(value) for t, value in zip(answer.times, answer.curve, strict=True)}
    seconds = next(row["stopwise/seconds"] for row in trainer.state.log_history if "stopwise/seconds" in row)
    said = answer.row() | {"seconds": seconds, "ended": trainer.state.global_step}
    return said, [row | {"predicted_loss": predicted.get(row["step"])} for row in curve]


def run(case: Case, task: str, seed: int) -> None:
    """Train one run to its end, again to its stop where that is earlier, and keep what was found."""
    began = time.monotonic()
    said, curve = trained(case, task, seed, stop=False)
    ended, there = said["ended"], curve[-1]["loss"]
    if said["t"] is not None and said["t"] < said["max_steps"]:
        again, short = trained(case, task, seed, stop=True)
        ended, there = again["ended"], short[-1]["loss"]
    found = {"said": said, "curve": curve, "ended": ended, "loss_where_it_ended": there}
    path = case.kept(task, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".part").write_text(json.dumps(found | {"case": asdict(case)}), encoding="utf-8")
    os.replace(path.with_suffix(".part"), path)
    print(f"{path.stem}: {time.monotonic() - began:.0f} s", flush=True)


def summary(case: Case, task: str, seed: int, found: Row) -> Row:
    """Return one run as a row: the step that was named, the best measured one, and the log-loss at both."""
    said, curve = found["said"], found["curve"]
    best = min(curve, key=lambda row: row["loss"])
    last = said["max_steps"] if said["t"] is None else said["t"]
    at = next(row for row in curve if row["step"] == last)
    return {
        "case": case.name,
        "model": case.model,
        "trained": "LoRA" if case.adapter else "all weights",
        "task": task,
        "seed": seed,
        "learning_rate": case.learning_rate,
        "epochs": case.epochs,
        "steps": said["max_steps"],
        "predicted_step": said["t"],
        "low": said["low"],
        "high": said["high"],
        "ended": found["ended"],
        "best_step": best["step"],
        "predicted_loss": said["expected_loss"],
        "loss_at_start": curve[0]["loss"],
        "loss": at["loss"],
        "loss_where_it_ended": found["loss_where_it_ended"],
        "best_loss": best["loss"],
        "last_loss": curve[-1]["loss"],
        "regret": at["loss"] / best["loss"] - 1,
        "accuracy": at["accuracy"],
        "best_accuracy": best["accuracy"],
        "largest_step": said["largest_step"],
        "flags": " ".join(said["flags"]),
        "seconds": said["seconds"],
    }


def record() -> None:
    """Write the tables of all finished runs, and their page."""
    rows, curves = [], []
    for case in CASES:
        for task, seed in case.runs:
            if not case.kept(task, seed).is_file():
                continue
            found = json.loads(case.kept(task, seed).read_text(encoding="utf-8"))
            if trained_as(found.pop("case")) != trained_as(json.loads(json.dumps(asdict(case)))):
                raise SystemExit(f"stock_trainer: {case.kept(task, seed)} is of another training; remove it")
            rows.append(summary(case, task, seed, found))
            curves += [{"case": case.name, "task": task, "seed": seed, **row} for row in found["curve"]]
    RECORD.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), RECORD / "runs.parquet")
    pq.write_table(pa.Table.from_pylist(curves), RECORD / "curves.parquet")
    (RECORD / "README.md").write_text(page(rows), encoding="utf-8")


def trained_as(case: Row) -> Row:
    """Return what of a case a run depends on: not which other runs there are."""
    return {key: value for key, value in case.items() if key not in ("tasks", "seeds", "runs")}


def page(rows: list[Row]) -> str:
    """Return the record as Markdown."""
    lines = [
        "# The stock Trainer with StopwiseCallback",
        "",
        "Written by `python tools/stock_trainer.py`, which trains every run.",
        f"{N} labels, batches of {BATCH}, warm-up over a tenth of the steps and linear decay, AdamW, clipping at 1.",
        "Log-losses are those of 100 to 300 test examples that training does not see.",
        "The best step is the best of those measured: `curves.parquet` has all of them.",
        "",
        "| model | trained | rate, epochs | task, seed | predicted step | best step | log-loss there, at the best |"
        " cost | predicted log-loss | flags |",
        "|" + "---|" * 10,
    ]
    for row in rows:
        step = "no answer" if row["predicted_step"] is None else row["predicted_step"]
        lines.append(
            f"| {row['model']} | {row['trained']} | {row['learning_rate']:g}, {row['epochs']} |"
            f" {row['task']}, {row['seed']} | {step} of {row['steps']} | {row['best_step']} |"
            f" {row['loss']:.3f}, {row['best_loss']:.3f} | {100 * row['regret']:.1f} % |"
            f" {row['predicted_loss']:.3f} | {', '.join(f'`{flag}`' for flag in row['flags'].split())} |"
        )
    regrets = np.array([row["regret"] for row in rows])
    last = np.array([row["last_loss"] / row["best_loss"] for row in rows])
    early = [row for row in rows if row["predicted_step"] is not None and row["predicted_step"] < row["steps"]]
    right = sum(row["ended"] == max(1, row["predicted_step"]) for row in early)
    lines += [
        "",
        f"The predicted step cost at most 5 % of the best log-loss in {(regrets <= 0.05).sum()} of {len(rows)} runs;"
        f" the median cost was {100 * np.median(regrets):.1f} %, the largest {100 * regrets.max():.1f} %.",
        f"Taking every step cost at most 5 % in {(last <= 1.05).sum()} runs.",
        f"In {len(early)} of them the callback named an earlier step than the last; a second run ended at that step in"
        f" {right} of these.",
    ]
    done = {(row["case"], row["task"], row["seed"]) for row in rows}
    missing = [
        f"`{c.name}` on {task}, seed {seed}" for c in CASES for task, seed in c.runs if (c.name, task, seed) not in done
    ]
    if missing:
        lines += ["", f"Not run yet: {'; '.join(missing)}."]
    return "\n".join(lines) + "\n"


def main(names: list[str]) -> None:
    """Run the cases of these names (all without names, none with ``--record``), then write the record."""
    if names == ["--record"]:
        record()
        return
    if unknown := sorted(set(names) - {case.name for case in CASES}):
        raise SystemExit(f"stock_trainer: {unknown[0]!r} is no case; allowed: {', '.join(c.name for c in CASES)}")
    for case in CASES:
        for task, seed in case.runs:
            if case.name in (names or [case.name]) and not case.kept(task, seed).is_file():
                run(case, task, seed)
    record()


if __name__ == "__main__":
    main(sys.argv[1:])
