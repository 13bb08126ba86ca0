"""Reading the rows of a task: a csv, tsv, jsonl or Parquet file, a hub data set, or a file inside a built-in wheel."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stopwise.assets import hub
from stopwise.assets.wheels import ASSETS, WHEELS, AssetError, read_member
from stopwise.tasks import wheel_formats

Row = Mapping[str, Any]

# The keys that each kind of source may have beside its own.
_OPTIONS = {
    "csv": {"encoding"},
    "tsv": {"encoding"},
    "jsonl": {"encoding"},
    "parquet": set(),
    "hub": {"revision", "config", "split"},
    "package": {"member", "format", "encoding"},
}
KINDS = tuple(_OPTIONS)


class SourceError(ValueError):
    """A source that is unknown, missing, damaged, or without the columns that a task names."""


def read_rows(
    source: Mapping[str, Any], columns: Sequence[str], *, key: str = "source", assets: str | os.PathLike = ASSETS
) -> list[dict[str, str]]:
    """Return the rows of a source in file order, each with the ``columns`` as non-empty strings.

    ``source`` has one of csv, tsv, jsonl, parquet (a path), hub (an id, with revision, config and split) or package (a
    built-in wheel, with member and format). Text files are UTF-8 unless ``encoding`` says otherwise; a csv file has
    quotes and a header, a tsv file a header and no quoting. Raises SourceError naming ``key``, the file, and the row
    (counted from 1, without the header) for anything missing or malformed. Cost: one read of the file into memory.
    """
    kind = _kind(source, key)
    where = f"{key}.{kind}"
    if kind == "package":
        rows: Iterable[Row] = _package(source, where, assets)
    elif kind == "hub":
        rows = _parquet(hub.fetch_dataset(dict(source), Path(assets), where), columns, where)
    else:
        path = _existing(source[kind], where)
        if kind == "parquet":
            rows = _parquet(path, columns, where)
        else:
            rows = _READERS[kind](decode(path.read_bytes(), source.get("encoding", "utf-8"), where, path.name), where)
    return _strings(rows, columns, where)


def _kind(source: Any, key: str) -> str:
    if not isinstance(source, Mapping):
        raise SourceError(f"{key}: {source!r} is not a mapping such as {{csv: path}}; allowed: {', '.join(KINDS)}")
    found = [kind for kind in KINDS if kind in source]
    if len(found) != 1:
        raise SourceError(f"{key}: found keys {', '.join(map(str, source)) or 'none'}; needs one of {', '.join(KINDS)}")
    unknown = sorted(str(option) for option in source if option != found[0] and option not in _OPTIONS[found[0]])
    if unknown:
        allowed = ", ".join([found[0], *sorted(_OPTIONS[found[0]])])
        raise SourceError(f"{key}: unknown key {', '.join(unknown)}; allowed: {allowed}")
    if not isinstance(source[found[0]], (str, os.PathLike)):
        raise SourceError(f"{key}.{found[0]}: {source[found[0]]!r} is not text")
    return found[0]


def _existing(path: str, where: str) -> Path:
    found = Path(path).expanduser()
    if not found.is_file():
        raise SourceError(f"{where}: there is no file {path!r} (looked in {Path.cwd()})")
    return found


def decode(content: bytes, encoding: str, where: str, name: str) -> str:
    """Return bytes as text without a byte-order mark; raises SourceError naming the line of the first bad byte."""
    try:
        return content.decode(encoding).removeprefix("\ufeff")
    except LookupError:
        raise SourceError(f"{where}: encoding {encoding!r} is unknown; allowed: utf-8, latin-1 and so on") from None
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise SourceError(
            f"{where}: {name} is not {encoding}: byte 0x{content[error.start]:02x} in line {line}; set 'encoding' in"
            " the source, or save the file again"
        ) from None


def _separated(text: str, where: str, **dialect: Any) -> list[dict[str, str]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, **dialect)
    rows: list[dict[str, str]] = []
    try:
        header = next(reader, None)
        if not header:
            raise SourceError(f"{where}: the file is empty; needs a header line")
        if len(set(header)) != len(header):
            raise SourceError(f"{where}: the header {header} names a column twice")
        for fields in reader:
            if not fields:
                continue
            if len(fields) != len(header):
                raise SourceError(
                    f"{where}: row {len(rows) + 1} (line {reader.line_num}) has {len(fields)} fields, the header"
                    f" {len(header)}"
                )
            rows.append(dict(zip(header, fields, strict=True)))
    except csv.Error as error:
        raise SourceError(f"{where}: row {len(rows) + 1} (line {reader.line_num}): {error}") from None
    return rows


def _csv(text: str, where: str) -> list[dict[str, str]]:
    return _separated(text, where)


def _tsv(text: str, where: str) -> list[dict[str, str]]:
    return _separated(text, where, delimiter="\t", quoting=csv.QUOTE_NONE)


def _jsonl(text: str, where: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise SourceError(f"{where}: row {len(rows) + 1} (line {number}) is not JSON: {error}") from None
        if not isinstance(row, dict):
            raise SourceError(f"{where}: row {len(rows) + 1} (line {number}) is {type(row).__name__}, not an object")
        rows.append(row)
    return rows


_READERS: dict[str, Callable[[str, str], list[dict[str, Any]]]] = {"csv": _csv, "tsv": _tsv, "jsonl": _jsonl}


def _parquet(path: Path, columns: Sequence[str], where: str) -> list[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        names = pq.read_schema(path).names
        _require(columns, names, where)
        return pq.read_table(path, columns=list(dict.fromkeys(columns)), partitioning=None).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise SourceError(f"{where}: {path} is damaged or not a Parquet file ({str(error).splitlines()[0]})") from None


def _package(source: Mapping[str, Any], where: str, assets: str | os.PathLike) -> Iterable[Row]:
    package, member, form = source["package"], source.get("member"), source.get("format")
    allowed = (*_READERS, *wheel_formats.TEXT_FORMATS, "topics")
    if package not in WHEELS:
        raise SourceError(f"{where}: {package!r} is not one of {', '.join(WHEELS)}")
    if not isinstance(member, str) or form not in allowed:
        raise SourceError(
            f"{where}: needs 'member', and 'format' out of {', '.join(allowed)}; found {member!r}, {form!r}"
        )
    try:
        if form == "topics":
            return wheel_formats.topics(package, member, os.fspath(assets))
        text = decode(read_member(package, member, assets), source.get("encoding", "utf-8"), where, member)
        return _READERS[form](text, where) if form in _READERS else wheel_formats.TEXT_FORMATS[form](text)
    except (wheel_formats.FormatError, AssetError) as error:
        raise SourceError(f"{where}: {error}") from error


def _require(columns: Sequence[str], names: Iterable[str], where: str) -> None:
    names = list(names)
    for column in columns:
        if column not in names:
            raise SourceError(f"{where}: there is no column {column!r}; found: {', '.join(map(str, names))}")


def _strings(rows: Iterable[Row], columns: Sequence[str], where: str) -> list[dict[str, str]]:
    """Keep the columns asked for, as strings; a missing, empty or nested value is an error that names its row."""
    result: list[dict[str, str]] = []
    for number, row in enumerate(rows, start=1):
        if number == 1:
            _require(columns, row, where)
        kept: dict[str, str] = {}
        for column in columns:
            value = row.get(column)
            if value is None or isinstance(value, (dict, list, tuple, bytes)) or not str(value).strip():
                found = "nothing" if value is None or value == "" else repr(value)[:60]
                raise SourceError(f"{where}: row {number}: column {column!r} holds {found}; needs text or a number")
            kept[column] = str(value)
        result.append(kept)
    if not result:
        raise SourceError(f"{where}: there are no rows")
    return result
