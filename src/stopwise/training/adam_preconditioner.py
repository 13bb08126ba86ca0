"""What AdamW divides by, read before the first step: the diagonal D of the kernel J D J' that its training follows.

Adam moves a parameter by -alpha m / (sqrt(v) + eps), m and v running means of the mini-batch gradient and its square.
Near the start v is the mean square of the gradients at the start, E[g_B^2] = (E g_B)^2 + Var(g_B): with batches of few
examples mostly noise, which training changes little. Held there, D = 1/(sqrt(v) + eps) is constant, and Adam is descent
with momentum on the linearised model in the metric D: outputs move by -alpha J D J' (d loss/d f), so that J D J' takes
the place of K = J J' in everything that the kernel says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from stopwise.kernel.formulas import plan_terms
from stopwise.linearized.objectives import Objective
from stopwise.linearized.replay import draw_batches
from stopwise.network.learner import Learner, Prompts
from stopwise.network.parameters import select_parameters
from stopwise.training.settings import ADAM_EPS, FinetuneSettings


def adam_preconditioner(
    model: Any,
    train: Mapping[str, Any],
    settings: FinetuneSettings,
    seed: int = 0,
    layers: Sequence[str] | None = None,
) -> dict[str, torch.Tensor]:
    """Return D = 1/(sqrt(v) + 1e-8) by parameter, v the mean of g_B^2 over the batches of the first epoch.

    The batches are those that training with this ``seed`` draws first, g_B the gradient of ``settings.objective`` at
    the start, on targets less b_hat where the intercept is fitted. A parameter whose gradient is zero in all of them is
    not moved: its D is 0. ``layers``: the parameters of these only (a shard; names of ``kernel_layers``). Cost: one
    forward and one backward pass over ``train`` and a forward pass for b_hat; memory: three times the parameters. The
    model comes back as it was. Raises ValueError for adapters, half of whose gradients are zero at the start.
    """
    if settings.parameters == "lora" or isinstance(settings.parameters, Mapping):
        raise ValueError("preconditioner: half of an adapter's (lora) gradients are zero at the start; train weights")
    chosen = select_parameters(model, settings.parameters)
    if layers is not None:
        inside = {term.name for term in plan_terms(model, chosen) if term.layer in layers}
        chosen = {name: parameter for name, parameter in chosen.items() if name in inside}
    learner = Learner(model, chosen, settings.outputs, settings.autocast)
    prompts = Prompts.of(train, settings.tokens_per_batch, model)
    coding = len(prompts.verbalizers), settings.outputs, settings.target_scale
    objective = Objective(settings.objective, np.asarray(train["labels"]), *coding, np.zeros(1))
    if settings.objective == "squared" and settings.intercept == "fitted":
        objective = objective.with_intercept(objective.fitted_intercept(learner.predict(prompts)))
    n, size = len(prompts), settings.batch_size or len(prompts)
    batches = draw_batches(n, size, max(1, n // size), seed)
    # A sum of many small squares stalls in half precision.
    squares = [torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32)) for p in chosen.values()]
    with learner.trainable():
        for batch in batches:
            rows = prompts.rows(batch, settings.tokens_per_batch)
            _, gradients = learner.gradient(rows, objective.rows(batch).gradient)
            for square, gradient in zip(squares, gradients, strict=True):
                square.addcmul_(gradient.to(square), gradient.to(square), value=1 / len(batches))
    divided = (torch.where(v > 0, 1 / (v.sqrt() + ADAM_EPS), 0.0) for v in squares)
    return dict(zip(chosen, divided, strict=True))
