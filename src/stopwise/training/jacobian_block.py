"""One job of a kernel whose examples are cut into blocks: all layers, two blocks of the training examples."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from stopwise.artifacts.block_pairs import PairJob, new_block_count, pair_job, pair_jobs, ranges
from stopwise.artifacts.blocks import Key, block_table
from stopwise.artifacts.gram import SUM, keeps_layers
from stopwise.artifacts.sample import Sample
from stopwise.kernel.ntk import Kernel, kernel_layers, pair_kernels
from stopwise.network.adapters import trained
from stopwise.tasks.batch import batch_from_table
from stopwise.training.adam_preconditioner import adam_preconditioner
from stopwise.training.decayed import weights_move
from stopwise.training.jacobian_shard import check_outputs
from stopwise.training.settings import FinetuneSettings

Batch = Mapping[str, torch.Tensor]
TRAIN, NEW = "train", "new"


def jacobian_block(
    model: Any,
    sample: Sample,
    kernel: Mapping[str, Any],
    pair: tuple[int, int, int],
    *,
    seed: int = 0,
    device: str = "cpu",
    source: str = "",
    adam: Mapping[str, Any] | None = None,
    scheduled: Collection[str] = (),
    over_ranks: bool = False,
) -> tuple[pa.Table, dict[str, Any]]:
    """Return the ``jacobian_block`` artifact of blocks (left, right, of how many), and how its passes were planned.

    Other arguments as for ``jacobian_shard``. AdamW's preconditioner needs all training examples, and these blocks are
    some of them: with ``adam`` every job runs its gradients over all of them once more. Raises ValueError for blocks
    that are no job and for outputs that are not finite.
    """
    kernel = trained(kernel)
    train = batch_from_table(sample.table, "train", verbalizers=sample.verbalizers)
    new = batch_from_table(sample.table, ("validation", "test"), verbalizers=sample.verbalizers)
    held = _held(train, new, pair_job(*pair), pair[2])
    plain = {key: kernel[key] for key in ("parameters", "outputs", "memory_gb")} | {"device": device}
    plain["over_ranks"] = over_ranks
    options = plain | {"products": kernel.get("products", "float32"), "progress": True}
    if adam:
        settings = FinetuneSettings(**trained(adam))
        options["preconditioner"] = adam_preconditioner(model, train, settings, seed)
    y = sample.targets("train", kernel["outputs"], 1.0)
    layers = len(kernel_layers(model, kernel["parameters"]))
    if not keeps_layers(kernel.get("layers"), y.size, y.shape[1] * sample.table.num_rows, layers):
        cut = ranges(len(y), pair[2])
        options |= {"by": "total", "targets": {_name(TRAIN, piece): y[cut[piece]] for piece in pair[:2]}}
    kernels = pair_kernels(model, held.batches, held.pairs(), formula=kernel["formula"], **options)
    for one in kernels.values():
        check_outputs((one.outputs, one.outputs_b), source)
    found = _found(kernels, held)
    if "clip_norm" in scheduled and kernel["formula"] == "adam":
        unweighed = pair_kernels(model, held.batches, held.pairs(TRAIN), formula="sgd", **plain)
        found |= {("plain", "", *held.pieces(names)): one.matrix for names, one in unweighed.items()}
    if "weight_decay" in scheduled:
        for name in held.first():
            block, piece = held.places[name]
            key = "weights_move" if block == TRAIN else "weights_move_new"
            found[key, "", piece, piece] = weights_move(model, held.batches[name], kernel)
    return block_table(found), next(iter(kernels.values())).plan


@dataclass(frozen=True)
class _Held:
    """The blocks of examples that a job runs, by name, and where each belongs: (train or new, number)."""

    job: PairJob
    count: int
    batches: Mapping[str, Batch]
    places: dict[str, tuple[str, int]]

    def pairs(self, *sides: str) -> list[tuple[str, str]]:
        """Return the pairs of names whose kernels the job computes, those of training examples first."""
        job = self.job
        among = [(job.left, job.right), *((block, block) for block in job.own)]
        found = [(_name(TRAIN, a), _name(TRAIN, b)) for a, b in among]
        if NEW in (sides or (NEW,)):
            found += [(_name(NEW, a), _name(TRAIN, b)) for a, b in job.new if _name(NEW, a) in self.batches]
        return found

    def pieces(self, names: tuple[str, str]) -> tuple[int, int]:
        """Return the numbers of two blocks."""
        return self.places[names[0]][1], self.places[names[1]][1]

    def first(self) -> list[str]:
        """Return the blocks that no other job has to tell the same of."""
        before = [job for job in pair_jobs(self.count) if (job.left, job.right) < (self.job.left, self.job.right)]
        told = {(NEW, piece) for job in before for piece in job.new_blocks}
        told |= {(TRAIN, piece) for piece in (self.job.left, self.job.right) if piece not in self.job.own}
        return [name for name, place in self.places.items() if place not in told]


def _name(side: str, piece: int) -> str:
    return f"{side}{piece}"


def _held(train: Batch, new: Batch, job: PairJob, count: int) -> _Held:
    """Return the blocks of a job; blocks without examples are left out."""
    places = {_name(TRAIN, piece): (TRAIN, piece) for piece in (job.left, job.right)}
    places |= {_name(NEW, piece): (NEW, piece) for piece in job.new_blocks}
    cuts = {TRAIN: ranges(len(train["labels"]), count), NEW: ranges(len(new["labels"]), new_block_count(count))}
    batches: dict[str, Batch] = {}
    for name, (side, piece) in list(places.items()):
        rows, whole = cuts[side][piece], train if side == TRAIN else new
        if rows.start == rows.stop:
            del places[name]
            continue
        batches[name] = {key: value if key == "verbalizers" else value[rows] for key, value in whole.items()}
    return _Held(job, count, batches, places)


def _found(kernels: Mapping[tuple[str, str], Kernel], held: _Held) -> dict[Key, np.ndarray]:
    """Return what the kernels hold, by block: the layers or their sum, f0, the row norms, and the layers' sums."""
    found: dict[Key, np.ndarray] = {}
    for names, one in kernels.items():
        (side, a), b = held.places[names[0]], held.places[names[1]][1]
        parts = one.by_layer or {SUM: one.matrix}
        found |= {(side, layer, a, b): part for layer, part in parts.items()}
        found["outputs" if side == TRAIN else "outputs_new", "", a, a] = one.outputs
        found["outputs", "", b, b] = one.outputs_b
        if one.symmetric:
            found |= {("row_norms", module, a, a): norms[None] for module, norms in one.row_norms.items()}
        for layer, (here, mirror) in one.sums.items():
            _add(found, ("ones", layer, a, a), here.ones)
            if mirror is not None:
                _add(found, ("ones", layer, b, b), mirror.ones)
            for part in (here, mirror) if mirror is not None else (here,):
                told = np.concatenate([[part.trace, part.square], part.crossed.ravel()])[None]
                _add(found, ("moments", layer, held.job.left, held.job.right), told)
    return found


def _add(found: dict[Key, np.ndarray], key: Key, part: np.ndarray) -> None:
    found[key] = found[key] + part if key in found else part
