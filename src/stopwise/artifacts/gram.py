"""From Jacobian shards to one Gram matrix: the sum of the layers' parts in name order, checked for consistency.

K is defined as the float64 sum of the stored parts in name order, so that it decomposes exactly by layer and does not
depend on how the layers were sharded. Works on the shards' tables alone: no network, no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from stopwise.artifacts.tables import ArtifactError, matrix_table, read_matrix
from stopwise.linearized.spectrum import Spectrum

# Shards run the same network over the same batches; devices may still differ in the last bits of f0.
OUTPUT_TOLERANCE = 1e-4
KEPT_BYTES = 1e9
SUM = "*"  # the layer name of a shard's sum over its layers, where they are not kept
# Blocks that only a training with clipping or weight decay needs; a shard has its layers' part of each.
SCHEDULED = ("plain", "weights_move", "weights_move_new")


@dataclass(frozen=True)
class AssembledKernel:
    """K(train, train) [m, m], K(new, train) [m_new, m], f0 of both [n, columns], and the train blocks by layer.

    ``plain`` J J' of the training examples, where training clips gradients and K is in another metric;
    ``weights_move`` J theta_0 [n, columns] of both, where it decays weights. ``moments``: what is known of each layer
    where layers are not kept. ``target_scale`` is that of squared loss, where it was fitted.
    """

    train: np.ndarray
    new: np.ndarray
    outputs: np.ndarray
    outputs_new: np.ndarray
    by_layer: dict[str, np.ndarray]
    plain: np.ndarray | None = None
    weights_move: np.ndarray | None = None
    weights_move_new: np.ndarray | None = None
    moments: dict[str, np.ndarray] = field(default_factory=dict)
    target_scale: float | None = None

    @property
    def columns(self) -> int:
        """Return the number of output columns per example."""
        return self.outputs.shape[1]

    def table(self) -> pa.Table:
        """Return the ``gram`` artifact."""
        blocks = {"train": self.train, "new": self.new, "outputs": self.outputs, "outputs_new": self.outputs_new}
        blocks |= {name: found for name in SCHEDULED if (found := getattr(self, name)) is not None}
        blocks |= {} if self.target_scale is None else {"target_scale": np.array([[self.target_scale]])}
        return matrix_table([({"block": block}, matrix) for block, matrix in blocks.items()], "gram")

    def scale(self, asked: float | str) -> float:
        """Return the scale of the targets: a number as it is, the fitted one for ``auto``. ArtifactError without it."""
        if not isinstance(asked, str):
            return asked
        if self.target_scale is None:
            raise ArtifactError(f"stopping.target_scale: {asked!r}, and the kernel holds no fitted scale; remove it")
        return self.target_scale

    def spectrum(self, intercept: str) -> Spectrum:
        """Return the spectrum of the training kernel, with the intercept ``fitted`` or ``none``."""
        return Spectrum.of(self.train, self.columns, intercept == "fitted")

    def leading(self, n: int) -> AssembledKernel:
        """Return the kernel of the first n training examples: the leading block, new points unchanged."""
        m = n * self.columns
        layers = {name: part[:m, :m] for name, part in self.by_layer.items()}
        plain = None if self.plain is None else self.plain[:m, :m]
        moves = None if self.weights_move is None else self.weights_move[:n]
        main = self.train[:m, :m], self.new[:, :m], self.outputs[:n], self.outputs_new
        return AssembledKernel(*main, layers, plain, moves, self.weights_move_new, target_scale=self.target_scale)


def keeps_layers(asked: bool | None, rows: int, width: int, layers: int) -> bool:
    """Return whether each layer's kernel is kept: as asked, or else while those of all layers take 1 GB at most.

    ``rows`` of the training kernel, ``width`` those of all examples.
    """
    return asked if asked is not None else 8.0 * rows * width * layers <= KEPT_BYTES


def shard_table(
    train_by_layer: Mapping[str, np.ndarray],
    new_by_layer: Mapping[str, np.ndarray],
    outputs: np.ndarray,
    outputs_new: np.ndarray,
    row_norms: Mapping[str, np.ndarray],
    scheduled: Mapping[str, np.ndarray] | None = None,
    moments: Mapping[str, np.ndarray] | None = None,
) -> pa.Table:
    """Return one ``jacobian`` artifact: each layer's blocks, f0, and the row norms per module.

    ``scheduled``: the shard's part of the blocks named in ``SCHEDULED``. Where layers are not kept, the blocks are
    their sum, under the name ``SUM``, and ``moments`` tell of each layer.
    """
    blocks: list[tuple[dict[str, str], np.ndarray]] = []
    for block, parts in (("train", train_by_layer), ("new", new_by_layer)):
        blocks += [({"block": block, "layer": name}, parts[name]) for name in sorted(parts)]
    blocks += [({"block": "outputs", "layer": ""}, outputs), ({"block": "outputs_new", "layer": ""}, outputs_new)]
    blocks += [({"block": name, "layer": ""}, part) for name, part in (scheduled or {}).items()]
    for block, vectors in (("row_norms", row_norms), ("moments", moments or {})):
        blocks += [({"block": block, "layer": name}, np.asarray(vectors[name])[None]) for name in sorted(vectors)]
    return matrix_table(blocks, "jacobian")


def assemble(shards: Mapping[str, pa.Table | Callable[[], pa.Table]]) -> AssembledKernel:
    """Return the kernel of all shards, given as path -> table, or a function that reads it when its turn comes.

    Raises ArtifactError when two shards hold the same layer, disagree on f0 (another model or other data), or a layer
    has one block only. Memory: of shards that keep no layers, the kernel and one shard's table.
    """
    read = _Read()
    for path, given in shards.items():
        read.add(path, given() if callable(given) else given)
    kept, sums = set(read.layers["train"]), read.sums
    if kept != set(read.layers["new"]) or bool(kept) == bool(sums) or (sums and set(sums) != {"train", "new"}):
        raise ArtifactError("the shards do not hold the same layers for training and for new examples")
    train, new = (sums[block] if sums else sum_in_name_order(read.layers[block]) for block in ("train", "new"))
    first, last = (read.outputs[block][1] for block in ("outputs", "outputs_new"))
    others: dict[str, Any] = {**read.scheduled, "moments": read.moments}
    return AssembledKernel(train, new, first, last, read.layers["train"], **others)


class _Read:
    """What the shards read so far hold: layers, or their sums, and what else there is."""

    def __init__(self) -> None:
        self.layers: dict[str, dict[str, np.ndarray]] = {"train": {}, "new": {}}
        self.sums: dict[str, np.ndarray] = {}
        self.outputs: dict[str, tuple[str, np.ndarray]] = {}
        self.scheduled: dict[str, np.ndarray] = {}
        self.moments: dict[str, np.ndarray] = {}

    def add(self, path: str, table: pa.Table) -> None:
        """Add one shard's table."""
        for name in ("outputs", "outputs_new"):
            self._check_outputs(path, name, read_matrix(table, block=name, layer=""))
        for block, layer in sorted(set(zip(table["block"].to_pylist(), table["layer"].to_pylist(), strict=True))):
            if block not in (*self.layers, *SCHEDULED, "moments"):
                continue
            held = self.moments if block == "moments" else self.layers.get(block, {})
            if layer in held:
                raise ArtifactError(f"{path}: layer {layer!r} is in another shard too")
            found = read_matrix(table, block=block, layer=layer)
            if block == "moments":
                self.moments[layer] = found[0]
            elif block in SCHEDULED:
                self.scheduled[block] = self.scheduled.get(block, 0.0) + found
            elif layer != SUM:
                self.layers[block][layer] = found
            elif block in self.sums:
                self.sums[block] += found
            else:
                self.sums[block] = found

    def _check_outputs(self, path: str, name: str, found: np.ndarray) -> None:
        first_path, first = self.outputs.setdefault(name, (path, found))
        if first.shape != found.shape or not np.allclose(first, found, atol=OUTPUT_TOLERANCE, rtol=OUTPUT_TOLERANCE):
            raise ArtifactError(f"{path}: f0 differs from that of {first_path}; the shards are of different models")


