"""A private copy of the workflow in which tests run, kill and damage Snakemake without touching the checkout."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from stopwise.artifacts import tables as artifacts
from warm import executable

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("Snakefile", "config.yaml", "config", "profiles", "workflow", "src", "envs", "tests/data")
# What differs between equal runs: times, run identifiers, and MLflow's own store.
VOLATILE = ("logs", "benchmarks", "checkpoints", "mlflow", "tracking.parquet", "provenance.parquet", "provenance.csv")


def known_environment() -> dict[str, str]:
    """Return the environment of a run: the test's own, without the settings of jobs."""
    known = {k: v for k, v in os.environ.items() if k not in {"STOPWISE_FAULT", "PYTHONPATH", "OMP_NUM_THREADS"}}
    return known


@dataclass
class Outcome:
    """How a Snakemake run ended and what it said."""

    returncode: int
    text: str

    def jobs(self) -> dict[str, int]:
        """Return how many jobs of each rule a dry run lists."""
        lines = self.text.partition("Job stats:")[2].strip().splitlines()[2:]
        counts: dict[str, int] = {}
        for line in lines:
            words = line.split()
            if len(words) != 2 or not words[1].isdigit():
                break
            counts[words[0]] = int(words[1])
        counts.pop("total", None)
        return counts


class Workshop:
    """A folder with the workflow's sources, the results of its runs, and Snakemake's own state."""

    def __init__(self, folder: Path, config: str = "config/test.yaml", cores: int = 4) -> None:
        self.folder = folder
        self.config = config
        self.cores = cores  # jobs of the pico run mostly import: two a core keep a machine of two busy
        self.runs = 0

    @classmethod
    def fresh(cls, folder: Path, origin: Path = ROOT) -> Workshop:
        """Copy the sources of the checkout, or of another workshop, into a new folder without results."""
        for name in SOURCES:
            source, target = origin / name, folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target)
            else:
                shutil.copy2(source, target)
        return cls(folder)

    def clone(self, folder: Path) -> Workshop:
        """Copy everything, results and times included, into a new folder."""
        shutil.copytree(self.folder, folder, symlinks=True)
        return Workshop(folder, self.config, self.cores)

    @property
    def results(self) -> Path:
        """The folder that all results lie under."""
        return self.folder / "results"

    def command(self, *options: str) -> list[str]:
        """Return the command line of a plain run."""
        return self.as_written("snakemake", *options, "--cores", str(self.cores))

    def as_written(self, line: str, *targets: str) -> list[str]:
        """Return a command of the docs word by word, for these targets (all when none) of the pico configuration."""
        program, *words = shlex.split(line)
        if program != "snakemake":
            raise ValueError(f"{line!r} is not a command of snakemake")
        return [sys.executable, "-m", program, *targets, *words, "--configfile", self.config]

    @property
    def said(self) -> str:
        """What the last run said so far."""
        return (self.folder / f"run{self.runs}.log").read_text(encoding="utf-8", errors="replace")

    def start(self, *options: str, **environment: str) -> subprocess.Popen:
        """Start a plain run."""
        return self.launch(self.command(*options), **environment)

    def launch(self, command: list[str], **environment: str) -> subprocess.Popen:
        """Start Snakemake as the leader of a session of its own; what it says goes to a file, which never blocks it.

        It is a warm Python but where other packages are put on its path.
        """
        path = environment.get("PYTHONPATH")
        if path is None or (Path(path) / "sitecustomize.py").is_file():
            command = [executable(), *command[1:]]
        self.runs += 1
        with (self.folder / f"run{self.runs}.log").open("wb") as log:
            return subprocess.Popen(
                command,
                cwd=self.folder,
                env=known_environment() | environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def finish(self, process: subprocess.Popen, timeout: float = 900) -> Outcome:
        """Wait for a started run. On a time-out the whole session is killed and the test fails."""
        try:
            process.wait(timeout=timeout)
        except subprocess.TimeoutExpired as error:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise AssertionError(f"{' '.join(process.args)} took over {timeout} s:\n{self.said[-3000:]}") from error
        return Outcome(process.returncode, self.said)

    def run(self, *options: str, timeout: float = 900, **environment: str) -> Outcome:
        """Run Snakemake to its end."""
        return self.finish(self.start(*options, **environment), timeout)

    def follow(self, line: str, *targets: str, **environment: str) -> Outcome:
        """Run a command of the docs to its end."""
        return self.finish(self.launch(self.as_written(line, *targets), **environment))

    def artifacts(self) -> list[Path]:
        """Return every stable result of a run, relative to the results folder."""
        found = (path.relative_to(self.results) for path in self.results.rglob("*") if path.is_file())
        return sorted(path for path in found if not set(path.parts) & set(VOLATILE) and ".part" not in str(path))

    def temporaries(self) -> list[Path]:
        """Return temporary files and folders of interrupted writes."""
        return sorted(path for path in self.results.rglob("*.part*"))

    def different(self, reference: Workshop, *, complete: bool) -> list[str]:
        """Return what is not equal to the reference run: tables and stable metadata, other files byte for byte.

        With ``complete`` a missing file is a difference too.
        """
        mine, expected = set(self.artifacts()), set(reference.artifacts())
        found = [f"{path}: not in the reference" for path in sorted(mine - expected)]
        if complete:
            found += [f"{path}: missing" for path in sorted(expected - mine)]
        for path in sorted(mine & expected):
            pair = (self.results / path, reference.results / path)
            if path.suffix == ".parquet":
                equal = artifacts.equal(*pair)
            else:
                equal = pair[0].read_bytes() == pair[1].read_bytes()
            if not equal:
                found.append(f"{path}: not equal")
        return found
