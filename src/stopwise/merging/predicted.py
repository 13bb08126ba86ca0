"""The rows of the ``arithmetic_prediction`` artifact: addition and negation as the kernels predict them (numpy)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from stopwise.artifacts.gram import AssembledKernel, read_gram
from stopwise.artifacts.sample import Sample, read_sample
from stopwise.artifacts.tables import ArtifactError, read_matrix, read_provenance, read_table
from stopwise.artifacts.task_blocks import TaskBlocks
from stopwise.merging.tangent_space import TangentSpace, TangentTask, filter_weights, fitted_weights, outside_theory
from stopwise.training.settings import FinetuneSettings

Row = dict[str, Any]
HELD_OUT = ("validation", "test")
# How c is found: from the filter at the kept step (the theory), or by least squares on the trained outputs.
METHODS = ("filter", "least_squares")


def tangent_task(
    sample: Sample,
    gram: AssembledKernel,
    kept: Mapping[str, Any],
    outputs: pa.Table,
    settings: FinetuneSettings,
    method: str,
    seed: int = 0,
) -> TangentTask:
    """Return one task with its c: ``gram`` its own kernel, ``kept`` its row of the vector index.

    ``outputs``: the ``finetune_outputs`` of the training, read by ``least_squares`` only. Raises
    ArtifactError when the outputs at the kept step are not there.
    """
    n, step = kept["n"], kept["step"]
    kernel = gram.leading(n)
    if method == "filter":
        spec = kernel.spectrum(settings.intercept)
        residual = sample.targets("train", settings.outputs, settings.target_scale, n) - kernel.outputs
        weights = filter_weights(spec, residual, settings, step, seed)
    else:
        weights = fitted_weights(kernel.train, _trained_change(outputs, n, step))
    return TangentTask(
        kernel,
        {"train": sample.labels("train", n)} | {split: sample.labels(split) for split in HELD_OUT},
        sample.class_count,
        weights,
        np.asarray(kept["intercept"], dtype=np.float64),
        settings.outputs,
        settings.target_scale,
    )


def _trained_change(outputs: pa.Table, n: int, step: int) -> np.ndarray:
    """Return f(theta_step) - f0 on the training rows of a recorded run."""
    at = set(outputs.column("step").to_pylist())
    if not {0, step} <= at:
        raise ArtifactError(f"the recorded outputs hold no step {step} of a training on {n} examples")
    first, last = (read_matrix(outputs, n=n, step=s, split="train") for s in (0, step))
    return last - first


def points(tasks: Sequence[str], coefficients: Sequence[float]) -> Iterator[tuple[str, str, str | None, float]]:
    """Yield (kind, task_a, task_b, coefficient) of every addition of a pair and every negation."""
    for a, b in itertools.combinations(tasks, 2):
        yield from (("addition", a, b, c) for c in coefficients)
    for a in tasks:
        yield from (("negation", a, None, c) for c in coefficients)


def prediction_rows(space: TangentSpace, coefficients: Sequence[float], method: str) -> list[Row]:
    """Return predicted loss and accuracy at every point of the grid, on both tasks (addition) or all (negation)."""
    rows = []
    for kind, a, b, c in points(list(space.tasks), coefficients):
        point = {a: -c} if b is None else {a: c, b: c}
        for task, split in itertools.product(space.tasks if b is None else (a, b), HELD_OUT):
            loss, accuracy = space.judge(point, task, split)
            start, single = (space.judge(alone, task, split) for alone in ({}, {task: 1.0}))
            rows.append(
                {
                    "method": method,
                    "kind": kind,
                    "task_a": a,
                    "task_b": b,
                    "coefficient": float(c),
                    "task": task,
                    "split": split,
                    "loss": loss,
                    "accuracy": accuracy,
                    "loss_zero_shot": start[0],
                    "loss_single": single[0],
                    "accuracy_single": single[1],
                }
            )
    return rows


def disentanglement_rows(space: TangentSpace, coefficients: Sequence[float], method: str) -> list[Row]:
    """Return the predicted disentanglement error over the plane of coefficients of every pair, on test examples."""
    return [
        {"method": method, "task_a": a, "task_b": b, "c_a": x, "c_b": y, "xi": space.disentanglement(a, b, x, y)}
        for a, b in itertools.combinations(space.tasks, 2)
        for x, y in itertools.product(map(float, coefficients), repeat=2)
    ]


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
