"""The rules of the record, in Snakemake: created once, pending until recorded, and then nothing to be done."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from stopwise.artifacts import tables as artifacts
from stopwise.artifacts.tables import read_table
from tracking_runs import decay, small_run
from warm import executable

RULES = Path(__file__).resolve().parents[3] / "workflow" / "rules" / "tracking.smk"

# What common.smk gives the rules, for a run whose artifacts are all there: no other rule is needed to test these.
SNAKEFILE = f"""
RESULTS, CONFIG_DIGEST, ENVIRONMENT = "results/demo", "c0ffee", os.path.abspath("environment.yaml")
RUN = "pretrained/movie/seed0"
config.update(name="demo", sizes=[16], mlflow={{"tracking_uri": None}})

def library(*modules):
    return []

def each(pattern):
    return [RESULTS + "/" + pattern.format(start="pretrained", task="movie", seed=0)]

def artifact_paths():
    return [f"{{RESULTS}}/finetune/{{RUN}}/trajectory.parquet", f"{{RESULTS}}/decay/{{RUN}}.parquet"]

def figure_tables():
    return ["results/demo/figures/F1.parquet"]

def figure_paths():
    return ["results/demo/figures/F1.svg"]

include: {str(RULES)!r}
"""


def snakemake(folder, *targets):
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST")}
    command = [executable(), "-m", "snakemake", "--cores", "1", *targets]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
def test_what_is_pending_is_tried_by_every_run_until_it_is_recorded_and_not_once_more(tmp_path):
    (tmp_path / "Snakefile").write_text(SNAKEFILE)
    (tmp_path / "environment.yaml").write_text("dependencies: []\n")
    small_run(tmp_path / "results/demo")
    decay(tmp_path / "results/demo/summary.parquet", rule="summary", wildcards={})
    (tmp_path / "results/demo/summary.md").write_text("what came out")
    decay(tmp_path / "results/demo/claims.parquet", rule="claims", wildcards={})
    (tmp_path / "results/demo/claims.md").write_text("what held")
    database, table = tmp_path / "results/mlflow/mlflow.db", tmp_path / "results/demo/tracking.parquet"

    def statuses():
        return read_table(table, "tracking").column("status").to_pylist()

    code, said = snakemake(tmp_path, "track", "provenance")
    assert code == 0, said
    assert statuses() == ["recorded"] * 8
    assert (tmp_path / "results/mlflow/database.json").is_file()
    provenance = read_table(tmp_path / "results/demo/provenance.parquet", "provenance")
    assert provenance.num_rows == 9
    assert (tmp_path / "results/demo/provenance.csv").read_text().count("\n") >= 8

    shutil.move(database, tmp_path / "kept.db")
    database.write_bytes(b"not a database" * 100)
    decay(tmp_path / "results/demo/decay/pretrained/movie/seed0.parquet", trace=7.0)
    attempts = []
    for _ in range(2):
        code, said = snakemake(tmp_path, "track")
        assert code == 0, said
        assert "8 of 8 artifacts are not recorded yet" in said
        assert statuses() == ["pending"] * 8
        attempts.append(artifacts.read_provenance(table)["attempt"])
    assert attempts == ["attempt 1", "attempt 2"]

    shutil.move(tmp_path / "kept.db", database)
    code, said = snakemake(tmp_path, "track")
    assert code == 0, said
    assert statuses() == ["recorded"] * 8
    assert "Nothing to be done" in snakemake(tmp_path, "track", "--dry-run")[1]
