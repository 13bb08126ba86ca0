"""Kernel blocks between different tasks, K[a, b], split by layer and by module type (numpy, no torch).

Tasks differ in their number of rows, so several tasks' kernel is a dict of blocks and never one array. A task's own
blocks K[a, a] are not here: the ``gram`` artifact has them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from stopwise.artifacts.gram import sum_in_name_order
from stopwise.artifacts.tables import ArtifactError

# (block, a, b): block `train` is K(training rows of a, training rows of b), stored for a before b; block `new` is
# K(held-out rows of a, training rows of b), stored for all a != b.
Key = tuple[str, str, str]
BLOCKS = ("train", "new")
GROUPINGS = ("layer", "type")


@dataclass(frozen=True, eq=False)
class TaskBlocks:
    """Parts of every block: grouping (``layer``, ``type``) -> name of the part -> key -> float64 [rows, width].

    Parts of one grouping add up to the block; it is *defined* as the sum over layers in name order.
    """

    parts: Mapping[str, Mapping[str, Mapping[Key, np.ndarray]]]

    def whole(self, block: str, a: str, b: str) -> np.ndarray:
        """Return K[a, b], the sum over layers. Raises ArtifactError for a pair that is not there."""
        return sum_in_name_order(self.split("layer", block, a, b))

    def split(self, grouping: str, block: str, a: str, b: str) -> dict[str, np.ndarray]:
        """Return the parts of K[a, b] by name; K(train a, train b) is served from its transpose where needed."""
        found = {}
        for name, blocks in self.parts[grouping].items():
            if (block, a, b) in blocks:
                found[name] = blocks[block, a, b]
            elif block == "train" and (block, b, a) in blocks:
                found[name] = blocks[block, b, a].T
            else:
                raise ArtifactError(f"no kernel block {block!r} of tasks {a!r} and {b!r}")
        return found

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows of a ``task_kernels`` artifact: one whole matrix a row."""
        return [
            {
                "grouping": grouping,
                "part": name,
                "block": block,
                "task_a": a,
                "task_b": b,
                "rows": matrix.shape[0],
                "values": np.ascontiguousarray(matrix, dtype="<f8").tobytes(),
            }
            for grouping, named in sorted(self.parts.items())
            for name, blocks in sorted(named.items())
            for (block, a, b), matrix in sorted(blocks.items())
        ]

    @classmethod
    def of_tables(cls, shards: Mapping[str, pa.Table]) -> TaskBlocks:
        """Return the blocks of all shards, given as path -> table.

        Layers are whole in one shard; module types are added up over shards. Raises ArtifactError when two shards hold
        the same layer.
        """
        parts: dict[str, dict[str, dict[Key, np.ndarray]]] = {grouping: {} for grouping in GROUPINGS}
        for path, table in shards.items():
            for row in table.to_pylist():
                blocks = parts[row["grouping"]].setdefault(row["part"], {})
                key = row["block"], row["task_a"], row["task_b"]
                matrix = np.frombuffer(row["values"], dtype="<f8").reshape(row["rows"], -1)
                if key not in blocks:
                    blocks[key] = matrix
                elif row["grouping"] == "layer":
                    raise ArtifactError(f"{path}: layer {row['part']!r} is in another shard too")
                else:
                    blocks[key] = blocks[key] + matrix
        return cls(parts)
