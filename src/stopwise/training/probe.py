"""A new head that starts as a logistic regression on the network's features, and not at random.

Fine-tuning from such a start (linear probing first: Kumar et al., ICLR 2022; Tomihari & Sato, 2024) changes features
less, so that the kernel read at the start describes more of what follows: at a random head that is almost zero the
part of the body in the kernel is almost nothing, and it grows manyfold within an epoch.

The regression has seen the labels. What the network says of an example that training leaves out therefore starts from
the regression without that example, for each example one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import log_softmax
from torch import nn

from stopwise.linearized.coding import coding_matrix
from stopwise.network.heads import accepts, class_count, evaluating, head_modules
from stopwise.stopping.leave_one_out import leave_out_groups

# Penalties that are tried, of features with a mean squared norm of 1.
PENALTIES = tuple(np.geomspace(1e-1, 1e-5, 9))
FOLDS = 8
# Up to so many unknowns Newton's method is the cheaper one.
NEWTON, NEWTON_STEPS, NEWTON_TOLERANCE = 600, 50, 1e-8
INPUTS = ("input_ids", "attention_mask", "token_type_ids")


@dataclass(frozen=True, eq=False)
class Probe:
    """A regularised multinomial logistic regression on the features of a network, as the last layer of its head.

    ``weight`` [C, d] and ``bias`` [C] (None where the layer has none): logits are features @ weight.T + bias.
    ``penalty``: gamma in mean log-loss + gamma/2 |W|^2 on scaled features, chosen by cross-validation. ``left_out``
    float64 [groups, n, C]: the logits of all examples by the regression without a group of ``leave_out_groups``.
    ``space``: what the regression was fitted in.
    """

    weight: np.ndarray
    bias: np.ndarray | None
    penalty: float
    left_out: np.ndarray = field(repr=False)
    space: _Space = field(repr=False)

    def trained_on(self, index: np.ndarray) -> np.ndarray:
        """Return the logits of all examples by the regression on some of them, with the same penalty; [n, C]."""
        return self.space.without(np.setdiff1d(np.arange(len(self.space.labels)), index))


@dataclass(frozen=True, eq=False)
class _Space:
    """The features that regressions are fitted in, ``z`` [n, k], and the regression on all examples, ``whole``."""

    z: np.ndarray
    labels: np.ndarray
    classes: int
    penalty: float
    intercept: bool
    whole: np.ndarray

    def without(self, group: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return the logits of all examples by the regression without some of them, [n, C]."""
        rest = _without(self.z, self.labels, group)
        return _logits(self.z, _regression(*rest, self.classes, self.penalty, self.intercept, self.whole))


def final_layer(model: Any) -> nn.Linear:
    """Return the linear layer of a classifier's head that gives the logits; ValueError where there is none."""
    found = [m for m in head_modules(model) if isinstance(m, nn.Linear) and m.out_features == class_count(model)]
    if not found:
        raise ValueError(f"model: the head of {type(model).__name__} ends in no linear layer; start it at random")
    return found[-1]


def features(model: Any, batch: Mapping[str, Any], size: int = 16) -> np.ndarray:
    """Return what the last layer of the head reads of each example, in evaluation mode; float64 [n, d].

    Of a head that reads one token of many, the features are those of this token. Cost: one forward pass.
    """
    layer, rows = final_layer(model), []
    kept: list[torch.Tensor] = []

    def hook(module: nn.Module, args: tuple, out: torch.Tensor) -> torch.Tensor:
        kept[:] = [args[0].detach(), out.detach().requires_grad_(True)]
        return kept[1]

    names = [name for name in INPUTS if name in batch and (name != "token_type_ids" or accepts(model, name))]
    device, handle = layer.weight.device, layer.register_forward_hook(hook)
    try:
        with evaluating(model), torch.enable_grad():
            for s in range(0, len(batch["input_ids"]), size):
                logits = model(**{name: torch.as_tensor(batch[name])[s : s + size].to(device) for name in names}).logits
                given, out = kept
                # Which of its rows the logits are, their gradient says: 1 there, 0 elsewhere.
                read = torch.autograd.grad(logits[:, 0].sum(), out)[0][..., 0]
                rows.append(torch.einsum("bt,btd->bd", read, given) if given.ndim == 3 else given)
    finally:
        handle.remove()
    return torch.cat(rows).double().cpu().numpy()


def fit_probe(model: Any, batch: Mapping[str, Any], labels: np.ndarray, seed: int = 0, left_out: bool = True) -> Probe:
    """Return the probe of a classifier on the examples of a batch; the model is not changed (see ``start_at``).

    ``left_out`` False leaves out what it says without each example. Cost: one forward pass over the examples, and n +
    73 regressions in n dimensions.
    """
    classes, layer = class_count(model), final_layer(model)
    phi, intercept = features(model, batch), layer.bias is not None
    mean = phi.mean(axis=0) if intercept else np.zeros(phi.shape[1])
    u, s, vt = np.linalg.svd(phi - mean, full_matrices=False)
    own = s > 1e-6 * max(float(s[0]), 1e-300)
    scale = float(np.sqrt((s**2).sum() / len(phi))) or 1.0
    z, back = u[:, own] * s[own] / scale, vt[own] / scale
    penalty = _penalty(z, labels, classes, intercept, seed)
    whole = _regression(z, labels, classes, penalty, intercept)
    space = _Space(z, np.asarray(labels), classes, penalty, intercept, whole)
    groups = leave_out_groups(len(labels), seed=seed) if left_out else []
    without = [space.without(group) for group in groups]
    weight = whole[:, :-1] @ back
    bias = whole[:, -1] - weight @ mean if intercept else None
    return Probe(weight, bias, penalty, np.array(without), space)


def start_at(model: Any, probe: Probe) -> None:
    """Write a probe into the last layer of a classifier's head."""
    layer = final_layer(model)
    with torch.no_grad():
        layer.weight.copy_(torch.as_tensor(probe.weight))
        if layer.bias is not None and probe.bias is not None:
            layer.bias.copy_(torch.as_tensor(probe.bias))


def _penalty(z: np.ndarray, labels: np.ndarray, classes: int, intercept: bool, seed: int) -> float:
    """Return the penalty with the least log-loss on examples left out in folds that hold the classes evenly."""
    n, rng = len(labels), np.random.default_rng(seed)
    order = np.concatenate([rng.permutation(np.flatnonzero(labels == label)) for label in range(classes)])
    folds = [order[k :: min(FOLDS, n)] for k in range(min(FOLDS, n))]
    losses = np.zeros(len(PENALTIES))
    for fold in folds:
        at = None
        for k, penalty in enumerate(PENALTIES):
            at = _regression(*_without(z, labels, fold), classes, penalty, intercept, at)
            losses[k] -= log_softmax(_logits(z[fold], at), axis=1)[np.arange(len(fold)), labels[fold]].sum()
    return PENALTIES[int(losses.argmin())]


def _without(z: np.ndarray, labels: np.ndarray, group: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.delete(z, group, axis=0), np.delete(labels, group)


def _logits(z: np.ndarray, at: np.ndarray) -> np.ndarray:
    return z @ at[:, :-1].T + at[:, -1]


def _regression(
    z: np.ndarray,
    labels: np.ndarray,
    classes: int,
    penalty: float,
    intercept: bool,
    start: np.ndarray | None = None,
) -> np.ndarray:
    """Return the weights and, in the last column, the intercepts of the regression; float64 [classes, d + 1].

    The weights of the classes add up to zero at the minimum, so that C - 1 contrasts of them are looked for: by
    Newton's method where these are few, else by L-BFGS.
    """
    coding = coding_matrix(classes)
    x = np.hstack([z, np.full((len(z), 1), float(intercept))])
    ridge = penalty * np.append(np.ones(z.shape[1]), 0.0)
    first = np.zeros((classes - 1, x.shape[1])) if start is None else coding @ start
    given = np.eye(classes)[labels]
    smooth = _Smooth(x, coding, given, ridge)
    if first.size <= NEWTON:
        return coding.T @ _newton(smooth, first)
    found = minimize(
        lambda flat: smooth.loss(flat.reshape(first.shape)),
        first.ravel(),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": 500, "gtol": 1e-6},
    )
    return coding.T @ found.x.reshape(first.shape)


@dataclass(frozen=True, eq=False)
class _Smooth:
    """Mean log-loss of labels ``given`` [n, C] under logits x v' B, and a ridge on v [C - 1, d + 1]."""

    x: np.ndarray
    coding: np.ndarray
    given: np.ndarray
    ridge: np.ndarray

    def _logs(self, v: np.ndarray) -> np.ndarray:
        logits = self.x @ v.T @ self.coding
        logits -= logits.max(axis=1, keepdims=True)
        return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))

    def loss(self, v: np.ndarray) -> tuple[float, np.ndarray]:
        """Return the loss and its gradient, flat."""
        logs = self._logs(v)
        error = (np.exp(logs) - self.given) @ self.coding.T / len(self.x)
        value = -(logs * self.given).sum() / len(self.x) + (self.ridge * v**2).sum() / 2
        return float(value), (error.T @ self.x + self.ridge * v).ravel()

    def curvature(self, v: np.ndarray) -> np.ndarray:
        """Return the second derivatives [size of v, size of v]; a direction that nothing sees has a tiny one."""
        p = np.exp(self._logs(v))
        spread = np.einsum("ac,nc,bc->nab", self.coding, p, self.coding)
        mean = p @ self.coding.T
        spread -= mean[:, :, None] * mean[:, None, :]
        q, d = v.shape
        whole = np.empty((q, d, q, d))
        for a in range(q):
            for b in range(a, q):
                whole[a, :, b] = (self.x * (spread[:, a, b] / len(self.x))[:, None]).T @ self.x
                whole[b, :, a] = whole[a, :, b].T
        flat = whole.reshape(q * d, q * d)
        flat[np.diag_indices(q * d)] += np.tile(self.ridge, q) + 1e-12
        return flat


def _newton(smooth: _Smooth, v: np.ndarray) -> np.ndarray:
    """Return the minimum, by steps that are halved until the loss falls."""
    value, slope = smooth.loss(v)
    for _ in range(NEWTON_STEPS):
        if np.abs(slope).max() <= NEWTON_TOLERANCE:
            break
        step = np.linalg.solve(smooth.curvature(v), slope).reshape(v.shape)
        share = 1.0
        while share > 1e-8:
            new, bent = smooth.loss(v - share * step)
            if new <= value - 1e-4 * share * float(slope @ step.ravel()):
                break
            share /= 2
        else:
            break
        v, value, slope = v - share * step, new, bent
    return v
