"""Models load the same from everywhere, start as asked, run no foreign code and hold their hub revision."""

import json
import shutil
import socket
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stopwise.assets import hub
from stopwise.assets import wheels as assets_module
from stopwise.assets.wheels import AssetError
from stopwise.network.loading import (
    PICO,
    ModelError,
    load_model,
    load_tokenizer,
    model_fingerprint,
    pico_model,
    pico_tokenizer,
    prepare_model,
)
from stopwise.network.pico import ARCHITECTURES

ASSETS = Path(__file__).resolve().parents[3] / "results" / "assets"


def state(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A pico Llama with its tokenizer, saved as an ordinary local folder."""
    return prepare_model("pico-llama", tmp_path_factory.mktemp("assets"))


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_pico_model_is_frozen_small_and_the_same_every_time(arch):
    before = torch.get_rng_state()
    model = pico_model(arch)
    assert torch.equal(torch.get_rng_state(), before)
    assert not model.training
    assert not model.config.use_cache
    assert not any(p.requires_grad for p in model.parameters())
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    assert sum(p.numel() for p in model.parameters()) < 100_000
    assert same(state(model), state(pico_model(arch)))
    assert not same(state(model), state(pico_model(arch, seed=1)))
    # 11,000 drawn numbers fix a standard deviation to 0.7 %; some architectures set the padding row to zero.
    assert float(model.get_input_embeddings().weight.std()) == pytest.approx(0.02, rel=0.03)


def test_pico_weights_do_not_depend_on_the_dtype_they_are_cast_to():
    a, b = state(pico_model("llama", dtype="float32")), state(pico_model("llama", dtype="float64"))
    assert all(torch.equal(a[name].double(), b[name]) for name in a)


def test_an_unknown_pico_architecture_is_named():
    with pytest.raises(ValueError, match="'mamba' is not one of bert, gemma"):
        pico_model("mamba")


@pytest.mark.parametrize("label", ["positive", "negative", "spam", "ham", "entity", "human", "number", "red", "blue"])
def test_label_words_are_single_pico_tokens_after_a_prompt(label):
    tokenizer = pico_tokenizer()
    bare, followed = (tokenizer(text)["input_ids"] for text in ("Type:", f"Type: {label}"))
    assert followed[:-1] == bare


@given(st.text(max_size=60))
def test_the_pico_tokenizer_loses_nothing(text):
    tokenizer = pico_tokenizer()
    assert tokenizer.decode(tokenizer(text, split_special_tokens=True)["input_ids"]) == text


def test_a_saved_pico_tokenizer_is_the_same_tokenizer(folder):
    text = "Review: we saw the rose\nSentiment: positive é <eos>"
    saved, built = load_tokenizer(folder), pico_tokenizer()
    assert saved(text)["input_ids"] == built(text)["input_ids"]
    assert (saved.pad_token_id, saved.eos_token_id, len(saved)) == (0, 1, len(built))


@pytest.mark.parametrize("source", PICO)
def test_a_prepared_folder_holds_the_model_that_is_built_in_memory(source, tmp_path):
    built = model_fingerprint(load_model(source)[0])
    prepared = prepare_model(source, tmp_path)
    assert prepared == tmp_path / "models" / source
    assert model_fingerprint(load_model(prepared)[0]) == built
    assert [path.name for path in (tmp_path / "models").iterdir()] == [source]


@pytest.mark.parametrize("where", ["memory", "folder"])
def test_mixed_redraws_the_named_parameters_only_and_random_redraws_all(where, folder):
    source = "pico-llama" if where == "memory" else folder
    pretrained = state(load_model(source)[0])
    mixed = state(load_model(source, start="mixed", reinit=[r"layers\.1\.", "embed"])[0])
    for name in pretrained:
        redrawn = "layers.1." in name or "embed" in name
        constant = "norm" in name  # norms start at one, redrawn or not
        assert torch.equal(pretrained[name], mixed[name]) != (redrawn and not constant), name
    random = state(load_model(source, start="random")[0])
    assert not any(torch.equal(pretrained[name], random[name]) for name in pretrained if "norm" not in name)


@pytest.mark.parametrize("options", [{"start": "random"}, {"start": "mixed", "reinit": ["q_proj"]}])
def test_a_random_start_depends_on_its_seed_alone(options, folder):
    torch.manual_seed(7)
    first = state(load_model(folder, seed=3, **options)[0])
    torch.manual_seed(8)
    assert same(first, state(load_model(folder, seed=3, **options)[0]))
    assert same(first, state(load_model("pico-llama", seed=3, **options)[0]))
    assert not same(first, state(load_model(folder, seed=4, **options)[0]))


def test_loading_leaves_the_global_generator_alone(folder):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    load_model(folder, start="random")
    assert torch.equal(torch.get_rng_state(), before)


def test_the_fingerprint_sees_any_weight_name_and_dtype_and_counts_tied_weights_once():
    model = pico_model("llama", dtype="float32")
    first = model_fingerprint(model)
    weight = model.model.layers[1].self_attn.q_proj.weight
    with torch.no_grad():
        weight[3, 5] = torch.nextafter(weight[3, 5], torch.tensor(1.0))
    assert model_fingerprint(model) != first
    assert model_fingerprint(pico_model("llama", dtype="float64")) != first
    assert model_fingerprint(pico_model("llama", dtype="float32")) == first
    assert model_fingerprint(pico_model("llama", dtype="bfloat16")) != first
    tied, untied = (pico_model("llama", dtype="float32", tie_word_embeddings=t) for t in (True, False))
    assert model_fingerprint(tied) != model_fingerprint(untied)


REFUSED = {
    "unknown start": ({"start": "warm"}, "starts: 'warm' is not one of pretrained, mixed, random"),
    "unknown dtype": ({"dtype": "int8"}, "model.dtype: 'int8' is not one of float32"),
    "mixed without patterns": ({"start": "mixed"}, "model.reinit: the mixed start needs a list of patterns"),
    "pattern that is text": ({"start": "mixed", "reinit": "q_proj"}, "needs a list of patterns, found 'q_proj'"),
    "pattern that matches nothing": ({"start": "mixed", "reinit": ["lm_head"]}, "'lm_head' matches none of the 20"),
    "broken pattern": ({"start": "mixed", "reinit": ["("]}, "is not a regular expression"),
    "revision of a built-in": ({"revision": "main"}, "model.revision: 'main' given, but 'pico-llama' is not a hub id"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_option_names_its_key(name):
    options, message = REFUSED[name]
    with pytest.raises(ModelError, match=message):
        load_model("pico-llama", **options)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("./no-such-folder", "there is no folder './no-such-folder'"),
        ("/no/such/folder", "there is no folder '/no/such/folder'"),
        ("a/b/c", "there is no folder 'a/b/c'"),
        ("owner/../x", "there is no folder 'owner/../x'"),
        ("owner/..", "is neither built in, nor a local folder, nor a hub id"),
        ("owner/name; ls", "is neither built in, nor a local folder, nor a hub id"),
        ("", "is neither built in, nor a local folder, nor a hub id"),
        ("owner/name", "'owner/name' is not in the assets folder and the hub cannot be reached"),
    ],
)
def test_a_source_that_is_nowhere_gives_one_clear_error_and_leaves_nothing(source, message, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises((AssetError, ModelError), match="model.source: .*" + message) as caught:
        load_model(source, assets=tmp_path)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_pickled_weights_are_refused_unopened(folder, tmp_path):
    pickled = tmp_path / "pickled"
    shutil.copytree(folder, pickled)
    (pickled / "model.safetensors").unlink()
    (pickled / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch " + bytes(tmp_path / "ran") + b"'\ntR.")
    with pytest.raises(ModelError, match=r"holds pytorch_model.bin but no safetensors; pickled weights can run code"):
        load_model(pickled)
    assert not (tmp_path / "ran").exists()


def test_a_folder_without_weights_or_with_damaged_ones_is_named(folder, tmp_path):
    with pytest.raises(ModelError, match=r"needs config\.json and"):
        load_model(tmp_path)
    damaged = tmp_path / "damaged"
    shutil.copytree(folder, damaged)
    content = (damaged / "model.safetensors").read_bytes()
    (damaged / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelError, match=f"model.source: {damaged} could not be loaded"):
        load_model(damaged)


def test_remote_code_in_a_folder_is_not_run_unless_asked_for(folder, tmp_path):
    remote = tmp_path / "remote"
    shutil.copytree(folder, remote)
    config = json.loads((remote / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}}
    (remote / "config.json").write_text(json.dumps(config))
    (remote / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(ModelError, match="could not be loaded"):
        load_model(remote)
    assert not (tmp_path / "ran").exists()


@pytest.fixture
def fake_hub(monkeypatch, folder):
    """A made-up hub that serves the pico folder and counts what it is asked."""
    import huggingface_hub

    served = SimpleNamespace(
        commits={"main": "a" * 40, "v2": "b" * 40}, files=["model.safetensors"], asked=0, fail=False
    )

    def resolve(kind, hub_id, revision, key):
        served.asked += 1
        return served.commits[revision or "main"], served.files

    def snapshot_download(hub_id, *, revision, local_dir, allow_patterns, ignore_patterns):
        assert revision in served.commits.values()
        assert not any(pattern.endswith((".bin", ".py", "*")) for pattern in allow_patterns)
        shutil.copy(folder / "config.json", local_dir)
        if served.fail:
            raise OSError("connection lost")
        for path in folder.iterdir():
            shutil.copy(path, local_dir)

    monkeypatch.setattr(hub, "resolve", resolve)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return served


def test_a_hub_revision_is_resolved_once_recorded_and_held(fake_hub, folder, tmp_path):
    first = load_model("owner/name", revision="main", assets=tmp_path)[0]
    assert model_fingerprint(first) == model_fingerprint(load_model(folder)[0])
    held = json.loads((tmp_path / "models/owner--name/resolved.json").read_text())
    assert held == {"id": "owner/name", "revision": "main", "commit": "a" * 40}
    fake_hub.commits["main"] = "c" * 40
    for revision in (None, "main", "a" * 40):
        load_model("owner/name", revision=revision, assets=tmp_path)
    assert fake_hub.asked == 1
    with pytest.raises(AssetError, match=r"model.revision: .* is held at commit a{40} .*'v2' is commit b{40}"):
        load_model("owner/name", revision="v2", assets=tmp_path)
    with pytest.raises(AssetError, match=r"is held at commit a{40}"):
        load_model("owner/name", revision="d" * 40, assets=tmp_path)


def test_a_hub_model_without_safetensors_or_with_a_lost_connection_keeps_nothing(fake_hub, tmp_path):
    fake_hub.files = ["pytorch_model.bin", "onnx/model.safetensors"]
    with pytest.raises(AssetError, match=r"has no safetensors weights at a+; pickled weights are refused"):
        load_model("owner/name", assets=tmp_path)
    fake_hub.files, fake_hub.fail = ["model.safetensors"], True
    with pytest.raises(AssetError, match=r"'owner/name' could not be downloaded \(OSError: connection lost\)"):
        load_model("owner/name", assets=tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_damaged_record_of_a_revision_is_named(fake_hub, tmp_path):
    load_model("owner/name", assets=tmp_path)
    (tmp_path / "models/owner--name/resolved.json").write_text("{")
    with pytest.raises(AssetError, match=r"resolved.json: damaged record"):
        load_model("owner/name", assets=tmp_path)


@pytest.mark.slow
def test_the_built_in_model_loads_without_network_once_prepared_and_completes_a_sentence(monkeypatch):
    prepare_model("smollm2-135m", ASSETS)

    def refused(*_, **__):
        raise AssertionError("a second load reached for the network")

    monkeypatch.setattr(assets_module.subprocess, "run", refused)
    monkeypatch.setattr(subprocess, "Popen", refused)
    monkeypatch.setattr(socket, "create_connection", refused)
    monkeypatch.setattr(socket.socket, "connect", refused)
    model, tokenizer = load_model("smollm2-135m", assets=ASSETS)
    # The 4-bit weights restored to float32: exact numbers, so the same digest on every machine.
    assert model_fingerprint(model).startswith("427a38a66835d1fb")
    assert model.config.num_key_value_heads == 3
    ids = torch.tensor([tokenizer("The capital of France is")["input_ids"]])
    assert tokenizer.decode(model(input_ids=ids).logits[0, -1].argmax()) == " Paris"
