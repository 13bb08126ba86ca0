"""``outputs: vocabulary``: SFT's loss of a one-token label is a cross-entropy over the words and the rest, exactly."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import kernel_reference
from kernel_reference import VERBALIZERS, pico, plain_jacobian, plain_outputs, prompts, relative
from stopwise.kernel import engine
from stopwise.kernel.ntk import empirical_ntk
from stopwise.linearized.coding import coding_matrix, columns, predicted_class
from stopwise.linearized.objectives import Objective
from stopwise.network.batches import pack
from stopwise.network.forward import class_outputs
from stopwise.network.parameters import select_parameters
from stopwise.network.pico import pico_classifier
from stopwise.network.unpadded import runs_unpadded, unpadded_outputs

LENGTHS = [5, 9, 3, 9, 7]
LABELS = np.array([0, 2, 1, 1, 0])


def objective(labels: np.ndarray = LABELS) -> Objective:
    return Objective("cross_entropy", labels, 3, "vocabulary", 1.0, np.zeros(1))


@pytest.mark.parametrize("arch", ["gpt2", "qwen2", "gemma2", "llama"])
def test_the_loss_is_that_of_the_label_token_over_the_whole_vocabulary(arch):
    model, batch = pico(arch), prompts(LENGTHS)
    with torch.no_grad():
        f = class_outputs(model, batch, outputs="vocabulary").numpy()
        rows = [
            model(input_ids=batch["input_ids"][i : i + 1, :length]).logits[0, -1] for i, length in enumerate(LENGTHS)
        ]
    tokens = torch.tensor(VERBALIZERS)[LABELS]
    wanted = torch.nn.functional.cross_entropy(torch.stack(rows), tokens)
    assert f.shape == (5, 3)
    assert objective().loss(f) == pytest.approx(float(wanted), rel=1e-6)  # Llama's rotary angles are float32
    assert np.allclose(np.exp(objective().log_probabilities(f)).sum(1), 1)


def test_the_gradient_of_the_loss_in_the_outputs_is_the_softmaxs():
    f = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    logits = f @ torch.as_tensor(coding_matrix(3, "vocabulary"))
    torch.nn.functional.cross_entropy(logits, torch.as_tensor(LABELS)).backward()
    assert np.allclose(objective().gradient(f.detach().numpy(), np.arange(5)), f.grad.numpy(), rtol=1e-12)


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("subset", ["attention", "head", "all"])
@pytest.mark.parametrize("arch", ["gpt2", "qwen2", "gemma2"])
def test_gram_equals_autograd_jacobian(arch, subset, keep, monkeypatch):
    """GPT-2's head is tied to its token table; Qwen's is not; Gemma's logits are capped after the head."""
    monkeypatch.setattr(engine.Engine, "keeps", lambda self: keep)
    model, batch = pico(arch), prompts(LENGTHS)
    jacobian = plain_jacobian(model, batch, list(select_parameters(model, subset)), "vocabulary")
    kernel = empirical_ntk(model, batch, parameters=subset, outputs="vocabulary")
    assert kernel.columns == columns(3, "vocabulary") == 3
    # Norms and softmax of Gemma are float32 and round differently beside padding.
    assert relative(kernel.matrix, jacobian @ jacobian.T) < (5e-6 if arch == "gemma2" else 1e-6)
    wanted = torch.stack(plain_outputs(model, batch, "vocabulary")).detach()
    assert relative(kernel.outputs, wanted) < 1e-6


def test_passes_without_padding_give_the_same_outputs():
    model, packed = kernel_reference.pico("llama", attention="sdpa"), pack(prompts(LENGTHS))
    words = torch.tensor(VERBALIZERS)
    assert runs_unpadded(model, packed, words)
    with torch.no_grad():
        wanted = class_outputs(model, prompts(LENGTHS), outputs="vocabulary")
        assert relative(unpadded_outputs(model, packed, words, "vocabulary"), wanted) < 2e-6


def test_the_rest_is_never_predicted():
    f = np.array([[-2.0, -1.0, 5.0]]) @ np.eye(3)  # far on the side of the rest
    logits = f @ coding_matrix(3, "vocabulary")
    assert logits.argmax() == 3
    assert predicted_class(f, 3, "vocabulary")[0] == logits[0, :3].argmax()


def test_a_classifier_has_no_vocabulary():
    batch = prompts(LENGTHS)
    del batch["verbalizers"]
    with pytest.raises(ValueError, match="vocabulary needs the words of a language model"):
        class_outputs(pico_classifier("bert", 3), batch, outputs="vocabulary")
