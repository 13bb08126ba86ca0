"""Adapters by peft: the update that they were asked for, beside the layers named, and read back from a folder."""

import re

import pytest
import torch
from peft import LoraConfig, get_peft_model

from kernel_reference import pico, plain_outputs, prompts, relative
from stopwise.kernel.ntk import empirical_ntk
from stopwise.network.adapters import with_adapter
from stopwise.network.architecture import attention_linears, is_linear
from stopwise.network.folders import ModelError, prepare_model
from stopwise.network.loading import load_configured, load_model
from stopwise.network.parameters import select_parameters
from stopwise.network.pico import pico_model
from stopwise.pipeline.config import validated

LENGTHS = [5, 9, 3, 7]


def asked(options):
    """What a configuration makes of ``{lora: options}``."""
    tasks = {"t": {"source": {"csv": "x.csv"}, "text": "text", "label": "label"}}
    config = {"name": "x", "tasks": tasks, "kernel": {"parameters": {"lora": options}}}
    return validated(config)["kernel"]["parameters"]["peft"]


def by_hand(model, adapted, patterns, scale):
    """Return J by autograd of W + scale B A on the plain model, with the A and B of the adapted one.

    ``patterns`` are searched in the names of linear layers; None: the linear layers inside attention modules.
    """
    inside = {id(module) for module in attention_linears(model)}
    factors = []
    for name, module in model.named_modules():
        named = id(module) in inside if patterns is None else any(re.search(p, name) for p in patterns)
        if not (is_linear(module) and named):
            continue
        own = adapted.get_submodule(f"base_model.model.{name}")
        down, up = (part["default"].weight.detach().clone().requires_grad_(True) for part in (own.lora_A, own.lora_B))
        factors += [down, up]
        module.register_forward_hook(lambda _, x, y, down=down, up=up: y + scale * (x[0] @ down.T) @ up.T)
    rows = []
    for f in plain_outputs(model, prompts(LENGTHS)):
        for value in f:
            gradients = torch.autograd.grad(value, factors, retain_graph=True, allow_unused=True)
            filled = [torch.zeros_like(p) if g is None else g for p, g in zip(factors, gradients, strict=True)]
            rows.append(torch.cat([g.flatten() for g in filled]))
    return torch.stack(rows), len(factors)


@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize(
    ("arch", "options"),
    [
        ("gpt2", {"rank": 3, "scale": 0.5, "target": [r"c_attn|fc", "0.attn.c_proj"]}),
        ("llama", {"rank": 3, "scale": 2, "target": "q_proj|up_proj"}),
        ("llama", {}),
    ],
)
def test_lora_in_a_configuration_is_the_update_that_it_says(arch, options, moved):
    """The kernel of ``{lora: ...}`` is that of W + scale B A over A and B, at B = 0 and after training moved it."""
    adapted = with_adapter(pico(arch), asked(options))
    if moved:
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(len(name)))
    target = options.get("target")
    patterns = [target] if isinstance(target, str) else target
    jacobian, count = by_hand(pico(arch), adapted, patterns, options.get("scale", 1))
    assert len(select_parameters(adapted, "trainable")) == count
    found = empirical_ntk(adapted, prompts(LENGTHS), parameters="trainable").matrix
    # Llama's norms and rotary angles are float32 and round differently beside padding (3e-7 here).
    assert relative(found, (jacobian @ jacobian.T).numpy()) < 1e-6


def test_a_is_drawn_from_the_seed_alone():
    makes = [with_adapter(pico_model("llama"), {"rank": 2, "seed": s}, seed=t) for s, t in ((1, 7), (1, 8), (2, 7))]
    a, b, c = (next(p for name, p in made.named_parameters() if "lora_A" in name) for made in makes)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


@pytest.mark.parametrize("target", ["zzz", ["zzz"]])
def test_a_target_that_matches_nothing_is_named(target):
    with pytest.raises(ModelError, match=r"^kernel\.parameters\.peft\.target: .*zzz") as caught:
        with_adapter(pico_model("llama"), {"target": target})
    assert "\n" not in str(caught.value)


SECTION = {"dtype": "float64", "attn_implementation": None, "trust_remote_code": False}


@pytest.fixture
def saved(tmp_path):
    """The folders of a pico model and of an adapter of it whose B is not zero, and the adapted model."""
    base = prepare_model("pico-llama", tmp_path)
    model = load_model(base, dtype="float64")[0]
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], r=2, lora_alpha=6, use_rslora=True)
    adapted = get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    adapted.save_pretrained(tmp_path / "adapter")
    return base, tmp_path / "adapter", adapted


def test_an_adapter_in_a_folder_comes_with_its_model(saved):
    """As it is: its scaling, its moved B, trainable on a frozen model; by the library and by a configuration."""
    base, folder, adapted = saved
    wanted = empirical_ntk(adapted, prompts(LENGTHS), parameters="trainable").matrix
    read = load_model(folder, dtype="float64")[0]
    stamp = {"folder": str(base), "adapter": str(folder)}
    configured = load_configured(stamp, SECTION, "pretrained", 0, parameters="trainable")
    for model in (read, configured):
        chosen = select_parameters(model, "trainable")
        assert all("lora_" in name for name in chosen)
        assert len(chosen) == 2 * model.config.num_hidden_layers
        # What safetensors holds of the adapter is float64, as it was.
        found = empirical_ntk(model, prompts(LENGTHS), parameters="trainable").matrix
        assert relative(found, wanted) < 1e-12


def test_an_adapter_that_is_there_is_what_trains(saved):
    stamp = {"folder": str(saved[0]), "adapter": str(saved[1])}
    with pytest.raises(
        ModelError, match=r"kernel\.parameters: .* holds an adapter, .* found 'all'; allowed: trainable"
    ):
        load_configured(stamp, SECTION, "pretrained", 0, parameters="all")


@pytest.mark.parametrize("text", ["{}", '{"base_model_name_or_path": null}', "{"])
def test_an_adapter_without_a_model_is_named(text, saved):
    (saved[1] / "adapter_config.json").write_text(text)
    with pytest.raises(ModelError, match=r"model\.source: .* does not name the adapter's model") as caught:
        load_model(saved[1])
    assert "\n" not in str(caught.value)


def test_an_adapter_of_another_model_is_named(saved, tmp_path):
    pico_model("gpt2").float().save_pretrained(saved[0])
    with pytest.raises(ModelError, match=r"model\.source: the adapter in .* could not be read") as caught:
        load_model(saved[1])
    assert "\n" not in str(caught.value)


def test_trainable_of_a_plain_model_is_what_transformers_leaves_trainable(tmp_path):
    stamp = {"folder": str(prepare_model("pico-bert", tmp_path))}
    section = SECTION | {"head": "classification"}
    model = load_configured(stamp, section, "pretrained", 0, ["a", "b", "c"], "trainable")
    assert set(select_parameters(model, "trainable")) == set(select_parameters(model, "all"))
    frozen = load_configured(stamp, section, "pretrained", 0, ["a", "b", "c"], "all")
    with pytest.raises(ValueError, match="nothing to train"):
        select_parameters(frozen, "trainable")
