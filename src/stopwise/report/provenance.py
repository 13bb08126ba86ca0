"""One table of where every artifact of a run comes from, read from the Parquet metadata alone.

Figures and weights carry no metadata: their row takes it from the table of the same name or the index beside them,
and their own sha256.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from stopwise.artifacts.tables import digest, read_provenance

INDEX = "vector_index.parquet"


def provenance_rows(results_dir: str | os.PathLike, artifacts: Iterable[str | os.PathLike]) -> list[dict[str, Any]]:
    """Return one row of kind ``provenance`` per file, sorted by path relative to ``results_dir``.

    Raises ArtifactError for a table that is missing, damaged or without provenance. Cost: one footer per table, one
    read of every other file.
    """
    return sorted((_row(Path(results_dir), Path(path)) for path in set(artifacts)), key=lambda row: row["artifact"])


def _row(results: Path, path: Path) -> dict[str, Any]:
    if path.suffix == ".parquet":
        record, key = read_provenance(path), digest(path)
        kind = record["kind"]
    else:
        record, kind = _owner(path), path.suffix.lstrip(".")
        with path.open("rb") as file:
            key = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    volatile = record.get("volatile") or {}
    return {
        "artifact": os.path.relpath(path, results),
        "kind": kind,
        "rule": record.get("rule"),
        "wildcards": _json(record.get("wildcards")),
        "config": _json(record.get("config")),
        "inputs": _json(record.get("inputs")),
        "model": _text(record.get("model")),
        "data": _text(record.get("data")),
        "versions": _json(record.get("versions")),
        "seed": record.get("seed"),
        "digest": key,
        "bytes": path.stat().st_size,
        "git": volatile.get("git"),
        "started": _text(volatile.get("started")),
        "seconds": volatile.get("seconds"),
        "peak_mb": volatile.get("peak_mb"),
        "device": volatile.get("device"),
        "host": volatile.get("host"),
    }


def _owner(path: Path) -> dict[str, Any]:
    """Return the provenance of the table that a figure or a file of weights belongs to, empty when there is none."""
    for table in (path.with_suffix(".parquet"), path.parent / INDEX):
        if table.is_file():
            return read_provenance(table)
    return {}


def _json(value: Any) -> str | None:
    return None if value is None else json.dumps(value, sort_keys=True)


def _text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value, sort_keys=True)
