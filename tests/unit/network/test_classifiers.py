"""Classifiers load from every source of models, with a head drawn from its seed alone, or the one that is there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from stopwise.kernel.ntk import empirical_ntk
from stopwise.network.classifiers import load_classifier
from stopwise.network.heads import head_names
from stopwise.network.loading import ModelError, load_model, prepare_model
from stopwise.network.pico import CLASSIFIERS, pico_classifier

ASSETS = Path(__file__).resolve().parents[3] / "results" / "assets"


def state(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def differing(a, b):
    return sorted(name for name in a if not torch.equal(a[name], b[name]))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A folder with a body and no head."""
    return prepare_model("pico-bert", tmp_path_factory.mktemp("assets"))


@pytest.fixture(scope="module")
def language_model(tmp_path_factory):
    return prepare_model("pico-llama", tmp_path_factory.mktemp("assets"))


@pytest.mark.parametrize("arch", CLASSIFIERS)
def test_pico_classifiers_depend_on_their_seed_and_classes_alone(arch):
    before = torch.get_rng_state()
    one = pico_classifier(arch, 3)
    assert torch.equal(torch.get_rng_state(), before)
    assert not one.training
    assert not any(p.requires_grad for p in one.parameters())
    assert not differing(state(one), state(pico_classifier(arch, 3)))
    assert differing(state(one), state(pico_classifier(arch, 3, seed=1)))
    assert sum(p.numel() for p in one.parameters()) < 100_000


def test_an_unknown_pico_classifier_is_named():
    with pytest.raises(ValueError, match="'opt' is not one of bert, deberta-v2"):
        pico_classifier("opt")


@pytest.mark.parametrize("where", ["pico-bert", "folder", "language model"])
def test_the_head_depends_on_its_seed_and_the_body_on_none(where, encoder, language_model):
    source = {"pico-bert": "pico-bert", "folder": encoder, "language model": language_model}[where]
    (one, _), (same, _), (other, _) = (load_classifier(source, 3, seed=seed) for seed in (1, 1, 2))
    assert not differing(state(one), state(same))
    moved = differing(state(one), state(other))
    # A bias starts at zero whatever the seed; a pooler is part of the body.
    assert set(moved) <= set(head_names(one))
    assert any(name.endswith("weight") for name in moved)
    weight = state(one)[moved[-1]]
    assert float(weight.std()) == pytest.approx(0.02, rel=0.3)
    assert not one.training
    assert not any(p.requires_grad for p in one.parameters())


def test_loading_leaves_the_global_generator_alone(encoder):
    before = torch.get_rng_state()
    load_classifier(encoder, 3, seed=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_trained_head_stays_unless_a_new_one_is_asked_for(tmp_path, encoder):
    trained, tokenizer = load_classifier(encoder, 3, seed=5, labels=["a b", "c", "d"])
    trained.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    kept, _ = load_classifier(tmp_path, 3, seed=1)
    assert not differing(state(kept), state(trained))
    assert not differing(state(load_classifier(tmp_path, 3, seed=1, new_head=False)[0]), state(trained))
    drawn, _ = load_classifier(tmp_path, 3, seed=1, new_head=True)
    assert differing(state(drawn), state(trained)) == ["classifier.weight"]
    wider, _ = load_classifier(tmp_path, 4, seed=1)
    assert wider.classifier.weight.shape[0] == wider.config.num_labels == 4
    with pytest.raises(ModelError, match="holds no classification head of 4 classes"):
        load_classifier(tmp_path, 4, new_head=False)


def test_the_names_of_the_classes_travel_with_the_model(tmp_path, encoder):
    model, _ = load_classifier(encoder, 2, labels=["not at all", "very much"])
    model.save_pretrained(tmp_path)
    config = AutoModelForSequenceClassification.from_pretrained(tmp_path).config
    assert config.id2label == {0: "not at all", 1: "very much"}
    assert config.label2id == {"not at all": 0, "very much": 1}


@pytest.mark.parametrize("source", ["pico-bert", "pico-llama", "folder"])
@pytest.mark.slow
def test_mixed_and_random_starts_redraw_what_they_say(source, encoder):
    source = encoder if source == "folder" else source
    plain, random = (state(load_classifier(source, 3, seed=4, start=start)[0]) for start in ("pretrained", "random"))
    body = [name for name in plain if name not in head_names(load_classifier(source, 3)[0])]
    pattern = r"layers?\.1\."
    mixed = state(load_classifier(source, 3, seed=4, start="mixed", reinit=[pattern])[0])
    assert differing(plain, mixed)
    assert all(".1." in name for name in differing(plain, mixed))
    # Biases and norms start where training begins, drawn anew or not.
    assert set(differing(plain, random)) >= {name for name in body if name.endswith("word_embeddings.weight")}


def test_a_tokenizer_without_padding_pads_with_its_end(tmp_path, language_model):
    model, tokenizer = load_model(language_model)
    tokenizer.pad_token = None
    model.config.pad_token_id = None
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    found, own = load_classifier(tmp_path, 2)
    assert own.pad_token == own.eos_token
    assert found.config.pad_token_id == own.eos_token_id
    batch = own(["a b c", "the"], padding=True, return_tensors="pt")
    assert empirical_ntk(found, dict(batch), parameters="head").matrix.shape == (2, 2)


def test_load_model_with_a_number_of_classes_is_the_same_loader(encoder):
    one, _ = load_model(encoder, num_labels=3, seed=7, labels=["x", "y", "z"], dtype="float64")
    assert not differing(state(one), state(load_classifier(encoder, 3, seed=7, dtype="float64")[0]))
    assert one.config.id2label[2] == "z"
    assert one.dtype == torch.float64


@pytest.mark.parametrize("source", ["minilm", "pico-bert"])
def test_an_encoder_needs_a_number_of_classes(source):
    with pytest.raises(ModelError, match="no language-model head; give num_labels"):
        load_model(source)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_labels": 1}, "at least 2 classes, found 1"),
        ({"num_labels": 2, "labels": ["a"]}, "2 different names"),
        ({"num_labels": 2, "labels": ["a", "a"]}, "2 different names"),
        ({"num_labels": 2, "start": "warm"}, "starts: 'warm'"),
        ({"num_labels": 2, "dtype": "int8"}, "model.dtype: 'int8'"),
        ({"num_labels": 2, "revision": "main"}, "model.revision"),
    ],
)
def test_a_bad_option_names_its_key(options, message):
    with pytest.raises(ModelError, match=message):
        load_classifier("pico-bert", **options)


def test_the_built_in_encoder_reads_pairs_and_has_a_new_head():
    prepare_model("minilm", ASSETS)
    model, tokenizer = load_classifier("minilm", 3, assets=ASSETS, seed=1)
    assert sum(p.numel() for p in model.parameters()) == 22_714_371
    assert tokenizer.cls_token == "[CLS]"
    batch = tokenizer(["a film", "good"], ["the second text", "yes"], padding=True, return_tensors="pt")
    assert int(batch["token_type_ids"].max()) == 1
    hidden = model.base_model(**batch).last_hidden_state[:, 0]
    # Trained weights, not noise: a paraphrase is nearer than another subject.
    texts = ["The cat sits outside.", "A cat is sitting outdoors.", "The stock market fell sharply."]
    tokens = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = model.base_model(**tokens).last_hidden_state
    mask = tokens["attention_mask"][..., None]
    mean = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=1)
    assert float(mean[0] @ mean[1]) > 0.7 > 0.3 > float(mean[0] @ mean[2])
    assert hidden.shape == (2, 384)
