"""Loading a sequence classifier: any source of models, with a head of so many classes, drawn anew where it has none.

A pretrained body under a head drawn at random is the mixed start of the paper, and the commonest fine-tuning there is.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from stopwise.assets.wheels import ASSETS
from stopwise.network.adapters import base_of, read_adapter
from stopwise.network.folders import (
    PICO_ENCODER,
    ModelError,
    check_choices,
    copy_matching,
    draw_seed,
    holds_adapter,
    prepare_model,
    reason,
    redrawn,
    refuse_encoder_decoder,
    refuse_revision,
    seeded,
    settled,
)
from stopwise.network.heads import head_names
from stopwise.network.pico import pico_classifier, pico_tokenizer
from stopwise.network.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)

CLASSIFIER = "AutoModelForSequenceClassification"
PICO_CLASSIFIERS = {PICO_ENCODER: "bert", "pico-gpt2": "gpt2", "pico-llama": "llama"}


def load_classifier(
    source: str | os.PathLike,
    num_labels: int,
    *,
    seed: int = 0,
    labels: Sequence[str] | None = None,
    revision: str | None = None,
    dtype: str = "float32",
    assets: str | os.PathLike = ASSETS,
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
    start: str = "pretrained",
    reinit: Sequence[str] = (),
    new_head: bool | None = None,
    frozen: bool = True,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return a sequence classifier and its tokenizer: evaluation mode, no cache, weights frozen, on the CPU.

    ``source`` is ``minilm`` (built in), ``pico-bert``, or a source of ``load_model``. The head of ``num_labels``
    classes is drawn by the model's own initialiser from ``seed`` where the source holds none for so many
    (``new_head=None``), always (True), or never: it must be there (False). ``labels``: the names of the classes, for
    the model's configuration. ``start`` and ``reinit`` as in ``load_model``. A model and a tokenizer without a padding
    token get the end token as one. ``frozen`` False leaves ``requires_grad`` as transformers sets it. A folder that
    holds an adapter of peft gives a PeftModel, as in ``load_model``. Raises ValueError (AssetError, ModelError) naming
    the config key. Cost: 1 s for minilm.
    """
    check_choices(start, dtype)
    fields = _fields(num_labels, labels)
    source = os.fspath(source)
    if source in PICO_CLASSIFIERS:
        refuse_revision(source, revision)
        model = _pico(PICO_CLASSIFIERS[source], dtype, start, seed, reinit, fields)
        return model.requires_grad_(not frozen), pico_tokenizer()
    folder = prepare_model(source, assets, revision=revision, trust_remote_code=trust_remote_code)
    options: dict[str, Any] = {"attn_implementation": attn_implementation, "trust_remote_code": trust_remote_code}
    if holds_adapter(folder):
        own: dict[str, Any] = {
            "seed": seed,
            "labels": labels,
            "dtype": dtype,
            "assets": assets,
            "start": start,
            "reinit": reinit,
        }
        model, tokenizer = load_classifier(base_of(folder), num_labels, new_head=new_head, **own, **options)
        return read_adapter(model, folder), tokenizer
    kind = getattr(torch, dtype)

    def drawn() -> PreTrainedModel:
        return redrawn(folder, kind, seed, options, CLASSIFIER, **fields)

    if start == "random":
        model = drawn()
    else:
        model, new = _pretrained(folder, kind, seed, options, fields)
        _settle_head(model, new, new_head, source, drawn if new_head else None)
        if start == "mixed":
            copy_matching(model, drawn(), reinit)
    tokenizer = load_tokenizer(folder, trust_remote_code)
    _settle_padding(model, tokenizer)
    return settled(model, frozen), tokenizer


def _fields(num_labels: int, labels: Sequence[str] | None) -> dict[str, Any]:
    """Return what the model's configuration says of its classes; ModelError for too few, or for names that repeat."""
    if num_labels < 2:
        raise ModelError(f"num_labels: a head needs at least 2 classes, found {num_labels}")
    fields: dict[str, Any] = {"num_labels": num_labels, "problem_type": "single_label_classification"}
    if labels is None:
        return fields
    names = [str(label) for label in labels]
    if len(names) != num_labels or len(set(names)) != num_labels:
        raise ModelError(f"labels: {num_labels} different names are needed, found {names[:8]}")
    return fields | {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}


def _pretrained(
    folder: Path, dtype: torch.dtype, seed: int, options: dict[str, Any], fields: dict[str, Any]
) -> tuple[PreTrainedModel, set[str]]:
    """Return the model, and the names of the parameters that its files do not hold and ``seed`` has drawn."""
    from transformers import AutoModelForSequenceClassification

    refuse_encoder_decoder(folder)
    given: dict[str, Any] = {"local_files_only": True, "use_safetensors": True, "ignore_mismatched_sizes": True}
    try:
        with seeded(seed), _quiet():
            model, info = AutoModelForSequenceClassification.from_pretrained(
                folder, dtype=dtype, output_loading_info=True, **given, **options, **fields
            )
    except Exception as error:
        raise ModelError(f"model.source: {folder} could not be loaded as a classifier: {reason(error)}") from error
    mismatched = {one if isinstance(one, str) else one[0] for one in info["mismatched_keys"]}
    return model, set(info["missing_keys"]) | mismatched


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out transformers' report that a head is new: it is meant to be."""
    from transformers.utils import logging as transformers_logging

    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)


def _settle_head(model: Any, new: set[str], new_head: bool | None, source: str, drawn: Any) -> None:
    """Draw the head anew where that is asked for; ModelError where it should be there and is not."""
    head = head_names(model)
    missing = [name for name in head if name in new]
    if new_head is False and missing:
        raise ModelError(
            f"model.source: {source!r} holds no classification head of {model.num_labels} classes ({missing[0]} is"
            " missing); let a new one be drawn (new_head)"
        )
    if drawn is not None and missing != head:
        values = dict(drawn().named_parameters())
        with torch.no_grad():
            for name in head:
                model.get_parameter(name).copy_(values[name])
        new = new | set(head)
    if new:
        log.info("drawn anew: %s", ", ".join(sorted(new)))


def _settle_padding(model: Any, tokenizer: Any) -> None:
    """Let a tokenizer and a model without a padding token pad with the end token: a head reads what is not padding."""
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    config = model.config.get_text_config()
    if config.pad_token_id is None:
        config.pad_token_id = tokenizer.pad_token_id


def _pico(
    arch: str, dtype: str, start: str, seed: int, reinit: Sequence[str], fields: dict[str, Any]
) -> PreTrainedModel:
    # Seed 0 is what stands for the pretrained weights; the head, and other starts, draw from a seed that differs.
    classes, names = fields["num_labels"], {key: fields[key] for key in ("id2label", "label2id") if key in fields}
    drawn = pico_classifier(arch, classes, dtype=dtype, seed=draw_seed(seed), **names)
    if start == "random":
        return drawn
    model = pico_classifier(arch, classes, dtype=dtype, **names)
    values = dict(drawn.named_parameters())
    with torch.no_grad():
        for name in head_names(model):
            model.get_parameter(name).copy_(values[name])
    if start == "mixed":
        copy_matching(model, drawn, reinit)
    return model
