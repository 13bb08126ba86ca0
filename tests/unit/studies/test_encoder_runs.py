"""Real training of the study on a pico encoder: the same bits again, no leak of left-out labels, every script."""

import json
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch

from scripts import Named, run_script
from stopwise.artifacts import tables as artifacts
from stopwise.linearized.replay import batch_rows
from stopwise.network.folders import prepare_model
from stopwise.network.pico import pico_classifier
from stopwise.stopping.folds import patient_step
from stopwise.studies.encoder_rows import Recipe
from stopwise.studies.encoder_runs import Looks, Runner, first_token_only, fit_start, small_vocabulary
from stopwise.studies.encoder_ways import anchored_step

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


def trained(own, inside, names=("train",), steps=STEPS, **kinds):
    """Train once at a constant rate and return the outputs by split, and what the steps took."""
    looks = Looks(names, **kinds)
    taken = own.run(inside, RATES[: steps[-1]], {step: [step] for step in steps}, 4, 0, looks)
    return {split: (at, np.stack(f)) for split, (at, f) in looks.outputs.items()}, taken


@pytest.fixture
def model():
    return pico_classifier("bert", 2)


def test_a_run_repeats_itself_bit_for_bit_and_starts_anew_each_time(model):
    train, test = batch_of(12), batch_of(9, seed=1)
    own = runner(model, train, test)
    runs = [trained(own, np.arange(12), ["train", "test"]) for _ in range(2)]
    assert all((runs[0][0][split][1] == runs[1][0][split][1]).all() for split in ("train", "test"))
    steps, test = runs[0][0]["test"]
    assert steps == STEPS
    assert test.shape == (3, 9, 1)
    assert (test[0] != test[2]).any()
    assert [len(batch) for _, batch, _ in runs[0][1]] == [4] * 6


@pytest.mark.parametrize("probe", [False, True])
def test_labels_of_examples_that_are_left_out_change_nothing(probe):
    train, test = batch_of(12), batch_of(4, seed=1)
    flipped = {**train, "labels": torch.cat([1 - train["labels"][:3], train["labels"][3:]])}
    inside, found = np.arange(3, 12), []
    for given in (train, flipped):
        own = runner(pico_classifier("bert", 2), given, test)
        if probe:
            own.start_head(inside, 0)
        found.append(trained(own, inside))
    assert (found[0][0]["train"][1] == found[1][0]["train"][1]).all()
    assert set(np.concatenate([batch for _, batch, _ in found[0][1]])) <= set(inside)


def test_a_head_that_starts_as_a_regression_is_that_of_the_examples_trained_on(model):
    """Whatever was trained or fitted before: a fold fits its own head, from the features of the pretrained network."""
    train = batch_of(12)
    own, inside = runner(model, train, batch_of(4, seed=1)), np.arange(3, 12)
    own.start_head(np.arange(12), 0)
    trained(own, np.arange(12))
    own.start_head(inside, 0)
    start = trained(own, inside)[0]["train"][1][0]
    fresh = pico_classifier("bert", 2)
    fit_start(fresh, train, inside, 0)
    assert start == pytest.approx(runner(fresh, train, train).predict("train"), abs=1e-6)


def test_every_length_is_a_training_of_its_own_under_its_own_schedule(model):
    own, every = runner(model, batch_of(12), batch_of(4, seed=1)), np.arange(12)
    looks, rates = Looks(["train", "test"]), Recipe("r", 1e-3, None, "decay").rates
    taken = own.follow(every, rates, [0, 3, 6], True, 4, 0, looks)
    assert {length: len(steps) for length, steps in taken.items()} == {3: 3, 6: 6}
    assert [rate for rate, _, _ in taken[3]] == rates(3).tolist()
    assert [(b == c).all() for (_, b, _), (_, c, _) in zip(taken[3], taken[6], strict=False)] == [True] * 3
    alone = Looks(["test"])
    own.run(every, rates(3), {3: [3]}, 4, 0, alone)
    assert looks.outputs["test"][0] == [0, 3, 6]
    assert (looks.outputs["test"][1][1] == alone.outputs["test"][1][0]).all()


def test_a_fold_takes_as_many_epochs_and_keeps_the_names_of_the_run_on_all(model):
    own, inside = runner(model, batch_of(12), batch_of(4, seed=1)), np.arange(6)
    for apart, schedule in ((True, "decay"), (False, "constant")):
        looks = Looks([], np.arange(6, 12))
        taken = own.follow(inside, Recipe("r", 1e-3, None, schedule).rates, [0, 3, 6], apart, 3, 0, looks)
        assert looks.outputs["left_out"][0] == [0, 3, 6]
        assert len(taken[6]) == 3
        assert [f.shape for f in looks.outputs["left_out"][1]] == [(6, 1)] * 3


