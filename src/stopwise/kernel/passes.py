"""The passes: inputs a and output gradients g of every selected module, for every example and output column.

Examples in a batch do not mix, so one forward pass and one backward pass per output column give the gradients of every
example at once. Weights stay frozen: autograd makes activation gradients only, down to the lowest selected module.
Two schedules give the same numbers: ``whole`` keeps one batch's graph at a time, and all a and g; ``sweep`` keeps the
inputs of blocks and replays one block at a time from the top, so that only one block's a and g exist.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from stopwise.kernel.formulas import Call, Features, Term, features, record_input
from stopwise.linearized.coding import columns
from stopwise.network.batches import MAX_PADDING, Packed, length_buckets
from stopwise.network.forward import HeadCall, packed_outputs
from stopwise.network.heads import output_embeddings

log = logging.getLogger(__name__)

TOKENS_PER_BATCH = 1024  # on a CPU: it fills the matrix multiplications of two cores; graphs stay below 2 GiB


@dataclass(frozen=True)
class Group:
    """Examples of one task: prompts [n] sorted by length, ``order`` their places in the batch given, verbalizers."""

    packed: Packed
    order: torch.Tensor
    verbalizers: torch.Tensor
    columns: int
    first_row: int
    batches: tuple[tuple[int, int], ...]  # ranges of examples that make one pass

    @property
    def rows(self) -> range:
        """The rows of this group in the stacked, sorted order of all groups."""
        return range(self.first_row, self.first_row + len(self.packed) * self.columns)


def make_groups(
    tasks: Sequence[tuple[Packed, torch.Tensor]],
    outputs: str,
    tokens_per_batch: int = TOKENS_PER_BATCH,
    max_padding: float = MAX_PADDING,
) -> list[Group]:
    """Return tasks (prompts, verbalizers) as groups with their examples sorted by length and cut into batches."""
    groups: list[Group] = []
    row = 0
    for packed, verbalizers in tasks:
        buckets = length_buckets(packed, tokens_per_batch, max_padding)
        order = torch.cat(buckets) if buckets else torch.zeros(0, dtype=torch.long)
        stops = torch.tensor([0, *(len(b) for b in buckets)]).cumsum(0).tolist()
        per_example = columns(len(verbalizers), outputs)
        ranges = tuple(itertools.pairwise(stops))
        groups.append(Group(packed.rows(order), order, verbalizers, per_example, row, ranges))
        row += len(order) * per_example
    return groups


@dataclass(frozen=True)
class Batch:
    """One pass: prompts of one group, and the rows they fill."""

    group: Group
    start: int
    stop: int

    @property
    def packed(self) -> Packed:
        """The prompts, cut to the longest."""
        return self.group.packed.rows(torch.arange(self.start, self.stop))

    @property
    def size(self) -> int:
        """The number of examples."""
        return self.stop - self.start

    @property
    def rows(self) -> slice:
        """The rows of the stacked order that these examples fill."""
        first = self.group.first_row
        return slice(first + self.start * self.group.columns, first + self.stop * self.group.columns)


def batches_of(groups: Sequence[Group]) -> list[Batch]:
    """Return the passes of all groups in row order."""
    return [Batch(group, start, stop) for group in groups for start, stop in group.batches]


class Recorder:
    """Hooks that note the calls of chosen modules, and start the graph at the first of them.

    A module whose output no gradient reaches yet gets a fresh leaf as its output: below it autograd has nothing to do.
    A table that is looked up once for all examples gives each its own copy, so that their gradients do not mix.
    """

    def __init__(
        self,
        modules: Sequence[nn.Module],
        head: nn.Module | None,
        head_call: HeadCall,
        tokens: torch.Tensor | None,
        examples: int,
    ):
        self.calls: dict[int, list[Call]] = {}
        self.order: list[int] = []
        self._examples = examples
        self._modules, self._head, self._head_call, self._tokens = modules, head, head_call, tokens
        self.active = True

    def __enter__(self) -> Recorder:
        self._handles = [m.register_forward_hook(self._hook, with_kwargs=True) for m in self._modules]
        return self

    def __exit__(self, *exc: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _hook(self, module: nn.Module, args: tuple, kwargs: dict, y: torch.Tensor) -> torch.Tensor | None:
        if not self.active:
            return None
        fresh = None
        if isinstance(module, nn.Embedding) and y.ndim == 3 and len(y) == 1 < self._examples:
            y = fresh = y.expand(self._examples, -1, -1)
        if not y.requires_grad:
            y = fresh = y.detach().requires_grad_(True)
        if module is self._head:
            assert self._head_call.hidden is not None
            call = Call(self._head_call.hidden.detach(), y, ids=self._tokens)
        else:
            call = record_input(module, args, kwargs, y)
        self.calls.setdefault(id(module), []).append(call)
        self.order.append(id(module))
        return fresh

    def differentiate(self, out: torch.Tensor, cotangents: Sequence[torch.Tensor], *also: torch.Tensor) -> list[list]:
        """Fill in the calls' gradients for every cotangent of ``out``; return the gradients of ``also`` [column][i]."""
        calls = [call for listed in self.calls.values() for call in listed]
        wanted = [call.y for call in calls] + list(also)
        if not out.requires_grad or not wanted:
            return [[None] * len(also) for _ in cotangents]
        rest = []
        for column, cotangent in enumerate(cotangents):
            keep = column < len(cotangents) - 1
            grads = torch.autograd.grad(out, wanted, cotangent, retain_graph=keep, allow_unused=True)
            for call, grad in zip(calls, grads, strict=False):
                if grad is not None:
                    if call.g is None:
                        call.g = grad.new_empty(len(grad), len(cotangents), *grad.shape[1:])
                    call.g[:, column] = grad
            rest.append(list(grads[len(calls) :]))
        return rest


