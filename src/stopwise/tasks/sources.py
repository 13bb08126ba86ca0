"""Reading the rows of a task: a text file, JSON or Parquet, a hub data set, or a file inside a built-in wheel.

One reader serves the command line and the configuration. What people have differs in encoding, delimiter, header and
care: what is recognised is said, a few bad rows are passed over and counted, and more than a few are an error.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stopwise.assets.wheels import ASSETS, WHEELS, AssetError, read_member
from stopwise.tasks.delimited import NO_HEADER, Rows, read_delimited
from stopwise.tasks.reading import SourceError, decode, detected, unpacked, without_strays
from stopwise.tasks.records import Records, json_document, json_lines, parquet, require

__all__ = ["KINDS", "SUFFIXES", "SourceError", "Table", "decode", "read_rows", "read_table", "source_of"]

Row = Mapping[str, Any]

# The keys that each kind of source may have beside its own.
_TEXT = {"encoding", "strict"}
_OPTIONS = {
    "csv": {*_TEXT, "delimiter", "header"},
    "tsv": {*_TEXT, "header"},
    "json": _TEXT,
    "jsonl": _TEXT,
    "parquet": {"strict"},
    "hub": {"revision", "config", "split", "strict"},
    "package": {"member", "format", "encoding"},
}
KINDS = tuple(_OPTIONS)
# What a file's name says about its kind, after .gz is taken off.
SUFFIXES = {
    ".csv": "csv",
    ".txt": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
}
_PACKAGED = ("csv", "tsv", "jsonl")
MOST_BAD = 0.01  # share of rows that may be passed over
SHOWN = 5
SEVERAL = "several labels an example are not supported; make one column that holds one label a row"
_FALSE, _TRUE = {"0", "0.0", "false"}, {"1", "1.0", "true"}


@dataclass(frozen=True)
class Table:
    """Rows read: each column asked for as non-empty text.

    ``places``: of each row in the source, from 0, without the header; ``said``: what was recognised and passed over;
    ``names``: what the file calls each column asked for; ``one_hot``: the columns of 0 and 1, one of them 1 in every
    row, that the label column belongs to (empty when it is an ordinary one).
    """

    rows: list[dict[str, str]]
    places: list[int]
    said: tuple[str, ...] = ()
    names: Mapping[str, str] = field(default_factory=dict)
    one_hot: tuple[str, ...] = ()


@dataclass
class _Found:
    """What a reader hands on: objects, their places, what is bad, what was said, and names by column asked for."""

    rows: Iterable[Row]
    places: list[tuple[int, int]] | None = None
    bad: list[tuple[int, int, str]] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)


def source_of(path: str | os.PathLike, options: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the source section for a file, by its suffix (``.gz`` taken off); options that are None are left out.

    Raises SourceError, with the suffixes that are read, for another one, and for an option that the kind does not have.
    """
    name = Path(path).name.lower().removesuffix(".gz")
    kind = SUFFIXES.get(Path(name).suffix)
    if kind is None:
        excel = Path(name).suffix in (".xlsx", ".xls", ".ods")
        hint = "; save the sheet as CSV" if excel else ""
        raise SourceError(f"{str(path)!r} does not end in {', '.join(SUFFIXES)} (.gz may follow){hint}")
    given = {key: value for key, value in (options or {}).items() if value is not None}
    if kind == "tsv" and given.get("delimiter") not in (None, "\t"):
        kind = "csv"
    elif kind == "tsv":
        given.pop("delimiter", None)
    unknown = sorted(set(given) - _OPTIONS[kind])
    if unknown:
        raise SourceError(f"{unknown[0]} is given, and a {kind} file has none: {str(path)!r}")
    return {kind: str(path)} | given


def read_rows(
    source: Mapping[str, Any], columns: Sequence[str], *, key: str = "source", assets: str | os.PathLike = ASSETS
) -> list[dict[str, str]]:
    """Return the rows of a source in file order, each with the ``columns`` as non-empty strings; see ``read_table``."""
    return read_table(source, columns, key=key, assets=assets).rows


def read_table(
    source: Mapping[str, Any],
    columns: Sequence[str],
    *,
    label: str | None = None,
    key: str = "source",
    assets: str | os.PathLike = ASSETS,
) -> Table:
    """Return the rows of a source in file order, and what was recognised and passed over on the way.

    ``source`` has one of csv, tsv, json, jsonl, parquet (a path; gzip is undone), hub (an id, with revision, config and
    split) or package (a built-in wheel, with member and format). ``encoding``, ``delimiter`` and ``header`` are
    recognised unless given; a tsv file has no quoting. A column is a name, or a number from 1. Malformed rows and those
    without a value are passed over up to 1 % of all; ``strict: true`` takes UTF-8, commas and a header for granted and
    refuses the first bad row, as a package always does. ``label`` is looked at for cells that hold several labels.
    Raises SourceError naming ``key``, the file, and the first row (counted from 1, without the header) that is bad.
    Cost: one read of the file into memory.
    """
    kind = _kind(source, key)
    where = f"{key}.{kind}"
    strict = kind == "package" or bool(source.get("strict", False))
    if kind == "package":
        found = _package(source, columns, where, assets)
    elif kind == "hub":
        from stopwise.assets import hub

        found = _of(parquet(hub.fetch_dataset(_hub(source), Path(assets), where), columns, where))
    else:
        path = _existing(source[kind], where)
        found = _file(kind, path, source, columns, where, strict, label)
    return _strings(found, columns, where, strict, label)


