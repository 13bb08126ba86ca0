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

from stopwise.batches import MAX_PADDING, Packed, length_buckets
from stopwise.forward import HeadCall, packed_outputs
from stopwise.layer_formulas import Call, Features, Term, block_prefix, features, join, record_input
from stopwise.outputs import columns

log = logging.getLogger(__name__)

TOKENS_PER_BATCH = 1024  # enough to fill the matrix multiplications of two cores; graphs stay below 2 GiB


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
    """

    def __init__(self, modules: Sequence[nn.Module], head: nn.Module, head_call: HeadCall, tokens: torch.Tensor):
        self.calls: dict[int, list[Call]] = {}
        self.order: list[int] = []
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
        tokens = batch.group.verbalizers.to(device)
        with (
            torch.enable_grad(),
            Recorder(self.modules(terms), self.model.get_output_embeddings(), call, tokens) as rec,
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


def blocks_of(model: nn.Module) -> dict[str, nn.Module]:
    """Return the transformer blocks by layer name, in model order."""
    prefix = block_prefix(model)
    blocks: Any = model.get_submodule(prefix) if prefix else []
    return {f"{prefix}.{i}": block for i, block in enumerate(blocks)}


class _Stop(Exception):
    """Ends a forward pass at the first block."""


@dataclass
class _Saved:
    """What one batch keeps for its replay: inputs of blocks, their other arguments, and the cotangents [column]."""

    inputs: list[torch.Tensor] = field(default_factory=list)
    arguments: list[tuple[tuple, dict]] = field(default_factory=list)
    cotangents: list[torch.Tensor] = field(default_factory=list)


class Sweep:
    """The layer-major reverse sweep over the blocks of a model, for all batches at once.

    ``Sweep(run, batches)`` runs the forward passes; ``layer(name)`` then replays a block, from the top down, and
    returns its terms' features by batch; ``outside()`` returns those of everything above and below the blocks.
    """

    def __init__(self, run: Pass, batches: Sequence[Batch]):
        self.run, self.batches = run, batches
        self.blocks = blocks_of(run.model)
        self.names = list(self.blocks)
        inner = [t for t in run.terms if t.layer in self.blocks]
        self.outer = [t for t in run.terms if t.layer not in self.blocks]
        # Tables and everything else that is not known to sit above the blocks needs the sweep to reach the bottom.
        self.stem = self._below()
        indices = [self.names.index(t.layer) for t in inner]
        self.lowest = 0 if self.stem else min(indices, default=len(self.names))
        self.parts: dict[str, list[list[Features]]] = {t.name: [[] for _ in batches] for t in self.outer}
        self.saved = [self._forward(i, batch) for i, batch in enumerate(batches)]
        self.next = len(self.names) - 1

    def _below(self) -> list[Term]:
        """Return the outer terms with a use below the blocks: modules called before the first block is entered."""
        called: set[int] = set()
        hooks = [
            m.register_forward_pre_hook(lambda module, args: called.add(id(module)))
            for m in self.run.modules(self.outer)
        ]
        try:
            if self.outer and self.batches:
                with torch.no_grad():
                    self._until_first_block(self.batches[0])
        finally:
            for hook in hooks:
                hook.remove()
        return [t for t in self.outer if any(id(use.module) in called for use in t.uses)]

    def _until_first_block(self, batch: Batch) -> torch.Tensor:
        """Run the model up to its first block and return that block's input."""
        seen: list[torch.Tensor] = []

        def stop(module: nn.Module, args: tuple, kwargs: dict) -> None:
            seen.append(_hidden(args, kwargs))
            raise _Stop

        handle = self.blocks[self.names[0]].register_forward_pre_hook(stop, with_kwargs=True)
        try:
            packed_outputs(self.run.model, batch.packed, batch.group.verbalizers, self.run.outputs)
        except _Stop:
            return seen[0]
        finally:
            handle.remove()
        raise ValueError("the model never called its first block")

    def _forward(self, index: int, batch: Batch) -> _Saved:
        """Run a batch without a graph up to the last block's output, and differentiate what lies above."""
        saved = _Saved()
        top: list[torch.Tensor] = []
        outs: list[torch.Tensor] = []

        def before(module: nn.Module, args: tuple, kwargs: dict) -> None:
            hidden = _hidden(args, kwargs)
            if outs and hidden is not outs[-1]:
                raise Unswept("blocks do not pass one hidden state from each to the next")
            saved.inputs.append(hidden.detach())
            saved.arguments.append(_others(args, kwargs))

        def after(module: nn.Module, args: tuple, kwargs: dict, out: Any) -> Any:
            outs.append(_first(out))
            if module is not self.blocks[self.names[-1]]:
                return None
            top.append(_first(out).detach().requires_grad_(True))
            recorder.active = True
            return top[0] if torch.is_tensor(out) else (top[0], *out[1:])

        handles = []
        for block in list(self.blocks.values())[self.lowest :] or list(self.blocks.values())[-1:]:
            handles.append(block.register_forward_pre_hook(before, with_kwargs=True))
            handles.append(block.register_forward_hook(after, with_kwargs=True))
        call = HeadCall()
        try:
            with self.run.recording(self.outer, batch, call) as recorder:
                recorder.active = False  # until the last block's output, where the graph starts
                f = self.run.forward(batch, call)
                rest = recorder.differentiate(f, unit_cotangents(f), top[0])
        finally:
            for handle in handles:
                handle.remove()
        saved.cotangents = [grads[0] for grads in rest]
        self._keep(index, batch, recorder)
        return saved

    def _keep(self, index: int, batch: Batch, recorder: Recorder) -> None:
        for term in self.outer:
            found = features(term, recorder.calls, batch.size)
            if found is not None:
                self.parts[term.name][index].append(found)

    def layer(self, name: str) -> list[dict[str, Features]]:
        """Replay blocks down to this one and return its features by batch; call it from the top down."""
        found: list[dict[str, Features]] = []
        while self.next >= self.names.index(name):
            found = self._replay(self.next)
            self.next -= 1
        return found

    def _replay(self, position: int) -> list[dict[str, Features]]:
        """Replay one block for every batch: its features, and the cotangents of its input."""
        block = self.blocks[self.names[position]]
        terms = [t for t in self.run.terms if t.layer == self.names[position]]
        deeper = position > self.lowest or bool(self.stem)
        found = []
        for batch, saved in zip(self.batches, self.saved, strict=True):
            with self.run.recording(terms, batch, HeadCall()) as recorder:
                x = saved.inputs.pop().detach().requires_grad_(deeper)
                args, kwargs = saved.arguments.pop()
                out = _first(block(x, *args, **kwargs))
                rest = recorder.differentiate(out, saved.cotangents, *([x] if deeper else []))
            if deeper:
                saved.cotangents = [grads[0] for grads in rest]
            one = {t.name: features(t, recorder.calls, batch.size) for t in terms}
            found.append({key: value for key, value in one.items() if value is not None})
        return found

    def outside(self) -> list[dict[str, Features]]:
        """Return the features of all terms outside of blocks, by batch; call it after the last layer."""
        if self.stem:
            while self.next >= 0:
                self._replay(self.next)
                self.next -= 1
            for index, (batch, saved) in enumerate(zip(self.batches, self.saved, strict=True)):
                with self.run.recording(self.stem, batch, HeadCall()) as recorder:
                    out = self._until_first_block(batch)
                    recorder.differentiate(out, saved.cotangents)
                self._keep(index, batch, recorder)
        joined: list[dict[str, Features]] = []
        for index in range(len(self.batches)):
            found = {name: join(parts[index]) for name, parts in self.parts.items()}
            joined.append({name: one for name, one in found.items() if one is not None})
        return joined


class Unswept(ValueError):
    """The model's blocks cannot be replayed one by one; the whole pass serves it."""


def _hidden(args: tuple, kwargs: dict) -> torch.Tensor:
    return args[0] if args else kwargs["hidden_states"]


def _others(args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    return args[1:], {key: value for key, value in kwargs.items() if args or key != "hidden_states"}


def _first(out: Any) -> torch.Tensor:
    return out if torch.is_tensor(out) else out[0]
