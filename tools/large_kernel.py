"""Walk a kernel of many examples through the jobs of a run, on a pico model, and say how much memory each took.

    python tools/large_kernel.py 10000

Each step is a process of its own, as in a run: the kernel's job writes the sum over its layers and their moments, the
next one assembles the shards, the next reads the result as those after it do, and with --spectrum decomposes it. Memory
is what a process takes beyond what it had after its imports, over the size of the kernel.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

HELD_OUT = 64
TOKENS = 6


def peak_mb() -> float:
    """Return the peak resident memory of this process so far, in MB of 10^6 bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def kernel(n: int, folder: Path) -> Callable[[], None]:
    """Compute a kernel and write it as the rule ``jacobian`` does."""
    import torch

    from stopwise.artifacts import tables
    from stopwise.artifacts.gram import SUM, shard_table
    from stopwise.cost.benchmark import random_batch
    from stopwise.kernel.ntk import train_and_new_kernels
    from stopwise.network.pico import pico_model

    model = pico_model("llama", dtype="float32", seed=0)
    train, new = (random_batch(size, TOKENS, model.config.vocab_size, seed=seed) for seed, size in ((0, n), (1, 64)))
    train_and_new_kernels(model, random_batch(4, TOKENS, 64), random_batch(4, TOKENS, 64))  # what first calls load
    y = torch.where(torch.arange(n)[:, None] % 2 == 0, -1.0, 1.0).numpy() / np.sqrt(2)

    def run() -> None:
        found, held_out = train_and_new_kernels(model, train, new, by="total", targets={"train": y}, memory_gb=4.0)
        outputs, norms = (found.outputs, held_out.outputs), found.row_norms
        table = shard_table({SUM: found.matrix}, {SUM: held_out.matrix}, *outputs, norms, moments=found.moments)
        tables.write_table(folder / "shard.parquet", table, "jacobian")

    return run


def assembly(n: int, folder: Path) -> Callable[[], None]:
    """Assemble the shard and write the kernel as the rule ``gram`` does."""
    from stopwise.artifacts import tables
    from stopwise.artifacts.gram import assemble, shares_of_moments

    def run() -> None:
        whole = assemble({"shard": lambda: tables.read_table(folder / "shard.parquet", "jacobian")})
        assert len(shares_of_moments(whole, np.ones_like(whole.outputs), 1.0, centred=True)) > 1
        tables.write_table(folder / "gram.parquet", whole.table(), "gram")

    return run


def reading(n: int, folder: Path) -> Callable[[], None]:
    """Read the kernel as every later job does."""
    from stopwise.artifacts import tables
    from stopwise.artifacts.gram import read_gram

    def run() -> None:
        assert read_gram(tables.read_table(folder / "gram.parquet", "gram")).train.shape == (n, n)

    return run


def spectrum(n: int, folder: Path) -> Callable[[], None]:
    """Read the kernel and decompose it once."""
    from stopwise.artifacts import tables
    from stopwise.artifacts.gram import read_gram

    def run() -> None:
        found = read_gram(tables.read_table(folder / "gram.parquet", "gram")).spectrum("fitted")
        assert found.degrees == n - 1

    return run


STEPS = {"kernel": kernel, "assembly": assembly, "reading": reading, "spectrum": spectrum}


def measured(step: str, n: int, folder: Path) -> dict[str, float]:
    """Run one step in this process; return its seconds and the memory beyond the imports', over the kernel's size."""
    call = STEPS[step](n, folder)
    before, start = peak_mb(), time.perf_counter()
    call()
    size = 8e-6 * n * (n + HELD_OUT)
    grown = peak_mb() - before
    return {"seconds": time.perf_counter() - start, "kernel_mb": size, "grown_mb": grown, "kernels": grown / size}


def walk(n: int, folder: Path, steps: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """Run the steps one after another, each in a process of its own."""
    found = {}
    for step in steps:
        command = [sys.executable, __file__, str(n), "--step", step, "--folder", str(folder)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found[step] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Read the command line, walk, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("n", type=int)
    parser.add_argument("--spectrum", action="store_true", help="decompose the kernel too")
    parser.add_argument("--step", choices=tuple(STEPS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.step:
        print(json.dumps(measured(given.step, given.n, given.folder)))
        return
    steps = tuple(STEPS) if given.spectrum else tuple(STEPS)[:-1]
    with tempfile.TemporaryDirectory() as folder:
        found = walk(given.n, Path(folder), steps)
    print("| step | seconds | memory, MB | times the kernel |\n|---|---|---|---|")
    for step, row in found.items():
        print(f"| {step} | {row['seconds']:.1f} | {row['grown_mb']:.0f} | {row['kernels']:.2f} |")


if __name__ == "__main__":
    main()
