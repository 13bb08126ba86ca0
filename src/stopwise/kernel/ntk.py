"""The empirical neural tangent kernel of a language model, K = J J^T, without the Jacobian J.

K = sum over parameters of the products of per-example gradients, each built from the inputs and output gradients of
the parameter's modules (``jacobian``, ``layer_formulas``) in tiles (``tiles``). Rows are example-major: row =
example * columns + column. K is float64, defined as the sum of its stored parts in name order, so that it decomposes
exactly by layer, and shards (subsets of layers) add up to it exactly.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from stopwise.artifacts.gram import sum_in_name_order
from stopwise.kernel.batch_metric import BatchMetric, roots
from stopwise.kernel.engine import Job
from stopwise.kernel.example_tiles import kernel_parts
from stopwise.kernel.float32 import float32_products
from stopwise.kernel.formulas import Term, plan_terms
from stopwise.kernel.moments import Moments
from stopwise.kernel.product_modes import checked
from stopwise.kernel.ranks import Ranks
from stopwise.linearized.coding import coding_matrix, columns
from stopwise.network.attention import steady_attention
from stopwise.network.batches import MAX_PADDING, pack, verbalizers_of
from stopwise.network.heads import evaluating, sees_later_tokens
from stopwise.network.parameters import Subset, held, select_parameters

FORMULAS = ("sgd", "signgd", "adam")
PARTS = ("layer", "module", "total")

Examples = Mapping[str, torch.Tensor]


@dataclass
class Kernel:
    """A kernel block K(a, b) and what belongs to it.

    ``matrix`` [m_a, m_b] float64, un-normalised; ``columns`` per example of a (and ``columns_b``); ``by_layer``: its
    additive parts by layer or module name; ``outputs`` f0 of a [n_a, columns], ``outputs_b`` of b; ``row_norms``: by
    module, the Euclidean norms [m_a] of the rows of J; ``symmetric``: a is b, and the matrix is symmetric to the bit;
    ``plan``: how memory was used, as decided before the passes; ``moments``: by layer, what is kept of a layer whose
    kernel is not (``kernel.moments``); ``moves``: J d of a, float64 [n_a, columns], where a direction d was asked for;
    ``sums``: moments before they are squared, of a block and of its mirror image.
    """

    matrix: np.ndarray
    columns: int
    by_layer: dict[str, np.ndarray]
    outputs: np.ndarray
    outputs_b: np.ndarray
    row_norms: dict[str, np.ndarray] = field(default_factory=dict)
    symmetric: bool = False
    columns_b: int = 0
    plan: dict[str, Any] = field(default_factory=dict)
    moments: dict[str, np.ndarray] = field(default_factory=dict)
    moves: np.ndarray | None = None
    sums: dict[str, tuple[Moments, Moments | None]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.columns_b = self.columns_b or self.columns

    @classmethod
    def sum_of(cls, parts: Sequence[Kernel]) -> Kernel:
        """Return the kernel whose layers are those of all parts (shards); ValueError when two share a layer."""
        if not parts:
            raise ValueError("a kernel needs at least one part")
        layers: dict[str, np.ndarray] = {}
        norms: dict[str, np.ndarray] = {}
        for part in parts:
            if twice := sorted(set(layers) & set(part.by_layer)):
                raise ValueError(f"two shards hold the layer {twice[0]!r}")
            layers |= part.by_layer
            norms |= part.row_norms
        first = parts[0]
        if layers:
            total = sum_in_name_order(layers, first.matrix.shape)
        else:
            total = sum((part.matrix for part in parts[1:]), start=first.matrix)
        layers, norms = dict(sorted(layers.items())), dict(sorted(norms.items()))
        return cls(
            total, first.columns, layers, first.outputs, first.outputs_b, norms, first.symmetric, first.columns_b
        )


def empirical_ntk(
    model: nn.Module,
    batch_a: Examples,
    batch_b: Examples | None = None,
    verbalizers: Sequence[int] | torch.Tensor | None = None,
    parameters: Subset = "attention",
    outputs: str = "contrast",
    formula: str = "sgd",
    device: str | torch.device = "auto",
    dtype: torch.dtype | str | None = None,
    memory_gb: float | None = None,
    **options: Any,
) -> Kernel:
    """Return the empirical NTK K(a, b) of the class outputs at the model's present weights.

    ``model``: a transformers causal (or masked) LM or sequence classifier, inside a PEFT wrapper or not; it runs in
    evaluation mode and comes back as it was. ``batch_a``, ``batch_b``: mappings with
    ``input_ids`` and ``attention_mask`` [n, T] (see ``batches``); without b the kernel is the symmetric K(a, a).
    ``parameters``: see ``select_parameters``. ``formula``: ``sgd`` (inner products of gradients), ``signgd`` (of
    their signs) or ``adam`` (J D J', with the option ``preconditioner``: D by parameter, or a ``BatchMetric`` to
    read it from). ``dtype``: compute in another type than the model's (bfloat16 costs about 2.5e-2 of K).
    ``memory_gb``: memory that may be used beside the model; decides whether activations are kept or recomputed, or
    examples tiled.
    Further options:
    ``layers`` (names from ``kernel_layers``: a shard), ``by`` (``layer`` or ``module``; ``total`` keeps the sum alone,
    whose memory does not grow with the layers), ``progress``,
    ``tokens_per_batch`` (padded tokens in one pass), ``max_padding`` (the share of them that may be padding),
    ``along`` (with ``adam``: a direction d of weights by parameter name, so that ``moves`` is J d),
    ``products`` (how gradients are multiplied: see ``kernel.product_modes``), ``over_ranks`` (all processes of
    torch.distributed share the work, and the first one gets the kernel, the others one of zeros: see ``kernel.ranks``).
    Raises ValueError for anything malformed. Cost: one forward pass, one backward pass per column (no weight
    gradients), and about m^2 P multiply-adds for m rows and P parameters; memory grows with n through K, block inputs
    and one tile.
    """
    tasks = {"a": batch_a} if batch_b is None else {"a": batch_a, "b": batch_b}
    pair = ("a", "a") if batch_b is None else ("a", "b")
    settings: dict[str, Any] = {
        "parameters": parameters,
        "outputs": outputs,
        "formula": formula,
        "device": device,
        "dtype": dtype,
    }
    found = _kernels(model, tasks, [pair], verbalizers, memory_gb=memory_gb, **settings, **options)
    return found[pair]


def train_and_new_kernels(
    model: nn.Module,
    train: Examples,
    new: Examples,
    verbalizers: Sequence[int] | torch.Tensor | None = None,
    **options: Any,
) -> tuple[Kernel, Kernel]:
    """Return (K(train, train), K(new, train)), sharing the passes; options as for ``empirical_ntk``.

    K(new, new) is never computed. ``outputs`` of the second kernel are f0 of the new examples. With ``by="total"`` the
    option ``targets={"train": y}``, float64 [n, columns] at scale 1, asks for the layers' ``moments``.
    """
    pairs = [("train", "train"), ("new", "train")]
    found = _kernels(model, {"train": train, "new": new}, pairs, verbalizers, **options)
    return found["train", "train"], found["new", "train"]


def task_kernels(model: nn.Module, tasks: Mapping[str, Examples], **options: Any) -> dict[tuple[str, str], Kernel]:
    """Return the blocks K[a, b] for all pairs of tasks, a before b or a = b in the order given, sharing the passes.

    Tasks may differ in their number of columns; each batch carries its own verbalizers.
    """
    names = list(tasks)
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i:]]
    return _kernels(model, dict(tasks), pairs, None, **options)


def pair_kernels(
    model: nn.Module, batches: Mapping[str, Examples], pairs: Sequence[tuple[str, str]], **options: Any
) -> dict[tuple[str, str], Kernel]:
    """Return K(a, b) of pairs of named batches, sharing the passes; options as for ``empirical_ntk``.

    A pair (a, a) is symmetric; of two batches one order is enough. With ``by="total"`` the option ``targets`` (by name,
    float64 [n, columns] at scale 1) asks for the layers' ``sums`` of pairs that both have targets.
    """
    return _kernels(model, dict(batches), pairs, None, **options)


def kernel_layers(model: nn.Module, parameters: Subset = "attention") -> list[str]:
    """Return the names of the layers that the subset touches, in model order: blocks, and modules outside of them."""
    touched = {term.layer for term in plan_terms(model, select_parameters(model, parameters))}
    order = [name for name, _ in model.named_modules()]
    return sorted(touched, key=lambda name: order.index(name) if name in order else -1)


def layer_costs(model: nn.Module, parameters: Subset = "attention") -> dict[str, float]:
    """Return the number of selected parameters of every layer: the cost of its Gram is proportional to it."""
    costs = dict.fromkeys(kernel_layers(model, parameters), 0.0)
    for term in plan_terms(model, select_parameters(model, parameters)):
        costs[term.layer] += float(term.parameter.numel())
    return costs


def split_layers(names: Sequence[str], costs: Mapping[str, float], shards: int) -> list[list[str]]:
    """Return the layers as consecutive shards of nearly equal cost, none empty unless there are more than layers.

    Consecutive, because a shard's backward passes end at its lowest layer. Raises ValueError for fewer than 1 shard.
    """
    if shards < 1:
        raise ValueError(f"kernel.shards must be at least 1, found {shards}")
    names = list(names)
    total, done, start = sum(costs[name] for name in names), 0.0, 0
    found: list[list[str]] = []
    for shard in range(shards):
        left = shards - shard - 1
        stop = min(start + 1, len(names)) if start < len(names) else start
        done += sum(costs[name] for name in names[start:stop])
        goal = total * (shard + 1) / shards
        while stop < len(names) - left and done + costs[names[stop]] / 2 <= goal:
            done += costs[names[stop]]
            stop += 1
        if not left:
            stop = len(names)
        found.append(names[start:stop])
        start = stop
    return found


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Put the model in evaluation mode with frozen weights, and back."""
    learning = [p for p in model.parameters() if p.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        with evaluating(model):
            yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)


