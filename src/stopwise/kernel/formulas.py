"""How the gradient of one parameter is built from what its modules saw: the inputs a and the output gradients g.

Three forms cover the layers of language models; no weight gradient is ever made by autograd:

- ``Outer`` for weights of linear layers and adapters: the gradient of output (i, c) is sum_t g[i,c,t] a[i,t]^T;
- ``Dense`` for biases and norm weights: one row per output, summed over tokens already;
- ``Sparse`` for rows of tables (tokens, positions, the verbalizer rows of the head): a tied embedding and head share
  one list of (row, vector) entries, without which the products between the two uses would be lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from stopwise.network.architecture import block_prefix, first_names, is_linear
from stopwise.network.heads import output_embeddings


@dataclass
class Outer:
    """Factors of per-example weight gradients: a [n, T, d_in], g [n, columns, T, d_out]."""

    a: torch.Tensor
    g: torch.Tensor


@dataclass
class Dense:
    """Whole gradients [n, columns, p]; ``size`` bounds their rounding: the sum of the absolute terms, same shape."""

    rows: torch.Tensor
    size: torch.Tensor | None = None


@dataclass
class Sparse:
    """Gradients of table rows: ids [n, S] and their vectors [n, columns, S, d]; an id may come more than once."""

    ids: torch.Tensor
    vectors: torch.Tensor


Features = Outer | Dense | Sparse


@dataclass
class Call:
    """One call of a module: its input (ids for a table), its output, and the output's gradients, one per column."""

    x: torch.Tensor
    y: torch.Tensor
    ids: torch.Tensor | None = None
    scale: Any = 1.0
    g: torch.Tensor | None = None  # [len(y), columns, *y.shape[1:]]; None where no output depends on the call


@dataclass(frozen=True)
class Use:
    """One place where a parameter acts: the module, its attribute, and the formula's name."""

    module: Any
    attribute: str
    formula: str


@dataclass
class Term:
    """One selected parameter, the part of the kernel it belongs to, and where it acts."""

    name: str
    parameter: nn.Parameter
    layer: str
    module: str
    uses: list[Use] = field(default_factory=list)

    @property
    def sparse(self) -> bool:
        """Whether the parameter is a table of rows."""
        return any(use.formula in ("table", "head_weight", "head_bias") for use in self.uses)


def plan_terms(model: nn.Module, parameters: dict[str, nn.Parameter]) -> list[Term]:
    """Return one term per parameter, in name order, with every use that has a formula."""
    chosen = {id(parameter) for parameter in parameters.values()}
    uses: dict[int, list[Use]] = {}
    head = output_embeddings(model)
    for module in model.modules():
        for attribute, parameter in module.named_parameters(recurse=False):
            formula = _formula(module, attribute, head) if id(parameter) in chosen else None
            if formula:
                uses.setdefault(id(parameter), []).append(Use(module, attribute, formula))
    blocks = block_prefix(model)
    named, terms = first_names(model), []
    for name, parameter in sorted(parameters.items()):
        owner = named[id(parameter)].rpartition(".")[0]
        terms.append(Term(name, parameter, _layer(owner, blocks), owner, uses.get(id(parameter), [])))
    return terms


def _layer(owner: str, blocks: str) -> str:
    """Return the layer a module counts towards: its transformer block, or itself outside of blocks."""
    if blocks and owner.startswith(blocks + "."):
        return f"{blocks}.{owner[len(blocks) + 1 :].split('.', maxsplit=1)[0]}"
    return owner


def _formula(module: nn.Module, attribute: str, head: nn.Module | None) -> str | None:
    """Return the formula of a module's parameter, or None. Whether it holds is probed before it is used."""
    if module is head:
        return {"weight": "head_weight", "bias": "head_bias"}.get(attribute)
    if is_linear(module):
        return {"weight": "weight", "bias": "bias"}.get(attribute)
    if isinstance(module, nn.Embedding):
        return "table"
    own = dict(module.named_parameters(recurse=False))
    if "weight" in own and set(own) <= {"weight", "bias"} and all(p.ndim == 1 for p in own.values()):
        return "bias" if attribute == "bias" else "gain"
    return None


def record_input(module: Any, args: tuple, kwargs: dict, y: torch.Tensor) -> Call:
    """Return what a formula needs of a module's call: the input, or the row numbers and scale of a table."""
    if not isinstance(module, nn.Embedding):
        x = args[0] if args else next(iter(kwargs.values()))
        return Call(x.detach(), y)
    offset = getattr(module, "offset", 0)  # OPT's positions start at row 2
    ids = kwargs["position_ids"] if kwargs.get("position_ids") is not None else args[0]
    return Call(y.detach(), y, ids=ids + offset, scale=getattr(module, "embed_scale", 1.0))


def features(term: Term, calls: dict[int, list[Call]], n: int) -> Features | None:
    """Return a term's features over the calls of one batch of n examples, None where nothing depends on it.

    Raises ValueError where a module's output is not example-major with n examples.
    """
    parts = [
        _BUILD[use.formula](use, call, n)
        for use in term.uses
        for call in calls.get(id(use.module), [])
        if call.g is not None
    ]
    return join(parts)


