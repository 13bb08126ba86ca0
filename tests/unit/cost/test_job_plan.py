"""The plan of a configuration: jobs as Snakemake counts them, hours that grow with the work, and no network."""

from pathlib import Path

import pytest
import yaml

from pipeline import checkout, snakemake
from stopwise.artifacts import tables as artifacts
from stopwise.cost import kernels as kernel_plan
from stopwise.cost.estimate import DEVICES, Counts
from stopwise.cost.jobs import arithmetic_operations, finetune_operations, job_counts, job_rows, markdown, storage_gb
from stopwise.pipeline.config import start_tasks, validated

ROOT = Path(__file__).resolve().parents[3]
PAPER = "config/paper.yaml"
COUNTS = Counts(
    forward=1e6, score=0.0, selected=400_000, depth=4, hidden=64, features_input=1, features_output=1, weights=2_000_000
)


def read(path, **changes):
    own = yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))
    return validated({**own, **changes})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return checkout(tmp_path_factory.mktemp("plan"))


@pytest.mark.pipeline
@pytest.mark.slow
def test_the_papers_configuration_resolves_without_a_network_and_has_the_jobs_of_its_plan(folder, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")  # nobody listens there
    run = snakemake(folder, "-n", config=PAPER)
    assert run.code == 0, run.output[-3000:]
    found, planned = run.jobs(), job_counts(read(PAPER))
    assert planned["finetune"] == 33
    assert {"drift", "joint", "task_kernels"} <= set(planned)
    for rule, jobs in planned.items():
        assert found[rule] == jobs, rule


@pytest.mark.pipeline
@pytest.mark.slow
def test_the_plan_of_the_papers_configuration_says_hours_memory_and_bytes(folder, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    run = snakemake(folder, "plan", config=PAPER)
    assert run.code == 0, run.output[-3000:]
    text = (folder / "results/paper/plan.md").read_text(encoding="utf-8")
    assert text.strip() in run.output.replace("\r", "")
    for words in ("| jacobian | 33 |", "| finetune | 33 |", "A100 80 GB", "GB of task vectors", "none is stored"):
        assert words in text
    rows = artifacts.read_table(folder / "results/paper/plan_jobs.parquet", "plan_jobs").to_pylist()
    assert {row["rule"] for row in rows} == set(job_counts(read(PAPER)))
    rows = [row for row in rows if row["hours"] is not None]
    assert {row["rule"] for row in rows} == {"jacobian", "finetune", "arithmetic"}
    assert all(row["hours"] > 0 and row["memory_gb"] > 5 for row in rows)
    a100 = {row["rule"]: row["hours"] for row in rows if row["device"].startswith("A100")}
    h100 = {row["rule"]: row["hours"] for row in rows if row["device"].startswith("H100")}
    assert all(h100[rule] < a100[rule] for rule in a100)
    kernels = artifacts.read_table(folder / "results/paper/plan.parquet", "plan").to_pylist()
    assert max(row["stored_jacobian_gb"] for row in kernels) > 1000  # what nobody could store
    assert (
        not list((folder / "results/assets").rglob("*.safetensors")) if (folder / "results/assets").is_dir() else True
    )


def test_the_papers_configuration_is_the_papers_experiment():
    paper, small = read(PAPER), read("config/paper-small.yaml")
    assert paper["model"]["source"] == "EleutherAI/gpt-neo-1.3B"
    assert max(paper["sizes"]) == 100
    assert len(paper["seeds"]) == 3
    assert paper["kernel"]["parameters"] == "attention"
    assert paper["finetune"]["stop"] == "holdout"
    assert {len(task.get("verbalizers") or ()) for task in paper["tasks"].values()} >= {2, 4, 6}
    assert set(start_tasks(paper)) == set(start_tasks(small)) == {"pretrained", "mixed", "random"}


def test_operations_of_training_are_those_written_out():
    config = read("config/test.yaml", sizes=[8], data={"max_tokens": 10, "validation": 4, "test": 6})
    config["finetune"] |= {"steps": 4, "evaluate_every": 2, "batch_size": None}
    gradients = 4 * 8 * 10 * (2 * 1e6 + 400_000)
    assert finetune_operations(config, COUNTS) == pytest.approx(gradients + 3 * (8 + 10) * 10 * 1e6)
    config["finetune"] |= {"batch_size": 2}
    assert finetune_operations(config, COUNTS) == pytest.approx(gradients / 4 + 3 * 18 * 10 * 1e6)
    # two tasks: one pair on two tasks and two negations on two, two coefficients, and baselines
    assert arithmetic_operations(config, COUNTS) == pytest.approx((2 * (2 + 4) + 4) * 10 * 10 * 1e6)


def test_a_plan_of_processes_says_what_they_share_and_where_it_does_not_fit():
    config = read("config/test.yaml")
    config["kernel"] |= {"processes": 2, "formula": "adam"}
    row = {"device": "a GPU", "speeds": "assumed", "schedule": "sweep", "seconds": 3600.0, "shards": 1}
    row |= {"peak_gb": 2.0, "room_gb": 1.5, "stored_jacobian_gb": 5.0, "processes": 2, "devices": 2}
    text = kernel_plan.markdown(config, [{"what": task} | row for task in config["tasks"]])
    assert "shared by 2 processes" in text
    assert "peak GB per process" in text
    assert "All kernels on a GPU: at most 4.00 device hours" in text  # two tasks, two devices, an hour
    assert "a process may use 1.50 GB and needs more" in text
    assert "counted once a process" in text


def test_hours_add_up_over_tasks_starts_and_seeds():
    config = read("config/test.yaml", seeds=[0, 1, 2])
    device = DEVICES["a100-80gb"]
    kernels = [
        {"what": task, "device": device.name, "seconds": 3600.0, "shards": 2, "peak_gb": 1.0, "stored_jacobian_gb": 5.0}
        | {"processes": 1, "devices": 1}
        for task in config["tasks"]
    ]
    rows = {row["rule"]: row for row in job_rows(config, COUNTS, kernels, [device])}
    assert rows["jacobian"]["hours"] == pytest.approx(2 * 3 * 2)  # tasks, seeds, shards
    assert rows["jacobian"]["jobs"] == 12
    assert rows["finetune"]["hours"] == pytest.approx(6 * finetune_operations(config, COUNTS) / device.passes / 3600)
    storage = storage_gb(config, COUNTS, kernels)
    assert storage["stored Jacobians"] == pytest.approx(30.0)
    assert storage["task vectors"] == pytest.approx(6 * 2 * 400_000 * 4 / 1e9)
    assert "| jacobian | 12 |" in markdown(list(rows.values()), storage)
    assert rows["jacobian"]["memory_gb"] == pytest.approx(1.0 + 2_000_000 * 4 / 1e9)
    for devices, hours, memory in ((3, 36.0, 1.008), (1, 12.0, 3.024)):  # a GPU a process, or all on a CPU
        shared = [row | {"processes": 3, "devices": devices} for row in kernels]
        found = next(row for row in job_rows(config, COUNTS, shared, [device]) if row["rule"] == "jacobian")
        assert (found["jobs"], found["hours"]) == (12, pytest.approx(hours))
        assert found["memory_gb"] == pytest.approx(memory)
    config["kernel"] |= {"shards": 1, "blocks": 5}
    assert job_counts(config)["jacobian"] == 60  # ten pairs of blocks
    config["starts"] = {"pretrained": "all", "random": ["moods"]}
    assert job_counts(config)["finetune"] == 9
    assert job_counts(config)["arithmetic"] == 1
