"""The record in MLflow: complete, never twice, finished after an interruption, and never in a result's way."""

import os
import shutil
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import pytest

from stopwise.artifacts import tables as artifacts
from stopwise.tracking import ingest as tracking
from stopwise.tracking import store as tracking_store
from stopwise.tracking.fields import ARTIFACT, COMMIT, DIGEST, PARENT, SUPERSEDED, flatten, safe_key
from tracking_runs import SVG, decay, record, small_run, trajectory
from warm import executable


@pytest.fixture(scope="session")
def ready_database(tmp_path_factory):
    """One database for the whole session: creating it costs seconds, copying it nothing."""
    uri = tracking_store.resolve_uri(None, tmp_path_factory.mktemp("mlflow"))
    return tracking_store.create_database(uri)


@pytest.fixture
def uri(ready_database, tmp_path):
    folder = tmp_path / "results" / "mlflow"
    folder.mkdir(parents=True)
    shutil.copy(ready_database, folder)
    return tracking_store.resolve_uri(None, folder)


@pytest.fixture
def results(tmp_path):
    return small_run(tmp_path / "results" / "demo")


def ingest(results, uri, **more):
    files = [path for path in results.rglob("*") if path.is_file()]
    return tracking.ingest(results, files, uri, **{"name": "demo", "config_digest": "c0ffee", **more})


def all_runs(uri):
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(tracking_store.EXPERIMENT)
    return client, list(client.search_runs([experiment.experiment_id], max_results=1000))


def children(uri):
    return {run.data.tags[ARTIFACT]: run for run in all_runs(uri)[1] if PARENT in run.data.tags}


def dump(uri):
    """Everything that the database says about runs, with run ids replaced by what they stand for."""
    runs = all_runs(uri)[1]
    names = {r.info.run_id: (r.data.tags.get(ARTIFACT, "parent"), r.data.tags.get(DIGEST)) for r in runs}
    with closing(sqlite3.connect(tracking_store.database_path(uri))) as database:

        def rows(query):
            return sorted(tuple(names.get(cell, cell) for cell in row) for row in database.execute(query))

        return {
            "runs": rows("SELECT run_uuid, name, status, lifecycle_stage FROM runs"),
            "metrics": rows("SELECT run_uuid, key, value, step FROM metrics"),
            "params": rows("SELECT run_uuid, key, value FROM params"),
            "tags": rows("SELECT run_uuid, key, value FROM tags WHERE key != 'mlflow.log-model.history'"),
            "inputs": rows("SELECT destination_id, name, digest FROM inputs JOIN datasets ON source_id = dataset_uuid"),
        }


@pytest.mark.slow
def test_one_parent_and_one_child_per_artifact_with_all_that_it_says(results, uri):
    report = ingest(results, uri, config={"name": "demo", "kernel": {"shards": 2}})
    assert not report.pending
    assert report.warning() is None
    client, runs = all_runs(uri)
    parent = client.get_run(report.run_id)
    assert len(runs) == 1 + 3
    assert parent.data.params == {"name": "demo", "kernel.shards": "2"}
    assert parent.info.status == "FINISHED"
    assert parent.info.run_name == "demo c0ffee"
    child = children(uri)["finetune/pretrained/movie/seed0/trajectory.parquet"]
    assert child.info.run_name == "finetune pretrained movie seed0 (trajectory)"
    assert child.info.status == "FINISHED"
    assert child.info.end_time - child.info.start_time == 2500
    assert child.data.params["config.finetune.momentum"] == "0.9"
    assert child.data.params["config.sizes"] == "[16, 32]"
    assert child.data.params["wildcards.task"] == "movie"
    assert child.data.params["seed"] == "0"
    assert child.data.tags[COMMIT] == "0123456789ab+"
    assert child.data.tags[PARENT] == report.run_id
    assert child.data.metrics["best_step"] == 4
    assert child.data.metrics["job/peak_mb"] == 100
    curve = [(m.step, m.value) for m in client.get_metric_history(child.info.run_id, "n16/test_loss")]
    assert curve == [(0, 2.0), (2, 2 / 3), (4, 0.4)]
    assert "n32/test_loss" not in child.data.metrics  # null in the table
    inputs = {(i.dataset.name, i.dataset.digest, i.tags[0].value) for i in child.inputs.dataset_inputs}
    assert inputs == {("movie", "d" * 36, "data"), ("model", "m" * 36, "model")}


