"""How far kernel rows of a given model move with things that should not matter: batch size, padding, attention kernel.

Also checks the layer formulas against plain autograd, one unpadded example at a time, on the model itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from stopwise.kernel.fallback import probe
from stopwise.kernel.ntk import empirical_ntk, prepared
from stopwise.kernel.passes import Pass, make_groups
from stopwise.network.batches import pack, verbalizers_of
from stopwise.network.forward import class_outputs
from stopwise.network.heads import bare, is_classifier, sees_later_tokens
from stopwise.network.parameters import Subset, held, select_parameters

# Largest relative movement of a row that rounding explains, by dtype; beyond it something reads what it should not.
LIMITS = {torch.float64: 2e-5, torch.float32: 1e-4}
LOOSE = 0.1  # bfloat16
ATTENTION = ("eager", "sdpa")
SENTENCES = (
    "The film is a delight from its first scene to its last. Sentiment:",
    "A dull, careless and far too long piece of work. Sentiment:",
    "Good! Sentiment:",
    "It starts well, but the second half forgets what the first half promised. Sentiment:",
    "I would watch it again tomorrow. Sentiment:",
    "Nobody should pay for this. Sentiment:",
)
WORDS = (" positive", " negative", " good", " bad", " yes", " no")


@dataclass(frozen=True)
class Finding:
    """One check: what was varied, the largest relative movement of a row of K and of f0, and the dtype's limit."""

    check: str
    kernel: float
    outputs: float
    limit: float
    note: str = ""

    @property
    def ok(self) -> bool:
        """Whether the movement is within the limit (NaN is not)."""
        return self.kernel <= self.limit and self.outputs <= self.limit


def doctor(
    model: nn.Module,
    source: Any,
    parameters: Subset = "attention",
    outputs: str = "contrast",
    verbalizers: Sequence[int] | None = None,
) -> list[Finding]:
    """Return findings on a model in its present dtype.

    ``source``: a tokenizer (six short prompts are made, read at the mask by a model that fills one in) or a batch.
    Checks: ``formulas`` (how many parameters need the autograd fallback), ``autograd`` (two examples, the kernel
    against plain gradients), ``batch size`` (one example a pass against all in one), ``padding`` (own lengths against
    padding to the longest), ``attention`` (every other attention kernel the model has). Cost: about eight small
    kernels; memory: four gradients of the subset.
    """
    given = isinstance(source, Mapping) and "input_ids" in source
    batch = dict(source) if given else sample_batch(source, model)
    tokens = verbalizers_of(batch, verbalizers, model)
    options: dict[str, Any] = {"parameters": parameters, "outputs": outputs, "verbalizers": tokens}
    limit = LIMITS.get(next(model.parameters()).dtype, LOOSE)

    def kernel(some: Mapping[str, torch.Tensor], tokens_per_batch: int = 1 << 20) -> tuple[np.ndarray, np.ndarray]:
        found = empirical_ntk(model, some, tokens_per_batch=tokens_per_batch, max_padding=1.0, **options)
        return found.matrix, found.outputs

    equal, two = shortest(batch), first(batch, 2)
    findings = [
        _formulas(model, batch, tokens, parameters, outputs, limit),
        _against("autograd", kernel(two), _plain(model, two, tokens, parameters, outputs), limit),
        _against("batch size", kernel(equal), kernel(equal, 1), limit, "one pass or one for each"),
        _against("padding", kernel(batch, 1), kernel(batch), limit, "each its own length or all the longest's"),
    ]
    return findings + _attention(model, lambda: kernel(batch), limit)


def sample_batch(tokenizer: Any, model: Any = None) -> dict[str, torch.Tensor]:
    """Return six short prompts of different lengths, with the first two words that are single tokens as classes.

    A ``model`` that sees later tokens fills in a mask: its prompts end with one, and ``positions`` point at it. A
    sequence classifier gets no words.
    """
    classifies = model is not None and is_classifier(model)
    mask_id = getattr(tokenizer, "mask_token_id", None)
    masked = not classifies and mask_id is not None and model is not None and sees_later_tokens(model)
    rows = [tokenizer.encode(f"{text} {tokenizer.mask_token}" if masked else text) for text in SENTENCES]
    longest = max(len(row) for row in rows)
    batch = {
        "input_ids": torch.tensor([row + [0] * (longest - len(row)) for row in rows]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows]),
    }
    if masked:
        batch["positions"] = torch.tensor([row.index(mask_id) for row in rows])
    return batch if classifies else batch | {"verbalizers": _classes(tokenizer)}


