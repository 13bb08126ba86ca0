"""Low-rank adapters: W + scale * B A beside chosen linear layers, with A drawn at random and B = 0 (Hu et al., 2021).

The adapter lives on the linear layer itself, as two parameters and one forward hook, so that parameter names stay
those of the model and detaching leaves no trace.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from stopwise.network.architecture import attention_linears, is_linear, widths

DOWN, UP = "lora_A", "lora_B"  # A [rank, d_in] and B [d_out, rank]
_STATE = "_stopwise_lora"  # attribute of an adapted layer: (scale, hook handle)
OPTIONS = ("rank", "target", "scale", "seed")


def attach(
    model: nn.Module, rank: int = 8, target: Sequence[str] | None = None, scale: float = 1.0, seed: int = 0
) -> list[str]:
    """Attach adapters to linear layers and return the layers' names.

    ``target``: regular expressions over module names (default: the linear layers inside attention modules). A is drawn
    uniformly within +-1/sqrt(d_in), seeded and in name order, B is zero: outputs do not move. Raises ValueError for a
    rank below 1, a target that matches nothing, or adapters that are attached already.
    """
    if rank < 1:
        raise ValueError(f"lora.rank must be at least 1, found {rank}")
    if adapted(model):
        raise ValueError("lora: the model has adapters already; detach them first")
    chosen = _targets(model, target)
    generator = torch.Generator().manual_seed(seed)
    for module in chosen.values():
        d_in, d_out = widths(module)
        up, weight = torch.zeros(d_out, rank, dtype=torch.float64), module.weight
        assert isinstance(weight, torch.Tensor)
        down = (2 * torch.rand(rank, d_in, generator=generator, dtype=torch.float64) - 1) / d_in**0.5
        module.register_parameter(DOWN, nn.Parameter(down.to(weight), requires_grad=False))
        module.register_parameter(UP, nn.Parameter(up.to(weight), requires_grad=False))
        setattr(module, _STATE, (scale, module.register_forward_hook(_add_update)))
    return list(chosen)


def attach_from(model: nn.Module, subset: Mapping[str, Any]) -> bool:
    """Attach what ``{"lora": options}`` asks for unless adapters are there; True when this call attached them."""
    if set(subset) != {"lora"}:
        raise ValueError(f"kernel.parameters: a mapping must be {{lora: options}}, found keys {sorted(subset)}")
    options = dict(subset["lora"] or {})
    if unknown := sorted(set(options) - set(OPTIONS)):
        raise ValueError(f"kernel.parameters.lora: unknown option {unknown[0]!r}; allowed: {', '.join(OPTIONS)}")
    if adapted(model):
        return False
    target = options.get("target")
    options["target"] = [target] if isinstance(target, str) else target
    attach(model, **options)
    return True


def adapted(model: nn.Module) -> dict[str, nn.Module]:
    """Return the adapted layers by name."""
    return {name: module for name, module in model.named_modules() if hasattr(module, _STATE)}


def scale_of(module: nn.Module) -> float:
    """Return the scale of an adapted layer's update."""
    return getattr(module, _STATE)[0]


def detach(model: nn.Module, merge: bool = False) -> None:
    """Remove all adapters; with ``merge`` add scale * B A to the weights first."""
    module: Any
    for module in adapted(model).values():
        scale, handle = getattr(module, _STATE)
        if merge:
            update = scale * (getattr(module, UP) @ getattr(module, DOWN))
            with torch.no_grad():
                module.weight += update if isinstance(module, nn.Linear) else update.T
        handle.remove()
        for key in (DOWN, UP):
            delattr(module, key)
        delattr(module, _STATE)


def _add_update(module: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor:
    down, up = getattr(module, DOWN), getattr(module, UP)
    return output + scale_of(module) * nn.functional.linear(nn.functional.linear(args[0], down), up)


def _targets(model: nn.Module, target: Sequence[str] | None) -> dict[str, nn.Module]:
    """Return the linear layers that the expressions name, in name order."""
    linear = {name: module for name, module in sorted(model.named_modules()) if is_linear(module)}
    if target is None:
        inside = {id(module) for module in attention_linears(model)}
        if not inside:
            raise ValueError(f"lora.target: {type(model).__name__} has no attention layers; name the layers to adapt")
        return {name: module for name, module in linear.items() if id(module) in inside}
    chosen = {name: m for name, m in linear.items() if any(re.search(pattern, name) for pattern in target)}
    if not chosen:
        raise ValueError(f"lora.target: {list(target)!r} matches no linear layer")
    return chosen
