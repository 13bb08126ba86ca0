"""The study on a pico language model that answers with words, all weights trained or an adapter: each step's script."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from scripts import Named, run_script
from stopwise.artifacts import tables as artifacts
from stopwise.artifacts.sample import read_sample
from stopwise.linearized.coding import coding_matrix
from stopwise.network.adapters import trained
from stopwise.network.folders import prepare_model
from stopwise.network.loading import load_configured
from stopwise.network.parameters import select_parameters
from stopwise.studies.encoder_rows import Recipe
from stopwise.tasks.batch import batch_from_table

pytest.importorskip("peft")
ROOT = Path(__file__).resolve().parents[3]
TASK = {
    "source": {"csv": str(ROOT / "tests/data/feelings.csv")},
    "text": "text",
    "label": "label",
    "template": "Text: {text}\nFeeling:",
    "verbalizers": {"calm": " calm", "happy": " happy", "sad": " sad"},
}
MODEL = {"source": "pico-llama", "revision": None, "dtype": "float32", "attn_implementation": None}
MODEL |= {"trust_remote_code": False}
KINDS = {"words": "all", "lora": {"peft": {"rank": 2, "alpha": 4, "target": "all-linear"}}}
RATE, DECAY, CLIP, LENGTHS, N = 1e-2, 0.01, 1.0, [0, 2, 4], 16
RECIPE = {"learning_rate": RATE, "step_size": None, "schedule": "decay", "start": "pretrained", "clip_norm": CLIP}
AT = {"task": "feelings", "seed": 1, "n": N}


@pytest.fixture(scope="module")
def sampled(tmp_path_factory):
    """The prepared model and the sample of one data set."""
    folder = tmp_path_factory.mktemp("words")
    assets = folder / "assets"
    stamp = assets / "models" / "pico-llama.json"
    stamp.parent.mkdir(parents=True)
    record = {"source": "pico-llama", "folder": str(prepare_model("pico-llama", assets)), "fingerprint": "x"}
    stamp.write_text(json.dumps(record | {"tokenizer": "x"}), encoding="utf-8")
    data, labels = folder / "data.parquet", folder / "labels.parquet"
    rows = {"max_tokens": 24, "validation": 8, "test": 20}
    params = {"task": TASK, "data": rows, "train": N, "seeds": [1], "test": 20, "model": {"trust_remote_code": False}}
    made = Named(data=data, labels=labels)
    run_script("study_sample", inputs=Named(model=stamp), outputs=made, params=params, task="feelings", seed=1)
    return {"folder": folder, "stamp": stamp, "data": data, "labels": labels}


@pytest.fixture(scope="module", params=KINDS)
def cell(request, sampled):
    """Run kernel, training and judge of one kind, training on three quarters first."""
    folder, given = sampled["folder"] / request.param, Named(data=sampled["data"], model=sampled["stamp"], kernel=[])
    common = {"model": MODEL, "device": "cpu", "batch_size": 8}
    kernel = {"parameters": KINDS[request.param], "formula": "adam", "memory_gb": None, "outputs": "contrast"}
    made = {name: folder / f"{name}.parquet" for name in ("kernel", "holdout", "outputs", "steps")}
    params = {**common, "kernel": kernel, "rows": 2 * N, "rates": False, "plain": True}
    run_script("study_kernel", inputs=given, outputs=Named(made["kernel"]), params=params, head="pretrained", **AT)
    params = {**common, "kernel": {"parameters": kernel["parameters"]}, "recipe": RECIPE}
    params |= {"steps": LENGTHS, "weight_decay": DECAY}
    at = {**AT, "recipe": "usual"}
    run_script("study_run", inputs=given, outputs=Named(outputs=made["holdout"]), params=params, part="holdout", **at)
    both = Named(outputs=made["outputs"], steps=made["steps"])
    run_script("study_run", inputs=given, outputs=both, params=params, **at)
    return {"kind": request.param, "folder": folder, **sampled, **made}


def judge(cell):
    """Judge the cell, and return the rows and the page."""
    names = ("judged", "cells", "ways", "labels_spent", "F11")
    made = {name: cell["folder"] / "judge" / f"{name}.parquet" for name in names}
    made |= {"text": cell["folder"] / "ways.md", "svg": cell["folder"] / "F11.svg", "png": cell["folder"] / "F11.png"}
    study = {"recipes": {"usual": RECIPE}, "primary": ["usual"], "usual": "usual", "others_size": None}
    study |= {"steps": 4, "epochs": 2, "lengths": [1, 2], "evaluations": 2, "fixed_epochs": [1, 2], "test_rows": {}}
    study |= {"folds_size": 0, "set_aside": []}
    config = {"seeds": [1], "sizes": [N], "study": study, "tasks": ["feelings"], "finetune": {"batch_size": 8}}
    params = {"config": config, "tasks": ["feelings"], "expected": [["feelings", 1, N, "usual"]]}
    params |= {"weight_decay": DECAY, "patience": 2}
    runs = [cell["outputs"], cell["holdout"]]
    given = Named(runs=runs, labels=[cell["labels"]], steps=[cell["steps"]], kernels=[cell["kernel"]])
    run_script("encoder_study", inputs=given, outputs=Named(**made), params=params)
    rows = artifacts.read_table(made["judged"], "study_judged").to_pylist()
    return {row["way"]: row for row in rows}, made["text"].read_text(encoding="utf-8")


def recorded(cell, split):
    """Return the outputs by length of a split of the training on all examples, float64 [examples, columns]."""
    rows = artifacts.read_table(cell["outputs"], "study_outputs").to_pylist()
    own = [row for row in rows if row["split"] == split]
    return {row["step"]: np.frombuffer(row["values"], "<f2").reshape(row["rows"], -1).astype(float) for row in own}


def trained_directly(cell, length):
    """Return the outputs on the test rows after a plain loop of torch: the model's own forward, AdamW, clipping."""
    stamp = json.loads(Path(cell["stamp"]).read_text(encoding="utf-8"))
    model = load_configured(stamp, MODEL, "pretrained", 1, None, KINDS[cell["kind"]])
    sample = read_sample(cell["data"])
    train, test = (batch_from_table(sample.table, s, None, verbalizers=sample.verbalizers) for s in ("train", "test"))
    words, coding = train["verbalizers"], torch.tensor(coding_matrix(3), dtype=torch.float32)
    parameters = trained({"parameters": KINDS[cell["kind"]]})["parameters"]
    weights = list(select_parameters(model, parameters).values())
    for weight in weights:
        weight.requires_grad_(True)

    def logits(batch, index):
        mask = batch["attention_mask"][index]
        out = model(input_ids=batch["input_ids"][index], attention_mask=mask).logits
        last = mask.shape[1] - 1 - mask.flip(1).argmax(1)
        return out[torch.arange(len(index)), last][:, words]

    taken = artifacts.read_table(cell["steps"], "study_steps").to_pylist()
    batches = [torch.tensor(row["examples"]) for row in taken if row["length"] == length]
    rates = Recipe("usual", RATE, None, "decay").rates(length)
    optimizer = torch.optim.AdamW(weights, lr=0.0, betas=(0.9, 0.999), eps=1e-8, weight_decay=DECAY)
    for batch, rate in zip(batches, rates, strict=True):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits(train, batch), train["labels"][batch]).backward()
        torch.nn.utils.clip_grad_norm_(weights, CLIP)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
    with torch.no_grad():
        return (logits(test, torch.arange(len(test["labels"]))) @ coding.T).numpy()


