"""A real one-node Slurm with two made-up GPUs, started and stopped by the tests, all of it under one folder.

Needs root and Debian's slurm-wlm and munge, which it installs when they are absent. The daemons run in the foreground
as children of the test, with their own ports, key and state: nothing of the machine's own configuration is read.
"""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "scancel", "srun")
PACKAGES = ("slurm-wlm", "munge")
SBIN = "/usr/local/sbin:/usr/sbin:/sbin"

CONFIG = """
ClusterName=stopwise
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge/socket
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
MinJobAge=600
DefMemPerCPU=512
KillWait=2
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=65536 Gres=gpu:2 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def require_slurm() -> None:
    """Install Slurm when it is absent and this is a Debian run by root; raise RuntimeError saying what is missing."""
    if os.getuid() != 0:
        raise RuntimeError("the Slurm tests start munged, slurmctld and slurmd and make device nodes: run them as root")
    os.environ["PATH"] += os.pathsep + SBIN
    if all(map(shutil.which, PROGRAMS)):
        return
    tried = "apt-get is missing: not a Debian"
    if shutil.which("apt-get"):
        for command in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", *PACKAGES]):
            done = subprocess.run(
                ["apt-get", *command],
                env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
            )
            tried = f"apt-get {command[0]}: {(done.stderr or done.stdout).strip().splitlines()[-1:]}"
    missing = [program for program in PROGRAMS if not shutil.which(program)]
    if missing:
        raise RuntimeError(f"not found: {', '.join(missing)} (Debian packages {' and '.join(PACKAGES)}); {tried}")


def free_port() -> int:
    """Return a TCP port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(condition: Callable[[], object], seconds: float, what: str) -> object:
    """Return the first true value of the condition; raise TimeoutError naming what did not happen."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.2)
    raise TimeoutError(f"not within {seconds:g} s: {what}")


class Cluster:
    """One controller and one node, as a context: `with Cluster(folder) as cluster: cluster.run("sinfo")`."""

    def __init__(self, folder: Path, cpus: int = 8) -> None:
        self.folder = folder
        self.config = folder / "slurm.conf"
        self.environment = os.environ | {"SLURM_CONF": str(self.config), "PATH": f"{folder}/bin:{os.environ['PATH']}"}
        self.daemons: dict[str, subprocess.Popen] = {}
        for name in ("munge", "state", "spool", "devices", "bin"):
            (folder / name).mkdir(parents=True)
        # The plugin removes SLURM_* from the environment of the srun in a job, SLURM_CONF included.
        srun = folder / "bin" / "srun"
        srun.write_text(f'#!/bin/sh\nSLURM_CONF={self.config} exec {shutil.which("srun")} "$@"\n', encoding="utf-8")
        srun.chmod(0o755)
        for number in range(2):
            # The numbers of /dev/null: Slurm only counts the nodes and tells a job which of them is its own.
            os.mknod(folder / "devices" / f"gpu{number}", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        host = socket.gethostname().split(".")[0]
        text = CONFIG.format(host=host, folder=folder, cpus=cpus, controller=free_port(), node=free_port())
        self.config.write_text(text, encoding="utf-8")
        (folder / "gres.conf").write_text(f"Name=gpu File={folder}/devices/gpu[0-1]\n", encoding="utf-8")
        key = folder / "munge" / "key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)

    def __enter__(self) -> Cluster:
        try:
            self.start("munged", *self._munge_options())
            wait_for((self.folder / "munge" / "socket").exists, 20, "munged opens its socket")
            self.start_controller()
            self.start("slurmd", "-D", "-f", str(self.config))
            wait_for(lambda: self.run("sinfo -h -o %T").strip() == "idle", 60, f"an idle node; {self.log('slurmd')}")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if "slurmctld" in self.daemons:
            self.run("scancel --user=root", check=False)
        for name in reversed(list(self.daemons)):
            self.stop(name)

    def _munge_options(self) -> list[str]:
        folder = self.folder / "munge"
        named = {"socket": "socket", "key-file": "key", "pid-file": "pid", "seed-file": "seed", "log-file": "log"}
        return ["--foreground", "--force", *(f"--{option}={folder / name}" for option, name in named.items())]

    def start(self, name: str, *options: str) -> None:
        """Start one daemon in the foreground, in a process group of its own."""
        with (self.folder / f"{name}.log").open("ab") as log:
            self.daemons[name] = subprocess.Popen(
                [name, *options],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def start_controller(self) -> None:
        """Start slurmctld, recovering the state that an earlier one saved, and wait until it answers."""
        self.start("slurmctld", "-D", "-f", str(self.config))
        wait_for(
            lambda: "is UP" in self.run("scontrol ping", check=False), 30, f"a controller; {self.log('slurmctld')}"
        )

    def restart_controller(self, seconds_down: float = 3) -> None:
        """Stop the controller (it saves its state), leave the cluster without one for a while, and start it again."""
        self.stop("slurmctld")
        time.sleep(seconds_down)
        self.start_controller()

    def stop(self, name: str) -> None:
        """End one daemon that this object started."""
        daemon = self.daemons.pop(name)
        daemon.terminate()
        try:
            daemon.wait(timeout=20)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()

    def run(self, command: str, check: bool = True) -> str:
        """Return what a Slurm command prints. Raises RuntimeError with its message when it fails."""
        done = subprocess.run(command.split(), env=self.environment, capture_output=True, text=True, check=False)
        if check and done.returncode:
            raise RuntimeError(f"{command}: {done.stderr.strip()}\n{self.log('slurmctld')}")
        return done.stdout

    def log(self, name: str) -> str:
        """Return the end of a daemon's log."""
        path = self.folder / f"{name}.log"
        return f"{path}: " + (path.read_text(errors="replace")[-1500:] if path.exists() else "absent")

    def jobs(self) -> dict[str, str]:
        """Return the state of every job, array task by array task, by its id."""
        lines = self.run("squeue -h -r --states=all -o %i|%T").splitlines()
        return dict(line.split("|") for line in lines)
