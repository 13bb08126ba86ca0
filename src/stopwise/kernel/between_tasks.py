"""The kernel between tasks: blocks K[a, b] of their training rows, and of held-out rows against training rows.

One forward pass, and one backward pass per output column, for every example of every task; tasks keep their own
verbalizers and columns. Blocks of a task with itself are left out (the task's own kernel holds them), and of two
transposed blocks one is computed.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from stopwise.artifacts.task_blocks import GROUPINGS, Key, TaskBlocks
from stopwise.kernel.example_tiles import kernel_parts
from stopwise.kernel.formulas import Term
from stopwise.kernel.ntk import prepared
from stopwise.network.parameters import Subset

Examples = Mapping[str, torch.Tensor]


def cross_kernels(
    model: nn.Module,
    train: Mapping[str, Examples],
    new: Mapping[str, Examples],
    *,
    parameters: Subset = "attention",
    outputs: str = "contrast",
    formula: str = "sgd",
    device: str | torch.device = "auto",
    memory_gb: float | None = None,
    layers: Sequence[str] | None = None,
    progress: bool = False,
) -> TaskBlocks:
    """Return K(train a, train b) for tasks a before b and K(new a, train b) for all a != b, by layer and module type.

    ``train`` and ``new``: batches by task, each with its own verbalizers, the same tasks in both. ``layers``: a shard
    (names of ``kernel_layers``). Cost: the passes of all examples once, and 2 P multiply-adds for every pair of rows
    of different tasks (m_a m_b for a < b, and held-out rows times training rows), P parameters. Memory: the blocks
    times the number of modules in ``layers``. Raises ValueError for fewer than two tasks or unequal sets of tasks.
    """
    names = list(train)
    if len(names) < 2 or set(new) != set(names):
        raise ValueError(f"task kernels need two tasks or more in both sets, found {names} and {list(new)}")
    batches = {("train", name): train[name] for name in names} | {("new", name): new[name] for name in names}
    keys: list[Key] = [("train", a, b) for a, b in itertools.combinations(names, 2)]
    keys += [("new", a, b) for a, b in itertools.permutations(names, 2)]
    order = list(batches)
    pairs = [(order.index((block, a)), order.index(("train", b))) for block, a, b in keys]
    tasks = {"/".join(name): batch for name, batch in batches.items()}
    with prepared(model, tasks, None, parameters, outputs, device, None, layers) as bare:
        job = replace(bare, pairs=pairs, signed=formula == "signgd", by="module")
        found, *_ = kernel_parts(replace(job, memory_gb=memory_gb, progress=progress))
        homes = {term.module: _homes(term) for term in bare.terms}
    parts: dict[str, dict[str, dict[Key, np.ndarray]]] = {grouping: {} for grouping in GROUPINGS}
    for key, part in zip(keys, found, strict=True):
        for module in sorted(part.matrices):
            matrix = part.matrices.pop(module)
            for grouping, name in homes[module].items():
                blocks = parts[grouping].setdefault(name, {})
                blocks[key] = blocks[key] + matrix if key in blocks else matrix
    return TaskBlocks(parts)


def _homes(term: Term) -> dict[str, str]:
    """Return the layer that a module counts towards, and its type: its name inside the layer (``self_attn.q_proj``)."""
    inside = term.module.removeprefix(term.layer).removeprefix(".")
    return {"layer": term.layer, "type": inside or term.module}
