"""Safetensors files read and written one tensor at a time, so that memory holds one tensor and never one file.

The format is a little-endian length, a JSON header and the raw bytes. The stock writer wants all tensors at once and
the stock reader maps the file; both count a whole vector against a job's memory limit, which is what this module
avoids.
"""

from __future__ import annotations

import json
import math
import os
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

_CODES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_DTYPES = {code: dtype for dtype, code in _CODES.items()}
_MAX_HEADER = 100_000_000  # the limit of the safetensors format


@dataclass(frozen=True)
class TensorSpec:
    """Dtype and shape of a stored tensor, known without reading it."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


class TensorFile(Mapping[str, torch.Tensor]):
    """A safetensors file as a mapping that reads a tensor when asked for it, in name order.

    Raises ValueError naming the file when it is missing, cut short or not in the format. Each access reads the tensor's
    bytes anew: nothing is cached.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            # The open descriptor keeps reading the same bytes when the file is replaced under its name.
            self._descriptor = os.open(self.path, os.O_RDONLY)
            weakref.finalize(self, os.close, self._descriptor)
            length = int.from_bytes(os.pread(self._descriptor, 8, 0), "little")
            if not 2 <= length <= _MAX_HEADER:
                raise ValueError(f"header of {length} bytes")
            header = json.loads(os.pread(self._descriptor, length, 8))
            self.metadata: dict[str, str] = header.pop("__metadata__", {})
            self.specs = {
                name: TensorSpec(_DTYPES[header[name]["dtype"]], tuple(header[name]["shape"]))
                for name in sorted(header)
            }
            self._start = {name: 8 + length + header[name]["data_offsets"][0] for name in header}
            self._check_size()
        except FileNotFoundError:
            raise ValueError(f"{self.path}: no such safetensors file") from None
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            raise ValueError(f"{self.path}: not a whole safetensors file ({error})") from error

    def _check_size(self) -> None:
        size = os.fstat(self._descriptor).st_size
        end = max((self._start[name] + spec.nbytes for name, spec in self.specs.items()), default=0)
        if end > size:
            raise ValueError(f"{size} bytes found, {end} expected")

    def __getitem__(self, name: str) -> torch.Tensor:
        spec = self.specs[name]
        if spec.nbytes == 0:
            return torch.empty(spec.shape, dtype=spec.dtype)
        buffer = bytearray(spec.nbytes)
        view, done = memoryview(buffer), 0
        while done < spec.nbytes:  # one read returns at most 2 GiB
            read = os.preadv(self._descriptor, [view[done:]], self._start[name] + done)
            if read == 0:
                raise ValueError(f"{self.path}: cut short inside {name}")
            done += read
        return torch.frombuffer(buffer, dtype=spec.dtype).reshape(spec.shape)

    def __iter__(self):
        return iter(self.specs)

    def __len__(self) -> int:
        return len(self.specs)


def write_tensor_file(
    path: str | Path,
    specs: Mapping[str, TensorSpec],
    tensor: Callable[[str], torch.Tensor],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a safetensors file by a temporary name and rename, calling ``tensor(name)`` for one tensor at a time.

    Memory: one tensor. Raises ValueError when a tensor is not what its spec says, and then leaves no file.
    """
    path = Path(path)
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name, spec in specs.items():
        entry = {"dtype": _CODES[spec.dtype], "shape": list(spec.shape), "data_offsets": [offset, offset + spec.nbytes]}
        header[name] = entry
        offset += spec.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as stream:
            stream.write(len(text).to_bytes(8, "little") + text)
            for name, spec in specs.items():
                stream.write(_raw(tensor(name), name, spec))
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _raw(tensor: torch.Tensor, name: str, spec: TensorSpec) -> memoryview:
    if tensor.dtype != spec.dtype or tuple(tensor.shape) != spec.shape:
        raise ValueError(f"{name}: {tensor.dtype} {tuple(tensor.shape)} does not match {spec.dtype} {spec.shape}")
    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")
