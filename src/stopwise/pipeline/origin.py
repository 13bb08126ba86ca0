"""What an artifact says of the job that made it: digests of its inputs, versions, revision, time, memory, device."""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import platform
import resource
import subprocess
import time
from pathlib import Path
from typing import Any

import stopwise
from stopwise.artifacts import tables as artifacts

VERSIONED = ("torch", "transformers", "tokenizers", "numpy", "scipy", "pyarrow", "safetensors")


def digest_of(path: Path) -> str:
    """Return an artifact's own digest, or a plain file's sha256 (shortened)."""
    if path.suffix == ".parquet":
        try:
            return artifacts.digest(path)
        except artifacts.ArtifactError:
            if path.parts[:1] == ("results",):  # an artifact of a run; a task's own file may be any Parquet
                raise
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def versions() -> dict[str, str]:
    """Return the versions that numbers depend on."""
    found = {"stopwise": stopwise.__version__, "python": platform.python_version()}
    return found | {name: importlib.metadata.version(name) for name in VERSIONED}


def volatile(started: float, **known: Any) -> dict[str, Any]:
    """Return what may differ between equal runs of a job that began at `started` (seconds since 1970)."""
    return {
        "git": git_revision(),
        "started": datetime.datetime.fromtimestamp(started, datetime.UTC).isoformat(timespec="seconds"),
        "seconds": round(time.time() - started, 2),
        "host": platform.node(),
        "peak_mb": round(peak_mb(), 1),
        **known,
    }


def peak_mb() -> float:
    """Return the process's peak resident memory in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def git_revision() -> str | None:
    """Return the revision of the workflow's checkout, with a + when it has changes; None outside a checkout."""
    here = Path(__file__).resolve().parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
