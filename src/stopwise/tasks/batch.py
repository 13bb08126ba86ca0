"""Rows of a sample table as the tensors of a batch: all that kernels and training need of a task (no tokenizer).

A sample table holds the ordered examples of one task and seed (train | validation | test) with their token ids; its
metadata, or the caller, names the verbalizer tokens.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pyarrow as pa

from stopwise.tasks.splits import SPLITS

if TYPE_CHECKING:
    import torch

VERBALIZERS = b"verbalizers"  # metadata of a sample table: the token ids, in class order, as JSON
TOKEN_TYPES = "token_type_ids"  # a column of the tables whose texts are pairs


class TaskError(ValueError):
    """A task that is not defined well, or whose data do not allow what is asked; the message names the config key."""


def verbalizers_of(table: pa.Table) -> list[int] | None:
    """Return the verbalizer ids kept in a sample table's metadata, or None (an artifact keeps them elsewhere)."""
    found = (table.schema.metadata or {}).get(VERBALIZERS)
    return None if found is None else json.loads(found)


def batch_from_table(
    table: pa.Table,
    split: str | Sequence[str],
    n: int | None = None,
    verbalizers: Sequence[int] | None = None,
    pad_id: int = 0,
) -> dict[str, torch.Tensor]:
    """Return the first ``n`` rows of a split (or of several, one after another) as a batch, padded on the right.

    input_ids and attention_mask are long [n, T], labels long [n], verbalizers long [C] (from the argument, else from
    the table's metadata), and token_type_ids long [n, T] where the table has them. Raises TaskError for an unknown or
    empty split, more rows than there are, or no verbalizers.
    """
    import torch

    verbalizers = verbalizers_of(table) if verbalizers is None else verbalizers
    if verbalizers is None:
        raise TaskError("this table carries no verbalizer ids: pass verbalizers=")
    wanted = [split] if isinstance(split, str) else list(split)
    if not wanted or not set(wanted) <= set(SPLITS):
        raise TaskError(f"split: {split!r} is not one of {', '.join(SPLITS)}")
    chosen = [row for row in table.to_pylist() if row["split"] in wanted]
    rows = sorted(chosen, key=lambda row: (wanted.index(row["split"]), row["position"]))
    if not rows or (n is not None and not 1 <= n <= len(rows)):
        raise TaskError(f"split {split!r} has {len(rows)} rows, asked for {'all' if n is None else n}")
    rows = rows[:n]
    ids = [torch.tensor(row["input_ids"], dtype=torch.long) for row in rows]
    padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=pad_id)
    lengths = torch.tensor([len(found) for found in ids])
    batch = {
        "input_ids": padded,
        "attention_mask": (torch.arange(padded.shape[1]) < lengths[:, None]).long(),
        "labels": torch.tensor([row["label"] for row in rows], dtype=torch.long),
        "verbalizers": torch.tensor(list(verbalizers), dtype=torch.long),
    }
    if TOKEN_TYPES in table.column_names:
        types = [torch.tensor(row[TOKEN_TYPES], dtype=torch.long) for row in rows]
        batch[TOKEN_TYPES] = torch.nn.utils.rnn.pad_sequence(types, batch_first=True)
    return batch
