"""Writing advice for training under a schedule: text, figure, tables and a script that trains, in one rename."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from stopwise.advice import lengths_figure
from stopwise.advice.folder import new_folder, record_of
from stopwise.advice.script import examples_csv, train_script
from stopwise.advice.training_document import document
from stopwise.advice.training_text import matters, trusted
from stopwise.advice.under_schedule import TrainingAdvice
from stopwise.artifacts import tables as artifacts
from stopwise.figures import style
from stopwise.training.folds import FoldCurves

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
        if advice.folds is not None:
            artifacts.write_table(new / "folds.parquet", _folds(advice.folds), "advice_folds", record)
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
                "majority": float(advice.levels["shares"].correct.mean()),
                **_real(advice, float(steps / stop.steps_per_epoch)),
            }
        )
    return artifacts.table_of(rows, "advice_lengths")


def _real(advice: TrainingAdvice, epochs: float) -> Row:
    """Return what the folds came to after so many epochs, null where none were trained for as long."""
    folds = advice.folds
    if folds is None or epochs > folds.epochs[-1]:
        return {"folds_loss": None, "folds_accuracy": None}
    right = float(np.interp(epochs, folds.epochs, folds.correct.mean(axis=1)))
    return {"folds_loss": folds.loss_at(epochs), "folds_accuracy": right}


def _folds(folds: FoldCurves) -> list[Row]:
    """Return the rows of the folds' curves."""
    rows = []
    for k, epochs in enumerate(folds.epochs):
        loss, right = folds.loss_interval(k), folds.accuracy_interval(k)
        row: Row = {"epochs": float(epochs), "chosen": k == folds.best}
        row |= dict(zip(("loss", "loss_low", "loss_high"), map(_bounded, loss), strict=True))
        rows.append(row | dict(zip(("accuracy", "accuracy_low", "accuracy_high"), right, strict=True)))
    return rows


def _bounded(value: float) -> float:
    """Return a path's log-loss, infinite where the path has left all numbers."""
    return value if not math.isnan(value) else math.inf


def _summary(advice: TrainingAdvice) -> Row:
    stop = advice.stop
    loss, right = stop.loss_interval(stop.best), stop.accuracy_interval(stop.best)
    return {
        "verdict": advice.kind,
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
        "majority": float(advice.levels["shares"].correct.mean()),
        "entropy": advice.levels["shares"].loss,
        "level": advice.level.name,
        "level_loss": advice.level.loss,
        **dict(zip(("gain", "gain_low", "gain_high"), advice.gain, strict=True)),
        "penalty": advice.penalty,
        **_more(advice),
        "folds": None if advice.folds is None else advice.folds.folds,
        "folds_epochs": None if advice.folds is None else advice.folds.epoch,
        "folds_seconds": None if advice.folds is None else advice.folds.seconds,
        "flags": list(stop.flags),
    }


def _more(advice: TrainingAdvice) -> Row:
    """Return the answer for more labels than the kernel holds, null where there is none."""
    more = advice.larger
    if more is None:
        return dict.fromkeys(("size", "size_steps", "size_epochs", "size_exponent", "size_loss", "size_accuracy"))
    return {
        "size": more.size,
        "size_steps": more.steps,
        "size_epochs": more.epochs,
        "size_exponent": more.exponent[0],
        "size_loss": None if more.loss is None else more.loss[0],
        "size_accuracy": None if more.accuracy is None else more.accuracy[0],
    }
