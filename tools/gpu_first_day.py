"""The first measurements on a GPU, in one process of about 8 minutes; a rehearsal without one takes less than a minute.

    python tools/gpu_first_day.py                            # on a GPU
    SMALL=1 DEVICE=cpu python tools/gpu_first_day.py         # the rehearsal

Sections run in order of worth and end before BUDGET seconds (540) have passed. What they find goes to first_day.json in
OUT (results/gpu) as it comes, and a list of what must hold is judged at the end. Nothing is downloaded: weights are
drawn at random, in the shapes of GPT-Neo-1.3B and of a model of 135 million parameters.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from stopwise.cost.benchmark import random_batch
from stopwise.cost.estimate import gpt_neo_1_3b
from stopwise.cost.peers import floor
from stopwise.cost.training_benchmark import against_stock_trainer
from stopwise.kernel import products
from stopwise.kernel.engine import Engine
from stopwise.kernel.float32 import product_precision
from stopwise.kernel.formulas import Outer
from stopwise.kernel.ntk import empirical_ntk, kernel_layers, prepared
from stopwise.kernel.passes import Batch, Group
from stopwise.kernel.product_modes import MODES, Operand
from stopwise.network.batches import Packed
from stopwise.pipeline.devices import devices

TESTS = ("test_gram", "test_gram_subsets", "test_gram_store", "test_gram_invariance", "test_backend")


@dataclass
class Day:
    """What is measured, where, and what has been found so far."""

    device: str
    small: bool
    folder: Path
    budget: float
    began: float = field(default_factory=time.perf_counter)
    found: dict[str, Any] = field(default_factory=dict)

    @property
    def cuda(self) -> bool:
        """Whether a GPU is measured."""
        return self.device == "cuda"

    @property
    def left(self) -> float:
        """Seconds of the budget that are left."""
        return self.budget - (time.perf_counter() - self.began)

    def pick(self, small: Any, full: Any) -> Any:
        """Return the size for a rehearsal or for the day itself."""
        return small if self.small else full

    def sync(self) -> None:
        """Wait for the device."""
        if self.cuda:
            torch.cuda.synchronize()

    def clock(self, call: Callable[[], Any], repeats: int = 3, warm: int = 1) -> float:
        """Return the best seconds of a call, the device idle at both ends."""
        for _ in range(warm):
            call()
        best = float("inf")
        for _ in range(repeats):
            self.sync()
            start = time.perf_counter()
            call()
            self.sync()
            best = min(best, time.perf_counter() - start)
        return best

    @contextlib.contextmanager
    def section(self, name: str, needs: float) -> Iterator[dict[str, Any] | None]:
        """Yield a section's findings, None where its time is not left; a failure is noted and the next one goes on."""
        found = self.found.setdefault(name, {})
        if self.left < needs and not self.small:
            found["skipped"] = f"{self.left:.0f} s left, {needs:.0f} wanted"
            yield None
            return
        start = time.perf_counter()
        try:
            yield found
        except Exception as error:  # the report says what broke
            found["error"] = f"{type(error).__name__}: {error}"[:500]
            traceback.print_exc(limit=8)
        found["section_seconds"] = round(time.perf_counter() - start, 1)
        if self.cuda:
            torch.cuda.empty_cache()
        print(f"[{name}] {json.dumps(found, default=str)}", flush=True)
        self.save()

    def save(self) -> None:
        """Write what has been found."""
        self.folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.found, indent=1, default=str)
        (self.folder / "first_day.json").write_text(text, encoding="utf-8")


def distance(found: np.ndarray, exact: np.ndarray) -> float:
    """Return the relative Frobenius distance."""
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


def machine(day: Day, found: dict) -> None:
    """What is measured here, with what."""
    import transformers

    found |= {"torch": torch.__version__, "transformers": transformers.__version__, "python": sys.version.split()[0]}
    found["devices"] = devices({})
    if day.cuda:
        told, (free, total) = torch.cuda.get_device_properties(0), torch.cuda.mem_get_info()
        found |= {"name": told.name, "processors": told.multi_processor_count}
        found |= {"free_gb": free / 1e9, "total_gb": total / 1e9}


