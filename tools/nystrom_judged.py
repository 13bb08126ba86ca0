"""Judge the kernel made from some of its columns beside the whole kernel, on a real network.

    python tools/nystrom_judged.py                      the kernel, every rank and seed that is missing, the record
    python tools/nystrom_judged.py --record-only        the record of what is finished

The network is the built-in encoder under a new head for two classes, the examples 1,024 movie reviews of at most 48
tokens, the trained weights those of attention. The whole kernel is computed once and kept under results/nystrom, and so
is every answer, so that a run that was stopped goes on where it was. Pivots are drawn and columns taken as
`stopwise.kernel.by_columns` does; columns come from the kept kernel instead of from new passes, which is the same to
rounding. Rules follow descent at 1/lambda_1 of the whole kernel. The record is docs/records/nystrom.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stopwise.linearized.decay import decay_fit
from stopwise.linearized.filters import GradientDescent
from stopwise.linearized.nystrom import pivoted_cholesky
from stopwise.linearized.spectrum import Spectrum
from stopwise.stopping.known import BeforeTraining
from stopwise.stopping.registry import PREDICTED
from stopwise.stopping.stops import Stop, stops, time_grid

ROOT = Path(__file__).resolve().parents[1]
KEPT = ROOT / "results" / "nystrom"
RECORD = ROOT / "docs" / "records" / "nystrom"
TASK, EXAMPLES, TOKENS = "movie", 1024, 48
RANKS, SEEDS = (32, 64, 128, 256, 512), (0, 1, 2)
LAST, POINTS, TOP = 20_000, 300, 10
# What stands for the whole kernel: K~ alone, or with the diagonal of what it leaves out.
FORMS = {"columns": False, "columns_and_diagonal": True}
Row = dict[str, Any]


def computed(assets: Path, threads: int) -> dict[str, np.ndarray]:
    """Return the whole kernel, f0, the targets and the seconds that the kernel took."""
    import torch

    from stopwise.kernel.ntk import empirical_ntk
    from stopwise.linearized.coding import targets
    from stopwise.network.loading import load_model
    from stopwise.tasks.batch import batch_from_table
    from stopwise.tasks.head import head_task

    torch.set_num_threads(threads)
    sizes = {"max_tokens": TOKENS, "train": EXAMPLES, "validation": 2, "test": 2}
    task = head_task({}, sizes, name=TASK, assets=assets)
    model, tokenizer = load_model("minilm", assets=assets, num_labels=len(task.verbalizers))
    batch = batch_from_table(task.sample(tokenizer), "train")
    began = time.perf_counter()
    found = empirical_ntk(model, batch, parameters="attention", by="total", memory_gb=4.0, progress=True)
    seconds = time.perf_counter() - began
    y = targets(batch["labels"].numpy(), len(task.verbalizers))
    tokens = float(batch["attention_mask"].sum() / EXAMPLES)
    return {"matrix": found.matrix, "outputs": found.outputs, "targets": y, "cost": np.array([seconds, tokens])}


def kernel(assets: Path, threads: int) -> dict[str, np.ndarray]:
    """Return the kept kernel, computed when there is none."""
    path = KEPT / "kernel.npz"
    if not path.is_file():
        KEPT.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part.npz")
        np.savez(part, **computed(assets, threads))
        os.replace(part, path)
    with np.load(path) as found:
        return dict(found)


def answers(spec: Spectrum, known: dict[str, np.ndarray], rate: float) -> dict[str, Stop]:
    """Return the stop of every rule on a spectrum, at one learning rate."""
    y = known["targets"]
    times = time_grid(LAST, POINTS)
    run = BeforeTraining(spec, y - known["outputs"], GradientDescent(rate), LAST, times=times, targets=y)
    return {stop.rule: stop for stop in stops(run, PREDICTED)}


def exponent(eigenvalues: np.ndarray) -> float:
    """Return the exponent of a power law."""
    return decay_fit(eigenvalues, kind="power").exponent


def judged(rank: int, seed: int, known: dict[str, np.ndarray], whole: Spectrum, best: dict[str, Stop]) -> Row:
    """Return what the kernel of ``rank`` columns says beside the whole one."""
    k, exact = known["matrix"], whole.eigenvalues[: whole.degrees]
    found = pivoted_cholesky(np.diag(k), lambda rows: k[:, rows], rank, seed=seed)
    near = found.eigenvalues(intercept=True)
    row: Row = {"rank": rank, "seed": seed, "left": found.left / found.trace, "forms": {}}
    row |= {"exponent": exponent(near), "exponent_whole": exponent(exact), "exponent_same": exponent(exact[:rank])}
    for name, diagonal in FORMS.items():
        spec = found.spectrum(intercept=True, diagonal=diagonal)
        off = np.abs(spec.eigenvalues[: whole.degrees] - exact)
        assert off.max() <= spec.bound * (1 + 1e-9) + 1e-12 * exact[0]  # the certificate, and rounding
        form: Row = {"bound": spec.bound / exact[0], "largest_error": float(off.max()) / exact[0]}
        form |= {"top_error": float((off / exact)[:TOP].max()), "rules": {}}
        for rule, stop in answers(spec, known, 1 / whole.lambda_max).items():
            form["rules"][rule] = {"t": stop.t, "cost": cost(stop.t, best["loo"])}
        row["forms"][name] = form
    return row


def cost(t: int | None, left_out: Stop) -> float | None:
    """Return the whole kernel's error on examples left out at a step over its least, minus 1; None without a step."""
    return None if t is None else float(np.interp(t, left_out.times, left_out.curve) / left_out.curve.min() - 1)


