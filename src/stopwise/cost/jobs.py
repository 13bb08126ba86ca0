"""How many jobs a configuration has, and what those that run the network will take: counted, with nothing loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stopwise.artifacts.block_pairs import pair_jobs
from stopwise.cost.estimate import Counts, Device
from stopwise.cost.kernels import device_seconds
from stopwise.pipeline.config import start_tasks

Row = dict[str, Any]
Config = Mapping[str, Any]
# Forward, the gradients of the activations, and those of the trained weights (counted by their share).
PASSES_OF_A_GRADIENT = 2.0
FLOAT = 4


def job_counts(config: Config) -> dict[str, int]:
    """Return how many jobs of each rule that runs the network, or tokenises, a run from nothing has."""
    runs = sum(len(tasks) for tasks in start_tasks(config).values()) * len(config["seeds"])
    asked, merged = config["arithmetic"], _merged(config)
    pairs = len(asked["seeds"]) if merged else 0
    followed = sum(len(tasks) for tasks in start_tasks(config).values()) * len(config["drift"]["seeds"])
    blocks = config["kernel"].get("blocks", 1)
    together = len(start_tasks(config).get("pretrained", [])) > 1 and config["joint"]["enabled"]
    counts = {
        "data": len(config["tasks"]) * len(config["seeds"]),
        "jacobian": runs * (len(pair_jobs(blocks)) if blocks > 1 else config["kernel"]["shards"]),
        "finetune": runs,
        "arithmetic": pairs,
        "task_kernels": pairs * asked["shards"] if asked["predict"] else 0,
        "tangent_arithmetic": pairs if asked["tangent"] else 0,
        "drift": followed if config["drift"]["enabled"] else 0,
        "joint": len(config["joint"]["seeds"]) if together else 0,
    }
    return {rule: count for rule, count in counts.items() if count}


def _merged(config: Config) -> list[str]:
    """Return the tasks whose vectors are combined; none when arithmetic does not run."""
    tasks = start_tasks(config).get("pretrained", [])
    return tasks if config["arithmetic"]["enabled"] and len(tasks) > 1 else []


def finetune_operations(config: Config, counts: Counts) -> float:
    """Return the multiply-adds of one fine-tuning job: gradients and evaluations at every size."""
    data, section = config["data"], config["finetune"]
    tokens = data["max_tokens"]
    forward = counts.forward + counts.score * tokens
    held_out = data["validation"] + data["test"]
    total = 0.0
    for n in config["sizes"]:
        batch = min(section["batch_size"] or n, n)
        gradients = section["steps"] * batch * tokens * (PASSES_OF_A_GRADIENT * forward + counts.selected)
        every = section["evaluate_every"] if section["evaluate_every"] >= 1 else section["evaluate_every"] * n / batch
        evaluations = section["steps"] / max(every, 1.0) + 1
        total += gradients + evaluations * (n + held_out) * tokens * forward
    return total


def arithmetic_operations(config: Config, counts: Counts) -> float:
    """Return the multiply-adds of one arithmetic job: held-out examples for every pair, negation and coefficient."""
    data, k = config["data"], len(_merged(config))
    forward = counts.forward + counts.score * data["max_tokens"]
    models = len(config["arithmetic"]["coefficients"])
    evaluated = models * (k * (k - 1) + k * k) + 2 * k  # two tasks a pair, all tasks a negation, and the baselines
    return evaluated * (data["validation"] + data["test"]) * data["max_tokens"] * forward


def job_rows(config: Config, counts: Counts, kernels: Sequence[Row], devices: Sequence[Device]) -> list[Row]:
    """Return one row for each rule and device: jobs, device hours of all of them, and the memory of one, in GB.

    ``kernels``: the rows of ``kernel_plan.plan_rows``. Fine-tuning and arithmetic run at the device's rate of passes;
    the hours and memory of other rules are None: nothing counts their operations.
    """
    jobs, started = job_counts(config), start_tasks(config)
    repeats = {task: sum(task in own for own in started.values()) * len(config["seeds"]) for task in config["tasks"]}
    weights, trained = counts.weights * FLOAT / 1e9, counts.selected * FLOAT / 1e9
    activations = config["data"]["max_tokens"] * counts.hidden * counts.depth * 40 * FLOAT / 1e9
    memory = {"finetune": weights + 3 * trained + 16 * activations, "arithmetic": weights + 3 * trained}
    rows: list[Row] = []
    for device in devices:
        own = [row for row in kernels if row["device"] == device.name]
        seconds = {
            "jacobian": sum(device_seconds(row) * repeats[row["what"]] for row in own),
            "finetune": jobs["finetune"] * finetune_operations(config, counts) / device.passes,
            "arithmetic": jobs.get("arithmetic", 0) * arithmetic_operations(config, counts) / device.passes,
        }
        # Of a GPU's memory that of one process, of this machine's that of all of a job.
        memory["jacobian"] = max(
            ((weights + row["peak_gb"]) * row["processes"] / row["devices"] for row in own), default=weights
        )
        for rule in jobs:
            hours = seconds[rule] / 3600 if rule in seconds else None
            found = {"hours": hours, "memory_gb": memory.get(rule)}
            rows.append({"rule": rule, "jobs": jobs[rule], "device": device.name, **found})
    return rows


def storage_gb(config: Config, counts: Counts, kernels: Sequence[Row]) -> dict[str, float]:
    """Return GB on disk: all task vectors, and what storing the Jacobian of every kernel would take instead of none."""
    started, first = start_tasks(config), kernels[0]["device"] if kernels else None
    runs = sum(len(tasks) for tasks in started.values()) * len(config["seeds"])
    stored = {row["what"]: row["stored_jacobian_gb"] for row in kernels if row["device"] == first}
    repeats = [task for tasks in started.values() for task in tasks] * len(config["seeds"])
    return {
        "task vectors": runs * len(config["sizes"]) * counts.selected * FLOAT / 1e9,
        "stored Jacobians": sum(stored[task] for task in repeats),
    }


def markdown(rows: Sequence[Row], storage: Mapping[str, float]) -> str:
    """Return the jobs and hours by rule, with a column of hours for each device, and the storage."""
    devices = list(dict.fromkeys(row["device"] for row in rows))
    text = [
        "| rule | jobs | memory a job, GB | " + " | ".join(f"hours on {name}" for name in devices) + " |",
        "|---|---|---|" + "---|" * len(devices),
    ]
    for rule in dict.fromkeys(row["rule"] for row in rows):
        own = {row["device"]: row for row in rows if row["rule"] == rule}
        hours = " | ".join(_cell(own[name]["hours"], 2) for name in devices)
        one = own[devices[0]]
        text.append(f"| {rule} | {one['jobs']} | {_cell(one['memory_gb'], 1)} | {hours} |")
    total = [sum(row["hours"] or 0.0 for row in rows if row["device"] == name) for name in devices]
    text.append("| counted | | | " + " | ".join(f"{hours:.2f}" for hours in total) + " |")
    text += [
        "",
        f"On disk: {storage['task vectors']:.1f} GB of task vectors. The Jacobians of all kernels would be"
        f" {storage['stored Jacobians']:,.0f} GB in float32; none is stored.",
        "Hours count operations at the device's speed: measured on this machine, else assumed from data sheets. Those"
        " of fine-tuning and arithmetic count the passes and nothing else: a lower bound, not checked on a GPU.",
        "A dash: not counted.",
    ]
    return "\n".join(text) + "\n"


def _cell(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
