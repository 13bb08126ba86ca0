"""Update rules: the four ways of fitting that stopwise trains with, as plain functions of tensors.

Gradient descent, heavy ball and Nesterov momentum follow the convention of ``torch.optim.SGD`` and of
``stopwise.linearized.filters``, whose recursion per eigenvalue predicts them; AdamW is the practice. The whole
memory of a rule is a dict of tensors, so that a checkpoint can hold it without pickling.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.optim.adamw import adamw

from stopwise.training.settings import ADAM_BETAS, ADAM_EPS, OPTIMIZERS


class Optimizer:
    """Gradient descent, theta <- theta - alpha g, over tensors that it changes in place; the base of the others.

    ``state`` is the whole memory of the rule.
    """

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        self.tensors = list(tensors)
        self.state: dict[str, torch.Tensor] = {}

    def update(self, gradients: Sequence[torch.Tensor], alpha: float) -> None:
        """Take one step of size ``alpha``."""
        torch._foreach_add_(self.tensors, list(gradients), alpha=-alpha)

    def slots(self, name: str) -> list[torch.Tensor]:
        """Return the state tensors of one name, in the order of the trained tensors."""
        return [self.state[f"{name}.{i}"] for i in range(len(self.tensors))]

    def add_slots(self, name: str) -> None:
        """Give every trained tensor a state tensor of zeros."""
        self.state |= {f"{name}.{i}": torch.zeros_like(tensor) for i, tensor in enumerate(self.tensors)}

    def load(self, state: dict[str, torch.Tensor]) -> None:
        """Copy a saved ``state`` back; raises ValueError when it is another rule's."""
        if state.keys() != self.state.keys():
            raise ValueError("the saved optimizer state belongs to another optimizer or parameter subset")
        for name, value in state.items():
            self.state[name].copy_(value)


class HeavyBall(Optimizer):
    """v <- beta v + g, theta <- theta - alpha v.

    With a constant step this is theta_{t+1} = theta_t - alpha g_t + beta (theta_t - theta_{t-1}) (Polyak, 1964).
    """

    def __init__(self, tensors: Sequence[torch.Tensor], momentum: float) -> None:
        super().__init__(tensors)
        self.momentum = momentum
        self.add_slots("velocity")

    def update(self, gradients: Sequence[torch.Tensor], alpha: float) -> None:
        """Take one step."""
        velocity = self.slots("velocity")
        torch._foreach_mul_(velocity, self.momentum)
        torch._foreach_add_(velocity, list(gradients))
        torch._foreach_add_(self.tensors, velocity, alpha=-alpha)


class Nesterov(HeavyBall):
    """v <- beta v + g, theta <- theta - alpha (g + beta v): the iterate is the look-ahead point, as in torch."""

    def update(self, gradients: Sequence[torch.Tensor], alpha: float) -> None:
        """Take one step."""
        velocity = self.slots("velocity")
        torch._foreach_mul_(velocity, self.momentum)
        torch._foreach_add_(velocity, list(gradients))
        torch._foreach_add_(self.tensors, list(gradients), alpha=-alpha)
        torch._foreach_add_(self.tensors, velocity, alpha=-alpha * self.momentum)


class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019), bias-corrected, betas (0.9, 0.999), eps 1e-8."""

    betas = ADAM_BETAS
    eps = ADAM_EPS

    def __init__(self, tensors: Sequence[torch.Tensor], weight_decay: float) -> None:
        super().__init__(tensors)
        self.weight_decay = weight_decay
        self.add_slots("mean")
        self.add_slots("square")
        self.state["count"] = torch.zeros((), dtype=torch.int64)

    def update(self, gradients: Sequence[torch.Tensor], alpha: float) -> None:
        """Take one step."""
        self.state["count"] += 1
        # torch counts up by itself, and its one pass over the weights takes a quarter of the time of one for each term.
        steps = [self.state["count"].float() - 1 for _ in self.tensors]
        adamw(
            self.tensors,
            list(gradients),
            self.slots("mean"),
            self.slots("square"),
            [],
            steps,
            fused=True,
            amsgrad=False,
            beta1=self.betas[0],
            beta2=self.betas[1],
            lr=alpha,
            weight_decay=self.weight_decay,
            eps=self.eps,
            maximize=False,
        )


def make_optimizer(
    name: str, tensors: Sequence[torch.Tensor], *, momentum: float = 0.9, weight_decay: float = 0.0
) -> Optimizer:
    """Return the named update rule over ``tensors``; raises ValueError for a name outside ``OPTIMIZERS``."""
    if name == "gradient_descent":
        return Optimizer(tensors)
    if name == "heavy_ball":
        return HeavyBall(tensors, momentum)
    if name == "nesterov":
        return Nesterov(tensors, momentum)
    if name == "adamw":
        return AdamW(tensors, weight_decay)
    raise ValueError(f"finetune.optimizer: {name!r} is not one of {', '.join(OPTIMIZERS)}")
