"""The schedule of a Trainer, read before training: learning rates, batches in the order it will draw them, clipping."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from stopwise.integrations.examples import Examples
from stopwise.linearized.replay import draw_batches
from stopwise.stopping.scheduled import Schedule

# Optimizers whose steps the kernel gives: AdamW (and Adam without weight decay) in its own metric, and plain SGD.
OPTIMIZERS = ("AdamW", "Adam", "SGD")


@dataclass(frozen=True, eq=False)
class TrainerRun:
    """What a run is made of, as a Trainer gives it to its callbacks; ``trainer`` None where it is not known."""

    model: Any
    args: Any
    optimizer: Any
    lr_scheduler: Any
    dataloader: Any
    max_steps: int
    trainer: Any = None
    processing_class: Any = None

    @property
    def dataset(self) -> Any:
        """The training set as the data loader draws from it."""
        return self.dataloader.dataset

    @property
    def collate(self) -> Callable[[list[Any]], Any]:
        """The data collator."""
        return self.dataloader.collate_fn


@dataclass(frozen=True, eq=False)
class Metric:
    """How an optimizer measures steps: ``adam``, ``momentum``, ``eps`` and decoupled ``weight_decay``.

    ``decayed``: identities of the parameters that are decayed; ``rates``: of each parameter, by identity, the learning
    rate over that of the first group.
    """

    adam: bool
    momentum: float
    eps: float
    weight_decay: float
    decayed: frozenset[int]
    rates: dict[int, float]


def optimizer_metric(optimizer: Any) -> Metric:
    """Return the metric of a torch optimizer (wrapped by accelerate or not).

    Raises ValueError for an optimizer whose steps the kernel does not give, or one of its settings that it does not.
    """
    own = getattr(optimizer, "optimizer", optimizer)
    groups, kind = own.param_groups, type(own).__name__
    if kind not in OPTIMIZERS:
        raise ValueError(
            f"optim: {kind} has no kernel, so its steps cannot be predicted; use adamw_torch (or sgd), or leave the "
            "callback out"
        )
    decays = {float(group["weight_decay"]) for group in groups if group["weight_decay"]}
    if len(decays) > 1:
        raise ValueError(f"weight_decay: found {sorted(decays)}, the parameter groups must share one (or have 0)")
    coupled = bool(decays) and (kind == "SGD" or (kind == "Adam" and not groups[0].get("decoupled_weight_decay")))
    unknown = [key for key in ("amsgrad", "nesterov", "maximize", "dampening") if any(g.get(key) for g in groups)]
    if unknown or coupled:
        raise ValueError(f"optim: {kind} with {(unknown or ['weight_decay'])[0]} is not replayed; use adamw_torch")
    beta = {float(group["betas"][0] if "betas" in group else group["momentum"]) for group in groups}
    if len(beta) > 1:
        raise ValueError(f"optim: the parameter groups of {kind} must share one momentum, found {sorted(beta)}")
    first = _base_rate(groups[0])
    rates = {id(p): _base_rate(group) / first for group in groups for p in group["params"]}
    decayed = frozenset(id(p) for group in groups if group["weight_decay"] for p in group["params"])
    return Metric(kind != "SGD", beta.pop(), float(groups[0].get("eps", 0.0)), max(decays, default=0.0), decayed, rates)


def learning_rates(optimizer: Any, lr_scheduler: Any, steps: int) -> np.ndarray:
    """Return the learning rate of every optimizer step, that of the first parameter group; float64 [steps].

    The schedulers of transformers multiply the rate by a function of the step, which is evaluated here. Raises
    ValueError for a scheduler without one, and for groups with schedules of their own.
    """
    lambdas = getattr(getattr(lr_scheduler, "scheduler", lr_scheduler), "lr_lambdas", None)
    if not lambdas:
        raise ValueError(
            f"lr_scheduler_type: the rates of {type(lr_scheduler).__name__} are not known before training; use linear, "
            "cosine, constant or another schedule of transformers"
        )
    factors = np.array([[scale(s) for s in range(steps)] for scale in lambdas], dtype=np.float64)
    if not np.allclose(factors, factors[0], rtol=1e-12):
        raise ValueError("lr_scheduler: the parameter groups must share one schedule")
    groups = getattr(optimizer, "optimizer", optimizer).param_groups
    return _base_rate(groups[0]) * factors[0]


def _base_rate(group: dict[str, Any]) -> float:
    rate = float(group.get("initial_lr", group["lr"]))
    if not rate > 0:
        raise ValueError(f"learning_rate: found {rate}, must be greater than 0")
    return rate


def drawn_steps(dataloader: Any, args: Any, steps: int) -> list[list[np.ndarray]] | None:
    """Return the micro-batches of every optimizer step, all ranks together, as places in the training set.

    The Trainer shuffles with accelerate's seeded sampler, whose order depends on the seed and the epoch alone, cuts it
    into batches, deals them to its ranks and accumulates; the same classes do it here. None where the order is not
    known beforehand (another sampler). The data loader's own state is not touched.
    """
    from accelerate.data_loader import BatchSamplerShard, SeedableRandomSampler, get_sampler
    from torch.utils.data import BatchSampler, SequentialSampler

    sampler, own, n = get_sampler(dataloader), dataloader.batch_sampler, len(dataloader.dataset)
    cut = own.batch_sampler if isinstance(own, BatchSamplerShard) else own
    known = type(cut) is BatchSampler and type(sampler) in (SeedableRandomSampler, SequentialSampler)
    if not known or getattr(sampler, "replacement", False) or len(sampler) != n:
        return None
    if not len(dataloader):
        raise ValueError(f"train_dataset: {n} examples fill no batch of {cut.batch_size} (dataloader_drop_last)")

    def draws() -> Iterator[list[np.ndarray]]:
        together = args.gradient_accumulation_steps
        for epoch in itertools.count():
            micro = [np.array(batch, dtype=np.int64) for batch in _epoch_batches(sampler, own, n, epoch)]
            yield from (micro[s : s + together] for s in range(0, len(micro), together))

    return list(itertools.islice(draws(), steps))


def _epoch_batches(sampler: Any, own: Any, n: int, epoch: int) -> list[list[int]]:
    """Return the micro-batches of an epoch, those of all ranks joined; ``own`` is the data loader's batch sampler."""
    from accelerate.data_loader import BatchSamplerShard, SeedableRandomSampler
    from torch.utils.data import BatchSampler

    order: Any = range(n)
    if isinstance(sampler, SeedableRandomSampler):
        order = SeedableRandomSampler(range(n), generator=torch.Generator(), data_seed=sampler.initial_seed)
        order.set_epoch(epoch)
    cut = own.batch_sampler if isinstance(own, BatchSamplerShard) else own
    # Every rank goes through the same order; the sampler itself would go on to the next epoch.
    batches = BatchSampler(list(order), cut.batch_size, cut.drop_last)
    if cut is own:
        return list(batches)
    ranks = [
        list(BatchSamplerShard(batches, own.num_processes, rank, own.split_batches, own.even_batches))
        for rank in range(own.num_processes)
    ]
    return [[i for part in dealt for i in part] for dealt in itertools.zip_longest(*ranks, fillvalue=())]


