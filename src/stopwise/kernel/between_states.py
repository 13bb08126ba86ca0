"""Kernels between states of one network: J_l D_k J_k', the gradients at some weights against those at others.

Training moves a network from state to state. A small move made at state k, D_k J_k' w, changes the outputs at state l
by J_l D_k J_k' w. The passes of all states go through the layers together, so that no gradient is kept beyond its
layer; the network holds one state's weights at a time, and its own again in the end.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import nn

from stopwise.kernel.batch_metric import roots
from stopwise.kernel.engine import Engine, Job, Visit
from stopwise.kernel.memory import needs
from stopwise.kernel.ntk import Examples, prepared
from stopwise.kernel.passes import Batch, Group
from stopwise.kernel.products import Blocks, Layout, add_term
from stopwise.kernel.weighing import row_order, scale_of
from stopwise.network.parameters import Subset, select_parameters

State = Mapping[str, torch.Tensor]


@dataclass
class StateGrams:
    """Kernels between states, float64 [m, m] each, rows example-major.

    ``grams[l, k]``: J_l D_k J_k' for k <= l; ``plain[k]``: J_k J_k', where asked for; ``outputs[k]``: f of state k,
    [n, columns].
    """

    grams: dict[tuple[int, int], np.ndarray] = field(default_factory=dict)
    plain: dict[int, np.ndarray] = field(default_factory=dict)
    outputs: dict[int, np.ndarray] = field(default_factory=dict)

    def row(self, state: int) -> list[np.ndarray]:
        """Return J_l D_k J_k' of state l with all states up to it, as ``stopping.anchored`` takes it."""
        return [self.grams[state, k] for k in range(state + 1)]


def trained_state(model: nn.Module, parameters: Subset = "trainable") -> dict[str, torch.Tensor]:
    """Return a copy of the trained parameters by name, on the CPU: a state as ``anchored_grams`` takes it."""
    return {name: p.detach().to("cpu", copy=True) for name, p in sorted(select_parameters(model, parameters).items())}


def anchored_grams(
    model: nn.Module,
    batch: Examples,
    states: Sequence[State],
    preconditioners: Sequence[State | None],
    *,
    last: bool = False,
    plain: bool = False,
    verbalizers: Sequence[int] | torch.Tensor | None = None,
    parameters: Subset = "trainable",
    outputs: str = "contrast",
    device: str | torch.device = "auto",
    memory_gb: float | None = None,
) -> StateGrams:
    """Return J_l D_k J_k' of the examples of ``batch`` for all pairs of states k <= l, ``last``: of the last l alone.

    ``states``: the selected parameters by name (``trained_state``), one mapping a state, in the order of training;
    ``preconditioners``: D_k by name (``preconditioner_from_optimizer``), None for D = 1. ``plain``: also J_l J_l' of
    each l that is computed. The model comes back with its own weights, to the bit. Cost, for L states: the passes of
    all examples at each, and for every pair the products of their gradients, m^2 P multiply-adds for m rows and P
    parameters. Memory: the weights once more, and the activations of L states (of one block each, where all do not
    fit). Raises ValueError for states that do not fit the model, or more of them than memory takes.
    """
    if not states or len(states) != len(preconditioners):
        raise ValueError(f"states: {len(states)} of them and {len(preconditioners)} preconditioners must be as many")
    top = len(states) - 1
    pairs = [(left, right) for left in range(top + 1) for right in range(left + 1) if not last or left == top]
    found = StateGrams()
    with prepared(model, {"a": batch}, verbalizers, parameters, outputs, device) as job, _Exchange(job, states) as nets:
        engines = _engines(job, nets, memory_gb)
        sums = _sums(job, engines, pairs, preconditioners, plain)
        with torch.no_grad():
            for visits in _together(engines, nets):
                for one in sums:
                    one.add(visits)
        for one in sums:
            one.finish(found, row_order(engines[0].groups[0]))
        found.outputs = {k: engine.f0[0] for k, engine in enumerate(engines)}
    return found


