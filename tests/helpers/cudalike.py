"""Tensors on the CPU that say ``cuda:0``: placement of every operation is tested without a GPU.

Inside ``cuda()`` an operation that mixes devices fails as CUDA's does, and launches of kernels and waits for the device
are counted, the latter by the line of the package that waits. Numbers are those of the CPU.
"""

from __future__ import annotations

import collections
import contextlib
import traceback
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten
CUDA = torch.device("cuda:0")
MEMORY = 150_000_000_000
# Operations that CUDA lets take tensors of both sides: copies, and indices on the CPU.
MIXED = {
    aten.copy_.default,
    aten._to_copy.default,
    aten.index.Tensor,
    aten.index_put_.default,
    aten._index_put_impl_.default,
    aten.index_put.default,
    aten._unsafe_index.Tensor,
}
VIEWS = frozenset(
    """view slice select transpose t expand unsqueeze squeeze permute detach alias _unsafe_view as_strided split
    unbind reshape _reshape_alias diagonal lift_fresh""".split()  # noqa: SIM905
)


@dataclass
class Seen:
    """What the look-alike device did: launches by operation, waits of the host by kind and by line."""

    launches: collections.Counter = field(default_factory=collections.Counter)
    waits: collections.Counter = field(default_factory=collections.Counter)
    lines: collections.Counter = field(default_factory=collections.Counter)

    def wait(self, kind: str) -> None:
        """Count one wait of the host for the device, at the innermost line of the package."""
        self.waits[kind] += 1
        for frame in reversed(traceback.extract_stack()):
            if "/stopwise/" in frame.filename:
                self.lines[f"{frame.filename.rsplit('/', 1)[1]}:{frame.lineno} {kind}"] += 1
                return


SEEN = Seen()


class LookAlike(torch.Tensor):
    """A CPU tensor that says it is on ``cuda:0``."""

    elem: torch.Tensor

    @staticmethod
    def __new__(cls, elem: torch.Tensor) -> LookAlike:
        found = torch.Tensor._make_wrapper_subclass(
            cls,
            elem.size(),
            strides=elem.stride(),
            storage_offset=elem.storage_offset(),
            dtype=elem.dtype,
            layout=elem.layout,
            device="meta",
        )
        found.elem = elem
        return found

    def __repr__(self) -> str:
        return f"LookAlike({self.elem})"

    @property
    def device(self) -> torch.device:
        return CUDA

    @property
    def is_cuda(self) -> bool:
        return True

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        self.numpy()

    def tolist(self) -> Any:
        SEEN.wait("tolist")
        return self.elem.tolist()

    def cpu(self) -> torch.Tensor:
        return self.to("cpu")

    def untyped_storage(self) -> Any:
        return self.elem.untyped_storage()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return _run(func, args, kwargs or {})


def _on_gpu(device: Any) -> bool:
    return isinstance(device, str | torch.device) and torch.device(device).type in ("cuda", "meta")


def _run(func: Any, args: tuple, kwargs: dict) -> Any:
    """Run one operation, or refuse it as CUDA would."""
    tensors = [one for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)]
    ours = [one for one in tensors if isinstance(one, LookAlike)]
    host = [one for one in tensors if not isinstance(one, LookAlike)]
    made = _on_gpu(kwargs.get("device"))
    if func is aten._local_scalar_dense.default and ours:
        SEEN.wait("item")
        return func(ours[0].elem)
    if func is aten._to_copy.default:
        return _copied(func, args[0], kwargs)
    if ours:
        _check(func, args, host)
    if not ours and not made:
        return func(*args, **kwargs)
    name = str(func).split(".")[1]
    if name not in VIEWS:
        SEEN.launches[name] += 1
    kept = {key: value for key, value in kwargs.items() if key != "device"}
    bare = tree_map(lambda one: one.elem if isinstance(one, LookAlike) else one, (args, kept))
    out = func(*bare[0], **bare[1])
    if func is aten.copy_.default:
        return args[0]
    known = {id(one.elem): one for one in ours}
    return tree_map(lambda one: known[id(one)] if id(one) in known else _wrapped(one), out)


def _wrapped(value: Any) -> Any:
    return LookAlike(value) if isinstance(value, torch.Tensor) else value


def _copied(func: Any, tensor: torch.Tensor, kwargs: dict) -> torch.Tensor:
    here, device = isinstance(tensor, LookAlike), kwargs.get("device")
    there = here if device is None else _on_gpu(device)
    out = func(tensor.elem if here else tensor, **{key: value for key, value in kwargs.items() if key != "device"})
    if here and not there:
        SEEN.wait("to host")
    SEEN.launches["_to_copy"] += 1
    return LookAlike(out) if there else out


