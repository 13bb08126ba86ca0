"""What `auto` stands for: values that follow from other keys of the same configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

AUTO = "auto"
# AdamW as most people run it, and full batches with momentum, which reach in tens of steps what descent needs hundreds
# for.
ADAMW = {"learning_rate": 1.0e-4, "batch_size": 8, "steps": 32}
OTHERS = {"learning_rate": None, "batch_size": None, "steps": 12}
EVALUATIONS = 4  # in the course of a run, beside the one at its start


def settle(config: dict[str, Any]) -> None:
    """Write what each `auto` of a filled configuration stands for; one of `stopping.target_scale` may stay.

    Under squared loss the scale is fitted by the jobs that know the outputs at the start; cross-entropy has none.
    """
    kernel, section, stopping = config["kernel"], config["finetune"], config["stopping"]
    adamw = section["optimizer"] == "adamw"
    for key, value in (ADAMW if adamw else OTHERS).items():
        if section[key] == AUTO:
            section[key] = value
    if section["evaluate_every"] == AUTO:
        section["evaluate_every"] = max(1, section["steps"] // EVALUATIONS)
    if kernel["formula"] == AUTO:
        kernel["formula"] = "adam" if adamw and not _own_adapters(kernel["parameters"]) else "sgd"
    if stopping["target_scale"] == AUTO and section["objective"] != "squared":
        stopping["target_scale"] = 1.0


def _own_adapters(parameters: Any) -> bool:
    """Whether parameters are adapters that AdamW's own kernel does not know."""
    return parameters == "lora" or (isinstance(parameters, Mapping) and "lora" in parameters)
