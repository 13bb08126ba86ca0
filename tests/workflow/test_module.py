"""The workflow as a Snakemake module, as `snakedeploy` deploys it: a Snakefile elsewhere that uses its rules."""

import subprocess

from pipeline import ROOT, TEST_CONFIG, checkout
from warm import executable

DEPLOYED = """
configfile: "config/config.yaml"

module stopwise:
    snakefile:
        "{snakefile}"
    config:
        config

use rule * from stopwise
"""


def test_a_deployed_workflow_plans_and_runs_jobs_in_its_own_folder(tmp_path):
    source = checkout(tmp_path / "source")
    here = tmp_path / "deployment"
    (here / "workflow").mkdir(parents=True)
    (here / "workflow" / "Snakefile").write_text(DEPLOYED.format(snakefile=source / "Snakefile"))
    (here / "config").mkdir()
    (here / "config" / "config.yaml").write_text((ROOT / TEST_CONFIG).read_text())
    (here / "tests").symlink_to(source / "tests")

    def run(*arguments: str) -> str:
        command = [executable(), "-m", "snakemake", "--cores", "2", *arguments]
        done = subprocess.run(command, cwd=here, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    assert "finetune" in run("-n")
    run("results/test/data/colours/seed0.parquet")
    assert (here / "results/test/data/colours/seed0.parquet").is_file()
    assert not (source / "results").exists()
