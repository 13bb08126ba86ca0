"""Provenance in MLflow's terms: parameters, metrics, training curves, tags and dataset inputs of one artifact.

MLflow is imported inside functions: the import takes 2 s. Every text is kept within MLflow's limits; a longer one is
cut and ends with its own digest, so that two different ones stay different.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stopwise import __version__
from stopwise.artifacts.tables import read_table

# Limits of MLflow 3 (mlflow/utils/validation.py).
KEY_LENGTH, PARAM_LENGTH, TAG_LENGTH, FINGERPRINT_LENGTH, NAME_LENGTH = 250, 6000, 8000, 36, 500
SHOWN_ROWS = 200  # tables of at most so many rows are shown beside their run

PARENT, COMMIT, SUPERSEDED = "mlflow.parentRunId", "mlflow.source.git.commit", "superseded_by"
NAME, CONFIG = "stopwise.name", "stopwise.config_digest"
ARTIFACT, DIGEST, FILE = "stopwise.artifact", "stopwise.digest", "stopwise.file."


@dataclass(frozen=True)
class Step:
    """One artifact with its provenance and the small files drawn from it (same name, other suffix).

    A file that belongs to no table has empty provenance.
    """

    artifact: str
    path: Path
    provenance: dict[str, Any]
    digest: str
    files: tuple[Path, ...] = ()

    @property
    def volatile(self) -> dict[str, Any]:
        """What may differ between equal runs: git revision, times, host, device, memory."""
        return self.provenance.get("volatile") or {}

    @property
    def title(self) -> str:
        """The rule, its wildcards (names as they are, numbers after what they count) and which of its tables."""
        wildcards = {name: str(value) for name, value in (self.provenance.get("wildcards") or {}).items()}
        names = [value for value in wildcards.values() if not value.isdigit()]
        numbers = [name + value for name, value in wildcards.items() if value.isdigit()]
        rule, kind = self.provenance.get("rule") or self.artifact, self.provenance.get("kind")
        return " ".join([str(rule), *names, *numbers, *([] if kind in (None, rule) else [f"({kind})"])])


def safe_key(name: str) -> str:
    """Return a name in the letters that MLflow allows, at most 250 long, that cannot climb out of a folder."""
    name = re.sub(r"[^\w\-. /]", "_", name)
    return cut("/".join(part if part.strip(".") else "_" * len(part) for part in name.split("/") if part), KEY_LENGTH)


def cut(text: str, length: int) -> str:
    """Return the text, or its beginning and digest when it is longer than ``length``."""
    if len(text) <= length:
        return text
    tail = "." + hashlib.sha256(text.encode()).hexdigest()[:16]
    return text[: length - len(tail)] + tail


def flatten(section: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return a nested mapping as dotted keys and text values within MLflow's limits; lists become JSON."""
    flat: dict[str, str] = {}
    for name, value in section.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
            flat[safe_key(f"{prefix}{name}")] = cut(text, PARAM_LENGTH)
    return flat


def params_of(step: Step) -> dict[str, str]:
    """Return the rule's config section, the wildcards, the package versions and the seed as parameters."""
    names = ("config", "wildcards", "versions", "seed")
    return flatten({name: step.provenance[name] for name in names if step.provenance.get(name) not in (None, {})})


def tags_of(step: Step, parent: str, config_digest: str) -> dict[str, str]:
    """Return the tags by which a child run is found again, and those that a person searches for."""
    record = step.provenance
    tags = {
        PARENT: parent,
        CONFIG: config_digest,
        ARTIFACT: step.artifact,
        DIGEST: step.digest,
        COMMIT: step.volatile.get("git"),
        "stopwise.version": (record.get("versions") or {}).get("stopwise", __version__),
        "stopwise.rule": record.get("rule"),
        "stopwise.kind": record.get("kind"),
        "stopwise.device": step.volatile.get("device"),
        "stopwise.inputs": json.dumps(record.get("inputs") or {}, sort_keys=True),
    }
    return {name: cut(str(value), TAG_LENGTH) for name, value in tags.items() if value is not None}


