"""The kernel of sequence classifiers equals one-example-at-a-time, unpadded autograd of the model as users call it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kernel_reference import pairs_of_texts, plain_jacobian, plain_outputs, prompts, relative, shaken
from stopwise.kernel import engine
from stopwise.kernel.ntk import empirical_ntk, kernel_layers, train_and_new_kernels
from stopwise.network.forward import class_outputs
from stopwise.network.heads import head_names
from stopwise.network.parameters import select_parameters
from stopwise.network.pico import CLASSIFIERS, pico_classifier

LENGTHS = [5, 9, 3, 9, 7]
TYPED = ["bert", "electra"]  # the families whose tokenizers tell the texts of a pair apart
HEADS = {
    "bert": 2,
    "deberta-v2": 4,
    "distilbert": 4,
    "electra": 4,
    "gpt2": 1,
    "llama": 1,
    "modernbert": 4,
    "roberta": 4,
}


def made(arch: str, classes: int = 3, **options) -> torch.nn.Module:
    return shaken(pico_classifier(arch, classes, **options))


def sample(side: str = "right", lengths: list[int] = LENGTHS) -> dict:
    batch = prompts(lengths, side=side)
    del batch["verbalizers"]
    return batch


@pytest.mark.parametrize("subset", ["all", "attention", "linear", "head"])
@pytest.mark.parametrize("arch", CLASSIFIERS)
def test_gram_equals_autograd_jacobian(arch, subset):
    model, batch = made(arch), sample()
    jacobian = plain_jacobian(model, batch, list(select_parameters(model, subset)))
    kernel = empirical_ntk(model, batch, parameters=subset)
    # Rotary angles and norms are float32 even in float64 models; a prompt's own values do not depend on padding.
    assert relative(kernel.matrix, jacobian @ jacobian.T) < 1e-9
    assert relative(kernel.outputs, torch.stack(plain_outputs(model, batch)).detach()) < 1e-9
    assert np.array_equal(kernel.matrix, kernel.matrix.T)
    assert kernel.columns == 2


@pytest.mark.parametrize(("classes", "outputs", "columns"), [(2, "contrast", 1), (5, "logits", 5), (4, "head", 3)])
@pytest.mark.parametrize("arch", CLASSIFIERS)
def test_any_number_of_classes_and_padding_on_the_left(arch, classes, outputs, columns):
    model, batch = made(arch, classes), sample("left", [3, 6, 4])
    jacobian = plain_jacobian(model, batch, list(select_parameters(model, "all")), outputs)
    kernel = empirical_ntk(model, batch, parameters="all", outputs=outputs)
    assert relative(kernel.matrix, jacobian @ jacobian.T) < 1e-9
    assert kernel.columns == columns


@pytest.mark.parametrize("arch", TYPED)
def test_the_texts_of_a_pair_are_told_apart(arch):
    model, batch = made(arch), pairs_of_texts(sample("left"))
    jacobian = plain_jacobian(model, batch, list(select_parameters(model, "all")))
    found = empirical_ntk(model, batch, parameters="all").matrix
    assert relative(found, jacobian @ jacobian.T) < 1e-9
    del batch["token_type_ids"]
    assert relative(empirical_ntk(model, batch, parameters="all").matrix, found) > 1e-2


@pytest.mark.parametrize("arch", CLASSIFIERS)
def test_recomputed_and_kept_activations_give_one_kernel(arch, monkeypatch):
    model, batch = made(arch), sample()
    found = []
    for keep in (True, False):
        monkeypatch.setattr(engine.Engine, "keeps", lambda self, keep=keep: keep)
        found.append(empirical_ntk(model, batch, parameters="all").matrix)
    assert relative(found[0], found[1]) < 1e-12


@pytest.mark.parametrize("arch", CLASSIFIERS)
def test_dropout_is_off_and_the_modes_come_back(arch):
    model, batch = made(arch), sample()
    still = empirical_ntk(model, batch).matrix
    model.train()
    model.base_model.eval()
    before = [module.training for module in model.modules()]
    assert np.array_equal(empirical_ntk(model, batch).matrix, still)
    assert [module.training for module in model.modules()] == before


@pytest.mark.parametrize("arch", CLASSIFIERS)
def test_the_head_is_what_lies_above_the_base_model(arch):
    model = made(arch)
    names = head_names(model)
    assert len(names) == HEADS[arch]
    assert not set(names) & set(select_parameters(model, "linear"))
    assert set(select_parameters(model, "attention")) < set(select_parameters(model, "linear"))
    assert kernel_layers(model, "head")


@pytest.mark.parametrize("arch", ["gpt2", "llama"])
def test_a_model_that_reads_its_last_token_needs_no_padding_id(arch):
    with_id, without = made(arch), made(arch)
    without.config.pad_token_id = None
    wanted, found = (empirical_ntk(model, sample("left"), parameters="all").matrix for model in (with_id, without))
    assert relative(found, wanted) < 1e-9
    assert without.config.pad_token_id is None


def test_new_examples_share_the_passes():
    model = made("bert")
    own, cross = train_and_new_kernels(model, sample(), sample(lengths=[4, 6]), parameters="all")
    jacobians = [
        plain_jacobian(model, b, list(select_parameters(model, "all"))) for b in (sample(lengths=[4, 6]), sample())
    ]
    assert relative(cross.matrix, jacobians[0] @ jacobians[1].T) < 1e-9
    assert relative(own.matrix, jacobians[1] @ jacobians[1].T) < 1e-9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"verbalizers": torch.tensor([0, 3])}, r"classes of this model are 0\.\.2, found \[0, 3\]"),
        ({"token_type_ids": torch.full((5, 9), 2)}, "token_type_ids reach 2"),
        ({"token_type_ids": torch.zeros(5, 8, dtype=torch.long)}, "token_type_ids"),
        ({"input_ids": torch.full((5, 9), 400)}, "token id 400 is not among the 349 rows"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        class_outputs(made("bert"), sample() | change)


def test_a_text_longer_than_the_positions_is_named():
    for arch, limit in (("bert", 128), ("gpt2", 128), ("roberta", 129)):
        assert class_outputs(made(arch), sample(lengths=[limit])).shape == (1, 2)
        with pytest.raises(ValueError, match=f"{limit + 1} tokens is longer than the {limit} positions"):
            class_outputs(made(arch), sample(lengths=[limit + 1]))


def test_a_head_with_one_output_is_refused():
    with pytest.raises(ValueError, match="has 1 output; at least 2"):
        class_outputs(made("bert", 1), sample())


def test_encoder_decoders_are_refused():
    from transformers import T5Config, T5ForSequenceClassification

    model = T5ForSequenceClassification(T5Config(vocab_size=97, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2))
    for use in (class_outputs, empirical_ntk):
        with pytest.raises(ValueError, match="encoder-decoder"):
            use(model, sample())


def test_a_model_that_classifies_tokens_is_refused():
    from transformers import BertConfig, BertForTokenClassification

    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = BertForTokenClassification(BertConfig(vocab_size=97, **shape)).eval()
    with pytest.raises(ValueError, match="gives logits of shape"):
        class_outputs(model, sample())
