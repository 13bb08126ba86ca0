"""At the door of ``stopwise advise``: options, file, folder, device and model looked at before torch is imported."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from stopwise.advice.data import File, read_file, words_of
from stopwise.advice.plan import Plan
from stopwise.advice.rows import read_data
from stopwise.advice.settings import AdviceError, Settings

SUMMARY = "summary.parquet"
DEVICES = re.compile(r"auto|cpu|mps|cuda(:\d+)?")
# models.BUILTIN and models.PICO, which cannot be imported without torch; a test holds them equal.
BUILT_IN = ("smollm2-135m", "pico-gpt2", "pico-gpt-neo", "pico-llama")


def look(settings: Settings | Plan, *, device: str, output: str | Path, force: bool) -> File:
    """Return the file read, when nothing that can be known without the model speaks against advice.

    Raises ValueError in one line for a device that torch cannot have, a folder that may not be replaced, a model that
    is not there, and whatever ``advise_data.read_file`` and ``words_of`` refuse. Cost: one read of the file.
    """
    check_device(device)
    check_model(settings.model, settings.revision)
    check_folder(output, settings, force)
    file = read_data(settings) if isinstance(settings, Plan) else read_settings(settings)
    words_of(file, settings.verbalizers)
    return file


def read_settings(settings: Settings) -> File:
    """Return the file that settings name, read as they say."""
    return read_file(settings.data, settings.text, settings.label, template=settings.template, **settings.reading)


def check_device(device: str) -> None:
    """Raise AdviceError for the name of a device that is none."""
    if not DEVICES.fullmatch(device):
        raise AdviceError(f"--device: {device!r} is not one of auto, cpu, cuda, cuda:0 (or another number), mps")


def check_present(device: str) -> None:
    """Raise AdviceError for a device that torch was not built for or this machine does not have; imports torch."""
    import torch

    kind, _, number = device.partition(":")
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        sees = "no CUDA device" if not count else f"{count} CUDA device{'s' if count > 1 else ''}"
        raise AdviceError(f"--device: {device!r} is asked for, and torch sees {sees}; allowed: auto or cpu")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise AdviceError("--device: 'mps' is asked for, and torch sees no such device; allowed: auto or cpu")


def check_model(source: str, revision: str | None) -> None:
    """Raise AdviceError for a folder that is not there, and a revision of what has none."""
    is_folder = bool(source) and Path(source).expanduser().is_dir()
    if not is_folder and (not source or source.startswith((".", "/", "~")) or source.count("/") > 1):
        raise AdviceError(f"--model: there is no folder {source!r}")
    if revision is not None and (is_folder or source in BUILT_IN):
        raise AdviceError(f"--revision: {revision!r} given, but {source!r} is not a hub id; leave it out")


def check_folder(folder: str | Path, settings: Any, force: bool = False) -> None:
    """Raise AdviceError when a folder holds something that this advice may not replace.

    Free are: an absent or empty folder, the advice of the very same settings, and, with ``force``, other advice. A
    folder that holds no advice at all is never replaced.
    """
    path = Path(folder)
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    from stopwise.artifacts import tables as artifacts

    try:
        before = artifacts.read_provenance(path / SUMMARY)
    except artifacts.ArtifactError:
        raise AdviceError(f"--output: {path} exists and is not advice; give another folder") from None
    if before.get("config") != json.loads(json.dumps(vars(settings))) and not force:
        raise AdviceError(
            f"--output: {path} holds the advice of other settings ({before['config'].get('data')}); give another"
            " folder, or --force to replace it"
        )