def _check(func: Any, args: tuple, host: list[torch.Tensor]) -> None:
    """Refuse tensors of two devices where CUDA does; a scalar tensor of the host may go with any."""
    if func not in MIXED and any(one.dim() for one in host):
        shapes = [tuple(one.shape) for one in tree_leaves(args) if isinstance(one, torch.Tensor)]
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found cuda:0 and cpu in {func} {shapes}"
        )
    if func in MIXED and func is not aten.copy_.default:
        if not isinstance(args[0], LookAlike):
            raise RuntimeError(f"indices should be either on cpu or on the same device as the indexed tensor in {func}")
        if host:
            SEEN.wait("index from host")
    if func is aten.copy_.default and any(one.dim() for one in host):
        SEEN.wait("copy across")


class _Dispatch(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return _run(func, args, kwargs or {})


class _Functions(TorchFunctionMode):
    """Moves between devices and factories with a device, which must not reach PyTorch's own CUDA."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if name == "to" and args and isinstance(args[0], torch.Tensor):
            return _moved(func, args[0], args[1:], kwargs)
        if _on_gpu(kwargs.get("device")) and name not in ("_parse_to", "autocast"):
            kwargs.pop("device")
            out = func(*args, **kwargs)
            if not isinstance(out, torch.Tensor) or isinstance(out, LookAlike):
                return out
            found = LookAlike(out.detach())
            return found.requires_grad_(True) if out.requires_grad else found
        return func(*args, **kwargs)


def _moved(func: Any, tensor: torch.Tensor, rest: tuple, kwargs: dict) -> torch.Tensor:
    """Do what ``Tensor.to`` does."""
    device, dtype, copy = kwargs.get("device"), kwargs.get("dtype"), kwargs.get("copy", False)
    for one in rest:
        if isinstance(one, torch.Tensor):
            device, dtype = one.device, one.dtype
        elif isinstance(one, str | torch.device):
            device = one
        elif isinstance(one, torch.dtype):
            dtype = one
    here = isinstance(tensor, LookAlike)
    there = here if device is None else _on_gpu(device)
    if here == there:
        changes = copy or (dtype is not None and dtype != tensor.dtype)
        return func(tensor, dtype or tensor.dtype, copy=copy) if changes else tensor
    bare = tensor.detach()
    if here:
        SEEN.wait("to host")
        return bare.elem.to(dtype, copy=True) if dtype else bare.elem.clone()
    return LookAlike(bare.to(dtype, copy=True) if dtype else bare.clone())


@contextlib.contextmanager
def cuda(free: int = MEMORY) -> Iterator[Seen]:
    """Make this process look as if it had one GPU, for the time of a block; yields what that GPU does."""
    global SEEN
    SEEN = Seen()
    properties = types.SimpleNamespace(total_memory=MEMORY, major=9, minor=0, multi_processor_count=100)
    fakes: dict[str, Callable] = {
        "is_available": lambda: True,
        "is_initialized": lambda: False,
        "_lazy_init": lambda: None,
        "synchronize": lambda *args: None,
        "empty_cache": lambda: None,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_name": lambda *args: "look-alike",
        "get_device_properties": lambda *args: properties,
        "mem_get_info": lambda *args: (free, MEMORY),
        "memory_allocated": lambda *args: 0,
        "max_memory_allocated": lambda *args: 0,
        "reset_peak_memory_stats": lambda *args: None,
        "is_bf16_supported": lambda *args, **kwargs: True,
    }
    before = {name: getattr(torch.cuda, name) for name in fakes}
    for name, fake in fakes.items():
        setattr(torch.cuda, name, fake)
    try:
        with _Dispatch(), _Functions():
            yield SEEN
    finally:
        for name, own in before.items():
            setattr(torch.cuda, name, own)


def place(model: nn.Module) -> nn.Module:
    """Put a model's weights and buffers on the look-alike device, tied weights once."""
    moved: dict[int, nn.Parameter] = {}
    with cuda():
        for module in model.modules():
            for name, own in list(module._parameters.items()):
                if own is not None:
                    if id(own) not in moved:
                        moved[id(own)] = nn.Parameter(LookAlike(own.detach()), requires_grad=False)
                    module._parameters[name] = moved[id(own)]
            for name, own in list(module._buffers.items()):
                if own is not None:
                    module._buffers[name] = LookAlike(own.detach())
    return model