def test_the_outputs_of_a_steps_batch_are_those_before_the_step(model):
    found, taken = trained(runner(model, batch_of(12), batch_of(4, seed=1)), np.arange(12), steps=[0, 1, 6])
    for (_, batch, f), outputs in zip(taken, found["train"][1][:2], strict=False):
        assert f == pytest.approx(outputs[batch], abs=1e-6)  # passes of another width round otherwise


def test_a_token_table_of_the_words_in_use_trains_the_same_network(model):
    """Rows of other tokens get no gradient: the outputs along the run are those of the whole table."""
    train, test = batch_of(12), batch_of(9, seed=1)
    whole = trained(runner(model, train, test), np.arange(12), ["test"])[0]["test"][1]
    model = pico_classifier("bert", 2)
    table = model.get_input_embeddings()
    with small_vocabulary(model, [train, test]) as (small_train, small_test):
        assert model.get_input_embeddings().num_embeddings < table.num_embeddings
        small = trained(runner(model, small_train, small_test), np.arange(12), ["test"])[0]["test"][1]
    assert model.get_input_embeddings() is table
    # The gradient's norm is a sum over fewer zeros: the last bits may differ, and Adam divides by them.
    assert small == pytest.approx(whole, abs=1e-4)
    assert (small[0] == whole[0]).all()


def test_a_last_layer_that_ends_with_the_token_its_head_reads_has_the_same_gradients(model):
    own, found = runner(model, batch_of(12), batch_of(4, seed=1)), []
    for block in (nullcontext(), first_token_only(model)):
        shapes = []
        handle = model.bert.encoder.register_forward_hook(lambda m, i, out, s=shapes: s.append(out[0].shape[1]))
        with block, own.learner.trainable():
            f, gradients = own.learner.gradient(own.prompts["train"], lambda f, index: np.ones_like(f))
            found.append((shapes[0], f, torch.cat([g.flatten() for g in gradients])))
        handle.remove()
    (whole, f, g), (first, f_first, g_first) = found
    assert (whole, first) == (7, 1)
    assert f_first == pytest.approx(f, abs=1e-6)
    assert torch.allclose(g_first, g, atol=1e-6 * float(g.abs().max()), rtol=1e-4)  # products of other shapes round


def test_on_the_way_of_holdout_the_test_rows_are_looked_at_where_it_may_stop_only(model):
    train, test = batch_of(12), batch_of(9, seed=1)
    inside, outside = np.arange(3, 12), np.arange(3)
    own, every = runner(model, train, test), [0, 1, 2, 3, 4, 5, 6]
    looks = Looks(["test"], outside, only_least=True)
    own.run(inside, RATES * 20, {t: [t] for t in every}, 4, 0, looks)
    losses = [own.objective(outside).loss(f) for f in looks.outputs["left_out"][1]]
    least = [t for t in every if losses[t] < min([np.inf, *losses[:t]])]
    assert looks.outputs["test"][0] == least
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
    common = {"model": MODEL, "kernel": KERNEL, "device": "cpu", "batch_size": 8}
    params = {**common, "rows": 32, "rates": True, "plain": True}
    given, made = Named(data=data, model=stamp), Named(kernel)
    run_script("study_kernel", inputs=given, outputs=made, params=params, n=16, head="probe", **at)
    recipe = {"learning_rate": None, "step_size": 1.0, "schedule": "decay", "start": "probe", "clip_norm": 1.0}
    params = {**common, "recipe": recipe, "steps": [0, 2, 4], "weight_decay": 0.01}
    at |= {"n": 16, "recipe": "kernel"}
    found = {"all": folder / "all.parquet"}
    taken = folder / "steps.parquet"
    given = Named(data=data, model=stamp, kernel=[kernel])
    run_script("study_run", inputs=given, outputs=Named(outputs=found["all"], steps=taken), params=params, **at)
    for part in ("holdout", "folds8"):
        found[part] = folder / f"{part}.parquet"
        run_script("study_run", inputs=given, outputs=Named(outputs=found[part]), params=params, part=part, **at)
    names = ("judged", "cells", "ways", "labels_spent", "F11")
    made = {name: folder / "judge" / f"{name}.parquet" for name in names}
    made |= {"text": folder / "judge/ways.md", "svg": folder / "judge/F11.svg", "png": folder / "judge/F11.png"}
    study = {"recipes": {"kernel": recipe}, "primary": None, "usual": None, "others_size": None, "set_aside": []}
    study |= {"steps": 4, "epochs": 1, "lengths": [1, 2], "evaluations": 2, "fixed_epochs": [1], "test_rows": {}}
    study |= {"folds_size": None}
    config = {"seeds": [0, 1], "sizes": [16], "study": study, "tasks": ["feelings"], "finetune": {"batch_size": 8}}
    params = {"config": config, "tasks": ["feelings"], "expected": [["feelings", s, 16, "kernel"] for s in (0, 1)]}
    params |= {"weight_decay": 0.01, "patience": 2}
    given = Named(runs=[*found.values()], labels=[labels], steps=[taken], kernels=[kernel])
    run_script("encoder_study", inputs=given, outputs=Named(**made), params=params)
    return {
        "common": common,
        "stamp": stamp,
        "data": data,
        "labels": labels,
        "kernel": kernel,
        "steps": taken,
        **found,
        **made,
    }


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
        (split, step) for split in ("train", "validation", "test") for step in (0, 2, 4)
    }
    taken = artifacts.read_table(steps["steps"], "study_steps").to_pylist()
    assert [(row["length"], row["step"]) for row in taken] == [(k, step) for k in (2, 4) for step in range(k)]
    assert {len(row["examples"]) for row in taken} == {8}
    table = artifacts.read_table(steps["kernel"], "study_kernel")
    names = ("train", "plain", "outputs", "weights_move", "left_out")
    own = {block: artifacts.read_matrix(table, block=block) for block in names}
    assert own["train"].shape == own["plain"].shape == (32, 32)  # two contrasts of three classes
    assert own["left_out"].shape == (16, 48)
    assert np.isfinite(own["weights_move"]).all()
    assert np.linalg.eigvalsh(own["train"]).min() > -1e-6 * np.trace(own["train"])
    # Training began where the kernel was read, the head as the regression on the features.
    first = next(row for row in outputs if (row["split"], row["step"]) == ("train", 0))
    start = np.frombuffer(first["values"], dtype="<f2")
    assert start == pytest.approx(own["outputs"].ravel(), abs=2e-3)  # kept in half precision
    # The largest rate is 1/lambda_1 of the batches of the first epoch.
    rows = [batch_rows(np.array(row["examples"]), 2) for row in taken[:2]]
    lambda_1 = max(np.linalg.eigvalsh(own["train"][np.ix_(b, b)])[-1] / 16 for b in rows)
    assert max(row["learning_rate"] for row in taken) == pytest.approx(1 / lambda_1)