def test_every_one_of_several_fingerprints_is_an_input(tmp_path, uri):
    results = tmp_path / "results" / "demo"
    several = [letter * 16 for letter in "abc"]  # together longer than the 36 letters that MLflow keeps
    decay(results / "pairs.parquet", wildcards={"seed": "0"}, data=",".join(several))
    assert not ingest(results, uri).pending
    inputs = children(uri)["pairs.parquet"].inputs.dataset_inputs
    assert {i.dataset.digest for i in inputs if i.dataset.name == "data"} == set(several)


def test_mlflow_reads_a_data_set_back(tmp_path, uri):
    """The source of an input is the file that the step read, which MLflow finds without knowing of this project."""
    import mlflow

    results = tmp_path / "results" / "demo"
    read = tmp_path / "elsewhere" / "seed0.parquet"
    read.parent.mkdir(parents=True)
    read.write_bytes(b"rows")
    decay(results / "one.parquet", wildcards={"seed": "0"}, data="f" * 16, inputs={str(read): "f" * 16})
    assert not ingest(results, uri).pending
    inputs = children(uri)["one.parquet"].inputs.dataset_inputs
    given = next(one for one in inputs if one.tags[0].value == "data")
    source = mlflow.data.get_source(given)
    assert Path(source.load()).read_bytes() == b"rows"


def test_mlflow_knows_the_source_of_every_input(results, uri):
    import mlflow

    ingest(results, uri)
    inputs = [one for run in children(uri).values() for one in run.inputs.dataset_inputs]
    assert {one.tags[0].value for one in inputs} == {"data", "model"}
    assert all(mlflow.data.get_source(one).uri for one in inputs)


def test_small_tables_are_shown_and_read_back(results, uri, monkeypatch):
    """As MLflow's own tables, once: a second recording appends nothing."""
    big = results / "big.parquet"
    decay(big, rule="many")
    artifacts.write_table(big, artifacts.read_table(big, "decay").to_pylist() * 201, "decay", record("many"))
    ingest(results, uri)
    ingest(results, uri)
    client, _ = all_runs(uri)
    run = children(uri)["finetune/pretrained/movie/seed0/trajectory.parquet"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)  # where load_table looks, whatever the client's address
    table = client.load_table(run.info.experiment_id, "trajectory.json", [run.info.run_id])
    assert table["n"].tolist() == [16] * 3 + [32] * 3
    assert table["test_loss"].isna().tolist() == [False] * 3 + [True] * 3
    assert [file.path for file in client.list_artifacts(children(uri)["big.parquet"].info.run_id)] == ["big.parquet"]


def test_the_address_may_be_that_of_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000/")
    assert tracking_store.resolve_uri("env", tmp_path) == "http://127.0.0.1:5000"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(ValueError, match="MLFLOW_TRACKING_URI, which is not set"):
        tracking_store.resolve_uri("env", tmp_path)


def test_small_files_go_to_mlflow_and_weights_stay_on_disk(results, uri, monkeypatch):
    monkeypatch.setattr(tracking, "LARGEST_FILE", 20_000)
    (results / "big.csv").write_bytes(b"x" * 20_001)
    report = ingest(results, uri)
    client, _ = all_runs(uri)

    def listed(run_id, folder=None):
        return [file.path for file in client.list_artifacts(run_id, folder)]

    assert listed(children(uri)["figures/F1.parquet"].info.run_id) == ["F1.json", "F1.parquet", "F1.svg"]
    assert listed(report.run_id) == ["figures"]
    assert listed(report.run_id, "figures") == ["figures/F2_movie.svg"]
    rows = {row["artifact"]: row for row in report.rows}
    assert rows["finetune/pretrained/movie/seed0/n16.safetensors"]["status"] == "left out"
    assert "big.csv" in rows["big.csv"]["reason"]
    assert {row["status"] for row in report.rows} == {"recorded", "left out"}
    stored = tracking_store.database_path(uri).parent / "artifacts"
    assert len(list(stored.rglob("F1.svg"))) == 1


