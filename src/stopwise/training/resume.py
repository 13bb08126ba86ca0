"""Putting a training run down in a checkpoint and taking it up again, bit for bit.

A checkpoint belongs to one run: its settings, seed, data, start weights and predictions are digested into an identity,
and a checkpoint of another identity, or a damaged one, is reported and never used.
"""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stopwise.training.checkpoint import CheckpointError, digest_tensors, load_checkpoint, save_checkpoint
from stopwise.training.loop import Progress, Trainer

# Seconds between two checkpoints of a run. Writing one takes as long as several steps, and this much is soon repeated.
SECONDS = 30.0
ASKED = "STOPWISE_CHECKPOINT_SECONDS"  # another number of them; 0: at every evaluation


class Pace:
    """When a run's next checkpoint is due: some seconds after its last one, or after its beginning."""

    clock = staticmethod(time.monotonic)

    def __init__(self) -> None:
        given = os.environ.get(ASKED, "")
        try:
            self.seconds = float(given or SECONDS)
        except ValueError:
            raise ValueError(
                f"{ASKED}: {given!r} is not a number of seconds; leave it out, or give one such as 0"
            ) from None
        self.last = self.clock()

    def due(self) -> bool:
        """Whether it is time; where it is, the next one is so many seconds away."""
        now = self.clock()
        if now - self.last < self.seconds:
            return False
        self.last = now
        return True


def run_identity(
    model: torch.nn.Module,
    batches: Mapping[str, Any],
    settings: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
    **numbers: Any,
) -> dict[str, Any]:
    """Return what a run is a function of, as a JSON-able mapping; costs one sha256 pass over the model (2 s a GB)."""
    identity = {
        "settings": settings,
        "weights": digest_tensors((name, parameter) for name, parameter in sorted(model.named_parameters())),
        "data": digest_tensors(_tensors_in(batches)),
        "arrays": digest_tensors((name, torch.as_tensor(np.asarray(value))) for name, value in sorted(arrays.items())),
        **numbers,
    }
    return json.loads(json.dumps(identity))


def _tensors_in(batch: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every tensor of nested batches with its path, in name order."""
    for key, value in sorted(batch.items()):
        if isinstance(value, Mapping):
            yield from _tensors_in(value, f"{prefix}{key}.")
        elif isinstance(value, torch.Tensor):
            yield f"{prefix}{key}", value


def environment(device: torch.device) -> dict[str, Any]:
    """Return what the last bits of a run also depend on: threads, device kind and torch version."""
    return {"threads": torch.get_num_threads(), "device": device.type, "torch": torch.__version__}


def save_run(trainer: Trainer, path: Path, identity: Mapping[str, Any]) -> None:
    """Write the whole state of a run between two steps, atomically.

    Size: the trained parameters once, the optimizer state, and the best state when it is not the current one.
    """
    best_is_current = trainer.stop.best_step == trainer.progress.step
    tensors = {f"theta.{i}": tensor for i, tensor in enumerate(trainer.tensors)}
    if not best_is_current:
        tensors |= {f"best.{i}": tensor for i, tensor in enumerate(trainer.best)}
    tensors |= {f"optimizer.{name}": value for name, value in trainer.optimizer.state.items()}
    tensors |= {f"outputs.{name}": torch.as_tensor(np.stack(f)) for name, f in trainer.progress.outputs.items() if f}
    tensors["random"] = torch.get_rng_state()
    progress = asdict(trainer.progress)
    progress.pop("outputs")
    meta = {
        "identity": identity,
        "environment": environment(trainer.learner.device),
        "progress": progress,
        "stop": trainer.stop.state(),
        "intercept": trainer.intercept.tolist(),
        "best_is_current": best_is_current,
    }
    save_checkpoint(path, tensors, meta)


def resume_run(trainer: Trainer, path: Path, identity: Mapping[str, Any]) -> bool:
    """Restore a run from its checkpoint; False (with a warning when a file is there but unusable) to start afresh."""
    if not path.exists():
        return False
    try:
        tensors, meta = load_checkpoint(path)
        _refuse_other(meta["identity"], identity, path)
    except CheckpointError as error:
        warnings.warn(f"{error}: starting this run from its beginning", stacklevel=2)
        return False
    found, now = meta["environment"], environment(trainer.learner.device)
    if found != now:
        changed = ", ".join(f"{key} {found[key]} -> {now[key]}" for key in now if found[key] != now[key])
        warnings.warn(f"{path}: resuming with {changed}; the last bits of the results may differ", stacklevel=2)
    _restore(trainer, tensors, meta)
    return True


def _restore(trainer: Trainer, tensors: dict[str, torch.Tensor], meta: Mapping[str, Any]) -> None:
    for i, (current, best) in enumerate(zip(trainer.tensors, trainer.best, strict=True)):
        current.copy_(tensors[f"theta.{i}"])
        best.copy_(tensors[f"theta.{i}" if meta["best_is_current"] else f"best.{i}"])
    prefix = "optimizer."
    trainer.optimizer.load({name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)})
    torch.set_rng_state(tensors["random"])
    outputs = {name: list(tensors[f"outputs.{name}"].numpy()) for name in trainer.progress.outputs}
    trainer.progress = Progress(**meta["progress"], outputs=outputs)
    trainer.stop.load(meta["stop"])
    trainer.use_intercept(np.array(meta["intercept"]))


def _refuse_other(found: Mapping[str, Any], wanted: Mapping[str, Any], path: Path) -> None:
    different = [key for key in sorted(found.keys() | wanted.keys()) if found.get(key) != wanted.get(key)]
    if "settings" in different:
        old, new = found.get("settings", {}), wanted["settings"]
        different = [f"settings.{key}" for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    if different:
        raise CheckpointError(f"{path}: checkpoint of another run ({', '.join(different)} differ)")
