"""Tangent spaces read from a run's artifacts: kernels, kept steps and trained outputs of one seed (no torch)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stopwise.arithmetic_prediction import METHODS, tangent_task
from stopwise.artifacts import ArtifactError, read_provenance, read_table
from stopwise.finetune_settings import FinetuneSettings
from stopwise.gram_assembly import read_gram
from stopwise.samples import read_sample
from stopwise.tangent_space import TangentSpace, outside_theory
from stopwise.task_blocks import TaskBlocks


@dataclass(frozen=True, eq=False)
class Spaces:
    """One tangent space per method of finding c, and where they come from."""

    by_method: dict[str, TangentSpace]
    model: str
    data: str
    outside: str | None


def read_spaces(
    names: Sequence[str],
    *,
    data: Sequence[str],
    gram: Sequence[str],
    index: Sequence[str],
    outputs: Sequence[str],
    blocks: Sequence[str],
    settings: FinetuneSettings,
    formula: str,
    size: int,
    seed: int,
) -> Spaces:
    """Return the tangent spaces of one seed's tasks; every argument but the last four is a list of paths, by task.

    ``blocks``: the shards of ``task_kernels``. The method ``filter`` is left out where the training lies outside the
    theory. Raises ArtifactError naming the file that is of another model, or holds no training of this size.
    """
    found = TaskBlocks.of_tables({path: read_table(path, "task_kernels") for path in blocks})
    model = read_provenance(blocks[0])["model"]
    for path in [*blocks, *gram, *index, *outputs]:
        if read_provenance(path)["model"] != model:
            raise ArtifactError(f"{path}: of another model than {blocks[0]}; remove it")
    parts, digests = {}, []
    for name, *paths in zip(names, data, gram, index, outputs, strict=True):
        kept = [row for row in read_table(paths[2], "vector_index").to_pylist() if row["n"] == size]
        if not kept:
            raise ArtifactError(f"{paths[2]}: no task vector of size {size}; remove it")
        sample, trained = read_sample(paths[0]), read_table(paths[3], "finetune_outputs")
        parts[name] = (sample, read_gram(read_table(paths[1], "gram")), kept[0], trained)
        digests.append(sample.digest)
    outside = outside_theory(settings, settings.parameters, formula)
    methods = [method for method in METHODS if method != "filter" or not outside]
    spaces = {
        method: TangentSpace({name: tangent_task(*own, settings, method, seed) for name, own in parts.items()}, found)
        for method in methods
    }
    return Spaces(spaces, model, ",".join(digests), outside)
