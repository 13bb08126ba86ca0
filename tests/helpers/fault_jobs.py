"""The jobs of a finished run, read from Snakemake's own summary: their outputs, and what depends on what."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from stopwise.artifacts import tables as artifacts
from workshop import ROOT, Workshop

# What a job makes beside its declared outputs, and finds made when only those are removed.
BESIDE = {
    "prepare_model": ("results/assets/models",),
    "mlflow_database": ("results/mlflow",),
    "track": ("results/mlflow",),
}


@dataclass
class JobFiles:
    """One job of the reference run: its rule, its outputs and its inputs, relative to the workshop's folder."""

    rule: str
    outputs: list[str] = field(default_factory=list)
    inputs: set[str] = field(default_factory=set)


def jobs_of(reference: Workshop) -> list[JobFiles]:
    """Return the jobs with a script of a finished run, upstream first."""
    outcome = reference.run("--detailed-summary", "--quiet", "all")
    lines = outcome.text.splitlines()
    begin = next((i for i, line in enumerate(lines) if line.startswith("output_file\t")), None)
    if outcome.returncode or begin is None:
        raise ValueError(f"no summary of the reference run:\n{outcome.text[-2000:]}")
    jobs: dict[tuple[str, str], JobFiles] = {}
    for row in csv.DictReader(lines[begin:], delimiter="\t"):
        script = "figure" if row["rule"].startswith("figure_") else row["rule"]
        if (ROOT / "workflow" / "scripts" / f"{script}.py").is_file():
            job = jobs.setdefault((row["rule"], row["log-file(s)"]), JobFiles(row["rule"]))
            job.outputs.append(row["output_file"])
            job.inputs |= set(row["input-file(s)"].split(","))
    return in_order(jobs.values())


def in_order(jobs: Iterable[JobFiles]) -> list[JobFiles]:
    """Return the jobs so that each comes after those whose outputs it reads; equal ones by name."""
    waiting = sorted(jobs, key=lambda job: job.outputs[0])
    missing = {path for job in waiting for path in job.outputs}
    found: list[JobFiles] = []
    while waiting:
        ready = next(job for job in waiting if not job.inputs & missing)
        waiting.remove(ready)
        missing -= set(ready.outputs)
        found.append(ready)
    return found


def downstream(jobs: Iterable[JobFiles], victim: JobFiles) -> list[JobFiles]:
    """Return the victim and every job that depends on it, of jobs in order."""
    touched, found = set(victim.outputs), [victim]
    for job in jobs:
        if job is not victim and job.inputs & touched:
            touched |= set(job.outputs)
            found.append(job)
    return found


def undo(workshop: Workshop, jobs: Iterable[JobFiles], victim: JobFiles) -> int:
    """Remove what the victim made and all that depends on it, as if the run had not come so far; return how many jobs.

    Checkpoints go too: fine-tuning would find itself finished.
    """
    undone = downstream(jobs, victim)
    for job in undone:
        for path in job.outputs:
            (workshop.folder / path).unlink(missing_ok=True)
    for path in BESIDE.get(victim.rule, ()):
        shutil.rmtree(workshop.folder / path)
    for folder in workshop.results.glob("*/checkpoints"):
        shutil.rmtree(folder)
    return len(undone)


def seconds_of(workshop: Workshop, job: JobFiles) -> float:
    """Return how long the job's script took by its own clock, from its artifacts; 1 s when it writes none."""
    tables = [workshop.folder / path for path in job.outputs if Path(path).suffix == ".parquet"]
    return max((artifacts.read_provenance(path)["volatile"]["seconds"] for path in tables), default=1.0)
