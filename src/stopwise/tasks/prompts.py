"""Prompts: a template with the columns of a row filled in, cut to a token budget, and the words that may follow it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class PromptError(ValueError):
    """A template, verbalizer or token budget that cannot be used."""


@dataclass(frozen=True)
class Encoded:
    """One prompt: its text (cut when it had to be), its token ids, and whether a column text was cut."""

    prompt: str
    input_ids: list[int]
    cut: bool


@dataclass(frozen=True)
class Template:
    """Literal words and column names, alternating: literals[0] columns[0] literals[1] columns[1] ... literals[-1]."""

    literals: tuple[str, ...]
    columns: tuple[str, ...]

    @classmethod
    def parse(cls, template: str, columns: Sequence[str], key: str = "template") -> Template:
        """Return the template of a text such as ``Review: {text}\\nSentiment:``.

        Every column must appear exactly once, by its name, or as ``{text}`` when there is only one. ``{{`` and ``}}``
        stand for braces, in a column's name too; nothing else in a name has a meaning. Raises PromptError naming
        ``key`` for anything else in braces.
        """
        fields = {field_of(column): column for column in columns}
        if len(columns) == 1:
            fields.setdefault("{text}", columns[0])
        longest_first = sorted(fields, key=len, reverse=True)
        literals, names, at = [""], [], 0
        while at < len(template):
            field = next((field for field in longest_first if template.startswith(field, at)), None)
            if field is not None:
                names.append(fields[field])
                literals.append("")
                at += len(field)
            elif template[at : at + 2] in ("{{", "}}"):
                literals[-1] += template[at]
                at += 2
            elif template[at] in "{}":
                raise PromptError(_not_a_field(template, at, columns, key))
            else:
                literals[-1] += template[at]
                at += 1
        if sorted(names) != sorted(columns):
            raise PromptError(
                f"{key}: {template!r} must name each of {', '.join(columns)} once, found {names or 'none'}"
            )
        return cls(tuple(literals), tuple(names))

    @property
    def text(self) -> str:
        """The template as text that ``parse`` reads: braces of words and of names are doubled."""
        literals = [_doubled(literal) for literal in self.literals]
        fields = [field_of(column) for column in self.columns]
        return literals[0] + "".join(f + text for f, text in zip(fields, literals[1:], strict=True))

    def with_line(self, line: str) -> Template:
        """Return the template with a line of words before its last line, or at the top when it has one line only."""
        *head, last = self.literals
        if "\n" in last:
            before, after = last.rsplit("\n", 1)
            return Template((*head, f"{before}\n{line}\n{after}"), self.columns)
        return Template((f"{line}\n{self.literals[0]}", *self.literals[1:]), self.columns)

    def render(self, texts: Mapping[str, str]) -> tuple[str, list[tuple[int, int]]]:
        """Return the prompt and, for each column in template order, where its text starts and ends in it."""
        prompt, spans = self.literals[0], []
        for column, literal in zip(self.columns, self.literals[1:], strict=True):
            start = len(prompt)
            prompt += texts[column]
            spans.append((start, len(prompt)))
            prompt += literal
        return prompt, spans


def field_of(column: str) -> str:
    """Return the placeholder of a column in a template: its name in braces, braces of the name doubled."""
    return "{" + _doubled(column) + "}"


def _doubled(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


def _not_a_field(template: str, at: int, columns: Sequence[str], key: str) -> str:
    """Return the message for a brace that opens or closes nothing that is known."""
    end = template.find("}", at)
    if template[at] == "}" or end < 0:
        return f"{key}: {template!r} is malformed (a single {template[at]!r}; write it twice for a brace)"
    allowed = ", ".join(map(field_of, columns))
    return f"{key}: {template[at : end + 1]} is not a text column of the task; allowed: {allowed}"


def default_template(text: Sequence[str], label: str) -> str:
    """Return ``Text: {text}\\nLabel:`` in the columns' own names: ``Review: {review}\\nSentiment:``.

    Columns that go by number are a Text and the Label.
    """
    lines = [f"{_spoken(column, 'Text')}: {field_of(column)}" for column in text]
    return "\n".join([*lines, f"{_spoken(label, 'Label')}:"])


def _spoken(name: str, otherwise: str) -> str:
    """Return a column's name as a prompt says it."""
    words = re.sub(r"[\W_]+", " ", name).strip()
    return words[:1].upper() + words[1:] if words and not name.isdecimal() else otherwise


def clean(text: str) -> str:
    """Return the text on one line: every run of white space becomes one space, so that no row can fake a new line."""
    return " ".join(text.split())


