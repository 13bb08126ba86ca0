"""Writing advice: one folder with text, figure and tables, whole or not at all, never over somebody else's."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

import stopwise
from stopwise.advice import figure
from stopwise.advice.door import check_folder
from stopwise.advice.findings import Advice
from stopwise.advice.held_out import accuracy_interval
from stopwise.advice.text import document
from stopwise.advice.verdict import Verdict
from stopwise.artifacts import tables as artifacts
from stopwise.figures import style

__all__ = ["check_folder", "write_advice"]

VERSIONED = ("torch", "transformers", "numpy", "scipy", "pyarrow")
Row = dict[str, Any]


def write_advice(advice: Advice, verdict: Verdict, folder: str | Path) -> Path:
    """Write advice.md, advice.svg and .png, and the tables, in one rename; return the folder.

    The figure is drawn from advice.parquet alone. Advice that was there is replaced; call ``check_folder`` first.
    """
    path = Path(folder)
    record = record_of(advice.provenance)
    drawn = artifacts.table_of(_drawn(advice, verdict), "advice")
    tables: dict[str, pa.Table | list[Row]] = {
        "advice": drawn,
        "advice_rules": _rules(advice),
        "advice_recipes": [vars(recipe) for recipe in advice.findings.recipes],
        "advice_summary": [_summary(advice, verdict)],
    }
    with new_folder(path) as new:
        for kind, rows in tables.items():
            name = "advice" if kind == "advice" else kind.removeprefix("advice_")
            artifacts.write_table(new / f"{name}.parquet", rows, kind, record)
        style.save(figure.draw(drawn), new / "advice")
        (new / "advice.md").write_text(document(advice, verdict), encoding="utf-8")
    return path


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder that takes the place of ``path``, whole, when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{artifacts.TEMPORARY_PREFIX}{path.name}-", dir=path.parent) as temporary:
        new, old = Path(temporary) / "new", Path(temporary) / "old"
        new.mkdir()
        yield new
        if path.exists():
            path.rename(old)
        try:
            new.rename(path)
        except OSError:
            if old.exists():
                old.rename(path)
            raise


def record_of(provenance: Row) -> Row:
    """Return the provenance that every table carries."""
    versions = {name: importlib.metadata.version(name) for name in VERSIONED} | {"stopwise": stopwise.__version__}
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"rule": "advise", **provenance, "versions": versions, "volatile": {"written": now}}


def _drawn(advice: Advice, verdict: Verdict) -> list[Row]:
    """Return the rows of the figure: the path, the sizes, the rules and the two levels."""
    found, crossed = advice.findings, advice.findings.crossed
    n, filter = (
        found.problem.examples,
        advice.settings.filter(advice.settings.step_size / found.recipes[0].learning_rate),
    )
    eta = filter.eta(np.arange(advice.settings.t_max + 1))
    path = [
        {
            "kind": "path",
            "chosen": False,
            "n": n,
            "step": t,
            "eta": float(eta[t]),
            "loss": float(crossed.loss[t].mean()),
        }
        | _accuracy(crossed.correct[t])
        for t in range(len(eta))
    ]
    sizes = [
        {
            "kind": "size",
            "chosen": False,
            "n": size.trained_on,
            "step": round(float(np.median(size.steps))),
            "eta": float(np.median(size.eta)),
            "loss": float(np.nanmean(size.chosen_loss)),
        }
        | _accuracy(size.chosen_correct)
        for size in found.sizes
    ]
    rules = []
    for stop in found.stops:
        # No line to stop at is drawn when the answer is not to train.
        followed = verdict.kind in ("train", "unclear") and stop.rule == found.decision.stop.rule
        row = {"kind": "rule", "name": stop.rule, "chosen": followed, "n": n}
        if stop.t is not None:
            row |= {key: path[stop.t][key] for key in ("step", "eta", "loss", "accuracy")}
        rules.append(row)
    levels = [
        {"kind": "level", "name": name, "chosen": False, "n": n}
        | dict(zip(("accuracy", "accuracy_low", "accuracy_high"), getattr(verdict, name), strict=True))
        for name in figure.LEVELS
    ]
    return [*path, *sizes, *rules, *levels]


def _accuracy(correct: np.ndarray) -> Row:
    return dict(zip(("accuracy", "accuracy_low", "accuracy_high"), accuracy_interval(correct), strict=True))


def _rules(advice: Advice) -> list[Row]:
    names = artifacts.schema("advice_rules").names
    chosen = advice.findings.decision.stop.rule
    rows = [{**stop.row(), "flags": list(stop.flags), "chosen": stop.rule == chosen} for stop in advice.findings.stops]
    return [{key: _finite(row[key]) for key in names} for row in rows]


def _summary(advice: Advice, verdict: Verdict) -> Row:
    found, stop, recipe = advice.findings, advice.findings.decision.stop, advice.findings.recipes[0]
    row: Row = {
        "verdict": verdict.kind,
        "confidence": verdict.confidence,
        "doubts": [doubt.code for doubt in verdict.doubts],
        "rule": stop.rule,
        "n": found.problem.examples,
        "step": stop.t,
        "eta": stop.eta,
        "learning_rate": recipe.learning_rate,
        "momentum": recipe.momentum,
        "zero_shot": verdict.zero_shot[0],
        "with_offset": verdict.with_offset[0],
        "baseline": verdict.baseline,
        "low_step": found.low_step,
        "high_step": found.high_step,
        "predicted_slope": found.rate.slope,
    }
    intervals = {"accuracy": verdict.trained, "gain": verdict.gain}
    intervals |= {"doubling": found.doubling, "exponent": found.exponent}
    for name, interval in intervals.items():
        row |= dict(zip((name, f"{name}_low", f"{name}_high"), interval, strict=True))
    return {key: _finite(value) for key, value in row.items()}


def _finite(value: Any) -> Any:
    """Return null for a number that is not one."""
    return None if isinstance(value, float) and not np.isfinite(value) else value
