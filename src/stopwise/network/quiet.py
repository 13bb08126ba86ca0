"""A block in which a network is asked, and after which it and all random generators are as they were."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from stopwise.network.heads import evaluating


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode for a block, and leave it and all random generators as they were."""
    kept = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    try:
        with evaluating(model):
            yield
    finally:
        for parameter, flag, gradient in kept:
            parameter.requires_grad_(flag)
            parameter.grad = gradient
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if devices:
            torch.cuda.set_rng_state_all(devices)
