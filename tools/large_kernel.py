"""Walk a kernel of many examples through the jobs of a run, and say how long each took and how much memory.

    python tools/large_kernel.py 10000                              a pico model
    python tools/large_kernel.py 4096 --encoder --rules --threads 2       the built-in encoder under a head, and rules

Each step is a process of its own, as in a run: the kernel's job writes the sum over its layers and their moments, the
next one assembles the shards, the next reads the result as those after it do, with --spectrum decomposes it, and with
--rules lets every rule read it, on one training size. Memory is what a process takes beyond what it had after its
imports, over the size of the kernel, and the peak of the whole process. Prompts are random tokens: 6 of a pico model,
48 of the encoder.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

HELD_OUT = 64
TOKENS, ENCODER_TOKENS = 6, 48
ASSETS = Path(__file__).resolve().parents[1] / "results" / "assets"
MEMORY_GB = 4.0


def peak_mb() -> float:
    """Return the peak resident memory of this process so far, in MB of 10^6 bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def labels(n: int) -> np.ndarray:
    """Return targets of two classes in turn, float64 [n, 1]."""
    return np.where(np.arange(n)[:, None] % 2 == 0, -1.0, 1.0) / np.sqrt(2)


def kernel(n: int, folder: Path, encoder: bool) -> Callable[[], None]:
    """Compute a kernel and write it as the rule ``jacobian`` does."""
    from stopwise.artifacts import tables
    from stopwise.artifacts.gram import SUM, shard_table
    from stopwise.cost.benchmark import random_batch
    from stopwise.kernel.ntk import train_and_new_kernels
    from stopwise.network.loading import load_model
    from stopwise.network.pico import pico_model

    if encoder:
        model, _ = load_model("minilm", assets=ASSETS, num_labels=2)
    else:
        model = pico_model("llama", dtype="float32", seed=0)

    def batch(size: int, seed: int) -> dict:
        made = random_batch(size, ENCODER_TOKENS if encoder else TOKENS, model.config.vocab_size, seed=seed)
        return {key: value for key, value in made.items() if not encoder or key != "verbalizers"}

    train, new = batch(n, 0), batch(HELD_OUT, 1)
    train_and_new_kernels(model, batch(4, 2), batch(4, 3))  # what first calls load
    options = {"by": "total", "targets": {"train": labels(n)}, "memory_gb": MEMORY_GB}

    def run() -> None:
        found, held_out = train_and_new_kernels(model, train, new, **options)
        outputs, norms = (found.outputs, held_out.outputs), found.row_norms
        table = shard_table({SUM: found.matrix}, {SUM: held_out.matrix}, *outputs, norms, moments=found.moments)
        tables.write_table(folder / "shard.parquet", table, "jacobian")

    return run


def assembly(n: int, folder: Path, encoder: bool) -> Callable[[], None]:
    """Assemble the shard and write the kernel as the rule ``gram`` does."""
    from stopwise.artifacts import tables
    from stopwise.artifacts.gram import assemble, shares_of_moments

    def run() -> None:
        whole = assemble({"shard": lambda: tables.read_table(folder / "shard.parquet", "jacobian")})
        assert len(shares_of_moments(whole, np.ones_like(whole.outputs), 1.0, centred=True)) > 1
        tables.write_table(folder / "gram.parquet", whole.table(), "gram")

    return run


def reading(n: int, folder: Path, encoder: bool) -> Callable[[], None]:
    """Read the kernel as every later job does."""
    from stopwise.artifacts import tables
    from stopwise.artifacts.gram import read_gram

    def run() -> None:
        assert read_gram(tables.read_table(folder / "gram.parquet", "gram")).train.shape == (n, n)

    return run


def spectrum(n: int, folder: Path, encoder: bool) -> Callable[[], None]:
    """Read the kernel and decompose it once."""
    from stopwise.artifacts import tables
    from stopwise.artifacts.gram import read_gram

    def run() -> None:
        found = read_gram(tables.read_table(folder / "gram.parquet", "gram")).spectrum("fitted")
        assert found.degrees == n - 1

    return run


def rules(n: int, folder: Path, encoder: bool) -> Callable[[], None]:
    """Read the kernel and let every rule say where to stop, as the rule ``stopping`` does for one size."""
    from stopwise.artifacts import tables
    from stopwise.artifacts.gram import read_gram
    from stopwise.linearized.filters import HeavyBall
    from stopwise.stopping.known import BeforeTraining
    from stopwise.stopping.registry import PREDICTED
    from stopwise.stopping.stops import stopping_table, time_grid

    def run() -> None:
        found = read_gram(tables.read_table(folder / "gram.parquet", "gram"))
        spec, y = found.spectrum("fitted"), labels(n)
        filter, times = HeavyBall(1 / spec.lambda_max, 0.9), time_grid(LAST_STEP)
        run = BeforeTraining(spec, y - found.outputs, filter, LAST_STEP, times=times, targets=y)
        rows, _ = stopping_table(run, PREDICTED)
        print({row["rule"]: row["t"] for row in rows}, file=sys.stderr)

    return run


LAST_STEP = 2000
STEPS = {"kernel": kernel, "assembly": assembly, "reading": reading, "spectrum": spectrum, "rules": rules}


def measured(step: str, n: int, folder: Path, encoder: bool) -> dict[str, float]:
    """Run one step in this process; return its seconds and the memory beyond the imports', over the kernel's size."""
    call = STEPS[step](n, folder, encoder)
    before, start = peak_mb(), time.perf_counter()
    call()
    size = 8e-6 * n * (n + HELD_OUT)
    grown = peak_mb() - before
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "peak_mb": peak_mb(), "grown_mb": grown, "kernels": grown / size}


def walk(n: int, folder: Path, steps: Sequence[str], encoder: bool, threads: int) -> dict[str, dict[str, float]]:
    """Run the steps one after another, each in a process of its own."""
    found = {}
    environment = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    for step in steps:
        command = [sys.executable, __file__, str(n), "--step", step, "--folder", str(folder)]
        command += ["--encoder"] if encoder else []
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
        found[step] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Read the command line, walk, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("n", type=int)
    parser.add_argument("--encoder", action="store_true", help="the built-in encoder in place of a pico model")
    parser.add_argument("--spectrum", action="store_true", help="decompose the kernel too")
    parser.add_argument("--rules", action="store_true", help="let the rules read it too")
    parser.add_argument("--threads", type=int, default=1, help="of each step")
    parser.add_argument("--step", choices=tuple(STEPS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.step:
        print(json.dumps(measured(given.step, given.n, given.folder, given.encoder)))
        return
    asked = {"spectrum": given.spectrum, "rules": given.rules}
    steps = [step for step in STEPS if asked.get(step, True)]
    with tempfile.TemporaryDirectory() as folder:
        found = walk(given.n, Path(folder), steps, given.encoder, given.threads)
    print("| step | seconds | memory, MB | times the kernel | peak of the process, GiB |\n|---|---|---|---|---|")
    for step, row in found.items():
        memory = f"{row['grown_mb']:.0f} | {row['kernels']:.2f} | {row['peak_mb'] * 1e6 / 2**30:.2f}"
        print(f"| {step} | {row['seconds']:.1f} | {memory} |")


if __name__ == "__main__":
    main()
