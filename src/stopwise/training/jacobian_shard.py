"""One Jacobian shard: the kernel of some layers, and what a schedule needs of the network beside it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from stopwise.artifacts.gram import SUM, keeps_layers, shard_table
from stopwise.artifacts.sample import Sample
from stopwise.kernel.ntk import kernel_layers, layer_costs, split_layers, train_and_new_kernels
from stopwise.network.adapters import trained
from stopwise.network.parameters import held, select_parameters
from stopwise.tasks.batch import batch_from_table
from stopwise.training.adam_preconditioner import own_metric
from stopwise.training.decayed import plain_kernel, weights_move
from stopwise.training.settings import FinetuneSettings


def jacobian_shard(
    model: Any,
    sample: Sample,
    kernel: Mapping[str, Any],
    shard: tuple[int, int],
    *,
    seed: int = 0,
    device: str = "cpu",
    source: str = "",
    adam: Mapping[str, Any] | None = None,
    scheduled: Collection[str] = (),
    over_ranks: bool = False,
) -> tuple[pa.Table, dict[str, Any]]:
    """Return the ``jacobian`` artifact of shard (number, of how many), and how its passes were planned.

    ``kernel``: the configuration's section; ``source``: the model's name; ``adam``: the settings of the training
    whose preconditioner weighs it; ``scheduled``: of ``clip_norm`` and ``weight_decay``, what training asks for;
    ``over_ranks``: whether all processes of torch.distributed share the work, and the first one gets the artifact.
    Raises ValueError for more shards than layers and for outputs that are not finite.
    """
    kernel = trained(kernel)
    train = batch_from_table(sample.table, "train", verbalizers=sample.verbalizers)
    new = batch_from_table(sample.table, ("validation", "test"), verbalizers=sample.verbalizers)
    names = kernel_layers(model, kernel["parameters"])
    layers = _layers_of(model, kernel, names, *shard)
    options: dict[str, Any] = {}
    if adam:
        settings = FinetuneSettings(**trained(adam))
        options["preconditioner"] = own_metric(model, train, settings, seed, layers)
        if "weight_decay" in scheduled and kernel["formula"] == "adam" and not over_ranks:
            options["along"] = select_parameters(model, held(model, kernel["parameters"]))
    y = sample.targets("train", kernel["outputs"], 1.0)
    keeps = keeps_layers(kernel.get("layers"), y.size, y.shape[1] * sample.table.num_rows, len(names))
    among_train, with_new = train_and_new_kernels(
        model,
        train,
        new,
        **{key: kernel[key] for key in ("parameters", "outputs", "formula", "memory_gb")},
        layers=layers,
        device=device,
        progress=True,
        by="layer" if keeps else "total",
        targets={"train": y},
        products=kernel.get("products", "float32"),
        over_ranks=over_ranks,
        **options,
    )
    check_outputs((among_train.outputs, with_new.outputs), source)
    beside = {}
    if "clip_norm" in scheduled and kernel["formula"] == "adam":
        beside["plain"] = plain_kernel(model, train, kernel, layers, device, over_ranks)
    if "weight_decay" in scheduled:
        for name, found, batch in (("weights_move", among_train, train), ("weights_move_new", with_new, new)):
            beside[name] = weights_move(model, batch, kernel, layers) if found.moves is None else found.moves
    table = shard_table(
        among_train.by_layer if keeps else {SUM: among_train.matrix},
        with_new.by_layer if keeps else {SUM: with_new.matrix},
        among_train.outputs,
        with_new.outputs,
        among_train.row_norms,
        beside,
        among_train.moments,
    )
    return table, among_train.plan


def check_outputs(outputs: Sequence[np.ndarray], source: str) -> None:
    """Raise ValueError, naming the model, where outputs at the start are not finite."""
    if not all(np.isfinite(f).all() for f in outputs):
        raise ValueError(
            f"config key model.source: the outputs of {source!r} are not finite at the start; its weights or"
            " model.dtype cannot be used"
        )


def _layers_of(model: Any, kernel: Mapping[str, Any], names: Sequence[str], number: int, count: int) -> list[str]:
    layers = split_layers(names, layer_costs(model, kernel["parameters"]), count)[number]
    if not layers:
        raise ValueError(f"config key kernel.shards: {count} shards for {len(names)} layers; allowed: up to that many")
    return list(layers)