def test_recording_again_adds_nothing(results, uri):
    first = ingest(results, uri)
    before = dump(uri)
    second = ingest(results, uri)
    assert dump(uri) == before
    assert second.run_id == first.run_id
    assert second.rows == first.rows


def test_only_what_may_have_changed_is_read(results, uri, monkeypatch):
    """Neither a table that a finished run holds nor a file too large to upload is hashed."""
    monkeypatch.setattr(tracking, "LARGEST_FILE", 20_000)
    (results / "big.csv").write_bytes(b"x" * 20_001)
    seen, own = [], Path.read_bytes

    def reading(path):
        seen.append(path.name)
        return own(path)

    monkeypatch.setattr(Path, "read_bytes", reading)
    ingest(results, uri)
    assert "F1.parquet" in seen
    assert "big.csv" not in seen
    seen.clear()
    ingest(results, uri)
    assert not [name for name in seen if name.endswith(".parquet")]


def test_another_configuration_is_another_parent(results, uri):
    parents = {ingest(results, uri).run_id, ingest(results, uri, config_digest="bead").run_id}
    parents.add(ingest(results, uri, name="other").run_id)
    assert len(parents) == 3
    assert len(all_runs(uri)[1]) == 3 * (1 + 3)


class Killed(BaseException):
    """Stands for a kill: nothing in the library may catch it."""


CLIENT_CALLS = ("create_run", "update_run", "log_batch", "log_inputs", "log_artifact", "set_tag", "set_terminated")


def interrupt(monkeypatch, after, error):
    """Let the client fail at its call number ``after``; returns the list of calls made."""
    from mlflow import MlflowClient

    calls = []
    for name in CLIENT_CALLS:
        original = getattr(MlflowClient, name)

        def call(self, *args, _name=name, _original=original, **kwargs):
            calls.append(_name)
            if len(calls) == after:
                raise error
            return _original(self, *args, **kwargs)

        monkeypatch.setattr(MlflowClient, name, call)
    return calls


@pytest.mark.slow
def test_a_recording_killed_at_any_call_is_completed_without_duplicates(results, uri, tmp_path, monkeypatch):
    shutil.rmtree(results / "decay")  # a table and two figures are enough: every kind of call is made
    (results / "figures/F1.parquet").unlink()
    fresh = tracking_store.database_path(uri).read_bytes()
    with monkeypatch.context() as patch:
        calls = interrupt(patch, 0, None)
        ingest(results, uri)
    expected = dump(uri)
    assert set(calls) == set(CLIENT_CALLS) - {"update_run"}
    assert len(calls) > 12
    for after in range(1, len(calls) + 1):
        folder = tmp_path / f"killed{after}"
        folder.mkdir()
        (folder / tracking_store.DATABASE).write_bytes(fresh)
        other = tracking_store.resolve_uri(None, folder)
        with monkeypatch.context() as patch:
            interrupt(patch, after, Killed())
            with pytest.raises(Killed):
                ingest(results, other)
        assert not ingest(results, other).pending
        assert dump(other) == expected, f"killed at call {after}: {calls[after - 1]}"


def test_a_new_digest_supersedes_and_keeps_the_older_run(results, uri):
    ingest(results, uri)
    old = children(uri)["decay/pretrained/movie/seed0.parquet"].info.run_id
    decay(results / "decay/pretrained/movie/seed0.parquet", trace=2.5)
    report = ingest(results, uri)
    client, runs = all_runs(uri)
    assert len(runs) == 1 + 4
    new = client.get_run(old).data.tags[SUPERSEDED]
    assert client.get_run(new).data.metrics["trace"] == 2.5
    assert SUPERSEDED not in client.get_run(new).data.tags
    assert client.get_run(old).info.lifecycle_stage == "active"
    # back to the first result: the older run is current again, and still nothing is there twice
    decay(results / "decay/pretrained/movie/seed0.parquet")
    assert ingest(results, uri).run_id == report.run_id
    assert SUPERSEDED not in client.get_run(old).data.tags
    assert client.get_run(new).data.tags[SUPERSEDED] == old
    assert len(all_runs(uri)[1]) == 1 + 4


