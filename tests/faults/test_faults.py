"""Faults: a killed, damaged or starved run is completed by running it again, and nothing wrong is ever used."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

import faults
from pipeline import SMALL_CONFIG, TEST_CONFIG
from stopwise.artifacts import tables as artifacts
from stopwise.artifacts.leftovers import leftovers, remove_leftovers
from workshop import Outcome, Workshop

pytestmark = pytest.mark.faults

SHARD = "test/jacobian/pretrained/colours/seed0/shard0of2.parquet"
GRAM = "results/test/gram/pretrained/colours/seed0.parquet"


@pytest.fixture(scope="session")
def reference(finished_pipeline):
    """An undisturbed run of the pico pipeline."""
    return Workshop(finished_pipeline[0])


@pytest.fixture
def copy(reference, tmp_path):
    """A finished run that a test may damage."""
    return reference.clone(tmp_path / "run")


# --- Kills ------------------------------------------------------------------------------------------------------


@pytest.mark.timeout(14400)
def test_after_each_kill_the_same_command_ends_with_the_artifacts_of_an_undisturbed_run(request, tmp_path):
    small = os.environ.get("STOPWISE_FAULTS_PIPELINE") == "small"
    folder = request.getfixturevalue("finished_small" if small else "finished_pipeline")[0]
    reference = Workshop(folder, SMALL_CONFIG if small else TEST_CONFIG)
    count, seed = faults.asked_for(), int(os.environ.get("STOPWISE_FAULTS_SEED", "0"))
    record = Path(os.environ["STOPWISE_FAULTS_RECORD"]) if "STOPWISE_FAULTS_RECORD" in os.environ else None
    kills = faults.Campaign(reference, tmp_path, seed).run(count, record)
    assert sum(kill.fired for kill in kills) >= count
    assert not [f"{kill.line()}: {problem}" for kill in kills for problem in kill.problems]


def test_leftovers_of_other_files_are_left_alone(tmp_path):
    mine = [tmp_path / ".part-abcd1234-a.parquet", tmp_path / "a.parquet.part"]
    others = [tmp_path / ".part-abcd1234-b-a.parquet", tmp_path / "a.parquet", tmp_path / "b.parquet.part"]
    for path in [*mine, *others]:
        path.touch()
    assert leftovers([tmp_path / "a.parquet"]) == sorted(mine)
    assert remove_leftovers([tmp_path / "a.parquet"]) == sorted(mine)
    assert sorted(tmp_path.iterdir()) == sorted(others)


# --- Damage: met by the one job that reads it ---------------------------------------------------------------------


def replace_keeping_time(path: Path, content: bytes) -> None:
    """Change a file behind Snakemake's back."""
    times = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def assemble_again(workshop: Workshop) -> Outcome:
    """Run the job that sums the shards, and check that it leaves nothing when it fails."""
    (workshop.folder / GRAM).unlink()
    outcome = workshop.run(GRAM)
    assert not workshop.temporaries()
    return outcome


