"""How transformers are built, as far as the kernel must know: the one place that knows it."""

from __future__ import annotations

from typing import Any

from torch import nn

from stopwise.network.heads import output_embeddings, sees_later_tokens


def is_linear(module: nn.Module) -> bool:
    """Tell whether a module is a linear map of the last axis: torch's Linear or the transposed Conv1D of GPT-2."""
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def output_head(model: Any) -> nn.Linear:
    """Return the module that maps hidden states to vocabulary logits; ValueError for a model that has none."""
    head = output_embeddings(model)
    if head is None:
        raise ValueError(f"model: {type(model).__name__} has no output embedding; a causal or masked LM is needed")
    return head


def first_names(model: nn.Module) -> dict[int, str]:
    """Return the first name of every parameter by identity: the name that a tied weight goes by."""
    return {id(parameter): name for name, parameter in model.named_parameters()}


def widths(module: Any) -> tuple[int, int]:
    """Return (d_in, d_out) of a linear layer; Conv1D keeps its weight transposed."""
    rows, cols = module.weight.shape
    return (cols, rows) if isinstance(module, nn.Linear) else (rows, cols)


def attention_linears(model: nn.Module) -> list[nn.Module]:
    """Return the linear layers anywhere below a module whose class is called attention, as transformers names them."""
    outer = [module for module in model.modules() if "attention" in type(module).__name__.lower()]
    return [module for above in outer for module in above.modules() if is_linear(module)]


def block_prefix(model: nn.Module) -> str:
    """Return the name of the list of transformer blocks: the ModuleList that holds the most parameters."""
    lists = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m)]
    sizes = [(sum(p.numel() for p in m.parameters()), -len(name), name) for name, m in lists]
    return max(sizes)[2] if sizes else ""


def blocks_of(model: nn.Module) -> dict[str, nn.Module]:
    """Return the transformer blocks by layer name, in model order."""
    prefix = block_prefix(model)
    blocks: Any = model.get_submodule(prefix) if prefix else []
    return {f"{prefix}.{i}": block for i, block in enumerate(blocks)}


def is_causal(model: nn.Module) -> bool:
    """Tell whether tokens see only earlier ones, so that padding on the right needs no mask at all.

    Leaving it out is faster, and safer: padding whose sliding window holds nothing but padding would be NaN.
    """
    return not sees_later_tokens(model)
