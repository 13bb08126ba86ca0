"""Snakemake's choice of jobs: made when a job ends, not ever more often."""

import re

import pytest

from pipeline import ROOT, snakemake

JOBS = 5
SLEEPERS = f"""
rule all:
    input:
        expand("out/{{i}}.txt", i=range({JOBS})),


rule sleep:
    output:
        "out/{{i}}.txt",
    shell:
        "sleep 1 && touch {{output}}"


"""


def looks(folder, text, *arguments):
    """Return how often Snakemake looked for jobs while it ran the sleepers one by one."""
    (folder / "Snakefile").write_text(SLEEPERS + text, encoding="utf-8")
    (folder / "none.yaml").write_text("{}\n", encoding="utf-8")
    run = snakemake(folder, "--verbose", "--cores", "1", *arguments, config="none.yaml")
    assert run.code == 0, run.output[-3000:]
    assert len(list((folder / "out").iterdir())) == JOBS
    return run.output.count("Ready jobs:")


@pytest.fixture
def onstart():
    return re.search(r"^onstart:\n(?:(?: .*)?\n)+", (ROOT / "Snakefile").read_text(encoding="utf-8"), re.MULTILINE)[0]


def test_jobs_are_chosen_when_one_ends(tmp_path, onstart):
    assert looks(tmp_path, onstart) <= JOBS + 2  # at the start, and after every job: the sleepers and `all`


def test_a_limit_of_ones_own_stays_and_without_the_hook_looks_pile_up(tmp_path, onstart):
    (tmp_path / "own").mkdir()
    (tmp_path / "none").mkdir()
    assert looks(tmp_path / "own", onstart, "--max-jobs-per-timespan", "50/1s") > JOBS + 2
    assert looks(tmp_path / "none", "") > JOBS + 2
