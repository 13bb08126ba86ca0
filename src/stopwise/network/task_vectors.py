"""Task vectors: differences of weights that add, subtract, scale and apply (Ilharco et al., 2023), lazily.

A vector is a linear combination of sources, each a dict of tensors or a safetensors file. Algebra only combines the
coefficients; a tensor is computed when it is asked for. Combining vectors of a large model therefore needs the memory
of one tensor while saving, and of the changed weights while applying. Nothing is ever normalised.
"""

from __future__ import annotations

import copy
import json
import math
import numbers
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from stopwise.network.tensor_files import TensorFile, TensorSpec, write_tensor_file

METADATA_KEY = "stopwise"
_LAYER = re.compile(r"^(.*?\.\d+)\.")
_HALF = (torch.float16, torch.bfloat16)


class _Memory(Mapping[str, torch.Tensor]):
    """Tensors in memory with the interface of a file: specs, name order."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self._tensors = {name: tensors[name].detach() for name in sorted(tensors)}
        self.specs = {name: TensorSpec(value.dtype, tuple(value.shape)) for name, value in self._tensors.items()}

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


Source = _Memory | TensorFile


class TaskVector(Mapping[str, torch.Tensor]):
    """A task vector: ``vector[name]`` is the change of parameter ``name``, computed when asked for.

    Coefficients are Python floats; each tensor is summed in float64 and rounded once to the widest dtype among its
    sources, so that the order of additions does not matter beyond that rounding. ``metadata`` belongs to a vector made
    by training (task, n, seed, step, intercept); a combination lists its terms with their coefficients instead.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, Any] | None = None) -> None:
        self._terms: tuple[tuple[float, Source], ...] = ((1.0, _Memory(tensors)),)
        self.specs = self._terms[0][1].specs
        self.metadata: dict[str, Any] = dict(metadata or {})

    @classmethod
    def _combine(cls, terms: tuple[tuple[float, Source], ...], metadata: Mapping[str, Any]) -> TaskVector:
        vector = cls.__new__(cls)
        vector._terms, vector.metadata = terms, dict(metadata)
        vector.specs = _joint_specs([source for _, source in terms])
        return vector

    @classmethod
    def between(
        cls,
        base: torch.nn.Module | Mapping[str, torch.Tensor],
        tuned: torch.nn.Module | Mapping[str, torch.Tensor],
        *,
        names: list[str] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> TaskVector:
        """Return tuned - base over the parameters that differ (or over ``names``).

        Differences of half-precision weights are kept in float32, which holds them exactly; others in their own dtype.
        Raises ValueError listing every name or shape that is on one side only. Memory: the changed parameters.
        """
        old, new = weights_of(base), weights_of(tuned)
        _refuse_mismatch(old, new, "base", "tuned")
        chosen = names if names is not None else [name for name in old if not torch.equal(old[name], new[name])]
        missing = sorted(set(chosen) - old.keys())
        if missing:
            raise ValueError(f"task vector: no parameter {', '.join(missing)} in the base weights")
        return cls({name: difference(new[name], old[name]) for name in chosen}, metadata)

    @classmethod
    def load(cls, path: str | Path) -> TaskVector:
        """Open a saved vector without reading its tensors; raises ValueError naming a file that is not whole."""
        file = TensorFile(path)
        try:
            metadata = json.loads(file.metadata.get(METADATA_KEY, "{}"))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}: unreadable task vector metadata ({error})") from error
        return cls._combine(((1.0, file),), metadata)

    def save(self, path: str | Path) -> None:
        """Write the vector as safetensors, one tensor at a time, atomically; metadata as JSON in the header.

        A vector may be saved over a file that it reads. Memory: one tensor (and its float64 sum).
        """
        write_tensor_file(path, self.specs, self.__getitem__, {"format": "pt", METADATA_KEY: json.dumps(self.metadata)})

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self.specs:
            raise KeyError(name)
        if len(self._terms) == 1 and self._terms[0][0] == 1.0:
            return self._terms[0][1][name]
        return self.double(name).to(self.specs[name].dtype)

    def double(self, name: str, device: torch.device | str = "cpu") -> torch.Tensor:
        """Return one tensor as its float64 sum on a device, before rounding."""
        total = torch.zeros(self.specs[name].shape, dtype=torch.float64, device=device)
        for coefficient, source in self._terms:
            total.add_(source[name].to(device, torch.float64), alpha=coefficient)
        return total

    def kept_on(self, device: torch.device | str) -> TaskVector:
        """Return the same vector with its tensors read once and kept on a device, to be applied there many times."""
        terms = ((c, _Memory({name: source[name].to(device) for name in source})) for c, source in self._terms)
        return TaskVector._combine(tuple(terms), self.metadata)

    def __iter__(self) -> Iterator[str]:
        return iter(self.specs)

    def __len__(self) -> int:
        return len(self.specs)

    def _scaled_terms(self, factor: float) -> tuple[tuple[float, Source], ...]:
        return tuple((factor * coefficient, source) for coefficient, source in self._terms)

    def _described(self, factor: float) -> list[dict[str, Any]]:
        if "terms" in self.metadata:
            return [{**term, "coefficient": factor * term["coefficient"]} for term in self.metadata["terms"]]
        return [{**self.metadata, "coefficient": factor}]

    def __add__(self, other: TaskVector | int) -> TaskVector:
        if isinstance(other, int) and other == 0:  # the start of sum()
            return self
        if not isinstance(other, TaskVector):
            return NotImplemented
        _refuse_mismatch(self.specs, other.specs, "left", "right")
        terms = {"terms": self._described(1.0) + other._described(1.0)}
        return TaskVector._combine(self._terms + other._terms, terms)

    __radd__ = __add__

    def __mul__(self, factor: float) -> TaskVector:
        if not isinstance(factor, numbers.Real):
            return NotImplemented
        factor = float(factor)
        return TaskVector._combine(self._scaled_terms(factor), {"terms": self._described(factor)})

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> TaskVector:
        return self * (1.0 / divisor)

    def __neg__(self) -> TaskVector:
        return self * -1.0

    def __sub__(self, other: TaskVector) -> TaskVector:
        return self + (-other) if isinstance(other, TaskVector) else NotImplemented

    def apply_to(self, base: Any, scaling_coef: float = 1.0) -> Any:
        """Return new weights base + scaling_coef * vector; ``base`` is left as it is.

        ``base`` is a model (a copy is returned that shares every unchanged parameter with it) or a state dict (tied
        entries stay tied). Sums are float64, rounded once to the base's dtype. Raises ValueError listing the
        parameters that the base lacks or has in another shape.
        """
        weights = weights_of(base)
        self._refuse_base(weights)
        changed = {name: moved(weights[name], self, name, scaling_coef) for name in self}
        if isinstance(base, torch.nn.Module):
            return _copy_with(base, changed)
        new = {name: changed.get(name, value) for name, value in base.items()}
        by_storage = {(base[name].data_ptr(), base[name].shape): changed[name] for name in changed}
        for name, value in base.items():
            if name not in changed and value.numel():
                new[name] = by_storage.get((value.data_ptr(), value.shape), value)
        return new

    def _refuse_base(self, weights: Mapping[str, torch.Tensor]) -> None:
        wrong = [name for name in self if name not in weights or tuple(weights[name].shape) != self.specs[name].shape]
        if wrong:
            raise ValueError(f"task vector does not fit the base weights: {_shown(wrong)}")

    def dot(self, other: TaskVector) -> float:
        """Return the inner product, summed in float64, one tensor at a time."""
        _refuse_mismatch(self.specs, other.specs, "left", "right")
        return sum(float(self.double(name).flatten() @ other.double(name).flatten()) for name in self)

    def norm(self) -> float:
        """Return the Euclidean norm over all parameters."""
        return math.sqrt(self.dot(self))

    def cosine(self, other: TaskVector) -> float:
        """Return the cosine of the angle to another vector; NaN when one of them is zero."""
        norms = self.norm() * other.norm()
        return self.dot(other) / norms if norms > 0 else math.nan

    def layers(self) -> dict[str, list[str]]:
        """Return the per-layer view: layer name -> its parameter names (an unnumbered module is a layer of its own)."""
        view: dict[str, list[str]] = {}
        for name in self:
            view.setdefault(layer_of(name), []).append(name)
        return view

    def layer_norms(self) -> dict[str, float]:
        """Return the Euclidean norm of each layer; their squares add up to that of the vector."""
        return {
            layer: math.sqrt(sum(float(self.double(name).square().sum()) for name in names))
            for layer, names in self.layers().items()
        }

    def intercept(self, task: str | None = None) -> list[float] | None:
        """Return the stored intercept b_hat of ``task`` (of the only term when None); None when there is none."""
        for term in self._described(1.0):
            if task is not None and task in term.get("intercepts", {}):
                return term["intercepts"][task]
            if task is None or term.get("task") == task:
                return term.get("intercept")
        return None

    def __repr__(self) -> str:
        numel = sum(math.prod(spec.shape) for spec in self.specs.values())
        return f"TaskVector({len(self)} tensors, {numel:,} numbers, {len(self._terms)} terms)"