@dataclass
class Pass:
    """The model and what to record in it."""

    model: Any
    terms: Sequence[Term]
    outputs: str
    f0: dict[tuple[int, int], torch.Tensor] = field(default_factory=dict)  # by (first row, start): [n, columns]

    def modules(self, terms: Sequence[Term]) -> list[nn.Module]:
        """Return the modules that these terms need, each once, in model order."""
        wanted = {id(use.module) for term in terms for use in term.uses}
        return [module for module in self.model.modules() if id(module) in wanted]

    @contextmanager
    def recording(self, terms: Sequence[Term], batch: Batch, call: HeadCall) -> Iterator[Recorder]:
        """Record the modules of these terms while the body runs the model or a part of it."""
        device = next(self.model.parameters()).device
        # Under ``vocabulary`` every row of the head acts, not the words' alone.
        tokens = None if self.outputs == "vocabulary" else batch.group.verbalizers.to(device)
        with (
            torch.enable_grad(),
            Recorder(self.modules(terms), output_embeddings(self.model), call, tokens, batch.size) as rec,
        ):
            yield rec

    def forward(self, batch: Batch, call: HeadCall) -> torch.Tensor:
        """Run the model on a batch and keep its outputs f0."""
        f = packed_outputs(self.model, batch.packed, batch.group.verbalizers, self.outputs, call)
        self.f0[batch.group.first_row, batch.start] = f.detach()
        return f

    def outputs_of(self, group: Group) -> torch.Tensor:
        """Return f0 of a group in the order its batch was given, float64 [n, columns] on the CPU."""
        parts = [self.f0[group.first_row, start] for start, _ in group.batches]
        found = torch.empty(len(group.order), group.columns, dtype=torch.float64)
        if parts:
            found[group.order] = torch.cat(parts).double().cpu()
        return found


def unit_cotangents(f: torch.Tensor) -> list[torch.Tensor]:
    """Return the cotangents that select each column of f, summed over the examples, which do not mix."""
    return [torch.eye(f.shape[1], dtype=f.dtype, device=f.device)[c].expand_as(f) for c in range(f.shape[1])]


def whole_pass(run: Pass, batch: Batch, terms: Sequence[Term] | None = None) -> dict[str, Features]:
    """Return the features of every term for one batch: one forward pass and one backward pass per column."""
    terms = run.terms if terms is None else terms
    call = HeadCall()
    with run.recording(terms, batch, call) as recorder:
        f = run.forward(batch, call)
        recorder.differentiate(f, unit_cotangents(f))
        del f
    found = {term.name: features(term, recorder.calls, batch.size) for term in terms}
    return {name: one for name, one in found.items() if one is not None}
