"""What a network is: a language model or a classifier, inside an adapter's wrapper or not, and what attends to what.

A *head* is what turns hidden states into logits: a language model's output embedding, or the few layers above the base
model of a sequence classifier. These questions are answered here once, from the modules and by trying, not from the
names of classes.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

_PROBE_LENGTH = 6  # tokens of the probe of what attends to what
_SEES_LATER: weakref.WeakKeyDictionary[nn.Module, bool] = weakref.WeakKeyDictionary()


def bare(model: Any) -> Any:
    """Return the transformers model inside a PEFT wrapper, its adapters in place, or the model itself.

    Raises ValueError for prompt learning (prefix and prompt tuning), whose parameters are no part of the network.
    """
    if not hasattr(model, "get_base_model") or not hasattr(model, "peft_config"):
        return model
    kinds = [config for config in model.peft_config.values() if getattr(config, "is_prompt_learning", False)]
    if kinds:
        raise ValueError(
            f"model: {type(kinds[0]).__name__} trains prompts, not weights; use an adapter of weights, such as LoRA"
        )
    return model.get_base_model()


def output_embeddings(model: Any) -> Any:
    """Return the module that maps hidden states to vocabulary logits, or None for a model without one.

    A module that PEFT keeps a trained copy of (``modules_to_save``) is that copy.
    """
    inner = bare(model)
    head = inner.get_output_embeddings() if hasattr(inner, "get_output_embeddings") else None
    while head is not None and hasattr(head, "modules_to_save") and getattr(head, "active_adapters", None):
        head = head.modules_to_save[head.active_adapters[0]]
    return head


def is_classifier(model: Any) -> bool:
    """Tell whether a model is a sequence classifier: no vocabulary head, and a number of labels of its own."""
    return output_embeddings(model) is None and isinstance(getattr(bare(model), "num_labels", None), int)


def class_count(model: Any) -> int:
    """Return the number of classes of a classifier's head; ValueError for a regression's single output."""
    count = int(bare(model).num_labels)
    if count < 2:
        raise ValueError(f"model: the head of {type(bare(model)).__name__} has {count} output; at least 2 are needed")
    return count


def head_names(model: Any) -> list[str]:
    """Return the names of the parameters outside of a classifier's base model: those of its head, sorted."""
    inner = bare(model)
    inside = {id(parameter) for parameter in inner.base_model.parameters()} if inner.base_model is not inner else set()
    return sorted(name for name, parameter in model.named_parameters() if id(parameter) not in inside)


def head_modules(model: Any) -> list[nn.Module]:
    """Return the modules of a classifier's head: everything outside of its base model."""
    inner = bare(model)
    inside = {id(module) for module in inner.base_model.modules()}
    return [module for module in inner.modules() if id(module) not in inside and module is not inner]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model in evaluation mode, so that nothing is dropped out, and every module back as it was."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def refuse_two_parts(model: Any) -> None:
    """Raise ValueError for an encoder-decoder model."""
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise ValueError(f"model: {type(model).__name__} is an encoder-decoder model; use an encoder or a decoder")


def accepts(model: Any, argument: str) -> bool:
    """Tell whether the forward pass of a model takes an argument of this name."""
    return argument in inspect.signature(bare(model).forward).parameters


def counts_own_positions(model: Any) -> bool:
    """Tell whether a model numbers positions itself, leaving padding out, as RoBERTa and its kin do.

    Their position table has a row for padding.
    """
    return any(table.padding_idx is not None for table in _position_tables(bare(model)))


def _position_tables(model: nn.Module) -> list[nn.Embedding]:
    names = ("position_embeddings", "wpe", "embed_positions")
    return [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and name.rpartition(".")[2] in names
    ]


def position_limit(model: Any) -> int | None:
    """Return how many tokens fit into a learned table of positions; None where positions are not looked up."""
    limits = []
    for table in _position_tables(bare(model)):
        skipped = getattr(table, "offset", 0)  # OPT's positions start at row 2
        if table.padding_idx is not None:
            skipped = table.padding_idx + 1
        limits.append(table.num_embeddings - skipped)
    return min(limits, default=None)


