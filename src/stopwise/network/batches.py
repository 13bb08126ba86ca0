"""Batches of prompts: right-padded repacking, output positions, and grouping by length.

A batch is a mapping with ``input_ids`` and ``attention_mask`` (long [n, T], padded on either side), optionally
``token_type_ids`` (long [n, T]: which text of a pair a token belongs to), ``positions`` (long [n]: the column of the
output token; default the last unmasked one), ``verbalizers`` [C].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from stopwise.network.heads import bare, class_count, is_classifier, refuse_two_parts

MAX_PADDING = 0.05  # share of computed tokens that may be padding
# What starting one more batch of a training step costs, in tokens: SmolLM2-135M, attention weights, takes 0.18 s and
# 3.0 ms a token on two cores, 0.16 s and 5.6 ms on one.
START_TOKENS = 64.0


@dataclass(frozen=True)
class Packed:
    """Prompts padded on the right: ids [n, T], lengths [n], positions [n] of the output token, all long on the CPU.

    ``types``: the token types [n, T] of pairs of texts, or None.
    """

    ids: torch.Tensor
    lengths: torch.Tensor
    positions: torch.Tensor
    types: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, index: torch.Tensor) -> Packed:
        """Return these examples, cut to the longest of them."""
        lengths = self.lengths[index]
        longest = int(lengths.max()) if len(index) else 0
        types = None if self.types is None else self.types[index, :longest]
        return Packed(self.ids[index, :longest], lengths, self.positions[index], types)

    def cut(self, longest: int) -> Packed:
        """Return the prompts cut to their first tokens, read where they were or at the last that is left."""
        lengths = self.lengths.clamp(max=longest)
        types = None if self.types is None else self.types[:, :longest]
        return Packed(self.ids[:, :longest], lengths, torch.minimum(self.positions, lengths - 1), types)

    @property
    def mask(self) -> torch.Tensor:
        """The attention mask, long [n, T]."""
        return (torch.arange(self.ids.shape[1]) < self.lengths[:, None]).long()


def pack(batch: Mapping[str, torch.Tensor]) -> Packed:
    """Return a batch with its padding moved to the right.

    Left padding makes fully masked attention rows, which are NaN under some attention kernels; a causal model gives
    the same outputs for either side. Raises ValueError for shapes that disagree, an empty prompt, or an output
    position that is masked.
    """
    ids, mask = torch.as_tensor(batch["input_ids"]).cpu(), torch.as_tensor(batch["attention_mask"]).cpu().bool()
    if ids.ndim != 2 or ids.shape != mask.shape:
        raise ValueError(
            f"batch: input_ids {tuple(ids.shape)} and attention_mask {tuple(mask.shape)} must be equal [n, T]"
        )
    lengths = mask.sum(1)
    if len(ids) and int(lengths.min()) == 0:
        raise ValueError(f"batch: example {int(lengths.argmin())} has no unmasked token")
    order = torch.argsort(~mask, dim=1, stable=True)
    longest = int(lengths.max()) if len(ids) else 0
    packed = torch.where(mask.gather(1, order), ids.gather(1, order), 0)[:, :longest]
    types = _types(batch, mask, order, longest)
    given = batch.get("positions")
    if given is None:
        return Packed(packed, lengths, lengths - 1, types)
    given = torch.as_tensor(given).cpu()
    given = torch.where(given < 0, given + ids.shape[1], given)
    if not bool(mask.gather(1, given[:, None]).all()):
        raise ValueError("batch: positions point at a masked token")
    return Packed(packed, lengths, mask.long().cumsum(1).gather(1, given[:, None])[:, 0] - 1, types)


def _types(
    batch: Mapping[str, torch.Tensor], mask: torch.Tensor, order: torch.Tensor, longest: int
) -> torch.Tensor | None:
    """Return the token types in the order of the packed tokens, None where the batch has none."""
    given = batch.get("token_type_ids")
    if given is None:
        return None
    given = torch.as_tensor(given).cpu()
    if given.shape != mask.shape:
        raise ValueError(f"batch: token_type_ids {tuple(given.shape)} must be {tuple(mask.shape)} like input_ids")
    return torch.where(mask.gather(1, order), given.gather(1, order), 0)[:, :longest]


def verbalizers_of(
    batch: Mapping[str, torch.Tensor], verbalizers: Sequence[int] | torch.Tensor | None, model: Any = None
) -> torch.Tensor:
    """Return the C verbalizer token ids, long [C]: the keyword, or the batch's own; ValueError without any.

    A ``model`` with a classification head needs none: its classes are the rows of its head, 0..C-1.
    """
    found = batch.get("verbalizers") if verbalizers is None else verbalizers
    if found is None and model is not None:
        refuse_two_parts(bare(model))
        if is_classifier(model):
            return torch.arange(class_count(model))
    if found is None:
        raise ValueError(
            "verbalizers: give the token ids of the classes, in the batch or as the keyword, or load the model with a"
            " head of classes (load_classifier)"
        )
    found = torch.as_tensor(found, dtype=torch.long).cpu()
    if found.ndim != 1 or len(found) < 2 or len(found.unique()) != len(found):
        raise ValueError(f"verbalizers: need at least 2 different token ids, found {found.tolist()}")
    return found


def length_buckets(
    batch: Mapping[str, torch.Tensor] | Packed,
    tokens_per_batch: int = 1024,
    max_padding: float = MAX_PADDING,
    start_tokens: float | None = None,
) -> list[torch.Tensor]:
    """Return example indices grouped by length, each group at most ``tokens_per_batch`` padded tokens (or one example).

    Long [n_b] each, longest first, together a permutation of the examples; at most ``max_padding`` (5 %) of the
    computed tokens are padding. With ``start_tokens``, the cost of one more group in tokens, the cheapest groups are
    taken, whatever their padding. A dynamic programme over the sorted lengths, O(n * group size).
    """
    lengths = batch.lengths if isinstance(batch, Packed) else torch.as_tensor(batch["attention_mask"]).cpu().sum(1)
    order = torch.argsort(lengths, descending=True, stable=True)
    ordered = lengths[order].tolist()
    if start_tokens is not None:
        return [order[start:stop] for start, stop in _cuts(ordered, tokens_per_batch, start_tokens)]
    # What starting one more batch costs, in tokens; halved until the padding is small enough.
    overhead = 256.0 if max_padding < 1 else 1e12
    while True:
        cuts = _cuts(ordered, tokens_per_batch, overhead)
        padded = sum((stop - start) * ordered[start] for start, stop in cuts)
        if padded * (1 - max_padding) <= sum(ordered) or overhead < 0.5:
            return [order[start:stop] for start, stop in cuts]
        overhead /= 2


def even_groups(packed: Packed, tokens_per_batch: int) -> list[torch.Tensor]:
    """Return example indices in groups of about equally many tokens, padding not counted, long [n_b] each.

    At most ``tokens_per_batch`` tokens (or one example) each, in as few groups as have room, or one more where whole
    prompts do not fit; longest prompts first, together a permutation of the examples.
    """
    order, total = torch.argsort(packed.lengths, descending=True, stable=True), int(packed.lengths.sum())
    share, held = total / max(1, -(-total // tokens_per_batch)), 0
    groups: list[list[int]] = []
    for example in order.tolist():
        length = int(packed.lengths[example])
        if not groups or held + length > tokens_per_batch or held >= share:
            groups.append([])
            held = 0
        groups[-1].append(example)
        held += length
    return [torch.tensor(group, dtype=torch.long) for group in groups]


def _cuts(lengths: list[int], limit: int, overhead: float) -> list[tuple[int, int]]:
    """Return the cheapest split of descending lengths into runs, by padded tokens plus an overhead for each run."""
    best: list[tuple[float, int]] = [(0.0, 0)]
    for stop in range(1, len(lengths) + 1):
        options = []
        for start in range(stop - 1, -1, -1):
            size = (stop - start) * lengths[start]
            if size > limit and stop - start > 1:
                break
            options.append((best[start][0] + size + overhead, start))
        best.append(min(options))
    cuts, stop = [], len(lengths)
    while stop:
        cuts.append((best[stop][1], stop))
        stop = best[stop][1]
    return cuts[::-1]