def times_of(step: Step) -> tuple[int, int]:
    """Return start and end of the job that wrote the artifact, milliseconds since 1970 (the file's time if unknown)."""
    try:
        begin = datetime.fromisoformat(step.volatile["started"]).timestamp()
    except (KeyError, TypeError, ValueError):
        begin = step.path.stat().st_mtime
    return int(begin * 1000), int((begin + float(step.volatile.get("seconds") or 0.0)) * 1000)


def metrics_of(step: Step, run: Any) -> list[Any]:
    """Return the summary metrics; their time is the run's own start, so that a second try logs the same points."""
    from mlflow.entities import Metric

    job = {f"job/{name}": step.volatile.get(name) for name in ("seconds", "peak_mb")}
    numbers = {**(step.provenance.get("metrics") or {}), **job}
    return [
        Metric(safe_key(name), float(value), run.info.start_time, 0)
        for name, value in numbers.items()
        if isinstance(value, int | float)
    ]


def curves_of(step: Step, run: Any) -> list[Any]:
    """Return the curves of a trajectory table, one metric ``n{n}/{column}`` per column, by optimiser step."""
    from mlflow.entities import Metric

    if step.provenance.get("kind") != "trajectory":
        return []
    table = read_table(step.path, "trajectory")
    columns = [field.name for field in table.schema if pa.types.is_floating(field.type)]
    return [
        Metric(f"n{row['n']}/{column}", row[column], run.info.start_time, row["step"])
        for row in table.to_pylist()
        for column in columns
        if row[column] is not None and not math.isnan(row[column])
    ]


def shown_table(step: Step) -> dict[str, list[Any]] | None:
    """Return the columns of a small table that MLflow can show, by name: numbers, texts and truth values.

    None for a table of more than ``SHOWN_ROWS`` rows, or one without such columns.
    """
    kinds = (pa.types.is_integer, pa.types.is_floating, pa.types.is_string, pa.types.is_boolean)
    with pq.ParquetFile(step.path) as file:
        names = [field.name for field in file.schema_arrow if any(kind(field.type) for kind in kinds)]
        if not names or not 0 < file.metadata.num_rows <= SHOWN_ROWS:
            return None
        return file.read(columns=names).to_pydict()


def inputs_of(step: Step) -> list[Any]:
    """Return the data and model fingerprints as dataset inputs (MLflow keeps 36 letters; the source holds all).

    ``mlflow.data.get_source`` reads them back: the file of each, as its path from the folder that the run was made in.
    """
    from mlflow.entities import Dataset, DatasetInput, InputTag

    task = str((step.provenance.get("wildcards") or {}).get("task", "data"))
    own = step.digest if step.provenance.get("kind") == "data" else None  # a data table is its own fingerprint
    inputs = []
    for context, value, default in (
        ("data", step.provenance.get("data") or own, task),
        ("model", step.provenance.get("model"), "model"),
    ):
        for name, fingerprint in _fingerprints(value, default):
            source = json.dumps(
                {"uri": _file_of(step, context, fingerprint), "fingerprint": fingerprint, "of": context}
            )
            dataset = Dataset(cut(name, NAME_LENGTH), fingerprint[:FINGERPRINT_LENGTH], "local", source)
            inputs.append(DatasetInput(dataset, [InputTag("mlflow.data.context", context)]))
    return inputs


def _file_of(step: Step, context: str, fingerprint: str) -> str:
    """Return the file of a data set or model among the inputs of a step, or the step's own where it has none such."""
    known = step.provenance.get("inputs") or {}
    exact = [path for path, value in known.items() if value == fingerprint]
    part = "/data/" if context == "data" else "/models/"
    return next(iter([*exact, *(path for path in known if part in path)]), str(step.path))


def _fingerprints(value: Any, name: str) -> list[tuple[str, str]]:
    """Return (name, fingerprint) from one fingerprint, several with commas between, or a mapping of them."""
    if isinstance(value, Mapping):
        return [(str(part), str(item)) for part, item in value.items() if item]
    return [(name, part) for part in str(value).split(",")] if value else []
