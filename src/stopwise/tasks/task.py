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
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from stopwise.assets.wheels import ASSETS, safe_name
from stopwise.linearized.coding import targets
from stopwise.tasks.batch import SPLITS, VERBALIZERS, TaskError, batch_from_table
from stopwise.tasks.builtin import BUILTIN_TASKS
from stopwise.tasks.prompts import Encoder, PromptError, Template, clean
from stopwise.tasks.sources import read_rows
from stopwise.tasks.splits import Rows, SplitError, split_rows

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

SIGNS = ("negative", "positive")
_DEFAULTS = {"max_tokens": 24, "validation": 32, "test": 96, "train": 64}
_KEYS = ("name", "source", "text", "label", "template", "verbalizers", "group", "minimum_abs_score")
_NEEDED = ("source", "text", "label", "template", "verbalizers")

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
    """Where a task's rows lie, how its prompt is worded, and how much of it is used. Made by ``Task.from_config``."""

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
        the built-in of that name or define a task of your own: source, text (a column or a list of columns), label,
        template, verbalizers (label value to word; their order numbers the classes), group, minimum_abs_score (the
        label column is a score: its sign is the label, smaller ones are left out). ``defaults`` is the config's data
        section: max_tokens, validation, test, and train (the largest training size). Raises TaskError naming the key.
        """
        given: dict[str, Any] = {"name": cfg} if isinstance(cfg, str) else dict(cfg or {})
        given["name"] = name if name is not None else given.get("name")
        given["name"] = safe_name(given["name"], "tasks")
        key = f"tasks.{given['name']}"
        _known(given, _KEYS, key)
        merged = {**BUILTIN_TASKS.get(given["name"], {}), **{k: v for k, v in given.items() if v is not None}}
        if given.get("group", "absent") is None:
            merged.pop("group", None)  # `group: null` switches a built-in group off
        missing = [k for k in _NEEDED if k not in merged]
        if missing:
            raise TaskError(
                f"{key}: not a built-in task ({', '.join(BUILTIN_TASKS)}), and {', '.join(missing)} is not given"
            )
        return cls(
            name=merged["name"],
            source=merged["source"],
            text=(text := _columns(merged["text"], f"{key}.text")),
            label=_text(merged["label"], f"{key}.label"),
            template=Template.parse(_text(merged["template"], f"{key}.template"), text, f"{key}.template"),
            verbalizers=_words(merged["verbalizers"], f"{key}.verbalizers"),
            group=None if merged.get("group") is None else _text(merged["group"], f"{key}.group"),
            minimum_abs_score=_score(merged.get("minimum_abs_score"), merged["verbalizers"], key),
            **_sizes(defaults or {}),
            assets=os.fspath(assets),
        )

    @cached_property
    def rows(self) -> list[dict[str, str]]:
        """The rows of the source in its order, the task's columns as text, before any is left out. Reads the source."""
        columns = [*self.text, self.label, *([self.group] if self.group else [])]
        return read_rows(self.source, columns, key=f"tasks.{self.name}.source", assets=self.assets)

    @cached_property
    def _examples(self) -> tuple[list[Example], dict[str, int]]:
        labelled = [(i, label) for i in range(len(self.rows)) if (label := self._label_of(i)) is not None]
        index = {label: number for number, label in enumerate(self.verbalizers)}
        first: dict[str, Example] = {}
        conflicting: set[str] = set()
        for i, label in labelled:
            row = self.rows[i]
            texts = {column: row[column] for column in self.text}
            content = "\x1f".join(_normalised(texts[column]) for column in self.text)
            group = row[self.group] if self.group else content
            example = Example(i, texts, index[label], group, content)
            if first.setdefault(content, example).label != example.label:
                conflicting.add(content)
        kept = [example for example in first.values() if example.key not in conflicting]
        counts = {
            "rows": len(self.rows),
            "labelled": len(labelled),
            "duplicates": len(labelled) - len(first),
            "conflicts": len(conflicting),
            "examples": len(kept),
        }
        self._check_classes(kept)
        return kept, counts

    @property
    def examples(self) -> list[Example]:
        """The distinct labelled examples: one per normalised text, none whose copies disagree about the label."""
        return self._examples[0]

    @property
    def counts(self) -> dict[str, int]:
        """How many rows there are, are labelled, repeat another, contradict a copy, and are left as examples."""
        return self._examples[1]

    def _label_of(self, i: int) -> str | None:
        """Return row i's label, None for a row that a score leaves out; raises TaskError for one with no verbalizer."""
        value = self.rows[i][self.label].strip()
        if self.minimum_abs_score is not None:
            try:
                score = float(value)
            except ValueError:
                score = math.nan
            if not math.isfinite(score):
                raise TaskError(
                    f"tasks.{self.name}.label: row {i + 1}: {value!r} in column {self.label!r} is no number"
                )
            return SIGNS[score > 0] if score and abs(score) >= self.minimum_abs_score else None
        if value not in self.verbalizers:
            raise TaskError(
                f"tasks.{self.name}.verbalizers: row {i + 1} has the label {value!r}, which has no verbalizer; found"
                f" verbalizers for {', '.join(self.verbalizers)} (quote labels such as 'yes', 'true' and '1' in YAML)"
            )
        return value

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
        return {name: [known[i] for i in chosen[name]] for name in SPLITS}

    def sample(self, tokenizer: PreTrainedTokenizerBase, seed: int = 0, train: int | None = None) -> pa.Table:
        """Return the ordered examples of a seed, train then validation then test, as a table of SAMPLE_SCHEMA.

        ``input_ids`` are unpadded, at most ``max_tokens``, and no two are the same: texts that differ only in what is
        cut off are one example. ``group`` is null for a task without groups. The token ids of the verbalizers are in
        the table's metadata (``verbalizers_of``). Raises TaskError naming the key for a verbalizer that is not the
        single token after the prompt, a budget that leaves no room, or too few rows.
        """
        seen: dict[str, Any] = {}

        def look(example: Example) -> Hashable:
            seen[example.key] = self._encoded(tokenizer, [example])[0]
            return tuple(seen[example.key].input_ids)

        examples = self.split(seed, train, look)
        order = [(name, position, e) for name in SPLITS for position, e in enumerate(examples[name])]
        encoded = [seen[e.key] for _, _, e in order]
        labels = list(self.verbalizers)
        ids = self.verbalizer_ids(tokenizer, [found.prompt for found in encoded[:4]])
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