def ceilings(day: Day, found: dict) -> None:
    """The rates that nothing can exceed: products by number format and panel, copies, sorting, decompositions."""
    n = day.pick(384, 8192)
    square = torch.randn(n, n, device=day.device)
    formats = {"float32": square, "bfloat16": square.bfloat16(), "float16": square.half(), "float64": square.double()}
    for name, x in formats.items():
        found[f"{name}_tflops"] = 2 * n**3 / day.clock(lambda x=x: x @ x) / 1e12
    with product_precision(day.device, "tf32" if day.cuda else "ieee"):
        found["tf32_tflops"] = 2 * n**3 / day.clock(lambda: square @ square) / 1e12
    rows, k = day.pick(256, 10_000), day.pick(1024, 32_768)
    x = torch.randn(rows, k, device=day.device)
    for panel in day.pick((64, 256), (64, 256, 1024, 2048)):
        found[f"panel{panel}_tflops"] = 2 * panel * rows * k / day.clock(lambda p=panel: x[:p] @ x.T) / 1e12
    m = day.pick(300, 10_000)
    block = torch.randn(m, m, dtype=torch.float64, device=day.device)
    found["to_host_gb_s"] = 8e-9 * m * m / day.clock(lambda: block.to("cpu", copy=True), 2)
    order = torch.randperm(m, device=day.device)
    found["sort_s"] = day.clock(lambda: block[order][:, order], 2)
    for size in day.pick((200,), (4_000, 10_000)):
        a = block[:size, :size] @ block[:size, :size].T
        found[f"eigh_{size}_s"] = day.clock(lambda a=a: torch.linalg.eigh(a), 1, 0)


def precision(day: Day, found: dict) -> None:
    """Errors of the product modes on per-example gradients, at several lengths of a sum."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(24, 24, 576, generator=generator)
    g = torch.randn(24, 24, 576, generator=generator) * torch.rand(24, 24, 1, generator=generator) ** 8
    rows = torch.bmm(g.transpose(1, 2), a).flatten(1)
    exact = (rows.double() @ rows.double().T).numpy()
    rows, whole = rows.to(day.device), slice(0, 24)
    for mode in MODES:
        for tile in day.pick((4096,), (2048, 4096, 32_768)):
            total = torch.zeros(24, 24, dtype=torch.float64, device=day.device)
            precise = "tf32" if mode == "tf32" and day.cuda else "ieee"
            with product_precision(day.device, precise):
                for columns in products.slabs(rows.shape[1], tile):
                    total += Operand(rows[:, columns], mode).product(whole, whole)
            found[f"{mode}_sum{tile}"] = distance(total.cpu().numpy(), exact)


def papers_model(day: Day) -> Any:
    """Return a model of GPT-Neo-1.3B's shape with random weights."""
    from transformers import AutoModelForCausalLM

    config = gpt_neo_1_3b()
    if day.small:
        config.num_layers, config.hidden_size, config.num_heads = 2, 64, 4
        config.attention_types, config.attention_layers = [[["global", "local"], 1]], ["global", "local"]
        config.vocab_size = 512
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    with torch.device(day.device):
        return AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)


def engine(day: Day, found: dict, model: Any) -> None:
    """The kernel as it is: time, memory against the plan, ratio to the bare passes, and whether bits repeat."""
    for n in day.pick((4, 8), (100, 1000)):
        batch = random_batch(n, 48, model.config.vocab_size)
        with prepared(model, {"a": batch}, None, "attention", "contrast") as bare:
            found[f"n{n}_plan"] = Engine(replace(bare, pairs=[(0, 0)])).plan()
        start = _reset_peak(day)
        kept: dict[str, Any] = {}
        found[f"n{n}_seconds"] = day.clock(lambda b=batch, k=kept: k.update(K=empirical_ntk(model, b)), 1, 1)
        if day.cuda:
            found[f"n{n}_peak_gb"] = (torch.cuda.max_memory_allocated() - start) / 1e9
        bare_passes = [day.clock(lambda s=size, b=batch: floor(model, b, "contrast", s), 1) for size in (1024, 8192)]
        found[f"n{n}_ratio"] = found[f"n{n}_seconds"] / min(bare_passes)
    first = random_batch(day.pick(4, 100), 48, model.config.vocab_size)
    once = empirical_ntk(model, first).matrix
    found["same_bits_twice"] = bool((empirical_ntk(model, first).matrix == once).all())
    found["sweep_difference"] = distance(empirical_ntk(model, first, memory_gb=0.0).matrix, once)
    found["passes_difference"] = distance(empirical_ntk(model, first, tokens_per_batch=512).matrix, once)
    few = {key: value if key == "verbalizers" else value[:16] for key, value in first.items()}
    exact = empirical_ntk(model, few, dtype="float64").matrix
    found["float32_error"] = distance(once[: len(exact), : len(exact)], exact)
    for mode in MODES[2:]:
        found[f"{mode}_error"] = distance(empirical_ntk(model, few, products=mode).matrix, exact)


