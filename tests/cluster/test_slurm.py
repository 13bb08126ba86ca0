"""The pico pipeline on a real Slurm: devices apart, a controller that restarts, a job that is cancelled and resumed."""

from __future__ import annotations

import datetime
import shutil
import tempfile
from pathlib import Path

import pytest

from pages import box_commands
from pipeline import SMALL_CONFIG
from slurm_cluster import Cluster, require_slurm, wait_for
from stopwise.artifacts import tables as artifacts
from workshop import Workshop

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1800)]

# What a site without accounting sets in profiles/slurm, and shorter waits than a real cluster deserves.
OPTIONS = [
    *("--slurm-status-command", "squeue", "--slurm-no-account"),
    # The plugin looks again 1, 12, 33 ... seconds after submitting, and from the start when a job has ended.
    *("--slurm-init-seconds-before-status-checks", "1", "--latency-wait", "20"),
    # The made-up GPUs serve nobody: `device: auto` falls back to the CPU in a job that holds one.
    *("--set-resources", "jacobian:gpu=1", "finetune:gpu=1", "jacobian:mem_mb=5000", "finetune:mem_mb=5000"),
]


class SlurmWorkshop(Workshop):
    """A workshop whose Snakemake submits to the cluster."""

    def command(self, *options: str) -> list[str]:
        (line,) = box_commands("Cluster")
        return self.as_written(line, *options, *OPTIONS)


@pytest.fixture(scope="module")
def cluster():
    """A running cluster; without one the tests fail, saying what is missing."""
    try:
        require_slurm()
    except RuntimeError as error:
        pytest.fail(str(error))
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # short: the path of munge's socket is limited
    with Cluster(folder, cpus=4) as running:
        yield running
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def disturbed(cluster, tmp_path_factory):
    """A run during which the controller restarts and one shard job is cancelled, and the same command again."""
    workshop = SlurmWorkshop.fresh(tmp_path_factory.mktemp("slurm") / "run")
    workshop.config = SMALL_CONFIG
    config = workshop.folder / workshop.config
    config.write_text(config.read_text(encoding="utf-8").replace("device: cpu", "device: auto"), encoding="utf-8")
    profile = workshop.folder / "profiles" / "slurm" / "config.yaml"
    shipped = profile.read_text(encoding="utf-8")
    profile.write_text(shipped.replace("keep-going: true", "keep-going: false"), encoding="utf-8")  # shorter
    process = workshop.start(**cluster.environment)

    def shard_jobs() -> list[str]:
        assert process.poll() is None, workshop.said[-4000:]
        lines = cluster.run("squeue -h -t RUNNING -o %i|%k", check=False).splitlines()
        return sorted((line.split("|")[0] for line in lines if "rule_jacobian" in line), key=int)

    try:
        victim = wait_for(lambda: shard_jobs()[1:], 400, "two shard jobs that run at a time")[-1]
        cluster.run(f"scancel {victim}")
        cluster.restart_controller()
        cancelled = workshop.finish(process, timeout=900)
    finally:
        process.kill()
    profile.write_text(shipped, encoding="utf-8")
    lost = sorted(path for path in shard_paths(workshop) if not path.exists())
    return workshop, cancelled, lost, workshop.run(timeout=900, **cluster.environment)


def shard_paths(workshop: Workshop) -> list[Path]:
    folder = workshop.results / "test" / "jacobian" / "pretrained"
    return [folder / task / "seed0" / f"shard{k}of2.parquet" for task in ("colours", "moods") for k in range(2)]


def test_a_job_goes_through_the_queue_and_sees_its_device(cluster, tmp_path):
    script = tmp_path / "job.sh"
    script.write_text("#!/bin/sh\necho $CUDA_VISIBLE_DEVICES > devices\n", encoding="utf-8")
    number = cluster.run(f"sbatch --parsable --gpus=1 --mem=100 --chdir={tmp_path} {script}").strip()
    wait_for(lambda: cluster.jobs().get(number) == "COMPLETED", 60, "a trivial job completes")
    assert (tmp_path / "devices").read_text().strip() in {"0", "1"}


def test_a_cancelled_job_is_reported_and_costs_only_what_depends_on_it(disturbed):
    _, cancelled, lost, _ = disturbed
    assert cancelled.returncode != 0
    assert "SLURM status is: 'CANCELLED'" in cancelled.text
    assert len(lost) == 1
    # The controller was away in the meantime: the other jobs were watched and finished all the same.
    assert "Finished jobid" in cancelled.text
    assert "sbatch failed" not in cancelled.text


def test_the_same_command_again_completes_the_run(disturbed):
    workshop, _, _, again = disturbed
    assert again.returncode == 0, again.text[-4000:]
    assert again.jobs()["jacobian"] == 1
    assert "finetune" in again.jobs()
    assert (workshop.results / "test" / "summary.md").is_file()
    assert not workshop.temporaries()


def test_shard_jobs_that_ran_at_the_same_time_held_different_devices(disturbed):
    workshop, *_ = disturbed
    held = []
    for path in shard_paths(workshop):
        record = artifacts.read_provenance(path)["volatile"]
        began = datetime.datetime.fromisoformat(record["started"])
        held.append((began, began + datetime.timedelta(seconds=record["seconds"]), record["leased"]))
    assert {device for _, _, device in held} == {"0", "1"}
    together = [(a, b) for i, a in enumerate(held) for b in held[i + 1 :] if a[0] < b[1] and b[0] < a[1]]
    assert all(a[2] != b[2] for a, b in together)
