"""The table of what people have: a file, options, and what stopwise answers; docs/reference/files.md is made of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from typer.testing import CliRunner

from stopwise.advice.data import in_options
from stopwise.cli import app

# Few examples: the rows are about the door, not about the advice.
QUICK = ("--model", "pico-llama", "--max-examples", "12")


@dataclass(frozen=True)
class Case:
    """One row: what a person has, the file, further options, what the answer must say, and the exit code."""

    what: str
    file: str
    says: str
    options: tuple[str, ...] = ()
    columns: tuple[str, str] = ("text", "label")
    code: int = 0

    @property
    def name(self) -> str:
        return f"{self.file} {' '.join(self.options)}".strip()

    def arguments(self) -> list[str]:
        """Return the arguments of ``stopwise advise``, the file lying in the working folder."""
        text, label = self.columns
        return ["--data", self.file, "--text", text, "--label", label, *self.options]


LETTERS = "a label is not one token of the model, so it answers A = "
CASES = [
    Case("labels 0 and 1", "zero-one.csv", LETTERS + "0, B = 1"),
    Case("labels −1 and 1", "minus-one.csv", LETTERS + "-1, B = 1"),
    Case("labels 0.0 and 1.0", "floats.csv", LETTERS + "0.0, B = 1.0"),
    Case("booleans", "booleans.csv", "the labels are read as false, true"),
    Case("grades 1 to 5", "stars.csv", LETTERS + "1, B = 2, C = 3, D = 4, E = 5"),
    Case("dates", "dates.csv", LETTERS + "2024-01-01, B = 2024-02-01"),
    Case("labels of several words", "words.csv", LETTERS + "red wine, B = white wine"),
    Case("labels in another script", "scripts.csv", LETTERS),
    Case("emoji", "emoji.csv", LETTERS),
    Case("labels with commas", "commas.csv", LETTERS + "no, never; B = yes, surely"),
    Case("labels with equals signs", "equals.csv", LETTERS + "mood=bad, B = mood=good"),
    Case("labels as fastText writes them", "fasttext.csv", "the labels are read as happy, sad"),
    Case("words given as pairs", "zero-one.csv", "' bad', ' good'", ("--verbalizers", "0=bad,1=good")),
    Case(
        "words given as a JSON object",
        "commas.csv",
        "' yes', ' no'",
        ("--verbalizers", '{"yes, surely": "yes", "no, never": "no"}'),
    ),
    Case("words given in a file", "commas.csv", "' yes', ' no'", ("--verbalizers", "@words.json")),
    Case(
        "more than 20 labels",
        "intents.csv",
        "24 labels: the commonest 20 are used, which hold",
        ("--max-examples", "40"),
    ),
    Case("a label that occurs once", "rare.csv", "label 'calm' left out: it has one text only"),
    Case("no header", "no-header.csv", "no header", columns=("1", "2")),
    Case("no header, columns by name", "no-header.csv", "cannot be a header", code=1),
    Case("a header that is to be data", "zero-one.csv", "no header", ("--no-header",), ("1", "2")),
    Case("columns by number", "words.csv", LETTERS, columns=("1", "2")),
    Case("Windows' Western encoding", "cp1252.csv", "read as cp1252"),
    Case("UTF-16", "utf-16.csv", "read as utf-16"),
    Case("semicolons", "semicolons.csv", "read as cp1252, semicolons"),
    Case("encoding and delimiter given", "semicolons.csv", "", ("--encoding", "latin-1", "--delimiter", ";")),
    Case("another encoding given", "cp1252.csv", "is not utf-8", ("--encoding", "utf-8"), code=1),
    Case("tabs", "tabs.txt", "read as tabs"),
    Case("vertical bars", "bars.txt", "read as vertical bars"),
    Case("lines that end in a bare CR", "bare-cr.csv", ""),
    Case("gzip", "zipped.csv.gz", ""),
    Case("a JSON array", "array.json", ""),
    Case("empty columns and rows that a spreadsheet left", "excel.csv", ""),
    Case("one malformed row of 200", "bad-row.csv", "1 of 200 rows passed over, line 18"),
    Case("one malformed row, strict", "bad-row.csv", "row 17 (line 18) has 3 fields", ("--strict",), code=1),
    Case("one empty cell of 200 rows", "empty-cell.csv", "1 of 200 rows passed over, line 18"),
    Case("bad rows beyond 1 %", "many-bad.csv", "2 of 42 rows cannot be used, more than 1 %", code=1),
    Case("NaN among the labels of Parquet", "missing.parquet", "1 of 200 rows passed over, row 8"),
    Case("NaN and null in JSON", "missing.json", "2 of 200 rows passed over, rows 8, 10"),
    Case("several labels in a cell", "several.csv", "several labels an example are not supported", code=1),
    Case("lists of labels", "lists.jsonl", "several labels an example are not supported", code=1),
    Case("one-hot columns", "one-hot.csv", "one-hot columns (red, green, blue)", columns=("text", "red"), code=1),
    Case("colons and braces in the name of a column", "names.csv", "", columns=("what: {they} wrote!", "mood?")),
    Case("halves of surrogate pairs, NUL", "strays.jsonl", "held characters that are none"),
    Case("texts that begin alike", "same-start.csv", "--max-tokens raised to 128"),
    Case("more tokens than positions", "long.csv", "the model has 128 positions", ("--max-tokens", "300"), code=1),
    Case("a device that is none", "words.csv", "'tpu' is not one of auto, cpu", ("--device", "tpu"), code=1),
]


@dataclass(frozen=True)
class Answer:
    """What came back: the notes and the words, or the one line of an error."""

    said: str
    code: int
    trace: bool


def answer(case: Case, folder: Path) -> Answer:
    """Run a case in a folder of its own that holds the files."""
    with mock.patch("stopwise.figures.style.save"):  # drawing would be two thirds of the time
        result = CliRunner().invoke(app, ["advise", *QUICK, *case.arguments(), "--output", str(folder / "advice")])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        known = isinstance(result.exception, (ValueError, OSError))
        return Answer(in_options(str(result.exception)), 1, not known)
    if result.exit_code:
        return Answer(result.output.strip(), result.exit_code, False)
    lines = [line.removeprefix("stopwise: ") for line in result.output.splitlines()]
    notes = [line.removeprefix("Note: ").removesuffix(".") for line in lines if line.startswith("Note: ")]
    words = next(line.split("the words for the labels are ")[1] for line in lines if "the words for the labels" in line)
    return Answer("; ".join([*notes, f"answers: {words}"]), 0, False)


def document(answers: Callable[[Case], Answer]) -> str:
    """Return docs/reference/files.md: every case with its answer."""
    lines = [
        "# Files and labels that work",
        "",
        "Written by `tests/unit/advice/test_door.py`, which runs every line on the pico model (STOPWISE_WRITE_DOCS=1",
        "writes this page anew). The files lie in `tests/data/door`.",
        "`stopwise advise` and a task's `source` in the configuration read them by the same reader.",
        "Columns are `text` and `label` unless named. The last column is the exit code.",
        "",
        "| What people have | File and options | Answer | Code |",
        "|---|---|---|---|",
    ]
    for case in CASES:
        found = answers(case)
        columns = () if case.columns == ("text", "label") else ("--text", case.columns[0], "--label", case.columns[1])
        options = " ".join(_quoted(part) for part in (case.file, *columns, *case.options))
        cells = (case.what, f"`{options}`", found.said, str(found.code))
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _quoted(part: str) -> str:
    return f"'{part}'" if set(part) & set(' ;{"!?') else part