def read_gram(table: pa.Table) -> AssembledKernel:
    """Return the kernel of a ``gram`` artifact (without the split by layer)."""
    known = set(table["block"].to_pylist())
    names = ("train", "new", "outputs", "outputs_new", *(name for name in SCHEDULED if name in known))
    blocks: dict[str, Any] = {name: read_matrix(table, block=name) for name in names}
    scale = float(read_matrix(table, block="target_scale")[0, 0]) if "target_scale" in known else None
    return AssembledKernel(**blocks, by_layer={}, target_scale=scale)


def layer_shares(kernel: AssembledKernel, residual: np.ndarray, centred: bool) -> list[dict]:
    """Return one row per layer: share of the trace, alignment with the residual, effective dimension.

    Alignment is r'K_l r / (|r|^2 tr K_l), between 0 and 1; the effective dimension is the participation ratio
    (tr K_l)^2 / |K_l|_F^2. With ``centred`` all are of P K_l P and P r, the column means taken out.
    """
    n, columns = kernel.outputs.shape
    by_example = np.asarray(residual, dtype=float).reshape(n, columns)
    r = np.ravel(by_example - by_example.mean(axis=0) if centred else by_example)
    projected = {name: _centre(part, columns) if centred else part for name, part in kernel.by_layer.items()}
    total = sum(np.trace(part) for part in projected.values())
    rows = []
    for name, part in projected.items():
        trace = float(np.trace(part))
        frobenius = float(np.sum(part**2))
        alignment = float(r @ part @ r) / max(float(r @ r) * trace, np.finfo(float).tiny)
        rows.append(
            {
                "n": n,
                "layer": name,
                "trace_share": trace / total,
                "alignment": alignment,
                "effective_dimension": trace**2 / frobenius if frobenius > 0 else 0.0,
            }
        )
    return rows


