"""The record on a real MLflow server: the same runs as in sqlite, and a server that is down costs no result."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from stopwise.tracking import ingest as tracking
from stopwise.tracking import store as tracking_store
from stopwise.tracking.fields import PARENT, SUPERSEDED
from tracking_runs import decay, small_run


@pytest.fixture(scope="module")
def port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start_server(folder, port):
    """Start a server on the loopback address only and wait until it answers (about 8 s)."""
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += [
        "--backend-store-uri",
        f"sqlite:///{folder}/server.db",
        "--artifacts-destination",
        str(folder / "served"),
    ]
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1):
                return server
        except OSError:
            time.sleep(0.2)
    stop(server)
    raise AssertionError((folder / "server.log").read_text())


def stop(server):
    os.killpg(server.pid, signal.SIGKILL)
    server.wait()


@pytest.mark.slow
def test_a_server_holds_the_same_record_and_one_that_is_down_costs_no_result(tmp_path, port):
    from mlflow import MlflowClient

    results = small_run(tmp_path / "results" / "demo")
    address = tracking_store.resolve_uri(f"http://127.0.0.1:{port}/", tmp_path)

    def ingest():
        files = [path for path in results.rglob("*") if path.is_file()]
        return tracking.ingest(results, files, address, name="demo", config_digest="c0ffee")

    began = time.monotonic()
    down = ingest()
    assert time.monotonic() - began < 30  # two attempts, not MLflow's minutes of retrying
    assert len(down.pending) == 5
    assert f"127.0.0.1:{port}" in down.warning().replace("', port=", ":").replace("host='", "")

    server = start_server(tmp_path, port)
    try:
        first = ingest()
        assert not first.pending, first.warning()
        assert ingest().run_id == first.run_id
        decay(results / "decay/pretrained/movie/seed0.parquet", trace=9.0)
        assert not ingest().pending
        client = MlflowClient(address)
        experiment = client.get_experiment_by_name(tracking_store.EXPERIMENT).experiment_id
        runs = client.search_runs([experiment])
        assert len(runs) == 1 + 4
        assert sum(SUPERSEDED in run.data.tags for run in runs) == 1
        assert all(run.info.status == "FINISHED" for run in runs)
        figure = next(run for run in runs if run.info.run_name == "F1 (decay)")
        assert figure.data.tags[PARENT] == first.run_id
        assert [file.path for file in client.list_artifacts(figure.info.run_id)] == ["F1.json", "F1.parquet", "F1.svg"]
        assert len(list((tmp_path / "served").rglob("F1.svg"))) == 1  # uploaded through the server
        assert {i.dataset.name for i in figure.inputs.dataset_inputs} == {"data", "model"}
        trained = next(run for run in runs if run.info.run_name == "finetune pretrained movie seed0 (trajectory)")
        assert [m.step for m in client.get_metric_history(trained.info.run_id, "n16/test_loss")] == [0, 2, 4]
    finally:
        stop(server)
    decay(results / "decay/pretrained/movie/seed0.parquet", trace=10.0)
    assert ingest().pending
