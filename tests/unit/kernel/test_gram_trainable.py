"""Kernels of what requires a gradient: frozen layers and PEFT models as they come, against autograd; and AdamW's D."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model

from kernel_reference import pico, plain_jacobian, prompts, relative, shaken
from stopwise.kernel.ntk import empirical_ntk, kernel_layers
from stopwise.network.forward import class_outputs
from stopwise.network.heads import bare, is_classifier
from stopwise.network.learner import Learner, Prompts
from stopwise.network.parameters import select_parameters
from stopwise.network.pico import pico_classifier
from stopwise.training.adam_preconditioner import SECOND_ORDER, adam_preconditioner, preconditioner_from_optimizer
from stopwise.training.settings import FinetuneSettings

LENGTHS = [5, 9, 3, 9, 7]
KINDS = {
    "all-linear": {"target_modules": "all-linear", "r": 4, "lora_alpha": 32},
    "rslora": {"target_modules": ["query", "value"], "r": 4, "use_rslora": True},
    "saved": {"target_modules": ["query"], "r": 2, "modules_to_save": ["classifier", "pooler"]},
    "dora": {"target_modules": ["key"], "r": 2, "use_dora": True},
}


def sample(classes: int = 3) -> dict:
    batch = prompts(LENGTHS)
    del batch["verbalizers"]
    return batch | {"labels": torch.arange(len(LENGTHS)) % classes}


def adapted(kind: str, moved: bool) -> torch.nn.Module:
    """Return a BERT classifier with an adapter; ``moved`` puts B off zero."""
    torch.manual_seed(0)
    config = LoraConfig(task_type="SEQ_CLS", lora_dropout=0.3, **KINDS[kind])
    return push(get_peft_model(shaken(pico_classifier("bert", 3)), config).double(), moved)


def push(model: torch.nn.Module, moved: bool) -> torch.nn.Module:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if moved and "lora_B" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape))
    return model


def truth(model: torch.nn.Module, batch: dict, names: list[str] | None = None) -> np.ndarray:
    """Return J J' of the trainable parameters by autograd in evaluation mode; the flags come back."""
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    modes = [m for m in model.modules() if m.training]
    model.eval()
    jacobian = plain_jacobian(model, batch, names or [name for name, flag in flags.items() if flag])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(flags[name])
    for module in modes:
        module.training = True
    return (jacobian @ jacobian.T).numpy()


@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_peft_classifier_has_the_kernel_of_what_it_trains(kind, moved):
    model, batch = adapted(kind, moved), sample()
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    modes = [m.training for m in model.modules()]
    found = empirical_ntk(model, batch, parameters="trainable").matrix
    assert flags == {name: p.requires_grad for name, p in model.named_parameters()}
    assert modes == [m.training for m in model.modules()]
    assert relative(found, truth(model, batch)) < 1e-9
    ups = [name for name, flag in flags.items() if flag and "lora_A" not in name]
    # While B = 0 nothing reaches A.
    assert (relative(found, truth(model, batch, ups)) < 1e-9) != moved


@pytest.mark.parametrize(("alpha", "rslora", "scaling"), [(2, False, 1.0), (8, False, 4.0), (4, True, 4 / 2**0.5)])
def test_the_scaling_is_respected(alpha, rslora, scaling):
    found = []
    for options in ({"lora_alpha": alpha, "use_rslora": rslora}, {"lora_alpha": 2}):
        torch.manual_seed(0)
        config = LoraConfig(task_type="SEQ_CLS", target_modules=["query"], r=2, **options)
        model = get_peft_model(shaken(pico_classifier("bert", 3)), config).double()
        found.append(empirical_ntk(model, sample(), parameters=["lora_B"]).matrix)
    assert relative(found[0], scaling**2 * found[1]) < 1e-9


