"""The tokenizer of a local folder, and how long its model's prompts may be: nothing here needs torch."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from stopwise.pipeline.start_up import transformers_without_torch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class ModelError(ValueError):
    """A model that cannot be loaded as asked."""


def load_tokenizer(folder: str | os.PathLike, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Return the fast tokenizer of a local folder, padding on the right; raises ModelError when there is none."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=trust_remote_code, padding_side="right"
        )
    except Exception as error:
        raise ModelError(f"model.source: the tokenizer in {folder} could not be loaded: {reason(error)}") from error
    if not tokenizer.is_fast:
        raise ModelError(f"model.source: {folder} has no tokenizer.json; only fast tokenizers are supported")
    return tokenizer


def tokenizer_alone(folder: str | os.PathLike, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Return ``load_tokenizer``'s tokenizer in a process that loads no model: torch is not imported (3 s).

    With ``trust_remote_code`` it is: the code of a hub's tokenizer may need it.
    """
    if trust_remote_code:
        return load_tokenizer(folder, trust_remote_code)
    with transformers_without_torch():
        return load_tokenizer(folder)


def check_positions(max_tokens: int, folder: str | os.PathLike) -> None:
    """Raise ModelError when prompts of ``max_tokens`` tokens would not fit into the model of a local folder."""
    shape = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    known = [shape[key] for key in ("max_position_embeddings", "n_positions") if isinstance(shape.get(key), int)]
    # RoBERTa and its kin keep the rows up to the padding token's for padding.
    kept = (shape.get("pad_token_id") or 0) + 1 if "roberta" in str(shape.get("model_type")) else 0
    if known and max_tokens > min(known) - kept:
        raise ModelError(f"data.max_tokens: {max_tokens} is more than the {min(known) - kept} positions of the model")


def reason(error: BaseException) -> str:
    """Return the class and the first line of an error."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300] if lines else 'no detail'}"
