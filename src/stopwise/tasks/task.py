"""A task: labelled texts, a prompt template, and one word of the vocabulary per label.

``Task.sample`` gives the ordered examples of one seed as a table (train, validation, test) with token ids;
``batch_from_table`` turns rows of it into the tensors of a batch, without a tokenizer.
"""

from __future__ import annotations

import json
import math
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from stopwise.assets.wheels import ASSETS, safe_name
from stopwise.tasks.answers import choose_answers
from stopwise.tasks.batch import SPLITS, VERBALIZERS, TaskError, batch_from_table
from stopwise.tasks.builtin import BUILTIN_TASKS
from stopwise.tasks.definition import (
    SIGNS,
    check_keys,
    columns_of,
    leaves_out,
    numbered,
    score_of,
    sizes_of,
    text_of,
    words_of,
)
from stopwise.tasks.labels import Classes, LabelError, check_one_label, choose_classes
from stopwise.tasks.names import spelled
from stopwise.tasks.prompts import Encoder, PromptError, Template, clean, default_template
from stopwise.tasks.sources import Table, read_table
from stopwise.tasks.splits import Rows, SplitError, split_rows

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

_KEYS = ("name", "source", "text", "label", "template", "verbalizers", "group", "minimum_abs_score", "other_labels")
_NEEDED = ("source", "text", "label")
# What a task keeps when its words are chosen: the file read, and what was found in it.
_READ = ("read", "_distinct", "classes", "examples")

SAMPLE_SCHEMA = pa.schema(
    [
        ("split", pa.string()),
        ("position", pa.int64()),
        ("source_row", pa.int64()),
        ("group", pa.string()),
        ("prompt", pa.string()),
        ("input_ids", pa.list_(pa.int32())),
        ("label", pa.int64()),
        ("label_name", pa.string()),
        ("cut", pa.bool_()),
    ]
)


@dataclass(frozen=True)
class Example:
    """One labelled row: its place in the source (from 0), its texts by column, its class, its group and content key."""

    source_row: int
    texts: Mapping[str, str]
    label: int
    group: str
    key: str


