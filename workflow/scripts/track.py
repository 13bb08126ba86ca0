"""Record in MLflow what the steps wrote. A store that is locked or down leaves a warning, never an error."""

import logging
import sys
from pathlib import Path

from job import Job
from stopwise.tracking.ingest import ingest
from stopwise.tracking.store import resolve_uri, without_credentials

with Job(snakemake) as job:
    output, address = Path(snakemake.output[0]), snakemake.params.tracking_uri
    shown = address and without_credentials(address)
    report = ingest(
        output.parent,
        list(snakemake.input.artifacts),
        resolve_uri(address, output.parents[1] / "mlflow"),
        name=snakemake.config["name"],
        config_digest=snakemake.params.config_digest,
        config={**snakemake.config, "mlflow": {"tracking_uri": shown}},
        progress=sys.stderr.isatty(),
    )
    if report.warning():
        logging.warning(report.warning())
    recorded = sum(row["status"] == "recorded" for row in report.rows)
    logging.info("MLflow holds %d of %d artifacts", recorded, len(report.rows))
    metrics = {"recorded": recorded, "pending": len(report.pending)}
    sections = {"tracking_uri": shown, "config_digest": snakemake.params.config_digest}
    job.write(output, report.rows, "tracking", metrics=metrics, config=sections, attempt=snakemake.params.attempt)
