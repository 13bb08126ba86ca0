"""Parameter subsets: each holds what its name says, ties count once, and adapters come and go without a trace."""

from __future__ import annotations

import pytest
import torch

from kernel_reference import pico, prompts
from stopwise.network import lora
from stopwise.network.forward import attach_head, class_outputs
from stopwise.network.parameters import select_parameters

ATTENTION = {
    "gpt2": {"c_attn.weight", "c_attn.bias", "c_proj.weight", "c_proj.bias"},
    "gpt-neo": {"q_proj.weight", "k_proj.weight", "v_proj.weight", "out_proj.weight", "out_proj.bias"},
    "gpt-neox": {"query_key_value.weight", "query_key_value.bias", "dense.weight", "dense.bias"},
    "llama": {"q_proj.weight", "k_proj.weight", "v_proj.weight", "o_proj.weight"},
    "qwen2": {f"{x}_proj.{y}" for x in "qkv" for y in ("weight", "bias")} | {"o_proj.weight"},
    "qwen3": {"q_proj.weight", "k_proj.weight", "v_proj.weight", "o_proj.weight"},
    "opt": {f"{x}_proj.{y}" for x in ("q", "k", "v", "out") for y in ("weight", "bias")},
    "bert": {f"{x}.{y}" for x in ("query", "key", "value", "dense") for y in ("weight", "bias")},
}


@pytest.mark.parametrize("arch", sorted(ATTENTION))
def test_attention_holds_the_four_projections_of_every_layer(arch):
    model = pico(arch)
    chosen = select_parameters(model, "attention")
    layers = model.config.num_hidden_layers
    assert {".".join(name.split(".")[-2:]) for name in chosen} == ATTENTION[arch]
    assert len(chosen) == layers * len(ATTENTION[arch])
    assert list(chosen) == sorted(chosen)


def test_linear_leaves_the_head_and_tables_and_all_counts_a_tie_once():
    model = pico("llama")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    linear = select_parameters(model, "linear")
    assert len(linear) == 3 * 7
    everything = select_parameters(model, "all")
    assert "model.embed_tokens.weight" in everything
    assert "lm_head.weight" not in everything
    assert sum(p.numel() for p in everything.values()) == model.num_parameters()


def test_head_is_the_new_one_when_attached():
    model = pico("qwen2")
    assert list(select_parameters(model, "head")) == ["lm_head.weight"]
    attach_head(model, 3)
    assert list(select_parameters(model, "head")) == ["class_head.weight"]


def test_expressions_are_searched_in_names():
    model = pico("llama")
    assert len(select_parameters(model, [r"layers\.0\..*norm", r"q_proj"])) == 2 + 3


@pytest.mark.parametrize(
    ("subset", "message"),
    [
        ("attentoin", "attention, linear"),
        ([r"no_such"], "no_such"),
        (["("], "regular expression"),
        ("lora", "lora.attach"),
        ({"lora": {"rnak": 2}}, "rnak"),
        ({"adapter": {}}, "adapter"),
        ({"lora": {"rank": 0}}, "rank"),
        ({"lora": {"target": "zzz"}}, "zzz"),
    ],
)
def test_a_subset_that_means_nothing_is_named(subset, message):
    with pytest.raises(ValueError, match=message):
        select_parameters(pico("llama"), subset)


@pytest.mark.parametrize("arch", ["gpt2", "llama"])
def test_adapters_start_at_the_model_and_merge_into_its_weights(arch):
    model, batch = pico(arch), prompts([5, 7])
    before = class_outputs(model, batch)
    names = set(dict(model.named_parameters()))
    chosen = select_parameters(model, {"lora": {"rank": 2, "seed": 3, "scale": 0.5}})
    assert len(chosen) == 2 * len([n for n in select_parameters(model, "attention") if n.endswith("weight")])
    assert torch.equal(class_outputs(model, batch), before)
    for name, parameter in chosen.items():
        if name.endswith(lora.UP):
            parameter.normal_(generator=torch.Generator().manual_seed(0))
    moved = class_outputs(model, batch)
    assert not torch.allclose(moved, before)
    lora.detach(model, merge=True)
    assert set(dict(model.named_parameters())) == names
    assert torch.allclose(class_outputs(model, batch), moved, rtol=1e-5, atol=0)


def test_adapters_are_seeded():
    a, b, c = (select_parameters(pico("llama"), {"lora": {"rank": 2, "seed": s}}) for s in (1, 1, 2))
    name = next(n for n in a if n.endswith(lora.DOWN))
    assert torch.equal(a[name], b[name])
    assert not torch.equal(a[name], c[name])
