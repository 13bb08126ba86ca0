"""Loading a language model: built in, from a local folder of safetensors, or from a hub at a held revision.

Sequence classifiers are loaded by ``classifiers.load_classifier``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from stopwise.assets.wheels import ASSETS, AssetError
from stopwise.network.adapters import base_of, is_peft, read_adapter, with_adapter
from stopwise.network.classifiers import load_classifier
from stopwise.network.folders import (
    BUILTIN,
    DTYPES,
    ENCODER,
    PICO,
    PICO_ENCODER,
    STARTS,
    ModelError,
    check_choices,
    copy_matching,
    draw_seed,
    holds_adapter,
    model_fingerprint,
    prepare_model,
    reason,
    redrawn,
    refuse_encoder_decoder,
    refuse_revision,
    settled,
)
from stopwise.network.pico import pico_model, pico_tokenizer
from stopwise.network.tokenizer import check_positions, load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "BUILTIN",
    "DTYPES",
    "PICO",
    "STARTS",
    "AssetError",
    "ModelError",
    "check_positions",
    "load_configured",
    "load_model",
    "load_start",
    "load_tokenizer",
    "model_fingerprint",
    "pico_model",
    "pico_tokenizer",
    "prepare_model",
]


def load_model(
    source: str | os.PathLike,
    *,
    revision: str | None = None,
    dtype: str = "float32",
    assets: str | os.PathLike = ASSETS,
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
    start: str = "pretrained",
    seed: int = 0,
    reinit: Sequence[str] = (),
    num_labels: int | None = None,
    labels: Sequence[str] | None = None,
    frozen: bool = True,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return a causal language model and its tokenizer: evaluation mode, no cache, weights frozen, on the CPU.

    With ``num_labels`` a sequence classifier of so many classes, named by ``labels``: see ``load_classifier``.

    ``source`` is ``smollm2-135m``, ``pico-llama``, ``pico-gpt2``, ``pico-gpt-neo``, a local folder of safetensors, or a
    hub id (fetched into ``assets`` at the commit that ``revision`` names the first time; no network afterwards).
    ``start`` is ``pretrained``, ``mixed`` (parameters whose name matches a pattern of ``reinit`` are redrawn by the
    model's own initialiser) or ``random`` (all of them are); both depend on ``seed``. ``frozen`` False leaves
    ``requires_grad`` as transformers sets it. A folder or id that holds an adapter of peft gives a PeftModel: the model
    that the adapter names, loaded in the same way, with the adapter trainable on it. Raises ValueError (AssetError,
    ModelError) naming the config key. Cost: 2 s for smollm2-135m, 15 s more the first time.
    """
    check_choices(start, dtype)
    source = os.fspath(source)
    given: dict[str, Any] = {"attn_implementation": attn_implementation, "trust_remote_code": trust_remote_code}
    if num_labels is not None:
        given |= {"revision": revision, "dtype": dtype, "assets": assets, "start": start, "reinit": reinit}
        return load_classifier(source, num_labels, seed=seed, labels=labels, frozen=frozen, **given)
    if source in (ENCODER, PICO_ENCODER):
        raise ModelError(f"model.source: {source!r} has no language-model head; give num_labels for a head of classes")
    if source in PICO:
        refuse_revision(source, revision)
        return _pico(PICO[source], dtype, start, seed, reinit).requires_grad_(not frozen), pico_tokenizer()
    folder = prepare_model(source, assets, revision=revision, trust_remote_code=trust_remote_code)
    if holds_adapter(folder):
        own: dict[str, Any] = {"dtype": dtype, "assets": assets, "start": start, "seed": seed, "reinit": reinit}
        model, tokenizer = load_model(base_of(folder), **own, **given)
        return read_adapter(model, folder), tokenizer
    kind = getattr(torch, dtype)
    if start == "random":
        model = redrawn(folder, kind, seed, given)
    else:
        model = _pretrained(folder, kind, given)
        if start == "mixed":
            copy_matching(model, redrawn(folder, kind, seed, given), reinit)
    return settled(model, frozen), load_tokenizer(folder, trust_remote_code)


def _pico(arch: str, dtype: str, start: str, seed: int, reinit: Sequence[str]) -> PreTrainedModel:
    # Seed 0 is what stands for the pretrained weights; other starts draw from seeds that differ from it.
    model = pico_model(arch, dtype=dtype, seed=draw_seed(seed) if start == "random" else 0)
    if start == "mixed":
        copy_matching(model, pico_model(arch, dtype=dtype, seed=draw_seed(seed)), reinit)
    return model


def _pretrained(folder: Path, dtype: torch.dtype, options: dict[str, Any]) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    refuse_encoder_decoder(folder)
    causal: Any = AutoModelForCausalLM  # with loading info it returns a pair
    try:
        model, info = causal.from_pretrained(
            folder, dtype=dtype, local_files_only=True, use_safetensors=True, output_loading_info=True, **options
        )
    except Exception as error:
        raise ModelError(f"model.source: {folder} could not be loaded: {reason(error)}") from error
    if missing := sorted(info["missing_keys"]):
        raise ModelError(
            f"model.source: {folder} holds no language-model head ({missing[0]} is missing), so no word can answer;"
            " allowed: model.head: classification, or a causal language model"
        )
    return model


def load_start(
    snakemake: Any, start: str, seed: int, device: str, classes: Sequence[str] | None = None
) -> tuple[Any, dict[str, Any]]:
    """Return the configured model at a start (pretrained, mixed, random) on the device, and its record.

    ``classes``: the labels of the job's task, for which ``model.head: classification`` has a new head drawn by
    ``seed``. Raises ModelError in a job of several tasks, which have no head in common.
    """
    stamp = json.loads(Path(snakemake.input.model).read_text(encoding="utf-8"))
    parameters = (snakemake.params.get("kernel") or {}).get("parameters")
    model = load_configured(stamp, snakemake.params.model, start, seed, classes, parameters)
    return model.to(device), stamp


def load_configured(
    stamp: Mapping[str, Any],
    section: Mapping[str, Any],
    start: str,
    seed: int,
    classes: Sequence[str] | None = None,
    parameters: Any = None,
) -> Any:
    """Return the model of a prepared folder as a configuration's model section says, on the CPU; see ``load_start``.

    ``stamp``: the record of the prepared model: its ``folder``, and the folder of its ``adapter`` if it has one.
    ``parameters``: of the kernel section. Where they ask for peft the model is inside a PeftModel; ``trainable`` leaves
    ``requires_grad`` as transformers sets it. Raises ModelError for both an adapter that is there and a new one.
    """
    options = {key: section[key] for key in ("dtype", "attn_implementation", "trust_remote_code")}
    options |= {"start": start, "seed": seed, "reinit": section.get("reinit", ())}
    options |= {"frozen": parameters != "trainable" or "adapter" in stamp}
    if section.get("head") == "classification":
        if classes is None:
            raise ModelError("model.head: 'classification' gives every task a head of its own; allowed here: words")
        model, _ = load_classifier(stamp["folder"], len(classes), labels=classes, new_head=True, **options)
    else:
        model, _ = load_model(stamp["folder"], **options)
    if "adapter" not in stamp:
        return with_adapter(model, parameters["peft"] or {}, seed) if is_peft(parameters) else model
    if parameters != "trainable":
        raise ModelError(
            f"kernel.parameters: {stamp['adapter']} holds an adapter, which is what would be trained; found"
            f" {parameters!r}; allowed: trainable"
        )
    return read_adapter(model, Path(stamp["adapter"]))