def _normalised(text: str) -> str:
    """Return what two texts share when they are the same to a reader: case, width and white space do not count."""
    return clean(unicodedata.normalize("NFKC", text)).casefold()


def _known(given: Mapping[str, Any], allowed: Sequence[str], key: str) -> None:
    unknown = sorted(str(name) for name in given if name not in allowed)
    if unknown:
        raise TaskError(f"{key}: unknown key {', '.join(unknown)}; allowed: {', '.join(allowed)}")


def _text(value: Any, key: str) -> str:
    if not isinstance(value, str) or not value:
        raise TaskError(f"{key}: {value!r} is not text")
    return value


def _columns(value: Any, key: str) -> tuple[str, ...]:
    columns = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, (list, tuple)) else ()
    if not columns or not all(isinstance(c, str) and c for c in columns) or len(set(columns)) != len(columns):
        raise TaskError(f"{key}: {value!r} is not a column name or a list of distinct ones")
    return columns


def _words(value: Any, key: str) -> dict[str, str]:
    if not isinstance(value, Mapping) or len(value) < 2:
        raise TaskError(f"{key}: {value!r} is not a mapping from at least two labels to words")
    words = {str(label): word for label, word in value.items()}
    for label, word in words.items():
        if not isinstance(word, str) or not word.strip():
            raise TaskError(f"{key}.{label}: {word!r} is not a word")
    repeated = [word for word, times in Counter(words.values()).items() if times > 1]
    if repeated or len(words) != len(value):
        raise TaskError(f"{key}: {repeated or list(value)} stands for two labels; allowed: distinct labels and words")
    return words


def _score(value: Any, verbalizers: Mapping[str, str], key: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise TaskError(f"{key}.minimum_abs_score: {value!r} is not a number >= 0")
    if set(verbalizers) != set(SIGNS):
        raise TaskError(
            f"{key}.verbalizers: a score gives the labels {', '.join(SIGNS)}, found {', '.join(verbalizers)}"
        )
    return float(value)


def _sizes(defaults: Mapping[str, Any]) -> dict[str, int]:
    _known(defaults, tuple(_DEFAULTS), "data")
    sizes = {**_DEFAULTS, **defaults}
    for key, value in sizes.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise TaskError(f"data.{key}: {value!r} is not an integer >= 1")
    return sizes


__all__ = ["Example", "Task", "TaskError", "targets"]
