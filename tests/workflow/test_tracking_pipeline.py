"""The record of a real run of the workflow: complete, and traceable from every file."""

import pytest

from pipeline import snakemake
from stopwise.artifacts import tables as artifacts
from stopwise.tracking.fields import ARTIFACT, NAME, PARENT
from stopwise.tracking.store import EXPERIMENT, resolve_uri

pytestmark = pytest.mark.pipeline


def test_a_run_is_recorded_whole_in_one_parent(finished_pipeline):
    from mlflow import MlflowClient

    results = finished_pipeline[0] / "results"
    table = artifacts.read_table(results / "test/tracking.parquet", "tracking").to_pylist()
    assert {row["status"] for row in table} == {"recorded"}
    client = MlflowClient(resolve_uri(None, results / "mlflow"))
    runs = client.search_runs([client.get_experiment_by_name(EXPERIMENT).experiment_id])
    mine = [run for run in runs if run.data.tags.get(NAME) == "test"]
    assert len(mine) == 1
    children = {run.data.tags[ARTIFACT]: run for run in runs if run.data.tags.get(PARENT) == mine[0].info.run_id}
    assert set(children) == {row["artifact"] for row in table if row["artifact"].endswith(".parquet")}
    assert len({run.info.run_name for run in children.values()}) == len(children)
    trajectory = next(run for name, run in children.items() if name.endswith("trajectory.parquet"))
    history = client.get_metric_history(trajectory.info.run_id, "n16/test_loss")
    assert [point.step for point in history] == sorted({point.step for point in history})
    assert len(history) > 2
    assert {i.tags[0].value for i in trajectory.inputs.dataset_inputs} == {"data", "model"}


def test_every_file_of_a_run_has_an_origin(finished_pipeline):
    run = snakemake(finished_pipeline[0], "provenance")
    assert run.code == 0, run.output[-3000:]
    results = finished_pipeline[0] / "results" / "test"
    rows = artifacts.read_table(results / "provenance.parquet", "provenance").to_pylist()
    assert all(row["rule"] and row["digest"] and row["device"] and row["seconds"] is not None for row in rows)
    assert {row["kind"] for row in rows} >= {"data", "gram", "trajectory", "svg", "png", "safetensors"}
