"""A ``Workbench`` read from a run's artifacts: one seed's task vectors and held-out examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stopwise.arithmetic import TaskData, Workbench
from stopwise.artifacts import ArtifactError, read_provenance
from stopwise.samples import read_sample
from stopwise.task_vectors import TaskVector
from stopwise.tasks import batch_from_table


def read_bench(
    model: Any,
    fingerprint: str,
    names: Sequence[str],
    data: Sequence[str],
    index: Sequence[str],
    vectors: Sequence[str],
    options: Mapping[str, Any],
) -> tuple[Workbench, str]:
    """Return the bench of the named tasks on a model, and the digests of their data; the lists hold paths by task.

    ``options``: outputs and target_scale of the training. Raises ArtifactError naming a vector index of another model.
    """
    tasks, digests = {}, []
    for name, path, own_index, vector in zip(names, data, index, vectors, strict=True):
        if read_provenance(own_index)["model"] != fingerprint:
            raise ArtifactError(f"{own_index}: trained from another model than the one at hand; remove it")
        sample = read_sample(path)
        digests.append(sample.digest)
        validation, test = (
            batch_from_table(sample.table, split, verbalizers=sample.verbalizers) for split in ("validation", "test")
        )
        tasks[name] = TaskData(TaskVector.load(vector), validation, test)
    return Workbench(model, tasks, **options), ",".join(digests)
