"""Class outputs: the verbalizer head equals the vocabulary head whatever the padding, and leaves the model alone."""

from __future__ import annotations

import pytest
import torch

from kernel_reference import VERBALIZERS, pico, plain_outputs, prompts, relative
from stopwise.network.forward import attach_head, class_outputs, detach_head, length_buckets

ARCHITECTURES = ["gpt2", "gpt-neo", "gpt-neox", "llama", "qwen2", "opt", "gemma", "gemma2", "qwen3"]
MASKED = ["bert", "roberta"]
LENGTHS = [5, 9, 3, 9]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("arch", ARCHITECTURES + MASKED)
def test_class_outputs_equal_the_unpadded_vocabulary_head(arch, side):
    model = pico(arch)
    positions = [2, 4, 0, 8] if arch in MASKED else None
    batch = prompts(LENGTHS, side=side, positions=positions)
    with torch.no_grad():
        for outputs in ("contrast", "logits"):
            found = class_outputs(model, batch, outputs=outputs)
            wanted = torch.stack(plain_outputs(model, batch, outputs))
            # transformers computes rotary angles, softmax and RMSNorm in float32 even for float64 models
            assert relative(found, wanted) < 2e-6


def test_head_is_restored_and_gradients_reach_every_parameter_once():
    model = pico("llama").requires_grad_(True)
    batch = prompts(LENGTHS)
    before = model(input_ids=batch["input_ids"]).logits
    class_outputs(model, batch).sum().backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in model.parameters())
    assert torch.equal(model(input_ids=batch["input_ids"]).logits, before)
    assert "forward" not in model.lm_head.__dict__


def test_head_is_restored_after_an_error():
    model = pico("llama")

    def fail(module, args):
        raise RuntimeError("in the middle of a pass")

    model.model.layers[1].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="in the middle"):
        class_outputs(model, prompts([4]))
    assert "forward" not in model.lm_head.__dict__


def test_new_head_is_contrasted_and_needs_attaching():
    model = pico("gpt2")
    batch = prompts(LENGTHS)
    with pytest.raises(ValueError, match="attach_head"):
        class_outputs(model, batch, outputs="head")
    head = attach_head(model, 3, seed=5)
    hidden = model.transformer(input_ids=batch["input_ids"][:1, :5]).last_hidden_state[0, -1]
    logits = hidden @ head.weight.T
    found = class_outputs(model, batch, outputs="head")[0]
    assert torch.allclose(found[0], (logits[1] - logits[0]) / 2**0.5, rtol=1e-9, atol=0)
    detach_head(model)
    assert not hasattr(model, "class_head")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"verbalizers": None}, "verbalizers"),
        ({"verbalizers": torch.tensor([4, 4])}, "different"),
        ({"verbalizers": torch.tensor([4, 4000])}, "0..96"),
        ({"attention_mask": torch.zeros(4, 9, dtype=torch.long)}, "no unmasked"),
        ({"attention_mask": torch.ones(4, 8, dtype=torch.long)}, "must be equal"),
        ({"positions": torch.tensor([6, 1, 1, 1])}, "masked token"),
    ],
)
def test_malformed_batches_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        class_outputs(pico("gpt2"), prompts(LENGTHS) | change)


def test_verbalizers_keyword_serves_batches_without_their_own():
    model, batch = pico("gpt2"), prompts(LENGTHS)
    own = class_outputs(model, batch)
    del batch["verbalizers"]
    assert torch.equal(class_outputs(model, batch, verbalizers=VERBALIZERS), own)


@pytest.mark.parametrize("limit", [1, 40, 200, 1024])
def test_buckets_are_a_permutation_within_the_limit_with_little_padding(limit):
    generator = torch.Generator().manual_seed(limit)
    lengths = torch.randint(8, 48, (200,), generator=generator)
    mask = (torch.arange(48) < lengths[:, None]).long()
    buckets = length_buckets({"attention_mask": mask}, limit)
    assert torch.cat(buckets).sort().values.tolist() == list(range(200))
    sizes = [len(b) * int(lengths[b].max()) for b in buckets]
    assert all(size <= limit or len(b) == 1 for size, b in zip(sizes, buckets, strict=True))
    assert sum(sizes) * 0.95 <= int(lengths.sum())
