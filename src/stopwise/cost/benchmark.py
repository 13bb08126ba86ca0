"""What the kernel costs beside its floor and its peers: time, memory and error, each as plain rows for a table.

All contenders (``peers``) use the same verbalizer rows, parameters and matrix-product backend, and are timed in one
run; the tuned ones by their best setting, which the rows name.
"""

from __future__ import annotations

import ctypes
import gc
import itertools
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from stopwise.cost.peers import floor, loop_kernel, pairwise_entries, vmap_kernel
from stopwise.kernel.doctor import SENTENCES, WORDS
from stopwise.kernel.float32 import float32_products
from stopwise.kernel.ntk import empirical_ntk

log = logging.getLogger(__name__)

Row = dict[str, Any]

LEAST_GB = 1.0  # the least memory setting: too little to keep anything at n = 64, enough to sweep over n = 128


def random_batch(n: int, tokens: int, vocabulary: int, classes: int = 2, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return n prompts of random tokens, all of one length, and the first class tokens."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(classes, vocabulary, (n, tokens), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "verbalizers": torch.arange(classes)}


def measured(call: Callable[[], Any], repeats: int = 1) -> tuple[Any, float, float]:
    """Return (result, best seconds, peak bytes above the start) of a call."""
    best, peak, found = float("inf"), 0.0, None
    for _ in range(repeats):
        found = None
        with peak_memory() as memory:
            start = time.perf_counter()
            found = call()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            best = min(best, time.perf_counter() - start)
        peak = max(peak, memory[0])
    return found, best, peak


@contextmanager
def peak_memory(interval: float = 0.02) -> Iterator[list[float]]:
    """Yield a list that holds, afterwards, the peak resident bytes above those at the start (CUDA: allocated bytes)."""
    gc.collect()
    found = [0.0]
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        start = torch.cuda.memory_allocated()
        yield found
        found[0] = torch.cuda.max_memory_allocated() - start
        return
    _return_freed_memory()
    process, done = psutil.Process(), threading.Event()
    start = process.memory_info().rss

    def watch() -> None:
        while not done.wait(interval):
            found[0] = max(found[0], process.memory_info().rss - start)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield found
    finally:
        found[0] = max(found[0], process.memory_info().rss - start)
        done.set()
        watcher.join()


def _return_freed_memory() -> None:
    """Give freed memory back to the system, so that an earlier measurement does not hide a later one's growth."""
    if sys.platform == "linux":
        try:
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        except (OSError, AttributeError):  # another C library: peaks are then lower bounds
            return


def compare(
    model: Any,
    sizes: Sequence[int] = (32, 64, 128),
    tokens: int = 48,
    classes: int = 2,
    parameters: Any = "attention",
    outputs: str = "logits",
    memory_gb: float = 6.0,
    repeats: int = 2,
) -> list[Row]:
    """Return rows (n, method, seconds, peak_gb, floor_seconds, ratio) of the kernel, kept and recomputed.

    The floor is the best over three batch sizes; kernel and floor alternate, and the best of each counts.
    """
    rows = []
    for n in sizes:
        batch = random_batch(n, tokens, model.config.vocab_size, classes)

        def kernel(room: float, batch: dict = batch) -> Any:
            return empirical_ntk(model, batch, parameters=parameters, outputs=outputs, memory_gb=room)

        def bare(size: int, batch: dict = batch) -> np.ndarray:
            with float32_products(model.device):
                return floor(model, batch, outputs, size)

        base, best = float("inf"), {"kept": float("inf"), "recomputed": float("inf")}
        peaks = dict.fromkeys(best, 0.0)
        for _ in range(repeats):
            for size in (512, 1024, 2048):
                base = min(base, measured(partial(bare, size))[1])
            for name, room in (("kept", memory_gb), ("recomputed", LEAST_GB)):
                _, seconds, peak = measured(partial(kernel, room))
                best[name], peaks[name] = min(best[name], seconds), max(peaks[name], peak)
        rows += [
            _row(n, f"stopwise, activations {name} ({outputs})", best[name], peaks[name], base, tokens, classes)
            for name in best
        ]
    return rows


def _row(n: int, method: str, seconds: float, peak: float, base: float, tokens: int, classes: int) -> Row:
    row = {"n": n, "tokens": tokens, "classes": classes, "method": method, "seconds": seconds, "peak_gib": peak / 2**30}
    return row | {"floor_seconds": base, "ratio_to_floor": seconds / base}


def compare_peers(
    model: Any,
    n: int = 32,
    tokens: int = 48,
    classes: int = 2,
    parameters: Any = "attention",
    outputs: str = "logits",
    chunks: Sequence[int] = (1, 2, 4, 8),
    peers: Sequence[str] = ("vmap", "loop", "pairwise"),
    memory_gb: float = 6.0,
) -> list[Row]:
    """Return rows (n, method, setting, seconds, peak_gib, speedup, error) of the peers beside the kernel, one run.

    ``setting`` names the best chunk and attention kernel of vmap, tuned on a few examples. ``seconds`` of ``pairwise``
    are those of a few entries times the number of entries of half a symmetric matrix. ``error``: relative Frobenius
    distance from this package's kernel. The rows of J take n * columns * P entries in the peers: mind the memory.
    """
    batch = random_batch(n, tokens, model.config.vocab_size, classes)
    own, seconds, peak = measured(
        lambda: empirical_ntk(model, batch, parameters=parameters, outputs=outputs, memory_gb=memory_gb)
    )
    rows: list[Row] = [{"n": n, "method": "stopwise", "setting": "", "seconds": seconds, "peak_gib": peak / 2**30}]
    with float32_products(model.device):
        for peer in peers:
            rows.append({"n": n, "method": peer} | _peer(peer, model, batch, outputs, parameters, chunks, own.matrix))
    for row in rows:
        row |= {"tokens": tokens, "classes": classes, "speedup": row["seconds"] / seconds}
        row.setdefault("error", 0.0)
    return rows


def _peer(peer: str, model: Any, batch: dict, outputs: str, subset: Any, chunks: Sequence[int], own: np.ndarray) -> Row:
    """Time one peer on a batch, at its best setting."""
    if peer == "pairwise":
        each, _ = pairwise_entries(model, batch, outputs, subset)
        total = each * len(own) * (len(own) + 1) / 2
        return {"setting": f"{1e3 * each:.0f} ms an entry, extrapolated", "seconds": total, "peak_gib": float("nan")}
    setting, call = "", partial(loop_kernel, model, batch, outputs, subset)
    attention = model.config._attn_implementation
    if peer == "vmap":
        chunk, kind, tried = _tuned_vmap(model, batch, outputs, subset, chunks)
        setting, call = (
            f"chunk {chunk}, {kind} attention, best of {tried}",
            partial(vmap_kernel, model, batch, outputs, subset, chunk),
        )
        model.set_attn_implementation(kind)
    found, seconds, peak = measured(call)
    model.set_attn_implementation(attention)
    error = float(np.linalg.norm(found - own) / np.linalg.norm(own))
    return {"setting": setting, "seconds": seconds, "peak_gib": peak / 2**30, "error": error}


def _tuned_vmap(model: Any, batch: dict, outputs: str, subset: Any, chunks: Sequence[int]) -> tuple[int, str, int]:
    """Return the best chunk and attention kernel of vmap, tried on as many examples as the largest chunk."""
    few = {key: value if key == "verbalizers" else value[: max(chunks)] for key, value in batch.items()}
    attention, tried = model.config._attn_implementation, {}
    for kind in ("eager", "sdpa"):
        model.set_attn_implementation(kind)
        for chunk in chunks:
            tried[chunk, kind] = measured(partial(vmap_kernel, model, few, outputs, subset, chunk))[1]
    model.set_attn_implementation(attention)
    return *min(tried, key=lambda key: tried[key]), len(tried)


def text_batch(tokenizer: Any, n: int, tokens: int) -> dict[str, torch.Tensor]:
    """Return n prompts of plain English, all of one length, and the words positive and negative as classes."""
    orders = list(itertools.permutations(SENTENCES))
    texts = [" ".join(orders[i * len(orders) // n] * 8) for i in range(n)]
    ids = torch.tensor([tokenizer.encode(text)[:tokens] for text in texts])
    words = [tokenizer.encode(word, add_special_tokens=False)[-1] for word in WORDS[:2]]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "verbalizers": torch.tensor(words)}


def _prompts(model: Any, n: int, tokens: int, classes: int) -> dict[str, torch.Tensor]:
    """Return English prompts where the model's own folder has a tokenizer, else random tokens."""
    from transformers import AutoTokenizer

    if classes == 2 and Path(model.name_or_path).is_dir():
        try:
            return text_batch(AutoTokenizer.from_pretrained(model.name_or_path, local_files_only=True), n, tokens)
        except (OSError, ValueError) as error:
            log.info("no tokenizer beside the model, random tokens it is: %s", error)
    return random_batch(n, tokens, model.config.vocab_size, classes)


def errors(
    model: Any,
    n: int = 16,
    tokens: int = 48,
    classes: int = 2,
    parameters: Any = "attention",
    batch: dict[str, torch.Tensor] | None = None,
) -> list[Row]:
    """Return rows (n, kernel, schedule, error): relative Frobenius error of float32 against float64, raw and contrast.

    ``batch``: prompts, by default plain English (random tokens, far from all that a model was trained on, give seven
    times the error). ``difference``: the kernel of the differences of the class logits, which the common mode of K
    otherwise hides.
    """
    batch = _prompts(model, n, tokens, classes) if batch is None else batch
    rows = []
    for kernel, outputs in (("logits", "logits"), ("difference", "contrast")):
        exact = empirical_ntk(model, batch, parameters=parameters, outputs=outputs, dtype="float64").matrix
        for schedule, room in (("kept", None), ("recomputed", 0.0)):
            found = empirical_ntk(model, batch, parameters=parameters, outputs=outputs, memory_gb=room).matrix
            error = float(np.linalg.norm(found - exact) / np.linalg.norm(exact))
            n, tokens = batch["input_ids"].shape
            rows.append({"n": n, "tokens": tokens, "kernel": kernel, "schedule": schedule, "error": error})
    return rows