@contextmanager
def _placed(model: nn.Module, device: str | torch.device, dtype: torch.dtype | str | None) -> Iterator[nn.Module]:
    """Yield the model on the device (moved back afterwards) and in the dtype (as a copy)."""
    home = next(model.parameters())
    wanted = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    if wanted is torch.float16:
        raise ValueError("dtype: float16 overflows in backward passes; use float32, float64 or bfloat16")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else home.device
    device = torch.device(device)
    if wanted is not None and wanted != home.dtype:
        yield copy.deepcopy(model).to(device=device, dtype=wanted)
    elif device.type != home.device.type:
        model.to(device)
        try:
            yield model
        finally:
            model.to(home.device)
    else:
        yield model


@contextmanager
def prepared(
    model: nn.Module,
    tasks: Mapping[str, Examples],
    verbalizers: Sequence[int] | torch.Tensor | None,
    parameters: Subset,
    outputs: str,
    device: str | torch.device = "auto",
    dtype: torch.dtype | str | None = None,
    layers: Sequence[str] | None = None,
) -> Iterator[Job]:
    """Yield a job over the frozen model with its terms and packed tasks, for the time of a block."""
    coding_matrix(2, outputs)
    packed = [(pack(batch), verbalizers_of(batch, verbalizers, model)) for batch in tasks.values()]
    parameters = held(model, parameters)
    with (
        _placed(model, device, dtype) as placed,
        _frozen(placed),
        float32_products(next(placed.parameters()).device),
        steady_attention(next(placed.parameters()).device),
    ):
        sees_later_tokens(placed)  # tried now, before anything is recorded
        yield Job(placed, _chosen_terms(placed, parameters, layers), packed, [], outputs)


