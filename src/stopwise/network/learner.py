"""The network as a differentiable map from its trained parameters to its outputs, whole batches at a time.

A batch is cut into groups of similar length; the gradient is accumulated over them and equals that of the whole batch.
``Learner`` is the network itself, ``TangentLearner`` the network linearised at its start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from stopwise.network.attention import steady_attention
from stopwise.network.batches import START_TOKENS, Packed, even_groups, length_buckets, pack, verbalizers_of
from stopwise.network.forward import packed_outputs
from stopwise.network.heads import sees_later_tokens
from stopwise.network.unpadded import runs_unpadded, unpadded_outputs

# The gradient of a loss in the outputs: (f of some rows, their indices in the batch) -> cotangent of the same shape.
Cotangent = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True, eq=False)
class Prompts:
    """Prompts ready for passes: packed tokens, verbalizers, example indices in groups, one pass each.

    ``unpadded``: whether a pass runs them as one row of tokens (``stopwise.network.unpadded``).
    """

    packed: Packed
    verbalizers: torch.Tensor
    groups: list[torch.Tensor]
    unpadded: bool = False

    @classmethod
    def of(cls, batch: Mapping[str, torch.Tensor], tokens_per_batch: int, model: Any = None) -> Prompts:
        """Pack a batch and group it, without padding for a ``model`` that can; ValueError for a malformed batch."""
        packed, verbalizers = pack(batch), verbalizers_of(batch, None, model)
        unpadded = model is not None and runs_unpadded(model, packed, verbalizers)
        return cls(packed, verbalizers, _groups(packed, tokens_per_batch, unpadded), unpadded)

    def rows(self, index: np.ndarray, tokens_per_batch: int) -> Prompts:
        """Return the prompts of some examples, grouped anew."""
        packed = self.packed.rows(torch.as_tensor(index))
        return Prompts(packed, self.verbalizers, _groups(packed, tokens_per_batch, self.unpadded), self.unpadded)

    def part(self, index: torch.Tensor) -> tuple[Packed, torch.Tensor, bool]:
        """Return the packed rows of one group, the verbalizers that answer it, and whether it runs unpadded."""
        return self.packed.rows(index), self.verbalizers, self.unpadded

    def gather(self, pieces: list[torch.Tensor]) -> np.ndarray:
        """Return the outputs of all groups, in the order of the batch, as one array [n, columns]."""
        together = torch.cat(pieces).cpu()
        f = torch.empty_like(together)
        f[torch.cat(self.groups)] = together
        return f.numpy()

    def __len__(self) -> int:
        return len(self.packed)


def _groups(packed: Packed, tokens_per_batch: int, unpadded: bool) -> list[torch.Tensor]:
    if unpadded:
        return even_groups(packed, tokens_per_batch)
    return length_buckets(packed, tokens_per_batch, start_tokens=START_TOKENS)


class Learner:
    """A model and its trained parameters; ``tensors`` are what an optimizer moves, in name order.

    Use inside ``trainable()``, which switches gradients on for the trained parameters only: parts of the network below
    the lowest of them are then never differentiated.
    """

    def __init__(
        self, model: Any, parameters: Mapping[str, torch.nn.Parameter], outputs: str, autocast: str | None = None
    ) -> None:
        self.model, self.parameters, self.outputs = model, dict(parameters), outputs
        self.names = list(self.parameters)
        self.device = next(model.parameters()).device
        self.autocast = autocast
        sees_later_tokens(model)  # tried now, before weights are exchanged for others

    @property
    def tensors(self) -> list[torch.Tensor]:
        """The tensors that training moves."""
        return [parameter.detach() for parameter in self.parameters.values()]

    @contextmanager
    def trainable(self) -> Iterator[None]:
        """Let gradients reach the trained parameters and no others; flags and gradients are put back afterwards."""
        before = {parameter: (parameter.requires_grad, parameter.grad) for parameter in self.model.parameters()}
        try:
            self.model.requires_grad_(False)
            for parameter in self.parameters.values():
                parameter.requires_grad_(True)
            yield
        finally:
            for parameter, (flag, gradient) in before.items():
                parameter.requires_grad_(flag)
                parameter.grad = gradient

    def _precision(self) -> Any:
        # Float32 products keep the default backend: oneDNN's, which the kernel prefers, takes a fifth longer here.
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=getattr(torch, self.autocast))

    def forward(self, prompts: Prompts, index: torch.Tensor) -> torch.Tensor:
        """Return f of some examples, differentiable."""
        with self._precision(), steady_attention(self.device):
            packed, verbalizers, unpadded = prompts.part(index)
            run = unpadded_outputs if unpadded else packed_outputs
            f = run(self.model, packed, verbalizers, self.outputs)
        return _at_least_float32(f)

    def predict(self, prompts: Prompts) -> np.ndarray:
        """Return f [n, columns] without gradients; float32, or float64 for a float64 model."""
        with torch.no_grad():
            return prompts.gather([self.forward(prompts, index) for index in prompts.groups])

    def gradient(self, prompts: Prompts, cotangent: Cotangent) -> tuple[np.ndarray, list[torch.Tensor]]:
        """Return (f [n, columns], gradients in the order of ``tensors``) of a batch, accumulated over its groups."""
        for parameter in self.parameters.values():
            parameter.grad = None
        pieces = []
        for index in prompts.groups:
            f = self.forward(prompts, index)
            self._backward(f, cotangent(f.detach().cpu().numpy(), index.numpy()))
            pieces.append(f.detach())
        return prompts.gather(pieces), self._gradients()

    def _backward(self, f: torch.Tensor, cotangent: np.ndarray) -> None:
        f.backward(torch.as_tensor(cotangent, dtype=f.dtype, device=f.device))

    def _gradients(self) -> list[torch.Tensor]:
        return [
            torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            for parameter in self.parameters.values()
        ]


class TangentLearner(Learner):
    """The linearised network f0(x) + J(x) delta: its trained tensors are delta, which starts at zero.

    J is never formed: outputs are one Jacobian-vector product, and since the model is linear its gradient is one
    ordinary backward pass at the start with the cotangent of the linearised outputs. Costs about twice an ordinary
    step.
    """

    def __init__(
        self, model: Any, parameters: Mapping[str, torch.nn.Parameter], outputs: str, autocast: str | None = None
    ) -> None:
        super().__init__(model, parameters, outputs, autocast)
        self._delta = [torch.zeros_like(parameter, requires_grad=False) for parameter in self.parameters.values()]
        self._wrapped = _Outputs(model)

    @property
    def tensors(self) -> list[torch.Tensor]:
        """The displacement delta."""
        return self._delta

    def displaced(self, prompts: Prompts) -> tuple[np.ndarray, np.ndarray]:
        """Return (f0, J delta), both [n, columns], of a batch."""
        pairs = [self._jvp(prompts, index) for index in prompts.groups]
        return prompts.gather([f0 for f0, _ in pairs]), prompts.gather([change for _, change in pairs])

    def forward(self, prompts: Prompts, index: torch.Tensor) -> torch.Tensor:
        """Return the linearised outputs of some examples (no graph)."""
        f0, change = self._jvp(prompts, index)
        return f0 + change

    def _jvp(self, prompts: Prompts, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        packed, verbalizers, _ = prompts.part(index)
        arguments = (packed, verbalizers, self.outputs)

        def outputs(parameters: dict[str, torch.Tensor]) -> torch.Tensor:
            return torch.func.functional_call(self._wrapped, parameters, arguments)

        primal = {f"model.{name}": parameter.detach() for name, parameter in self.parameters.items()}
        tangent = dict(zip(primal, self._delta, strict=True))
        # The fused attention kernels have no forward-mode derivative; the plain one does.
        with torch.no_grad(), self._precision(), sdpa_kernel(SDPBackend.MATH):
            f0, change = torch.func.jvp(outputs, (primal,), (tangent,))[:2]
        return _at_least_float32(f0), _at_least_float32(change)

    def gradient(self, prompts: Prompts, cotangent: Cotangent) -> tuple[np.ndarray, list[torch.Tensor]]:
        """Return (linearised f, its gradients in delta)."""
        for parameter in self.parameters.values():
            parameter.grad = None
        pieces = []
        for index in prompts.groups:
            linear = self.forward(prompts, index)
            at_start = super().forward(prompts, index)
            self._backward(at_start, cotangent(linear.cpu().numpy(), index.numpy()))
            pieces.append(linear)
        return prompts.gather(pieces), self._gradients()


class _Outputs(torch.nn.Module):
    """``packed_outputs`` as a module, so that ``functional_call`` can exchange the model's parameters."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, rows: Packed, verbalizers: torch.Tensor, outputs: str) -> torch.Tensor:
        """Return f of packed rows."""
        return packed_outputs(self.model, rows, verbalizers, outputs)


def _at_least_float32(f: torch.Tensor) -> torch.Tensor:
    return f.float() if f.dtype in (torch.bfloat16, torch.float16) else f
