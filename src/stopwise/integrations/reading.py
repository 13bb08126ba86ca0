"""Reading a Trainer's run before it goes on: its kernel, its schedule, and where it should stop.

Nothing of the run is changed: the random generators, the training mode of every module, ``requires_grad`` and the
gradients are put back, so that a run that was read trains the very bits of one that was not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from stopwise.integrations.examples import Examples, read_examples
from stopwise.integrations.trainer_schedule import Metric, TrainerRun, optimizer_metric, trainer_loss, trainer_schedule
from stopwise.kernel.batch_metric import BatchMetric
from stopwise.kernel.ntk import empirical_ntk
from stopwise.linearized.coding import columns
from stopwise.linearized.objectives import Objective
from stopwise.network.heads import head_names, is_classifier
from stopwise.network.learner import Learner, Prompts, TangentLearner
from stopwise.network.parameters import held, select_parameters
from stopwise.network.quiet import untouched
from stopwise.stopping.scheduled import Linearised, Schedule, ScheduledStop, scheduled_stop
from stopwise.training.adam_preconditioner import (
    SECOND_ORDER,
    batch_cotangents,
    mean_squares,
    preconditioner_from_optimizer,
)

N_MAX = 256
# Tokens of one pass.
TOKENS = 1024
# The largest share of a loss by which the Trainer's own may differ from the cross-entropy that the kernel is read for:
# half precision rounds it by a per cent.
LOSS_TOLERANCE = 0.02
# Steps of more than this many 1/lambda_1 are flagged: a choice. Runs of docs/records/trainer have up to 2.6, one 134.
LARGEST_STEP = 4.0
# A head whose weights change by more than this share changes the kernel of everything below it. Measured on MiniLM with
# a new head and 64 labels: at a share of 0.04 the last step was predicted and best, at 0.5 the best step was the 15th
# where the 44th was predicted.
HEAD_MOVES = 0.1
# Gradients are compared with the limit of clipping at the start, and seldom grow beyond twice as much.
CLIP_ROOM = 2.0


def read_stop(
    run: TrainerRun, *, words: Any = None, rule: str = "bayes", n_max: int = N_MAX, done: int = 0
) -> ScheduledStop:
    """Return where a run should stop, read at its present weights, after ``done`` of its steps.

    The kernel is that of the run's optimizer: for AdamW J D J' with D = 1/(sqrt(v) + eps), v the mean square of the
    clipped gradients of the first epoch's batches, or, after some steps, the optimizer's own. Raises ValueError, in one
    line, for a run that cannot be predicted. Cost: one kernel of at most ``n_max`` examples (two where gradients are
    clipped), a forward and a backward pass over them, and O(n^2) for every example of a replayed step.

    Flags beside those of ``scheduled_stop``, ``trainer_schedule`` and ``linearised``: ``other_loss`` (the Trainer's is
    not the cross-entropy of the answers), ``large_steps`` (more than ``LARGEST_STEP`` 1/lambda_1).
    """
    if run.max_steps <= done:
        raise ValueError(f"max_steps: training ends after {run.max_steps} steps, and {done} are done")
    for option in ("fsdp", "deepspeed"):
        if getattr(run.args, option, None):
            raise ValueError(f"{option}: it divides the weights among processes, and the kernel needs them whole")
    seed = run.args.seed if run.args.data_seed is None else run.args.data_seed
    with untouched(run.model):
        examples = read_examples(run.model, run.dataset, run.collate, n_max, seed, words, run.processing_class)
        objective, flags = trained_objective(run, examples)
        schedule, known = trainer_schedule(run, examples, done)
        net, schedule, found = linearised(run, examples, objective, schedule)
    flags = (*flags, *known, *found)
    stop = scheduled_stop(net, objective, schedule, rule, of=len(run.dataset), seed=seed, flags=flags)
    return replace(stop, flags=(*stop.flags, "large_steps")) if stop.largest_step > LARGEST_STEP else stop


def trained_objective(run: TrainerRun, examples: Examples) -> tuple[Objective, tuple[str, ...]]:
    """Return the cross-entropy that the run trains on, and ``other_loss`` where its loss is none.

    A language model may be trained on the softmax over its answers or over its vocabulary. Which, the Trainer's own
    loss of two examples tells.
    """
    kinds = ["contrast"] if is_classifier(run.model) else ["contrast", "vocabulary"]
    choices = [objective_of(examples, outputs) for outputs in kinds]
    if run.args.label_smoothing_factor:
        return choices[0], ("other_loss",)
    if run.trainer is None or run.args.world_size > 1:
        return choices[-1 if run.trainer is None else 0], ()
    rows = np.arange(2)
    theirs, prompts = trainer_loss(run, examples, 2, 2), Prompts.of(examples.batch, TOKENS, run.model)
    for choice in choices:
        learner = Learner(run.model, {}, choice.outputs)
        ours = choice.rows(rows).loss(learner.predict(prompts.rows(rows, TOKENS)))
        if abs(theirs - ours) <= LOSS_TOLERANCE * max(abs(ours), 0.1):
            return choice, ()
    return choices[0], ("other_loss",)


def objective_of(examples: Examples, outputs: str = "contrast") -> Objective:
    """Return the cross-entropy of the kernel's examples, without an intercept."""
    q = columns(examples.classes, outputs)
    return Objective("cross_entropy", examples.labels, examples.classes, outputs, 1.0, np.zeros(q))