def _classes(tokenizer: Any) -> torch.Tensor:
    """Return two token ids: words that are single tokens, or any two."""
    words = [ids[-1] for word in WORDS if len(ids := tokenizer.encode(word, add_special_tokens=False)) == 1]
    classes = list(dict.fromkeys(words))[:2]
    if len(classes) < 2:
        classes = list(dict.fromkeys(tokenizer.encode("".join(WORDS), add_special_tokens=False)))[:2]
    return torch.tensor(classes)


def first(batch: Mapping[str, torch.Tensor], count: int) -> dict[str, torch.Tensor]:
    """Return the first examples of a batch."""
    return {key: value if key == "verbalizers" else value[:count] for key, value in batch.items()}


def shortest(batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return all examples cut to the length of the shortest, read at their last token.

    Where ``positions`` are given they stay the ones that are read: tokens before them are cut if need be.
    """
    packed = pack(batch)
    length = int(packed.lengths.min())
    if "positions" not in batch:
        packed = packed.cut(length)
    start = (packed.positions - length + 1).clamp(min=0)
    index = start[:, None] + torch.arange(length)
    found = {"input_ids": packed.ids.gather(1, index), "attention_mask": torch.ones_like(index)}
    if packed.types is not None:
        found["token_type_ids"] = packed.types.gather(1, index)
    return found | {"positions": packed.positions - start}


def _against(
    check: str, one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray], limit: float, note: str = ""
) -> Finding:
    moved = [_row_movement(a, b) for a, b in zip(one, other, strict=True)]
    return Finding(check, moved[0], moved[1], limit, note)


def _row_movement(a: np.ndarray, b: np.ndarray) -> float:
    """Return the largest distance between rows, relative to the typical row."""
    scale = np.sqrt(np.mean(np.sum(b**2, axis=1)))
    return float(np.max(np.linalg.norm(a - b, axis=1)) / scale) if scale else float("nan")


def _formulas(
    model: nn.Module,
    batch: Mapping[str, torch.Tensor],
    tokens: torch.Tensor,
    subset: Subset,
    outputs: str,
    limit: float,
) -> Finding:
    with prepared(model, {"a": batch}, tokens, subset, outputs) as job:
        found = probe(Pass(job.model, job.terms, outputs), make_groups(job.tasks, outputs)[0])
        note = f"{len(found.broken)} of {len(job.terms)} parameters take the autograd fallback"
    return Finding("formulas", 0.0, 0.0, limit, ": ".join([note, *[term.name for term in found.broken[:3]]]))


def _plain(
    model: nn.Module, batch: Mapping[str, torch.Tensor], tokens: torch.Tensor, subset: Subset, outputs: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return K and f0 by autograd, one example and column at a time, each prompt unpadded."""
    subset = held(model, subset)
    with prepared(model, {"a": batch}, tokens, subset, outputs) as job:
        chosen = list(select_parameters(job.model, subset).values())
        rows, values = [], []
        for parameter in chosen:
            parameter.requires_grad_(True)
        packed = job.tasks[0][0]
        for index in range(len(packed)):
            one = packed.rows(torch.tensor([index]))
            inputs = {"input_ids": one.ids, "attention_mask": one.mask, "positions": one.positions}
            inputs |= {} if one.types is None else {"token_type_ids": one.types}
            f = class_outputs(job.model, inputs, tokens, outputs)[0]
            values.append(f.detach().double().cpu().numpy())
            for value in f:
                grads = torch.autograd.grad(value, chosen, retain_graph=True, allow_unused=True)
                filled = [torch.zeros_like(p) if g is None else g for p, g in zip(chosen, grads, strict=True)]
                rows.append(torch.cat([g.flatten() for g in filled]))
        for parameter in chosen:
            parameter.requires_grad_(False)
        # Slabs keep the reduction of a float32 product short; a float64 copy of the rows would double the memory.
        stacked = torch.stack(rows)
        gram = torch.stack([slab.double() @ slab.double().T for slab in stacked.split(1 << 20, dim=1)]).sum(0)
        return gram.cpu().numpy(), np.stack(values)


def _attention(model: Any, kernel: Callable[[], tuple[np.ndarray, np.ndarray]], limit: float) -> list[Finding]:
    """Compare the model's attention kernel with the others it has."""
    model = bare(model)
    own = getattr(model.config, "_attn_implementation", None)
    if not hasattr(model, "set_attn_implementation"):
        return []
    here, findings = kernel(), []
    for other in ATTENTION:
        if other == own:
            continue
        try:
            model.set_attn_implementation(other)
            findings.append(_against("attention", here, kernel(), limit, f"{own} or {other}"))
        except (ValueError, ImportError, RuntimeError) as error:
            findings.append(Finding("attention", 0.0, 0.0, limit, f"{other} is not available: {str(error)[:80]}"))
        finally:
            model.set_attn_implementation(own)
    return findings
