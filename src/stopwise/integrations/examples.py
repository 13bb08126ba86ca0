"""From the rows of a Trainer's training set to the examples of a kernel: prompts, classes, the answer's place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from stopwise.integrations.losses import answer_places, class_of
from stopwise.network.heads import bare, class_count, is_classifier

Collate = Callable[[list[Any]], Any]


@dataclass(frozen=True, eq=False)
class Examples:
    """The examples that a kernel is read on.

    ``rows`` int64 [k]: their places in the training set; ``inputs``: the collated batch as the model is given it in
    training, labels included; ``batch``: as the kernel takes it, with class numbers for labels (and, for a language
    model, ``verbalizers``, and no token after the prompt); ``labels`` int64 [k]; ``classes``.
    """

    rows: np.ndarray
    inputs: dict[str, Any]
    batch: dict[str, torch.Tensor]
    labels: np.ndarray
    classes: int

    def __len__(self) -> int:
        return len(self.rows)


def read_examples(
    model: Any,
    dataset: Any,
    collate: Collate,
    n_max: int,
    seed: int,
    words: Sequence[int | str] | None = None,
    processing_class: Any = None,
) -> Examples:
    """Return at most ``n_max`` examples of a training set (all of them, in order, or a seeded choice).

    Raises ValueError, in one line that names what to change, for a set without length or labels, for labels that are no
    classes, a head that is no classifier, and words that are more than one token.
    """
    if not hasattr(dataset, "__len__"):
        raise ValueError("train_dataset: it has no length, so what training draws is not known; use a map-style one")
    n = len(dataset)
    if n < 2:
        raise ValueError(f"train_dataset: stopwise needs at least 2 examples, found {n}")
    rows = np.arange(n) if n <= n_max else np.sort(np.random.default_rng(seed).permutation(n)[:n_max])
    inputs = dict(collate([dataset[int(i)] for i in rows]))
    if inputs.get("labels") is None:
        raise ValueError("train_dataset: the collated batch has no 'labels'")
    made = _head_batch if is_classifier(model) else _word_batch
    batch, labels, classes = made(model, inputs, words, processing_class)
    return Examples(rows, inputs, batch, labels, classes)


def _head_batch(
    model: Any, inputs: dict[str, Any], words: Any, processing_class: Any
) -> tuple[dict[str, torch.Tensor], np.ndarray, int]:
    """The batch of a classification head: everything the model is given, one whole number a label."""
    labels, classes = torch.as_tensor(inputs["labels"]).cpu(), class_count(model)
    if words is not None:
        raise ValueError("words: a model with a classification head needs none; leave them out")
    kind = bare(model).config.problem_type or "single_label_classification"
    if kind != "single_label_classification" or labels.ndim != 1 or labels.is_floating_point():
        raise ValueError(
            f"model: the head has problem_type {kind!r} and labels {labels.dtype} "
            f"{tuple(labels.shape)}; stopwise reads single_label_classification, one whole number a label"
        )
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise ValueError(f"labels must lie in 0..{classes - 1} (num_labels), found {labels.min()}..{labels.max()}")
    keys = [key for key in ("input_ids", "attention_mask", "token_type_ids") if inputs.get(key) is not None]
    batch = {key: torch.as_tensor(inputs[key]) for key in keys} | {"labels": labels}
    batch.setdefault("attention_mask", torch.ones_like(batch["input_ids"]))
    return batch, labels.numpy().astype(np.int64), classes


def _word_batch(
    model: Any, inputs: dict[str, Any], words: Any, processing_class: Any
) -> tuple[dict[str, torch.Tensor], np.ndarray, int]:
    """The batch of a language model: prompts cut before their answer, one class a word."""
    ids, given = torch.as_tensor(inputs["input_ids"]).cpu(), torch.as_tensor(inputs["labels"]).cpu()
    mask = torch.as_tensor(inputs.get("attention_mask", torch.ones_like(ids))).cpu()
    at, tokens = answer_places(given)
    known = tokens.unique() if words is None else torch.as_tensor(word_tokens(words, processing_class))
    if len(known) < 2:
        raise ValueError(f"words: need at least 2 different answers, found the tokens {known.tolist()}")
    labels = class_of(tokens, known)
    prompt = mask.bool() & (torch.arange(ids.shape[1]) <= at[:, None])
    batch = {"input_ids": ids, "attention_mask": prompt.long(), "labels": labels, "verbalizers": known}
    return batch, labels.numpy().astype(np.int64), len(known)


def word_tokens(words: Sequence[int | str], processing_class: Any) -> list[int]:
    """Return the token id of each word; ids stay as they are. ValueError for a word that is not one token."""
    found = []
    for word in words:
        if not isinstance(word, str):
            found.append(int(word))
            continue
        if processing_class is None:
            raise ValueError(f"words: {word!r} is text and the Trainer has no processing_class; give token ids")
        ids = processing_class(word, add_special_tokens=False)["input_ids"]
        if len(ids) != 1:
            raise ValueError(f"words: {word!r} is {len(ids)} tokens, it must be one (' {word.strip()}' has a space)")
        found.append(int(ids[0]))
    return found
