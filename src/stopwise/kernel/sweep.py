"""The layer-major reverse sweep: each block is replayed with gradients, from the top down, so that little is kept."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from stopwise.kernel.formulas import Features, Term, features, join
from stopwise.kernel.passes import Batch, Pass, Recorder, unit_cotangents
from stopwise.network.architecture import blocks_of
from stopwise.network.forward import HeadCall, packed_outputs

log = logging.getLogger(__name__)


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
                # With gradients, so that whatever else blocks read of these parameters is seen.
                with self.run.recording(self.outer, self.batches[0], HeadCall()):
                    self._until_first_block(self.batches[0])
        finally:
            for hook in hooks:
                hook.remove()
        return [t for t in self.outer if any(id(use.module) in called for use in t.uses)]

    def _until_first_block(self, batch: Batch) -> torch.Tensor:
        """Run the model up to its first block and return that block's input."""
        seen: list[torch.Tensor] = []

        def stop(module: nn.Module, args: tuple, kwargs: dict) -> None:
            others, named = _others(args, kwargs)
            if any(torch.is_tensor(one) and one.requires_grad for one in (*others, *named.values())):
                raise Unswept("blocks read more of what lies below them than one hidden state")
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