def weights_of(weights: torch.nn.Module | Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return name -> tensor of a model's parameters (tied ones once) or of a state dict."""
    if isinstance(weights, torch.nn.Module):
        return {name: parameter.detach() for name, parameter in weights.named_parameters()}
    return dict(weights)


def difference(new: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
    """Return new - old, rounded once; in float32 for half-precision weights."""
    dtype = torch.float32 if new.dtype in _HALF else new.dtype
    return (new.detach().to("cpu", torch.float64) - old.detach().to("cpu", torch.float64)).to(dtype)


def moved(weight: torch.Tensor, vector: TaskVector, name: str, scaling_coef: float) -> torch.Tensor:
    """Return weight + scaling_coef * vector[name] in the weight's dtype and device, summed in float64: CUDA has it."""
    place = weight.device if weight.is_cuda else torch.device("cpu")
    total = weight.detach().to(place, torch.float64) + scaling_coef * vector.double(name, place)
    return total.to(weight.device, weight.dtype)


def layer_of(name: str) -> str:
    """Return the layer of a parameter: up to the first number (model.layers.3), or its module."""
    match = _LAYER.match(name)
    return match.group(1) if match else name.rpartition(".")[0]


def _copy_with(model: torch.nn.Module, changed: Mapping[str, torch.Tensor]) -> torch.nn.Module:
    """Return a copy of ``model`` with new values for some parameters, sharing all other parameters and buffers."""
    memo: dict[int, Any] = {id(buffer): buffer for buffer in model.buffers()}
    for name, parameter in model.named_parameters():
        new = torch.nn.Parameter(changed[name], parameter.requires_grad) if name in changed else parameter
        memo[id(parameter)] = new
    return copy.deepcopy(model, memo)


def _joint_specs(sources: list[Source]) -> dict[str, TensorSpec]:
    specs = dict(sources[0].specs)
    for source in sources[1:]:
        for name, spec in source.specs.items():
            specs[name] = TensorSpec(torch.promote_types(specs[name].dtype, spec.dtype), spec.shape)
    return specs


def _shape(value: TensorSpec | torch.Tensor) -> tuple[int, ...]:
    return tuple(value.shape)


def _refuse_mismatch(left: Mapping[str, Any], right: Mapping[str, Any], left_name: str, right_name: str) -> None:
    """Raise ValueError with the list of names on one side only and of shapes that differ."""
    wrong = [f"{name} (only {left_name})" for name in sorted(left.keys() - right.keys())]
    wrong += [f"{name} (only {right_name})" for name in sorted(right.keys() - left.keys())]
    wrong += [
        f"{name} ({_shape(left[name])} against {_shape(right[name])})"
        for name in sorted(left.keys() & right.keys())
        if _shape(left[name]) != _shape(right[name])
    ]
    if wrong:
        raise ValueError(f"task vectors do not match in {len(wrong)} parameters: {_shown(wrong)}")


def _shown(names: list[str], limit: int = 20) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
