"""Create the MLflow database that all runs of this folder share, and say how to look at it."""

import json
from pathlib import Path

from job import Job
from stopwise import artifacts
from stopwise.tracking_store import DATABASE, create_database, resolve_uri

with Job(snakemake) as job:
    stamp = Path(snakemake.output[0])
    create_database(resolve_uri(None, stamp.parent))
    # Relative to the working directory, so that equal runs write equal stamps. The UI has no password: loopback only.
    address = f"sqlite:///{stamp.parent / DATABASE}"
    record = {"tracking_uri": address, "view": f"mlflow ui --backend-store-uri {address} --host 127.0.0.1"}
    with artifacts.atomic_path(stamp) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
