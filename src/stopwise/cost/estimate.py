"""Time and memory of a kernel before anything runs, from a model's configuration alone: no weights are loaded.

Operations are counted (they are exact up to norms and activations), speeds are measured on this machine once
(``measure_device``) or taken from data sheets (``DEVICES``, labelled as assumed). The count of a forward pass is
2 P tokens plus attention's 4 T d per token and layer; a backward pass of activation gradients costs as much; forming
per-example gradients 2 T P per row; the products m^2 P, for P selected parameters and m rows.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from stopwise.artifacts.block_pairs import new_block_count, pair_jobs
from stopwise.kernel.float32 import float32_products
from stopwise.kernel.formulas import plan_terms
from stopwise.kernel.memory import BLOCKS, LARGEST_LAYER, Needs, block_bytes, product_bytes, room, total_memory
from stopwise.kernel.ntk import kernel_layers, layer_costs, split_layers
from stopwise.kernel.products import SIZES, TILE, Sizes, sizes_on
from stopwise.kernel.ranks import multiplied_shares
from stopwise.linearized.coding import columns
from stopwise.network.architecture import blocks_of, is_linear, widths
from stopwise.network.parameters import Subset, select_parameters

Row = dict[str, Any]


@dataclass(frozen=True)
class Device:
    """Speeds in multiply-adds a second (passes, forming gradients, products) and memory in bytes."""

    name: str
    passes: float
    forming: float
    products: float
    memory: float
    measured: bool = False
    kind: str = "cuda"


# Peak float32 rates without TF32 from NVIDIA's data sheets (19.5 and 67 TFLOP/s, so half as many multiply-adds), times
# shares that this package reaches on CPUs: 0.6 of the best product rate in passes, 0.5 in small batched products.
DEVICES = {
    "a100-80gb": Device("A100 80 GB, fp32", 9.75e12 * 0.6, 9.75e12 * 0.5, 9.75e12 * 0.8, 80e9),
    "h100-80gb": Device("H100 80 GB, fp32", 33.5e12 * 0.6, 33.5e12 * 0.5, 33.5e12 * 0.8, 80e9),
}


@dataclass(frozen=True)
class Counts:
    """What a model and subset cost: multiply-adds of a forward pass for one token, sizes in entries."""

    forward: float
    score: float  # multiply-adds of attention for one token, per token that it sees
    selected: int
    depth: int
    hidden: int
    features_input: float  # entries of inputs kept for one token (q, k and v share theirs: an upper bound)
    features_output: float  # entries of output gradients kept for one token and column
    weights: int


def skeleton(config: Any) -> nn.Module:
    """Return the causal LM of a transformers configuration with no memory behind its weights."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)


def gpt_neo_1_3b() -> Any:
    """Return the configuration of EleutherAI/gpt-neo-1.3B, the paper's model: 24 layers, d = 2048, 16 heads."""
    from transformers import GPTNeoConfig

    return GPTNeoConfig(
        hidden_size=2048,
        num_layers=24,
        num_heads=16,
        attention_types=[[["global", "local"], 12]],
        max_position_embeddings=2048,
        vocab_size=50257,
    )


def count(model: nn.Module, parameters: Subset = "attention") -> Counts:
    """Count a model's operations and kept entries; works without weights."""
    chosen = {id(p) for p in select_parameters(model, parameters).values()}
    blocks = blocks_of(model)
    linear: list[Any] = [m for block in blocks.values() for m in block.modules() if is_linear(m)]
    held = [widths(m) for m in linear if any(id(p) in chosen for p in m.parameters())]
    config: Any = model.config
    heads = config.num_attention_heads
    head_width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return Counts(
        forward=float(sum(m.weight.numel() for m in linear)),
        score=2.0 * heads * head_width * len(blocks),
        selected=sum(p.numel() for p in select_parameters(model, parameters).values()),
        depth=len(blocks),
        hidden=config.hidden_size,
        features_input=float(sum(d_in for d_in, _ in held)),
        features_output=float(sum(d_out for _, d_out in held)),
        weights=sum(p.numel() for p in model.parameters()),
    )


@dataclass(frozen=True)
class Work:
    """What the largest job of a kernel does: jobs, examples that it runs, rows among the training ones, products.

    ``products``: products of two rows, in units of one of all selected parameters; ``apart``: training examples whose
    gradients it forms beside its own passes.
    """

    jobs: int
    examples: int
    rows: int
    products: float
    apart: int = 0