def test_each_length_is_what_training_directly_gives(cell):
    """After a training of another length, too: each begins at the pretrained weights, the adapter at zero."""
    f = recorded(cell, "test")
    assert sorted(f) == LENGTHS
    for length in LENGTHS:
        # Half precision keeps three digits; Adam divides by gradients that a padded pass rounds otherwise.
        assert f[length] == pytest.approx(trained_directly(cell, length), abs=5e-3), length
    assert np.abs(f[4] - f[0]).max() > 0.05


def test_the_kernel_is_that_of_the_start_and_of_what_is_trained(cell):
    table = artifacts.read_table(cell["kernel"], "study_kernel")
    assert set(table["start"].to_pylist()) == {"pretrained"}
    own = {name: artifacts.read_matrix(table, block=name) for name in ("train", "plain", "outputs", "weights_move")}
    assert own["train"].shape == own["plain"].shape == (2 * N, 2 * N)  # two contrasts of three classes
    assert own["outputs"] == pytest.approx(recorded(cell, "train")[0], abs=2e-3)
    assert np.linalg.eigvalsh(own["train"]).min() > -1e-6 * np.trace(own["train"])
    # Decay of an adapter moves nothing at first, its B being zero; that of all weights does.
    assert bool(np.abs(own["weights_move"]).max() > 1e-6) == (cell["kind"] == "words")


@pytest.mark.slow
def test_a_cell_is_judged_by_every_way_but_folds(cell):
    judged, text = judge(cell)
    read = {"epochs_1", "epochs_2", "all_steps", "holdout", "holdout_refit", "fitted", "more_labels"}
    assert set(judged) == read | {"loo", "bayes", "best"}
    assert all(row["step"] in LENGTHS for row in judged.values())
    assert judged["best"]["regret"] == 0
    assert text.startswith("1 of 1 runs are finished, of 1 data sets (feelings).")


def test_a_cell_trained_again_has_the_same_bits(cell):
    """Nothing is resumed: a job begins anew, and what is there is not trained further."""
    again = cell["folder"] / "again.parquet"
    params = {"model": MODEL, "device": "cpu", "batch_size": 8, "kernel": {"parameters": KINDS[cell["kind"]]}}
    params |= {"recipe": RECIPE, "steps": LENGTHS, "weight_decay": DECAY}
    given = Named(data=cell["data"], model=cell["stamp"], kernel=[])
    made = Named(outputs=again, steps=cell["folder"] / "again-steps.parquet")
    run_script("study_run", inputs=given, outputs=made, params=params, **AT, recipe="usual")
    for kind, path in (("study_outputs", cell["outputs"]), ("study_steps", cell["steps"])):
        other = again if kind == "study_outputs" else made.steps
        assert artifacts.read_table(other, kind).equals(artifacts.read_table(path, kind))