def join(parts: Sequence[Features]) -> Features | None:
    """Return several uses of one parameter by the same examples as one: tokens appended, dense rows added."""
    if len(parts) < 2:
        return parts[0] if parts else None
    if all(isinstance(p, Outer) for p in parts):
        return Outer(torch.cat([p.a for p in parts], 1), torch.cat([p.g for p in parts], 2))  # type: ignore[union-attr]
    if all(isinstance(p, Sparse) for p in parts):
        ids = torch.cat([p.ids for p in parts], 1)  # type: ignore[union-attr]
        return Sparse(ids, torch.cat([p.vectors for p in parts], 2))  # type: ignore[union-attr]
    if all(isinstance(p, Dense) for p in parts):
        sizes = [p.size for p in parts if isinstance(p, Dense) and p.size is not None]
        rows = torch.stack([p.rows for p in parts]).sum(0)  # type: ignore[union-attr]
        return Dense(rows, torch.stack(sizes).sum(0) if len(sizes) == len(parts) else None)
    raise ValueError("one parameter is used in ways that have no common form")


def by_example(tensor: torch.Tensor, n: int) -> torch.Tensor:
    """Return [n, tokens, d] of a module's input or output; ValueError where examples cannot be told apart."""
    tokens = tensor.numel() // (n * tensor.shape[-1])
    if tensor.ndim < 2 or tensor.shape[0] not in (n, n * tokens):
        raise ValueError(f"shape {tuple(tensor.shape)} does not start with {n} examples")
    return tensor.reshape(n, tokens, tensor.shape[-1])


def gradients(call: Call, n: int) -> torch.Tensor:
    """Return g [n, columns, tokens, d] of a call."""
    assert call.g is not None
    by_example(call.y, n)
    columns, width = call.g.shape[1], call.g.shape[-1]
    if len(call.y) == n:
        return call.g.reshape(n, columns, -1, width)
    return call.g.reshape(n, -1, columns, width).transpose(1, 2)  # a layer that sees all tokens as one list


def _weight(use: Use, call: Call, n: int) -> Features:
    return Outer(by_example(call.x, n), gradients(call, n))


def _bias(use: Use, call: Call, n: int) -> Features:
    g = gradients(call, n)
    return Dense(g.sum(2), g.abs().sum(2))


def _gain(use: Use, call: Call, n: int) -> Features:
    """Norms: g times the normalised input, which the module itself gives as output(weight 1) - output(weight 0)."""
    with torch.no_grad():
        one, zero = (
            torch.func.functional_call(use.module, {use.attribute: fill(use.module.weight)}, (call.x,))
            for fill in (torch.ones_like, torch.zeros_like)
        )
    terms = gradients(call, n) * by_example(one - zero, n)[:, None]
    return Dense(terms.sum(2), terms.abs().sum(2))


def _table(use: Use, call: Call, n: int) -> Features:
    assert call.ids is not None
    vectors = gradients(call, n) * call.scale
    ids = call.ids
    if len(ids) == 1 < n == len(call.y):  # looked up once for all examples, each of which got a copy
        ids = ids.expand(n, -1)
    if ids.numel() != n * vectors.shape[2]:
        raise ValueError(f"row numbers of shape {tuple(ids.shape)} are shared between {n} examples")
    padding = use.module.padding_idx
    if padding is not None:  # torch gives the padding row no gradient
        vectors = vectors * (ids.reshape(n, 1, -1, 1) != padding)
    return Sparse(ids.reshape(n, -1), vectors)


def _head_weight(use: Use, call: Call, n: int) -> Features:
    if call.ids is None:  # all rows of the vocabulary act
        return _weight(use, call, n)
    vectors = gradients(call, n)[:, :, 0, :, None] * call.x.reshape(n, 1, 1, -1)
    return Sparse(call.ids.expand(n, -1), vectors)


def _head_bias(use: Use, call: Call, n: int) -> Features:
    if call.ids is None:
        return _bias(use, call, n)
    return Sparse(call.ids.expand(n, -1), gradients(call, n)[:, :, 0, :, None])


_BUILD: dict[str, Any] = {
    "weight": _weight,
    "bias": _bias,
    "gain": _gain,
    "table": _table,
    "head_weight": _head_weight,
    "head_bias": _head_bias,
}


def weighted_gradient(term: Term, found: Features | None, weights: torch.Tensor) -> torch.Tensor:
    """Return sum_ic weights[i, c] * gradient of output (i, c) in the parameter's shape, to compare with autograd."""
    out = torch.zeros_like(term.parameter)
    if isinstance(found, Outer):
        # Some models compute parts of a layer in another type than their own.
        whole = torch.einsum("nctd,nte,nc->de", found.g.to(weights), found.a.to(weights), weights)
        return whole.T if stored_transposed(term) else whole
    if isinstance(found, Dense):
        return torch.einsum("ncp,nc->p", found.rows.to(weights), weights).reshape(out.shape)
    if isinstance(found, Sparse):
        whole = torch.einsum("ncsd,nc->nsd", found.vectors.to(weights), weights)
        flat = out.reshape(out.shape[0], -1)
        flat.index_add_(0, found.ids.reshape(-1), whole.reshape(-1, whole.shape[-1]))
    return out


def stored_transposed(term: Term) -> bool:
    """Whether a weight is stored [d_in, d_out], as Conv1D does."""
    return any(use.formula == "weight" and not isinstance(use.module, nn.Linear) for use in term.uses)
