"""Real training of the study on a pico encoder: the same bits again, no leak of left-out labels, every script."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from scripts import Named, run_script
from stopwise.artifacts import tables as artifacts
from stopwise.network.folders import prepare_model
from stopwise.network.pico import pico_classifier
from stopwise.stopping.folds import patient_step
from stopwise.studies.encoder_runs import Runner, small_vocabulary

ROOT = Path(__file__).resolve().parents[3]
RATES, STEPS = np.full(6, 1e-3), [0, 2, 6]


def batch_of(n, seed=0, words=40):
    rng = np.random.default_rng(seed)
    ids = torch.tensor(rng.integers(5, words, size=(n, 7)))
    mask = torch.ones_like(ids)
    mask[::2, 5:] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.arange(n) % 2, "verbalizers": torch.arange(2)}


def runner(model, train, test, clip=1.0):
    return Runner(model, train, {"test": test}, "all", 0.01, clip)


@pytest.fixture
def model():
    return pico_classifier("bert", 2)


def test_a_run_repeats_itself_bit_for_bit_and_starts_anew_each_time(model):
    train, test = batch_of(12), batch_of(9, seed=1)
    own = runner(model, train, test)
    runs = [own.run(np.arange(12), RATES, STEPS, 4, 0, ["test"]) for _ in range(2)]
    assert all((runs[0].outputs[split][1] == runs[1].outputs[split][1]).all() for split in ("train", "test"))
    steps, test = runs[0].outputs["test"]
    assert steps == STEPS
    assert test.shape == (3, 9, 1)
    assert (test[0] != test[2]).any()
    assert [len(batch) for _, batch, _ in runs[0].taken] == [4] * 6


def test_labels_of_examples_that_are_left_out_change_nothing(model):
    train, test = batch_of(12), batch_of(4, seed=1)
    inside = np.arange(3, 12)
    first = runner(model, train, test).run(inside, RATES, STEPS, 4, 0, [])
    flipped = {**train, "labels": torch.cat([1 - train["labels"][:3], train["labels"][3:]])}
    model = pico_classifier("bert", 2)
    second = runner(model, flipped, test).run(inside, RATES, STEPS, 4, 0, [])
    assert (first.outputs["train"][1] == second.outputs["train"][1]).all()
    assert set(np.concatenate([batch for _, batch, _ in first.taken])) <= set(inside)


def test_the_outputs_of_a_steps_batch_are_those_before_the_step(model):
    train, test = batch_of(12), batch_of(4, seed=1)
    run = runner(model, train, test).run(np.arange(12), RATES, [0, 1], 4, 0, [])
    for (_, batch, f), outputs in zip(run.taken, run.outputs["train"][1], strict=False):
        assert f == pytest.approx(outputs[batch], abs=1e-6)  # passes of another width round otherwise


def test_a_token_table_of_the_words_in_use_trains_the_same_network(model):
    """Rows of other tokens get no gradient: the outputs along the run are those of the whole table."""
    train, test = batch_of(12), batch_of(9, seed=1)
    whole = runner(model, train, test).run(np.arange(12), RATES, STEPS, 4, 0, ["test"])
    model = pico_classifier("bert", 2)
    table = model.get_input_embeddings()
    with small_vocabulary(model, [train, test]) as (small_train, small_test):
        assert model.get_input_embeddings().num_embeddings < table.num_embeddings
        small = runner(model, small_train, small_test).run(np.arange(12), RATES, STEPS, 4, 0, ["test"])
    assert model.get_input_embeddings() is table
    # The gradient's norm is a sum over fewer zeros: the last bits may differ, and Adam divides by them.
    assert small.outputs["test"][1] == pytest.approx(whole.outputs["test"][1], abs=1e-4)
    assert (small.outputs["test"][1][0] == whole.outputs["test"][1][0]).all()


def test_on_the_way_of_holdout_the_test_rows_are_looked_at_where_it_may_stop_only(model):
    train, test = batch_of(12), batch_of(9, seed=1)
    inside, outside = np.arange(3, 12), np.arange(3)
    own, every = runner(model, train, test), [0, 1, 2, 3, 4, 5, 6]
    run = own.run(inside, RATES * 20, every, 4, 0, ["test"], held_out=outside)
    losses = [own.objective(outside).loss(f[outside]) for f in run.outputs["train"][1]]
    least = [t for t in every if losses[t] < min([np.inf, *losses[:t]])]
    assert run.outputs["test"][0] == least
    assert len(least) < len(every)
    assert {patient_step(every, losses, patience) for patience in range(1, 7)} <= set(least)


TASK = {"source": {"csv": str(ROOT / "tests/data/feelings.csv")}, "text": "text", "label": "label"}
MODEL = {"source": "pico-bert", "revision": None, "dtype": "float32", "attn_implementation": None}
MODEL |= {"trust_remote_code": False, "head": "classification"}
KERNEL = {"parameters": "all", "formula": "adam", "memory_gb": None, "outputs": "contrast"}


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    """Run each step of the study once: sample, kernel, training with and without folds, the judge."""
    folder = tmp_path_factory.mktemp("study")
    assets = folder / "results" / "assets"
    stamp = assets / "models" / "pico-bert.json"
    stamp.parent.mkdir(parents=True)
    record = {"source": "pico-bert", "folder": str(prepare_model("pico-bert", assets)), "fingerprint": "x"}
    stamp.write_text(json.dumps(record | {"tokenizer": "x"}), encoding="utf-8")
    at = {"task": "feelings", "seed": 1}
    data, labels = folder / "data.parquet", folder / "labels.parquet"
    rows = {"max_tokens": 16, "validation": 8, "test": 20}
    params = {"task": TASK, "data": rows, "train": 16, "seeds": [0, 1], "test": 20, "model": MODEL}
    run_script("study_sample", inputs=Named(model=stamp), outputs=Named(data=data, labels=labels), params=params, **at)
    kernel = folder / "kernel.parquet"
    common = {"model": MODEL, "kernel": KERNEL, "device": "cpu", "batch_size": 4, "clip_norm": 1.0}
    run_script(
        "study_kernel",
        inputs=Named(data=data, model=stamp),
        outputs=Named(kernel),
        params={**common, "examples": 64, "rows": 12},
        **at,
    )
    recipe = {"learning_rate": None, "step_size": 1.0, "schedule": "decay"}
    params = {**common, "recipe": recipe, "steps": [0, 4, 8], "weight_decay": 0.01}
    at |= {"n": 16, "recipe": "kernel"}
    found = {"all": folder / "all.parquet"}
    taken = folder / "steps.parquet"
    given = Named(data=data, model=stamp, kernel=[kernel])
    run_script("study_run", inputs=given, outputs=Named(outputs=found["all"], steps=taken), params=params, **at)
    for part in ("holdout", "folds4"):
        found[part] = folder / f"{part}.parquet"
        run_script("study_run", inputs=given, outputs=Named(outputs=found[part]), params=params, part=part, **at)
    names = ("judged", "cells", "ways", "labels_spent", "F11")
    made = {name: folder / "judge" / f"{name}.parquet" for name in names}
    made |= {"text": folder / "judge/ways.md", "svg": folder / "judge/F11.svg", "png": folder / "judge/F11.png"}
    study = {"recipes": {"kernel": recipe}, "primary": None, "usual": None, "others_size": None, "set_aside": []}
    study |= {"steps": 8, "epochs": 1, "evaluations": 2, "fixed_epochs": [1], "test_rows": {}}
    config = {"seeds": [0, 1], "sizes": [16], "study": study, "tasks": ["feelings"], "finetune": {"batch_size": 4}}
    params = {"config": config, "tasks": ["feelings"], "expected": [["feelings", s, 16, "kernel"] for s in (0, 1)]}
    params |= {"weight_decay": 0.01, "clip_norm": 1.0, "patience": 2}
    given = Named(runs=[*found.values()], labels=[labels], steps=[taken], kernels=[kernel])
    run_script("encoder_study", inputs=given, outputs=Named(**made), params=params)
    return {"data": data, "labels": labels, "kernel": kernel, "steps": taken, **found, **made}


@pytest.mark.slow
def test_the_sample_of_a_seed_has_its_own_test_rows_and_no_texts_in_the_labels(steps):
    data = artifacts.read_table(steps["data"], "data").to_pandas()
    assert data["split"].value_counts().to_dict() == {"train": 16, "validation": 8, "test": 20}
    assert data.loc[data["split"] == "test", "position"].tolist() == list(range(20, 40))  # those of the second seed
    labels = artifacts.read_table(steps["labels"], "study_labels")
    assert "prompt" not in labels.column_names
    assert {row["split"]: len(row["labels"]) for row in labels.to_pylist()} == {
        "train": 16,
        "validation": 8,
        "test": 20,
    }


def test_a_cell_keeps_all_that_a_later_rule_may_ask_for(steps):
    outputs = artifacts.read_table(steps["all"], "study_outputs").to_pylist()
    assert {(row["split"], row["step"]) for row in outputs} == {
        (split, step) for split in ("train", "validation", "test") for step in (0, 4, 8)
    }
    taken = artifacts.read_table(steps["steps"], "study_steps").to_pylist()
    assert [row["step"] for row in taken] == list(range(8))
    assert {len(row["examples"]) for row in taken} == {4}
    kernel = artifacts.read_table(steps["kernel"], "study_kernel")
    own = {block: artifacts.read_matrix(kernel, block=block) for block in ("train", "plain", "outputs", "weights_move")}
    assert own["train"].shape == own["plain"].shape == (12, 12)
    assert np.linalg.eigvalsh(own["train"]).min() > -1e-6 * np.trace(own["train"])
    # Training began where the kernel was read.
    first = next(row for row in outputs if (row["split"], row["step"]) == ("train", 0))
    start = np.frombuffer(first["values"], dtype="<f2")[:12]
    assert start == pytest.approx(own["outputs"].ravel(), abs=2e-3)  # kept in half precision


def test_the_judge_has_every_way_whose_parts_are_there(steps):
    judged = artifacts.read_table(steps["judged"], "study_judged").to_pylist()
    assert {row["way"] for row in judged} == {
        "epochs_1",
        "all_steps",
        "holdout",
        "holdout_refit",
        "folds_4",
        "more_labels",
        "best",
    }
    text = Path(steps["text"]).read_text(encoding="utf-8")
    assert text.startswith("1 of 2 runs are finished, of 1 data sets (feelings).")
    assert Path(steps["png"]).stat().st_size > 1000
