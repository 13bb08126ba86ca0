"""What attends to what is tried, not read off a class's name: encoders keep their padding mask whatever loads them."""

from __future__ import annotations

import pytest
import torch
import transformers as tf

from kernel_reference import pico, plain_jacobian, prompts, relative, shaken
from stopwise.kernel.doctor import doctor, sample_batch, shortest
from stopwise.kernel.ntk import empirical_ntk
from stopwise.network.heads import check_fits, sees_later_tokens
from stopwise.network.parameters import select_parameters, subset_note
from stopwise.network.pico import CLASSIFIERS, pico_classifier, pico_tokenizer

LENGTHS = [5, 9, 3, 9, 7]
SHAPE = {"vocab_size": 97, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
SHAPE |= {"max_position_embeddings": 64, "pad_token_id": 2, "initializer_range": 0.2}
MASK = 5  # the id that stands for a mask here


def encoder(kind: str, **options) -> torch.nn.Module:
    config = getattr(tf, f"{kind.capitalize()}Config")(**SHAPE | options)
    torch.manual_seed(0)
    maker = {"bert": tf.BertLMHeadModel, "roberta": tf.RobertaForCausalLM}[kind]
    return shaken(maker(config)).double().eval().requires_grad_(False)


@pytest.mark.parametrize("kind", ["bert", "roberta"])
@pytest.mark.parametrize("decoder", [False, True])
def test_an_encoder_loaded_as_a_causal_model_keeps_its_mask(kind, decoder):
    model, batch = encoder(kind, is_decoder=decoder), prompts(LENGTHS)
    assert sees_later_tokens(model) != decoder
    jacobian = plain_jacobian(model, batch, list(select_parameters(model, "all")))
    assert relative(empirical_ntk(model, batch, parameters="all").matrix, jacobian @ jacobian.T) < 1e-9


@pytest.mark.parametrize("arch", ["gpt2", "gpt-neo", "gpt-neox", "llama", "opt", "gemma2", "bert", "roberta"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_language_models_are_told_apart_in_every_dtype(arch, dtype):
    model = pico(arch, dtype)
    with torch.inference_mode():
        assert sees_later_tokens(model) == (arch in ("bert", "roberta"))
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("arch", CLASSIFIERS)
def test_classifiers_are_told_apart(arch):
    model = pico_classifier(arch).train()
    assert sees_later_tokens(model) == (arch not in ("gpt2", "llama"))
    assert model.training


def test_a_tokenizer_with_more_entries_than_the_model_is_refused_in_one_line():
    model, batch = pico("gpt2"), prompts(LENGTHS)
    batch["input_ids"][1, 0] = 97  # the first id without a row
    with pytest.raises(ValueError, match=r"^batch: token id 97 is not among the 97 rows.*resize_token_embeddings$"):
        empirical_ntk(model, batch)
    with pytest.raises(ValueError, match=r"^batch: token id 97"):
        check_fits(model, batch["input_ids"])


def test_a_model_without_memory_is_asked_for_its_configuration():
    with torch.device("meta"):
        models = [
            tf.AutoModelForMaskedLM.from_config(tf.BertConfig(**SHAPE)),
            tf.GPT2LMHeadModel(tf.GPT2Config(n_layer=1)),
        ]
    assert [sees_later_tokens(model) for model in models] == [True, False]


def mamba() -> torch.nn.Module:
    config = tf.MambaConfig(vocab_size=97, hidden_size=16, state_size=4, num_hidden_layers=2, use_cache=False)
    torch.manual_seed(0)
    return shaken(tf.MambaForCausalLM(config)).double().eval().requires_grad_(False)


def test_a_model_without_attention_takes_its_linear_layers_and_says_so(caplog):
    model, batch = mamba(), prompts([4, 6, 3])
    assert not sees_later_tokens(model)
    with caplog.at_level("WARNING", "stopwise.parameters"):
        chosen = select_parameters(model, "attention")
    assert "MambaForCausalLM has no attention layers; its linear layers are taken instead" in caplog.text
    assert subset_note(model, "attention") in caplog.text
    assert subset_note(pico("gpt2"), "attention") is None
    assert subset_note(model, "linear") is None
    assert chosen.keys() == select_parameters(model, "linear").keys()
    jacobian = plain_jacobian(model, batch, list(chosen))
    assert relative(empirical_ntk(model, batch).matrix, jacobian @ jacobian.T) < 1e-6


class Masking:
    """A tokenizer that knows a mask and ends every prompt with a token of its own."""

    mask_token, mask_token_id = "<mask>", MASK

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        ids = [MASK if word == "<mask>" else 10 + len(word) for word in text.split()]
        return [3, *ids, 4] if add_special_tokens else ids


def test_the_doctor_reads_a_masked_model_at_its_mask():
    model = pico("bert")
    batch = sample_batch(Masking(), model)
    assert batch["input_ids"].gather(1, batch["positions"][:, None]).eq(MASK).all()
    assert "positions" not in sample_batch(Masking(), pico("gpt2"))
    few = shortest(batch)
    assert few["input_ids"].gather(1, few["positions"][:, None]).eq(MASK).all()
    assert len(set(few["attention_mask"].sum(1).tolist())) == 1
    findings = doctor(model, Masking())
    assert [f.check for f in findings][:4] == ["formulas", "autograd", "batch size", "padding"]
    assert all(f.ok for f in findings), findings


def test_the_doctor_sees_an_encoder_that_loses_its_mask(monkeypatch):
    model = encoder("bert")
    assert all(f.ok for f in doctor(model, prompts(LENGTHS)))
    monkeypatch.setattr("stopwise.network.forward.is_causal", lambda model: True)
    assert not {f.check: f for f in doctor(model, prompts(LENGTHS))}["padding"].ok


@pytest.mark.parametrize("arch", ["bert", "llama"])
def test_the_doctor_passes_classifiers(arch):
    findings = doctor(shaken(pico_classifier(arch, 3)), pico_tokenizer(), parameters="all")
    assert all(f.ok for f in findings), findings
    assert any(f.kernel > 0 for f in findings)