@dataclass(frozen=True)
class Task:
    """Where a task's rows lie, how its prompt is worded, and how much of it is used. Made by ``Task.from_config``.

    ``verbalizers`` are empty until words are chosen (``resolved``); ``leave_out``: rows of other labels do not count;
    ``answers``: what was said when the words were chosen; ``options``: tokens of ``max_tokens`` that explain them.
    """

    name: str
    source: Mapping[str, Any]
    text: tuple[str, ...]
    label: str
    template: Template
    verbalizers: Mapping[str, str]
    group: str | None
    minimum_abs_score: float | None
    max_tokens: int
    train: int
    validation: int
    test: int
    assets: str
    leave_out: bool = False
    answers: str = ""
    options: int = 0

    @classmethod
    def from_config(
        cls,
        cfg: str | Mapping[str, Any] | None,
        defaults: Mapping[str, Any] | None = None,
        *,
        name: str | None = None,
        assets: str | os.PathLike = ASSETS,
    ) -> Task:
        """Return the task that a config describes.

        ``cfg`` is a built-in task's name, or a mapping with ``name`` (or pass it as ``name``) whose other keys override
        the built-in of that name or define a task of your own: source, text (a column or a list of columns, by name or
        number), label, template (default: the columns' names), verbalizers (label value to word; their order numbers
        the classes; default or ``auto``: chosen, see ``resolved``), other_labels (``error`` or ``leave_out`` for rows
        whose label has no word), group, minimum_abs_score (the label column is a score: its sign is the label, smaller
        ones are left out). ``defaults`` is the config's data section: max_tokens, validation, test, and train (the
        largest training size). Raises TaskError naming the key.
        """
        given: dict[str, Any] = {"name": cfg} if isinstance(cfg, str) else dict(cfg or {})
        given["name"] = name if name is not None else given.get("name")
        given["name"] = safe_name(given["name"], "tasks")
        key = f"tasks.{given['name']}"
        check_keys(given, _KEYS, key)
        merged = {**BUILTIN_TASKS.get(given["name"], {}), **{k: v for k, v in given.items() if v is not None}}
        if given.get("group", "absent") is None:
            merged.pop("group", None)  # `group: null` switches a built-in group off
        missing = [k for k in _NEEDED if k not in merged]
        if missing:
            raise TaskError(
                f"{key}: not a built-in task ({', '.join(BUILTIN_TASKS)}), and {', '.join(missing)} is not given"
            )
        sizes: dict[str, Any] = {**sizes_of(defaults or {})}
        return cls(
            name=merged["name"],
            source=merged["source"],
            text=(text := columns_of(merged["text"], f"{key}.text")),
            label=(label := text_of(numbered(merged["label"]), f"{key}.label")),
            template=Template.parse(
                text_of(merged.get("template", default_template(text, label)), f"{key}.template"),
                text,
                f"{key}.template",
            ),
            verbalizers=words_of(merged.get("verbalizers"), f"{key}.verbalizers"),
            group=None if merged.get("group") is None else text_of(numbered(merged["group"]), f"{key}.group"),
            minimum_abs_score=score_of(merged.get("minimum_abs_score"), merged.get("verbalizers"), key),
            **sizes,
            assets=os.fspath(assets),
            leave_out=leaves_out(merged.get("other_labels", "error"), key),
        )

    @cached_property
    def read(self) -> Table:
        """The rows of the source, and what was recognised and passed over. Reads the source."""
        columns = [*self.text, self.label, *([self.group] if self.group else [])]
        key = f"tasks.{self.name}.source"
        label = None if self.verbalizers or self.minimum_abs_score is not None else self.label
        return read_table(self.source, columns, label=label, key=key, assets=self.assets)

    @property
    def rows(self) -> list[dict[str, str]]:
        """The rows of the source in its order, the task's columns as text, before any is left out."""
        return self.read.rows

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should know: how the source was read, which rows and labels are left out, the words chosen."""
        return (*self.read.said, *self.classes.said, *([self.answers] if self.answers else []))

    @cached_property
    def _distinct(self) -> tuple[list[tuple[int, str, str]], dict[str, int]]:
        """The (row, label, content) of each distinct labelled text, and the counts on the way."""
        labelled = [(i, label) for i in range(len(self.rows)) if (label := self._label_of(i)) is not None]
        first: dict[str, tuple[int, str, str]] = {}
        conflicting: set[str] = set()
        for i, label in labelled:
            content = "\x1f".join(_normalised(self.rows[i][column]) for column in self.text)
            if first.setdefault(content, (i, label, content))[1] != label:
                conflicting.add(content)
        kept = [one for one in first.values() if one[2] not in conflicting]
        counts = {
            "rows": len(self.rows),
            "labelled": len(labelled),
            "duplicates": len(labelled) - len(first),
            "conflicts": len(conflicting),
        }
        return kept, counts

    @cached_property
    def classes(self) -> Classes:
        """The labels that are classes, in class order: those that have a word, else the commonest of the source.

        Raises TaskError for a label column that holds one label, or several labels a cell.
        """
        if self.verbalizers:
            return Classes(tuple(self.verbalizers))
        key = f"tasks.{self.name}.label"
        try:
            check_one_label((row[self.label].strip() for row in self.rows), self.label, self.read.one_hot)
        except LabelError as error:
            raise TaskError(f"{key}: {error}") from None
        texts = Counter(label for _, label, _ in self._distinct[0])
        found = choose_classes(texts)
        if len(found.labels) < 2:
            raise TaskError(_too_few(texts, self.label, key))
        return found

    @cached_property
    def examples(self) -> list[Example]:
        """The distinct labelled examples: one per normalised text, none whose copies disagree about the label."""
        index = {label: number for number, label in enumerate(self.classes.labels)}
        kept = []
        for i, label, content in self._distinct[0]:
            if label in index:
                row = self.rows[i]
                texts = {column: row[column] for column in self.text}
                group = row[self.group] if self.group else content
                kept.append(Example(self.read.places[i], texts, index[label], group, content))
        self._check_classes(kept)
        return kept

    @property
    def counts(self) -> dict[str, int]:
        """How many rows there are, are labelled, repeat another, contradict a copy, and are left as examples."""
        return {**self._distinct[1], "examples": len(self.examples)}

    def _label_of(self, i: int) -> str | None:
        """Return row i's label, None for a row that is left out; raises TaskError for one with no verbalizer."""
        value = self.rows[i][self.label].strip()
        if self.minimum_abs_score is not None:
            try:
                score = float(value)
            except ValueError:
                score = math.nan
            if not math.isfinite(score):
                raise TaskError(
                    f"tasks.{self.name}.label: row {self.read.places[i] + 1}: {value!r} in column {self.label!r} is no"
                    " number"
                )
            return SIGNS[score > 0] if score and abs(score) >= self.minimum_abs_score else None
        if not self.verbalizers or value in self.verbalizers:
            return value
        known = spelled(value, self.verbalizers)
        if known is None and not self.leave_out:
            raise TaskError(
                f"tasks.{self.name}.verbalizers: row {self.read.places[i] + 1} has the label {value!r}, which has no"
                f" verbalizer; found verbalizers for {', '.join(self.verbalizers)} (set other_labels: leave_out to pass"
                " such rows over)"
            )
        return known

    def resolved(self, tokenizer: PreTrainedTokenizerBase, positions: int | None = None) -> Task:
        """Return the task with a word for each label: itself when they are given.

        Chosen words are the labels themselves where each is one token after the prompt, else A, B, …, which a line of
        options in the prompt explains (``answers.choose_answers``); the tokens of that line are not taken from the
        texts' budget ``max_tokens``. A line that would not fit the model's ``positions`` is left out. Raises TaskError
        for a tokenizer that has no such tokens.
        """
        if self.verbalizers:
            return self
        labels, key = self.classes.labels, f"tasks.{self.name}.verbalizers"
        prompts = [found.prompt for found in self._encoded(tokenizer, self.examples[:4])]
        try:
            encoder = Encoder(tokenizer)
            chosen = choose_answers(labels, encoder, prompts, key)
        except PromptError as error:
            raise TaskError(str(error)) from None
        template = self.template.with_line(chosen.options) if chosen.options else self.template
        blank = dict.fromkeys(self.text, "x")
        (longer, before), _ = encoder.batch([template.render(blank)[0], self.template.render(blank)[0]])
        options, said = len(longer) - len(before), chosen.said
        if positions is not None and options and self.max_tokens + options > positions:
            template, said = self.template, f"{said} (unexplained: the options would take {options} tokens)"
            options = 0
        found = replace(
            self,
            verbalizers=dict(chosen.words),
            template=template,
            max_tokens=self.max_tokens + options,
            leave_out=True,
            answers=said,
            options=options,
        )
        found.__dict__.update({name: value for name, value in self.__dict__.items() if name in _READ})
        return found

    def _check_classes(self, examples: Sequence[Example]) -> None:
        found = Counter(example.label for example in examples)
        for number, label in enumerate(self.verbalizers):
            if not found[number]:
                raise TaskError(f"tasks.{self.name}.verbalizers: no row has the label {label!r}")

    def split(
        self, seed: int = 0, train: int | None = None, look: Callable[[Example], Hashable] | None = None
    ) -> dict[str, list[Example]]:
        """Return the examples of each split in their nested order; see ``sampling.split_rows``.

        ``train`` is the number of training examples (default: the data section's); ``look`` what the model sees of an
        example (default: its whole text). Raises TaskError for too few rows.
        """
        known = self.examples
        rows = Rows([e.label for e in known], [e.group for e in known], [e.key for e in known])
        wanted = self.train if train is None else train
        try:
            chosen = split_rows(
                rows,
                train=wanted,
                validation=self.validation,
                test=self.test,
                seed=seed,
                look=None if look is None else lambda i: look(known[i]),
            )
        except SplitError as error:
            key = "sizes" if error.split == "train" else f"data.{error.split}"
            groups = f" in {len(set(rows.groups))} groups (a group is never divided)" if self.group else ""
            groups += (
                "" if look is None else f" (those that are the same in data.max_tokens {self.max_tokens} count once)"
            )
            raise TaskError(
                f"{key}: {error.wanted} {error.split} rows asked for, but task {self.name!r} has {error.available} left"
                f" of {len(known)} distinct ones{groups}, with data.test {self.test}, data.validation {self.validation}"
            ) from None
        found = {name: [known[i] for i in chosen[name]] for name in SPLITS}
        self._check_seen(found, wanted)
        return found

    def _check_seen(self, found: Mapping[str, Sequence[Example]], train: int) -> None:
        """Raise TaskError for a label that is held out but in no training example, where there is room for all."""
        labels, seen = list(self.verbalizers or self.classes.labels), {e.label for e in found["train"]}
        unseen = {e.label: name for name in ("test", "validation") for e in found[name] if e.label not in seen}
        if unseen and len(labels) <= train:
            number, name = min(unseen.items())
            rows = sum(e.label == number for e in self.examples)
            raise TaskError(
                f"tasks.{self.name}.label: the label {labels[number]!r} is in no training example: its {rows} row(s)"
                f" went to data.{name}; allowed: more rows of it, a smaller data.{name}, or to leave its rows out"
            )

    def sample(self, tokenizer: PreTrainedTokenizerBase, seed: int = 0, train: int | None = None) -> pa.Table:
        """Return the ordered examples of a seed, train then validation then test, as a table of SAMPLE_SCHEMA.

        ``input_ids`` are unpadded, at most ``max_tokens``, and no two are the same: texts that differ only in what is
        cut off are one example. ``group`` is null for a task without groups. The token ids of the verbalizers are in
        the table's metadata (``verbalizers_of``). Raises TaskError naming the key for a verbalizer that is not the
        single token after the prompt, a budget that leaves no room, or too few rows.
        """
        seen: dict[str, Any] = {}
        task = self.resolved(tokenizer)

        def look(example: Example) -> Hashable:
            seen[example.key] = task._encoded(tokenizer, [example])[0]
            return tuple(seen[example.key].input_ids)

        examples = task.split(seed, train, look)
        order = [(name, position, e) for name in SPLITS for position, e in enumerate(examples[name])]
        encoded = [seen[e.key] for _, _, e in order]
        labels = list(task.verbalizers)
        ids = task.verbalizer_ids(tokenizer, [found.prompt for found in encoded[:4]])
        columns = {
            "split": [name for name, _, _ in order],
            "position": [position for _, position, _ in order],
            "source_row": [e.source_row for _, _, e in order],
            "group": [e.group if self.group else None for _, _, e in order],
            "prompt": [found.prompt for found in encoded],
            "input_ids": [found.input_ids for found in encoded],
            "label": [e.label for _, _, e in order],
            "label_name": [labels[e.label] for _, _, e in order],
            "cut": [found.cut for found in encoded],
        }
        return pa.table(columns, schema=SAMPLE_SCHEMA).replace_schema_metadata({VERBALIZERS: json.dumps(ids)})

    def _encoded(self, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]) -> list[Any]:
        try:
            return Encoder(tokenizer).encode(self.template, [e.texts for e in examples], self.max_tokens)
        except PromptError as error:
            raise TaskError(f"{error} (task {self.name!r})") from None

    def verbalizer_ids(self, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str] = ()) -> list[int]:
        """Return the token id of each label's word as it follows the prompts (default: the first examples' prompts)."""
        if not self.verbalizers:
            return self.resolved(tokenizer).verbalizer_ids(tokenizer, prompts)
        prompts = list(prompts) or [found.prompt for found in self._encoded(tokenizer, self.examples[:4])]
        try:
            return Encoder(tokenizer).verbalizer_ids(self.verbalizers, prompts, f"tasks.{self.name}.verbalizers")
        except PromptError as error:
            raise TaskError(str(error)) from None

    def encode(
        self, tokenizer: PreTrainedTokenizerBase, split: str, n: int | None = None, seed: int = 0
    ) -> dict[str, torch.Tensor]:
        """Return the first ``n`` examples (default: all) of a split as a batch; see ``batch_from_table``."""
        train = max(self.train, n) if split == "train" and n is not None else None
        return batch_from_table(self.sample(tokenizer, seed, train), split, n)


def __getattr__(name: str) -> Any:
    """Give ``targets``, which lives in ``outputs``; scipy is imported when it is asked for."""
    if name == "targets":
        from stopwise.linearized.coding import targets

        return targets
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _too_few(texts: Mapping[str, int], column: str, key: str) -> str:
    """Return the message for a label column that has fewer than two classes."""
    if len(texts) == 1:
        return f"{key}: column {column!r} holds one label only, {next(iter(texts))!r}; at least 2 needed"
    some = ", ".join(map(repr, list(texts)[:3]))
    return (
        f"{key}: column {column!r} holds {len(texts)} labels ({some}, …), fewer than 2 of which have 2 texts: is it the"
        " label column?"
    )


def _normalised(text: str) -> str:
    """Return what two texts share when they are the same to a reader: case, width and white space do not count."""
    return clean(unicodedata.normalize("NFKC", text)).casefold()


__all__ = ["Example", "Task", "TaskError"]
