"""The doctor finds a healthy model healthy, and sees padding that is read, formulas that fail, kernels that differ."""

from __future__ import annotations

import pytest
import torch

from kernel_reference import pico, prompts
from stopwise.kernel.doctor import doctor, sample_batch
from stopwise.network.pico import pico_tokenizer

LENGTHS = [5, 9, 3, 7]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("arch", ["gpt2", "llama", "gpt-neo"])
def test_healthy_models_pass_every_check(arch, dtype):
    findings = doctor(pico(arch, dtype), prompts(LENGTHS))
    assert [f.check for f in findings][:4] == ["formulas", "autograd", "batch size", "padding"]
    assert all(f.ok for f in findings), findings
    assert any(f.kernel > 0 for f in findings)


def test_a_model_that_reads_its_padding_is_found():
    model = pico("llama", torch.float32)
    norm = model.model.norm
    norm.register_forward_hook(lambda m, args, out: out + 0.1 * out.mean(1, keepdim=True))
    findings = {f.check: f for f in doctor(model, prompts(LENGTHS))}
    assert not findings["padding"].ok
    assert findings["batch size"].ok


def test_attention_kernels_are_compared_and_restored():
    model = pico("llama", attention="sdpa")
    findings = [f for f in doctor(model, prompts(LENGTHS)) if f.check == "attention"]
    assert [f.note for f in findings] == ["sdpa or eager"]
    assert model.config._attn_implementation == "sdpa"


def test_a_tokenizer_is_enough():
    batch = sample_batch(pico_tokenizer())
    assert batch["input_ids"].shape == batch["attention_mask"].shape
    assert len(set(batch["verbalizers"].tolist())) == 2
