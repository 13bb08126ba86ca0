"""Made-up prompts and a plain, slow training loop, for the tests of fine-tuning."""

import numpy as np
import torch

from stopwise.linearized.coding import targets
from stopwise.network.forward import class_outputs

VERBALIZERS = (270, 280, 290)


def made_up_batch(n, seed=0, classes=2, shortest=3, longest=9, learnable=True):
    """Prompts of varied length whose label is a function of their last tokens, padded on the right."""
    draw = np.random.default_rng(seed)
    lengths = draw.integers(shortest, longest + 1, n)
    ids, mask = np.zeros((n, longest), dtype=np.int64), np.zeros((n, longest), dtype=np.int64)
    for i, length in enumerate(lengths):
        ids[i, :length] = draw.integers(5, 300, length)
        mask[i, :length] = 1
    last = ids[np.arange(n), lengths - 1]
    labels = last % classes if learnable else draw.integers(0, classes, n)
    return {
        "input_ids": torch.as_tensor(ids),
        "attention_mask": torch.as_tensor(mask),
        "labels": torch.as_tensor(labels),
        "verbalizers": torch.as_tensor(VERBALIZERS[:classes]),
    }


def plain_gradient(model, parameters, batch, intercept, outputs="contrast"):
    """Gradient of (1/(2m))|y - b - f|^2, one example at a time, sharing only the forward pass."""
    classes = len(batch["verbalizers"])
    y = torch.as_tensor(targets(batch["labels"].numpy(), classes, outputs))
    n, columns = y.shape
    total = [torch.zeros_like(p, dtype=torch.float64) for p in parameters.values()]
    for p in parameters.values():
        p.requires_grad_(True)
    for i in range(n):
        one = {k: (v if k == "verbalizers" else v[i : i + 1]) for k, v in batch.items()}
        length = int(one["attention_mask"].sum())
        one["input_ids"], one["attention_mask"] = one["input_ids"][:, :length], one["attention_mask"][:, :length]
        f = class_outputs(model, one, outputs=outputs)[0]
        loss = ((y[i] - torch.as_tensor(intercept) - f) ** 2).sum() / (2 * n * columns)
        for sum_, g in zip(total, torch.autograd.grad(loss, list(parameters.values())), strict=True):
            sum_ += g
    for p in parameters.values():
        p.requires_grad_(False)
    return total


def outputs_one_by_one(model, batch, outputs="contrast"):
    """Outputs f float64 [n, columns] without gradients."""
    with torch.no_grad():
        return class_outputs(model, batch, outputs=outputs).double().numpy()


def weights(model):
    """A copy of every parameter."""
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same_weights(model, before):
    """Whether every parameter has the very bits it had."""
    return all(torch.equal(p, before[name]) for name, p in model.named_parameters())
