"""Which parameters the kernel sees and training moves: ``attention``, ``linear``, ``all``, ``head``, ``trainable``, …

The same selection serves the kernel and the fine-tuning, so that theory and practice speak of one set of weights.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from stopwise.network.architecture import attention_linears, first_names, is_linear, output_head
from stopwise.network.heads import head_modules, head_names, is_classifier, output_embeddings

log = logging.getLogger(__name__)

SUBSETS = ("attention", "linear", "all", "head", "trainable")
CLASS_HEAD = "class_head"  # the submodule that forward.attach_head adds

Subset = str | Sequence[str]


def select_parameters(model: nn.Module, subset: Subset = "attention") -> dict[str, nn.Parameter]:
    """Return the parameters of a subset, ordered by name; a tied weight appears once, under its first name.

    ``attention``: weights and biases of the linear layers inside attention modules (q, k, v, o), or ``linear`` for a
    model without attention (see ``subset_note``). ``linear``: every linear layer but those of the head. ``all``:
    everything. ``head``: of a sequence classifier everything outside of its base model; else the new class head if one
    is attached, else the output embedding. ``trainable``: whatever requires a gradient, so the adapters of a PEFT
    model, or what frozen layers leave. A list holds regular expressions that are searched in parameter names. Raises
    ValueError for an unknown subset, or one that matches nothing.
    """
    if subset == "lora" or isinstance(subset, Mapping):
        raise ValueError(
            f"kernel.parameters: {subset!r} asks for an adapter, which only a configuration makes; here put one on the"
            " model with peft (get_peft_model) and choose trainable"
        )
    named = dict(model.named_parameters())
    if isinstance(subset, str):
        if subset not in SUBSETS:
            raise ValueError(
                f"kernel.parameters: {subset!r} is not one of {', '.join(SUBSETS)} or a list of expressions"
            )
        chosen = _NAMED[subset](model, named)
        if note := _without_attention(model, subset, chosen):
            log.warning(note)
            chosen = _linear(model, named)
    else:
        chosen = _matching(named, subset)
    if not chosen and subset == "trainable":
        raise ValueError(
            f"kernel.parameters: no parameter of {type(model).__name__} requires a gradient, so there is nothing to"
            " train; unfreeze some (requires_grad), or add an adapter that is not in inference mode"
        )
    if not chosen:
        raise ValueError(f"kernel.parameters: {subset!r} matches no parameter of {type(model).__name__}")
    return {name: named[name] for name in sorted(chosen)}


def subset_note(model: nn.Module, subset: Subset) -> str | None:
    """Return the sentence that says that a model has no attention and ``linear`` stands in for it; else None."""
    if subset != "attention":
        return None
    return _without_attention(model, subset, _attention(model, dict(model.named_parameters())))


def _without_attention(model: nn.Module, subset: Subset, chosen: set[str]) -> str | None:
    if subset != "attention" or chosen:
        return None
    return f"kernel.parameters: {type(model).__name__} has no attention layers; its linear layers are taken instead"


def held(model: nn.Module, subset: Subset) -> Subset:
    """Return a subset that still means the same after gradients are switched off: ``trainable`` by its names."""
    if subset != "trainable":
        return subset
    return [f"^{re.escape(name)}$" for name in select_parameters(model, subset)]


def _owned(model: nn.Module, modules: Sequence[nn.Module]) -> set[str]:
    """Return the first names of the parameters that these modules hold directly."""
    names = first_names(model)
    return {names[id(p)] for module in modules for p in module.parameters(recurse=False)}


def _attention(model: nn.Module, named: Mapping[str, torch.Tensor]) -> set[str]:
    """Return linear layers anywhere below a module whose class is called attention, as transformers names them all."""
    return _owned(model, attention_linears(model))


def _linear(model: Any, named: Mapping[str, torch.Tensor]) -> set[str]:
    """Return the parameters of all linear layers but the output head and the new class head."""
    skip = {id(output_embeddings(model)), id(getattr(model, CLASS_HEAD, None))}
    if is_classifier(model):
        skip |= {id(module) for module in head_modules(model)}
    return _owned(model, [m for m in model.modules() if is_linear(m) and id(m) not in skip])


def _all(model: nn.Module, named: Mapping[str, torch.Tensor]) -> set[str]:
    return set(named)


def _head(model: nn.Module, named: Mapping[str, torch.Tensor]) -> set[str]:
    if is_classifier(model):
        return set(head_names(model))
    return _owned(model, [getattr(model, CLASS_HEAD, None) or output_head(model)])


def _trainable(model: nn.Module, named: Mapping[str, torch.Tensor]) -> set[str]:
    return {name for name, parameter in named.items() if parameter.requires_grad}


_NAMED = {
    "attention": _attention,
    "linear": _linear,
    "all": _all,
    "head": _head,
    "trainable": _trainable,
}


def _matching(named: Mapping[str, torch.Tensor], patterns: Sequence[str]) -> set[str]:
    """Return the names in which any expression is found; ValueError for one that is malformed or finds nothing."""
    chosen: set[str] = set()
    for pattern in patterns:
        try:
            found = {name for name in named if re.search(pattern, name)}
        except re.error as error:
            raise ValueError(f"kernel.parameters: {pattern!r} is not a regular expression: {error}") from None
        if not found:
            raise ValueError(f"kernel.parameters: the expression {pattern!r} matches no parameter name")
        chosen |= found
    return chosen
