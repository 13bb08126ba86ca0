"""A person's file as a task: which columns, which words stand for the labels, and one clear error when that fails."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stopwise.assets.wheels import ASSETS
from stopwise.tasks.prompts import Encoder, PromptError
from stopwise.tasks.sources import read_rows
from stopwise.tasks.task import Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NAME = "advice"
SUFFIXES = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".parquet": "parquet"}
MOST_CLASSES = 20
FEWEST_EXAMPLES = 8
# Words that most vocabularies hold as one token, for labels that are none: opposites for two classes, letters for more.
OPPOSITES = (("bad", "good"), ("no", "yes"), ("negative", "positive"), ("false", "true"))
LETTERS = "ABCDEFGHIJKLMNOPQRST"
# What the library calls a setting, and the option that sets it here.
_OPTIONS = {
    rf"tasks\.{NAME}\.source\.\w+": "--data",
    rf"tasks\.{NAME}\.verbalizers": "--verbalizers",
    rf"tasks\.{NAME}\.template": "--template",
    rf"tasks\.{NAME}\.text": "--text",
    rf"tasks\.{NAME}\.label": "--label",
    r"data\.max_tokens": "--max-tokens",
    r"model\.source": "--model",
    r"model\.revision": "--revision",
    r"kernel\.parameters": "--parameters",
    r"finetune\.(\w+)": r"--\1",
    r"set 'encoding' in the source": "give --encoding",
    rf" \(task '{NAME}'\)": "",
}


class AdviceError(ValueError):
    """Advice that cannot be given; the message names the option of the command line."""


def in_options(message: str) -> str:
    """Return an error of the library with the names of config keys turned into those of options."""
    for key, option in _OPTIONS.items():
        message = re.sub(key, option, message)
    return re.sub(r"--(\w+)_(\w+)", r"--\1-\2", message)


@dataclass(frozen=True)
class File:
    """A file read: its source section, its columns, and how many rows each label has (sorted by label)."""

    path: str
    source: Mapping[str, str]
    text: tuple[str, ...]
    label: str
    shares: Mapping[str, int]

    @property
    def rows(self) -> int:
        """The number of rows."""
        return sum(self.shares.values())


def read_file(path: str | Path, text: Sequence[str], label: str, encoding: str = "utf-8") -> File:
    """Return what a csv, tsv, jsonl or Parquet file holds in these columns; needs no model.

    Raises AdviceError or SourceError, in one line, for a file that cannot be read, a missing column, an empty value, or
    a label column with fewer than 2 or more than 20 labels.
    """
    source = _source(path, encoding)
    rows = read_rows(source, [*text, label], key=f"tasks.{NAME}.source")
    shares = dict(sorted(Counter(row[label].strip() for row in rows).items()))
    _check_labels(shares, label)
    return File(str(path), source, tuple(text), label, shares)


def make_task(
    file: File,
    tokenizer: PreTrainedTokenizerBase,
    *,
    template: str | None = None,
    verbalizers: Sequence[str] = (),
    max_tokens: int = 64,
    max_examples: int = 64,
) -> Task:
    """Return the file as a task whose examples all train, at most ``max_examples`` of them.

    Without a template the prompt names the columns (``default_template``); without verbalizers (``label=word`` pairs)
    each label stands for itself with a leading space. Raises AdviceError, or a ValueError of the library, in one line.
    """
    words = given_words(verbalizers, file.shares) if verbalizers else {name: f" {name}" for name in file.shares}
    cfg: dict[str, Any] = {"source": file.source, "text": list(file.text), "label": file.label, "verbalizers": words}
    cfg["template"] = template or default_template(file.text, file.label)
    task = Task.from_config(cfg, {"max_tokens": max_tokens}, name=NAME, assets=ASSETS)
    count = len(task.examples)
    if count < FEWEST_EXAMPLES:
        raise AdviceError(f"--data: {file.path} holds {count} distinct labelled texts; needs {FEWEST_EXAMPLES} or more")
    if min(Counter(example.label for example in task.examples).values()) < 2:
        raise AdviceError(f"--data: {file.path} holds a label with one text only; every label needs 2 or more")
    _check_words(task, words, tokenizer)
    # All for training: every estimate of the advice leaves examples out by itself.
    return replace(task, train=min(count, max_examples), validation=0, test=0)


def _source(path: str | Path, encoding: str) -> dict[str, str]:
    """Return the source section for a path, by its suffix."""
    kind = SUFFIXES.get(Path(path).suffix.lower())
    if kind is None:
        raise AdviceError(f"--data: {str(path)!r} does not end in {', '.join(SUFFIXES)}")
    return {kind: str(path)} | ({} if kind == "parquet" or encoding == "utf-8" else {"encoding": encoding})


def _check_labels(shares: Mapping[str, int], column: str) -> None:
    if len(shares) < 2:
        raise AdviceError(f"--label: column {column!r} holds one label only, {next(iter(shares))!r}; at least 2 needed")
    if len(shares) > MOST_CLASSES:
        some = ", ".join(map(repr, list(shares)[:3]))
        raise AdviceError(
            f"--label: column {column!r} holds {len(shares)} different values ({some}, ...); at most {MOST_CLASSES}"
            " classes: is it the label column?"
        )


def default_template(text: Sequence[str], label: str) -> str:
    """Return ``Text: {text}\\nLabel:`` in the columns' own names: ``Review: {review}\\nSentiment:``."""
    lines = [f"{_spoken(column)}: {{{column}}}" for column in text]
    return "\n".join([*lines, f"{_spoken(label)}:"])


