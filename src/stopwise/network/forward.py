"""The class outputs f of a language model: a forward pass that multiplies only the verbalizer rows of its head.

The model's own forward runs, so whatever it does to hidden states and logits (projections, scaling, soft capping)
stays; for the time of the call its output head gathers the output positions and multiplies C rows, not the vocabulary.
A sequence classifier has C logits of its own: its forward runs as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from stopwise.linearized.coding import coding_matrix
from stopwise.network.architecture import is_causal, output_head
from stopwise.network.batches import Packed, length_buckets, pack, verbalizers_of
from stopwise.network.heads import (
    accepts,
    bare,
    check_fits,
    class_count,
    counts_own_positions,
    is_classifier,
    padding_known,
    refuse_two_parts,
)
from stopwise.network.parameters import CLASS_HEAD

__all__ = ["HeadCall", "attach_head", "class_outputs", "detach_head", "length_buckets", "packed_outputs"]


@dataclass
class HeadCall:
    """What the output head saw in one pass: hidden [n, 1, d] at the output positions, logits [n, 1, C].

    Where several prompts share a row of tokens, [1, n, d] and [1, n, C].
    """

    hidden: torch.Tensor | None = None
    logits: torch.Tensor | None = None


def class_outputs(
    model: nn.Module,
    batch: Mapping[str, torch.Tensor],
    verbalizers: Sequence[int] | torch.Tensor | None = None,
    outputs: str = "contrast",
) -> torch.Tensor:
    """Return f [n, columns] in the model's dtype and on its device, differentiable in every parameter.

    One forward pass over the batch as it is (use ``length_buckets`` to split a long one). ``outputs``: contrast,
    logits, head (needs ``attach_head``) or vocabulary (contrasts of the verbalizers and the rest of the vocabulary). A
    sequence classifier needs no verbalizers, and ``head`` is its own. Raises ValueError for a malformed batch, missing
    verbalizers, no such head, or prompts that do not fit the model.
    """
    return packed_outputs(model, pack(batch), verbalizers_of(batch, verbalizers, model), outputs)


def packed_outputs(
    model: nn.Module, packed: Packed, verbalizers: torch.Tensor, outputs: str = "contrast", call: HeadCall | None = None
) -> torch.Tensor:
    """Return f [n, columns] of right-padded prompts; ``call`` receives what the head saw."""
    network: Any = bare(model)
    device = next(model.parameters()).device
    call = HeadCall() if call is None else call
    refuse_two_parts(network)
    check_fits(network, packed.ids, packed.types)
    if is_classifier(network):
        logits = _classifier_logits(network, packed, verbalizers, device)
        return columns_of(model, logits, call, "contrast" if outputs == "head" else outputs)
    ids = packed.ids.to(device)
    mask = torch.ones_like(ids) if is_causal(network) else packed.mask.to(device)
    arguments = {"input_ids": ids, "attention_mask": mask, **_optional_arguments(network, packed, ids)}
    with verbalizer_head(network, packed.positions.to(device), verbalizers.to(device), call, outputs):
        result = network(**arguments)
    return columns_of(model, result.logits[:, 0], call, outputs, verbalizers)


def _classifier_logits(model: Any, packed: Packed, classes: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return the logits [n, C] of a sequence classifier's own forward pass, padding and all."""
    count = class_count(model)
    if int(classes.max()) >= count or int(classes.min()) < 0:
        raise ValueError(f"verbalizers: the classes of this model are 0..{count - 1}, found {classes.tolist()}")
    with padding_known(model, packed.ids) as padding:
        ids = torch.where(packed.mask.bool(), packed.ids, padding).to(device)
        arguments = {"input_ids": ids, "attention_mask": packed.mask.to(device)}
        logits = model(**arguments, **_optional_arguments(model, packed, ids)).logits
    if logits.shape != (len(packed), count):
        raise ValueError(
            f"model: {type(model).__name__} gives logits of shape {tuple(logits.shape)}; a sequence classifier gives"
            f" {(len(packed), count)}"
        )
    return logits if torch.equal(classes, torch.arange(count)) else logits[:, classes.to(device)]


def columns_of(
    model: nn.Module, logits: torch.Tensor, call: HeadCall, outputs: str, verbalizers: torch.Tensor | None = None
) -> torch.Tensor:
    """Return f [n, columns] of the verbalizers' logits [n, C], or of the hidden states of ``call`` for a new head.

    For ``vocabulary`` the logits are those of all tokens [n, V], and ``verbalizers`` long [C] tell the words.
    """
    classes = logits.shape[1]
    if outputs == "vocabulary":
        if verbalizers is None:
            raise ValueError(f"outputs: vocabulary needs the words of a language model, not {type(model).__name__}")
        classes, logits = len(verbalizers), words_and_rest(logits, verbalizers.to(logits.device))
    if outputs == "head":
        assert call.hidden is not None
        logits = _class_head(model, classes)(call.hidden).reshape(-1, classes)
    coding = torch.as_tensor(coding_matrix(classes, outputs), dtype=logits.dtype, device=logits.device)
    return logits @ coding.T


