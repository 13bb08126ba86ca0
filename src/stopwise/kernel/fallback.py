"""The guard of the layer formulas: a probe against autograd, and per-example autograd where a formula does not hold.

The probe compares, for two short prompts, every selected parameter's formula with its true gradient, so that a
parameter that acts in a way no formula knows (a shared table, an unusual layer) never passes silently.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch

from stopwise.kernel.formulas import Dense, Features, Term, features, weighted_gradient
from stopwise.kernel.passes import Batch, Group, Pass
from stopwise.network.forward import HeadCall, packed_outputs

log = logging.getLogger(__name__)

PROBE_TOKENS = 8
TOLERANCE = {torch.float64: 1e-4, torch.float32: 2e-3}  # float32 islands inside float64 models cost 1e-6
LOOSE = 0.1  # bfloat16: two correct gradients differ by 1e-2
SLAB = 1 << 26  # true gradients held at once: 64 Mi entries


@dataclass
class Probe:
    """What the probe found: terms without a valid formula, bytes per token of features and of an autograd graph."""

    broken: list[Term] = field(default_factory=list)
    feature_bytes: float = 0.0
    graph_bytes: float = 0.0


def probe(run: Pass, group: Group, examples: int = 2) -> Probe:
    """Check every formula on two short prompts and measure memory per token; one small pass and its gradients.

    With ``examples=1`` on one prompt: what examples share in a pass is then that example's own.
    """
    batch = _short(group, examples)
    call, graph = HeadCall(), _SavedBytes(run.model)
    with run.recording(run.terms, batch, call) as recorder, graph.counting():
        f = packed_outputs(run.model, batch.packed, group.verbalizers, run.outputs, call)
    weights = torch.linspace(0.5, 1.5, f.numel(), dtype=f.dtype, device=f.device).view(f.shape)
    recorder.differentiate(f, [weights])  # one weighted sum of the columns tells of all of them
    found: dict[str, Features | None] = {}
    for term in run.terms:
        try:
            found[term.name] = features(term, recorder.calls, batch.size)
        except (ValueError, RuntimeError, AttributeError, TypeError) as error:
            log.debug("no formula for %s: %s", term.name, error)
            found[term.name] = None
    broken = _compare(run, batch, found, weights)
    tokens = batch.packed.ids.numel()
    return Probe(broken, _bytes(found.values(), f.shape[1]) / tokens, graph.total / tokens)


def _short(group: Group, examples: int = 2) -> Batch:
    """Return two prompts (one twice if there is no other) or one, cut to a few tokens and read at the last."""
    index = torch.tensor([0, len(group.packed) - 1][:examples])
    packed = group.packed.rows(index).cut(PROBE_TOKENS)
    return Batch(Group(packed, index, group.verbalizers, group.columns, 0, ((0, examples),)), 0, examples)


def _compare(run: Pass, batch: Batch, found: dict[str, Features | None], weights: torch.Tensor) -> list[Term]:
    """Return the terms whose formula disagrees with autograd on a weighted sum of the outputs."""
    errors: dict[str, tuple[float, float]] = {}
    for some in _slabs(run.terms):
        for term, true in zip(some, _true_gradients(run, batch, some, weights), strict=True):
            own = weighted_gradient(term, found[term.name], weights.new_ones(len(weights), 1))
            wrong = own.shape != true.shape
            errors[term.name] = (float("inf") if wrong else float((own - true).norm()), float(true.norm()))
    overall = max((size for _, size in errors.values()), default=0.0)
    tolerance = TOLERANCE.get(weights.dtype, LOOSE)
    # A gradient that is zero but for rounding (a key bias) is judged by the scale of the others.
    return [t for t in run.terms if not errors[t.name][0] <= tolerance * (errors[t.name][1] + 1e-3 * overall)]


def _slabs(terms: Sequence[Term]) -> list[list[Term]]:
    """Group terms so that their gradients fit in a slab."""
    found: list[list[Term]] = []
    room = 0
    for term in terms:
        if not found or term.parameter.numel() > room:
            found.append([])
            room = SLAB
        found[-1].append(term)
        room -= term.parameter.numel()
    return found


def _true_gradients(run: Pass, batch: Batch, terms: Sequence[Term], weights: torch.Tensor) -> list[torch.Tensor]:
    """Return the gradient of the weighted sum of outputs in each parameter, by autograd."""
    chosen = [term.parameter for term in terms]
    for parameter in chosen:
        parameter.requires_grad_(True)
    try:
        with torch.enable_grad():
            f = packed_outputs(run.model, batch.packed, batch.group.verbalizers, run.outputs)
            grads = torch.autograd.grad((f * weights).sum(), chosen, allow_unused=True)
    finally:
        for parameter in chosen:
            parameter.requires_grad_(False)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(chosen, grads, strict=True)]


def fallback_features(run: Pass, batches: Sequence[Batch], terms: Sequence[Term]) -> list[dict[str, Features]]:
    """Return whole gradients of the terms by batch, by autograd for one example and column at a time.

    Cost: a full backward pass per row of J; memory: the rows, n * columns * p entries.
    """
    if not terms:
        return [{} for _ in batches]
    log.warning(
        "%d parameter(s) have no valid formula and take per-example autograd, with the same result: %s",
        len(terms),
        ", ".join(term.name for term in terms[:4]) + (", ..." if len(terms) > 4 else ""),
    )
    return [_fallback_batch(run, batch, terms) for batch in batches]


def _fallback_batch(run: Pass, batch: Batch, terms: Sequence[Term]) -> dict[str, Features]:
    rows: list[list[torch.Tensor]] = [[] for _ in terms]
    for index in range(batch.size):
        one = Batch(batch.group, batch.start + index, batch.start + index + 1)
        for column in range(batch.group.columns):
            weights = torch.zeros(
                1, batch.group.columns, dtype=terms[0].parameter.dtype, device=terms[0].parameter.device
            )
            weights[0, column] = 1
            for kept, grad in zip(rows, _true_gradients(run, one, terms, weights), strict=True):
                kept.append(grad.flatten())
    shape = (batch.size, batch.group.columns, -1)
    return {term.name: Dense(torch.stack(kept).view(shape)) for term, kept in zip(terms, rows, strict=True)}


def _bytes(found: Iterable[Features | None], columns: int) -> float:
    """Return the bytes of the features of so many columns, from those of one.

    Shared inputs (one norm feeding q, k and v) count once.
    """
    storages: dict[int, int] = {}
    for one in found:
        shared = getattr(one, "a", None)
        own = [getattr(one, name, None) for name in ("g", "rows", "vectors")]
        for tensor, times in ((shared, 1), *((tensor, columns) for tensor in own)):
            if tensor is not None:
                storage = tensor.untyped_storage()
                storages[storage.data_ptr()] = storage.nbytes() * times
    return float(sum(storages.values()))


class _SavedBytes:
    """Counts the bytes that autograd keeps for a graph, weights left out."""

    def __init__(self, model: torch.nn.Module):
        self._weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        self._seen: dict[int, int] = {}

    @property
    def total(self) -> float:
        """All bytes counted so far."""
        return float(sum(self._seen.values()))

    def counting(self) -> torch.autograd.graph.saved_tensors_hooks:
        """Count what is saved inside a block."""

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in self._weights:
                self._seen[storage.data_ptr()] = storage.nbytes()
            return tensor

        return torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
