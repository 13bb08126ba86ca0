"""Fetch one split of a hub data set, and record the commit that it is held at."""

import json
from pathlib import Path

from job import Job
from stopwise.artifacts import tables as artifacts
from stopwise.assets import hub
from stopwise.assets.wheels import sha256_of

with Job(snakemake) as job:
    stamp, wanted = Path(snakemake.output[0]), snakemake.params.wanted
    rows = hub.fetch_dataset(wanted["source"], stamp.parents[1], wanted["key"])
    record = {**hub.held(rows.parent), "sha256": sha256_of(rows)}
    with artifacts.atomic_path(stamp) as temporary:
        temporary.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")
