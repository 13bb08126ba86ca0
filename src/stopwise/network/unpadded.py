"""Passes without padding: all prompts of a batch as one row of tokens, told apart only where attention mixes them.

Every layer of a transformer but attention treats tokens alone, so a batch of prompts of different lengths can run as
one row of exactly their tokens, [1, N]. A token of a causal model depends on what comes before it alone, so that
prompts which begin alike share those tokens: a template's first words are computed once for all of them. Inside
attention the queries, keys and values are laid out as [n, T] for the model's own attention function, and its output is
put back into the row. The values differ from those of a padded batch by rounding only.

It asks of a model that its attention goes through transformers' table of attention functions, which lets another be
named for the time of a call, and that nothing else mixes tokens; ``runs_unpadded`` tries it out.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from stopwise.network.architecture import is_causal
from stopwise.network.batches import Packed
from stopwise.network.forward import HeadCall, columns_of, packed_outputs, verbalizer_head
from stopwise.network.heads import bare, check_fits, is_classifier

IMPLEMENTATION = "stopwise_unpadded"  # the name under which transformers finds ``_attention``
INNER = "sdpa"  # the attention function that runs inside
LAYER_TYPES = {"full_attention", "sliding_attention"}  # kinds of layers that mix tokens by attention alone
TOLERANCE = 1e3  # in units of the dtype's epsilon and of the largest logit; a leak between prompts is far above it


@dataclass(frozen=True)
class Layout:
    """Where the N tokens of a row stand in a grid of n prompts, T long.

    ``nodes`` long [n, T]: the token of each cell; a cell behind a prompt's end holds token 0, which nothing reads.
    ``slots`` long [N], row-major: the first cell of each token.
    """

    nodes: torch.Tensor
    slots: torch.Tensor

    @classmethod
    def of(cls, packed: Packed) -> Layout:
        """Return the layout of prompts, those that begin alike sharing their tokens; on the CPU."""
        known: dict[tuple[int, int], int] = {}  # (token before, id) -> token
        nodes = torch.zeros_like(packed.ids)
        slots: list[int] = []
        for i, (ids, length) in enumerate(zip(packed.ids.tolist(), packed.lengths.tolist(), strict=True)):
            row, before = [], -1
            for at in range(length):
                before = known.setdefault((before, ids[at]), len(slots))
                if before == len(slots):
                    slots.append(i * packed.ids.shape[1] + at)
                row.append(before)
            nodes[i, :length] = torch.tensor(row)
        return cls(nodes, torch.tensor(slots, dtype=torch.long))

    def to(self, device: torch.device) -> Layout:
        """Return the layout on a device."""
        return Layout(self.nodes.to(device), self.slots.to(device))

    @property
    def longest(self) -> int:
        """T, the length of the longest prompt."""
        return self.nodes.shape[1]

    def grid(self, rows: torch.Tensor) -> torch.Tensor:
        """Return states [1, heads, N, d] of a row as [n, heads, T, d]."""
        tokens, cells = rows[0].transpose(0, 1), self.nodes.reshape(-1)
        # The gradient of a shared token is a sum: of these two, only that of index_select has a fixed order on the CPU
        # and only that of indexing on CUDA.
        grid = tokens.index_select(0, cells) if tokens.device.type == "cpu" else tokens[cells]
        return grid.view(*self.nodes.shape, *tokens.shape[1:]).transpose(1, 2)

    def row(self, grid: torch.Tensor) -> torch.Tensor:
        """Return attention's output [n, T, heads, d] as a row [1, N, heads, d]."""
        return grid.reshape(-1, *grid.shape[2:]).index_select(0, self.slots)[None]


_LAYOUT: ContextVar[Layout] = ContextVar("layout of the row that is running")


def _attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    sliding_window: int | None = None,
    **named: Any,
) -> tuple[torch.Tensor, None]:
    """Attend within each prompt of the row that is running; the interface is transformers'."""
    layout = _LAYOUT.get()
    mask = None
    if sliding_window is not None and sliding_window < layout.longest:
        at = torch.arange(layout.longest, device=query.device)
        behind = at[:, None] - at
        mask = ((behind >= 0) & (behind < sliding_window))[None, None]
    inner = ALL_ATTENTION_FUNCTIONS[INNER]
    grid = inner(module, layout.grid(query), layout.grid(key), layout.grid(value), mask, **named)[0]
    return layout.row(grid), None


ALL_ATTENTION_FUNCTIONS.register(IMPLEMENTATION, _attention)


def unpadded_outputs(model: nn.Module, packed: Packed, verbalizers: torch.Tensor, outputs: str) -> torch.Tensor:
    """Return f [n, columns] as ``forward.packed_outputs`` does, computed without padding."""
    device = next(model.parameters()).device
    check_fits(model, packed.ids)
    layout, within = Layout.of(packed), torch.arange(packed.ids.shape[1]).expand_as(packed.ids)
    ids, position_ids = (grid.reshape(-1)[layout.slots][None].to(device) for grid in (packed.ids, within))
    at = layout.nodes.gather(1, packed.positions[:, None]).T.to(device)
    call = HeadCall()
    network = bare(model)
    with (
        _attending(network, layout.to(device)),
        verbalizer_head(network, at, verbalizers.to(device), call, outputs),
    ):
        result = network(input_ids=ids, position_ids=position_ids, use_cache=False)
    return columns_of(model, result.logits[0], call, outputs, verbalizers)


@contextmanager
def _attending(model: Any, layout: Layout) -> Iterator[None]:
    before, token = model.config._attn_implementation, _LAYOUT.set(layout)
    model.config._attn_implementation = IMPLEMENTATION
    try:
        yield
    finally:
        model.config._attn_implementation = before
        _LAYOUT.reset(token)


def runs_unpadded(model: Any, packed: Packed, verbalizers: torch.Tensor) -> bool:
    """Tell whether a model can run without padding, and would gain by it.

    The architecture must say that it can, and two of the prompts must have the same logits either way. No gain where
    all prompts have one length and begin differently.
    """
    if len(packed) < 2 or packed.types is not None or not _declares(bare(model)):
        return False
    if len(Layout.of(packed).slots) == packed.ids.numel():
        return False
    order = torch.argsort(packed.lengths, stable=True)
    # The longer one first: what it leaks would reach the shorter one.
    pair = packed.rows(order[[-1, 0]])
    with torch.no_grad():
        wanted = packed_outputs(model, pair, verbalizers, "logits").double()
        found = unpadded_outputs(model, pair, verbalizers, "logits").double()
    epsilon = torch.finfo(next(model.parameters()).dtype).eps
    return bool((found - wanted).abs().max() <= TOLERANCE * epsilon * wanted.abs().max())


def _declares(model: Any) -> bool:
    accepted = inspect.signature(model.forward).parameters
    kinds = set(getattr(model.config, "layer_types", None) or ())
    return (
        not is_classifier(model)
        and is_causal(model)
        and bool(getattr(model, "_supports_attention_backend", False))
        and getattr(model.config, "_attn_implementation", None) == INNER
        and {"position_ids", "use_cache"} <= set(accepted)
        and kinds <= LAYER_TYPES
    )
