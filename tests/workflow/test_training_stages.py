"""Stages beside plain fine-tuning, on the pico pipeline: drift, joint training, the record, and unread validation."""

import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from pipeline import TEST_CONFIG, snakemake
from scripts import Named, run_script
from stopwise.artifacts import tables as artifacts
from stopwise.pipeline.config import validated
from stopwise.training.prediction import stop_steps
from stopwise.training.settings import FinetuneSettings

pytestmark = pytest.mark.pipeline
RUN = Path("finetune/pretrained/colours/seed0")


@pytest.fixture
def copy(finished_pipeline, tmp_path):
    folder = tmp_path / "checkout"
    shutil.copytree(finished_pipeline[0], folder, symlinks=True)
    return folder


def configure(folder, *, tasks=None, **sections):
    """Write a configuration like the pico one under the same name, with some sections changed, or some tasks only."""
    config = yaml.safe_load((folder / TEST_CONFIG).read_text(encoding="utf-8"))
    config["tasks"] = {name: config["tasks"][name] for name in tasks or config["tasks"]}
    for key, value in sections.items():
        config[key] = {**config.get(key, {}), **value} if isinstance(value, dict) else value
    (folder / "changed.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return "changed.yaml"


def test_a_finished_run_leaves_its_record_with_drift_and_joint_training(copy):
    """One run of the target `record` trains what it needs, repeats no fine-tuning, and writes few small files."""
    config = configure(copy, drift={"enabled": True, "examples": 6, "checkpoints": 2}, joint={"enabled": True})
    run = snakemake(copy, "record", config=config)
    assert run.code == 0, run.output[-4000:]
    jobs = run.jobs()
    assert jobs["drift"] == 2
    assert jobs["joint"] == 1
    assert "finetune" not in jobs
    folder = copy / "docs" / "records" / "test"
    assert "`snakemake --cores 2 --configfile changed.yaml`" in (folder / "README.md").read_text(encoding="utf-8")
    names = {path.stem for path in folder.glob("*.parquet")}
    assert {"trajectory", "evaluation", "decay", "summary", "arithmetic", "drift", "joint", "F2", "F6"} <= names
    assert sum(path.stat().st_size for path in folder.iterdir()) < 1_000_000

    drift = pq.read_table(folder / "drift.parquet").to_pandas()
    assert set(drift["step"]) == {0, 4, 8}
    assert set(drift["task"]) == {"colours", "moods"}
    assert (drift.loc[drift["step"] == 0, "drift"] == 0).all()
    assert (drift.loc[drift["step"] > 0, "drift"] > 0).all()
    # The run that is followed is the one that was measured: the same weights at the same step.
    trajectory = pq.read_table(folder / "trajectory.parquet").to_pandas()
    whole = drift[drift["layer"].isna()].merge(trajectory, on=["start", "task", "seed", "n", "step"])
    assert len(whole) == 6
    assert (whole["relative_distance_x"] == whole["relative_distance_y"]).all()

    joint = pq.read_table(folder / "joint.parquet").to_pandas()
    assert set(joint["split"]) == {"train", "validation", "test"}
    assert set(joint["n"]) == {16}
    assert not pq.read_table(folder / "joint_evaluation.parquet").to_pandas().empty
    figure = pq.read_table(folder / "F6.parquet").to_pandas()
    assert {"residual", "loss", "guarantee", "drift", "distance"} == set(figure["quantity"])


def test_folds_of_real_training_name_the_stop_of_the_training_on_all(copy, monkeypatch):
    """The folds are jobs of their own, beside a finished run whose kernels stay; their mean curve names the step."""
    stop = {"stop": "cross_validation", "folds": 2, "continue_after_stop": False}
    config = configure(copy, tasks=["colours"], finetune=stop, arithmetic={"enabled": False})
    run = snakemake(copy, "-n", f"results/test/{RUN}/trajectory.parquet", config=config)
    assert run.code == 0, run.output[-4000:]
    assert {"fold": 2, "folded": 1, "finetune": 1}.items() <= run.jobs().items()
    assert not {"gram", "jacobian", "data"} & set(run.jobs())

    monkeypatch.chdir(copy)
    results, completed = Path("results/test"), validated(yaml.safe_load((copy / config).read_text(encoding="utf-8")))
    rooms = {key: completed["stopping"][key] for key in ("intercept", "target_scale")}
    kernel = {key: completed["kernel"][key] for key in ("parameters", "outputs", "formula")}
    finetune = {k: v for k, v in completed["finetune"].items() if k not in ("stop", "folds", "continue_after_stop")}
    params = {"sizes": [8, 16], "model": completed["model"], "kernel": kernel, "stopping": rooms, "device": "cpu"}
    at = {"start": "pretrained", "task": "colours", "seed": 0}
    given = {kind: results / kind / "pretrained/colours/seed0.parquet" for kind in ("gram",)}
    given |= {"data": results / "data/colours/seed0.parquet", "model": Path("results/assets/models/pico-llama.json")}
    parts = [results / f"fold/pretrained/colours/seed0/fold{k}of2.parquet" for k in range(2)]
    for k, part in enumerate(parts):
        own = params | {"finetune": finetune}
        run_script("fold", inputs=Named(**given), outputs=Named(part), params=own, fold=k, folds=2, **at)
    named = {kind: results / kind / "pretrained/colours/seed0.parquet" for kind in ("folded", "folded_curve")}
    asked = {"sizes": [8, 16], "stop": "cross_validation", "batch_size": None, "patience": 2, "min_delta": 0.0}
    outputs = Named(stopping=named["folded"], curve=named["folded_curve"])
    run_script("folded", inputs=Named(*parts), outputs=outputs, params=asked, **at)
    rows = artifacts.read_table(named["folded"], "stopping").to_pylist()
    curves = artifacts.read_table(named["folded_curve"], "stopping_curve").to_pandas()
    measured = [row for part in parts for row in artifacts.read_table(part, "fold_curve").to_pylist()]
    for row in rows:
        own = curves[curves["n"] == row["n"]]
        assert row["t"] == own.loc[own["value"].idxmin(), "t"]
        assert sum(one["examples"] for one in measured if (one["n"], one["step"]) == (row["n"], 0)) == row["n"]
    settings = FinetuneSettings.from_config(completed["finetune"], **kernel, **rooms)
    assert stop_steps(rows, settings) == {row["n"]: row["t"] for row in rows}
    assert not settings.reads_validation
    assert not list(copy.glob("results/test/checkpoints/**/*.safetensors"))


def test_a_fixed_number_of_epochs_is_counted_for_every_size():
    fixed = {"stop": "epochs", "epochs": 3, "batch_size": 4, "steps": 20}
    settings = FinetuneSettings.from_config(fixed)
    assert stop_steps([], settings, [8, 16]) == {8: 6, 16: 12}
    with pytest.raises(ValueError, match=r"finetune\.epochs: found None"):
        FinetuneSettings.from_config(fixed | {"epochs": None})


def test_a_run_that_a_rule_stops_reads_no_validation_data(copy):
    """With every validation example poisoned, its kernel rows included, such a run gives the same bits."""
    config = configure(copy, finetune={"stop": "gcv", "continue_after_stop": False})
    target = f"results/test/{RUN}/trajectory.parquet"
    run = snakemake(copy, target, config=config)
    assert run.code == 0, run.output[-4000:]
    results = copy / "results" / "test"
    files = sorted(path for path in (results / RUN).iterdir() if path.suffix == ".safetensors")
    before = [path.read_bytes() for path in files]
    tables = {path: pq.read_table(path) for path in sorted((results / RUN).glob("*.parquet"))}
    rows = tables[results / RUN / "trajectory.parquet"]
    assert rows["validation_loss"].null_count == rows.num_rows
    assert set(tables[results / RUN / "finetune_outputs.parquet"]["split"].to_pylist()) == {"train", "test"}

    held_out = poison_data(results / "data/colours/seed0.parquet")
    poison_gram(results / "gram/pretrained/colours/seed0.parquet", held_out)
    again = snakemake(copy, "--force", target, config=config)
    assert again.code == 0, again.output[-4000:]
    assert again.jobs() == {"finetune": 1, "total": 1}
    assert [path.read_bytes() for path in files] == before
    for path, table in tables.items():
        assert artifacts.content_digest(pq.read_table(path)) == artifacts.content_digest(table), path.name


def rewrite(path, kind, table):
    """Replace an artifact's rows and keep its time: a newer file would be made again, and the poison cleaned."""
    before = path.stat()
    artifacts.write_table(path, table, kind, artifacts.read_provenance(path))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def poison_data(path):
    """Give every validation example a wrong label and other tokens; returns how many there are."""
    table = artifacts.read_table(path, "data")
    rows = table.to_pylist()
    for row in rows:
        if row["split"] == "validation":
            row |= {"label": 1 - row["label"], "input_ids": [7] * len(row["input_ids"]), "prompt": "poison"}
    rewrite(path, "data", pa.Table.from_pylist(rows, schema=table.schema))
    return sum(row["split"] == "validation" for row in rows)


def poison_gram(path, held_out):
    """Make the kernel rows and the outputs of the validation examples NaN."""
    table = artifacts.read_table(path, "gram")
    rows = table.to_pylist()
    for row in rows:
        if row["block"] in ("new", "outputs_new") and row["row"] < held_out:
            row["values"] = np.full(len(row["values"]) // 8, np.nan).tobytes()
    rewrite(path, "gram", pa.Table.from_pylist(rows, schema=table.schema))


def test_adamw_is_predicted_by_its_own_kernel(copy):
    """The kernel depends on the training that it is weighed for; its path stands beside what training does."""
    adam = {"optimizer": "adamw", "learning_rate": None, "batch_size": 4, "step_size": 0.2}
    sections = {"kernel": {"formula": "adam"}, "arithmetic": {"enabled": False}, "drift": {"enabled": True}}
    sections["tasks"] = ["colours"]
    run = snakemake(copy, config=configure(copy, finetune=adam, **sections))
    assert run.code == 0, run.output[-4000:]
    assert run.jobs()["jacobian"] == 2
    rows = pq.read_table(copy / "results/test" / RUN / "trajectory.parquet").to_pandas()
    at = rows[(rows["n"] == 16) & (rows["step"].isin([0, 8]))].set_index("step")
    moves = at["train_loss"].diff()[8], at["linearised_train_loss"].diff()[8]
    assert moves[0] < 0
    assert moves[1] == pytest.approx(moves[0], rel=0.5)
    assert rows["linearised_distance"].isna().all()
    stopping = pq.read_table(copy / "results/test/stopping/pretrained/colours/seed0.parquet").to_pandas()
    assert all("heuristic" in flags for flags in stopping["flags"])
    other = snakemake(copy, "--dry-run", config=configure(copy, finetune=adam | {"batch_size": 8}, **sections))
    assert "jacobian" in other.jobs()


def test_cross_entropy_is_stopped_by_replaying_it_on_the_kernel(copy):
    """The rules that replay are within their theory, the others not; variants of squared loss are not judged."""
    ball = {"objective": "cross_entropy", "optimizer": "heavy_ball", "batch_size": 4, "step_size": 0.5, "stop": "bayes"}
    rules = {"rules": ["sure", "loo", "bayes", "holdout", "oracle"]}
    config = configure(copy, tasks=["colours"], finetune=ball, stopping=rules, arithmetic={"enabled": False})
    run = snakemake(copy, "--", "stopping_runs", config=config)
    assert run.code == 0, run.output[-4000:]
    assert "jacobian" not in run.jobs()
    results = copy / "results/test"
    stopping = artifacts.read_table(results / "stopping/pretrained/colours/seed0.parquet", "stopping").to_pylist()
    theory = {
        rule: {"heuristic" not in row["flags"] for row in stopping if row["rule"] == rule}
        for rule in rules["rules"][:3]
    }
    assert theory == {"sure": {False}, "loo": {True}, "bayes": {True}}
    rows = pq.read_table(results / RUN / "trajectory.parquet").to_pandas()
    last = rows[rows["n"] == 16].iloc[-1]
    assert last["train_loss"] < rows[rows["n"] == 16].iloc[0]["train_loss"]
    assert last["linearised_train_loss"] == pytest.approx(last["train_loss"], rel=0.2)
    judged = artifacts.read_table(results / "stopping_runs.parquet", "stopping_runs").to_pylist()
    assert {row["rule"] for row in judged} == {*rules["rules"], "path_oracle", "all_steps", "holdout_equal"}