@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize(
    ("arch", "options"),
    [
        ("llama", {"target_modules": "all-linear"}),
        ("gpt2", {"target_modules": ["c_attn", "lm_head"], "fan_in_fan_out": True}),
        ("qwen2", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    ],
)
def test_a_peft_language_model_has_the_kernel_of_what_it_trains(arch, options, moved):
    torch.manual_seed(0)
    model = push(get_peft_model(pico(arch), LoraConfig(task_type="CAUSAL_LM", r=3, **options)).double(), moved)
    batch = prompts(LENGTHS)
    assert not is_classifier(model)
    found = empirical_ntk(model, batch, parameters="trainable")
    # Llama's rotary angles are float32 and round differently beside padding.
    assert relative(found.matrix, truth(model, batch)) < 1e-6
    with torch.no_grad():
        assert relative(found.outputs, class_outputs(bare(model).eval(), batch)) < 1e-6


def test_frozen_layers_are_left_out():
    model, batch = shaken(pico_classifier("distilbert", 3)), sample()
    for parameter in [*model.distilbert.transformer.layer[1].parameters(), *model.classifier.parameters()]:
        parameter.requires_grad_(True)
    assert kernel_layers(model, "trainable") == ["distilbert.transformer.layer.1", "classifier"]
    found = empirical_ntk(model, batch, parameters="trainable").matrix
    assert relative(found, truth(model, batch)) < 1e-9


def test_nothing_to_train_is_named():
    model = pico_classifier("bert", 3)
    with pytest.raises(ValueError, match="requires a gradient, so there is nothing to train"):
        empirical_ntk(model, sample(), parameters="trainable")
    config = LoraConfig(task_type="SEQ_CLS", target_modules=["query"], modules_to_save=[])
    frozen = get_peft_model(model, config).requires_grad_(False)
    with pytest.raises(ValueError, match="PeftModelForSequenceClassification requires a gradient"):
        empirical_ntk(frozen, sample(), parameters="trainable")


def test_prompt_tuning_is_refused():
    model = get_peft_model(pico("llama"), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    with pytest.raises(ValueError, match="trains prompts, not weights"):
        empirical_ntk(model, prompts(LENGTHS), parameters="trainable")


def settings() -> FinetuneSettings:
    section = {"optimizer": "adamw", "objective": "cross_entropy", "batch_size": 2}
    return FinetuneSettings.from_config(section, formula="adam", parameters="trainable")


@pytest.mark.parametrize("kind", ["all-linear", "saved"])
def test_at_the_start_adam_moves_bs_part_alone_and_says_so(kind):
    model, batch = adapted(kind, False), sample()
    modes = [m.training for m in model.modules()]
    found = adam_preconditioner(model, batch, settings())
    assert found.flags == (SECOND_ORDER,)
    assert modes == [m.training for m in model.modules()]
    assert all(bool(d.any()) != ("lora_A" in name) for name, d in found.items())
    assert found.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    kernel = empirical_ntk(model, batch, parameters="trainable", formula="adam", preconditioner=found).matrix
    assert relative(kernel, in_metric(model, batch, found)) < 1e-9
    assert adam_preconditioner(adapted(kind, True), batch, settings()).flags == ()


def in_metric(model: torch.nn.Module, batch: dict, diagonal: dict) -> np.ndarray:
    """Return J D J' by autograd."""
    model.eval()
    names = list(diagonal)
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    jacobian = plain_jacobian(model, batch, names)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(flags[name])
    d = torch.cat([diagonal[name].flatten() for name in names])
    return ((jacobian * d) @ jacobian.T).numpy()


def trained(model: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: int = 3) -> None:
    batch = sample()
    for _ in range(steps):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(**batch).logits, batch["labels"]).backward()
        optimizer.step()


def own_division(optimizer: torch.optim.Optimizer, parameter: torch.nn.Parameter, beta2: float, eps: float):
    state = optimizer.state[parameter]
    return (state["exp_avg_sq"] / (1 - beta2 ** int(state["step"]))).sqrt() + eps


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.Adam])
def test_a_running_optimizer_tells_what_it_divides_by(kind):
    model = adapted("saved", False).eval()
    optimizer = kind([p for p in model.parameters() if p.requires_grad], lr=1e-3, betas=(0.9, 0.95), eps=1e-6)
    with pytest.raises(ValueError, match="holds no exp_avg_sq of these parameters; take at least one step"):
        preconditioner_from_optimizer(model, optimizer)
    trained(model, optimizer)
    found = preconditioner_from_optimizer(model, optimizer)
    chosen = select_parameters(model, "trainable")
    assert found.keys() == chosen.keys()
    for name, parameter in chosen.items():
        wanted = 1 / own_division(optimizer, parameter, 0.95, 1e-6)
        live = optimizer.state[parameter]["exp_avg_sq"] > 0
        assert torch.allclose(found[name][live], wanted[live], rtol=1e-12)
        assert not found[name][~live].any()
    kernel = empirical_ntk(model, sample(), parameters="trainable", formula="adam", preconditioner=found).matrix
    assert relative(kernel, in_metric(model, sample(), found)) < 1e-9


def test_groups_with_their_own_learning_rates_move_in_proportion():
    model = shaken(pico_classifier("bert", 3)).requires_grad_(True)
    head, body = list(model.classifier.parameters()), list(model.bert.parameters())
    optimizer = torch.optim.AdamW([{"params": body, "lr": 1e-4}, {"params": head, "lr": 1e-3}])
    trained(model, optimizer)
    found = preconditioner_from_optimizer(model, optimizer)
    weight = model.classifier.weight
    assert torch.allclose(found["classifier.weight"], 10 / own_division(optimizer, weight, 0.999, 1e-8), rtol=1e-12)
    torch.optim.lr_scheduler.LambdaLR(optimizer, [lambda step: 0.0, lambda step: 0.0])  # a warm-up that begins at 0
    again = preconditioner_from_optimizer(model, optimizer)
    assert torch.equal(again["classifier.weight"], found["classifier.weight"])


def test_an_optimizer_without_squares_is_named():
    model = shaken(pico_classifier("bert", 3)).requires_grad_(True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trained(model, optimizer, 1)
    with pytest.raises(ValueError, match="SGD holds no exp_avg_sq"):
        preconditioner_from_optimizer(model, optimizer)


def test_reading_leaves_a_running_training_as_it_is():
    """Dropout is off while the kernel and D are read; modes, gradients, flags and the generator are as they were."""
    model, batch = shaken(pico_classifier("bert", 3)).requires_grad_(True), sample()
    still = adam_preconditioner(model, batch, settings())
    model.train()
    model(**batch).loss.backward()
    held = {name: p.grad.clone() for name, p in model.named_parameters()}
    before = torch.get_rng_state()
    found = adam_preconditioner(model, batch, settings())
    empirical_ntk(model, batch, parameters="trainable", formula="adam", preconditioner=found)
    assert all(torch.equal(found[name], still[name]) for name in still)
    assert all(module.training for module in model.modules())
    assert all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(p.grad, held[name]) for name, p in model.named_parameters())
    assert torch.equal(torch.get_rng_state(), before)


def test_a_learner_trains_an_adapter_by_its_true_gradient():
    model, batch = adapted("saved", True).eval(), sample()
    chosen = select_parameters(model, "trainable")
    learner = Learner(model, chosen, "contrast")
    with learner.trainable():
        f, found = learner.gradient(Prompts.of(batch, 1024, model), lambda f, index: f)
        wanted = torch.autograd.grad(class_outputs(model, batch).square().sum() / 2, list(chosen.values()))
    assert f.shape == (len(LENGTHS), 2)
    for one, other in zip(found, wanted, strict=True):
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-12)
