"""Write tests/data/door: one made-up file of each kind that people have: python tests/helpers/door_files.py."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

import make_data

FOLDER = Path(__file__).parents[1] / "data" / "door"
ROWS = 40
INTENTS = 24
MOODS = ("positive", "negative")
Rows = list[tuple[str, str]]


def sentences(labels: Sequence[str], rows: int = ROWS) -> Rows:
    """Return (text, label) rows: made-up sentences whose words follow the label, no text twice."""
    out: Rows = []
    seen: set[str] = set()
    number = 0
    while len(out) < rows:
        place = len(out) % len(labels)
        text = make_data.sentence("moods", MOODS[place % 2], number)
        if text not in seen:
            seen.add(text)
            out.append((text, labels[place]))
        number += 1
    return out


def separated(rows: Sequence[Sequence[str]], header: Sequence[str] | None = ("text", "label"), **dialect: Any) -> str:
    """Return rows as delimited text."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n", **dialect).writerows([*([header] if header else []), *rows])
    return out.getvalue()


def labelled(*labels: str, rows: int = ROWS) -> bytes:
    """Return a plain CSV with these labels."""
    return separated(sentences(labels, rows)).encode()


def accented(encoding: str, **dialect: Any) -> bytes:
    """Return a CSV of accented words in an encoding."""
    rows = [(f"{text} – très naïve, “déjà vu”", label) for text, label in sentences(MOODS)]
    return separated(rows, **dialect).encode(encoding)


def with_line(line: str, rows: int = 200) -> bytes:
    """Return a CSV of many rows, one of which is this line."""
    lines = separated(sentences(MOODS, rows)).splitlines()
    lines[17] = line
    return ("\n".join(lines) + "\n").encode()


def objects(rows: Rows) -> list[dict[str, Any]]:
    """Return rows as JSON objects."""
    return [{"text": text, "label": label} for text, label in rows]


def json_lines(rows: Sequence[Any]) -> bytes:
    """Return JSON lines."""
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def intents() -> bytes:
    """Return a CSV of 24 labels, the first ones twice as common."""
    names = [f"ask about thing {number}" for number in range(INTENTS)]
    return separated(sentences([*names, *names[:6], *names], 4 * len(names))).encode()


def one_hot() -> bytes:
    """Return a CSV with a column of 0 and 1 for each of three labels."""
    rows = [(text, *("1" if i % 3 == k else "0" for k in range(3))) for i, (text, _) in enumerate(sentences(MOODS))]
    return separated(rows, ("text", "red", "green", "blue")).encode()


def missing_parquet() -> bytes:
    """Return a Parquet file of 200 rows with a label that is NaN, which turns the others into floats."""
    rows = sentences(("0", "1"), 200)
    labels = [float(label) for _, label in rows]
    labels[7] = float("nan")
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": [text for text, _ in rows], "label": labels}), sink)
    return sink.getvalue().to_pybytes()


def missing_json() -> bytes:
    """Return a JSON array of 200 rows, one label of which is NaN and one text null."""
    rows: list[dict[str, Any]] = objects(sentences(MOODS, 200))
    rows[7]["label"], rows[9]["text"] = float("nan"), None
    return json.dumps(rows).encode()


def same_start() -> bytes:
    """Return a CSV whose texts begin with the same 72 words."""
    same = "that is the sea and the sky near this " * 8
    return separated([(same + text, label) for text, label in sentences(MOODS)]).encode()


FILES: dict[str, Callable[[], bytes]] = {
    "zero-one.csv": lambda: labelled("0", "1"),
    "minus-one.csv": lambda: labelled("-1", "1"),
    "floats.csv": lambda: labelled("0.0", "1.0"),
    "booleans.csv": lambda: labelled("True", "False"),
    "stars.csv": lambda: labelled("1", "2", "3", "4", "5"),
    "dates.csv": lambda: labelled("2024-01-01", "2024-02-01"),
    "words.csv": lambda: labelled("red wine", "white wine"),
    "scripts.csv": lambda: labelled("好い", "悪い"),
    "emoji.csv": lambda: labelled("😀", "😞"),
    "commas.csv": lambda: labelled("yes, surely", "no, never"),
    "equals.csv": lambda: labelled("mood=good", "mood=bad"),
    "fasttext.csv": lambda: labelled("__label__happy", "__label__sad"),
    "intents.csv": intents,
    "no-header.csv": lambda: separated(sentences(("1", "0")), None).encode(),
    "cp1252.csv": lambda: accented("cp1252"),
    "utf-16.csv": lambda: accented("utf-16"),
    "semicolons.csv": lambda: accented("cp1252", delimiter=";"),
    "tabs.txt": lambda: accented("utf-8", delimiter="\t"),
    "bars.txt": lambda: accented("utf-8", delimiter="|"),
    "bare-cr.csv": lambda: labelled(*MOODS).replace(b"\n", b"\r"),
    "zipped.csv.gz": lambda: gzip.compress(labelled(*MOODS), mtime=0),
    "array.json": lambda: json.dumps(objects(sentences(MOODS)), indent=0).encode(),
    "excel.csv": lambda: (
        separated([(*row, "", "") for row in sentences(MOODS)], ("text", "label", "", "")).encode() + b",,,\n"
    ),
    "bad-row.csv": lambda: with_line("a row, with, too many fields"),
    "empty-cell.csv": lambda: with_line(",positive"),
    "many-bad.csv": lambda: labelled(*MOODS) + b"one\ntwo\n",
    "rare.csv": lambda: labelled(*MOODS) + b"the tea and the nap,calm\n",
    "same-start.csv": same_start,
    "missing.parquet": missing_parquet,
    "missing.json": missing_json,
    "several.csv": lambda: labelled("red", "red;blue", "blue"),
    "lists.jsonl": lambda: json_lines([{"text": text, "label": [label]} for text, label in sentences(MOODS)]),
    "one-hot.csv": one_hot,
    "names.csv": lambda: separated(sentences(MOODS), ("what: {they} wrote!", "mood?")).encode(),
    "strays.jsonl": lambda: json_lines([{"text": f"{t} \ud83d\0", "label": label} for t, label in sentences(MOODS)]),
    "long.csv": lambda: separated([(f"{t} {t} " * 20, label) for t, label in sentences(MOODS)]).encode(),
    "words.json": lambda: json.dumps({"yes, surely": "yes", "no, never": "no"}).encode(),
}

if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, content in FILES.items():
        (FOLDER / name).write_bytes(content())