def linearised(
    run: TrainerRun, examples: Examples, objective: Objective, schedule: Schedule, progress: bool = False
) -> tuple[Linearised, Schedule, tuple[str, ...]]:
    """Return the network linearised at its present weights, the schedule without what never binds, and flags.

    Flags: ``clipped`` (gradients exceed max_grad_norm here), ``second_order_left_out`` (of an adapter at its start: the
    half whose gradients are zero, which training moves nonetheless), ``labels_seen`` (read after steps that saw them),
    ``head_moves`` (a classifier's head changes so much that the kernel does not stay what it is).
    """
    metric, model = optimizer_metric(run.optimizer), run.model
    chosen = select_parameters(model, "trainable")
    if strange := [name for name, p in chosen.items() if id(p) not in metric.rates]:
        raise ValueError(f"optimizer: it does not hold the trained parameter {strange[0]!r}")
    by_passes = partial(_metric_scales, run, examples, objective, schedule, metric, chosen, progress)
    scales: dict[str, torch.Tensor] = {}
    norms = np.zeros(1)
    # Without clipping the kernel's own rows say what a pass over the batches would.
    apart = bool(schedule.max_grad_norm or schedule.done)
    if apart:
        scales, norms = by_passes()
    largest, limit = float(norms.max()), schedule.max_grad_norm
    flags = ["labels_seen"] * bool(schedule.done) + ["clipped"] * (0 < limit < largest)
    if metric.adam and head_share(model, chosen, schedule) > HEAD_MOVES:
        flags.append("head_moves")
    options: dict[str, Any] = {"parameters": held(model, "trainable"), "outputs": objective.outputs}
    options |= {"device": next(model.parameters()).device, "progress": progress}
    own_rows = _own_metric(objective, schedule, metric, chosen, lambda: by_passes()[0])
    weighed = scales if apart else own_rows
    own: dict[str, Any] = {"formula": "adam", "preconditioner": weighed} if metric.adam else {}
    along = {name: p.detach() for name, p in chosen.items() if schedule.weight_decay and id(p) in metric.decayed}
    own |= {"along": along} if metric.adam and along else {}
    kernel, plain = empirical_ntk(model, examples.batch, **options, **own), None
    still = weighed.still if isinstance(weighed, BatchMetric) else {k for k, d in scales.items() if not bool(d.any())}
    if metric.adam and any("lora_" in name for name in still):
        flags.append(SECOND_ORDER)
    if limit and CLIP_ROOM * largest > limit:
        plain = empirical_ntk(model, examples.batch, **options).matrix if metric.adam else kernel.matrix
    else:
        schedule = replace(schedule, max_grad_norm=0.0)
    decayed, coasting = kernel.moves, None
    if decayed is None:
        decayed = output_moves(model, examples, objective, along)
    if schedule.done:
        coasting = output_moves(model, examples, objective, _velocity(run.optimizer, metric, chosen, scales))
    return Linearised(kernel.matrix, kernel.outputs, plain, decayed, coasting), schedule, tuple(flags)


