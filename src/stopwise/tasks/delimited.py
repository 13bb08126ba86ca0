"""Rows of delimited text: which character parts the fields, whether the first row is a header, which rows are bad."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from stopwise.tasks.reading import SourceError

DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
LOOKED_AT = 400  # lines by which the delimiter is chosen, and rows by which a header is recognised
LONG_NAME = 100  # characters, and
MANY_WORDS = 10  # words, that no column name has
CONSISTENT = 0.8
NO_HEADER = "no header, so that columns go by number"


@dataclass
class Rows:
    """Rows as read: their columns, the fields of each, the place of each (row from 0, line from 1), and what is bad.

    ``bad`` lists (row from 0, line from 1, what is wrong); ``said`` what was guessed; ``header`` whether there is one.
    """

    columns: list[str]
    values: list[list[str]] = field(default_factory=list)
    places: list[tuple[int, int]] = field(default_factory=list)
    bad: list[tuple[int, int, str]] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    header: bool = True


def read_delimited(
    text: str,
    wanted: Sequence[str],
    where: str,
    *,
    delimiter: str | None = None,
    header: bool | None = None,
    strict: bool = False,
) -> Rows:
    """Return the rows of delimited text. ``delimiter`` and ``header`` None are recognised; tabs go without quoting.

    ``wanted`` are the columns that will be asked for, by name or by number from 1: they help to recognise both. Empty
    columns at the end are dropped, blank rows passed over. ``strict``: commas and a header unless said otherwise, and
    blank rows count. Raises SourceError for a file without rows, or one whose columns go by number and are named.
    """
    lines = _lines(text)
    if not any(line.strip() for line in lines):
        raise SourceError(f"{where}: the file is empty; needs a header line")
    told = re.fullmatch(r'"?sep=(.)"?\n?', lines[0])
    skipped = 1 if told else 0
    lines = lines[skipped:]
    if delimiter is None:
        delimiter = "," if strict else told[1] if told else _delimiter(lines, wanted)
    records = _records(lines, delimiter)
    first = next(((line, fields) for line, fields, _ in records if fields), None)
    if first is None:
        raise SourceError(f"{where}: no row could be read with the delimiter {delimiter!r}")
    rest = list(records)
    width = _width([fields for _, fields, _ in rest if fields], first[1], strict)
    names, is_header = _names(first[1], width, [f for _, f, _ in rest[:LOOKED_AT] if f], wanted, header, where, strict)
    out = Rows(names, header=is_header)
    if delimiter != "," and delimiter in DELIMITERS:
        out.said.append(DELIMITERS[delimiter])
    if not is_header:
        out.said.append(NO_HEADER)
        rest.insert(0, (first[0], first[1], ""))
    _fill(out, rest, skipped, strict)
    return out


def _lines(text: str) -> list[str]:
    """Return the lines with their ends, whichever of the three kinds of line end the file has."""
    text = text.replace("\r\n", "\n")
    if "\n" not in text:
        text = text.replace("\r", "\n")
    return [line + "\n" for line in text.removesuffix("\n").split("\n")]


def _records(lines: Sequence[str], delimiter: str) -> Iterator[tuple[int, list[str] | None, str]]:
    """Yield (line from 1, fields, "") or (line, None, what is wrong); after a bad line reading goes on with the next.

    A quote that is never closed would else swallow the rest of the file.
    """

    class Feed:
        at = 0

        def __iter__(self) -> Feed:
            return self

        def __next__(self) -> str:
            if self.at >= len(lines):
                raise StopIteration
            self.at += 1
            return lines[self.at - 1]

    dialect = {"delimiter": delimiter, "quoting": csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL}
    feed = Feed()
    reader = csv.reader(feed, strict=True, **dialect)  # type: ignore[arg-type]
    while feed.at < len(lines):
        first = feed.at
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            feed.at = first + 1
            reader = csv.reader(feed, strict=True, **dialect)  # type: ignore[arg-type]
            yield first + 1, None, str(error)
            continue
        yield first + 1, fields, ""


def _delimiter(lines: Sequence[str], wanted: Sequence[str]) -> str:
    """Return the character that parts the fields.

    The one whose first row has the columns asked for; else the one that gives most rows the same number of fields.
    """

    def score(delimiter: str) -> tuple:
        records = [fields for _, fields, _ in _records(lines[:LOOKED_AT], delimiter) if fields]
        if not records:
            return (False, False, 0.0)
        names = [name.strip() for name in records[0]]
        named = len(names) > 1 and all(column in names for column in wanted)
        width, count = Counter(map(len, records)).most_common(1)[0]
        return (named, width > 1 and count >= CONSISTENT * len(records), round(count / len(records), 2) * (width > 1))

    return max(DELIMITERS, key=score)


def _width(records: Sequence[Sequence[str]], first: Sequence[str], strict: bool) -> int:
    """Return the number of columns: those of the first row, less the empty ones that a spreadsheet left at its end."""
    if strict:
        return len(first)
    width = len(first)
    while (
        width > 1 and not first[width - 1].strip() and not any(r[width - 1].strip() for r in records if len(r) >= width)
    ):
        width -= 1
    return width


def _names(
    first: Sequence[str],
    width: int,
    records: Sequence[Sequence[str]],
    wanted: Sequence[str],
    header: bool | None,
    where: str,
    strict: bool,
) -> tuple[list[str], bool]:
    """Return the names of the columns and whether the first row holds them; without a header they are numbers."""
    numbers = [str(i) for i in range(1, width + 1)]
    given = [name if strict else name.strip() for name in first[:width]]
    names = given if strict else [name or numbers[i] for i, name in enumerate(given)]
    if header is None:
        header = strict or all(column in names for column in wanted) or not cannot_be_header(given, records)
        missing = [column for column in wanted if column not in numbers]
        if not header and missing:
            shown = ", ".join(repr(name[:30]) for name in given[:6])
            raise SourceError(
                f"{where}: there is no column {missing[0]!r}: the first row ({shown}) cannot be a header, so that the"
                f" columns go by number; give numbers, 1 to {width} (set 'header: true' in the source if it is one)"
            )
    if not header:
        return numbers, False
    twice = [column for column, times in Counter(names).items() if times > 1 and (strict or column in wanted)]
    if twice:
        raise SourceError(f"{where}: the header {names} names a column twice")
    return names, True


def cannot_be_header(first: Sequence[str], records: Sequence[Sequence[str]]) -> bool:
    """Tell whether a first row is data: a value of it recurs in its column, it holds a number, or a whole sentence."""
    if [name.strip() for name in first] in (
        [str(i) for i in range(len(first))],
        [str(i + 1) for i in range(len(first))],
    ):
        return False  # the numbers by which a table without names was saved
    for i, value in enumerate(first):
        name = value.strip()
        if not name:
            continue
        column = [record[i].strip() for record in records if len(record) > i]
        if column.count(name) > 1 or len(name) > LONG_NAME or len(name.split()) > MANY_WORDS:
            return True
        if is_number(name) and sum(map(is_number, column)) > len(column) / 2:
            return True
    return False


def is_number(text: str) -> bool:
    """Tell whether a cell is a number as people write it."""
    return bool(re.fullmatch(r"[+-]?(\d+([.,]\d*)?|[.,]\d+)([eE][+-]?\d+)?%?", text.strip()))


def _fill(out: Rows, records: Sequence[tuple[int, list[str] | None, str]], skipped: int, strict: bool) -> None:
    """Sort the records into rows of the right width and bad ones; blank ones are neither."""
    width, row = len(out.columns), 0
    for line, fields, wrong in records:
        if fields is not None and (not fields or (not strict and not any(map(str.strip, fields)))):
            continue
        if fields is None:
            out.bad.append((row, line + skipped, wrong))
        elif len(fields) == width or (not strict and len(fields) > width and not any(map(str.strip, fields[width:]))):
            out.values.append(fields[:width])
            out.places.append((row, line + skipped))
        else:
            out.bad.append(
                (
                    row,
                    line + skipped,
                    f"has {len(fields)} fields, the {'header' if out.header else 'first row'} {width}",
                )
            )
        row += 1
