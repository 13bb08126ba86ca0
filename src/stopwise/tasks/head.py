"""A task for a classification head: texts as the tokenizer joins them, and labels of any words.

A head has a row for each class, so that no word of the vocabulary has to stand for a label and no template has to ask
for one; a text is cut by the tokenizer, at its end. ``HeadTask.sample`` gives the same table as ``Task.sample``; the
classes are numbered 0 .. C - 1.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from stopwise.assets.wheels import ASSETS
from stopwise.tasks.batch import TOKEN_TYPES, TaskError
from stopwise.tasks.builtin import BUILTIN_TASKS
from stopwise.tasks.definition import SIGNS
from stopwise.tasks.prompts import Encoded, PromptError, Template, clean
from stopwise.tasks.task import Example, Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# What a task keeps of the source that it has read when its labels are known.
_READ = ("read",)


@dataclass(frozen=True)
class HeadTask(Task):
    """A task whose labels are the rows of a head. Made by ``head_task``.

    ``joined``: the text columns go to the tokenizer as they are, two of them as a pair where it joins pairs (with a
    separator); otherwise the template says how they become one text. ``verbalizers`` name the labels, in class order.
    """

    joined: bool = True

    @cached_property
    def _types(self) -> dict[tuple[int, ...], list[int]]:
        """The token types of the pairs encoded so far, by their token ids."""
        return {}

    def _encoded(self, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]) -> list[Any]:
        template = None if self.joined else self.template
        encoder = HeadEncoder(tokenizer)
        try:
            found = [encoder.encode(self.text, e.texts, self.max_tokens, template) for e in examples]
        except PromptError as error:
            raise TaskError(f"{error} (task {self.name!r})") from None
        for one, types in found:
            if types is not None:
                self._types[tuple(one.input_ids)] = types
        return [one for one, _ in found]

    def verbalizer_ids(self, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str] = ()) -> list[int]:
        """Return the rows of the head, 0 .. C - 1, which stand where a language model has the ids of words."""
        return list(range(len(self.verbalizers)))

    def sample(self, tokenizer: PreTrainedTokenizerBase, seed: int = 0, train: int | None = None) -> pa.Table:
        """Return the table of ``Task.sample``, with ``token_type_ids`` as one more column where texts are pairs."""
        table = super().sample(tokenizer, seed, train)
        if not self._types:
            return table
        types = [self._types[tuple(ids)] for ids in table["input_ids"].to_pylist()]
        return table.append_column(TOKEN_TYPES, pa.array(types, pa.list_(pa.int32())))


def head_task(
    cfg: Mapping[str, Any] | None,
    defaults: Mapping[str, Any],
    *,
    name: str,
    assets: str | os.PathLike = ASSETS,
) -> HeadTask:
    """Return the task that a config describes for a head, as ``Task.from_config`` does for words.

    A template counts only where the config gives one: a built-in's asks for a word. Labels are the keys of
    ``verbalizers`` (the config's, else a built-in's), else those that the label column holds, sorted. Raises TaskError
    naming the key, for one label, or more labels than the ``train`` examples of ``defaults``.
    """
    given, built = dict(cfg or {}), BUILTIN_TASKS.get(name, {})
    text = given.get("text") or built.get("text") or ()
    columns = (text,) if isinstance(text, str) else tuple(text)
    template = given.get("template")
    whole = {**given, "template": template or " ".join("{" + str(column) + "}" for column in columns)}
    labels = given.get("verbalizers") or built.get("verbalizers")
    if labels is None and given.get("minimum_abs_score") is not None:
        labels = SIGNS
    words = list(labels) if labels is not None else ["0", "1"]
    whole["verbalizers"] = {label: f"class {label}" for label in words}
    task = HeadTask.from_config(whole, defaults, name=name, assets=assets)
    assert isinstance(task, HeadTask)
    task = replace(task, joined=template is None, verbalizers={str(label): str(label) for label in words})
    if labels is None:
        task = _with_labels(task)
    if len(task.verbalizers) > task.train:
        raise TaskError(
            f"tasks.{name}.label: column {task.label!r} holds {len(task.verbalizers)} different labels, more than the"
            f" {task.train} training examples of the largest of sizes; allowed: larger sizes, or a column of fewer"
            " labels"
        )
    return task


def _with_labels(task: HeadTask) -> HeadTask:
    """Return the task with the labels that its source holds, or raise TaskError for fewer than two."""
    found = sorted({row[task.label].strip() for row in task.rows}, key=_order)
    if len(found) < 2:
        raise TaskError(
            f"tasks.{task.name}.label: column {task.label!r} holds {found or 'no label'} only; a head needs at least 2"
            " labels"
        )
    named = replace(task, verbalizers={label: label for label in found})
    named.__dict__.update({key: task.__dict__[key] for key in _READ if key in task.__dict__})
    return named


def _order(label: str) -> tuple[int, float, str]:
    """Return what labels are sorted by: numbers by their size, before words."""
    try:
        return 0, float(label), label
    except ValueError:
        return 1, 0.0, label


class HeadEncoder:
    """Turns texts into token ids as the model's own tokenizer does, opening and closing tokens included.

    Text that spells a special token is encoded as text. Raises PromptError for a tokenizer that is not fast.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise PromptError("model.source: only fast tokenizers are supported")
        self.tokenizer = tokenizer
        special = tokenizer.num_special_tokens_to_add
        self.joins_pairs = special(pair=True) > special(pair=False)

    def encode(
        self, columns: Sequence[str], texts: Mapping[str, str], max_tokens: int, template: Template | None = None
    ) -> tuple[Encoded, list[int] | None]:
        """Return one row encoded in at most ``max_tokens`` ids, and its token types (None for a text of one kind).

        Cut from the end, of a pair the longer text. Raises PromptError when there is no room for the texts.
        """
        cleaned = {column: clean(texts[column]) for column in columns}
        pair = template is None and len(columns) == 2 and self.joins_pairs
        if template is not None:
            parts = [template.render(cleaned)[0]]
        else:
            parts = list(cleaned.values()) if pair else [" ".join(cleaned.values())]
        room = max_tokens - self.tokenizer.num_special_tokens_to_add(pair=pair)
        if room < len(parts):
            raise PromptError(f"data.max_tokens: {max_tokens} leaves no room for the texts beside special tokens")
        options = {"split_special_tokens": True, "return_attention_mask": False, "return_token_type_ids": pair}
        found = self.tokenizer(*parts, truncation=True, max_length=max_tokens, **options)
        cut = len(self.tokenizer(*parts, **options)["input_ids"]) > max_tokens
        types = found["token_type_ids"] if pair and "token_type_ids" in self.tokenizer.model_input_names else None
        return Encoded("\n".join(parts), list(found["input_ids"]), cut), None if types is None else list(types)
