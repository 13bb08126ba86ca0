"""From the kernels between blocks of examples to one Gram matrix: every block put in its place, each exactly once.

The counterpart of ``artifacts.gram.assemble`` for jobs that share the examples and not the layers (``block_pairs``).
Works on their tables alone: no network, no torch. Memory: the kernel and one job's table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from stopwise.artifacts.block_pairs import new_block_count, pair_jobs, ranges
from stopwise.artifacts.gram import OUTPUT_TOLERANCE, SUM, AssembledKernel, sum_in_name_order
from stopwise.artifacts.tables import ArtifactError, matrix_table, read_matrix

KIND = "jacobian_block"
Key = tuple[str, str, int, int]  # block, layer, and the blocks of examples of its rows and columns

# Whose rows and columns a block has, and whether its mirror image belongs to it; of one column a row: no columns.
MATRICES = {"train": ("train", "train"), "new": ("new", "train"), "plain": ("train", "train")}
VECTORS = {"outputs": "train", "outputs_new": "new", "weights_move": "train", "weights_move_new": "new"}
REPEATED = ("outputs", "outputs_new")  # every job that runs a block of examples has them
ADDED = ("moments", "ones")  # sums to which every job adds its part


def block_table(found: Mapping[Key, np.ndarray]) -> pa.Table:
    """Return the ``jacobian_block`` artifact of one job.

    ``found``: (block, layer, left, right) -> matrix. Beside the blocks of a shard: ``moments`` [1, 2 + (q + 2)^2], what
    the job adds to trace, sum of squares and ``crossed`` of a layer, and ``ones`` [rows of left, q], what it adds to
    K_l E (see ``kernel.moments``). ``right`` of what has no columns by example is ``left``.
    """
    blocks = []
    for (block, layer, left, right), matrix in sorted(found.items()):
        blocks.append(({"block": block, "layer": layer, "left": left, "right": right}, matrix))
    return matrix_table(blocks, KIND)


def assemble_blocks(
    files: Mapping[str, pa.Table | Callable[[], pa.Table]], blocks: int, examples: int, new: int
) -> AssembledKernel:
    """Return the kernel of ``examples`` training and ``new`` further ones from the jobs of ``pair_jobs(blocks)``.

    ``files``: path -> table, or a function that reads it when its turn comes. K(train, train) is symmetric to the bit.
    Raises ArtifactError when two files hold the same block, one is missing or has another shape than these numbers of
    examples ask for, or files disagree on f0 (another model or other data).
    """
    whole = _Whole(blocks, examples, new)
    for path, given in files.items():
        whole.add(path, given() if callable(given) else given)
    return whole.kernel()


@dataclass
class _Whole:
    """The kernel as far as it has been put together."""

    blocks: int
    examples: int
    new: int
    columns: int = 0
    matrices: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)
    vectors: dict[str, np.ndarray] = field(default_factory=dict)
    added: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)
    seen: dict[Key, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.ranges = {
            "train": ranges(self.examples, self.blocks),
            "new": ranges(self.new, new_block_count(self.blocks)),
        }

    def add(self, path: str, table: pa.Table) -> None:
        """Put one job's blocks in their places."""
        labels = ("block", "layer", "left", "right")
        keys = sorted(set(zip(*(table[name].to_pylist() for name in labels), strict=True)), key=_outputs_first)
        for key in keys:
            found = read_matrix(table, **dict(zip(labels, key, strict=True)))
            if key in self.seen and key[0] not in REPEATED and key[0] != "ones":
                raise ArtifactError(f"{path}: {_told(key)} is in {self.seen[key]} too")
            first = self.seen.setdefault(key, path)
            if key[0] in MATRICES:
                self._place_matrix(path, key, found)
            elif key[0] in VECTORS:
                self._place_vector(path, key, found, first)
            elif key[0] in ADDED:
                self._add_up(path, key, found)

    def _place_matrix(self, path: str, key: Key, found: np.ndarray) -> None:
        block, layer, left, right = key
        row_side, column_side = MATRICES[block]
        rows, cols = self._rows(path, key, row_side, left), self._rows(path, key, column_side, right)
        self._check_shape(path, key, found, (rows.stop - rows.start, cols.stop - cols.start))
        if (block, layer) not in self.matrices:
            self.matrices[block, layer] = np.zeros((self._width(row_side), self._width(column_side)))
        whole = self.matrices[block, layer]
        whole[rows, cols] = found
        if row_side == column_side and left != right:
            whole[cols, rows] = found.T

    def _place_vector(self, path: str, key: Key, found: np.ndarray, first: str) -> None:
        block, side = key[0], VECTORS[key[0]]
        if not self.columns:
            self.columns = found.shape[1]
        rows = self._range(path, key, side, key[2])
        self._check_shape(path, key, found, (rows.stop - rows.start, self.columns))
        count = self.examples if side == "train" else self.new
        whole = self.vectors.setdefault(block, np.zeros((count, self.columns)))
        if first == path:
            whole[rows] = found
        elif not np.allclose(whole[rows], found, atol=OUTPUT_TOLERANCE, rtol=OUTPUT_TOLERANCE):
            raise ArtifactError(f"{path}: f0 differs from that of {first}; the files are of different models")

    def _add_up(self, path: str, key: Key, found: np.ndarray) -> None:
        block, layer, left, _ = key
        if block == "moments":
            held = self.added.setdefault((block, layer), np.zeros(found.shape[1]))
            held += found[0]
            return
        rows = self._rows(path, key, "train", left)
        self._check_shape(path, key, found, (rows.stop - rows.start, self.columns))
        whole = self.added.setdefault((block, layer), np.zeros((self._width("train"), self.columns)))
        whole[rows] += found

    def kernel(self) -> AssembledKernel:
        """Return the kernel; ArtifactError naming the first block that is missing."""
        self._check_complete()
        layers = {block: {layer: m for (b, layer), m in self.matrices.items() if b == block} for block in MATRICES}
        kept, others = layers["train"], dict(layers["plain"])
        if set(kept) != set(layers["new"]) or (SUM in kept and len(kept) > 1):
            raise ArtifactError("the files do not hold the same layers for training and for new examples")
        summed = SUM in kept
        train, new = (layers[block][SUM] if summed else sum_in_name_order(layers[block]) for block in ("train", "new"))
        return AssembledKernel(
            train,
            new,
            self.vectors["outputs"],
            self.vectors["outputs_new"],
            {} if summed else kept,
            plain=others.get(""),
            weights_move=self.vectors.get("weights_move"),
            weights_move_new=self.vectors.get("weights_move_new"),
            moments=self._moments(),
        )

    def _moments(self) -> dict[str, np.ndarray]:
        """Return what is known of each layer, as ``kernel.moments.Moments.vector`` writes it."""
        found = {}
        for (block, layer), sums in self.added.items():
            if block == "moments":
                ones = float((self.added["ones", layer] ** 2).sum())
                found[layer] = np.concatenate([sums[:2], [ones], sums[2:]])
        return found

    def _check_complete(self) -> None:
        layers = {(block, layer) for block, layer, *_ in self.seen if block in MATRICES}
        if not {"train", "new"} <= {block for block, _ in layers}:
            raise ArtifactError("the files hold no kernel of training and new examples")
        moments = {layer for block, layer, *_ in self.seen if block == "moments"}
        wanted: list[Key] = []
        for job in pair_jobs(self.blocks):
            pairs = {"train": [(job.left, job.right), *((own, own) for own in job.own)], "new": list(job.new)}
            pairs["plain"] = pairs["train"]
            wanted += [(block, layer, *pair) for block, layer in sorted(layers) for pair in pairs[block]]
            wanted += [("moments", layer, job.left, job.right) for layer in sorted(moments)]
        for name, side in VECTORS.items():
            if name in self.vectors or name in REPEATED:
                wanted += [(name, "", piece, piece) for piece in range(len(self.ranges[side]))]
        for key in wanted:
            empty = key[0] in ("new", "outputs_new", "weights_move_new") and self._empty_new(key[2])
            if key not in self.seen and not empty:
                raise ArtifactError(f"{_told(key)} is in none of the files; remove them and run again")

    def _empty_new(self, piece: int) -> bool:
        rows = self.ranges["new"][piece]
        return rows.start == rows.stop

    def _range(self, path: str, key: Key, side: str, piece: int) -> slice:
        if not 0 <= piece < len(self.ranges[side]):
            raise ArtifactError(f"{path}: {_told(key)} does not belong to {self.blocks} blocks; remove it")
        return self.ranges[side][piece]

    def _rows(self, path: str, key: Key, side: str, piece: int) -> slice:
        found = self._range(path, key, side, piece)
        return slice(found.start * self.columns, found.stop * self.columns)

    def _width(self, side: str) -> int:
        return (self.examples if side == "train" else self.new) * self.columns

    def _check_shape(self, path: str, key: Key, found: np.ndarray, wanted: tuple[int, int]) -> None:
        if found.shape != wanted:
            raise ArtifactError(
                f"{path}: {_told(key)} is {found.shape[0]} x {found.shape[1]}, and {self.examples} training and"
                f" {self.new} new examples in {self.blocks} blocks make it {wanted[0]} x {wanted[1]}; remove it"
            )


def _outputs_first(key: Key) -> tuple[bool, Key]:
    """Sort what says the number of columns before all else."""
    return key[0] != "outputs", key


def _told(key: Key) -> str:
    """Return a block in words."""
    block, layer, left, right = key
    return f"block {block}{f' of layer {layer!r}' if layer else ''} of blocks {left} and {right}"
