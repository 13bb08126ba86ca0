"""What every job shares: logging, one clear error, leftovers of a killed job, a device, artifacts with their origin."""

from __future__ import annotations

import logging
import math
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from stopwise.artifacts import tables as artifacts
from stopwise.artifacts.leftovers import remove_leftovers
from stopwise.pipeline.devices import Lease, lease_device
from stopwise.pipeline.origin import digest_of, peak_mb, versions, volatile
from stopwise.pipeline.start_up import arrow_without_pandas

__all__ = ["Job", "peak_mb", "use_device"]


# Beside ValueError and OSError: a full disk while tensors are written, and memory that does not suffice.
PLAIN_ERRORS = ("SafetensorError", "OutOfMemoryError", "MemoryError")


class Job:
    """Context of one Snakemake job: `with Job(snakemake) as job: ... job.write(path, table, kind)`.

    Logs to the rule's log file and to the terminal; a ValueError or OSError, a full disk and a lack of memory end the
    job with one clear line (the traceback goes to the log only). Artifacts written through it carry the job's
    provenance.
    """

    def __init__(self, snakemake: Any) -> None:
        self.snakemake = snakemake
        self.started = time.time()
        self.log_file = Path(str(snakemake.log[0])) if snakemake.log else None
        self.device = "cpu"
        self.lease: Lease | None = None
        self._inputs: dict[str, str] | None = None
        self.noted: dict[str, Any] = {}  # what may differ between equal runs: written beside times and host

    def __enter__(self) -> Job:
        arrow_without_pandas()
        handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
        if self.log_file is not None:
            self.log_file.parent.mkdir(parents=True, exist_ok=True)
            handlers.append(logging.FileHandler(self.log_file, mode="w", encoding="utf-8"))
        name = " ".join([self.snakemake.rule, *(f"{k}={v}" for k, v in self.wildcards.items())])
        logging.basicConfig(
            level=logging.INFO, handlers=handlers, format=f"%(asctime)s [{name}] %(message)s", force=True
        )
        for path in remove_leftovers(map(str, self.snakemake.output)):
            logging.info("removed %s, left by an interrupted run", path)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: Any) -> None:
        if error is None:
            logging.info("done in %.1f s, peak memory %.0f MB", time.time() - self.started, peak_mb())
            return
        if self.log_file is not None:
            with self.log_file.open("a", encoding="utf-8") as log:
                log.write("".join(traceback.format_exception(kind, error, trace)))
        if isinstance(error, (ValueError, OSError)) or type(error).__name__ in PLAIN_ERRORS:
            print(f"stopwise: {self.snakemake.rule}: {error}", file=sys.stderr)
            sys.exit(1)

    @property
    def wildcards(self) -> dict[str, str]:
        """Return the job's wildcards by name."""
        return dict(self.snakemake.wildcards.items())

    @property
    def params(self) -> dict[str, Any]:
        """Return the job's params by name: the config sections it depends on (versions and revision are apart)."""
        return {name: value for name, value in self.snakemake.params.items() if name not in ("packages", "code")}

    def input_digests(self) -> dict[str, str]:
        """Return the digest of each input that is data (not code), by its path in the results folder."""
        if self._inputs is None:
            paths = [Path(p) for p in self.snakemake.input if not str(p).endswith(".py")]
            self._inputs = {str(path): digest_of(path) for path in paths}
        return self._inputs

    def write(self, path: str, table: Any, kind: str, *, metrics: dict | None = None, **known: Any) -> None:
        """Write one artifact with this job's provenance; `known` may name model, data and seed."""
        record = {
            "rule": self.snakemake.rule,
            "wildcards": self.wildcards,
            "config": self.params,
            "inputs": self.input_digests(),
            "versions": versions(),
            "seed": int(self.wildcards["seed"]) if "seed" in self.wildcards else None,
            "metrics": {k: float(v) for k, v in (metrics or {}).items() if v is not None and math.isfinite(v)},
            **known,
            "volatile": volatile(
                self.started,
                device=self.device,
                leased=self.lease.device if self.lease else None,
                threads=self.snakemake.threads,
                **self.noted,
            ),
        }
        artifacts.write_table(path, table, kind, record)
        logging.info("wrote %s", path)


def use_device(job: Job, requested: str, count: int = 1) -> str:
    """Lease a GPU unless the CPU is asked for, then return the torch device and set torch's threads to the job's.

    ``count``: GPUs to lease, for as many processes.
    """
    if requested != "cpu":
        job.lease = lease_device(count=count, report=logging.info)
        logging.info("device lease: %s", job.lease.device if job.lease else "none, no device here")
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", job.snakemake.threads)))
    if requested == "cuda" and not torch.cuda.is_available():
        raise ValueError("config key device: 'cuda' asked for, but torch sees no CUDA device; allowed here: auto, cpu")
    job.device = "cuda" if requested != "cpu" and torch.cuda.is_available() else "cpu"
    return job.device