def test_a_redrawn_figure_replaces_the_picture_in_its_run(results, uri):
    ingest(results, uri)
    (results / "figures/F1.svg").write_text(SVG + "<!-- redrawn -->")
    ingest(results, uri)
    client, runs = all_runs(uri)
    run = children(uri)["figures/F1.parquet"]
    assert len(runs) == 1 + 3
    with open(client.download_artifacts(run.info.run_id, "F1.svg"), encoding="utf-8") as file:
        assert "redrawn" in file.read()


def test_a_locked_database_leaves_everything_pending_and_the_next_run_records_it(results, uri, monkeypatch):
    monkeypatch.setattr(tracking_store, "LOCK_SECONDS", 0.3)
    with closing(sqlite3.connect(tracking_store.database_path(uri), isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        report = ingest(results, uri)
        other.execute("ROLLBACK")
    assert len(report.pending) == 5
    assert "database is locked" in report.warning()
    assert "snakemake --cores 1 track" in report.warning()
    assert not ingest(results, uri).pending
    assert len(all_runs(uri)[1]) == 1 + 3


def test_a_database_that_locks_in_the_middle_stops_at_once_and_keeps_what_is_recorded(results, uri, monkeypatch):
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE

    error = MlflowException("database is locked", error_code=TEMPORARILY_UNAVAILABLE)
    with monkeypatch.context() as patch:
        calls = interrupt(patch, 16, error)
        report = ingest(results, uri)
    assert 0 < len(report.pending) < 5
    assert len(calls) == 16  # no further call is tried: each could wait for the lock again
    assert not ingest(results, uri).pending


def test_a_step_that_mlflow_refuses_does_not_block_the_others(results, uri, monkeypatch):
    from mlflow.exceptions import MlflowException

    with monkeypatch.context() as patch:
        interrupt(patch, 3, MlflowException("no such thing"))
        report = ingest(results, uri)
    assert {row["reason"] for row in report.pending} == {"no such thing"}
    assert len({row["rule"] for row in report.pending}) == 1
    assert not ingest(results, uri).pending


def test_a_damaged_database_or_a_read_only_place_costs_no_result(results, uri, tmp_path):
    tracking_store.database_path(uri).write_bytes(b"not a database" * 100)
    assert "not a database" in ingest(results, uri).warning()
    blocked = tmp_path / "file"
    blocked.write_text("a file where the folder should be")
    assert len(ingest(results, tracking_store.resolve_uri(None, blocked)).pending) == 5


def test_a_damaged_table_is_named_and_the_others_are_recorded(results, uri):
    path = results / "decay/pretrained/movie/seed0.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    report = ingest(results, uri)
    assert [row["artifact"] for row in report.pending] == ["decay/pretrained/movie/seed0.parquet"]
    assert "damaged" in report.warning()


def test_environment_variables_do_not_hijack_the_record(results, uri, monkeypatch, tmp_path):
    foreign = {
        "MLFLOW_RUN_ID": "f" * 32,
        "MLFLOW_EXPERIMENT_ID": "77",
        "MLFLOW_EXPERIMENT_NAME": "elsewhere",
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/elsewhere.db",
        "MLFLOW_DISABLE_TELEMETRY": "false",
    }
    for key, value in foreign.items():
        monkeypatch.setenv(key, value)
    assert not ingest(results, uri).pending
    assert {key: os.environ[key] for key in foreign} == foreign  # and the environment is as it was
    for key in foreign:
        monkeypatch.delenv(key)
    assert len(all_runs(uri)[1]) == 1 + 3
    assert not (tmp_path / "elsewhere.db").exists()


def test_moved_results_keep_their_record_and_write_to_the_new_place(results, uri, tmp_path):
    from mlflow.tracking._tracking_service import utils

    ingest(results, uri)
    moved = tmp_path / "moved"
    (tmp_path / "results").rename(moved)
    place = tracking_store.resolve_uri(None, moved / "mlflow")
    utils._artifact_repos_cache.clear()  # MLflow remembers places by run id within one process
    (moved / "demo/figures/F1.svg").write_text(SVG + "<!-- after the move -->")
    assert not ingest(moved / "demo", place).pending
    client, runs = all_runs(place)
    assert len(runs) == 1 + 3
    assert not (tmp_path / "results").exists()
    run = children(place)["figures/F1.parquet"]
    with open(client.download_artifacts(run.info.run_id, "F1.svg"), encoding="utf-8") as file:
        assert "after the move" in file.read()


def test_limits_of_mlflow_are_kept_and_long_values_stay_different(tmp_path, uri):
    results = tmp_path / "results" / "demo"
    long = {"a": "x" * 9000 + "1", "b": "x" * 9000 + "2", "k" * 300: 1, "odd: (name)": [1, 2]}
    config = {**long, "many": {f"p{i}": i for i in range(250)}}
    decay(results / "decay.parquet", config=config)
    trajectory(results / "trajectory.parquet", steps=range(0, 800, 2))
    assert not ingest(results, uri).pending
    params = children(uri)["decay.parquet"].data.params
    assert sum(key.startswith("config.many.") for key in params) == 250
    assert max(map(len, params)) <= 250
    assert max(map(len, params.values())) <= 6000
    assert params["config.a"] != params["config.b"]
    assert params["config.odd_ _name_"] == "[1, 2]"
    client, _ = all_runs(uri)
    history = client.get_metric_history(children(uri)["trajectory.parquet"].info.run_id, "n16/train_loss")
    assert len(history) == 400


def test_names_cannot_climb_out_of_a_folder():
    assert safe_key("../../etc/passwd") == "__/__/etc/passwd"
    assert safe_key("/etc//passwd") == "etc/passwd"
    assert flatten({"a": {"b": {}, "c": None}}) == {"a.b": "{}", "a.c": "null"}


def test_reasons_are_one_line_without_credentials():
    text = tracking_store.reason(ValueError("API request to http://me:secret@host/api\n failed"))
    assert text == "API request to http://host/api failed"
    assert len(tracking_store.reason(ValueError("x" * 1000))) == 300


@pytest.mark.parametrize("address", ["mlruns", "file:///tmp/mlruns", "ftp://host", "databricks"])
def test_an_address_of_another_kind_names_the_config_key(address, tmp_path):
    with pytest.raises(ValueError, match=r"mlflow\.tracking_uri: .* is not an address of http"):
        tracking_store.resolve_uri(address, tmp_path)


@pytest.mark.slow
def test_processes_that_race_the_creation_make_one_good_database(tmp_path):
    (tmp_path / ".part-abc-mlflow.db").write_bytes(b"left by a killed process")
    uri = tracking_store.resolve_uri(None, tmp_path)
    code = f"from stopwise.tracking.store import create_database; create_database({uri!r})"
    racers = [subprocess.Popen([executable(), "-c", code]) for _ in range(2)]
    assert [racer.wait(timeout=120) for racer in racers] == [0, 0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mlflow.db", "mlflow.db.lock"]
    assert all_runs(uri)[1] == []


@pytest.mark.slow
def test_a_second_user_of_the_group_may_write_where_the_umask_says_so(tmp_path):
    before = os.umask(0o002)
    try:
        path = tracking_store.create_database(tracking_store.resolve_uri(None, tmp_path / "shared"))
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o664


@pytest.mark.slow
def test_a_creation_that_fails_leaves_no_database_behind(tmp_path, monkeypatch):
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    def fail(*args, **kwargs):
        raise OSError("No space left on device")

    uri = tracking_store.resolve_uri(None, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(SqlAlchemyStore, "create_experiment", fail)
        with pytest.raises(OSError, match="No space left"):
            tracking_store.create_database(uri)
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db.lock"]


def test_what_was_deleted_by_hand_is_restored_or_made_anew(results, uri):
    first = ingest(results, uri)
    client, _ = all_runs(uri)
    client.delete_experiment(client.get_experiment_by_name(tracking_store.EXPERIMENT).experiment_id)
    assert ingest(results, uri).run_id == first.run_id
    client.delete_run(first.run_id)
    second = ingest(results, uri)
    assert not second.pending
    assert second.run_id != first.run_id


def test_the_attempt_token_changes_only_while_something_is_pending(tmp_path):
    path = tmp_path / "tracking.parquet"
    assert tracking.next_attempt(path) == "attempt 1"
    seen = []
    for pending in (3, 2, 0, 0):
        token = tracking.next_attempt(path)
        seen.append(token)
        artifacts.write_table(path, [], "decay", {"attempt": token, "metrics": {"pending": pending}})
    assert seen == ["attempt 1", "attempt 2", "attempt 3", "attempt 3"]
    assert tracking.next_attempt(path) == "attempt 3"