def _spoken(column: str) -> str:
    """Return a column's name as a prompt says it; braces would be read as a field."""
    words = re.sub(r"[\W_]+", " ", column).strip()
    return words[:1].upper() + words[1:] if words else "Text"


def given_words(pairs: Sequence[str], shares: Mapping[str, int]) -> dict[str, str]:
    """Return label -> word from ``label=word`` pairs, several to a text when commas part them.

    A word gets the leading space by which it follows the prompt. Raises AdviceError for what is no pair, a label that
    the data do not hold, one that is missing, or one given twice.
    """
    words: dict[str, str] = {}
    for pair in [part for text in pairs for part in text.split(",") if part.strip()]:
        name, equals, word = pair.partition("=")
        name = name.strip()
        if not equals or not word.strip():
            raise AdviceError(f"--verbalizers: {pair!r} is not label=word, such as {_example(shares)}")
        if name not in shares or name in words:
            why = "is given twice" if name in words else f"is no label of the data; found: {', '.join(shares)}"
            raise AdviceError(f"--verbalizers: {name!r} {why}")
        words[name] = word if word[0].isspace() else f" {word}"
    missing = [name for name in shares if name not in words]
    if missing:
        raise AdviceError(f"--verbalizers: no word for {', '.join(map(repr, missing))}; give one for every label")
    return words


def _example(labels: Iterable[str]) -> str:
    """Return a well-formed option value for these labels."""
    labels = list(labels)
    words = OPPOSITES[0] if len(labels) == 2 else tuple(LETTERS)
    return ",".join(f"{name}={word}" for name, word in zip(labels, words, strict=False))


def _check_words(task: Task, words: Mapping[str, str], tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise one error that shows what to type when a label's word is not a single token after the prompt."""
    try:
        encoder = Encoder(tokenizer)
        prompts = [
            found.prompt
            for found in encoder.encode(task.template, [e.texts for e in task.examples[:4]], task.max_tokens)
        ]
        encoder.verbalizer_ids(words, prompts)
        return
    except PromptError as error:
        reason = str(error)
        if not reason.startswith("verbalizers"):
            raise
    proposed = propose_words(list(words), encoder, prompts)
    what = reason.split(": ", 1)[1].split("; allowed", maxsplit=1)[0]
    hint = ",".join(f"{name}={word.strip()}" for name, word in proposed.items()) if proposed else _example(words)
    raise AdviceError(
        f"--verbalizers: every label needs a word that is one token of the model, and {what}; choose words that a"
        f' reader would expect after the prompt, for example: --verbalizers "{hint}"'
    )


def propose_words(labels: Sequence[str], encoder: Encoder, prompts: Sequence[str]) -> dict[str, str] | None:
    """Return single-token words for all labels, or None: near spellings first, then opposites, then letters."""

    def single(words: Mapping[str, str]) -> bool:
        try:
            return len(encoder.verbalizer_ids(words, prompts)) == len(words)
        except PromptError:
            return False

    near: dict[str, str] = {}
    for name in labels:
        spellings = [name, name.lower(), name.capitalize(), *re.findall(r"[^\W\d_]+", name.lower())]
        words = [f" {word}" for word in spellings if word and f" {word}" not in near.values()]
        found = next((word for word in words if _one_token(word, encoder, prompts)), None)
        if found is None:
            break
        near[name] = found
    sets = [near] if len(near) == len(labels) else []
    pairs = OPPOSITES if len(labels) == 2 else ()
    sets += [dict(zip(labels, (f" {word}" for word in words), strict=True)) for words in pairs]
    sets.append({name: f" {letter}" for name, letter in zip(labels, LETTERS, strict=False)})
    return next((words for words in sets if single(words)), None)


def _one_token(word: str, encoder: Encoder, prompts: Sequence[str]) -> bool:
    try:
        return bool(encoder.verbalizer_ids({"word": word}, prompts))
    except PromptError:
        return False
