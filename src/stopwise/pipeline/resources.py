"""Memory, time and threads that jobs ask for: of those on a kernel's matrix by its size."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from stopwise.linearized.coding import columns
from stopwise.tasks.builtin import BUILTIN_TASKS, MODEL_WHEELS

Config = Mapping[str, Any]

CLASSES = 10  # assumed of a task whose labels only its file tells
DECOMPOSITION = 25  # operations of an eigendecomposition with vectors, times m^3
SPEED = 1e10  # operations a second of a decomposition on one slow core
FOLDS = 10  # refits of a rule that leaves examples out


def kernel_rows(config: Config, task: str, examples: int | None = None) -> int:
    """Return the rows of a task's kernel of ``examples`` training examples, by default of the largest size."""
    own = {**BUILTIN_TASKS.get(task, {}), **(config["tasks"][task] or {})}
    words = own.get("verbalizers")
    classes = len(words) if isinstance(words, Mapping) else CLASSES
    return (max(config["sizes"]) if examples is None else examples) * columns(classes, config["kernel"]["outputs"])


def kernel_mb(config: Config, task: str) -> float:
    """Return the size of K(train, train) and K(held out, train) in MB."""
    rows = kernel_rows(config, task)
    held_out = kernel_rows(config, task, config["data"]["validation"] + config["data"]["test"])
    return 8e-6 * rows * (rows + held_out)


def memory_mb(config: Config, task: str, copies: float, least: int) -> int:
    """Return the memory of a job that holds so many copies of the kernel at once: at least ``least`` MB."""
    return max(least, math.ceil(least / 2 + copies * kernel_mb(config, task)))


def minutes(config: Config, task: str, decompositions: float, least: int) -> int:
    """Return the time of a job that decomposes the kernel of every size so many times: ``least`` minutes and more."""
    cubes = sum(float(kernel_rows(config, task, n)) ** 3 for n in config["sizes"])
    return least + math.ceil(decompositions * DECOMPOSITION * cubes / SPEED / 60)


def network_threads(config: Config, jobs: int) -> int:
    """Return the threads of a job that runs the network, of so many: one of a built-in model if there are several.

    Otherwise two. Built-in models are small: two jobs of a thread each are faster than one after the other on both. It
    depends on the configuration alone, since the last bits of a result depend on the threads.
    """
    source = config["model"]["source"]
    small = source.startswith("pico-") or source in MODEL_WHEELS
    return 1 if small and jobs > 1 else 2
