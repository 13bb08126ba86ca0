"""One of several processes that compute a kernel together, for ``test_ranks.py``: the first one writes it."""

import sys

import numpy as np
import torch
import torch.distributed as dist

from kernel_reference import pico, prompts
from stopwise.kernel.ntk import empirical_ntk

LENGTHS = [5, 9, 3, 7, 9, 4, 6]


def kernels(**options):
    """Return kernels of a few ways through the engine, by name."""
    model, batch = pico("gpt2", torch.float32), prompts(LENGTHS)
    found = {}
    targets = {"a": np.random.default_rng(0).normal(size=(len(LENGTHS), 2))}
    ways = {
        "all": {"parameters": "all"},
        "swept": {"memory_gb": 0.0, "by": "module"},
        "total": {"memory_gb": 0.0, "by": "total", "targets": targets},
    }
    for name, own in ways.items():
        one = empirical_ntk(model, batch, tokens_per_batch=14, **own, **options)
        found |= {f"{name}/matrix": one.matrix, f"{name}/outputs": one.outputs}
        found |= {f"{name}/norms/{module}": norms for module, norms in one.row_norms.items()}
        found |= {f"{name}/part/{part}": matrix for part, matrix in one.by_layer.items()}
        found |= {f"{name}/moments/{layer}": told for layer, told in one.moments.items()}
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    both = kernels(over_ranks=True)
    if dist.get_rank() == 0:
        np.savez(sys.argv[1], **both)
    dist.destroy_process_group()
