"""Checkpoints of a training run: one safetensors file, written whole or not at all, checked when read.

A run that is killed at any moment leaves either the previous checkpoint or the new one. Every number of the run that is
not a tensor travels as JSON in the file's header, so nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

HEADER_KEY = "stopwise"
FORMAT = 1


class CheckpointError(ValueError):
    """A checkpoint that cannot be used: damaged, or of another run."""


def _bytes(tensor: torch.Tensor) -> memoryview:
    """Return a view of a tensor's bytes (any dtype), copying only what is not contiguous on the CPU."""
    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


def temporary_name(path: Path) -> Path:
    """Return the name that ``path`` is written under before it is renamed."""
    return path.with_name(path.name + ".part")


def save_checkpoint(path: Path, tensors: Mapping[str, torch.Tensor], meta: Mapping[str, Any]) -> None:
    """Write tensors and JSON-able ``meta`` to ``path`` by a temporary name, fsync and rename.

    Costs one pass over the bytes for the checksum and one for the disk; a leftover temporary file is overwritten.
    Raises OSError naming the file when it cannot be written (a full disk); no part of it stays.
    """
    tensors = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    checksums = {name: zlib.crc32(_bytes(tensor)) for name, tensor in tensors.items()}
    header = {"format": FORMAT, "checksums": checksums, "meta": dict(meta)}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = temporary_name(path)
    try:
        save_file(tensors, part, metadata={HEADER_KEY: json.dumps(header)})
        with part.open("rb") as stream:
            os.fsync(stream.fileno())
        os.replace(part, path)
    except SafetensorError as error:
        raise OSError(f"{path}: the checkpoint could not be written ({error})") from error
    finally:
        part.unlink(missing_ok=True)


def load_checkpoint(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return (tensors, meta) of a checkpoint; raises CheckpointError naming the file when any byte of it is wrong."""
    try:
        with safe_open(path, framework="pt") as stream:
            header = json.loads((stream.metadata() or {})[HEADER_KEY])
            if header["format"] != FORMAT:
                raise CheckpointError(f"{path}: checkpoint format {header['format']}, this version reads {FORMAT}")
            tensors = {name: stream.get_tensor(name).clone() for name in stream.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, KeyError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: not a readable checkpoint ({error})") from error
    wrong = sorted(
        name
        for name in tensors.keys() | header["checksums"].keys()
        if name not in tensors or zlib.crc32(_bytes(tensors[name])) != header["checksums"].get(name)
    )
    if wrong:
        raise CheckpointError(f"{path}: damaged, checksum of {wrong[0]} does not match")
    return tensors, header["meta"]


def remove_checkpoint(path: Path) -> None:
    """Remove a checkpoint and what an interrupted write of it may have left; neither need exist."""
    path.unlink(missing_ok=True)
    temporary_name(path).unlink(missing_ok=True)


def digest_tensors(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """Return the sha256 over names, dtypes, shapes and bytes of tensors in the order given."""
    sha = hashlib.sha256()
    for name, tensor in tensors:
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        sha.update(_bytes(tensor))
    return sha.hexdigest()
