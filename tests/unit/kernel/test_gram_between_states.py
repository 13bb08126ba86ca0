"""Kernels between states of a network, J_l D_k J_k', against autograd at each state; what comes back as it was."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from kernel_reference import pico, plain_jacobian, prompts, relative, shaken
from stopwise.kernel.between_states import anchored_grams, trained_state
from stopwise.kernel.engine import Engine
from stopwise.network.parameters import select_parameters
from stopwise.network.pico import pico_classifier

LENGTHS = [5, 9, 3, 7]
KINDS = ("all", "head", "lora", "words")


def network(kind: str) -> tuple[torch.nn.Module, dict]:
    """A BERT classifier of which everything, the head or an adapter is trained; or GPT-2, whose weights are turned."""
    batch = prompts(LENGTHS)
    if kind == "words":
        return pico("gpt2").requires_grad_(True), batch
    del batch["verbalizers"]
    model = shaken(pico_classifier("bert", 3)).double()
    if kind == "lora":
        torch.manual_seed(0)
        model = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", target_modules=["query", "value"], r=2)).double()
        return model, batch
    chosen = set(select_parameters(model, kind))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)
    return model, batch


def states_of(model: torch.nn.Module, count: int = 3) -> tuple[list, list, list]:
    """States some way apart, their metrics (None for the second), and J and f of each by autograd."""
    generator, names = torch.Generator().manual_seed(1), sorted(select_parameters(model, "trainable"))
    named, states, metrics = dict(model.named_parameters()), [], []
    for k in range(count):
        with torch.no_grad():
            for name in names:
                named[name] += 0.05 * torch.randn(named[name].shape, generator=generator, dtype=torch.float64)
        states.append(trained_state(model))
        drawn = {name: torch.rand(named[name].shape, generator=generator, dtype=torch.float64) for name in names}
        metrics.append(None if k == 1 else drawn)
    return states, metrics, names


def truth(model: torch.nn.Module, batch: dict, states: list, metrics: list, names: list) -> tuple[list, list]:
    """J of every state by autograd, and the diagonals of the metrics as vectors."""
    named, jacobians = dict(model.named_parameters()), []
    for state in states:
        with torch.no_grad():
            for name in names:
                named[name].copy_(state[name])
        jacobians.append(plain_jacobian(model.eval(), batch, names))
    return jacobians, [1.0 if d is None else torch.cat([d[name].flatten() for name in names]) for d in metrics]


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_every_pair_of_states_has_the_kernel_of_autograd(kind, keep, monkeypatch):
    monkeypatch.setattr(Engine, "keeps", lambda self: keep)
    model, batch = network(kind)
    states, metrics, names = states_of(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    found = anchored_grams(model, batch, states, metrics, plain=True)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert flags == {name: p.requires_grad for name, p in model.named_parameters()}
    jacobians, diagonals = truth(model, batch, states, metrics, names)
    assert sorted(found.grams) == [(0, 0), (1, 0), (1, 1), (2, 0), (2, 1), (2, 2)]
    for (left, right), gram in found.grams.items():
        # float64 throughout but for tiles that some architectures compute in float32.
        assert relative(gram, (jacobians[left] * diagonals[right]) @ jacobians[right].T) < 1e-6
    for k, gram in found.plain.items():
        assert relative(gram, jacobians[k] @ jacobians[k].T) < 1e-6
        assert np.array_equal(gram, gram.T)


def test_the_last_row_alone_is_that_of_all():
    model, batch = network("lora")
    states, metrics, _ = states_of(model)
    whole, last = (anchored_grams(model, batch, states, metrics, last=one, plain=True) for one in (False, True))
    assert sorted(last.grams) == [(2, 0), (2, 1), (2, 2)]
    assert list(last.plain) == [2]
    for found, wanted in zip(last.row(2), whole.row(2), strict=True):
        assert relative(found, wanted) < 1e-12
    assert np.array_equal(last.outputs[2], whole.outputs[2])


def test_states_that_do_not_fit_are_named():
    model, batch = network("head")
    states, metrics, names = states_of(model)
    with pytest.raises(ValueError, match="3 of them and 2 preconditioners"):
        anchored_grams(model, batch, states, metrics[:2])
    states[1] = states[1] | {names[0]: torch.zeros(2)}
    with pytest.raises(ValueError, match=rf"states: number 1 has '{names[0]}' with shape \(2,\)"):
        anchored_grams(model, batch, states, metrics)
    states, metrics, _ = states_of(model)
    with pytest.raises(ValueError, match=r"checkpoints: 3 of them need .* may be used"):
        anchored_grams(model, batch, states, metrics, memory_gb=1e-6)
