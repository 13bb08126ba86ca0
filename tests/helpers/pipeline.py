"""Run the workflow on the pico configuration in a folder of its own, as a user would in a checkout."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("Snakefile", "config.yaml", "config", "profiles", "workflow", "src", "envs", "tests/data")
TEST_CONFIG = "config/test.yaml"


@dataclass
class Run:
    """What one call of snakemake said and how long it took."""

    code: int
    output: str
    seconds: float

    def jobs(self) -> dict[str, int]:
        """Return the number of jobs by rule, from the job table that snakemake prints first."""
        table = self.output.split("Job stats:", 1)[-1]
        found = {}
        for line in table.splitlines():
            match = re.fullmatch(r"(\w+)\s+(\d+)\s*", line)
            if match:
                found[match[1]] = int(match[2])
                if match[1] == "total":
                    break
        return found


def checkout(folder: Path) -> Path:
    """Copy what the workflow needs into a folder and return it."""
    for part in PARTS:
        source, target = ROOT / part, folder / part
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy2(source, target)
    return folder


def snakemake(folder: Path, *arguments: str, config: str = TEST_CONFIG, timeout: int = 600) -> Run:
    """Run snakemake in a checkout with one configuration; the environment is the test's own, without job settings.

    ``config`` names its file, or several with blanks between.
    """
    command = [
        sys.executable,
        "-m",
        "snakemake",
        "--configfile",
        *config.split(),
        "--cores",
        "4",
        *arguments,
    ]  # mostly imports
    kept = {key: value for key, value in os.environ.items() if key not in ("OMP_NUM_THREADS", "PYTEST_CURRENT_TEST")}
    started = time.monotonic()
    done = subprocess.run(
        command,
        cwd=folder,
        env=kept,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=timeout,
    )
    return Run(done.returncode, done.stdout, time.monotonic() - started)