class _Exchange:
    """A network that holds one of several sets of weights at a time; its own come back at the end of the block."""

    def __init__(self, job: Job, states: Sequence[State]) -> None:
        self.terms, self.states = job.terms, states
        for k, state in enumerate(states):
            for term in self.terms:
                own = state.get(term.name)
                if own is None or own.shape != term.parameter.shape:
                    shape = None if own is None else tuple(own.shape)
                    raise ValueError(
                        f"states: number {k} has {term.name!r} with shape {shape}, the model"
                        f" {tuple(term.parameter.shape)}"
                    )

    def __enter__(self) -> _Exchange:
        self.before = {term.name: term.parameter.detach().clone() for term in self.terms}
        return self

    def __exit__(self, *error: object) -> None:
        self._write(self.before)

    def hold(self, k: int) -> None:
        """Give the network the weights of state k."""
        self._write(self.states[k])

    def _write(self, state: State) -> None:
        with torch.no_grad():
            for term in self.terms:
                term.parameter.copy_(state[term.name])


def _engines(job: Job, nets: _Exchange, memory_gb: float | None) -> list[Engine]:
    """Return an engine for every state, each with its share of the memory."""
    count = len(nets.states)
    engines: list[Engine] = []
    for k in range(count):
        nets.hold(k)
        engine = Engine(job)
        if not engines:
            has = needs(job.model, engine.run, engine.batches, engine.probed, memory_gb, count * engine.rows)
            least = has.sweep_fixed + count * has.sweep_token * has.tokens
            if least > has.room and not has.keeps:
                examples = len(engine.groups[0].packed)
                raise ValueError(
                    f"checkpoints: {count} of them need {least / 1e9:.1f} GB for {examples} examples at once,"
                    f" {has.room / 1e9:.1f} GB may be used; take fewer checkpoints or examples"
                )
            job = replace(job, memory_gb=has.room / 1e9 / count)
            engine.job = job
        engines.append(engine)
    return engines


def _together(engines: Sequence[Engine], nets: _Exchange) -> Iterator[list[Visit]]:
    """Yield every layer's features of all states, from the top block down."""
    walks = [engine.layers() for engine in engines]
    while True:
        visits = []
        for k, walk in enumerate(walks):
            nets.hold(k)  # a block may be replayed, which needs its weights
            if (visit := next(walk, None)) is not None:
                visits.append(visit)
        if len(visits) < len(walks):
            return
        yield visits


@dataclass
class _Sum:
    """Blocks of kernels in one metric: those of pairs that share their right-hand state, or one state's plain kernel.

    ``members``: the states that take part, each a group of rows of the blocks' layout, in this order.
    """

    blocks: Blocks
    members: list[int]
    pairs: list[tuple[int, int]]
    scales: Mapping[str, torch.Tensor] | None
    plain: bool = False

    def add(self, visits: Sequence[Visit]) -> None:
        """Add one layer."""
        groups = self.blocks.layout.groups
        for i in range(len(visits[0].terms)):
            term, rows = visits[0].terms[i][0], []
            for group, state in zip(groups, self.members, strict=True):
                rows += [(Batch(group, b.start, b.stop), feature) for b, feature in visits[state].terms[i][1]]
            add_term(self.blocks, rows, scale=scale_of(term, rows, self.scales))

    def finish(self, found: StateGrams, order: np.ndarray) -> None:
        """Put the sums, in the order in which the examples were given, where they belong."""
        self.blocks.finish()
        for pair, matrix in zip(self.pairs, self.blocks.matrices, strict=True):
            given = np.empty(matrix.shape)
            given[np.ix_(order, order)] = matrix.cpu().numpy()
            if self.plain:
                found.plain[pair[0]] = given
            else:
                found.grams[pair] = given


def _sums(
    job: Job,
    engines: Sequence[Engine],
    pairs: Sequence[tuple[int, int]],
    preconditioners: Sequence[State | None],
    plain: bool,
) -> list[_Sum]:
    """Return what has to be summed: one metric after another, and the plain kernels."""
    sums = []
    for k, metric in enumerate(preconditioners):
        own = [pair for pair in pairs if pair[1] == k]
        scales = None if metric is None else roots(metric, job.terms)
        if own:
            sums.append(_sum(engines, own, scales))
    if plain:
        sums += [_sum(engines, [(left, left)], None, plain=True) for left in sorted({left for left, _ in pairs})]
    return sums


def _sum(
    engines: Sequence[Engine],
    pairs: list[tuple[int, int]],
    scales: Mapping[str, torch.Tensor] | None,
    plain: bool = False,
) -> _Sum:
    members, groups = sorted({state for pair in pairs for state in pair}), []
    for place, state in enumerate(members):
        group: Group = engines[state].groups[0]
        groups.append(replace(group, first_row=place * len(group.rows)))
    where = [(members.index(left), members.index(right)) for left, right in pairs]
    return _Sum(Blocks(Layout(tuple(groups), tuple(where)), engines[0].device), members, pairs, scales, plain)
