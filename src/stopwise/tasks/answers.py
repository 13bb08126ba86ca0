"""The words that a model answers with: the labels themselves where they are single tokens, else short neutral ones."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stopwise.tasks.prompts import Encoder, PromptError, clean

# Opposites that most vocabularies hold as one token each: proposed, never taken without being asked for.
OPPOSITES = (("bad", "good"), ("no", "yes"), ("negative", "positive"), ("false", "true"))
LETTERS = "ABCDEFGHIJKLMNOPQRST"
LONGEST_NAME = 40  # characters of a label that the options line shows
PREFIX = "__label__"  # what fastText writes before a label


@dataclass(frozen=True)
class Answers:
    """The word of each label, in class order, the options line that explains neutral words ("" for none), and why."""

    words: Mapping[str, str]
    options: str = ""
    said: str = ""


def choose_answers(
    labels: Sequence[str], encoder: Encoder, prompts: Sequence[str], key: str = "verbalizers"
) -> Answers:
    """Return words for labels of any kind, each one token after the prompts.

    Each label's own spelling, leading space included; else its spelling in small letters or capitalised; else the
    letters A, B, … (with or without a space, whichever the tokenizer has as single tokens), explained by a line of
    options in the prompt. Raises PromptError naming ``key`` when the tokenizer has none of these.
    """
    own = {label: f" {label}" for label in labels}
    if single_tokens(own, encoder, prompts):
        return Answers(own)
    bare = {label: label.removeprefix(PREFIX) for label in labels}
    for spell in (str, str.lower, str.capitalize):
        words = {label: f" {spell(bare[label])}" for label in labels}
        if all(word.strip() for word in words.values()) and single_tokens(words, encoder, prompts):
            return Answers(words, said=f"the labels are read as {', '.join(word.strip() for word in words.values())}")
    for space, letters in ((" ", LETTERS), ("", LETTERS), (" ", LETTERS.lower()), ("", LETTERS.lower())):
        words = {label: space + letter for label, letter in zip(labels, letters, strict=False)}
        if len(words) == len(labels) and single_tokens(words, encoder, prompts):
            meanings = {label: word.strip() for label, word in words.items()}
            comma = "; " if any("," in label for label in labels) else ", "
            stands = [f"{word} = {_shown(label)}" for label, word in meanings.items()]
            line, shown = "Options: " + comma.join(stands), comma.join(stands[:6])
            more = f"{comma}…" if len(stands) > 6 else ""
            return Answers(words, line, f"a label is not one token of the model, so it answers {shown}{more}")
    raise PromptError(
        f"{key}: the tokenizer has no single tokens for {len(labels)} letters; give a word for each label"
    )


def _shown(label: str) -> str:
    """Return a label as the options line says it."""
    text = clean(label.removeprefix(PREFIX)) or label
    return text if len(text) <= LONGEST_NAME else text[: LONGEST_NAME - 1].rstrip() + "…"


def single_tokens(words: Mapping[str, str], encoder: Encoder, prompts: Sequence[str]) -> bool:
    """Tell whether every word is one token after the prompts, and no two the same."""
    if len(set(words.values())) != len(words):
        return False
    try:
        return len(encoder.verbalizer_ids(words, prompts)) == len(words)
    except PromptError:
        return False


def given_words(given: Sequence[str], labels: Iterable[str], left_out: Iterable[str] = ()) -> dict[str, str]:
    """Return label -> word from ``label=word`` pairs with commas between, a JSON object, or a file of one.

    A file is ``@path``, or a path that ends in .json. A word gets the leading space by which it follows the prompt; it
    is given for every label, and for none that the data do not hold (``left_out`` labels may have one all the same).
    Raises PromptError for anything else.
    """
    labels, words = list(labels), {}
    ignored = set(left_out)
    for name, word in _pairs(given, labels):
        if name not in labels and name not in ignored:
            raise PromptError(f"--verbalizers: {name!r} is no label of the data; found: {_listed(labels)}")
        if name in words:
            raise PromptError(f"--verbalizers: {name!r} is given twice")
        words[name] = word if word[0].isspace() else f" {word}"
    missing = [name for name in labels if name not in words]
    if missing:
        raise PromptError(f"--verbalizers: no word for {_listed(missing)}; give one for every label")
    return {name: word for name, word in words.items() if name in labels}


def _listed(labels: Sequence[str], most: int = 20) -> str:
    return ", ".join(repr(label) for label in labels[:most]) + (", …" if len(labels) > most else "")


def _pairs(given: Sequence[str], labels: Sequence[str]) -> list[tuple[str, str]]:
    """Return the (label, word) pairs of all the texts given, in their order."""
    pairs: list[tuple[str, str]] = []
    for text in given:
        value = text.strip()
        if value.startswith("@") or (value.lower().endswith(".json") and "=" not in value):
            pairs += _object(_file(value.removeprefix("@")), value)
        elif value.startswith("{"):
            pairs += _object(value, "the object")
        else:
            pairs += [_pair(part, labels) for part in text.split(",") if part.strip()]
    return pairs


def _pair(part: str, labels: Sequence[str]) -> tuple[str, str]:
    name, equals, word = part.partition("=")
    if not equals or not word.strip():
        raise PromptError(
            f"--verbalizers: {part!r} is not label=word, such as {example(labels)}; for labels with commas or equals"
            ' signs give a JSON object, {"label": "word"}, or a file of one (@words.json)'
        )
    return name.strip(), word


def _file(path: str) -> str:
    try:
        return Path(path).expanduser().read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise PromptError(f"--verbalizers: {path!r} cannot be read ({reason})") from None


def _object(text: str, what: str) -> list[tuple[str, str]]:
    def distinct(pairs: list[tuple[str, object]]) -> list[tuple[str, object]]:
        return pairs

    try:
        found = json.loads(text, object_pairs_hook=distinct)
    except ValueError as error:
        raise PromptError(f"--verbalizers: {what} is not JSON ({error})") from None
    pairs = found if isinstance(found, list) and all(isinstance(one, tuple) for one in found) else None
    if not pairs or not all(isinstance(word, str) and word.strip() for _, word in pairs):
        raise PromptError(f'--verbalizers: {what} is not a JSON object from labels to words, {{"label": "word"}}')
    return pairs


def example(labels: Iterable[str]) -> str:
    """Return a well-formed option value for these labels."""
    labels = list(labels)
    words = OPPOSITES[0] if len(labels) == 2 else tuple(LETTERS)
    chosen = dict(zip(labels, words, strict=False))
    if any("," in name or "=" in name for name in chosen):
        return json.dumps(chosen, ensure_ascii=False)
    return ",".join(f"{name}={word}" for name, word in chosen.items())
