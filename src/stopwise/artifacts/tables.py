"""Parquet artifacts: declared schemas, provenance in the file's metadata, atomic writes, checked reads.

Every artifact is one Parquet file. Its metadata key ``stopwise`` holds a JSON object: the stable provenance (kind,
rule, wildcards, config section, digests of the inputs, model and data fingerprints, package versions, seed, metrics),
the digest of the table's content, and under ``volatile`` what may differ between equal runs (git revision, times, host,
device, memory). Two artifacts are equal when their tables and stable provenance are.

Matrices are stored one row of the matrix per Parquet row, as little-endian float64 bytes in a ``values`` column:
a block turns into numpy without a copy per number. ``matrix_rows`` writes that layout, ``read_matrix`` reads it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

METADATA_KEY = b"stopwise"
SEAL_KEY = b"stopwise.sha256"  # of the record's bytes: Parquet's own checksums cover the pages only
LARGE = 1 << 26  # bytes: of larger tables no copies are made that can be saved
TEMPORARY_PREFIX = ".part-"

_TYPES = {
    "string": pa.string(),
    "int64": pa.int64(),
    "int32": pa.int32(),
    "float64": pa.float64(),
    "float32": pa.float32(),
    "bool": pa.bool_(),
    "binary": pa.large_binary(),
    "list<int32>": pa.list_(pa.int32()),
    "list<string>": pa.list_(pa.string()),
    "list<float64>": pa.list_(pa.float64()),
}


class ArtifactError(ValueError):
    """An artifact that is missing, damaged, of another kind, or made by another configuration."""


@cache
def _declared() -> dict[str, Any]:
    return yaml.safe_load(resources.files("stopwise").joinpath("schemas", "artifacts.yaml").read_text(encoding="utf-8"))


def kinds() -> tuple[str, ...]:
    """Return the names of all declared artifact kinds."""
    return tuple(_declared())


def schema(kind: str, optional: Iterable[str] = ()) -> pa.Schema:
    """Return the declared schema of an artifact kind, with those of its optional columns that are named.

    Raises ArtifactError for a kind that is not declared.
    """
    if kind not in _declared():
        raise ArtifactError(f"artifact kind {kind!r} is not declared; allowed: {', '.join(kinds())}")
    fields = []
    for name, declared in _declared()[kind]["columns"].items():
        spec = {"type": declared} if isinstance(declared, str) else declared
        if spec.get("optional") and name not in optional:
            continue
        fields.append(pa.field(name, _TYPES[spec["type"]], nullable=spec.get("nullable", False)))
    return pa.schema(fields)


def table_of(rows: Sequence[Mapping[str, Any]], kind: str) -> pa.Table:
    """Return plain rows as a table of the kind's schema; a missing column is null, an unknown one an ArtifactError."""
    declared = schema(kind)
    unknown = sorted({key for row in rows for key in row} - set(declared.names))
    if unknown:
        raise ArtifactError(f"kind {kind!r} has no column {', '.join(unknown)}; allowed: {', '.join(declared.names)}")
    try:
        arrays = [pa.array([row.get(field.name) for row in rows], type=field.type) for field in declared]
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise ArtifactError(f"rows do not fit the schema of kind {kind!r}: {error}") from error
    return conform(pa.Table.from_arrays(arrays, schema=declared), kind)


def conform(table: pa.Table, kind: str) -> pa.Table:
    """Return the table in the declared column order and types, or raise ArtifactError saying which column is wrong."""
    declared = schema(kind, table.column_names)
    missing = [name for name in declared.names if name not in table.column_names]
    unknown = [name for name in table.column_names if name not in declared.names]
    if missing or unknown:
        raise ArtifactError(f"kind {kind!r}: missing columns {missing}, unknown columns {unknown}")
    for field in declared:
        if not field.nullable and table.column(field.name).null_count:
            raise ArtifactError(f"kind {kind!r}: column {field.name!r} holds null where the schema allows none")
    try:
        return table.select(declared.names).replace_schema_metadata(None).cast(declared)
    except (pa.ArrowInvalid, pa.ArrowTypeError, ValueError) as error:
        raise ArtifactError(f"kind {kind!r}: {error}") from error


