"""Writing advice for training under a schedule: text, figure, tables and a script that trains, in one rename."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pyarrow as pa

from stopwise.advice import lengths_figure
from stopwise.advice.folder import new_folder, record_of
from stopwise.advice.script import examples_csv, train_script
from stopwise.advice.training_text import document, kind_of, matters, trusted
from stopwise.advice.under_schedule import TrainingAdvice
from stopwise.artifacts import tables as artifacts
from stopwise.figures import style

Row = dict[str, Any]


def write_training_advice(advice: TrainingAdvice, folder: str | Path) -> Path:
    """Write the folder: advice.md, the figure, lengths and summary as Parquet, train.py, its examples and its head.

    Advice that was there is replaced; call ``folder.check_folder`` first.
    """
    from safetensors.torch import save_file

    path, record, lengths = Path(folder), record_of(advice.provenance), lengths_table(advice)
    with new_folder(path) as new:
        artifacts.write_table(new / "lengths.parquet", lengths, "advice_lengths", record)
        artifacts.write_table(new / "summary.parquet", [_summary(advice)], "advice_training", record)
        style.save(lengths_figure.draw(lengths), new / "advice")
        (new / "advice.md").write_text(document(advice), encoding="utf-8")
        (new / "train.py").write_text(train_script(advice), encoding="utf-8")
        (new / "examples.csv").write_text(examples_csv(advice), encoding="utf-8", newline="")
        if advice.head:
            save_file({name: tensor.contiguous() for name, tensor in advice.head.items()}, new / "head.safetensors")
    return path


def lengths_table(advice: TrainingAdvice) -> pa.Table:
    """Return the table of lengths: what the figure is drawn from."""
    stop, rows = advice.stop, []
    for k, steps in enumerate(stop.steps):
        loss, low, high = map(_bounded, stop.loss_interval(k))
        right, right_low, right_high = stop.accuracy_interval(k)
        rows.append(
            {
                "steps": int(steps),
                "epochs": float(steps / stop.steps_per_epoch),
                "chosen": k == stop.best,
                "within": bool(stop.low <= steps <= stop.high),
                "expected_loss": float(stop.loss[k]),
                "expected_accuracy": float(stop.accuracy[k]),
                "left_out_loss": loss,
                "loss_low": low,
                "loss_high": high,
                "accuracy": right,
                "accuracy_low": right_low,
                "accuracy_high": right_high,
                "majority": advice.baseline[0],
            }
        )
    return artifacts.table_of(rows, "advice_lengths")


def _bounded(value: float) -> float:
    """Return a path's log-loss, infinite where the path has left all numbers."""
    return value if not math.isnan(value) else math.inf


def _summary(advice: TrainingAdvice) -> Row:
    stop = advice.stop
    loss, right = stop.loss_interval(stop.best), stop.accuracy_interval(stop.best)
    return {
        "verdict": kind_of(advice),
        "trusted": trusted(advice),
        "matters": matters(advice),
        "rule": stop.rule,
        "n": stop.examples,
        "classes": len(advice.data.classes),
        "step": stop.t,
        "epochs": stop.epochs,
        "low_epochs": stop.low / stop.steps_per_epoch,
        "high_epochs": stop.high / stop.steps_per_epoch,
        "learning_rate": stop.learning_rate,
        "largest_step": stop.largest_step,
        **dict(zip(("loss", "loss_low", "loss_high"), loss, strict=True)),
        **dict(zip(("accuracy", "accuracy_low", "accuracy_high"), right, strict=True)),
        "start_loss": stop.loss_interval(0)[0],
        "start_accuracy": stop.accuracy_interval(0)[0],
        "majority": advice.baseline[0],
        "entropy": advice.baseline[1],
        "penalty": advice.penalty,
        "flags": list(stop.flags),
    }