def work(
    n: int, new: int, per_example: int, sizes: Sizes, shards: int = 1, blocks: int = 1, adam: bool = False
) -> Work:
    """Return the work of a kernel's largest job: of ``shards`` of layers, or of pairs of ``blocks`` of examples.

    With ``adam`` a pair of blocks needs the gradients of all training examples. Shards have all rows.
    """
    rows, cross = n * per_example, new * per_example
    if blocks == 1:
        return Work(shards, n + new, rows + cross, _symmetric(rows, sizes) + cross * rows)
    pairs = pair_jobs(blocks)
    side, held = -(-n // blocks), -(-new // new_block_count(blocks))
    most = max(pairs, key=lambda job: (len(job.new), len(job.own)))
    width = side * per_example
    products = width**2 + len(most.own) * _symmetric(width, sizes) + len(most.new) * held * per_example * width
    examples = 2 * side + len(most.new_blocks) * held
    return Work(len(pairs), examples, examples * per_example, products, n if adam else 0)


def _symmetric(rows: int, sizes: Sizes) -> float:
    """Return the products of a symmetric block: panels below the diagonal."""
    return rows * (rows + min(rows, sizes.panel_of(rows))) / 2


def estimate(
    model: nn.Module,
    n: int,
    tokens: int = 48,
    classes: int = 2,
    new: int = 0,
    parameters: Subset = "attention",
    outputs: str = "contrast",
    shards: int = 1,
    device: Device | None = None,
    memory_gb: float | None = None,
    itemsize: int = 4,
    blocks: int = 1,
    adam: bool = False,
    processes: int = 1,
) -> Row:
    """Return one row: time, memory and schedule of K(train, train) and K(new, train), beside a stored Jacobian.

    ``model``: with or without weights (``skeleton``). ``n``: training examples, ``new``: further ones; ``tokens``: mean
    prompt length; ``shards``: jobs, each on a device of its own; ``blocks``: of examples, every two of them such a job
    instead (the row's ``shards`` counts the jobs), with gradients of its own under ``adam``; ``processes``: that share
    each job, on a GPU each, or all on the CPU, where they share its threads and its memory. Seconds are those of the
    slowest job (the shard with the lowest layers) and its slowest process, bytes those of one process. ``device``
    defaults to this machine, measured.
    """
    device = measure_device() if device is None else device
    counts, per_example = count(model, parameters), columns(classes, outputs)
    rows, cross = n * per_example, new * per_example
    share = _largest_share(model, parameters, shards)
    sizes = sizes_on(device.kind)
    own = work(n, new, per_example, sizes, shards, blocks, adam)
    shared = _shared(model, parameters, own.examples, max(1, sizes.tokens // tokens), processes)
    all_tokens = own.examples * tokens
    memory = _memory(counts, all_tokens, per_example, own.rows, share, itemsize, sizes, shared)
    there = room(device.kind, device.memory, counts.weights * itemsize, memory_gb, processes)
    schedule, tiles, peak = replace(memory, room=there).schedule(own.examples)
    # Every pair of tiles is a run over both: each tile is in tiles - 1 of them.
    runs = max(tiles - 1, 1)
    one_token = counts.forward + counts.score * tokens
    passes = (per_example + (1 if schedule == "keep" else 2)) * all_tokens * one_token * runs * shared.passes
    apart = n if adam and processes > 1 else own.apart  # all of them in every process
    passes += apart * tokens * (2 * one_token + counts.selected)
    forming = own.rows * tokens * counts.selected * share * runs * shared.products
    products = own.products * counts.selected * share * shared.products
    slower = processes if device.kind == "cpu" else 1
    seconds = slower * (passes / device.passes + forming / device.forming + products / device.products)
    return {
        "n": n,
        "new": new,
        "tokens": tokens,
        "columns": per_example,
        "parameters": counts.selected,
        "shards": own.jobs,
        "processes": processes,
        "devices": 1 if device.kind == "cpu" else processes,
        "device": device.name,
        "speeds": "measured" if device.measured else "assumed",
        "schedule": schedule if tiles == 1 else f"{tiles} tiles",
        "seconds": seconds,
        "share_passes": slower * passes / device.passes / seconds,
        "model_gb": counts.weights * itemsize / 1e9,
        "peak_gb": peak / 1e9,
        "room_gb": there / 1e9,
        "kernel_gb": 8 * rows * (rows + cross) * (1 + counts.depth * share) / 1e9,
        "stored_jacobian_gb": (rows + cross) * counts.selected * itemsize / 1e9,
    }


@dataclass(frozen=True)
class Shared:
    """What the process with most to do has of a job that several share: of its passes, of its products, of a layer's.

    ``one_layer``: of the products, and so of what travels, of one layer at most. One process alone has all of them.
    """

    passes: float = 1.0
    products: float = 1.0
    one_layer: float = 1.0
    tiles: bool = True


def _shared(model: nn.Module, parameters: Subset, examples: int, per_pass: int, processes: int) -> Shared:
    """Return the shares of processes among which passes of so many examples go round, and modules layer by layer."""
    if processes == 1:
        return Shared()
    passes = -(-examples // per_pass)
    most = min(1.0, -(-passes // processes) * per_pass / max(examples, 1))
    return Shared(most, *multiplied_shares(plan_terms(model, select_parameters(model, parameters)), processes), False)


def _largest_share(model: nn.Module, parameters: Subset, shards: int) -> float:
    """Return the share of the parameters that the largest shard holds."""
    costs = layer_costs(model, parameters)
    split = split_layers(kernel_layers(model, parameters), costs, shards)
    return max(sum(costs[name] for name in shard) for shard in split) / sum(costs.values())


def _memory(
    c: Counts, tokens: float, per_example: int, rows: int, share: float, itemsize: int, sizes: Sizes, shared: Shared
) -> Needs:
    """Return what the engine will find when it probes the model: bytes of keeping and of a sweep."""
    features = (c.features_input + per_example * c.features_output) * itemsize
    layer = features / max(c.depth, 1)
    beside = product_bytes(sizes, rows) + (0.0 if shared.tiles else layer * tokens * shared.one_layer)
    own = tokens * shared.passes
    graph = min(sizes.tokens, tokens) * 12 * c.hidden * c.depth * itemsize
    return Needs(
        keep=features * share * own + graph + beside,
        sweep_token=c.hidden * itemsize * (c.depth + 2 * per_example) + LARGEST_LAYER * layer,
        sweep_fixed=graph / max(c.depth, 1) + beside,
        room=0.0,
        tokens=own,
        blocks=block_bytes(rows),
        held=block_bytes(rows) / BLOCKS if sizes == SIZES["cpu"] else 0.0,
        tiles=shared.tiles,
    )


def cost_table(
    sizes: Sequence[int] = (100, 1_000, 10_000), device: str = "a100-80gb", shards: Sequence[int] = (1, 8)
) -> list[Row]:
    """Return the README's rows: GPT-Neo-1.3B, attention subset, 48 tokens, two classes, on one GPU or several."""
    model = skeleton(gpt_neo_1_3b())
    return [estimate(model, n, shards=count, device=DEVICES[device]) for count in shards for n in sizes]


def cost_text(sizes: Sequence[int] = (100, 1_000, 10_000), device: str = "a100-80gb", shards: int = 8) -> str:
    """Return the README's table of ``cost_table`` as Markdown, a row per n; memory is the model's and the kernel's."""
    one, many = (cost_table(sizes, device, (count,)) for count in (1, shards))
    text = [f"| n | one {DEVICES[device].name} | {shards} of them | a stored Jacobian |", "|---|---|---|---|"]
    for alone, shared in zip(one, many, strict=True):
        text.append(
            f"| {alone['n']:,} | {_duration(alone['seconds'])}, {alone['model_gb'] + alone['peak_gb']:.0f} GB |"
            f" {_duration(shared['seconds'])}, {shared['model_gb'] + shared['peak_gb']:.0f} GB each |"
            f" {alone['stored_jacobian_gb']:,.0f} GB |"
        )
    return "\n".join(text) + "\n"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


@functools.cache
def measure_device(device: str = "cpu") -> Device:
    """Measure this machine's float32 speeds: about a second, once a process."""
    place = torch.device(device)
    x, w = torch.randn(1024, 576, device=place), torch.randn(1536, 576, device=place)
    g, a = torch.randn(64, 48, 192, device=place), torch.randn(64, 48, 576, device=place)
    j = torch.randn(128, TILE, device=place)
    with float32_products(place):
        passes = 1024 * 576 * 1536 / _seconds(lambda: nn.functional.linear(x, w), place)
        forming = 64 * 48 * 192 * 576 / _seconds(lambda: torch.bmm(g.transpose(1, 2), a), place)
        products = 128 * 128 * TILE / _seconds(lambda: j @ j.T, place)
    name = torch.cuda.get_device_name(place) if place.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    # Passes reach about 0.6 of their products' rate: attention, norms and activations are not products.
    return Device(name, 0.6 * passes, forming, products, total_memory(place), measured=True, kind=place.type)


def _seconds(call: Callable[[], Any], device: torch.device) -> float:
    """Return the best time of a call."""
    best = float("inf")
    for _ in range(6):
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return best
