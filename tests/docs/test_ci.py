"""The continuous integration leaves nothing out: its parts, the forge's workflow and the make targets name the same."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
FORGE = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))


def parts():
    """The parts that .ci/run says it has."""
    return set(re.search(r"is no part; parts: ([a-z, ]+)", SCRIPT)[1].split(", "))


def test_a_run_without_a_part_runs_all_of_them():
    calls = re.findall(r"^    beside (.*)$", SCRIPT, re.MULTILINE)
    assert set(" ".join(calls).replace('"', "").split()) == parts()


def test_a_part_that_does_not_exist_is_an_error_that_names_the_parts():
    done = subprocess.run([ROOT / ".ci" / "run", "tset"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(".ci/run: 'tset' is no part; parts: ")
    assert all(part in done.stderr for part in parts())


def test_the_forge_runs_every_part():
    job = FORGE["jobs"]["part"]
    called = " ".join(step.get("run", "") for step in job["steps"])
    named = set(re.findall(r"\.ci/run (\w+)", called)) | set(job["strategy"]["matrix"]["part"])
    assert ".ci/run ${{ matrix.part }}" in called
    assert named == parts()


def test_the_make_targets_of_the_parts_select_every_test_once():
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target, selected in (
        ("test", '"not wheel and not slurm and not faults"'),
        ("test-wheel", "wheel"),
        ("test-slurm", "slurm"),
        ("test-faults", "faults"),
    ):
        recipe = re.search(rf"^{target}: .*\n\t(.*)$", text, re.MULTILINE)[1]
        assert re.search(r" -m (\"[^\"]*\"|\w+)", recipe.replace("python -m pytest", ""))[1] == selected, target


@pytest.mark.parametrize("mark", ["wheel", "slurm", "faults"])
def test_the_folder_of_a_part_holds_every_test_of_its_kind(mark):
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    (folder,) = re.findall(rf"-m {mark} (tests/\w+)$", text, re.MULTILINE)
    marked = [path for path in (ROOT / "tests").rglob("test_*.py") if f"pytest.mark.{mark}" in path.read_text()]
    assert marked
    assert all(path.is_relative_to(ROOT / folder) for path in marked)


def test_no_database_or_weights_of_a_run_and_no_link_out_of_the_tree_are_tracked():
    listed = subprocess.run(["git", "ls-files", "--stage"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    made = (".db", ".sqlite", ".pt", ".bin", ".pkl", ".safetensors", ".log")
    lines = listed.stdout.splitlines()
    assert [line for line in lines if line.endswith(made) or line.startswith("120000 ")] == []
