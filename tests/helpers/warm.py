"""Snakemake in a forked process that has imported it already: what a new process spends seconds on is spent once.

The process is otherwise a new one: its own working folder, environment, output and exit status. Its jobs are new
processes, as always.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["snakemake.cli"])


def run_snakemake(
    arguments: Sequence[str], folder: Path, environment: Mapping[str, str], timeout: float
) -> tuple[int, str]:
    """Run ``snakemake ARGUMENTS`` in a folder; return its exit status and what it said.

    Raises AssertionError when it takes longer than `timeout` seconds; it and its jobs are killed then.
    """
    with tempfile.TemporaryDirectory() as scratch:
        said = Path(scratch) / "said"
        process = _SERVER.Process(target=_snakemake, args=(list(arguments), str(folder), dict(environment), str(said)))
        process.start()
        process.join(timeout)
        late = process.is_alive()
        if late:
            os.killpg(process.pid, signal.SIGKILL)
            process.join()
        text = said.read_text(encoding="utf-8", errors="replace")
    assert not late, f"snakemake {' '.join(arguments)} took over {timeout} s:\n{text[-3000:]}"
    return process.exitcode, text


def _snakemake(arguments: list[str], folder: str, environment: dict[str, str], said: str) -> None:
    """Be ``python -m snakemake ARGUMENTS``, started in a folder."""
    os.setsid()
    with open(said, "wb", buffering=0) as log, open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    named = environment.get("PYTHONPATH", "").split(os.pathsep)
    of_the_tests = {str(ROOT / name) for name in ("tests/helpers", "src", "workflow", "tools")} | {""}
    sys.path[:] = [folder, *filter(None, named), *(path for path in sys.path if path not in {*of_the_tests, *named})]
    sys.argv = ["snakemake", *arguments]

    from snakemake.cli import main

    main(arguments)
