"""The whole workflow on the pico configuration: it runs, says what it wrote, resumes, and repeats nothing."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest
import yaml

from pipeline import TEST_CONFIG, snakemake
from stopwise.artifacts import tables as artifacts
from stopwise.artifacts.gram import read_gram

pytestmark = pytest.mark.pipeline
TORCH_RULES = ("prepare_model", "data", "jacobian", "finetune", "arithmetic", "task_kernels")


def parquet_files(folder: Path) -> list[Path]:
    return sorted((folder / "results" / "test").rglob("*.parquet"))


@pytest.fixture
def copy(finished_pipeline, tmp_path):
    folder = tmp_path / "checkout"
    shutil.copytree(finished_pipeline[0], folder, symlinks=True)  # copytree keeps modification times
    return folder


def test_a_run_from_nothing_writes_every_artifact_with_schema_and_provenance(finished_pipeline):
    folder, run = finished_pipeline
    files = parquet_files(folder)
    assert len(files) > 20
    for path in files:
        record = artifacts.read_provenance(path)
        artifacts.read_table(path, record["kind"])
        assert record["rule"]
        assert record["versions"]["stopwise"]
        assert record["volatile"]["seconds"] >= 0
        assert run.folder not in json.dumps(artifacts.stable(record)), "a stable record must not hold a machine's path"


def test_at_most_twelve_jobs_import_torch(finished_pipeline):
    jobs = finished_pipeline[1].jobs()
    assert sum(jobs.get(rule, 0) for rule in TORCH_RULES) <= 12


def test_a_second_run_has_nothing_to_do(finished_pipeline):
    run = snakemake(finished_pipeline[0], "-n")
    assert "Nothing to be done" in run.output, run.output[-3000:]


def test_figures_are_drawn_as_svg_and_png(finished_pipeline):
    folder = finished_pipeline[0] / "results" / "test" / "figures"
    for name in ("F1", "F2", "F3", "F8"):
        assert (folder / f"{name}.svg").read_text().lstrip().startswith("<?xml")
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_a_deleted_shard_reruns_that_shard_and_what_depends_on_it_only(copy):
    shards = sorted((copy / "results/test/jacobian/pretrained/colours").rglob("*.parquet"))
    before = {path: artifacts.digest(path) for path in parquet_files(copy)}
    shards[0].unlink()
    jobs = snakemake(copy, "-n").jobs()
    assert jobs["jacobian"] == 1
    assert jobs["gram"] == 1
    assert "data" not in jobs
    assert "prepare_model" not in jobs
    run = snakemake(copy)
    assert run.code == 0, run.output[-3000:]
    assert {path: artifacts.digest(path) for path in parquet_files(copy)} == before


def test_blocks_of_examples_as_jobs_give_the_kernel_of_the_shards(copy):
    target, path = "results/test/gram/pretrained/colours/seed0.parquet", copy / TEST_CONFIG
    wanted = read_gram(artifacts.read_table(copy / target, "gram"))
    path.write_text(path.read_text().replace("shards: 2", "blocks: 3"))
    run = snakemake(copy, target)
    assert run.code == 0, run.output[-3000:]
    assert run.jobs() == {"jacobian": 3, "gram": 1, "total": 4}
    found = read_gram(artifacts.read_table(copy / target, "gram"))
    for name in ("train", "new", "outputs", "outputs_new"):
        # float32 passes over other batches: 1e-7, and a tenfold margin
        np.testing.assert_allclose(
            getattr(found, name), getattr(wanted, name), rtol=1e-6, atol=1e-6 * np.abs(wanted.train).max()
        )
    assert np.array_equal(found.train, found.train.T)
    blocks = sorted((copy / "results/test/jacobian/pretrained/colours/seed0").glob("blocks*of3.parquet"))
    assert [path.stem for path in blocks] == ["blocks0-1of3", "blocks0-2of3", "blocks1-2of3"]
    blocks[0].unlink()
    jobs = snakemake(copy, "-n", target, str(blocks[0].relative_to(copy))).jobs()
    assert jobs == {"jacobian": 1, "gram": 1, "total": 2}
    shutil.copy(blocks[1], blocks[0])
    refused = snakemake(copy, target)
    assert refused.code != 0
    assert re.search(
        r"stopwise: gram: .*blocks0-2of3.parquet: block .* is in .*blocks0-1of3.parquet too", refused.output
    )


def test_a_changed_formula_reruns_the_rules_that_use_it_only(copy):
    with (copy / "src/stopwise/stopping/closed_form.py").open("a") as file:
        file.write("\nEDITED = True\n")
    jobs = snakemake(copy, "-n").jobs()
    assert jobs["stopping"] == 2
    # Training stops where one of these rules says.
    assert jobs["finetune"] == 2
    for rule in ("data", "jacobian", "gram", "prepare_model"):
        assert rule not in jobs


def test_a_comment_or_a_renewed_file_time_reruns_nothing(copy):
    for path in sorted((copy / "src/stopwise").rglob("*.py")):
        path.write_text("# a comment of one's own\n" + path.read_text())
    assert "Nothing to be done" in snakemake(copy, "-n").output


def test_training_waits_for_the_rules_only_where_one_of_them_stops_it(copy):
    config = yaml.safe_load((copy / TEST_CONFIG).read_text())
    for stop, waits in (("bayes", True), ("holdout", False), ("none", False)):
        config |= {"name": f"stop-{stop}", "finetune": {**config["finetune"], "stop": stop}}
        (copy / "changed.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
        target = f"results/stop-{stop}/finetune/pretrained/colours/seed0/trajectory.parquet"
        assert ("stopping" in snakemake(copy, "-n", target, config="changed.yaml").jobs()) is waits


def test_a_changed_config_value_reruns_what_depends_on_it_only(copy):
    path = copy / TEST_CONFIG
    path.write_text(path.read_text().replace("coefficients: [0.5, 1.0]", "coefficients: [0.5]"))
    jobs = snakemake(copy, "-n").jobs()
    assert jobs["arithmetic"] == 1
    for rule in ("data", "jacobian", "gram", "finetune"):
        assert rule not in jobs


def test_another_start_or_a_smaller_size_keeps_the_kernels_that_are_there(copy):
    config = yaml.safe_load((copy / TEST_CONFIG).read_text())
    config["sizes"] = [8, 12, 16]
    config["model"]["reinit"] = ["layers.1.*q_proj"]
    config["starts"] = ["pretrained", "mixed"]
    (copy / "config/more.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    jobs = snakemake(copy, "-n", config="config/more.yaml").jobs()
    assert jobs["jacobian"] == 4  # two tasks in two shards, from the mixed start alone
    assert jobs["finetune"] == 4
    assert not {"data", "prepare_model"} & set(jobs)


def test_the_study_judges_the_rules_on_the_path_and_on_the_run(copy):
    run = snakemake(copy, "--", "stopping_study", "stopping_runs", "record_study")
    assert run.code == 0, run.output[-3000:]
    results, kept = copy / "results/test", copy / "docs/records/test/study"
    cells = artifacts.read_table(results / "stopping_study.parquet", "stopping_study_summary").to_pylist()
    counted = {(row["objective"], row["cells"]) for row in cells if row["method"] == "bayes"}
    assert counted == {("squared", 4), ("cross_entropy", 4)}  # two tasks at two sizes
    assert "| bayes | 100 % |" in (results / "stopping_study.md").read_text()
    judged = artifacts.read_table(results / "stopping_runs.parquet", "stopping_runs").to_pylist()
    assert {"bayes", "bayes_far", "path_oracle", "holdout_equal"} <= {row["rule"] for row in judged}
    text = (results / "stopping_runs.md").read_text()
    assert "At equal labels, in the 2 runs that have both" in text
    assert "the noise of 24 test examples" in text
    names = ["F3.png", "README.md", "cells.parquet", "methods.md", "methods.parquet"]
    assert sorted(path.name for path in kept.iterdir()) == names


def test_a_task_may_lie_in_a_folder_called_results(copy):
    """A Parquet file of one's own has no provenance, wherever it lies."""
    rows = csv.read_csv(copy / "tests/data/colours.csv")
    own = copy / "elsewhere" / "results" / "colours.parquet"
    own.parent.mkdir(parents=True)
    pq.write_table(rows, own)
    config = yaml.safe_load((copy / TEST_CONFIG).read_text())
    config["name"] = "own"
    config["tasks"]["colours"]["source"] = {"parquet": str(own)}
    (copy / "config/own.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    run = snakemake(copy, "--", "results/own/data/colours/seed0.parquet", config="config/own.yaml")
    assert run.code == 0, run.output[-3000:]
    tables = [
        artifacts.read_table(copy / f"results/{name}/data/colours/seed0.parquet", "data") for name in ("test", "own")
    ]
    assert tables[0].equals(tables[1])


def test_a_path_may_begin_with_the_home_folder(copy, monkeypatch):
    home = copy / "home"
    home.mkdir()
    shutil.copy2(copy / "tests/data/colours.csv", home)
    monkeypatch.setenv("HOME", str(home))
    config = yaml.safe_load((copy / TEST_CONFIG).read_text())
    config["name"] = "own"
    config["tasks"]["colours"]["source"] = {"csv": "~/colours.csv"}
    (copy / "config/own.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    made = "results/own/data/colours/seed0.parquet"
    run = snakemake(copy, "--", made, config="config/own.yaml")
    assert run.code == 0, run.output[-3000:]
    assert "Nothing to be done" in snakemake(copy, "-n", "--", made, config="config/own.yaml").output
    (home / "colours.csv").write_text((home / "colours.csv").read_text() + "one more sky,blue\n")
    assert snakemake(copy, "-n", "--", made, config="config/own.yaml").jobs()["data"] == 1


def test_data_sets_of_a_hub_are_fetched_where_the_network_is(copy):
    config = yaml.safe_load((copy / TEST_CONFIG).read_text())
    config["name"] = "own"
    source = {"hub": "owner/rows", "config": "plain", "revision": "main"}
    config["tasks"]["colours"] |= {"source": source}
    config["tasks"]["moods"] |= {"source": source}
    (copy / "config/own.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    jobs = snakemake(copy, "-n", config="config/own.yaml").jobs()
    assert jobs["fetch_dataset"] == 1
    assert jobs["data"] == 2
    stamp = copy / "results/assets/datasets/owner--rows--plain--train.json"
    run = snakemake(copy, "--", str(stamp.relative_to(copy)), config="config/own.yaml")
    assert run.code != 0
    assert "tasks.colours.source.hub: 'owner/rows' is not in the assets folder" in run.output
    assert not stamp.exists()
    config["tasks"]["moods"]["source"] = {"hub": "not an id"}
    (copy / "config/own.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    refused = snakemake(copy, "-n", config="config/own.yaml")
    assert refused.code != 0
    assert "stopwise: tasks.moods.source.hub: 'not an id' is neither built in" in refused.output
    assert "Traceback" not in refused.output


def test_the_report_is_one_file_with_captions(copy):
    run = snakemake(copy, "--report", "report.html")
    assert run.code == 0, run.output[-3000:]
    text = (copy / "report.html").read_text(encoding="utf-8")
    for category in ("Kernel", "Stopping", "Task arithmetic"):
        assert category in text


def test_a_wrong_config_value_ends_at_once_with_one_clear_line(copy):
    path = copy / TEST_CONFIG
    path.write_text(path.read_text().replace("shards: 2", "shards: 0"))
    run = snakemake(copy, "-n")
    assert run.code != 0
    assert "config key kernel.shards" in run.output
    assert "Traceback" not in run.output
