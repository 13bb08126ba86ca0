"""Several GPUs on one machine, as the README's box says: jobs side by side hold different devices."""

import pytest

from stopwise import artifacts
from workshop import Workshop

pytestmark = pytest.mark.pipeline


def test_four_shards_run_on_four_different_devices(finished_pipeline, tmp_path):
    workshop = Workshop(finished_pipeline[0]).clone(tmp_path / "run")
    config = workshop.folder / workshop.config
    config.write_text(config.read_text(encoding="utf-8").replace("device: cpu", "device: auto"), encoding="utf-8")
    workshop.cores = 16
    folder = "results/test/jacobian/pretrained"
    shards = [f"{folder}/{task}/seed0/shard{k}of2.parquet" for task in ("colours", "moods") for k in range(2)]
    # The machine may have no GPU: four made-up devices stand in, and each shard job asks for one.
    asked = ["--resources", "gpu=4", "--set-resources", "jacobian:gpu=1"]
    outcome = workshop.run(*shards, *asked, STOPWISE_DEVICES="a,b,c,d")
    assert outcome.returncode == 0, outcome.text[-3000:]
    leased = [artifacts.read_provenance(workshop.folder / path)["volatile"]["leased"] for path in shards]
    assert sorted(leased) == ["a", "b", "c", "d"]
