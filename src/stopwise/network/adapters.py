"""Adapters made by ``peft`` as a configuration names them: LoRA beside chosen linear layers, and a head trained whole.

The module ``peft`` is imported where an adapter is made only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stopwise.network.folders import ModelError, seeded
from stopwise.network.heads import head_names, is_classifier


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
    instead) and ``target``: names of layers, or ``all-linear`` (the default). A is drawn from ``seed``, B is zero, so
    that outputs do not move. The model is changed in place. Raises ModelError when peft is not installed, or a target
    matches nothing.
    """
    try:
        from peft import LoraConfig, TaskType, get_peft_model
    except ImportError:
        raise ModelError(
            "kernel.parameters: peft is not installed; allowed: pip install 'stopwise[trainer]', or other parameters"
        ) from None
    target, classifier = options.get("target", "all-linear"), is_classifier(model)
    head = sorted({name.split(".")[0] for name in head_names(model)}) if classifier else None
    config = LoraConfig(
        task_type=TaskType.SEQ_CLS if classifier else TaskType.CAUSAL_LM,
        r=options.get("rank", 8),
        lora_alpha=options.get("alpha", 16),
        use_rslora=options.get("rslora", False),
        target_modules=target if isinstance(target, str) else list(target),
        modules_to_save=head,
        lora_dropout=0.0,
    )
    try:
        with seeded(seed):
            made = get_peft_model(model, config)
    except ValueError as error:
        raise ModelError(f"kernel.parameters.peft.target: {target!r}: {str(error).splitlines()[0]}") from None
    return made.eval()