def words_and_rest(logits: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
    """Return [n, C + 1]: the logits of C words out of [n, V], and the log of the summed exponentials of all others.

    A softmax over these C + 1 gives every word the probability that the softmax over the vocabulary gives it.
    """
    rest = logits.index_fill(1, words, -torch.inf).logsumexp(1, keepdim=True)
    return torch.cat([logits.index_select(1, words), rest], 1)


def attach_head(model: nn.Module, classes: int, seed: int = 0, std: float = 0.02) -> nn.Linear:
    """Attach a new classification head (no bias) for ``outputs="head"`` as the submodule ``class_head``, and return it.

    Weight [classes, d] ~ N(0, std^2), seeded, in the dtype of the output embedding, frozen; replaces an earlier one.
    Raises ValueError for a sequence classifier, which has a head of its own.
    """
    weight = output_head(model).weight
    head = nn.Linear(weight.shape[1], classes, bias=False, device=weight.device, dtype=weight.dtype)
    drawn = torch.randn(classes, weight.shape[1], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    with torch.no_grad():
        head.weight.copy_(std * drawn)
    model.add_module(CLASS_HEAD, head.requires_grad_(False))
    return head


def detach_head(model: nn.Module) -> None:
    """Remove the head that ``attach_head`` added, if any."""
    model._modules.pop(CLASS_HEAD, None)


def _class_head(model: nn.Module, classes: int) -> nn.Linear:
    head = getattr(model, CLASS_HEAD, None)
    if head is None or head.out_features != classes:
        found = "none" if head is None else f"one with {head.out_features}"
        raise ValueError(f"outputs: head needs attach_head(model, {classes}) first; found {found}")
    return head


def _optional_arguments(model: Any, packed: Packed, ids: torch.Tensor) -> dict[str, object]:
    """Return the arguments that not every architecture takes: no cache, token types, positions of each prompt.

    The positions are [n, T], not broadcast, so that a learned position table gets one gradient per example. Models like
    RoBERTa count their own, padding left out.
    """
    optional: dict[str, object] = {}
    if accepts(model, "use_cache"):
        optional["use_cache"] = False
    if packed.types is not None and accepts(model, "token_type_ids"):
        optional["token_type_ids"] = packed.types.to(ids.device)
    if accepts(model, "position_ids") and not counts_own_positions(model):
        optional["position_ids"] = torch.arange(ids.shape[1], device=ids.device).expand_as(ids).contiguous()
    return optional


@contextmanager
def verbalizer_head(
    model: nn.Module, positions: torch.Tensor, tokens: torch.Tensor, call: HeadCall, outputs: str = "contrast"
) -> Iterator[None]:
    """Let the output head gather the output positions and multiply only the rows of the verbalizer tokens.

    ``positions``: long [rows], one in each row of tokens, or [rows, P]. Under ``outputs="vocabulary"`` all rows are
    multiplied.
    """
    head = output_head(model)
    size = head.weight.shape[0]
    if int(tokens.max()) >= size or int(tokens.min()) < 0:
        raise ValueError(f"verbalizers: token ids must lie in 0..{size - 1}, found {tokens.tolist()}")
    own = head.forward

    def forward(hidden: torch.Tensor) -> torch.Tensor:
        index = positions.reshape(len(positions), -1, 1).expand(-1, -1, hidden.shape[-1])
        call.hidden = hidden.gather(1, index)
        if outputs == "vocabulary":
            call.logits = own(call.hidden)
        elif hasattr(head, "base_layer"):  # an adapter beside the head: its own forward, then the words
            call.logits = own(call.hidden)[..., tokens]
        else:
            bias = getattr(head, "bias", None)
            call.logits = nn.functional.linear(call.hidden, head.weight[tokens], None if bias is None else bias[tokens])
        return call.logits

    with _replaced_forward(head, forward):
        yield


@contextmanager
def _replaced_forward(module: nn.Module, forward: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """Shadow a module's forward by an instance attribute for the time of a block (another wrapper may have done so)."""
    before = module.__dict__.get("forward")
    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        if before is None:
            del module.__dict__["forward"]
        else:
            module.__dict__["forward"] = before
