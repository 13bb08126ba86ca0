"""Adapters made by ``peft``: LoRA as a configuration asks for it, and the adapter that a folder holds.

An adapter is a trained change of a model whose own weights stay as they are. LoRA adds alpha/rank * B A to the weight
of a linear layer; A is drawn at random and B is zero at the start (Hu et al., 2021). The module ``peft`` is imported
only where an adapter is made or read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from stopwise.network.architecture import attention_linears, is_linear
from stopwise.network.folders import ADAPTER_CONFIG, ModelError, reason, seeded
from stopwise.network.heads import bare, head_names, is_classifier

ALL_LINEAR, ATTENTION = "all-linear", "attention"
# What ``parameters: lora`` is short for, with the scale of one that it has always had.
LORA = {"rank": 8, "alpha": 8, "target": ATTENTION}
_NOT_INSTALLED = "peft is not installed; allowed: make env, or pip install -e '.[trainer]' in the checkout, or"


def is_peft(parameters: Any) -> bool:
    """Tell whether ``kernel.parameters`` asks for an adapter made by peft."""
    return isinstance(parameters, Mapping) and set(parameters) == {"peft"}


def trained(section: Mapping[str, Any]) -> dict[str, Any]:
    """Return a section whose ``parameters`` fit the model that ``with_adapter`` gave: what requires a gradient."""
    own = {"parameters": "trainable"} if is_peft(section["parameters"]) else {}
    return {**section, **own}


def with_adapter(model: Any, options: Mapping[str, Any], seed: int = 0) -> Any:
    """Return the model inside a PeftModel, its adapters and its head of classes trainable and all else frozen.

    ``options``: ``rank`` (8), ``alpha`` (16; updates are scaled by alpha/rank), ``rslora`` (false; by alpha/sqrt(rank)
    instead), ``seed`` (that of the call) and ``target``: ``all-linear`` (the default), ``attention`` (the linear layers
    inside attention modules), a regular expression that a linear layer's whole name matches, or a list of names, of
    which the last part is enough. A is drawn from the seed, B is zero, so that outputs do not move. The model is
    changed in place. Raises ModelError when peft is not installed, or a target matches nothing.
    """
    try:
        from peft import LoraConfig, TaskType, get_peft_model
    except ImportError:
        raise ModelError(f"kernel.parameters: {_NOT_INSTALLED} other parameters") from None
    target, classifier = options.get("target", ALL_LINEAR), is_classifier(model)
    head = sorted({name.split(".")[0] for name in head_names(model)}) if classifier else None
    config = LoraConfig(
        task_type=TaskType.SEQ_CLS if classifier else TaskType.CAUSAL_LM,
        r=options.get("rank", 8),
        lora_alpha=options.get("alpha", 16),
        use_rslora=options.get("rslora", False),
        target_modules=_targets(model, target),
        modules_to_save=head,
        lora_dropout=0.0,
        fan_in_fan_out=any(type(module).__name__ == "Conv1D" for module in model.modules()),
    )
    try:
        with seeded(options.get("seed", seed)):
            made = get_peft_model(model, config)
    except ValueError as error:
        raise ModelError(f"kernel.parameters.peft.target: {target!r}: {str(error).splitlines()[0]}") from None
    return made.eval()


def _targets(model: nn.Module, target: Any) -> str | list[str]:
    """Return what peft takes for a target: itself, or the names of the linear layers that it stands for."""
    if not isinstance(target, str):
        return list(target)
    if target == ALL_LINEAR:
        return target
    linear = {name: module for name, module in model.named_modules() if is_linear(module)}
    if target == ATTENTION:
        inside = {id(module) for module in attention_linears(model)}
        chosen = [name for name, module in linear.items() if id(module) in inside]
    else:
        chosen = [name for name in linear if re.fullmatch(target, name)]
    if not chosen:
        raise ModelError(
            f"kernel.parameters.peft.target: {target!r} matches no linear layer of {type(model).__name__}, such as"
            f" {next(iter(linear), None)!r}; allowed: {ALL_LINEAR}, {ATTENTION}, an expression for the whole name of a"
            " layer, or a list of names"
        )
    return chosen


def base_of(folder: Path) -> str:
    """Return the source of the model that a folder's adapter belongs to; ModelError where it does not say."""
    path = folder / ADAPTER_CONFIG
    try:
        base = json.loads(path.read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (ValueError, KeyError) as error:
        raise ModelError(f"model.source: {path} does not name the adapter's model ({reason(error)})") from None
    if not isinstance(base, str) or not base:
        raise ModelError(
            f"model.source: {path} does not name the adapter's model (base_model_name_or_path is {base!r})"
        )
    return base


def read_adapter(model: Any, folder: Path) -> Any:
    """Return the model inside a PeftModel with the adapter that a folder holds, which is trainable and all else frozen.

    The model is changed in place. Raises ModelError when peft is not installed, or the adapter does not fit.
    """
    try:
        from peft import PeftModel
    except ImportError:
        raise ModelError(f"model.source: {folder} holds an adapter, and {_NOT_INSTALLED} the whole model") from None
    try:
        made = PeftModel.from_pretrained(model, folder, is_trainable=True)
        bare(made)
    except Exception as error:
        raise ModelError(f"model.source: the adapter in {folder} could not be read: {reason(error)}") from error
    return made.eval()
