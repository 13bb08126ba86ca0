"""What the scripts that run the network share: the device they hold and the model at its start."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stopwise.devices import lease_device

if TYPE_CHECKING:
    from job import Job


def use_device(job: Job, requested: str) -> str:
    """Lease a GPU unless the CPU is asked for, then return the torch device and set torch's threads to the job's."""
    if requested != "cpu":
        job.lease = lease_device(report=logging.info)
        logging.info("device lease: %s", job.lease.device if job.lease else "none, no device here")
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", job.snakemake.threads)))
    if requested == "cuda" and not torch.cuda.is_available():
        raise ValueError("config key device: 'cuda' asked for, but torch sees no CUDA device; allowed here: auto, cpu")
    job.device = "cuda" if requested != "cpu" and torch.cuda.is_available() else "cpu"
    return job.device


def load_start(snakemake: Any, start: str, seed: int, device: str) -> tuple[Any, dict[str, Any]]:
    """Return the configured model at a start (pretrained, mixed, random) on the device, and its record."""
    from stopwise.models import load_model

    stamp = json.loads(Path(snakemake.input.model).read_text(encoding="utf-8"))
    section = snakemake.params.model
    model, _ = load_model(
        stamp["folder"],
        dtype=section["dtype"],
        attn_implementation=section["attn_implementation"],
        trust_remote_code=section["trust_remote_code"],
        start=start,
        seed=seed,
        reinit=section.get("reinit", ()),
    )
    return model.to(device), stamp
