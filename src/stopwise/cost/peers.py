"""The floor under every kernel, and its peers: the three usual ways to an empirical NTK with PyTorch.

The floor is what no kernel of this form can avoid: one forward pass and one backward pass per output column, activation
gradients only. The peers: ``torch.func`` (vmap of jacrev), a loop of autograd calls, Jacobian-vector products for
every pair. All multiply only the verbalizer rows, as the kernel does.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from stopwise.kernel.products import TILE, slabs
from stopwise.linearized.coding import coding_matrix
from stopwise.network.batches import pack, verbalizers_of
from stopwise.network.forward import HeadCall, packed_outputs, verbalizer_head
from stopwise.network.parameters import select_parameters


def floor(model: Any, batch: dict, outputs: str = "logits", tokens_per_batch: int = 1024) -> np.ndarray:
    """Run the bare passes over a batch of equal lengths, gradients ending at the embeddings; return f [n, columns]."""
    packed, tokens = pack(batch), verbalizers_of(batch, None)
    leaves: list[torch.Tensor] = []

    def start(module: torch.nn.Module, args: tuple, y: torch.Tensor) -> torch.Tensor:
        leaves.append(y.detach().requires_grad_(True))
        return leaves[-1]

    handle = model.get_input_embeddings().register_forward_hook(start)
    found = []
    try:
        for index in torch.arange(len(packed)).split(max(1, tokens_per_batch // packed.ids.shape[1])):
            with torch.enable_grad():
                f = packed_outputs(model, packed.rows(index), tokens, outputs)
            for column in range(f.shape[1]):
                torch.autograd.grad(f[:, column].sum(), leaves[-1], retain_graph=column + 1 < f.shape[1])
            found.append(f.detach())
            leaves.clear()
    finally:
        handle.remove()
    return torch.cat(found).double().cpu().numpy()


def gram_of_rows(rows: torch.Tensor) -> np.ndarray:
    """Return J J^T in float64 from stored rows [m, P], in the same tiles as the kernel's own."""
    total = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=rows.device)
    for tile in slabs(rows.shape[1], TILE):
        total += rows[:, tile] @ rows[:, tile].T
    return total.cpu().numpy()


def vmap_kernel(model: Any, batch: dict, outputs: str, parameters: Any, chunk: int) -> np.ndarray:
    """Return K by ``torch.func``: vmap over examples of jacrev, ``chunk`` examples at a time, J in memory."""
    function, chosen = _functional(model, batch, outputs, parameters)
    ids = batch["input_ids"].to(model.device)
    columns = len(function(chosen, ids[0]))
    rows = _empty_rows(len(ids) * columns, chosen)
    jacobian = torch.func.vmap(torch.func.jacrev(function), in_dims=(None, 0))
    for index in torch.arange(len(ids)).split(chunk):
        start = 0
        found = jacobian(chosen, ids[index])
        for name in chosen:
            block = found.pop(name).flatten(0, 1).flatten(1)
            rows[index[0] * columns : (index[-1] + 1) * columns, start : start + block.shape[1]] = block
            start += block.shape[1]
    return gram_of_rows(rows)


def _empty_rows(count: int, chosen: dict[str, Any]) -> torch.Tensor:
    """Return memory for the rows of J, where the parameters are and of their type."""
    return next(iter(chosen.values())).new_empty(count, sum(p.numel() for p in chosen.values()))


def loop_kernel(model: Any, batch: dict, outputs: str, parameters: Any) -> np.ndarray:
    """Return K by one autograd call per example and column, J in memory."""
    chosen = select_parameters(model, parameters)
    packed, tokens = pack(batch), verbalizers_of(batch, None)
    rows: torch.Tensor | None = None
    for parameter in chosen.values():
        parameter.requires_grad_(True)
    try:
        for i in range(len(packed)):
            f = packed_outputs(model, packed.rows(torch.tensor([i])), tokens, outputs)[0]
            if rows is None:
                rows = _empty_rows(len(packed) * len(f), chosen).to(f.dtype)
            for column in range(len(f)):
                grads = torch.autograd.grad(f[column], list(chosen.values()), retain_graph=column + 1 < len(f))
                torch.cat([g.flatten() for g in grads], out=rows[i * len(f) + column])
    finally:
        for parameter in chosen.values():
            parameter.requires_grad_(False)
    assert rows is not None
    return gram_of_rows(rows)


def pairwise_entries(
    model: Any, batch: dict, outputs: str, parameters: Any, examples: int = 3
) -> tuple[float, np.ndarray]:
    """Return (seconds an entry, entries of K's first column) by Jacobian-vector products, f_i along the gradient f_0.

    One forward-mode pass gives a column of entries (i, .) with j, so the time is divided by the columns; the gradient
    that each j needs once is left out, in this form's favour.
    """
    function, chosen = _functional(model, batch, outputs, parameters)
    own = model.config._attn_implementation
    model.set_attn_implementation("eager")  # fused attention has no forward mode
    try:
        ids = batch["input_ids"].to(model.device)
        pull = torch.func.vjp(lambda p: function(p, ids[0]), chosen)[1]
        columns = len(function(chosen, ids[0]))
        own_type = next(iter(chosen.values()))
        direction = pull(torch.eye(columns, dtype=own_type.dtype, device=own_type.device)[0])[0]
        values, seconds = [], float("inf")
        for example in ids[:examples]:
            start = time.perf_counter()
            with torch.no_grad():
                pushed = torch.func.jvp(lambda p, x=example: function(p, x), (chosen,), (direction,))[1]
                found = pushed.double().cpu().numpy()  # a device has to be done
            seconds = min(seconds, time.perf_counter() - start)
            values.append(found)
    finally:
        model.set_attn_implementation(own)
    return seconds / columns, np.concatenate(values)


def _functional(model: Any, batch: dict, outputs: str, parameters: Any) -> tuple[Callable, dict[str, torch.Tensor]]:
    """Return f(parameters, ids of one example) [columns] through the verbalizer rows, and the parameters."""
    tokens = verbalizers_of(batch, None)
    chosen = {name: p.detach() for name, p in select_parameters(model, parameters).items()}
    own = next(iter(chosen.values()))
    coding = torch.as_tensor(coding_matrix(len(tokens), outputs), dtype=own.dtype, device=own.device)
    last = torch.tensor([batch["input_ids"].shape[1] - 1], device=own.device)
    tokens = tokens.to(own.device)

    def function(values: dict[str, torch.Tensor], ids: torch.Tensor) -> torch.Tensor:
        with verbalizer_head(model, last, tokens, HeadCall()):
            result = torch.func.functional_call(model, values, (), {"input_ids": ids[None], "use_cache": False})
        return coding @ result.logits[0, 0]

    return function, chosen
