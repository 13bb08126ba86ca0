"""Create the MLflow database that all runs of this folder share, and say how to look at it."""

import json
import logging
import sqlite3
from pathlib import Path

from job import Job
from stopwise.artifacts import tables as artifacts
from stopwise.tracking.store import DATABASE, create_database, reason, resolve_uri

with Job(snakemake) as job:
    stamp = Path(snakemake.output[0])
    try:
        create_database(resolve_uri(None, stamp.parent))
    except (OSError, NotImplementedError, sqlite3.Error) as error:
        # A file system without locks, say. Recording comes last and tries again; it holds up nothing.
        logging.warning("MLflow: the database cannot be created now (%s)", reason(error))
    # Relative to the working directory, so that equal runs write equal stamps. The UI has no password: loopback only.
    address = f"sqlite:///{stamp.parent / DATABASE}"
    record = {"tracking_uri": address, "view": f"mlflow ui --backend-store-uri {address} --host 127.0.0.1"}
    with artifacts.atomic_path(stamp) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
