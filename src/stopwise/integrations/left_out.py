"""The left-out curve of a running Trainer: what its network says of every training example without that example.

``stopwise.training.left_out_run`` follows the networks without each example; here are the Trainer's schedule, the
points at which the curve has values, and files. The run itself is not touched: weights, gradients and random generators
are left as they were.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from stopwise.integrations.examples import read_examples
from stopwise.integrations.reading import TOKENS, trained_objective
from stopwise.integrations.trainer_schedule import TrainerRun, optimizer_metric, trainer_schedule
from stopwise.kernel.between_states import trained_state
from stopwise.network.parameters import select_parameters
from stopwise.network.quiet import untouched
from stopwise.network.tensor_files import TensorFile, TensorSpec, write_tensor_file
from stopwise.stopping.anchored import COHERENT, has_risen, left_out_curve
from stopwise.training.adam_preconditioner import preconditioner_from_optimizer
from stopwise.training.left_out_run import LeftOutRun, anchor_steps, first_anchor

# A curve has at most this many values after its first: each costs a forward pass over all examples.
EVALUATIONS = 24
FILE = "stopwise_left_out.safetensors"
FOLDER = "stopwise_left_out"

# Step, mean log-loss, accuracy, coherence.
Value = tuple[int, float, float, float]


@dataclass(frozen=True)
class LeftOutPlan:
    """When a left-out curve takes its checkpoints after the start and its values, in steps, and what that costs.

    ``memory``: bytes beside the training; ``epochs``: of this training, that would take as long.
    """

    anchors: tuple[int, ...]
    values: tuple[int, ...]
    memory: float
    epochs: float

    def sentence(self, examples: int) -> str:
        """Return the plan in one sentence."""
        steps = ", ".join(map(str, self.anchors))
        return (
            f"stopwise: the curve of {examples} examples left out takes checkpoints at the start and after steps"
            f" {steps}; about {self.memory / 1e9:.2g} GB of memory beside the training, and the time of about"
            f" {self.epochs:.0f} more epochs"
        )


class LeftOutCurve:
    """The left-out loss of one run of a Trainer, step by step.

    ``begin_step(s)`` before and ``end_step(s)`` after each step keep it up with the run; the latter returns a value of
    the curve where one is due. ``curve``: (step, mean log-loss, accuracy, coherence) so far. It counts up to the first
    checkpoint that is not coherent with the one before (``trusted``). ``best``: a copy of the trained weights at its
    least trusted value, where ``keep_best``.
    """

    def __init__(
        self,
        run: TrainerRun,
        *,
        words: Any = None,
        first: int | None = None,
        anchors: int = 4,
        n_max: int = 256,
        keep_best: bool = False,
    ) -> None:
        self.run, self.keep_best = run, keep_best
        _refuse(run, n_max)
        seed = run.args.seed if run.args.data_seed is None else run.args.data_seed
        with untouched(run.model):
            examples = read_examples(run.model, run.dataset, run.collate, n_max, seed, words, run.processing_class)
            self.objective, flags = trained_objective(run, examples)
            schedule, known = trainer_schedule(run, examples)
        if "order_unknown" in known:
            raise ValueError(
                "left_out: the order in which the Trainer's sampler draws examples is not known beforehand; use"
                " train_sampling_strategy='random' or 'sequential', or leave left_out out"
            )
        self.flags = (*flags, *known)
        self.metric, self.batch = optimizer_metric(run.optimizer), examples.batch
        self.followed = LeftOutRun(
            run.model,
            examples.batch,
            self.objective,
            schedule,
            self._metric,
            seed=seed,
            tokens=TOKENS,
            quiet=partial(untouched, run.model),
        )
        self.network = self.followed.network
        self.plan = self._plan(first, anchors)
        self.curve: list[Value] = []
        self.start: np.ndarray | None = None
        self.best: dict[str, torch.Tensor] | None = None
        self.written: set[int] = set()

    @property
    def schedule(self) -> Any:
        """The schedule that the run follows."""
        return self.network.schedule

    @property
    def risen(self) -> bool:
        """Whether the curve has passed its minimum."""
        return has_risen([value[1] for value in self.trusted])

    @property
    def trusted(self) -> list[Value]:
        """The values before the first checkpoint that is not coherent with the one before."""
        return list(itertools.takewhile(lambda value: value[3] >= COHERENT, self.curve))

    @property
    def lost(self) -> bool:
        """Whether a checkpoint was not coherent with the one before."""
        return len(self.trusted) < len(self.curve)

    @property
    def best_step(self) -> int | None:
        """The step with the least left-out loss so far; None before the first checkpoint after the start."""
        return min(self.trusted, key=lambda value: value[1])[0] if self.curve else None

    def begin(self) -> None:
        """Note the outputs and the weights at the start, before any step."""
        self.start = self.followed.outputs()
        self.followed.begin()
        if self.keep_best:
            self.best = self.followed.states[0]

    def begin_step(self, step: int) -> None:
        """Follow step number ``step`` (from 0), which is about to be taken."""
        self.followed.begin_step(step)

    def end_step(self, step: int) -> Value | None:
        """Take the checkpoint that is due after ``step`` steps; return the curve's value, None where none is due."""
        if step in self.plan.anchors:
            first = not self.followed.metrics
            self.followed.take()
            if first:
                assert self.start is not None
                # Nothing has moved at the start: what is left out says what the network says. Its weights were kept.
                self._keep(0, self.start, 1.0)
        if step not in self.plan.values:
            return None
        value = self._keep(step, self.followed.left_out(self.followed.outputs()), self.network.coherence)
        if self.keep_best and self.best_step == step:
            self.best = trained_state(self.run.model)
        return value

    def _keep(self, step: int, left: np.ndarray, coherence: float) -> Value:
        """Add a value to the curve, from the outputs of each example left out."""
        loss, right = (float(one[0]) for one in left_out_curve(self.objective, left[None]))
        self.curve.append((step, loss, right, coherence))
        return self.curve[-1]

    def _metric(self) -> dict[str, torch.Tensor] | None:
        """Return D by parameter on the CPU, None where it is 1."""
        if self.metric.adam:
            found = preconditioner_from_optimizer(self.run.model, self.run.optimizer)
            return {name: d.detach().to("cpu", copy=True) for name, d in found.items()}
        if set(self.metric.rates.values()) == {1.0}:
            return None
        chosen = select_parameters(self.run.model, "trainable")
        return {name: torch.full_like(p, self.metric.rates[id(p)], device="cpu") for name, p in chosen.items()}

    def _plan(self, first: int | None, anchors: int) -> LeftOutPlan:
        schedule, steps = self.schedule, self.run.max_steps
        warm = int(self.run.args.get_warmup_steps(steps))
        if first is None:
            first = first_anchor(warm, schedule.epoch, steps)
        taken = anchor_steps(first, anchors - 1, steps)
        every = math.ceil(max(schedule.epoch / 2, (steps - taken[0]) / EVALUATIONS, 1))
        values = (*range(taken[0], steps, every), steps)
        chosen = select_parameters(self.run.model, "trainable")
        held = sum(p.numel() * p.element_size() for p in chosen.values())
        memory = (2 * anchors + 2 * self.keep_best) * float(held)
        if memory > psutil.virtual_memory().available:
            raise ValueError(
                f"left_out: {anchors} checkpoints need {memory / 1e9:.1f} GB of memory,"
                f" {psutil.virtual_memory().available / 1e9:.1f} GB are free; take fewer (anchors)"
            )
        return LeftOutPlan(taken, values, memory, self._epochs(taken, values, chosen))

    def _epochs(self, taken: tuple[int, ...], values: tuple[int, ...], chosen: Mapping[str, Any]) -> float:
        """Return what the curve costs in epochs of training: passes, gradients formed, and their products."""
        whole = sum(p.numel() for p in self.run.model.parameters())
        share = sum(p.numel() for p in chosen.values()) / whole
        rows, tokens = self.network.velocity.shape[1], int(self.batch["attention_mask"].sum())
        count, q = len(taken) + 1, self.network.columns
        pairs = count * (count + 1) / 2
        kernels = pairs * (1 + q + 2 * q * share + share * rows**2 / tokens)
        forward = len(values) + sum(map(len, self.schedule.batches)) / len(self.batch["input_ids"])
        return (kernels + forward) / (2 + share)

    def save(self, folder: Path, shared: Path) -> None:
        """Write what a resumed run needs: the state of the replay to ``folder``, checkpoints once to ``shared``."""
        for k, state in enumerate(self.followed.states):
            if k not in self.written:
                metric = self.followed.metrics[k] if self.followed.metrics else None
                tensors = {f"state.{name}": t for name, t in state.items()}
                tensors |= {f"metric.{name}": t for name, t in (metric or {}).items()}
                _write(shared / f"checkpoint-{k}.safetensors", tensors)
                if self.followed.metrics:
                    self.written.add(k)
        arrays = {f"pending.{t}": one for t, one in enumerate(self.followed.pending)}
        arrays |= {f"network.{name}": one for name, one in self.network.state().items()}
        arrays |= {"curve": np.array(self.curve).reshape(-1, 4), "sums": self._sums()}
        arrays["taken"] = np.array([len(self.followed.metrics)])
        if self.start is not None:
            arrays["start"] = self.start
        tensors = {name: torch.as_tensor(np.ascontiguousarray(one)) for name, one in arrays.items()}
        tensors |= {f"best.{name}": t for name, t in (self.best or {}).items()}
        _write(folder / FILE, tensors)

    def restore(self, folder: Path, shared: Path) -> None:
        """Take up a curve that ``save`` wrote. Raises ValueError where a file is missing or of another run."""
        found = TensorFile(folder / FILE)
        arrays = {name: found[name].numpy() for name in found if not name.startswith("best.")}
        for k in range(len(arrays["sums"])):
            file = TensorFile(shared / f"checkpoint-{k}.safetensors")
            self.followed.states.append({n.removeprefix("state."): file[n] for n in file if n.startswith("state.")})
            metric = {n.removeprefix("metric."): file[n] for n in file if n.startswith("metric.")}
            if arrays["taken"][0]:
                self.followed.metrics.append(metric or None)
                self.written.add(k)
        if not np.array_equal(self._sums(), arrays["sums"]):
            raise ValueError(f"left_out: the checkpoints in {shared} are of another run than {folder}; train anew")
        own = {n.removeprefix("network."): a for n, a in arrays.items() if n.startswith("network.")}
        if self.followed.metrics:
            self.network.restore(own)
        self.followed.pending = [arrays[f"pending.{t}"] for t in range(sum(n.startswith("pending.") for n in arrays))]
        self.start = arrays.get("start")
        self.curve = [
            (int(step), float(loss), float(right), float(alike)) for step, loss, right, alike in arrays["curve"]
        ]
        best = {n.removeprefix("best."): found[n] for n in found if n.startswith("best.")}
        self.best = best or None

    def _sums(self) -> np.ndarray:
        """Return a number for each checkpoint's weights, to tell those of another run."""
        return np.array([sum(float(t.double().sum()) for t in state.values()) for state in self.followed.states])

    def use_best(self) -> None:
        """Give the model the weights at the least left-out loss."""
        if self.best is None:
            return
        with torch.no_grad():
            for name, p in select_parameters(self.run.model, "trainable").items():
                p.copy_(self.best[name])


def _refuse(run: TrainerRun, n_max: int) -> None:
    """Raise ValueError, in one line, for a run whose left-out curve cannot be followed."""
    for option in ("fsdp", "deepspeed"):
        if getattr(run.args, option, None):
            raise ValueError(f"{option}: it divides the weights among processes, and the kernel needs them whole")
    if run.args.world_size > 1:
        raise ValueError(f"left_out: needs one process, found {run.args.world_size}; leave it out, or train on one")
    if hasattr(run.dataset, "__len__") and len(run.dataset) > n_max:
        raise ValueError(
            f"left_out: training has {len(run.dataset)} examples and takes all of them, at most n_max = {n_max};"
            " with so many labels hold some out, or raise n_max"
        )


def _write(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    specs = {name: TensorSpec(t.dtype, tuple(t.shape)) for name, t in sorted(tensors.items())}
    write_tensor_file(path, specs, lambda name: tensors[name])
