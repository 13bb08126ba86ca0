"""What clipping and weight decay need of the network beside its kernel, for the layers of one shard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from stopwise.kernel.formulas import plan_terms
from stopwise.kernel.ntk import empirical_ntk
from stopwise.network.learner import Prompts, TangentLearner
from stopwise.network.parameters import held, select_parameters

TOKENS = 1024  # padded tokens of one pass


def plain_kernel(
    model: Any,
    train: Mapping[str, Any],
    kernel: Mapping[str, Any],
    layers: Sequence[str],
    device: str,
    over_ranks: bool = False,
) -> np.ndarray:
    """Return J J' [m, m] of the layers, whose quadratic form is their part of a gradient's squared norm.

    ``kernel``: the configuration's section; ``over_ranks``: see ``empirical_ntk``. Cost: the passes of a kernel over
    ``train``.
    """
    options = {key: kernel[key] for key in ("parameters", "outputs", "memory_gb")}
    options |= {"layers": layers, "device": device, "over_ranks": over_ranks}
    return empirical_ntk(model, train, formula="sgd", **options).matrix


def weights_move(
    model: Any, batch: Mapping[str, Any], kernel: Mapping[str, Any], layers: Sequence[str] | None = None
) -> np.ndarray:
    """Return J theta_0 [n, columns], float64: where the outputs go as the trained weights of the layers grow.

    Weight decay moves the linearised network against it. Cost: a forward-mode pass over the batch.
    """
    chosen = select_parameters(model, held(model, kernel["parameters"]))
    if layers is not None:
        inside = {term.name for term in plan_terms(model, chosen) if term.layer in layers}
        chosen = {name: parameter for name, parameter in chosen.items() if name in inside}
    learner = TangentLearner(model, chosen, kernel["outputs"])
    for delta, parameter in zip(learner.tensors, learner.parameters.values(), strict=True):
        delta.copy_(parameter.detach())
    with torch.no_grad():
        return learner.displaced(Prompts.of(batch, TOKENS, model))[1].astype(np.float64)