def run(assets: Path, threads: int) -> None:
    """Judge every rank and seed that is not judged yet."""
    known = kernel(assets, threads)
    wanted = [(rank, seed) for rank in RANKS for seed in SEEDS if not kept(rank, seed).is_file()]
    if not wanted and (KEPT / "whole.json").is_file():
        return
    whole = Spectrum.of(known["matrix"], intercept=True)
    best = answers(whole, known, 1 / whole.lambda_max)
    facts = {"seconds": float(known["cost"][0]), "tokens": float(known["cost"][1]), "threads": threads}
    facts |= {"rules": {rule: {"t": stop.t, "cost": cost(stop.t, best["loo"])} for rule, stop in best.items()}}
    facts |= {"ends": [cost(t, best["loo"]) for t in (0, LAST)]}
    if not (KEPT / "whole.json").is_file():
        write(KEPT / "whole.json", facts)
    for rank, seed in wanted:
        began = time.perf_counter()
        write(kept(rank, seed), judged(rank, seed, known, whole, best))
        print(f"rank {rank}, seed {seed}: {time.perf_counter() - began:.0f} s", flush=True)


def kept(rank: int, seed: int) -> Path:
    """Return the file of one answer."""
    return KEPT / f"rank{rank}-seed{seed}.json"


def write(path: Path, found: Row) -> None:
    """Write JSON, whole or not at all."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(found), encoding="utf-8")
    os.replace(part, path)


def record() -> None:
    """Write the tables of all finished answers, and their page."""
    found = [json.loads(kept(rank, seed).read_text("utf-8")) for rank in RANKS for seed in SEEDS if _there(rank, seed)]
    whole = json.loads((KEPT / "whole.json").read_text("utf-8"))
    kernels, chosen = [], []
    for row in found:
        for form, values in row["forms"].items():
            facts = {"rank": row["rank"], "seed": row["seed"], "form": form}
            shares = {key: row[key] for key in ("left", "exponent", "exponent_same", "exponent_whole")}
            kernels.append(facts | shares | {key: values[key] for key in ("bound", "largest_error", "top_error")})
            for rule, answer in values["rules"].items():
                of_all = {f"{key}_whole": value for key, value in whole["rules"][rule].items()}
                chosen.append(facts | {"rule": rule} | answer | of_all)
    RECORD.mkdir(parents=True, exist_ok=True)
    for name, rows in (("kernels", kernels), ("stops", chosen)):
        part = RECORD / f"{name}.part"
        pq.write_table(pa.Table.from_pylist(rows), part)
        os.replace(part, RECORD / f"{name}.parquet")
    (RECORD / "README.md").write_text(page(kernels, chosen, whole), encoding="utf-8")


def _there(rank: int, seed: int) -> bool:
    return kept(rank, seed).is_file()


def page(kernels: list[Row], chosen: list[Row], whole: Row) -> str:
    """Return the record as Markdown."""
    lines = [
        f"# A kernel of {EXAMPLES:,} examples from some of its columns",
        "",
        "Written by `python tools/nystrom_judged.py`.",
        f"The built-in encoder under a new head of two classes, attention weights, {EXAMPLES:,} movie reviews of"
        f" {whole['tokens']:.0f} tokens on average.",
        f"The whole kernel took {whole['seconds'] / 60:.1f} minutes of {whole['threads']} thread(s).",
        f"Every number is the median over {len(SEEDS)} draws of the pivots, and of steps also their range.",
        "Errors and the certificate are in units of the largest eigenvalue.",
        "",
        eigenvalue_table(kernels),
        "",
        "Stops under squared loss, in steps of descent, and what they cost: the squared error there on examples left"
        " out, by the whole kernel, over its least, minus 1.",
        f"No step at all costs {100 * whole['ends'][0]:.0f} %, {LAST:,} steps {100 * whole['ends'][1]:.0f} %.",
        "",
        *(line for form in FORMS for line in (f"{TITLES[form]}:", "", stop_table(chosen, form, whole), "")),
    ]
    return "\n".join(lines).rstrip() + "\n"


TITLES = {"columns": "The columns alone", "columns_and_diagonal": "With the diagonal of what they leave out"}


def eigenvalue_table(kernels: list[Row]) -> str:
    """Return what each rank says of the eigenvalues."""
    head = ["columns", "trace left out", "certificate", "largest error", "largest error with the diagonal"]
    head += [f"largest relative error of the first {TOP}", "exponent", "of the whole kernel, as many", "all of it"]
    lines = [head, ["---"] * len(head)]
    for rank in RANKS:
        own = [row for row in kernels if row["rank"] == rank]
        if not own:
            continue
        first, second = ([row for row in own if row["form"] == form] for form in FORMS)
        errors = [(first, "bound"), (first, "largest_error"), (second, "largest_error"), (first, "top_error")]
        parts = [str(rank), f"{100 * _median(first, 'left'):.0f} %"]
        parts += [f"{_median(rows, key):.2g}" for rows, key in errors]
        parts += [f"{_median(first, key):.2f}" for key in EXPONENTS]
        lines.append(parts)
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


EXPONENTS = ("exponent", "exponent_same", "exponent_whole")


def stop_table(chosen: list[Row], form: str, whole: Row) -> str:
    """Return the stops of every rule by rank."""
    rules = [rule for rule, answer in whole["rules"].items() if answer["t"] is not None]
    lines = [["columns", *(f"`{rule}`" for rule in rules)], ["---"] * (1 + len(rules))]
    for rank in RANKS:
        own = [row for row in chosen if row["rank"] == rank and row["form"] == form]
        if own:
            lines.append([str(rank), *(_stops([row for row in own if row["rule"] == rule]) for rule in rules)])
    lines.append([f"all {EXAMPLES:,}", *(_stops([whole["rules"][rule]]) for rule in rules)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _stops(rows: list[Row]) -> str:
    steps = [row["t"] for row in rows if row["t"] is not None]
    if len(steps) < len(rows):
        return f"no answer in {len(rows) - len(steps)} of {len(rows)}"
    around = "" if min(steps) == max(steps) else f" ({min(steps)} to {max(steps)})"
    return f"{np.median(steps):.0f}{around}, {100 * _median(rows, 'cost'):.1f} %"


def _median(rows: list[Row], key: str) -> float:
    return float(np.median([row[key] for row in rows]))


def main() -> None:
    """Read the command line, judge what is missing, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--assets", type=Path, default=ROOT / "results" / "assets", help="folder of fetched wheels")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--record-only", action="store_true", help="judge nothing more")
    given = parser.parse_args()
    if not given.record_only:
        run(given.assets, given.threads)
    if not (KEPT / "whole.json").is_file():
        raise SystemExit(f"nystrom_judged: {KEPT} holds no finished answer; leave --record-only out")
    record()


if __name__ == "__main__":
    main()
