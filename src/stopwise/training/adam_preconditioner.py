"""What AdamW divides by, read before the first step: the diagonal D of the kernel J D J' that its training follows.

Adam moves a parameter by -alpha m / (sqrt(v) + eps), m and v running means of the mini-batch gradient and its square.
Near the start v is the mean square of the gradients at the start, E[g_B^2] = (E g_B)^2 + Var(g_B): with batches of few
examples mostly noise, which training changes little. Held there, D = 1/(sqrt(v) + eps) is constant, and Adam is descent
with momentum on the linearised model in the metric D: outputs move by -alpha J D J' (d loss/d f), so that J D J' takes
the place of K = J J' in everything that the kernel says.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from stopwise.kernel.batch_metric import BatchMetric
from stopwise.kernel.formulas import plan_terms
from stopwise.linearized.objectives import Objective
from stopwise.linearized.replay import draw_batches
from stopwise.network.batches import verbalizers_of
from stopwise.network.heads import evaluating
from stopwise.network.learner import Learner, Prompts
from stopwise.network.norms import euclidean
from stopwise.network.parameters import Subset, held, select_parameters
from stopwise.stopping.schedule_path import CLIP_EPS
from stopwise.training.settings import ADAM_EPS, FinetuneSettings

# Some trained parameters get no gradient at the start, although training moves them later: half of an adapter, whose
# other half is zero. Their part in the outputs is of second order in the moves, and D leaves it out.
SECOND_ORDER = "second_order_left_out"


class Preconditioner(dict[str, torch.Tensor]):
    """D by parameter name, entries >= 0 in the shapes of the parameters; ``flags`` are words that qualify it."""

    flags: tuple[str, ...] = ()


def adam_preconditioner(
    model: Any,
    train: Mapping[str, Any],
    settings: FinetuneSettings,
    seed: int = 0,
    layers: Sequence[str] | None = None,
) -> Preconditioner:
    """Return D = 1/(sqrt(v) + 1e-8) by parameter, v the mean of g_B^2 over the batches of the first epoch.

    The batches are those that training with this ``seed`` draws first, g_B the gradient of ``settings.objective`` at
    the start in evaluation mode, on targets less b_hat where the intercept is fitted. A parameter whose gradient is
    zero in all of them is not moved: its D is 0. Of a PEFT adapter at its start that is A, while B = 0: the kernel then
    holds B's part, and ``flags`` holds ``second_order_left_out``. ``layers``: the parameters of these only (a shard;
    names of ``kernel_layers``). Cost: one forward and one backward pass over ``train`` and a forward pass for b_hat;
    memory: three times the parameters. The model comes back as it was.
    """
    chosen = select_parameters(model, held(model, settings.parameters))
    wanted = set(chosen)
    if layers is not None:
        wanted = {term.name for term in plan_terms(model, chosen) if term.layer in layers}
    if settings.clip_norm is None:  # otherwise every parameter counts: the norm is over all of them
        chosen = {name: parameter for name, parameter in chosen.items() if name in wanted}
    with evaluating(model):
        squares = dict(zip(chosen, _mean_squares(model, chosen, train, settings, seed), strict=True))
    found = Preconditioner(
        {name: torch.where(v > 0, 1 / (v.sqrt() + ADAM_EPS), 0.0) for name, v in squares.items() if name in wanted}
    )
    if any("lora_A" in name and not bool(d.any()) for name, d in found.items()):
        found.flags = (SECOND_ORDER,)
    return found


def _mean_squares(
    model: Any,
    chosen: Mapping[str, torch.nn.Parameter],
    train: Mapping[str, Any],
    settings: FinetuneSettings,
    seed: int,
) -> list[torch.Tensor]:
    """Return the mean of the squared batch gradients of the first epoch, in the order of the parameters."""
    learner = Learner(model, chosen, settings.outputs, settings.autocast)
    prompts = Prompts.of(train, settings.tokens_per_batch, model)
    objective, fitted = _objective(train, len(prompts.verbalizers), settings)
    if fitted:
        objective = objective.with_intercept(objective.fitted_intercept(learner.predict(prompts)))
    batches = _first_epoch(len(prompts), settings, seed)
    limit = math.inf if settings.clip_norm is None else settings.clip_norm
    tokens = settings.tokens_per_batch
    return mean_squares(learner, prompts, objective, batches, max_norm=limit, tokens_per_batch=tokens)[0]


def own_metric(
    model: Any,
    train: Mapping[str, Any],
    settings: FinetuneSettings,
    seed: int = 0,
    layers: Sequence[str] | None = None,
) -> BatchMetric | Preconditioner:
    """Return what tells a kernel of ``train`` its D: to be read from its own rows, or D itself where those do not do.

    Arguments and D as of ``adam_preconditioner``, to rounding. Clipping needs the norms of whole gradients, and
    autocast rounds them otherwise than a kernel does: both need passes of their own.
    """

    def apart() -> Preconditioner:
        return adam_preconditioner(model, train, settings, seed, layers)

    if settings.clip_norm is not None or settings.autocast is not None:
        return apart()
    objective, fitted = _objective(train, len(verbalizers_of(train, None, model)), settings)
    batches = _first_epoch(len(train["labels"]), settings, seed)

    def cotangents(f0: np.ndarray) -> np.ndarray:
        own = objective.with_intercept(objective.fitted_intercept(f0)) if fitted else objective
        return batch_cotangents(own, f0, batches)

    return BatchMetric(cotangents, apart, eps=ADAM_EPS)


def batch_cotangents(
    objective: Objective, f: np.ndarray, batches: Sequence[np.ndarray], weights: Sequence[np.ndarray] | None = None
) -> np.ndarray:
    """Return the derivative of each batch's loss in the outputs f [n, columns]; float64 [batches, n, columns].

    ``weights``: of each example's loss in its batch's (None: the mean).
    """
    found = np.zeros((len(batches), *f.shape))
    for k, batch in enumerate(batches):
        share = np.ones(len(batch)) if weights is None else weights[k] * len(batch)
        found[k, batch] = objective.rows(batch).gradient(f[batch], np.arange(len(batch))) * share[:, None]
    return found


def _objective(train: Mapping[str, Any], classes: int, settings: FinetuneSettings) -> tuple[Objective, bool]:
    """Return the objective of training, and whether its intercept is to be fitted to the outputs at the start."""
    labels, coding = np.asarray(train["labels"]), (classes, settings.outputs, settings.target_scale)
    objective = Objective(settings.objective, labels, *coding, np.zeros(1))
    return objective, settings.objective == "squared" and settings.intercept == "fitted"


def _first_epoch(n: int, settings: FinetuneSettings, seed: int) -> list[np.ndarray]:
    size = settings.batch_size or n
    return draw_batches(n, size, max(1, n // size), seed)


def mean_squares(
    learner: Learner,
    prompts: Prompts,
    objective: Objective,
    batches: Sequence[np.ndarray],
    weights: Sequence[np.ndarray] | None = None,
    max_norm: float = math.inf,
    tokens_per_batch: int = 1024,
    progress: bool = False,
) -> tuple[list[torch.Tensor], np.ndarray]:
    """Return the mean of g_B^2 over batches, g_B clipped to ``max_norm``, by parameter, and the norms |g_B| [batches].

    ``weights``: of each example's loss in its batch's (None: the mean). Cost: a forward and a backward pass a batch.
    """
    # A sum of many small squares stalls in half precision.
    squares = [torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32)) for p in learner.tensors]
    norms = np.zeros(len(batches))
    with learner.trainable():
        for k, batch in enumerate(tqdm(batches, desc="gradients", unit="batch", disable=not progress)):
            part, share = objective.rows(batch), np.ones(len(batch)) if weights is None else weights[k] * len(batch)

            def cotangent(f: np.ndarray, index: np.ndarray, part: Any = part, share: Any = share) -> np.ndarray:
                return part.gradient(f, index) * share[index][:, None]

            _, gradients = learner.gradient(prompts.rows(batch, tokens_per_batch), cotangent)
            norms[k] = math.sqrt(sum(euclidean(g) ** 2 for g in gradients))
            clipped = min(1.0, max_norm / (norms[k] + CLIP_EPS))
            for square, gradient in zip(squares, gradients, strict=True):
                square.addcmul_(gradient.to(square), gradient.to(square), value=clipped**2 / len(batches))
    return squares, norms


def preconditioner_from_optimizer(model: Any, optimizer: Any, parameters: Subset = "trainable") -> Preconditioner:
    """Return D = 1/(sqrt(v_hat) + eps) by parameter from a running Adam or AdamW: what its next step divides by.

    ``optimizer``: torch.optim.Adam or AdamW, or a wrapper with such an ``.optimizer``; v_hat is its ``exp_avg_sq``
    (``max_exp_avg_sq`` under amsgrad), corrected for its bias by the step count and beta2 of its group. Groups may have
    learning rates of their own: D is multiplied by a group's rate over that of the first group (``initial_lr`` where a
    schedule has set it). ``parameters``: see ``select_parameters``; one that the optimizer does not move gets D = 0.
    Raises ValueError for an optimizer that has taken no step, or that keeps no squares.
    """
    inner = getattr(optimizer, "optimizer", optimizer)
    slots = {
        id(parameter): (inner.state.get(parameter) or {}, group)
        for group in inner.param_groups
        for parameter in group["params"]
    }
    base = _rate(inner.param_groups[0]) if inner.param_groups else 0.0
    found, known = Preconditioner(), 0
    for name, parameter in select_parameters(model, parameters).items():
        state, group = slots.get(id(parameter), ({}, {}))
        if "exp_avg_sq" not in state:
            found[name] = torch.zeros_like(parameter)
            continue
        known += 1
        square = state["max_exp_avg_sq" if group.get("amsgrad") else "exp_avg_sq"].detach()
        corrected = square / (1 - group["betas"][1] ** float(state["step"]))
        share = _rate(group) / base if base else 1.0
        found[name] = torch.where(corrected > 0, share / (corrected.sqrt() + group["eps"]), 0.0).to(parameter.device)
    if not known:
        raise ValueError(
            f"preconditioner: {type(inner).__name__} holds no exp_avg_sq of these parameters; take at least one step of"
            " Adam or AdamW over them first, or use adam_preconditioner"
        )
    return found


def _rate(group: Mapping[str, Any]) -> float:
    return float(group.get("initial_lr", group["lr"]))
