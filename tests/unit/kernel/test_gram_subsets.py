"""Subsets, codings, formulas, several tasks, parts by module: each against plain autograd on pico models."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

from kernel_reference import VERBALIZERS, pico, plain_jacobian, prompts, relative
from stopwise.artifacts.gram import sum_in_name_order
from stopwise.kernel import engine
from stopwise.kernel import products as tiles
from stopwise.kernel.fallback import Probe
from stopwise.kernel.ntk import empirical_ntk, kernel_layers, task_kernels
from stopwise.network.forward import attach_head, detach_head
from stopwise.network.parameters import select_parameters

LENGTHS = [5, 9, 3, 7]
ISLANDS = 5e-6  # float32 RMSNorm, rotary angles and softmax of Llama round differently under padding


def reference(model, batch, subset, outputs="contrast") -> np.ndarray:
    jacobian = plain_jacobian(model, batch, list(select_parameters(model, subset)), outputs)
    return (jacobian @ jacobian.T).numpy()


@pytest.mark.parametrize("outputs", ["contrast", "logits"])
@pytest.mark.parametrize("subset", ["linear", "head", [r"mlp.*(weight|bias)$", r"ln_1|input_layernorm"]])
@pytest.mark.parametrize("arch", ["gpt2", "llama"])
def test_subsets_equal_autograd(arch, subset, outputs):
    model, batch = pico(arch), prompts(LENGTHS)
    kernel = empirical_ntk(model, batch, parameters=subset, outputs=outputs)
    assert relative(kernel.matrix, reference(model, batch, subset, outputs)) < ISLANDS


@pytest.mark.parametrize("subset", ["head", "all"])
def test_untied_heads_and_new_heads(subset):
    model, batch = pico("qwen2"), prompts(LENGTHS)
    assert relative(empirical_ntk(model, batch, parameters=subset).matrix, reference(model, batch, subset)) < ISLANDS
    attach_head(model, 3, seed=1)
    found = empirical_ntk(model, batch, parameters=subset, outputs="head")
    assert relative(found.matrix, reference(model, batch, subset, "head")) < ISLANDS
    detach_head(model)


@pytest.mark.parametrize("arch", ["gpt2", "qwen2"])
def test_signgd_counts_agreeing_signs(arch):
    model, batch = pico(arch), prompts(LENGTHS)
    jacobian = plain_jacobian(model, batch, list(select_parameters(model, "all")))
    noise = 1e-11 * jacobian.abs().amax(1, keepdim=True)  # a key bias has gradient zero up to rounding
    signs = jacobian.masked_fill(jacobian.abs() < noise, 0).sign()
    found = empirical_ntk(model, batch, parameters="all", formula="signgd").matrix
    assert relative(found, signs @ signs.T) < 2e-3  # a few entries near zero may change sign
    assert np.array_equal(found, np.round(found))


@pytest.mark.parametrize("arch", ["gpt2", "llama", "qwen2", "bert"])
def test_adam_weighs_every_entry(arch):
    model, batch, other = pico(arch), adam_prompts(arch, LENGTHS), adam_prompts(arch, [6, 4], seed=2)
    chosen, weights, diagonal = adam_weights(model)
    found = empirical_ntk(model, batch, other, parameters="all", formula="adam", preconditioner=weights)
    left, right = (plain_jacobian(model, examples, list(chosen)) for examples in (batch, other))
    assert relative(found.matrix, (left * diagonal @ right.T).numpy()) < ISLANDS
    alone = empirical_ntk(model, batch, parameters="all", formula="adam", preconditioner=weights)
    assert relative(alone.matrix, (left * diagonal @ left.T).numpy()) < ISLANDS
    norms = np.sqrt(np.sum([squares**2 for squares in found.row_norms.values()], axis=0))
    assert np.allclose(norms, np.sqrt(np.diag(alone.matrix)), rtol=1e-4)


@pytest.mark.parametrize("arch", ["gpt2", "llama"])
def test_adam_weighs_what_no_formula_covers_too(arch, monkeypatch):
    """Whole gradients by autograd come in the parameter's own layout, also where it is stored transposed."""
    model, batch = pico(arch), prompts(LENGTHS)
    chosen, weights, diagonal = adam_weights(model)
    monkeypatch.setattr(engine, "probe", lambda run, group, examples=2: Probe(broken=list(run.terms[:3])))
    found = empirical_ntk(model, batch, parameters="all", formula="adam", preconditioner=weights)
    left = plain_jacobian(model, batch, list(chosen))
    assert relative(found.matrix, (left * diagonal @ left.T).numpy()) < ISLANDS


def adam_prompts(arch, lengths, seed=0):
    positions = list(range(len(lengths))) if arch == "bert" else None
    return prompts(lengths, seed=seed, positions=positions)


def adam_weights(model):
    """Return the parameters by name, a random D for each, and D in the order of the Jacobian's columns."""
    chosen, generator = select_parameters(model, "all"), torch.Generator().manual_seed(3)
    weights = {name: torch.rand(p.shape, generator=generator) for name, p in chosen.items()}
    return chosen, weights, torch.cat([weights[name].double().flatten() for name in chosen])


@pytest.mark.parametrize("arch", ["gpt2", "llama", "bert"])
def test_modules_add_up_exactly_and_refine_layers(arch):
    model = pico(arch)
    batch = prompts(LENGTHS, positions=[1, 2, 0, 3] if arch == "bert" else None)
    fine = empirical_ntk(model, batch, parameters="all", by="module")
    coarse = empirical_ntk(model, batch, parameters="all")
    assert np.array_equal(sum_in_name_order(fine.by_layer, fine.matrix.shape), fine.matrix)
    assert relative(fine.matrix, coarse.matrix) < 1e-14
    for layer, matrix in coarse.by_layer.items():
        block = layer.rpartition(".")[2].isdigit()  # outside of blocks every module is a layer of its own
        inside = [m for name, m in fine.by_layer.items() if name == layer or (block and name.startswith(layer + "."))]
        assert relative(np.sum(inside, 0), matrix) < 1e-12
    assert fine.by_layer.keys() == fine.row_norms.keys()