def shares_of_moments(kernel: AssembledKernel, targets: np.ndarray, scale: float, centred: bool) -> list[dict]:
    """Return what ``layer_shares`` does of layers that were not kept, from their moments (``kernel.moments``).

    ``targets`` [n, columns] at scale 1. With V = [E, y, f0] and b the column means of scale y - f0, the residual is
    V c with c = (-b, scale, -1), so that r'K_l r = c'(V'K_l V)c; of P K_l P, P = I - E E'/n, trace and square follow
    from K_l E. The same to rounding: what cancels between layers' common mode and their sums costs a few digits.
    """
    n, columns = kernel.outputs.shape
    y = np.asarray(targets, dtype=float)
    residual = scale * y - kernel.outputs
    mean = residual.mean(axis=0) if centred else np.zeros(columns)
    weights = np.concatenate([-mean, [scale, -1.0]])
    size = float(np.sum((residual - mean) ** 2))
    rows = []
    for name, told in sorted(kernel.moments.items()):
        trace, square, ones, crossed = *told[:3], told[3:].reshape(columns + 2, columns + 2)
        inner = crossed[:columns, :columns]
        if centred:
            trace = trace - np.trace(inner) / n
            square = square - 2 * ones / n + np.sum(inner**2) / n**2
        alignment = float(weights @ crossed @ weights) / max(size * trace, np.finfo(float).tiny)
        dimension = trace**2 / square if square > 0 else 0.0
        rows.append({"n": n, "layer": name, "trace": trace, "alignment": alignment, "effective_dimension": dimension})
    total = sum(row["trace"] for row in rows)
    return [{"trace_share": row.pop("trace") / total, **row} for row in rows]


def _centre(matrix: np.ndarray, columns: int) -> np.ndarray:
    """Return P K P, P the projection that takes the mean out of each output column."""
    n = matrix.shape[0] // columns
    blocks = matrix.reshape(n, columns, n, columns)
    blocks = blocks - blocks.mean(axis=0, keepdims=True)
    return (blocks - blocks.mean(axis=2, keepdims=True)).reshape(matrix.shape)


def sum_in_name_order(parts: Mapping[str, np.ndarray], shape: tuple[int, ...] | None = None) -> np.ndarray:
    """Return the float64 sum of the parts in name order, which is the definition of K.

    ``shape`` is needed only where there may be no part: the sum is zero then.
    """
    total = np.zeros(next(iter(parts.values())).shape if shape is None else shape)
    for name in sorted(parts):
        total += parts[name]
    return total
