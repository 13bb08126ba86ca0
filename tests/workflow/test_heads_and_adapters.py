"""A new head on an encoder, and an adapter, from a configuration to the figures and to a folder that others load."""

import shutil

import numpy as np
import pytest
import torch
import yaml

from pipeline import ROOT, checkout, snakemake
from stopwise.artifacts import tables as artifacts
from stopwise.linearized.coding import coding_matrix
from stopwise.training.export import export_run

pytestmark = pytest.mark.pipeline
CONFIG = "config/test-head.yaml"
RUN = "finetune/pretrained/feelings/seed0"


def changed(folder, name, **sections):
    """Write the configuration under another name, with some sections changed, and return its file."""
    config = yaml.safe_load((ROOT / CONFIG).read_text(encoding="utf-8")) | {"name": name}
    for key, value in sections.items():
        config[key] = config.get(key, {}) | value
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return f"{name}.yaml"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A checkout in which the configuration has run, trained to its last step."""
    folder = checkout(tmp_path_factory.mktemp("head"))
    run = snakemake(folder, config=changed(folder, "head", finetune={"stop": "none"}))
    assert run.code == 0, run.output[-4000:]
    return folder, run


def last_outputs(folder, name):
    """f of the test examples at the last step, [n, columns], and their rows of the data."""
    table = artifacts.read_table(folder / f"results/{name}/{RUN}/finetune_outputs.parquet", "finetune_outputs")
    rows = [row for row in table.to_pylist() if row["split"] == "test" and row["step"] == 12]
    f = np.stack([np.frombuffer(row["values"]) for row in sorted(rows, key=lambda row: row["row"])])
    data = artifacts.read_table(folder / f"results/{name}/data/feelings/seed0.parquet", "data").to_pylist()
    return f, [row for row in data if row["split"] == "test"]


def test_a_head_runs_to_the_figures(finished):
    """No template, no verbalizers, one command; every figure that one task allows."""
    folder, run = finished
    figures = folder / "results/head/figures"
    assert {path.stem for path in figures.glob("*.svg")} == {"F1", "F2", "F3", "F6", "F9"}
    assert "arithmetic" not in run.jobs()
    rows = artifacts.read_table(folder / f"results/head/{RUN}/trajectory.parquet", "trajectory").to_pylist()
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]
    assert all(row["linearised_test_loss"] is not None for row in rows)


def test_the_exported_model_is_the_one_that_was_trained(finished, tmp_path):
    """transformers' own pipeline gives the probabilities that the run recorded, under the labels' names."""
    from transformers import pipeline

    folder = finished[0]
    made = export_run(folder / "results/head", "feelings", tmp_path / "model")
    assert (made.kind, made.classes, made.step) == ("model", ["calm", "happy", "sad"], 12)
    f, rows = last_outputs(folder, "head")
    expected = torch.softmax(torch.tensor(f @ coding_matrix(3)), dim=-1).numpy()
    said = pipeline("text-classification", str(made.folder), top_k=None)([row["prompt"] for row in rows])
    found = [[next(one["score"] for one in each if one["label"] == c) for c in made.classes] for each in said]
    np.testing.assert_allclose(found, expected, atol=1e-5)  # float32
    with pytest.raises(ValueError, match="exists already"):
        export_run(folder / "results/head", "feelings", tmp_path / "model")
    with pytest.raises(ValueError, match="found pretrained/feelings/seed0"):
        export_run(folder / "results/head", "moods", tmp_path / "other")


def test_an_adapter_is_trained_and_loads_with_peft(finished, tmp_path):
    """Its kernel is flagged for the half that it leaves out; peft and the merged model give the recorded outputs."""
    from peft import AutoPeftModelForSequenceClassification
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = tmp_path / "checkout"
    shutil.copytree(finished[0], folder, symlinks=True)
    config = changed(folder, "adapter", finetune={"stop": "none"}, kernel={"parameters": {"peft": {"rank": 2}}})
    run = snakemake(
        folder, f"results/adapter/{RUN}/trajectory.parquet", "results/adapter/figures/F2.svg", config=config
    )
    assert run.code == 0, run.output[-4000:]
    stopping = artifacts.read_table(folder / "results/adapter/stopping/pretrained/feelings/seed0.parquet", "stopping")
    assert all("second_order_left_out" in row["flags"] for row in stopping.to_pylist())
    f, rows = last_outputs(folder, "adapter")
    made = [export_run(folder / "results/adapter", "feelings", tmp_path / str(merge), merge=merge) for merge in (0, 1)]
    assert [one.kind for one in made] == ["adapter", "model"]
    models = (
        AutoPeftModelForSequenceClassification.from_pretrained(made[0].folder, num_labels=3),
        AutoModelForSequenceClassification.from_pretrained(made[1].folder),
    )
    inputs = AutoTokenizer.from_pretrained(made[1].folder)(
        [r["prompt"] for r in rows], padding=True, return_tensors="pt"
    )
    for model in models:
        with torch.no_grad():
            logits = model.eval()(**inputs).logits.double().numpy()
        np.testing.assert_allclose(logits @ coding_matrix(3).T, f, atol=1e-5)