class Encoder:
    """Turns prompts into token ids: the tokenizer's opening tokens (such as bos) are kept, closing ones left out.

    Text that spells a special token is encoded as text. Raises PromptError for a tokenizer without character offsets.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise PromptError(
                "model.source: the tokenizer gives no character offsets; only fast tokenizers are supported"
            )
        self.tokenizer = tokenizer
        probe = tokenizer("x", return_special_tokens_mask=True)
        opening = probe["special_tokens_mask"].index(0) if 0 in probe["special_tokens_mask"] else 0
        self.opening: list[int] = list(probe["input_ids"][:opening])

    def batch(self, prompts: Sequence[str]) -> tuple[list[list[int]], list[list[tuple[int, int]]]]:
        """Return the ids of each prompt, and the character span of each id (empty for the opening tokens)."""
        found = self.tokenizer(
            list(prompts),
            add_special_tokens=False,
            split_special_tokens=True,
            return_attention_mask=False,
            return_offsets_mapping=True,
        )
        blank = [(0, 0)] * len(self.opening)
        return [self.opening + ids for ids in found["input_ids"]], [blank + spans for spans in found["offset_mapping"]]

    def encode(self, template: Template, rows: Sequence[Mapping[str, str]], max_tokens: int) -> list[Encoded]:
        """Return every row's prompt of at most ``max_tokens`` ids: column texts are cut, longest first, from the end.

        Template words are never cut. Raises PromptError when they leave no room for every text. Cost: one tokenizer
        call, and one or two more for each row that is cut.
        """
        cleaned = [{column: clean(row[column]) for column in template.columns} for row in rows]
        prompts = [template.render(row)[0] for row in cleaned]
        ids, _ = self.batch(prompts) if prompts else ([], [])
        return [
            Encoded(prompt, found, False) if len(found) <= max_tokens else self._cut(template, row, max_tokens)
            for prompt, found, row in zip(prompts, ids, cleaned, strict=True)
        ]

    def _cut(self, template: Template, row: Mapping[str, str], max_tokens: int) -> Encoded:
        texts = dict(row)
        while True:
            prompt, spans = template.render(texts)
            (ids,), (offsets,) = self.batch([prompt])
            excess = len(ids) - max_tokens
            if excess <= 0:
                return Encoded(prompt, ids, True)
            starts = [_token_starts(offsets, start, end) for start, end in spans]
            for index, kept in enumerate(_levelled([len(found) for found in starts], excess)):
                if kept == len(starts[index]):
                    continue
                column, (begin, _) = template.columns[index], spans[index]
                # A token may begin with the space before the text, or inside a character: at least one goes.
                end = min(max(starts[index][kept] - begin, 0), len(texts[column]) - 1)
                texts[column] = texts[column][:end].rstrip()
            if not all(texts.values()):
                room = len(self.batch([template.render(dict.fromkeys(texts, ""))[0]])[0][0])
                raise PromptError(
                    f"data.max_tokens: {max_tokens} leaves no room for the texts; the template alone takes {room}"
                )

    def verbalizer_ids(self, words: Mapping[str, str], prompts: Sequence[str], key: str = "verbalizers") -> list[int]:
        """Return the id of each label's word: the single token by which it follows each of the prompts.

        Raises PromptError naming ``key`` when a word is not one token there, is unknown to the vocabulary, changes how
        the prompt itself is split, or is shared by two labels.
        """
        bare, _ = self.batch(prompts)
        ids: list[int] = []
        for label, word in words.items():
            followed, _ = self.batch([prompt + word for prompt in prompts])
            tails = {tuple(long[len(short) :]) for short, long in zip(bare, followed, strict=True)}
            apart = all(long[: len(short)] == short for short, long in zip(bare, followed, strict=True))
            tail = min(tails)
            if len(tails) != 1 or len(tail) != 1 or not apart or tail[0] == self.tokenizer.unk_token_id:
                pieces = self.tokenizer.convert_ids_to_tokens(list(tail))
                raise PromptError(
                    f"{key}.{label}: {word!r} is not one token after the prompt (it becomes {pieces}); allowed: a word"
                    " that is a single token there, usually with a leading space"
                )
            ids.append(tail[0])
        if len(set(ids)) != len(ids):
            raise PromptError(f"{key}: two labels share a token: {dict(zip(words, ids, strict=True))}")
        return ids


def _token_starts(offsets: Sequence[tuple[int, int]], start: int, end: int) -> list[int]:
    """Return where the tokens that overlap the characters start..end begin."""
    return [a for a, b in offsets if a < end and b > start]


def _levelled(lengths: Sequence[int], excess: int) -> list[int]:
    """Return lengths that are smaller by ``excess`` in all, taken from whichever is longest at the time."""
    kept = list(lengths)
    for _ in range(min(excess, sum(kept))):
        kept[max(range(len(kept)), key=kept.__getitem__)] -= 1
    return kept
