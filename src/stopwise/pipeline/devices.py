"""A lease on GPUs of this node, so that jobs that run side by side use different devices.

Snakemake counts GPUs (``gpu: 1``) but hands out no device. A job takes an exclusive lock on one file per device, in a
folder that is private to the node and the user; the operating system holds the lock, so a job that is killed in any
way gives its device back at once. The devices are those of ``CUDA_VISIBLE_DEVICES`` when it is set, else all of the
machine's. Under Slurm the scheduler has chosen: one device needs no lease, several are shared within their job only.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from filelock import FileLock, Timeout

MADE_UP = "STOPWISE_DEVICES"  # a comma-separated list that stands in for the machine's devices, for tests
VISIBLE = "CUDA_VISIBLE_DEVICES"
LISTED = re.compile(r"UUID: ((?:GPU|MIG)-[^)\s]+)")
NUMBERED = re.compile(r"nvidia(\d+)")


@dataclass
class Lease:
    """Leased devices: their names with commas between, and the locks that hold them (none the scheduler's device)."""

    device: str
    locks: tuple[FileLock, ...] = ()

    def release(self) -> None:
        """Give the devices back; the end of the process, however it comes, does the same."""
        for lock in self.locks:
            lock.release()


def devices(environment: MutableMapping[str, str] | None = None) -> list[str]:
    """Return the names of the devices this process may use, in order; an empty list on a machine without any.

    Names are what ``CUDA_VISIBLE_DEVICES`` accepts: its own entries when it is set (an empty value means none), else
    the UUIDs that nvidia-smi lists, of a GPU that is cut into slices (MIG) those of its slices, else the numbers of
    /dev/nvidia*.
    """
    environment = os.environ if environment is None else environment
    for variable in (VISIBLE, MADE_UP):
        if variable in environment:
            names = [name.strip() for name in environment[variable].split(",")]
            # CUDA itself ignores everything after the first entry that names no device.
            stop = next((i for i, name in enumerate(names) if name in {"", "-1", "NoDevFiles"}), len(names))
            return list(dict.fromkeys(names[:stop]))
    return _listed_by_driver() or _device_nodes(Path("/dev"))


def _listed_by_driver() -> list[str]:
    command = ["nvidia-smi", "-L"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    names: list[str] = []
    for line in found.splitlines():
        listed = LISTED.search(line)
        if listed and listed.group(1).startswith("MIG-"):
            if names and names[-1].startswith("GPU-"):
                names.pop()  # work runs on the slices of this GPU, not on the whole
            names.append(listed.group(1))
        elif listed:
            names.append(listed.group(1))
    return names


def _device_nodes(folder: Path) -> list[str]:
    numbers = (NUMBERED.fullmatch(path.name) for path in folder.iterdir())
    return [str(n) for n in sorted(int(found.group(1)) for found in numbers if found)]


def lease_folder(environment: MutableMapping[str, str] | None = None) -> Path:
    """Return the folder of the lock files: of this node, this user and, under Slurm, this job; created when absent.

    Under Slurm device numbers may count within a job, so locks of different jobs must not meet. Raises OSError when the
    folder belongs to somebody else.
    """
    environment = os.environ if environment is None else environment
    name = f"stopwise-devices-{os.getuid()}-{socket.gethostname()}"
    if "SLURM_JOB_ID" in environment:
        name += f"-job{environment['SLURM_JOB_ID']}"
    folder = Path(tempfile.gettempdir()) / name
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder}: belongs to another user; remove it, or set TMPDIR to a local folder of yours")
    return folder


def lease_device(
    environment: MutableMapping[str, str] | None = None,
    *,
    count: int = 1,
    folder: Path | None = None,
    patience: float = float("inf"),
    report: Callable[[str], None] = lambda message: None,
) -> Lease | None:
    """Lease ``count`` devices and make them the only visible ones; return None on a machine without devices.

    Waits (polling two to four times a second) until so many are free, at most ``patience`` seconds, and holds none
    meanwhile: two jobs that each want two never wait for each other. Call it before torch is imported: CUDA reads the
    variable once. Raises TimeoutError when they did not come free in time, ValueError where there are fewer, and
    RuntimeError when CUDA is initialised already.
    """
    environment = os.environ if environment is None else environment
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        raise RuntimeError("a device can be leased only before CUDA is initialised")
    names = devices(environment)
    if not names:
        return None
    if len(names) < count:
        raise ValueError(
            f"config key kernel.processes: {count} processes need a device each, and here there is {', '.join(names)};"
            f" allowed: at most {len(names)}, or device: cpu"
        )
    if "SLURM_JOB_ID" in environment and VISIBLE in environment and len(names) == 1:
        return Lease(names[0])
    lease = _wait_for(names, count, folder or lease_folder(environment), patience, report)
    environment[VISIBLE] = lease.device
    return lease


def _wait_for(names: Sequence[str], count: int, folder: Path, patience: float, report: Callable[[str], None]) -> Lease:
    """Try to take so many devices, again and again until they are free."""
    deadline = time.monotonic() + patience
    jitter = Random(os.getpid())
    wanted, told = "free device" if count == 1 else f"{count} free devices", False
    while True:
        lease = _taken(names, count, folder)
        if lease is not None:
            return lease
        if time.monotonic() >= deadline:
            raise TimeoutError(f"no {wanted} among {', '.join(names)} within {patience:g} s (locks in {folder})")
        if not told:
            report(f"waiting for {'a ' if count == 1 else ''}{wanted} among {', '.join(names)}")
            told = True
        time.sleep(0.25 + 0.25 * jitter.random())


def _taken(names: Sequence[str], count: int, folder: Path) -> Lease | None:
    """Take the first ``count`` devices that are free, in order; None, and nothing held, where there are fewer."""
    held: dict[str, FileLock] = {}
    for name in names:
        lock = FileLock(folder / (re.sub(r"[^A-Za-z0-9_-]", "_", name) + ".lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue
        held[name] = lock
        if len(held) == count:
            return Lease(",".join(held), tuple(held.values()))
    for lock in held.values():
        lock.release()
    return None