def head_share(model: Any, chosen: Mapping[str, nn.Parameter], schedule: Schedule) -> float:
    """Return how far Adam may move a head's weights in all, over their root mean square; 0 without a trained head.

    A step of Adam moves a weight by about its learning rate. The largest share of the head's matrices is returned.
    """
    if not is_classifier(model):
        return 0.0
    heads = [p for name, p in chosen.items() if name in set(head_names(model)) and p.ndim > 1]
    sizes = [float(p.detach().float().square().mean().sqrt()) for p in heads]
    return max((float(schedule.learning_rates.sum()) / max(size, 1e-12) for size in sizes), default=0.0)


def _own_metric(
    objective: Objective,
    schedule: Schedule,
    metric: Metric,
    chosen: Mapping[str, nn.Parameter],
    apart: Callable[[], Mapping[str, torch.Tensor]],
) -> BatchMetric:
    """Return what tells the kernel its D from its own rows, where gradients are not clipped; ``apart``: D by passes."""
    batches, weights = _first_epoch(schedule)

    def cotangents(f0: np.ndarray) -> np.ndarray:
        return batch_cotangents(objective, f0, batches, weights)

    return BatchMetric(cotangents, apart, {name: metric.rates[id(p)] for name, p in chosen.items()}, metric.eps)


def _first_epoch(schedule: Schedule) -> tuple[Sequence[np.ndarray], Sequence[np.ndarray]]:
    """Return the batches of one epoch, and the weights of their examples."""
    first = slice(0, max(1, round(schedule.epoch)))
    return schedule.batches[first], schedule.weights[first]


def _metric_scales(
    run: TrainerRun,
    examples: Examples,
    objective: Objective,
    schedule: Schedule,
    metric: Metric,
    chosen: Mapping[str, nn.Parameter],
    progress: bool,
) -> tuple[dict[str, torch.Tensor], np.ndarray]:
    """Return D by parameter, and the norms of the gradients of one epoch's batches before clipping."""
    learner = Learner(run.model, chosen, objective.outputs)
    prompts = Prompts.of(examples.batch, TOKENS, run.model)
    batches, weights = _first_epoch(schedule)
    limit = schedule.max_grad_norm or np.inf
    squares, norms = mean_squares(learner, prompts, objective, batches, weights, limit, TOKENS, progress)
    if schedule.done and metric.adam:
        return preconditioner_from_optimizer(run.model, run.optimizer), norms
    scales = {}
    for name, square in zip(learner.names, squares, strict=True):
        rate = metric.rates[id(chosen[name])]
        scales[name] = torch.where(square > 0, rate / (square.sqrt() + metric.eps), 0.0)
    return scales, norms


def _velocity(
    optimizer: Any, metric: Metric, chosen: Mapping[str, nn.Parameter], scales: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Return D v by parameter: where the velocity that the optimizer has gathered takes the weights."""
    state = getattr(optimizer, "optimizer", optimizer).state
    key, share = ("exp_avg", 1 - metric.momentum) if metric.adam else ("momentum_buffer", 1.0)
    found = {name: state.get(parameter, {}).get(key) for name, parameter in chosen.items()}
    scale = {name: scales[name] / share if metric.adam else 1.0 for name in chosen}
    return {name: v * scale[name] for name, v in found.items() if v is not None}


def output_moves(
    model: Any, examples: Examples, objective: Objective, direction: Mapping[str, torch.Tensor]
) -> np.ndarray | None:
    """Return J d, how the outputs move along a direction d of the weights by name; float64 [n, columns]."""
    if not direction:
        return None
    named, names = dict(model.named_parameters()), sorted(direction)
    learner = TangentLearner(model, {name: named[name] for name in names}, objective.outputs)
    for delta, name in zip(learner.tensors, names, strict=True):
        delta.copy_(direction[name])
    return learner.displaced(Prompts.of(examples.batch, TOKENS, model))[1].astype(np.float64)
