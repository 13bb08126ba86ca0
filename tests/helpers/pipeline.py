"""Run the workflow on the pico configuration in a folder of its own, as a user would in a checkout."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock

from warm import executable

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("Snakefile", "config.yaml", "config", "profiles", "workflow", "src", "envs", "tests/data")
TEST_CONFIG = "config/test.yaml"
SMALL_CONFIG = "tests/data/small.yaml"
DIGESTS = ".snakemake/stopwise-digests.json"
_made: list[Path] = []  # the checkouts of this process


@dataclass
class Run:
    """What one call of snakemake said and how long it took."""

    code: int
    output: str
    seconds: float
    folder: str  # where it ran: what comes out must not name it

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
    """Copy what the workflow needs into a folder and return it.

    The digests of code that another checkout of this process has kept go along: they hold for the very same sources
    only, and to work them out takes seconds.
    """
    for part in PARTS:
        source, target = ROOT / part, folder / part
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.egg-info"))
        else:
            shutil.copy2(source, target)
    kept = next((one / DIGESTS for one in _made if (one / DIGESTS).is_file()), None)
    if kept is not None:
        (folder / DIGESTS).parent.mkdir(exist_ok=True)
        shutil.copy2(kept, folder / DIGESTS)
    _made.append(folder)
    return folder


def snakemake(folder: Path, *arguments: str, config: str = TEST_CONFIG, timeout: int = 900) -> Run:
    """Run snakemake in a checkout with one configuration; the environment is the test's own, without job settings.

    ``config`` names its file, or several with blanks between.
    """
    kept = {key: value for key, value in os.environ.items() if key not in ("OMP_NUM_THREADS", "PYTEST_CURRENT_TEST")}
    started = time.monotonic()
    options = ["--configfile", *config.split(), "--cores", "4"]  # jobs mostly import
    done = subprocess.run(
        [executable(), "-m", "snakemake", *options, *arguments],
        cwd=folder,
        env=kept,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=timeout,
    )
    return Run(done.returncode, done.stdout, time.monotonic() - started, str(folder))


def sources_digest() -> str:
    """Return a digest of all that a run of the pico configuration reads, and of the Python and packages it runs on."""
    digest = hashlib.sha256(sys.version.encode())
    paths = [ROOT / "requirements.lock"]
    for part in (ROOT / name for name in PARTS):
        paths += [path for path in part.rglob("*") if "__pycache__" not in path.parts] if part.is_dir() else [part]
    for path in sorted(path for path in paths if path.is_file() and ".egg-info" not in str(path)):
        digest.update(f"\n{path.relative_to(ROOT)}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def finished_run(shared: Path, folder: Path, config: str = TEST_CONFIG) -> Run:
    """Copy a checkout in which a configuration has run once from nothing to `folder`, and return what that run said.

    It runs once for all processes that name the same `shared` folder and have the same sources; the others wait for it.
    A run that failed is not kept.
    """
    kept = shared / f"{sources_digest()}-{Path(config).stem}"
    shared.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{kept}.lock"):
        if not (kept / "run.json").is_file():
            shutil.rmtree(kept, ignore_errors=True)
            run = snakemake(checkout(kept / "checkout"), config=config)
            assert run.code == 0, run.output[-6000:]
            (kept / "run.part").write_text(json.dumps(asdict(run)), encoding="utf-8")
            (kept / "run.part").rename(kept / "run.json")
    shutil.copytree(kept / "checkout", folder, symlinks=True)  # with its times
    return Run(**json.loads((kept / "run.json").read_text(encoding="utf-8")))