def file_mode() -> int:
    """Return the mode of a new file by the process's umask: a temporary file is made for its owner alone."""
    umask = os.umask(0)
    os.umask(umask)
    return 0o666 & ~umask


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it is flushed and renamed, on failure it is removed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=TEMPORARY_PREFIX, suffix="-" + path.name, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(file_mode())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def content_digest(table: pa.Table) -> str:
    """Return the sha256 of a table's column names, types, nulls and values: independent of chunks and compression."""
    digest = hashlib.sha256(str(table.schema.remove_metadata()).encode())
    combined = table.replace_schema_metadata(None).combine_chunks()
    # A sliced or filtered table keeps parent buffers: `take` of every row gives canonical ones.
    if combined.num_rows and (combined.nbytes < LARGE or not _canonical(combined)):
        combined = combined.take(pa.array(range(combined.num_rows), pa.int64())).combine_chunks()
    with pa.ipc.new_stream(pa.PythonFile(_Hashing(digest), mode="w"), combined.schema) as writer:
        writer.write_table(combined)
    if combined.nbytes > LARGE:
        del combined
        pa.default_memory_pool().release_unused()
    return digest.hexdigest()


def _canonical(table: pa.Table) -> bool:
    """Tell whether a table's buffers are its own: whole, from the first row on, without nulls."""
    chunks = [column.chunk(0) for column in table.columns if column.num_chunks]
    whole = all(column.num_chunks == 1 for column in table.columns)
    return whole and all(chunk.offset == 0 and not chunk.null_count for chunk in chunks)


class _Hashing:
    """A file that is hashed instead of kept."""

    closed = False

    def __init__(self, digest: Any) -> None:
        self._digest = digest

    def write(self, data: Any) -> int:
        """Hash what is written."""
        self._digest.update(data)
        return len(data)

    def flush(self) -> None:
        """Do nothing: nothing is kept."""

    def close(self) -> None:
        """Do nothing either."""


