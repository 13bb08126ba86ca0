"""The device lease: different devices for jobs side by side, freed by SIGKILL, inside what the environment allows."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time

import pytest

from stopwise.pipeline import devices

HOLDER = """
import sys, time
from stopwise.pipeline.devices import lease_device
lease = lease_device(count=int(sys.argv[2]), patience=float(sys.argv[1]))
assert "torch" not in sys.modules
import os
print(lease and lease.device, os.environ.get("CUDA_VISIBLE_DEVICES"), lease is not None and bool(lease.locks),
      flush=True)
time.sleep(60)
"""


@pytest.fixture
def jobs(tmp_path):
    """Start real processes that lease a device and hold it; return their first line; end them all."""
    started = []

    def start(patience="20", count=1, **environment):
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "CUDA_", "STOPWISE_"))}
        clean |= {"TMPDIR": str(tmp_path), **environment}
        command = [sys.executable, "-c", HOLDER, patience, str(count)]
        job = subprocess.Popen(command, env=clean, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        started.append(job)
        return job

    yield start
    for job in started:
        job.kill()
        job.communicate()


def said(job):
    line = job.stdout.readline()
    assert line, job.stderr.read()
    return line.split()


def test_four_jobs_on_four_devices_hold_four_different_ones(jobs):
    running = [jobs(STOPWISE_DEVICES="a,b,c,d") for _ in range(4)]
    held = [said(job) for job in running]
    assert sorted(device for device, _, _ in held) == ["a", "b", "c", "d"]
    assert all(device == visible and locked == "True" for device, visible, locked in held)


def test_a_fifth_job_waits_and_takes_the_device_of_one_that_is_killed(jobs):
    running = {said(job)[0]: job for job in [jobs(STOPWISE_DEVICES="a,b,c,d") for _ in range(4)]}
    fifth = jobs(STOPWISE_DEVICES="a,b,c,d")
    time.sleep(1.0)
    os.set_blocking(fifth.stdout.fileno(), False)
    assert not fifth.stdout.readline()
    os.set_blocking(fifth.stdout.fileno(), True)
    running["c"].send_signal(signal.SIGKILL)
    assert said(fifth)[0] == "c"


def test_impatience_ends_with_the_devices_named(jobs):
    said(jobs(STOPWISE_DEVICES="a"))
    second = jobs(patience="0.5", STOPWISE_DEVICES="a")
    assert second.wait(timeout=20) != 0
    assert "no free device among a within 0.5 s" in second.stderr.read()


def test_two_jobs_that_each_want_two_devices_hold_two_different_ones_and_a_third_waits_for_both(jobs):
    running = {said(job)[0]: job for job in [jobs(count=2, STOPWISE_DEVICES="a,b,c,d,e") for _ in range(2)]}
    assert len({device for pair in running for device in pair.split(",")}) == 4
    third = jobs(count=2, STOPWISE_DEVICES="a,b,c,d,e")
    time.sleep(0.6)
    # It holds nothing while it waits: the device that is left goes to a job that needs one.
    (left,) = set("abcde") - {device for pair in running for device in pair.split(",")}
    assert said(jobs(STOPWISE_DEVICES="a,b,c,d,e"))[0] == left
    pair, job = running.popitem()
    job.send_signal(signal.SIGKILL)
    assert said(third)[0] == pair


def test_two_jobs_that_each_want_all_devices_take_turns(tmp_path):
    """All or none, in one order: neither keeps a device that the other waits for."""
    environment = {devices.MADE_UP: "a,b"}
    first = devices.lease_device(dict(environment), count=2, folder=tmp_path, patience=0)
    with pytest.raises(TimeoutError, match="no 2 free devices among a, b"):
        devices.lease_device(dict(environment), count=2, folder=tmp_path, patience=0)
    first.release()
    second = devices.lease_device(environment, count=2, folder=tmp_path, patience=0)
    assert second.device == environment[devices.VISIBLE] == "a,b"
    second.release()


def test_more_devices_than_there_are_is_an_error_at_once(tmp_path):
    with pytest.raises(ValueError, match=r"kernel.processes: 3 processes .* here there is a, b; allowed: at most 2"):
        devices.lease_device({devices.MADE_UP: "a,b"}, count=3, folder=tmp_path)


def test_only_visible_devices_are_leased(jobs):
    running = [jobs(CUDA_VISIBLE_DEVICES="3,GPU-5e1f", STOPWISE_DEVICES="0,1,2,3,4") for _ in range(2)]
    assert sorted(said(job)[0] for job in running) == ["3", "GPU-5e1f"]


def test_no_visible_device_means_no_lease(jobs):
    assert said(jobs(CUDA_VISIBLE_DEVICES="", STOPWISE_DEVICES="a")) == ["None", "False"]


def test_the_one_device_that_slurm_gave_needs_no_lease(jobs, tmp_path):
    # Device numbers may count within a job: both jobs see "0", and neither may wait for the other.
    running = [jobs(SLURM_JOB_ID=job, CUDA_VISIBLE_DEVICES="0") for job in ("11", "12")]
    assert [said(job) for job in running] == [["0", "0", "False"]] * 2
    assert not list(tmp_path.iterdir())


def test_several_devices_of_one_slurm_job_are_shared_within_it(jobs):
    running = [jobs(SLURM_JOB_ID=job, CUDA_VISIBLE_DEVICES="0,1") for job in ("11", "11", "12", "12")]
    held = [said(job)[0] for job in running]
    assert sorted(held[:2]) == sorted(held[2:]) == ["0", "1"]


def test_a_released_device_can_be_leased_again(tmp_path):
    for _ in range(2):
        environment = {devices.MADE_UP: "a"}
        lease = devices.lease_device(environment, folder=tmp_path, patience=0)
        assert environment[devices.VISIBLE] == "a"
        lease.release()


def test_the_list_stops_where_cuda_stops_reading_it():
    assert devices.devices({"CUDA_VISIBLE_DEVICES": "2,2,-1,0"}) == ["2"]


def test_device_nodes_are_listed_by_number(tmp_path):
    for name in ("nvidia10", "nvidia2", "nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / name).touch()
    assert devices._device_nodes(tmp_path) == ["2", "10"]


def test_the_locks_of_a_stranger_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = devices.lease_folder({})
    assert folder.stat().st_mode & 0o777 == 0o700
    stranger = os.getuid() + 1
    folder.rename(re.sub(r"devices-\d+-", f"devices-{stranger}-", str(folder)))
    monkeypatch.setattr(os, "getuid", lambda: stranger)
    with pytest.raises(OSError, match="belongs to another user"):
        devices.lease_folder({})


def test_the_slices_of_a_gpu_are_leased_one_by_one(tmp_path, monkeypatch):
    listed = """GPU 0: NVIDIA H200 (UUID: GPU-11aa)
  MIG 1g.18gb     Device  0: (UUID: MIG-22bb)
  MIG 1g.18gb     Device  1: (UUID: MIG-33cc)
GPU 1: NVIDIA H200 (UUID: GPU-44dd)
"""
    driver = tmp_path / "nvidia-smi"
    driver.write_text(f"#!/bin/sh\ncat <<'END'\n{listed}END\n")
    driver.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert devices.devices({}) == ["MIG-22bb", "MIG-33cc", "GPU-44dd"]
