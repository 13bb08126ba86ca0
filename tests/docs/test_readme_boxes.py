"""Pages followed word by word on a finished run: the boxes "Resume" and "Several GPUs", and exported task vectors.

The box "Cluster" is in test_slurm.py.
"""

import os
import subprocess

import pytest

import faults
from fault_record import Kill
from pages import box, box_commands, snippets
from stopwise.artifacts import tables as artifacts
from warm import executable
from workshop import Workshop

pytestmark = pytest.mark.pipeline


@pytest.fixture
def copy(finished_pipeline, tmp_path):
    return Workshop(finished_pipeline[0]).clone(tmp_path / "run")


def test_the_box_resume_completes_a_run_whose_snakemake_was_killed(copy, finished_pipeline):
    (unlock,) = box_commands("Resume")
    assert box("Resume").startswith("Run the same command again.")
    (copy.results / "test" / "figures" / "F1.svg").unlink()
    order = faults.write_order(copy, Kill(0, 0, "figure_F1", "before_rename", 1, "both"))
    killed = copy.run(STOPWISE_FAULT=str(order), PYTHONPATH=str(faults.HOOKS))
    assert killed.returncode != 0
    blocked = copy.run()
    assert blocked.returncode != 0
    assert "--unlock" in blocked.text
    assert copy.follow(unlock).returncode == 0
    again = copy.run()
    assert again.returncode == 0, again.text[-3000:]
    assert set(again.jobs()) <= {"all", "figure_F1", "page", "track"}  # finished steps stay
    assert not copy.different(Workshop(finished_pipeline[0]), complete=True)
    assert not copy.temporaries()


def test_the_box_several_gpus_runs_four_jobs_on_four_different_devices(copy):
    (command,) = box_commands("Several GPUs")
    assert "`CUDA_VISIBLE_DEVICES`" in box("Several GPUs")
    config = copy.folder / copy.config
    config.write_text(config.read_text(encoding="utf-8").replace("device: cpu", "device: auto"), encoding="utf-8")
    folder = "results/test/jacobian/pretrained"
    shards = [f"{folder}/{task}/seed0/shard{k}of2.parquet" for task in ("colours", "moods") for k in range(2)]
    # The machine may have no GPU: a made-up driver answers, and torch, which finds none of the four, takes the CPU.
    driver = copy.folder / "bin" / "nvidia-smi"
    driver.parent.mkdir()
    driver.write_text("#!/bin/sh\nexit 0\n", encoding="utf-8")
    driver.chmod(0o755)
    outcome = copy.follow(
        command, *shards, PATH=f"{driver.parent}:{os.environ['PATH']}", CUDA_VISIBLE_DEVICES="4,5,6,7"
    )
    assert outcome.returncode == 0, outcome.text[-3000:]
    assert outcome.jobs()["jacobian"] == 4
    leased = [artifacts.read_provenance(copy.folder / path)["volatile"]["leased"] for path in shards]
    assert sorted(leased) == ["4", "5", "6", "7"]


def test_the_snippet_of_task_vectors_exports_models_that_transformers_loads(copy):
    from transformers import AutoModelForCausalLM

    (code,) = snippets("docs/how-to/merge-task-vectors.md")
    here = {
        "smollm2-135m": "pico-llama",
        "results/demo-arithmetic": "results/test",
        "movie": "colours",
        "spam": "moods",
        "n32": "n16",
    }
    for written, meant in here.items():
        assert written in code
        code = code.replace(written, meant)
    done = subprocess.run(
        [executable(), "-c", code], cwd=copy.folder, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for task in ("colours", "moods"):
        assert AutoModelForCausalLM.from_pretrained(copy.folder / "merged" / task).num_parameters() > 0
