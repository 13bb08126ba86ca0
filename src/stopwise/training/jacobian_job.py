"""One file that a kernel is assembled from, as a job asks for it: by this process, or by several that share the work.

Several processes run on this node only. They meet through a file and talk over the loopback interface (gloo on CPUs,
NCCL on GPUs), so that nothing listens to other machines. A job that ends takes its processes with it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
import torch.distributed as dist

from stopwise.artifacts.sample import read_sample
from stopwise.network.loading import load_configured
from stopwise.training.jacobian_block import jacobian_block
from stopwise.training.jacobian_shard import jacobian_shard

LOOPBACK = "lo"
ASKED, FOUND, PLAN, REFUSED = "asked.json", "found.arrow", "plan.json", "refused.txt"
Found = tuple[pa.Table, dict[str, Any]]


@dataclass(frozen=True)
class Asked:
    """What a job computes: of which data and prepared model (paths), at which start and seed, and which piece.

    ``piece``: (shard, of how many), or (left, right, of how many) blocks of examples. ``params``: the sections
    ``model``, ``kernel``, ``adam`` and ``scheduled`` of the rule.
    """

    data: str
    model: str
    start: str
    seed: int
    piece: tuple[int, ...]
    params: Mapping[str, Any]


def computed(asked: Asked, device: str, over_ranks: bool = False) -> Found:
    """Return the ``jacobian`` (or ``jacobian_block``) artifact, and how its passes were planned."""
    sample, params = read_sample(asked.data), asked.params
    stamp = json.loads(Path(asked.model).read_text(encoding="utf-8"))
    start = (asked.start, asked.seed, sample.classes, params["kernel"]["parameters"])
    model = load_configured(stamp, params["model"], *start).to(device)
    options: dict[str, Any] = {"seed": asked.seed, "device": device, "source": stamp["source"]}
    options |= {"adam": params["adam"], "scheduled": params["scheduled"], "over_ranks": over_ranks}
    if len(asked.piece) == 3:
        left, right, blocks = asked.piece
        return jacobian_block(model, sample, params["kernel"], (left, right, blocks), **options)
    shard, shards = asked.piece
    return jacobian_shard(model, sample, params["kernel"], (shard, shards), **options)


def computed_by(asked: Asked, device: str, processes: int, threads: int) -> Found:
    """Return what ``computed`` does, by so many processes of ``threads`` threads, on GPU 0, 1, … where that is cuda.

    The numbers are those of one process: to the last bit where layers are kept, to rounding where not. Raises
    ValueError with the message of the process that refused, RuntimeError where one died.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    with tempfile.TemporaryDirectory(prefix="stopwise-ranks-") as name:
        folder = Path(name)
        (folder / ASKED).write_text(json.dumps(asdict(asked)), encoding="utf-8")
        launch = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            run_id=folder.name,
            rdzv_backend="c10d",
            rdzv_endpoint=str(folder / "rendezvous"),
            rdzv_configs={"store_type": "file"},
            local_addr="127.0.0.1",
            max_restarts=0,
        )
        try:
            elastic_launch(launch, sys.executable)("-m", __name__, name, device, str(threads))
        except ChildFailedError as error:
            refused = folder / REFUSED
            if refused.is_file():
                raise ValueError(refused.read_text(encoding="utf-8")) from error
            first = error.get_first_failure()[1]
            raise RuntimeError(
                f"kernel.processes: process {first.local_rank} ended with code {first.exitcode}"
            ) from error
        with pa.OSFile(str(folder / FOUND)) as file:
            table = pa.ipc.open_file(file).read_all()
        return table, json.loads((folder / PLAN).read_text(encoding="utf-8"))


def _join(folder: Path, device: str, threads: int) -> None:
    """Compute as one of several processes; the first one writes what they found."""
    torch.multiprocessing._prctl_pr_set_pdeathsig(signal.SIGKILL)  # type: ignore[attr-defined]
    torch.set_num_threads(threads)
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    os.environ |= {"GLOO_SOCKET_IFNAME": LOOPBACK, "NCCL_SOCKET_IFNAME": LOOPBACK}
    place = device
    if device == "cuda":
        torch.cuda.set_device(rank)
        place = f"cuda:{rank}"
    told = json.loads((folder / ASKED).read_text(encoding="utf-8"))
    asked = Asked(**told | {"piece": tuple(told["piece"])})
    backend, store = "nccl" if device == "cuda" else "gloo", dist.FileStore(str(folder / "store"), world)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world)
    try:
        table, plan = computed(asked, place, over_ranks=True)
    except (ValueError, OSError, MemoryError) as error:
        (folder / REFUSED).write_text(str(error), encoding="utf-8")
        raise
    if rank == 0:
        with pa.OSFile(str(folder / FOUND), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
        (folder / PLAN).write_text(json.dumps(plan), encoding="utf-8")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    _join(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
