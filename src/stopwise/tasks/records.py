"""Rows of JSON, JSON lines and Parquet: objects with a value for each column, and which of them are bad."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stopwise.tasks.reading import SourceError

Row = Mapping[str, Any]
MOST_FLAGS = 200  # columns of a Parquet file that are looked at beside those asked for


@dataclass
class Records:
    """Rows as objects, the place of each (row from 0, line from 1 or 0 where there are no lines), and what is bad."""

    rows: list[Row] = field(default_factory=list)
    places: list[tuple[int, int]] = field(default_factory=list)
    bad: list[tuple[int, int, str]] = field(default_factory=list)


def json_lines(text: str) -> Records:
    """Return the objects of JSON lines, one a line; blank lines are passed over."""
    out, row = Records(), 0
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            _add(out, json.loads(line), row, number)
        except (ValueError, RecursionError) as error:
            out.bad.append((row, number, f"is not JSON: {error}"))
        row += 1
    return out


def json_document(text: str, where: str) -> Records:
    """Return the objects of a JSON array, of the one array inside an object, of columns, or of JSON lines.

    Columns are what ``DataFrame.to_json`` writes: an object of equally long arrays or objects. Raises SourceError for
    text that is none of these.
    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        lines = json_lines(text)
        if len(lines.rows) > len(lines.bad):
            return lines
        place = f"line {error.lineno}" if isinstance(error, json.JSONDecodeError) else "too deep"
        raise SourceError(f"{where}: the file is not JSON ({place}: {str(error).split(':')[0]})") from None
    rows = _array(found)
    if rows is None:
        raise SourceError(f'{where}: the file is JSON, but no array of rows such as [{{"text": …, "label": …}}, …]')
    out = Records()
    for row, value in enumerate(rows):
        _add(out, value, row, 0)
    return out


def _add(out: Records, value: Any, row: int, line: int) -> None:
    if isinstance(value, dict):
        out.rows.append(value)
        out.places.append((row, line))
    else:
        out.bad.append((row, line, f"is {type(value).__name__}, not an object"))


def _array(found: Any) -> list | None:
    """Return the rows that a JSON document holds, or None."""
    if isinstance(found, list):
        return found
    if not isinstance(found, dict) or not found:
        return None
    arrays = [value for value in found.values() if isinstance(value, list)]
    if len(arrays) == 1 and all(isinstance(value, dict) for value in arrays[0]):
        return arrays[0]
    columns = {key: list(v.values()) if isinstance(v, dict) else v for key, v in found.items()}
    if all(isinstance(v, list) for v in columns.values()) and len({len(v) for v in columns.values()}) == 1:
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return [found] if not arrays else None


def parquet(path: Path, columns: Sequence[str], where: str, flags: bool = False) -> Records:
    """Return the rows of a Parquet file, the columns asked for; with ``flags`` those of whole numbers beside them.

    Raises SourceError for a damaged file or a column that is not there.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(path)
        require(columns, schema.names, where)
        wanted = list(dict.fromkeys(columns))
        if flags:
            other = [f.name for f in schema if f.name not in wanted and (pa.types.is_boolean(f.type) or _whole(f.type))]
            wanted += other[:MOST_FLAGS]
        rows = pq.read_table(path, columns=wanted, partitioning=None).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise SourceError(f"{where}: {path} is damaged or not a Parquet file ({str(error).splitlines()[0]})") from None
    return Records(rows, [(i, 0) for i in range(len(rows))])


def _whole(kind: Any) -> bool:
    import pyarrow as pa

    return pa.types.is_integer(kind)


def require(columns: Sequence[str], names: Sequence[str], where: str) -> None:
    """Raise SourceError for the first column that is not among the names."""
    for column in columns:
        if column not in names:
            raise SourceError(f"{where}: there is no column {column!r}; found: {', '.join(map(str, names))}")
