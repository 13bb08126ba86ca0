"""The benchmark's figure and text: the kernel beside its floor and its peers."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pyarrow as pa
from matplotlib.figure import Figure

from stopwise.figures import style

PEERS = {
    "stopwise": "stopwise",
    "vmap": "torch.func (vmap of jacrev)",
    "loop": "autograd, one example at a time",
    "pairwise": "pairwise Jacobian-vector products",
}


@style.styled
def draw(floor: pa.Table, peers: pa.Table) -> Figure:
    """Draw ratio to the floor against n, and the peers' seconds at their smallest common n."""
    figure, axes = style.new_figure("two-column", height=2.6, ncols=2)
    left, right = axes[0]
    data = floor.to_pandas()
    for (method, group), color in zip(data.groupby("method"), ("blue", "orange", "green", "vermilion"), strict=False):
        one, label = group.sort_values("n"), style.plain(method, 40)
        left.plot(one["n"], one["ratio_to_floor"], marker="o", color=style.COLORS[color], label=label)
    left.axhline(1.0, color=style.COLORS["grey"], linewidth=0.8, linestyle=":")
    left.set_xlabel("examples n")
    left.set_ylabel("seconds over the bare passes")
    left.set_xticks(sorted(data["n"].unique()))
    left.set_ylim(bottom=0)
    left.legend(loc="lower right")
    rows = peers.to_pandas()
    rows = rows[rows["n"] == rows["n"].min()].sort_values("seconds", ascending=False)
    names = [PEERS.get(method, method) for method in rows["method"]]
    right.barh(names, rows["seconds"], color=style.COLORS["blue"], height=0.6)
    for y, (seconds, speedup) in enumerate(zip(rows["seconds"], rows["speedup"], strict=True)):
        right.annotate(
            f"{seconds:.1f} s ({speedup:.1f}×)", (seconds, y), (3, 0), textcoords="offset points", va="center"
        )
    right.set_xscale("log")
    right.set_xlim(1, rows["seconds"].max() * 30)
    right.set_xlabel(f"seconds at n = {rows['n'].min()} (log)")
    return figure


def markdown(
    floor: pa.Table,
    peers: pa.Table,
    errors: pa.Table,
    large: list[pa.Table],
    training: list[pa.Table],
    kinds: Mapping[str, tuple[pa.Table, pa.Table]],
) -> str:
    """Return the benchmark as Markdown tables.

    ``kinds``: of other kinds of training, by title, the kernel beside its floor, and steps beside the stock Trainer.
    """
    text = [
        *_floor(floor),
        "",
        "| n | method | best setting | seconds | times as long | peak memory | relative difference of K |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in peers.to_pylist():
        known = row["peak_gib"] is not None and math.isfinite(row["peak_gib"])
        memory = f"{row['peak_gib']:.2f} GiB" if known else "-"
        error = "-" if row["method"] in ("stopwise", "pairwise") else f"{row['error']:.1e}"
        text.append(
            f"| {row['n']} | {PEERS.get(row['method'], row['method'])} | {row['setting'] or '-'} |"
            f" {row['seconds']:.1f} | {row['speedup']:.2f} | {memory} | {error} |"
        )
    text += ["", *_head("kernel", "schedule", "relative error of fp32")]
    for row in errors.to_pylist():
        text.append(f"| {row['kernel']} | {row['schedule']} | {row['error']:.1e} |")
    shards = [row for table in large for row in table.to_pylist()]
    minutes = sum(row["seconds"] for row in shards) / 60
    peak = max(row["peak_gib"] for row in shards)
    text += [
        "",
        f"A kernel of n = {shards[0]['n']:,} in {len(shards)} shards, one after another: {minutes:.1f} minutes in all,"
        f" at most {peak:.1f} GiB a process.",
    ]
    text += ["", *_training(training)]
    for title, (bare, steps) in kinds.items():
        text += ["", f"## {title}", "", *_floor(bare), "", *_training([steps])]
    return "\n".join(text) + "\n"


def _floor(table: pa.Table) -> list[str]:
    """Return the lines on the kernel beside its floor."""
    lines = _head("n", "schedule", "seconds", "floor, seconds", "ratio", "peak memory above the model")
    for row in table.to_pylist():
        lines.append(
            f"| {row['n']} | {row['method'].split(', ')[-1]} | {row['seconds']:.1f} | {row['floor_seconds']:.1f} |"
            f" {row['ratio_to_floor']:.2f} | {row['peak_gib']:.2f} GiB |"
        )
    return lines


def _training(tables: list[pa.Table]) -> list[str]:
    """Return the lines on training steps beside the stock Trainer."""
    rows = [row for table in tables for row in table.to_pylist()]
    first = rows[0]
    lines = [
        f"Training steps on prompts of {first['tokens']:.0f} tokens on average, squared loss and heavy ball on the same"
        " parameters in the same order; the difference is between the two displacements:",
        "",
        *_head("threads", "batch", "method", "examples a second", "times the stock Trainer", "difference"),
    ]
    for row in rows:
        name = {"transformers": "stock transformers Trainer"}.get(row["method"], row["method"])
        lines.append(
            f"| {row['threads']} | {row['batch_size']} | {name} | {row['examples_per_second']:.1f} |"
            f" {row['ratio']:.2f} | {row['difference']:.1e} |"
        )
    return lines


def _head(*names: str) -> list[str]:
    return ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
