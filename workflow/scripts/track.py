"""Record in MLflow what the steps wrote. A store that is locked or down leaves a warning, never an error."""

import logging
import sys
from pathlib import Path

from job import Job
from stopwise.tracking import ingest
from stopwise.tracking_store import resolve_uri

with Job(snakemake) as job:
    output = Path(snakemake.output[0])
    report = ingest(
        output.parent,
        list(snakemake.input.artifacts),
        resolve_uri(snakemake.params.tracking_uri, output.parents[1] / "mlflow"),
        name=snakemake.config["name"],
        config_digest=snakemake.params.config_digest,
        config=snakemake.config,
        progress=sys.stderr.isatty(),
    )
    if report.warning():
        logging.warning(report.warning())
    recorded = sum(row["status"] == "recorded" for row in report.rows)
    logging.info("MLflow holds %d of %d artifacts", recorded, len(report.rows))
    metrics = {"recorded": recorded, "pending": len(report.pending)}
    sections = {key: snakemake.params[key] for key in ("tracking_uri", "config_digest")}
    job.write(output, report.rows, "tracking", metrics=metrics, config=sections, attempt=snakemake.params.attempt)