def test_a_kernel_of_more_rows_than_fit_holds_the_first_examples_or_nothing(steps):
    small = {"rows": 12, "plain": False}
    for rates, expected in ((True, 12), (False, 0)):
        path = steps["data"].parent / f"small-{rates}.parquet"
        params = {**steps["common"], **small, "rates": rates}
        inputs, at = Named(data=steps["data"], model=steps["stamp"]), {"task": "feelings", "seed": 1, "n": 16}
        run_script("study_kernel", inputs=inputs, outputs=Named(path), params=params, head="probe", **at)
        blocks = artifacts.read_table(path, "study_kernel").column("block").to_pylist()
        assert blocks.count("train") == expected
        assert not {"left_out", "plain"} & set(blocks)


def test_the_judge_has_every_way_whose_parts_are_there(steps):
    judged = artifacts.read_table(steps["judged"], "study_judged").to_pylist()
    assert {row["way"] for row in judged} == {
        "epochs_1",
        "all_steps",
        "fitted",
        "holdout",
        "holdout_refit",
        "folds_8",
        "more_labels",
        "loo",
        "bayes",
        "best",
    }
    text = Path(steps["text"]).read_text(encoding="utf-8")
    assert text.startswith("1 of 2 runs are finished, of 1 data sets (feelings).")
    assert Path(steps["png"]).stat().st_size > 1000


@pytest.mark.slow
def test_the_script_names_the_length_with_the_least_loss_left_out(steps, tmp_path):
    curve, answers = tmp_path / "curve.parquet", tmp_path / "answers.parquet"
    recipe = {"learning_rate": 1e-3, "step_size": None, "schedule": "decay", "start": "random", "clip_norm": 1.0}
    params = {"model": MODEL, "kernel": KERNEL, "device": "cpu", "batch_size": 8, "recipe": recipe}
    params |= {"steps": [0, 2, 4, 8], "weight_decay": 0.01, "memory_gb": 1}
    given, made = Named(data=steps["data"], model=steps["stamp"]), Named(curve=curve, answers=answers)
    at = {"task": "feelings", "seed": 1, "n": 16, "recipe": "usual"}
    run_script("study_anchored", inputs=given, outputs=made, params=params, **at)
    rows = artifacts.read_table(curve, "study_left_out").to_pylist()
    assert [row["length"] for row in rows] == [0, 2, 4, 8]
    (answer,) = artifacts.read_table(answers, "study_answers").to_pylist()
    assert (answer["way"], answer["step"]) == ("anchored", anchored_step(rows))
