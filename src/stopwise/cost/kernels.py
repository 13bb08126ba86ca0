"""What a configuration's kernels will cost, from the model's configuration file alone: no weights are loaded."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stopwise.artifacts.block_pairs import pair_jobs
from stopwise.artifacts.block_pairs import repeats as repeats_of
from stopwise.assets.wheels import ASSETS
from stopwise.cost.estimate import DEVICES, estimate, gpt_neo_1_3b, skeleton
from stopwise.network.adapters import is_peft, with_adapter
from stopwise.pipeline.config import start_tasks
from stopwise.tasks.builtin import BUILTIN_TASKS
from stopwise.tasks.definition import AUTO
from stopwise.tasks.task import Task

GPT_NEO = "EleutherAI/gpt-neo-1.3B"


def model_skeleton(model: Mapping[str, Any], assets: str) -> Any:
    """Return the configured model without memory behind its weights.

    Its configuration comes from a local folder, a prepared model, or (GPT-Neo-1.3B, the paper's model) from this
    package. Raises ValueError when it is nowhere on this machine.
    """
    from transformers import AutoConfig

    source = model["source"]
    if source == GPT_NEO:
        return skeleton(gpt_neo_1_3b())
    for folder in (Path(source), Path(assets) / "models" / source, Path(assets) / "models" / source.replace("/", "--")):
        if (folder / "config.json").is_file():
            return skeleton(AutoConfig.from_pretrained(folder, local_files_only=True))
    raise ValueError(
        f"model.source: the configuration of {source!r} is not on this machine yet; run"
        " `snakemake --cores 1 --until prepare_model` with the same --configfile first (a network is needed once)"
    )


def class_counts(tasks: Mapping[str, Mapping[str, Any] | None], assets: str = ASSETS) -> dict[str, int]:
    """Return the number of classes of each configured task; the file of a task without words is read for them."""
    counts = {}
    for name, own in tasks.items():
        definition = {**BUILTIN_TASKS.get(name, {}), **(own or {})}
        words = definition.get("verbalizers")
        if words in (None, AUTO):  # the labels of the file are the classes
            counts[name] = len(Task.from_config({**definition, "name": name}, assets=assets).classes.labels)
        else:
            counts[name] = len(words)
    return counts


def plan_rows(config: Mapping[str, Any], assets: str) -> list[dict[str, Any]]:
    """Return the estimate of every task's kernel here and on data-sheet GPUs: rows of the ``plan`` artifact."""
    model = model_skeleton(config["model"], assets)
    kernel, data = config["kernel"], config["data"]
    parameters = kernel["parameters"]
    if is_peft(parameters):
        model, parameters = with_adapter(model, parameters["peft"] or {}), "trainable"
    rows = []
    for device in (None, *DEVICES.values()):
        for task, classes in class_counts(config["tasks"], assets).items():
            row = estimate(
                model,
                max(config["sizes"]),
                data["max_tokens"],
                classes,
                data["validation"] + data["test"],
                parameters,
                kernel["outputs"],
                kernel["shards"],
                device,
                kernel["memory_gb"],
                blocks=kernel.get("blocks", 1),
                adam=kernel["formula"] == "adam",
                processes=kernel.get("processes", 1),
            )
            rows.append({"what": task, **row})
    return rows


def markdown(config: Mapping[str, Any], rows: list[dict[str, Any]]) -> str:
    """Return the plan as text: one line per task and device, and the total for all starts and seeds."""
    # Kernels of each task: one a seed and start.
    repeats = dict.fromkeys(config["tasks"], 0)
    for task in itertools.chain.from_iterable(start_tasks(config).values()):
        repeats[task] += len(config["seeds"])
    counted = ", ".join(map(str, sorted(set(repeats.values()))))
    blocks = config["kernel"].get("blocks", 1)
    each = f"{config['kernel']['shards']} shard(s) each"
    if blocks > 1:
        each = f"{len(pair_jobs(blocks))} job(s) each, of two of {blocks} blocks of examples"
    processes = config["kernel"].get("processes", 1)
    each += f", shared by {processes} processes" if processes > 1 else ""
    one = "process" if processes > 1 else "shard"
    text = [
        f"# Plan of {config['name']}: {counted} kernel(s) per task, {each}",
        "",
        f"| task | device | speeds | schedule | seconds per shard | peak GB per {one} | stored Jacobian GB |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        text.append(
            f"| {row['what']} | {row['device']} | {row['speeds']} | {row['schedule']} | {row['seconds']:.1f} |"
            f" {row['peak_gb']:.2f} | {row['stored_jacobian_gb']:.1f} |"
        )
    text.append("")
    for device in dict.fromkeys(row["device"] for row in rows):
        own = [row for row in rows if row["device"] == device]
        hours = sum(device_seconds(row) * repeats[row["what"]] for row in own) / 3600
        text.append(f"All kernels on {device}: at most {hours:.2f} device hours (every shard counted as the slowest).")
    if processes > 1:
        text += _of_processes(rows)
    if blocks > 1:
        train, new = repeats_of(blocks)
        text.append(f"In all jobs of a kernel a training example runs {train} times, a new one {new} times.")
    if (blocks > 1 or processes > 1) and config["kernel"]["formula"] == "adam":
        once = "process" if processes > 1 else "job"
        text.append(f"The gradients of all training examples, which AdamW's kernel needs, are counted once a {once}.")
    return "\n".join(text) + "\n"


def device_seconds(row: Mapping[str, Any]) -> float:
    """Return the seconds of all jobs of one kernel, on each of the devices that a job takes."""
    return row["seconds"] * row["shards"] * row["devices"]


def _of_processes(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what there is to say of processes that share a job."""
    text = ["Processes take a GPU each; on a CPU they share its threads and its memory, and gain no time."]
    for row in rows:
        if row["peak_gb"] > row["room_gb"]:
            text.append(
                f"{row['what']} on {row['device']}: a process may use {row['room_gb']:.2f} GB and needs more. Examples"
                " are not cut into tiles there: raise kernel.memory_gb where the memory is, or kernel.blocks."
            )
    return text
