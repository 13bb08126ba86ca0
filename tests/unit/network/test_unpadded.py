"""Passes without padding: equal to padded ones in value and gradient, for models that can, and for no others."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

import kernel_reference
from kernel_reference import VERBALIZERS, prompts, relative
from stopwise.network.batches import even_groups, pack
from stopwise.network.forward import attach_head, packed_outputs
from stopwise.network.learner import Learner, Prompts
from stopwise.network.parameters import select_parameters
from stopwise.network.unpadded import Layout, runs_unpadded, unpadded_outputs

CAN = ["gpt2", "gpt-neox", "llama", "qwen2", "opt", "gemma", "qwen3"]
# Attention of their own, a cap on its logits that the plain function lacks, and models that see both ways.
CANNOT = ["gpt-neo", "gemma2", "bert", "roberta"]
LENGTHS = [5, 9, 3, 9, 12]
TOKENS = torch.tensor(VERBALIZERS)


def pico(arch):
    return kernel_reference.pico(arch, attention="sdpa" if arch in CAN else "eager")


@pytest.mark.parametrize("outputs", ["contrast", "logits", "head"])
@pytest.mark.parametrize("arch", CAN)
def test_values_and_gradients_equal_those_of_padded_passes(arch, outputs):
    model = pico(arch).requires_grad_(True)
    if outputs == "head":
        attach_head(model, len(VERBALIZERS), seed=3).requires_grad_(True)
    packed = pack(prompts(LENGTHS))
    assert runs_unpadded(model, packed, TOKENS)
    weights = torch.randn(len(LENGTHS), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values, gradients = [], []
    for run in (packed_outputs, unpadded_outputs):
        model.zero_grad()
        f = run(model, packed, TOKENS, outputs)
        (weights[:, None] * f).sum().backward()
        values.append(f.detach())
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert values[0].shape == values[1].shape
    assert relative(values[1], values[0]) < 2e-6
    assert gradients[0].keys() == gradients[1].keys()
    for name, wanted in gradients[0].items():
        assert (gradients[1][name] - wanted).norm() <= 1e-5 * wanted.norm() + 1e-12, name


def test_output_positions_inside_a_prompt_are_kept():
    model = pico("llama")
    batch = prompts(LENGTHS, positions=[2, 4, 0, 8, 11])
    with torch.no_grad():
        found, wanted = (run(model, pack(batch), TOKENS, "logits") for run in (unpadded_outputs, packed_outputs))
    assert relative(found, wanted) < 2e-6


def test_a_token_that_the_model_does_not_know_is_named():
    packed = pack(prompts(LENGTHS))
    packed.ids[1, 2] = 400
    with pytest.raises(ValueError, match="token id 400 is not among the 97 rows"):
        unpadded_outputs(pico("llama"), packed, TOKENS, "logits")


def test_a_sliding_window_shorter_than_the_prompts_is_kept():
    packed, found = pack(prompts(LENGTHS)), {}
    for window in (4, 64):
        torch.manual_seed(0)
        config = MistralConfig(
            vocab_size=kernel_reference.VOCAB,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            sliding_window=window,
            initializer_range=0.2,
            attn_implementation="sdpa",
        )
        model = MistralForCausalLM(config).double().eval()
        assert runs_unpadded(model, packed, TOKENS)
        with torch.no_grad():
            wanted = packed_outputs(model, packed, TOKENS, "logits")
            found[window] = unpadded_outputs(model, packed, TOKENS, "logits")
        assert relative(found[window], wanted) < 2e-6
    assert relative(found[64], found[4]) > 1e-3


@pytest.mark.parametrize("arch", CANNOT)
def test_other_models_run_padded(arch):
    positions = [2, 4, 0, 8, 11] if arch in ("bert", "roberta") else None
    assert not runs_unpadded(pico(arch), pack(prompts(LENGTHS, positions=positions)), TOKENS)


def begin_alike(lengths):
    """Prompts whose first three words are those of a template; the second and the fourth are the same."""
    batch = prompts(lengths)
    batch["input_ids"][:, :3] = torch.tensor([7, 8, 9])
    batch["input_ids"][3] = batch["input_ids"][1]
    return batch


@pytest.mark.parametrize("arch", CAN)
def test_what_prompts_begin_with_is_computed_once(arch):
    model, packed = pico(arch).requires_grad_(True), pack(begin_alike(LENGTHS))
    layout = Layout.of(packed)
    # The prompts of 9 are one; the first three tokens of the others, and all of the prompt of 3, are its.
    assert len(layout.slots) == 9 + (5 - 3) + (12 - 3)
    inside = packed.mask.bool()
    assert torch.equal(packed.ids.reshape(-1)[layout.slots][layout.nodes][inside], packed.ids[inside])
    found = []
    for run in (packed_outputs, unpadded_outputs):
        model.zero_grad()
        f = run(model, packed, TOKENS, "contrast")
        (torch.arange(1.0, 6.0, dtype=torch.float64)[:, None] * f).sum().backward()
        found.append([f.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    for wanted, other in zip(*found, strict=True):
        assert (other - wanted).norm() <= 1e-5 * wanted.norm() + 1e-12
    assert torch.equal(found[1][0][1], found[1][0][3])


def test_prompts_of_one_length_that_begin_alike_share_their_tokens():
    assert runs_unpadded(pico("llama"), pack(begin_alike([6, 6, 6, 6])), TOKENS)


def test_prompts_of_one_length_run_padded():
    assert not runs_unpadded(pico("llama"), pack(prompts([6, 6, 6])), TOKENS)


def test_a_model_that_mixes_neighbours_outside_attention_runs_padded():
    """Such a layer would carry one prompt into the next; the trial finds it out."""
    model = pico("llama")

    def mix(module, arguments, output):
        return output + 0.01 * torch.nn.functional.pad(output, (0, 0, 1, 0))[:, :-1]

    model.model.layers[0].mlp.register_forward_hook(mix)
    assert not runs_unpadded(model, pack(prompts(LENGTHS)), TOKENS)


def test_the_attention_function_is_put_back_after_an_error():
    model = pico("llama")
    packed = pack(prompts([4, 6]))

    def fails(*args):
        raise IndexError("in the middle of a pass")

    handle = model.model.norm.register_forward_hook(fails)
    with pytest.raises(IndexError, match="in the middle"):
        unpadded_outputs(model, packed, TOKENS, "logits")
    handle.remove()
    assert model.config._attn_implementation == "sdpa"
    assert "forward" not in model.lm_head.__dict__


@pytest.mark.parametrize("limit", [1, 13, 40, 1024])
def test_groups_are_a_permutation_within_the_limit(limit):
    lengths = torch.randint(3, 14, (50,), generator=torch.Generator().manual_seed(limit)).tolist()
    packed = pack(prompts(lengths))
    groups = even_groups(packed, limit)
    assert sorted(torch.cat(groups).tolist()) == list(range(50))
    sizes = [int(packed.lengths[group].sum()) for group in groups]
    assert all(size <= limit or len(group) == 1 for size, group in zip(sizes, groups, strict=True))
    if limit >= 40:
        # No more than one group beyond what the tokens need.
        assert len(groups) <= -(-sum(lengths) // limit) + 1


def test_a_learner_gives_the_same_whatever_the_groups():
    model = pico("llama")
    parameters = select_parameters(model, "attention")
    learner = Learner(model, parameters, "contrast")
    batch = prompts(LENGTHS)
    ways = [Prompts.of(batch, 1024), Prompts.of(batch, 1024, model), Prompts.of(batch, 13, model)]
    assert [way.unpadded for way in ways] == [False, True, True]
    assert len(ways[2].groups) > len(ways[1].groups) == 1
    with learner.trainable():
        found = []
        for way in ways:
            f, gradients = learner.gradient(way, lambda f, rows: np.ones_like(f))
            found.append((f, [gradient.clone() for gradient in gradients]))
    for f, gradients in found[1:]:
        assert np.abs(f - found[0][0]).max() < 1e-6 * np.abs(found[0][0]).max()
        for a, b in zip(gradients, found[0][1], strict=True):
            assert (a - b).norm() <= 1e-5 * b.norm()