def trainer_schedule(run: TrainerRun, examples: Examples, done: int = 0) -> tuple[Schedule, tuple[str, ...]]:
    """Return the schedule of a run on the kernel's examples from step ``done`` on, and flags.

    Flags: ``subset`` (training has more examples than the kernel: batches are drawn from the kernel's), and
    ``order_unknown`` (the sampler's order is not known beforehand: batches of the same size are drawn).
    """
    args, metric = run.args, optimizer_metric(run.optimizer)
    rates = learning_rates(run.optimizer, run.lr_scheduler, run.max_steps)
    n, flags = len(run.dataset), []
    drawn = drawn_steps(run.dataloader, args, run.max_steps)
    size = args.train_batch_size * args.gradient_accumulation_steps * max(1, args.world_size)
    epoch = float(-(-len(run.dataloader) // args.gradient_accumulation_steps))
    if len(examples) < n:
        flags.append("subset")
        drawn = None
    elif drawn is None:
        flags.append("order_unknown")
    if drawn is None:
        seed = args.seed if args.data_seed is None else args.data_seed
        drawn = [[batch] for batch in draw_batches(len(examples), size, run.max_steps, seed)]
    of_items, divided = _loss_kind(run, examples)
    steps = [_merged(micro, of_items, divided) for micro in drawn]
    schedule = Schedule(
        learning_rates=rates[done:],
        batches=[batch for batch, _ in steps[done:]],
        weights=[weights for _, weights in steps[done:]],
        momentum=metric.momentum,
        adam=metric.adam,
        weight_decay=metric.weight_decay,
        max_grad_norm=float(args.max_grad_norm or 0.0),
        epoch=epoch,
        done=done,
    )
    return schedule, tuple(flags)


def _merged(micro: list[np.ndarray], of_items: bool, divided: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return the examples of a step, each once, and the weight of its loss in the step's loss."""
    total = sum(map(len, micro))
    shares = [np.full(len(b), 1 / total if of_items else 1 / (len(b) * (len(micro) if divided else 1))) for b in micro]
    batch, place = np.unique(np.concatenate(micro), return_inverse=True)
    return batch, np.bincount(place, np.concatenate(shares))


def _loss_kind(run: TrainerRun, examples: Examples) -> tuple[bool, bool]:
    """Return how accumulated losses add up: over the items of the whole step, else whether means are divided.

    A model may be given the number of items of the whole step and divide by it, or ignore it; the Trainer divides the
    means by their number unless it believes the former. Asked of the Trainer itself, with another number.
    """
    trainer = run.trainer
    if trainer is None or run.args.gradient_accumulation_steps == 1:
        return True, True
    n = min(len(examples), 2)
    losses = [trainer_loss(run, examples, n, items) for items in (n, 2 * n)]
    if abs(losses[1] - losses[0] / 2) <= 1e-3 * abs(losses[0]):
        return True, True
    believed = getattr(trainer, "loss_is_scaled_for_ga", None)
    if believed is None:
        believed = trainer.model_accepts_loss_kwargs or trainer.compute_loss_func is not None
    return False, not believed


def trainer_loss(run: TrainerRun, examples: Examples, n: int, items: int) -> float:
    """Return the loss that the Trainer itself computes of the first n examples, when told of this many items."""
    device = next(run.model.parameters()).device
    inputs = {k: v[:n].to(device) if torch.is_tensor(v) else v for k, v in examples.inputs.items()}
    averages = copy.deepcopy(getattr(run.trainer, "_metrics", None))  # TRL's running averages, which it logs
    with torch.no_grad():
        loss = run.trainer.compute_loss(run.model, inputs, num_items_in_batch=torch.tensor(items, device=device))
    if averages is not None:
        run.trainer._metrics = averages
    return float(loss)
