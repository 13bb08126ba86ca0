"""A kernel that two processes compute together is the kernel of one, to the last bit."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import kernel_ranks
from kernel_reference import pico, prompts, relative
from stopwise.kernel.ntk import empirical_ntk
from warm import executable


@pytest.mark.slow
def test_two_processes_give_the_bits_of_one(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    common |= {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [executable(), str(Path(kernel_ranks.__file__)), str(tmp_path / "both.npz")]
    started = [subprocess.Popen(command, env=common | {"RANK": str(rank)}) for rank in range(2)]
    wanted = kernel_ranks.kernels()
    try:
        assert [process.wait(timeout=120) for process in started] == [0, 0]
    finally:
        for process in started:
            process.kill()
    found = np.load(tmp_path / "both.npz")
    assert set(found.files) == set(wanted)
    summed = {name for name in found.files if name.startswith("total/")}
    assert [name for name in found.files if name not in summed and not np.array_equal(found[name], wanted[name])] == []
    assert {name.split("/")[1] for name in summed} == {"matrix", "outputs", "norms", "moments"}
    # One process adds a layer's modules up as it forms them, two add modules: float64 sums in another order. Norms are
    # there differences of sums of squares, and lose a few digits.
    for name in summed:
        assert relative(found[name], wanted[name]) < (1e-6 if "/norms/" in name else 1e-12), name


def test_one_process_alone_is_told_how_to_start_several():
    with pytest.raises(ValueError, match=r"torch.distributed is not initialised; call .* torchrun"):
        empirical_ntk(pico("gpt2", torch.float32), prompts([3, 4]), over_ranks=True)