def _reset_peak(day: Day) -> int:
    if not day.cuda:
        return 0
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def constants(day: Day, found: dict, model: Any) -> None:
    """What the sizes meant for a GPU are worth, on a few layers."""
    batch = random_batch(day.pick(8, 1000), 48, model.config.vocab_size)
    layers = kernel_layers(model)[10:14] or kernel_layers(model)
    first = None
    kind = torch.device(day.device).type
    for panel, slab, tokens in ((64, 25, 1024), (1024, 25, 1024), (1024, 29, 1024), (1024, 29, 16_384)):
        sizes = products.Sizes(slab=1 << day.pick(25, slab), panel=panel, tokens=tokens)
        kept: dict[str, Any] = {}
        with mock.patch.dict(products.SIZES, {kind: sizes}):
            seconds = day.clock(lambda k=kept: k.update(K=empirical_ntk(model, batch, layers=layers)), 1, 0)
        first = kept["K"].matrix if first is None else first
        found[f"panel{panel}_slab2^{slab}_tokens{tokens}"] = {
            "seconds": seconds,
            "difference": distance(kept["K"].matrix, first),
        }


def profile(day: Day, found: dict, model: Any) -> None:
    """How busy the device is, and with what."""
    kinds = [torch.profiler.ProfilerActivity.CPU]
    kinds += [torch.profiler.ProfilerActivity.CUDA] if day.cuda else []
    batch = random_batch(day.pick(4, 200), 48, model.config.vocab_size)
    layers = kernel_layers(model)[-3:-1] or kernel_layers(model)
    with torch.profiler.profile(activities=kinds) as seen:
        start = time.perf_counter()
        empirical_ntk(model, batch, layers=layers)
        day.sync()
        wall = time.perf_counter() - start
    by = "self_cuda_time_total" if day.cuda else "self_cpu_time_total"
    day.folder.mkdir(parents=True, exist_ok=True)
    (day.folder / "profile.txt").write_text(seen.key_averages().table(sort_by=by, row_limit=25), encoding="utf-8")
    busy = sum(event.self_device_time_total for event in seen.key_averages()) / 1e6 if day.cuda else 0.0
    launches = sum(event.count for event in seen.key_averages() if event.key == "cudaLaunchKernel")
    found |= {"seconds": wall, "busy_share": busy / wall, "launches": launches}


