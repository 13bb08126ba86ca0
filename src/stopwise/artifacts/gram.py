"""From Jacobian shards to one Gram matrix: the sum of the layers' parts in name order, checked for consistency.

K is defined as the float64 sum of the stored parts in name order, so that it decomposes exactly by layer and does not
depend on how the layers were sharded. Works on the shards' tables alone: no network, no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from stopwise.artifacts.tables import ArtifactError, matrix_rows, read_matrix
from stopwise.linearized.spectrum import Spectrum

# Shards run the same network over the same batches; devices may still differ in the last bits of f0.
OUTPUT_TOLERANCE = 1e-4
# Blocks that only a training with clipping or weight decay needs; a shard has its layers' part of each.
SCHEDULED = ("plain", "weights_move", "weights_move_new")


@dataclass(frozen=True)
class AssembledKernel:
    """K(train, train) [m, m], K(new, train) [m_new, m], f0 of both [n, columns], and the train blocks by layer.

    ``plain`` J J' of the training examples, where training clips gradients and K is in another metric;
    ``weights_move`` J theta_0 [n, columns] of both, where it decays weights. ``target_scale`` is that of squared loss,
    where it was fitted.
    """

    train: np.ndarray
    new: np.ndarray
    outputs: np.ndarray
    outputs_new: np.ndarray
    by_layer: dict[str, np.ndarray]
    plain: np.ndarray | None = None
    weights_move: np.ndarray | None = None
    weights_move_new: np.ndarray | None = None
    target_scale: float | None = None

    @property
    def columns(self) -> int:
        """Return the number of output columns per example."""
        return self.outputs.shape[1]

    def rows(self) -> list[dict]:
        """Return the rows of the ``gram`` artifact."""
        blocks = {"train": self.train, "new": self.new, "outputs": self.outputs, "outputs_new": self.outputs_new}
        blocks |= {name: found for name in SCHEDULED if (found := getattr(self, name)) is not None}
        blocks |= {} if self.target_scale is None else {"target_scale": np.array([[self.target_scale]])}
        return [row for block, matrix in blocks.items() for row in matrix_rows(matrix, block=block)]

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
        return AssembledKernel(*main, layers, plain, moves, self.weights_move_new, self.target_scale)


def shard_rows(
    train_by_layer: Mapping[str, np.ndarray],
    new_by_layer: Mapping[str, np.ndarray],
    outputs: np.ndarray,
    outputs_new: np.ndarray,
    row_norms: Mapping[str, np.ndarray],
    scheduled: Mapping[str, np.ndarray] | None = None,
) -> list[dict]:
    """Return the rows of one ``jacobian`` artifact: each layer's blocks, f0, and the row norms per module.

    ``scheduled``: the shard's part of the blocks named in ``SCHEDULED``.
    """
    rows: list[dict] = []
    for block, parts in (("train", train_by_layer), ("new", new_by_layer)):
        for name in sorted(parts):
            rows += matrix_rows(parts[name], block=block, layer=name)
    rows += matrix_rows(outputs, block="outputs", layer="")
    rows += matrix_rows(outputs_new, block="outputs_new", layer="")
    for name, part in (scheduled or {}).items():
        rows += matrix_rows(part, block=name, layer="")
    for name in sorted(row_norms):
        rows += matrix_rows(np.asarray(row_norms[name])[None, :], block="row_norms", layer=name)
    return rows


def assemble(shards: Mapping[str, pa.Table]) -> AssembledKernel:
    """Return the kernel of all shards, given as path -> table.

    Raises ArtifactError when two shards hold the same layer, disagree on f0 (another model or other data), or a layer
    has one block only.
    """
    parts: dict[str, dict[str, np.ndarray]] = {"train": {}, "new": {}}
    outputs: dict[str, tuple[str, np.ndarray]] = {}
    scheduled: dict[str, Any] = {}
    for path, table in shards.items():
        for name in ("outputs", "outputs_new"):
            found = read_matrix(table, block=name, layer="")
            first_path, first = outputs.setdefault(name, (path, found))
            if first.shape != found.shape or not np.allclose(
                first, found, atol=OUTPUT_TOLERANCE, rtol=OUTPUT_TOLERANCE
            ):
                raise ArtifactError(f"{path}: f0 differs from that of {first_path}; the shards are of different models")
        for block, layer in sorted(set(zip(table["block"].to_pylist(), table["layer"].to_pylist(), strict=True))):
            if block in parts:
                if layer in parts[block]:
                    raise ArtifactError(f"{path}: layer {layer!r} is in another shard too")
                parts[block][layer] = read_matrix(table, block=block, layer=layer)
            elif block in SCHEDULED:
                scheduled[block] = scheduled.get(block, 0.0) + read_matrix(table, block=block, layer=layer)
    if set(parts["train"]) != set(parts["new"]) or not parts["train"]:
        raise ArtifactError("the shards do not hold the same layers for training and for new examples")
    return AssembledKernel(
        train=sum_in_name_order(parts["train"]),
        new=sum_in_name_order(parts["new"]),
        outputs=outputs["outputs"][1],
        outputs_new=outputs["outputs_new"][1],
        by_layer=parts["train"],
        **scheduled,
    )


def read_gram(table: pa.Table) -> AssembledKernel:
    """Return the kernel of a ``gram`` artifact (without the split by layer)."""
    known = set(table["block"].to_pylist())
    names = ("train", "new", "outputs", "outputs_new", *(name for name in SCHEDULED if name in known))
    blocks = {name: read_matrix(table, block=name) for name in names}
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