def _hub(source: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in source.items() if key != "strict"}


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
    _check_options(source, key)
    return found[0]


def _check_options(source: Mapping[str, Any], key: str) -> None:
    for option in ("header", "strict"):
        value = source.get(option)
        if value is not None and not isinstance(value, bool):
            raise SourceError(f"{key}.{option}: {value!r} is neither true nor false")
    delimiter = source.get("delimiter")
    if delimiter is not None and (not isinstance(delimiter, str) or len(delimiter) != 1 or delimiter in '"\r\n'):
        raise SourceError(f"{key}.delimiter: {delimiter!r} is not one character, such as ';'")
    encoding = source.get("encoding")
    if encoding is not None and not isinstance(encoding, str):
        raise SourceError(f"{key}.encoding: {encoding!r} is not the name of an encoding")


def _existing(path: str, where: str) -> Path:
    found = Path(path).expanduser()
    if not found.is_file():
        what = "is a folder" if found.is_dir() else "there is no file"
        raise SourceError(f"{where}: {what} {path!r} (looked in {Path.cwd()})")
    return found


def _file(
    kind: str,
    path: Path,
    source: Mapping[str, Any],
    columns: Sequence[str],
    where: str,
    strict: bool,
    label: str | None,
) -> _Found:
    """Read a local file of a kind."""
    if kind == "parquet":
        return _of(parquet(path, columns, where, flags=label is not None and not strict))
    content, encoding = unpacked(path, where), source.get("encoding")
    said: list[str] = []
    if encoding or strict:
        text = decode(content, encoding or "utf-8", where, path.name)
    else:
        text, recognised = detected(content, where, path.name)
        said += [recognised] if recognised else []
    if kind == "json":
        return _of(json_document(text, where), said)
    if kind == "jsonl":
        whole = not strict and re.match(r"\s*\[\s*\{", text)
        return _of(json_document(text, where) if whole else json_lines(text), said)
    delimiter = "\t" if kind == "tsv" else source.get("delimiter")
    rows = read_delimited(text, columns, where, delimiter=delimiter, header=source.get("header"), strict=strict)
    if kind == "tsv" or source.get("delimiter"):
        rows.said = [line for line in rows.said if line == NO_HEADER]
    return _tabular(rows, columns, where, said)


def _of(records: Records, said: Sequence[str] = ()) -> _Found:
    return _Found(records.rows, records.places, records.bad, list(said))


def _tabular(rows: Rows, columns: Sequence[str], where: str, said: Sequence[str] = ()) -> _Found:
    """Turn rows of fields into objects; a column asked for by number gets that name too."""
    names = {column: column for column in columns}
    place = {name: i for i, name in enumerate(rows.columns)}
    for column in columns:
        if column in place:
            continue
        if not (column.isdecimal() and 1 <= int(column) <= len(rows.columns)):
            numbered = "" if rows.header else f" (there is no header: give numbers, 1 to {len(rows.columns)})"
            raise SourceError(f"{where}: there is no column {column!r}; found: {', '.join(rows.columns)}{numbered}")
        names[column] = rows.columns[int(column) - 1]
        place[column] = int(column) - 1
    objects = [{name: fields[i] for name, i in place.items()} for fields in rows.values]
    return _Found(objects, rows.places, rows.bad, [*said, *rows.said], names)


def _package(source: Mapping[str, Any], columns: Sequence[str], where: str, assets: str | os.PathLike) -> _Found:
    from stopwise.tasks import wheel_formats

    package, member, form = source["package"], source.get("member"), source.get("format")
    allowed = (*_PACKAGED, *wheel_formats.TEXT_FORMATS, "topics")
    if package not in WHEELS:
        raise SourceError(f"{where}: {package!r} is not one of {', '.join(WHEELS)}")
    if not isinstance(member, str) or form not in allowed:
        raise SourceError(
            f"{where}: needs 'member', and 'format' out of {', '.join(allowed)}; found {member!r}, {form!r}"
        )
    try:
        if form == "topics":
            return _Found(wheel_formats.topics(package, member, os.fspath(assets)))
        text = decode(read_member(package, member, assets), source.get("encoding", "utf-8"), where, member)
        if form == "jsonl":
            return _of(json_lines(text))
        if form in _PACKAGED:
            rows = read_delimited(text, columns, where, delimiter="\t" if form == "tsv" else ",", strict=True)
            return _tabular(rows, columns, where)
        return _Found(wheel_formats.TEXT_FORMATS[form](text))
    except (wheel_formats.FormatError, AssetError) as error:
        raise SourceError(f"{where}: {error}") from error


