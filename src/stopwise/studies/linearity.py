"""How linear is training? A pico transformer really trained, beside its linearised path, step by step (torch)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from stopwise.kernel.ntk import empirical_ntk
from stopwise.linearized.filters import Filter, GradientDescent, HeavyBall
from stopwise.linearized.paths import linearized_path, train_path
from stopwise.linearized.spectrum import Spectrum
from stopwise.network.forward import class_outputs
from stopwise.network.parameters import select_parameters
from stopwise.network.pico import pico_model

EXAMPLES, NEW, TOKENS, VERBALIZERS = 12, 6, 8, (260, 261)
# Just inside alpha = 1/lambda_1, so that a kernel that grows a little during training does not end the comparison.
STEP_SIZE = 0.9


def _prompts(n: int, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 250, (n, TOKENS), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def compare_with_training(
    width: int, scale: float, optimizer: str, momentum: float = 0.9, steps: int = 30, seed: int = 0
) -> list[dict[str, Any]]:
    """Train the attention weights of a random pico GPT-2 (fp64) and return its distance from the linearised path.

    Targets are f0 + scale * (+-1/sqrt(2)) with random signs, loss (1/(2m))|.|^2, full batches, alpha = 0.9/lambda_1,
    ``optimizer`` ``gradient_descent`` or ``heavy_ball``. One row per step t >= 1: ``deviation`` = |f_t - path_t| /
    |path_t - f0| on the 12 training prompts, ``deviation_new`` on 6 others, ``loss`` and ``predicted_loss``. The
    deviation is of first order in scale and shrinks as the width grows (Lee et al. 2019; Chizat et al. 2019).
    """
    model = pico_model("gpt2", seed=seed, n_embd=width, n_head=4, n_layer=2)
    train, new = _prompts(EXAMPLES, seed + 1), _prompts(NEW, seed + 2)
    kernel = empirical_ntk(model, train, verbalizers=VERBALIZERS, device="cpu")
    cross = empirical_ntk(model, new, train, verbalizers=VERBALIZERS, device="cpu").matrix
    spec = Spectrum.of(kernel)
    residual = scale * np.random.default_rng(seed).choice([-1.0, 1.0], EXAMPLES) / np.sqrt(2)
    lr = STEP_SIZE / spec.lambda_max
    filter: Filter = HeavyBall(lr, momentum) if optimizer == "heavy_ball" else GradientDescent(lr)
    path, path_new = train_path(spec, residual, filter, steps), linearized_path(spec, residual, cross, filter, steps)
    moved = _train(model, train, new, residual, filter, steps)
    rows = []
    for t in range(1, steps + 1):
        own, other = moved[t]
        rows.append(
            {
                "width": width,
                "scale": scale,
                "optimizer": optimizer,
                "step": t,
                "eta": float(filter.eta(t)),
                "deviation": float(np.linalg.norm(own - path[t]) / np.linalg.norm(path[t])),
                "deviation_new": float(np.linalg.norm(other - path_new[t]) / np.linalg.norm(path_new[t])),
                "loss": float(np.mean((residual - own) ** 2)),
                "predicted_loss": float(np.mean((residual - path[t]) ** 2)),
            }
        )
    return rows


def _train(
    model: torch.nn.Module, train: dict, new: dict, residual: np.ndarray, filter: Filter, steps: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Outputs minus f0 on both sets after each step of torch's own SGD."""
    chosen = list(select_parameters(model, "attention").values())
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for parameter in chosen:
        parameter.requires_grad_(True)
    sgd = torch.optim.SGD(chosen, lr=filter.lr, momentum=filter.momentum)
    with torch.no_grad():
        f0, f0_new = (class_outputs(model, batch, VERBALIZERS) for batch in (train, new))
    target, out = f0 + torch.as_tensor(residual, dtype=f0.dtype)[:, None], []
    for _ in range(steps + 1):
        outputs = class_outputs(model, train, VERBALIZERS)
        with torch.no_grad():
            moved_new = class_outputs(model, new, VERBALIZERS) - f0_new
        out.append(((outputs.detach() - f0).numpy().ravel(), moved_new.numpy().ravel()))
        sgd.zero_grad()
        (0.5 * ((outputs - target) ** 2).mean()).backward()
        sgd.step()
    return out
