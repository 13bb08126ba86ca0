"""Models written as plain transformers folders, which transformers, mergekit and the rest load as they are."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stopwise.network.task_vectors import TaskVector

RECORD = "stopwise.json"


def export_model(
    model: Any,
    folder: str | Path,
    vector: TaskVector | None = None,
    scaling_coef: float = 1.0,
    *,
    tokenizer: Any = None,
    shard_size: str = "5GB",
    facts: Mapping[str, Any] | None = None,
) -> Path:
    """Write theta_0 + scaling_coef * vector as config.json and safetensors (with the tokenizer, where given).

    The model keeps its weights. Written beside and renamed, so that a folder is whole or absent; ``stopwise.json`` in
    it holds the vector's metadata (tasks, coefficients, intercepts) and ``facts``. Memory: the
    weights that the vector changes. Raises ValueError when the folder exists, or the vector does not fit.
    """
    folder = Path(folder)
    if folder.exists():
        raise ValueError(f"export: {folder} exists already; remove it or choose another folder")
    tuned = model if vector is None else vector.apply_to(model, scaling_coef)
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        tuned.save_pretrained(part, max_shard_size=shard_size)
        if tokenizer is not None:
            tokenizer.save_pretrained(part)
        record = {"scaling_coef": scaling_coef, "vector": None if vector is None else vector.metadata, **(facts or {})}
        (part / RECORD).write_text(json.dumps(record, indent=1), encoding="utf-8")
        os.replace(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder
