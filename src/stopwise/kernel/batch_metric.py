"""AdamW's D read from the features of the kernel that it weighs, so that no pass is made for it alone.

A batch's gradient of one parameter is a combination of the rows of J, with the loss's derivative in the outputs for
coefficients. Rows are formed for the kernel a slab of parameters at a time; before they are multiplied, the slab's mean
squared batch gradients follow from them, and D from those.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from stopwise.kernel.formulas import Term

EPS = 1e-8


@dataclass(eq=False)
class BatchMetric:
    """D = rate/(sqrt(v) + eps), v the mean square of batch gradients of a kernel's first task, at its start.

    ``cotangents(f0)`` [n, columns] gives, for each batch, the derivative of its loss in all outputs, 0 outside of the
    batch: float64 [batches, n, columns]. ``rates``: of each parameter by name (1 where it is missing). ``apart()``: D
    by parameter from passes of its own, for a kernel whose rows are not all formed at once. ``still``: filled by the
    kernel with the names of parameters whose D is 0 throughout.
    """

    cotangents: Callable[[np.ndarray], np.ndarray]
    apart: Callable[[], Mapping[str, torch.Tensor]]
    rates: Mapping[str, float] = field(default_factory=dict)
    eps: float = EPS
    still: set[str] = field(default_factory=set)


def roots(preconditioner: Mapping[str, torch.Tensor], terms: Sequence[Term]) -> dict[str, torch.Tensor]:
    """Return sqrt(D) by parameter, where the parameters are; ValueError where D does not fit one."""
    return {term.name: _root(preconditioner, term) for term in terms}


def _root(preconditioner: Mapping[str, torch.Tensor], term: Term) -> torch.Tensor:
    own, parameter = preconditioner.get(term.name), term.parameter
    if own is None or own.shape != parameter.shape or not bool((own >= 0).all()):
        raise ValueError(f"preconditioner: {term.name!r} needs entries >= 0 in the shape {tuple(parameter.shape)}")
    return own.to(parameter.device).sqrt()
