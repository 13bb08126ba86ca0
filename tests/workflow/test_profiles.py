"""The profiles fit the rules: what a cluster needs to know of each, nothing of one site, sqlite kept off the nodes."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
SLURM = ROOT / "profiles" / "slurm" / "config.yaml"


def rules():
    """The text of each rule, by name."""
    found = {}
    for path in (ROOT / "workflow" / "rules").glob("*.smk"):
        parts = re.split(r"^rule (\w+):", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        found |= dict(zip(parts[1::2], parts[2::2], strict=True))
    return found


def test_every_rule_that_runs_the_network_has_its_memory_and_time_in_the_slurm_profile():
    # The benchmark's rules measure one machine and size themselves.
    network = {n for n, text in rules().items() if "gpus_per_job()" in text and not n.startswith("benchmark")}
    assert {"jacobian", "finetune", "arithmetic"} <= network
    sized = yaml.safe_load(SLURM.read_text(encoding="utf-8"))["set-resources"]
    assert set(sized) == network | {"arithmetic_prediction"}  # which reads the kernels between all tasks whole
    assert all({"mem_mb", "runtime"} <= set(resources) for resources in sized.values())


def test_the_slurm_profile_names_no_site():
    profile = yaml.safe_load(SLURM.read_text(encoding="utf-8"))
    assert not {"slurm-qos", "slurm-reservation"} & set(profile)
    assert not {"slurm_partition", "slurm_account"} & set(profile["default-resources"])


@pytest.mark.parametrize("profile", ["default", "slurm"])
def test_every_setting_of_a_profile_is_explained(profile):
    lines = (ROOT / "profiles" / profile / "config.yaml").read_text(encoding="utf-8").splitlines()
    explained = False
    for line in lines:
        if not line.strip():
            explained = False
        explained = explained or "#" in line
        assert explained or not line.strip() or line.startswith(" "), line


def test_only_local_rules_write_the_sqlite_record():
    writers = []
    for name, text in rules().items():
        script = re.search(r'"\.\./scripts/(\w+)\.py"', text)
        code = (ROOT / "workflow" / "scripts" / f"{script[1]}.py").read_text(encoding="utf-8") if script else ""
        if "stopwise.tracking" in code:
            writers.append(name)
            assert "localrule: True" in text, name
    assert {"mlflow_database", "track"} <= set(writers)