def write_table(
    path: str | os.PathLike,
    table: pa.Table | Sequence[Mapping[str, Any]],
    kind: str,
    provenance: Mapping[str, Any] | None = None,
    row_group_size: int | None = None,
) -> str:
    """Write one artifact under a temporary name, then rename it; returns its digest.

    ``table`` is a pyarrow table or plain rows, checked against the declared schema of ``kind``. ``provenance`` is the
    JSON-able record described in the module's docstring. Raises ArtifactError when table and schema disagree.
    """
    table = conform(table, kind) if isinstance(table, pa.Table) else table_of(table, kind)
    record = {**(provenance or {}), "kind": kind, "content": content_digest(table)}
    record.setdefault("volatile", {})
    text = json.dumps(record, sort_keys=True, allow_nan=False, default=_plain).encode()
    if row_group_size is None and table.nbytes > LARGE:  # a group is encoded in memory before it is written
        row_group_size = max(1, table.num_rows * LARGE // table.nbytes)
    metadata = {METADATA_KEY: text, SEAL_KEY: hashlib.sha256(text).hexdigest().encode()}
    with atomic_path(path) as temporary:
        pq.write_table(
            table.replace_schema_metadata(metadata),
            temporary,
            compression="zstd",
            row_group_size=row_group_size,
            write_page_checksum=True,
        )
    return digest(path)


def _plain(value: Any) -> Any:
    """Turn numpy scalars and paths into JSON values."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} is not a JSON value")


def read_provenance(path: str | os.PathLike) -> dict[str, Any]:
    """Return the provenance of an artifact from its metadata alone.

    Raises ArtifactError for a file that has none, or whose record is not the one that was written.
    """
    metadata = _open(path).metadata.metadata or {}
    if METADATA_KEY not in metadata:
        raise ArtifactError(f"{path}: a Parquet file without stopwise provenance; remove it and run again")
    text = metadata[METADATA_KEY]
    if hashlib.sha256(text).hexdigest().encode() != metadata.get(SEAL_KEY):
        raise ArtifactError(f"{path}: the provenance is damaged; remove it and run again")
    return json.loads(text)


def _open(path: str | os.PathLike) -> pq.ParquetFile:
    if not Path(path).is_file():
        raise ArtifactError(f"{path}: no such artifact")
    try:
        return pq.ParquetFile(path, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise ArtifactError(f"{path}: damaged or not a Parquet file ({error}); remove it and run again") from error


def read_table(path: str | os.PathLike, kind: str) -> pa.Table:
    """Return an artifact's table after checking its kind, schema, page checksums and content digest.

    Raises ArtifactError, naming the file, when any of them is off: a damaged artifact is never silently used.
    """
    record = read_provenance(path)
    if record.get("kind") != kind:
        raise ArtifactError(f"{path}: artifact of kind {record.get('kind')!r}, expected {kind!r}")
    try:
        table = _read(_open(path))
    except (pa.ArrowException, OSError) as error:
        raise ArtifactError(f"{path}: damaged ({error}); remove it and run again") from error
    try:
        table = conform(table, kind)
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error}; remove it and run again") from error
    if content_digest(table) != record["content"]:
        raise ArtifactError(f"{path}: the content does not match its recorded digest; remove it and run again")
    return table


def _read(file: pq.ParquetFile) -> pa.Table:
    """Return the whole table, a large one's groups of rows one after another: each is decoded beside the others."""
    if file.num_row_groups <= 1:
        return file.read()
    groups = [file.read_row_group(k, use_threads=False) for k in range(file.num_row_groups)]
    return pa.concat_tables(groups)


def stable(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return provenance without its volatile part."""
    return {key: value for key, value in record.items() if key != "volatile"}


def digest(path: str | os.PathLike) -> str:
    """Return a short digest of an artifact's content and stable provenance (the content digest is in the metadata)."""
    record = json.dumps(stable(read_provenance(path)), sort_keys=True).encode()
    return hashlib.sha256(record).hexdigest()[:16]


def equal(a: str | os.PathLike, b: str | os.PathLike) -> bool:
    """Return whether two artifacts have equal tables (to the last bit, NaN included) and equal stable provenance."""
    first, second = read_provenance(a), read_provenance(b)
    for path, record in ((a, first), (b, second)):
        read_table(path, record["kind"])  # the table is the one whose digest the record holds
    return stable(first) == stable(second)


def matrix_rows(matrix: np.ndarray, **labels: Any) -> list[dict[str, Any]]:
    """Return a [rows, width] matrix as rows of the layout above: the labels, ``row`` and ``values`` (float64 bytes)."""
    matrix = np.ascontiguousarray(matrix, dtype="<f8")
    return [{**labels, "row": i, "values": matrix[i].tobytes()} for i in range(matrix.shape[0])]


def read_matrix(table: pa.Table, **labels: Any) -> np.ndarray:
    """Return the float64 matrix of the block with these labels, rows in order. Raises ArtifactError when absent."""
    mask = np.ones(table.num_rows, dtype=bool)
    for name, value in labels.items():
        mask &= np.asarray(table.column(name).to_numpy(zero_copy_only=False) == value)
    found = np.flatnonzero(mask)
    if found.size == 0:
        raise ArtifactError(f"no block {labels} in this artifact")
    first, last = int(found[0]), int(found[-1])
    block = table.slice(first, last + 1 - first) if last + 1 - first == found.size else table.filter(pa.array(mask))
    places = np.argsort(np.argsort(block.column("row").to_numpy(), kind="stable"), kind="stable")
    values = block.column("values")
    matrix = np.empty((found.size, len(values[0].as_buffer()) // 8), dtype="<f8")
    for place, value in zip(places, values, strict=True):
        matrix[place] = np.frombuffer(value.as_buffer(), dtype="<f8")
    return matrix


def matrix_table(blocks: Iterable[tuple[Mapping[str, Any], np.ndarray]], kind: str) -> pa.Table:
    """Return (labels, matrix) pairs as a table in the layout above, without a copy of the numbers."""
    parts = []
    for labels, values in blocks:
        matrix = np.ascontiguousarray(values, dtype="<f8")
        rows, width = matrix.shape
        offsets = np.arange(rows + 1, dtype=np.int64) * (8 * width)
        buffers = [None, pa.py_buffer(offsets), pa.py_buffer(matrix)]
        column = pa.Array.from_buffers(pa.large_binary(), rows, buffers)
        told = {name: pa.repeat(pa.scalar(value), rows) for name, value in labels.items()}
        numbers = pa.array(np.arange(rows, dtype=np.int64))
        parts.append(conform(pa.table({**told, "row": numbers, "values": column}), kind))
    return pa.concat_tables(parts)


def read_pairs(paths: Iterable[str | os.PathLike], kind: str) -> list[tuple[dict[str, Any], pa.Table]]:
    """Return (wildcards, table) of each artifact, the seed as an integer; beside them what a training run minimised."""
    found: list[tuple[dict[str, Any], pa.Table]] = []
    for path in paths:
        record = read_provenance(path)
        wildcards = dict(record["wildcards"])
        if "seed" in wildcards:
            wildcards["seed"] = int(wildcards["seed"])
        if kind == "trajectory":
            wildcards["objective"] = record["config"].get("finetune", {}).get("objective")
        found.append((wildcards, read_table(path, kind)))
    return found