def check_fits(model: Any, ids: torch.Tensor, types: torch.Tensor | None = None) -> None:
    """Raise ValueError, in one line, for prompts that are longer than the model or hold tokens that it does not know.

    ``ids``: long [n, T], ``types``: token types of the same shape, or None.
    """
    limit = position_limit(model)
    if limit is not None and ids.shape[1] > limit:
        raise ValueError(
            f"data.max_tokens: a prompt of {ids.shape[1]} tokens is longer than the {limit} positions of the model;"
            f" cut texts to at most {limit} tokens"
        )
    rows = token_rows(model)
    if rows is not None and ids.numel() and int(ids.max()) >= rows:
        raise ValueError(
            f"batch: token id {int(ids.max())} is not among the {rows} rows of the model's token table; the tokenizer"
            " has more entries than the model: use the model's own tokenizer, or resize_token_embeddings"
        )
    kinds = getattr(bare(model).config, "type_vocab_size", None)
    if types is not None and kinds and int(types.max() if types.numel() else 0) >= kinds:
        raise ValueError(f"batch: token_type_ids reach {int(types.max())}, but the model knows {kinds} kind(s) of text")


def token_rows(model: Any) -> int | None:
    """Return the number of rows of the token table; None where it cannot be found."""
    table = _token_table(bare(model))
    return None if table is None else int(table.weight.shape[0])


def _token_table(model: Any) -> Any:
    try:
        return model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return None


def padding_id(model: Any) -> int | None:
    """Return the id that a model takes for padding; None where it has none, or none that it has a row for."""
    found = getattr(bare(model).config.get_text_config(), "pad_token_id", None)
    rows = token_rows(model)
    return found if isinstance(found, int) and 0 <= found < (rows or found + 1) else None


@contextmanager
def padding_known(model: Any, ids: torch.Tensor) -> Iterator[int]:
    """Yield the id that stands for padding in a classifier that reads its last token.

    Such a model finds the last token by what is not padding. One without a padding id gets, for the time of the call,
    an id that ``ids`` do not hold.
    """
    known = padding_id(model)
    if known is not None:
        yield known
        return
    config = bare(model).config.get_text_config()
    used = set(ids.unique().tolist())
    free = next(i for i in range(len(used) + 1) if i not in used)
    before = config.pad_token_id
    config.pad_token_id = free
    try:
        yield free
    finally:
        config.pad_token_id = before


def sees_later_tokens(model: Any) -> bool:
    """Tell whether a token's hidden state depends on tokens that come after it, so that padding needs a mask.

    Tried once for each model, on one short prompt, and kept: the gradient of the states before the last token in the
    embedding of the last one is zero, exactly, where attention looks back only. Where that cannot be tried (a model
    without memory behind its weights, or without a table of tokens) the configuration is asked.
    """
    inner = bare(model)
    refuse_two_parts(inner)
    if inner not in _SEES_LATER:
        _SEES_LATER[inner] = _probe(inner)
    return _SEES_LATER[inner]


def _probe(model: Any) -> bool:
    table = _token_table(model)
    weight = next(model.parameters())
    if table is None or weight.device.type == "meta":
        return _declared(model)
    base = model.base_model if hasattr(model, "base_model") else model
    padding = padding_id(model)
    ids = [i for i in range(_PROBE_LENGTH + 1) if i != padding][:_PROBE_LENGTH]
    tokens = torch.tensor([ids], device=weight.device)
    start: list[torch.Tensor] = []

    def leaf(module: nn.Module, args: tuple, out: torch.Tensor) -> torch.Tensor:
        start.append(out.detach().requires_grad_(True))
        return start[-1]

    handle = table.register_forward_hook(leaf)
    try:
        with torch.inference_mode(False), torch.enable_grad(), evaluating(model):
            found = base(input_ids=tokens, attention_mask=torch.ones_like(tokens))
            states = found[0][:, :-1]
            # Not a plain sum: after a layer norm the sum of the features is constant.
            weights = torch.arange(states.numel(), device=states.device).sin().view(states.shape).to(states)
            gradient = torch.autograd.grad((states * weights).sum(), start[0], allow_unused=True)[0]
    finally:
        handle.remove()
    return gradient is not None and bool((gradient[:, -1] != 0).any())


def _declared(model: Any) -> bool:
    config = model.config
    if getattr(config, "is_decoder", False):
        return False
    return "MaskedLM" in type(model).__name__ or config.model_type in _ENCODERS


# Only for models without memory behind their weights, whose attention cannot be tried.
_ENCODERS: tuple[str, ...] = (
    "albert",
    "bert",
    "camembert",
    "deberta",
    "deberta-v2",
    "distilbert",
    "electra",
    "modernbert",
    "mpnet",
)
_ENCODERS += ("roberta", "xlm-roberta")
