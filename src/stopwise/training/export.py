"""A trained model of a finished run as a folder that transformers loads, an adapter as one that peft loads."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stopwise.artifacts import tables as artifacts
from stopwise.artifacts.sample import Sample, read_sample
from stopwise.linearized.coding import coding_matrix
from stopwise.network.export import export_model
from stopwise.network.heads import bare, head_names, is_classifier
from stopwise.network.loading import load_configured
from stopwise.network.task_vectors import TaskVector
from stopwise.network.tokenizer import load_tokenizer


@dataclass(frozen=True)
class Exported:
    """Where a model was written, and what it is: ``kind`` (model or adapter), classes, the step kept, examples."""

    folder: Path
    kind: str
    classes: list[str]
    head: bool
    step: int
    n: int


def export_run(
    run: str | Path,
    task: str,
    folder: str | Path,
    *,
    seed: int = 0,
    size: int | None = None,
    start: str = "pretrained",
    merge: bool = False,
) -> Exported:
    """Write the model that a finetune job of a run kept, with its tokenizer and the names of its labels.

    ``run``: the run's folder, results/NAME. ``size``: of the training examples (default: the largest trained). An
    adapter is written alone, unless ``merge`` adds it to the weights. An intercept that squared loss fitted is added to
    the bias of a head that has one; ``stopwise.json`` in the folder holds it in any case. Raises ValueError for a run,
    task, seed or size that is not there, or a folder that exists.
    """
    place = Path(run) / "finetune" / start / task / f"seed{seed}"
    index = place / "vector_index.parquet"
    if not index.is_file():
        raise ValueError(f"RUN: {run} has no trained model at {place}; found {_found(Path(run))}")
    rows = {row["n"]: row for row in artifacts.read_table(index, "vector_index").to_pylist()}
    n = max(rows) if size is None else size
    if n not in rows:
        raise ValueError(f"--size: {n} was not trained; found {', '.join(map(str, sorted(rows)))}")
    record = artifacts.read_provenance(index)
    sample, stamp = read_sample(_input(run, record, "/data/")), _stamp(run, record)
    section, parameters = record["config"]["model"], record["config"]["kernel"]["parameters"]
    model = load_configured(stamp, section, start, seed, sample.classes, parameters)
    vector = TaskVector.load(place / rows[n]["file"])
    tuned = vector.apply_to(model)
    _add_intercept(tuned, vector, sample, record["config"]["kernel"]["outputs"])
    adapted = hasattr(model, "peft_config")
    kind = "adapter" if adapted and not merge else "model"
    if adapted and merge:
        tuned = tuned.merge_and_unload()
    tokenizer = load_tokenizer(stamp["folder"], section["trust_remote_code"])
    facts = {"vector": vector.metadata, "classes": sample.classes}
    written = export_model(tuned, folder, tokenizer=tokenizer, facts=facts)
    return Exported(written, kind, sample.classes, is_classifier(model), rows[n]["step"], n)


def _found(run: Path) -> str:
    places = sorted(run.glob("finetune/*/*/seed*/vector_index.parquet"))
    names = [str(path.parent.relative_to(run / "finetune")) for path in places]
    return ", ".join(names[:8]) or "none: run it first"


def _input(run: str | Path, record: dict[str, Any], part: str) -> Path:
    """Return an input of the job, whose recorded path starts where the run was made: three folders above."""
    recorded = next(path for path in record["inputs"] if part in path)
    path = Path(run).resolve().parents[1] / recorded
    if not path.is_file():
        raise ValueError(f"RUN: {path}, which the model was made from, is not there; run the configuration again")
    return path


def _stamp(run: str | Path, record: dict[str, Any]) -> dict[str, Any]:
    path = _input(run, record, "assets/models/")
    stamp = json.loads(path.read_text(encoding="utf-8"))
    if stamp["fingerprint"] != record["model"]:
        raise ValueError(f"RUN: {path} is of another model than the run's; run the configuration again")
    found = {key: Path(stamp[key]).expanduser() for key in ("folder", "adapter") if key in stamp}
    return stamp | {key: str(at if at.is_absolute() else path.parents[3] / at) for key, at in found.items()}


def _add_intercept(model: Any, vector: TaskVector, sample: Sample, outputs: str) -> None:
    """Add b_hat, which belongs to the contrasts, to the bias of the head's last layer, where it has one."""
    offset = np.asarray(vector.intercept() or [0.0], dtype=np.float64)
    if not is_classifier(model) or not offset.any():
        return
    logits = torch.as_tensor(offset @ coding_matrix(sample.class_count, outputs))
    biases = [name for name in head_names(model) if name.endswith("bias")]
    last = [p for name in biases if (p := model.get_parameter(name)).shape == logits.shape]
    if last:
        with torch.no_grad():
            last[-1].copy_(last[-1].double() + logits)
    bare(model).config.problem_type = "single_label_classification"