def test_tasks_with_different_classes_make_blocks():
    model = pico("llama")
    tasks = {
        "a": prompts([5, 8, 4], seed=1),
        "b": prompts([7, 3], seed=2) | {"verbalizers": torch.tensor([23, 50])},
        "c": prompts([6], seed=3) | {"verbalizers": torch.tensor(VERBALIZERS[::-1])},
    }
    for subset in ("attention", "all"):
        names = list(select_parameters(model, subset))
        jacobians = {key: plain_jacobian(model, batch, names) for key, batch in tasks.items()}
        blocks = task_kernels(model, tasks, parameters=subset)
        assert list(blocks) == [("a", "a"), ("a", "b"), ("a", "c"), ("b", "b"), ("b", "c"), ("c", "c")]
        for (a, b), kernel in blocks.items():
            assert relative(kernel.matrix, jacobians[a] @ jacobians[b].T) < ISLANDS
            assert [kernel.columns, kernel.columns_b] == [{"a": 2, "b": 1, "c": 2}[key] for key in (a, b)]


def test_cross_kernel_equals_autograd_and_transposes():
    model, a, b = pico("gpt2"), prompts([5, 8, 4], seed=1), prompts([7, 3], seed=2)
    names = list(select_parameters(model, "all"))
    left, right = plain_jacobian(model, a, names), plain_jacobian(model, b, names)
    found = empirical_ntk(model, a, b, parameters="all")
    assert relative(found.matrix, left @ right.T) < 1e-10
    assert relative(found.matrix, empirical_ntk(model, b, a, parameters="all").matrix.T) < 1e-12
    assert not found.symmetric


def test_direct_and_factored_forms_agree(monkeypatch):
    model, batch = pico("gpt2"), prompts(LENGTHS)
    found = []
    for form in (True, False):
        monkeypatch.setattr(tiles, "factored_is_cheaper", lambda *args, form=form: form)
        found.append(empirical_ntk(model, batch, parameters="linear", outputs="logits"))
        cross = empirical_ntk(model, batch, prompts([4, 6], seed=3), parameters="linear")
        found.append(cross)
    assert relative(found[0].matrix, found[2].matrix) < 1e-13
    assert relative(found[1].matrix, found[3].matrix) < 1e-13
    for name, norms in found[1].row_norms.items():
        assert relative(norms, found[3].row_norms[name]) < 1e-12


class Scaled(torch.nn.Linear):
    """A linear layer that no formula describes."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * self.weight.mean() + x.sum() * 0


def test_a_parameter_without_formula_takes_autograd_and_says_so_once(caplog):
    model, batch = pico("llama"), prompts(LENGTHS)
    odd = model.model.layers[1].self_attn.q_proj
    odd.__class__ = Scaled
    with torch.no_grad():
        odd.weight += 0.5
    with caplog.at_level(logging.WARNING, logger="stopwise"):
        found = empirical_ntk(model, batch)
    said = [r.getMessage() for r in caplog.records if "per-example autograd" in r.getMessage()]
    assert len(said) == 1
    assert "layers.1.self_attn.q_proj.weight" in said[0]
    assert relative(found.matrix, reference(model, batch, "attention")) < ISLANDS


def test_a_parameter_used_beside_its_module_is_noticed(caplog):
    """Weight used twice, once behind the hooks' back: the formula alone would be wrong and silent."""
    model, batch = pico("llama"), prompts(LENGTHS)
    attention = model.model.layers[0].self_attn
    attention.q_proj.register_forward_hook(lambda m, args, out: out + torch.nn.functional.linear(args[0], m.weight))
    with caplog.at_level(logging.WARNING, logger="stopwise"):
        found = empirical_ntk(model, batch)
    assert "layers.0.self_attn.q_proj.weight" in caplog.text
    assert relative(found.matrix, reference(model, batch, "attention")) < ISLANDS


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"formula": "adamw"}, "sgd, signgd, adam"),
        ({"formula": "adam"}, "no preconditioner"),
        ({"preconditioner": {}}, "'sgd' given a preconditioner"),
        ({"formula": "adam", "preconditioner": {}}, r"k_proj.weight' needs entries >= 0 in the shape"),
        ({"by": "head"}, "layer, module"),
        ({"outputs": "softmax"}, "contrast"),
        ({"dtype": "float16"}, "float16"),
        ({"layers": ["model.layers.9"]}, "layers.9"),
        ({"parameters": "attn"}, "attention"),
    ],
)
def test_malformed_requests_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        empirical_ntk(pico("llama"), prompts(LENGTHS), **options)


def test_the_model_comes_back_as_it_was():
    model, batch = pico("llama").train().requires_grad_(True), prompts(LENGTHS)
    model.lm_head.weight.requires_grad_(False)
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    flags = [p.requires_grad for p in model.parameters()]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    empirical_ntk(model, batch, parameters="all")
    assert all(m.training for m in model.modules())
    assert [p.requires_grad for p in model.parameters()] == flags
    assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()) == hooks
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_layers_are_named_in_model_order():
    blocks = [f"model.layers.{i}" for i in range(3)]
    assert kernel_layers(pico("llama"), "all") == ["model.embed_tokens", *blocks, "model.norm"]