def one_weight(day: Day, found: dict) -> None:
    """One weight of 2,048 x 2,048 at n = 10,000 by every mode; 96 of them make the paper's kernel."""
    n, tokens, width = day.pick((64, 6, 64), (10_000, 48, 2048))
    a = torch.randn(n, tokens, width, device=day.device)
    g = torch.randn(n, 1, tokens, width, device=day.device) / 100
    lengths = torch.full((n,), tokens)
    size = max(1, day.pick(64, 16_384) // tokens)
    ranges = tuple((start, min(start + size, n)) for start in range(0, n, size))
    packed = Packed(torch.zeros(n, tokens, dtype=torch.long), lengths, lengths - 1)
    group = Group(packed, torch.arange(n), torch.arange(2), 1, 0, ranges)
    parts = [(Batch(group, *r), Outer(a[slice(*r)], g[slice(*r)])) for r in ranges]
    exact = None
    for mode in MODES:
        layout = products.Layout((group,), ((0, 0),), products=mode)
        kept: dict[str, Any] = {}

        def run(layout: products.Layout = layout, kept: dict = kept) -> None:
            kept["blocks"] = products.Blocks(layout, torch.device(day.device))
            products.add_term(kept["blocks"], parts, factored=False)

        with torch.no_grad():
            seconds = day.clock(run, 1, 0)
            lower = torch.tril(kept["blocks"].matrices[0])
        exact = lower if exact is None else exact
        error = float((lower - exact).norm() / exact.norm())
        found[mode] = {"seconds": seconds, "kernel_minutes": seconds * 96 / 60, "from_float32": error}


def training(day: Day, found: dict) -> None:
    """A training step beside the stock Trainer, in the shape of a model of 135 million parameters."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    hidden = day.pick(96, 576)
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=hidden * 8 // 3,
        num_hidden_layers=day.pick(2, 30),
        num_attention_heads=day.pick(3, 9),
        num_key_value_heads=day.pick(1, 3),
        vocab_size=day.pick(2000, 49_152),
    )
    with torch.device(day.device):
        model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    batch = random_batch(day.pick(32, 256), 29, config.vocab_size)
    batch["labels"] = torch.arange(len(batch["input_ids"])) % 2
    rows = against_stock_trainer(model, batch, batch_size=day.pick(8, 32), steps=day.pick(3, 8))
    found |= {row["method"]: {key: value for key, value in row.items() if key != "method"} for row in rows}


def tests(day: Day, found: dict) -> None:
    """The package's own tests of the kernel, which take a GPU where there is one."""
    folder = Path(__file__).resolve().parent.parent / "tests" / "unit" / "kernel"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--maxfail=25"]
    command += [str(folder / f"{name}.py") for name in TESTS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150, check=False)
    found |= {"status": done.returncode, "tail": done.stdout.strip().splitlines()[-12:]}


def judge(day: Day) -> dict[str, bool]:
    """Return what must hold for the GPU's path to be called working, each with whether it does."""
    kernel, weight = day.found.get("engine", {}), day.found.get("one_weight", {})
    largest = day.pick(8, 1000)
    planned = kernel.get(f"n{largest}_plan", {}).get("needs_gb", 0.0)
    checks = {
        "no section failed": not [name for name, row in day.found.items() if "error" in row],
        "the float32 kernel is within 1e-5 of float64": kernel.get("float32_error", 1.0) <= 1e-5,
        "products in two halves are as exact": kernel.get("fp16x2_error", 1.0) <= 1e-5,
        "a kernel has the same bits twice": bool(kernel.get("same_bits_twice")),
        "recomputed activations give the same within 1e-5": kernel.get("sweep_difference", 1.0) <= 1e-5,
    }
    if day.cuda:
        checks["the peak is within the plan"] = kernel.get(f"n{largest}_peak_gb", 1e9) <= 1.1 * planned
        checks["the package's own tests pass"] = day.found.get("tests", {}).get("status") == 0
        checks["halves are faster than float32"] = weight.get("fp16x2", {}).get("seconds", 1e9) < weight.get(
            "float32", {}
        ).get("seconds", 0.0)
    return checks


def main() -> int:
    """Measure, judge, and return how many checks failed."""
    day = Day(
        os.environ.get("DEVICE", "cuda"),
        bool(os.environ.get("SMALL")),
        Path(os.environ.get("OUT", "results/gpu")),
        float(os.environ.get("BUDGET", "540")),
    )
    for name, needs, call in (("machine", 5, machine), ("ceilings", 40, ceilings), ("precision", 15, precision)):
        with day.section(name, needs) as found:
            if found is not None:
                call(day, found)
    with day.section("weights", 20) as found:
        model = papers_model(day) if found is not None else None
    for name, needs, use in (("engine", 120, engine), ("constants", 60, constants), ("profile", 20, profile)):
        with day.section(name, needs) as found:
            if found is not None and model is not None:
                use(day, found, model)
    del model
    later: tuple = (("one_weight", 60, one_weight), ("training", 30, training))
    for name, needs, call in (*later, *((("tests", 115, tests),) if day.cuda else ())):
        with day.section(name, needs) as found:
            if found is not None:
                call(day, found)
    day.found["acceptance"] = judge(day)
    day.save()
    print(json.dumps(day.found["acceptance"], indent=1))
    return sum(not held for held in day.found["acceptance"].values())


if __name__ == "__main__":
    sys.exit(main())