def _kernels(
    model: nn.Module,
    tasks: Mapping[str, Examples],
    pairs: Sequence[tuple[str, str]],
    verbalizers: Sequence[int] | torch.Tensor | None,
    parameters: Subset = "attention",
    outputs: str = "contrast",
    formula: str = "sgd",
    device: str | torch.device = "auto",
    dtype: torch.dtype | str | None = None,
    memory_gb: float | None = None,
    layers: Sequence[str] | None = None,
    by: str = "layer",
    progress: bool = False,
    tokens_per_batch: int | None = None,
    max_padding: float = MAX_PADDING,
    preconditioner: Mapping[str, torch.Tensor] | BatchMetric | None = None,
    targets: Mapping[str, np.ndarray] | None = None,
    products: str = "float32",
    over_ranks: bool = False,
    along: Mapping[str, torch.Tensor] | None = None,
) -> dict[tuple[str, str], Kernel]:
    """Return the kernels of pairs of named batches."""
    for key, value, allowed in (("formula", formula, FORMULAS), ("by", by, PARTS)):
        if value not in allowed:
            raise ValueError(f"kernel.{key}: {value!r} is not one of {', '.join(allowed)}")
    if (formula == "adam") != (preconditioner is not None):
        raise ValueError(f"kernel.formula: {formula!r} given {'no' if preconditioner is None else 'a'} preconditioner")
    if along is not None and (formula != "adam" or over_ranks):
        raise ValueError("kernel along a direction: for the formula adam in one process; use TangentLearner elsewhere")
    names = list(tasks)
    limits: dict[str, Any] = {"memory_gb": memory_gb, "tokens_per_batch": tokens_per_batch, "max_padding": max_padding}
    numbers = [(names.index(a), names.index(b)) for a, b in pairs]
    with prepared(model, tasks, verbalizers, parameters, outputs, device, dtype, layers) as bare:
        job = replace(bare, pairs=numbers, signed=formula == "signgd", by=by, progress=progress, **limits)
        job.products, job.along = checked(products), along
        if over_ranks:
            job.ranks = Ranks.here(next(bare.model.parameters()).device)
            job.progress = progress and job.ranks.rank == 0
        job.targets = [(targets or {}).get(name) for name in names] if by == "total" else ()
        if preconditioner is not None:
            if isinstance(preconditioner, BatchMetric):
                job.metric = preconditioner
            else:
                job.scales = roots(preconditioner, job.terms)
        parts, f0, plan = kernel_parts(job)
        classes = [len(tokens) for _, tokens in job.tasks]
    found = {}
    for (a, b), part in zip(pairs, parts, strict=True):
        i, j = names.index(a), names.index(b)
        matrices = {name: part.matrices[name] for name in sorted(part.matrices)}
        whole = matrices.pop("total", None) if by == "total" else None
        total = sum_in_name_order(matrices, part.shape) if whole is None else whole
        moments = {name: part.moments[name][0].vector() for name in sorted(part.moments)}
        widths = [columns(classes[k], outputs) for k in (i, j)]
        moves = None if part.moves is None else part.moves.reshape(f0[i].shape)
        beside = part.norms, a == b, widths[1], plan, moments, moves, part.moments
        found[a, b] = Kernel(total, widths[0], matrices, f0[i], f0[j], *beside)
    return found


def _chosen_terms(model: nn.Module, subset: Subset, layers: Sequence[str] | None) -> list[Term]:
    """Return the terms of a subset in the layers asked for; ValueError for a layer that holds none."""
    terms = plan_terms(model, select_parameters(model, subset))
    if layers is None:
        return terms
    if unknown := sorted(set(layers) - {term.layer for term in terms}):
        raise ValueError(f"layers: {unknown[0]!r} is not a layer of this model and subset (see kernel_layers)")
    return [term for term in terms if term.layer in set(layers)]