@pytest.mark.parametrize("how", ["truncated", "bit-flipped", "emptied", "provenance"])
def test_a_damaged_shard_is_named_and_never_used(copy, how):
    path = copy.results / SHARD
    content = bytearray(path.read_bytes())
    if how == "truncated":
        content = content[: len(content) * 2 // 3]
    elif how == "bit-flipped":
        content[len(content) // 4] ^= 1
    elif how == "provenance":
        at = content.index(b'"model": "') + 12
        content[at] ^= 1
    else:
        content = bytearray()
    replace_keeping_time(path, bytes(content))
    outcome = assemble_again(copy)
    assert outcome.returncode != 0
    assert f"stopwise: gram: results/{SHARD}: " in outcome.text
    assert not (copy.folder / GRAM).exists()


@pytest.mark.parametrize("what", ["model", "data", "config"])
def test_a_shard_made_otherwise_is_named_and_never_used(copy, what):
    path = copy.results / SHARD
    record = artifacts.read_provenance(path)
    if what == "config":
        record["config"]["kernel"]["formula"] = "signgd"
    else:
        record[what] = "0123456789abcdef"
    table = artifacts.read_table(path, "jacobian")
    artifacts.write_table(copy.folder / "other.parquet", table, "jacobian", record)
    replace_keeping_time(path, (copy.folder / "other.parquet").read_bytes())
    outcome = assemble_again(copy)
    assert outcome.returncode != 0
    assert f"results/{SHARD}" in outcome.text
    assert not (copy.folder / GRAM).exists()


@pytest.fixture
def small_disk(copy):
    """A file system of one page in place of the folder that the Gram matrix goes to."""
    if os.getuid() != 0:
        pytest.fail("a full disk is made with `mount -t tmpfs`: run the fault tests as root")
    folder = (copy.folder / GRAM).parent
    (copy.folder / GRAM).unlink()
    mount(folder, "size=4k")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def mount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)


def test_a_full_disk_is_reported_and_the_run_completed_once_there_is_room(copy, small_disk, reference):
    outcome = copy.run(GRAM)
    assert outcome.returncode != 0
    assert "No space left on device" in outcome.text
    assert not list(small_disk.iterdir())
    subprocess.run(["mount", "-o", "remount,size=1m", str(small_disk)], check=True)
    assert copy.run(GRAM).returncode == 0
    assert artifacts.equal(copy.folder / GRAM, reference.folder / GRAM)


def test_a_read_only_results_folder_is_reported(copy, small_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    outcome = copy.run(GRAM)
    assert outcome.returncode != 0
    assert "Read-only file system" in outcome.text
    assert str(small_disk.relative_to(copy.folder)) in outcome.text


# --- Changes: rerun exactly what depends on them ------------------------------------------------------------------

NUMBERS = {"spectrum", "stopping", "finetune", "evaluation"}


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def rerun(workshop: Workshop, **environment: str) -> dict[str, int]:
    """Return how many jobs of each rule a plain run would start."""
    outcome = workshop.run("--dry-run", **environment)
    assert outcome.returncode == 0, outcome.text[-2000:]
    return outcome.jobs()


def test_nothing_is_rerun_when_nothing_changed(copy):
    assert rerun(copy) == {}


def test_a_changed_prompt_reruns_its_task_and_nothing_of_the_other(copy):
    edit(copy.folder / copy.config, "Colour:", "Shade:")
    jobs = rerun(copy)
    assert {rule: jobs.get(rule) for rule in ("data", "jacobian", "gram", "finetune")} == {
        "data": 1,
        "jacobian": 2,
        "gram": 1,
        "finetune": 1,
    }
    assert "arithmetic" in jobs
    assert not {"prepare_model", "mlflow_database"} & set(jobs)


def test_a_changed_formula_of_the_kernel_reruns_the_shards_and_what_follows_from_them(copy):
    with (copy.folder / "src" / "stopwise" / "kernel" / "formulas.py").open("a", encoding="utf-8") as file:
        file.write("\nEDITED = True\n")
    jobs = rerun(copy)
    assert jobs["jacobian"] == 4
    assert set(jobs) >= {"gram", *NUMBERS}
    assert not {"data", "prepare_model", "mlflow_database"} & set(jobs)


def test_another_version_of_a_package_reruns_the_rules_whose_numbers_come_from_it(copy):
    record = copy.folder / "newer" / "scipy-99.0.dist-info" / "METADATA"
    record.parent.mkdir(parents=True)
    record.write_text("Metadata-Version: 2.1\nName: scipy\nVersion: 99.0\n", encoding="utf-8")
    jobs = rerun(copy, PYTHONPATH=str(record.parents[1]))
    assert set(jobs) >= NUMBERS
    assert not {"data", "jacobian", "gram", "prepare_model"} & set(jobs)


def test_a_changed_model_file_reruns_all_that_the_model_made(copy):
    models = copy.results / "assets" / "models"
    (models / "pico-llama").rename(copy.folder / "mine")
    (models / "pico-llama.json").rename(models / "mine.json")
    edit(copy.folder / copy.config, "source: pico-llama", "source: mine")
    assert copy.run("--touch").returncode == 0
    assert rerun(copy) == {}
    weights = copy.folder / "mine" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    jobs = rerun(copy)
    assert set(jobs) >= {"prepare_model", "data", "jacobian", "gram", "arithmetic", *NUMBERS}
    assert "mlflow_database" not in jobs
