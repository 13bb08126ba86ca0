"""Parameter subsets: each holds what its name says, and ties count once."""

from __future__ import annotations

import pytest

from kernel_reference import pico
from stopwise.network.forward import attach_head
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
        ("lora", "put one on the model with peft .* and choose trainable"),
        ({"peft": {"rank": 2}}, "put one on the model with peft .* and choose trainable"),
    ],
)
def test_a_subset_that_means_nothing_is_named(subset, message):
    with pytest.raises(ValueError, match=message):
        select_parameters(pico("llama"), subset)
