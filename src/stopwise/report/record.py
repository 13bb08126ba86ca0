"""The record of a finished run that is kept beside the text: its small tables, few files, with where they come from."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from stopwise.artifacts import tables as artifacts

# What a repository can carry for each run.
FILE_BYTES = 1_000_000
FOLDER_BYTES = 5_000_000
LABELS = {"start": pa.string(), "task": pa.string(), "seed": pa.int64()}
METADATA_KEY = b"stopwise.sources"


def merged(paths: Iterable[str | os.PathLike]) -> pa.Table:
    """Return artifacts of one kind as one table, each row's start, task and seed in front as far as they apply.

    A column that the tables have already is left alone. The digest of every source is in the metadata. Raises
    ArtifactError for a damaged artifact, or one of another kind than the first.
    """
    parts, sources, kind = [], {}, None
    for path in map(Path, paths):
        found = artifacts.read_provenance(path)
        kind = kind or found["kind"]
        table = artifacts.read_table(path, kind)
        wildcards = found.get("wildcards") or {}
        known = {key: wildcards[key] for key in LABELS if key in wildcards and key not in table.column_names}
        for i, (key, value) in enumerate(known.items()):
            typed = int(value) if LABELS[key] == pa.int64() else value
            table = table.add_column(i, pa.field(key, LABELS[key]), pa.array([typed] * len(table), LABELS[key]))
        parts.append(table)
        sources[path.as_posix()] = {"digest": artifacts.digest(path), "git": found.get("volatile", {}).get("git")}
    if not parts:
        raise artifacts.ArtifactError("a record needs at least one artifact of each kind")
    together = pa.concat_tables(parts)
    return together.replace_schema_metadata({METADATA_KEY: json.dumps(sources, sort_keys=True).encode()})


def write_record(folder: str | os.PathLike, tables: Mapping[str, Sequence[str]]) -> list[tuple[str, int, int]]:
    """Write one Parquet file a name from its artifacts; return (name, rows, bytes) of each.

    Raises ValueError, having written nothing under its final name, when a file would pass 1 MB or all of them 5 MB.
    """
    folder, written, waiting = Path(folder), [], []
    try:
        for name, paths in tables.items():
            table, path = merged(paths), folder / f".part-{name}.parquet"
            folder.mkdir(parents=True, exist_ok=True)
            waiting.append((path, folder / f"{name}.parquet"))
            pq.write_table(table, path, compression="zstd")
            size = path.stat().st_size
            if size > FILE_BYTES:
                raise ValueError(f"record: {name} takes {size} bytes; allowed: {FILE_BYTES}. Leave it out")
            written.append((name, table.num_rows, size))
        total = sum(size for _, _, size in written)
        if total > FOLDER_BYTES:
            raise ValueError(f"record: the tables take {total} bytes together; allowed: {FOLDER_BYTES}")
        for path, final in waiting:
            path.replace(final)
    finally:
        for path, _ in waiting:
            path.unlink(missing_ok=True)
    return written


def copied(files: Mapping[str, str]) -> None:
    """Copy each file to where it is kept, whole or not at all."""
    for source, kept in files.items():
        with artifacts.atomic_path(kept) as temporary:
            shutil.copyfile(source, temporary)


def pictured(files: Mapping[str, str]) -> None:
    """Keep each PNG with a palette of 256 colours, enough for a drawing and a third of the bytes."""
    for source, kept in files.items():
        with artifacts.atomic_path(kept) as temporary, Image.open(source) as picture:
            picture.convert("RGB").quantize(256).save(temporary, format="PNG", optimize=True)


def job_times(folder: str | os.PathLike) -> list[tuple[str, int, float, float]]:
    """Return (rule, jobs, seconds of all, GiB of the largest) from Snakemake's benchmark files, the longest first.

    A job that went on from a checkpoint counts its last part only. Files that do not hold numbers are left out.
    """
    found: dict[str, list[tuple[float, float]]] = {}
    folder = Path(folder)
    for path in sorted(folder.rglob("*.tsv")):
        rows = list(csv.DictReader(path.open(encoding="utf-8"), delimiter="\t"))
        try:
            own = [(float(row["s"]), float(row["max_rss"]) / 1024) for row in rows]
        except (KeyError, TypeError, ValueError):
            continue
        name = path.relative_to(folder).parts[0].removesuffix(".tsv")
        found.setdefault(name, []).extend(own)
    times = [(name, len(jobs), sum(s for s, _ in jobs), max(gib for _, gib in jobs)) for name, jobs in found.items()]
    return sorted(times, key=lambda row: -row[2])


def readme(
    name: str,
    command: str,
    digest: str,
    revisions: Iterable[str],
    written: Iterable[tuple],
    times: Sequence[tuple[str, int, float, float]] = (),
    captions: Mapping[str, str] | None = None,
) -> str:
    """Return the text beside the tables: how to make them again, from what, what each file holds, and the jobs' times.

    ``times`` as ``job_times`` returns them; jobs that ran side by side are added up. ``captions``: of the pictures that
    lie beside the tables, by name without ``.png``.
    """
    known = ", ".join(sorted(revisions)) or "unknown"
    lines = [
        f"# Tables of the run `{name}`",
        "",
        f"Made by `{command}`, configuration {digest}, revision {known} of this repository.",
        "One file a table, all starts, tasks and seeds below one another; the metadata names each source. The columns",
        "are listed in `docs/reference/artifacts.md`; `docs/reference/glossary.md` explains the words.",
        "",
        "| file | rows | bytes |",
        "|---|---|---|",
        *(f"| {table}.parquet | {rows} | {size} |" for table, rows, size in written),
    ]
    if times:
        total = sum(seconds for _, _, seconds, _ in times)
        lines += [
            "",
            f"The jobs took {total / 60:.0f} minutes together, those side by side added up; a job that went on from a",
            "checkpoint counts its last part only.",
            "",
            "| jobs of | number | minutes | largest process, GiB |",
            "|---|---|---|---|",
            *(f"| {rule} | {jobs} | {s / 60:.1f} | {gib:.1f} |" for rule, jobs, s, gib in times if s >= 3),
        ]
    for figure, caption in (captions or {}).items():
        lines += ["", f"## {figure}", "", f"![{figure}]({figure}.png)", "", caption.strip()]
    return "\n".join(lines) + "\n"


def revisions(paths: Iterable[str | os.PathLike]) -> set[str]:
    """Return the git revisions that artifacts were made at; one with changes of its own ends in +."""
    found = (artifacts.read_provenance(path).get("volatile", {}).get("git") for path in paths)
    return {revision for revision in found if revision}