def _strings(found: _Found, columns: Sequence[str], where: str, strict: bool, label: str | None) -> Table:
    """Keep the columns asked for, as strings; what is malformed, missing, empty or nested is bad."""
    objects, names = list(found.rows), found.names or {column: column for column in columns}
    places = found.places or [(i, 0) for i in range(len(objects))]
    if objects:
        known = dict.fromkeys(str(key) for row in (objects[:1] if strict else objects) for key in row)
        require(columns, list(known), where)
    rows: list[dict[str, str]] = []
    kept: list[int] = []
    bad, strays = list(found.bad), 0
    for place, row in zip(places, objects, strict=True):
        if label is not None and _several(row.get(label)):
            raise SourceError(f"{where}: row {place[0] + 1}: column {label!r} holds {row[label]!r:.60}: {SEVERAL}")
        cells, wrong = _cells(row, columns, strict)
        if wrong:
            bad.append((*place, wrong))
            if strict:
                break
            continue
        strays += sum(cells[column] != str(row[column]) for column in columns)
        rows.append(cells)
        kept.append(place[0])
    total = len(rows) + len({row for row, _, _ in bad})
    form = [one for one in found.said if one != NO_HEADER]
    said = [f"read as {', '.join(form)}"] if form else []
    said += [NO_HEADER] if NO_HEADER in found.said else []
    said += _passed_over(sorted(bad), total, where, strict)
    if strays:
        said.append(f"{strays} {'cell' if strays == 1 else 'cells'} held characters that are none (taken out)")
    if not rows:
        raise SourceError(f"{where}: there are no rows")
    return Table(rows, kept, tuple(said), names, _one_hot(objects, label, names) if label else ())


def _cells(row: Row, columns: Sequence[str], strict: bool) -> tuple[dict[str, str], str | None]:
    """Return the cells of a row as text, and what is wrong with the first that is no value."""
    cells: dict[str, str] = {}
    for column in columns:
        value = row.get(column)
        wrong = _wrong(value)
        text = "" if wrong else str(value)
        cells[column] = without_strays(text)
        if not wrong and strict and cells[column] != text:
            wrong = f"{text[:60]!r}, with a character that is none (NUL, or half of a pair)"
        if wrong:
            return cells, f"column {column!r} holds {wrong}; needs text or a number"
    return cells, None


def _several(value: Any) -> bool:
    return isinstance(value, (list, tuple, set)) or type(value).__name__ == "ndarray"


def _wrong(value: Any) -> str | None:
    """Return what a cell holds that is no value (NaN and NaT are missing), or None."""
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return "nothing"
    if isinstance(value, (dict, list, tuple, bytes)) or not without_strays(str(value)).strip():
        return repr(value)[:60]
    return None


def _bad_row(bad: tuple[int, int, str], where: str) -> str:
    """Return the message of one bad row: ``row 2 (line 3) has 1 fields``, ``row 2: column 'text' holds nothing``."""
    row, line, wrong = bad
    cell = wrong.startswith("column ")
    place = "" if cell or not line else f" (line {line})"
    return f"{where}: row {row + 1}{place}{'' if wrong.startswith(('has ', 'is ')) else ':'} {wrong}"


def _passed_over(bad: Sequence[tuple[int, int, str]], total: int, where: str, strict: bool) -> list[str]:
    """Return what is said of the rows passed over; raises SourceError for any when strict, else for more than 1 %."""
    count = len({row for row, _, _ in bad})
    if not count:
        return []
    message = _bad_row(bad[0], where)
    if strict:
        raise SourceError(message)
    if count > MOST_BAD * total:
        more = f" ({count} of {total} rows cannot be used, more than {100 * MOST_BAD:g} %)" if count > 1 else ""
        raise SourceError(message + more)
    lines = list(dict.fromkeys(line or row + 1 for row, line, _ in bad))
    shown = ", ".join(map(str, lines[:SHOWN])) + (", …" if len(lines) > SHOWN else "")
    unit = "line" if bad[0][1] else "row"
    what = "malformed or without a value" if count > 1 else bad[0][2].removeprefix("has ").split(";")[0]
    return [f"{count} of {total} rows passed over, {unit}{'s' if len(lines) > 1 else ''} {shown} ({what})"]


def _one_hot(rows: Sequence[Row], label: str, names: Mapping[str, str]) -> tuple[str, ...]:
    """Return the columns of 0 and 1 beside the label column of which exactly one is 1 in every row; three or more."""

    def binary(column: str) -> bool:
        return all(str(row.get(column)).strip().lower() in _FALSE | _TRUE for row in rows)

    if not rows or label not in rows[0] or not binary(label):
        return ()
    others = [column for column in rows[0] if column not in names and column not in names.values() and binary(column)]
    flags = [label, *others]
    ones = (sum(str(row[c]).strip().lower() in _TRUE for c in flags) for row in rows)
    return tuple(map(str, flags)) if len(flags) > 2 and all(one == 1 for one in ones) else ()
