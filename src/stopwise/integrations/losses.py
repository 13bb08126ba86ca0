"""Losses for ``Trainer(compute_loss_func=...)``: cross-entropy over the words that answer a prompt.

A prompt is answered by one token. Its example holds the prompt and the answer in ``input_ids``, and in ``labels`` the
answer's token at the answer's place and -100 everywhere else, as supervised fine-tuning has it. The logits that predict
a token stand one place before it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

IGNORED = -100


def answer_loss(words: Sequence[int] | None = None) -> Callable[..., torch.Tensor]:
    """Return a ``compute_loss_func``: the mean of -log p(answer) over the examples of a step.

    ``words``: the token ids of the C possible answers, at least two; p is then the softmax over these C logits alone,
    the loss that the kernel's ``contrast`` outputs have. None: the softmax over the whole vocabulary, which is the loss
    of supervised fine-tuning on the answer's token (``outputs: vocabulary``).
    The function takes (outputs, labels, num_items_in_batch): ``outputs.logits`` [n, T, V]; ``labels`` long [n, T] with
    -100 where there is no answer (only an example's first answer token counts). ``num_items_in_batch`` is the Trainer's
    count for the whole step, so that accumulated steps equal undivided ones. Raises ValueError for words or labels
    that do not fit.
    """
    allowed = None if words is None else torch.as_tensor(list(words), dtype=torch.long)
    if allowed is not None and (len(allowed) < 2 or len(allowed.unique()) != len(allowed)):
        raise ValueError(f"words: need at least 2 different token ids, found {allowed.tolist()}")

    def compute(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        logits = outputs["logits"] if isinstance(outputs, dict) else outputs.logits
        if labels is None:
            raise ValueError("answer_loss: the batch has no 'labels'; they hold the token that answers each prompt")
        at, token = answer_places(labels)
        rows = torch.arange(len(logits), device=logits.device)
        chosen = logits[rows, at.to(logits.device)].float()
        token = token.to(logits.device)
        if allowed is not None:
            own = allowed.to(logits.device)
            chosen, token = chosen[:, own], class_of(token, own)
        total = torch.nn.functional.cross_entropy(chosen, token, reduction="sum")
        return total / _items(labels, num_items_in_batch, len(logits))

    return compute


def answer_places(labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return where the logits that predict each answer stand, and the answer's token, long [n] both.

    ``labels`` [n, T], -100 but for the answer (the first token of one that has several). ValueError for another shape,
    for an example without an answer, and for one with the answer at its very start.
    """
    if labels.ndim != 2:
        raise ValueError(f"labels: shape {tuple(labels.shape)}, must be [n, tokens], {IGNORED} but for the answer")
    inside = labels != IGNORED
    if not bool(inside.any(dim=1).all()):
        row = int((~inside.any(dim=1)).nonzero()[0, 0])
        raise ValueError(f"labels: example {row} of the batch has no answer, all of its labels are {IGNORED}")
    first = inside.to(torch.int64).argmax(dim=1)
    if int(first.min()) == 0:
        row = int(first.argmin())
        raise ValueError(f"labels: example {row} of the batch has its answer first; the prompt must stand before it")
    return first - 1, labels.gather(1, first[:, None])[:, 0]


def class_of(tokens: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
    """Return the index in ``words`` of each token, long [n]; ValueError naming one that is no answer."""
    equal = tokens[:, None] == words
    if not bool(equal.any(dim=1).all()):
        found = int(tokens[int((~equal.any(dim=1)).nonzero()[0, 0])])
        raise ValueError(f"labels: the token {found} is none of the words {words.tolist()}")
    return equal.to(torch.int64).argmax(dim=1)


def answer_example(prompt: Sequence[int], answer: int) -> dict[str, list[int]]:
    """Return one row of a training set: the prompt's tokens and the answer's, labelled at the answer alone."""
    return {
        "input_ids": [*prompt, answer],
        "attention_mask": [1] * (len(prompt) + 1),
        "labels": [IGNORED] * len(prompt) + [answer],
    }


def _items(labels: torch.Tensor, given: Any, rows: int) -> Any:
    """Return the number of examples of the whole step: what the Trainer counted, when it counted examples."""
    if given is None:
        return rows
    # The Trainer counts label tokens; where an answer has more than one, that is not the number of examples.
    tokens = int((labels != IGNORED).sum())
    return given * (rows / tokens) if tokens != rows else given
