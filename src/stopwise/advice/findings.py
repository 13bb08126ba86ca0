"""Advice before the first training step: how long to train, what to expect, whether more data would help, how sure.

``advise`` reads a file and a model and computes one kernel; ``findings`` turns the kernel into numbers without torch or
files; ``advise_text`` says them in words, ``advise_files`` writes them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from stopwise.advice.data import File, asked_task
from stopwise.advice.door import check_present, read_settings
from stopwise.advice.held_out import HeldOut, Problem, curve_sizes, fold_splits, held_out, slope_interval, subset_splits
from stopwise.advice.rule import DEFAULT_RULE, FALLBACKS, Decision, decide
from stopwise.advice.settings import OPTIMIZERS, AdviceError, Settings
from stopwise.assets.wheels import ASSETS
from stopwise.linearized.coding import coding_matrix, columns, predicted_class, targets
from stopwise.linearized.decay import Rate, decay_fit, half_sample_eigenvalues, predicted_rate
from stopwise.linearized.filters import Filter
from stopwise.linearized.replay import batch_lambda_max
from stopwise.stopping.judging import judge
from stopwise.stopping.known import BeforeTraining
from stopwise.stopping.registry import COMPARED
from stopwise.stopping.stops import Stop, stops
from stopwise.tasks.batch import batch_from_table, verbalizers_of
from stopwise.tasks.task import Task
from stopwise.training.settings import FinetuneSettings

__all__ = [
    "COMPARED",
    "DEFAULT_RULE",
    "FALLBACKS",
    "OPTIMIZERS",
    "Advice",
    "AdviceError",
    "Findings",
    "Settings",
    "advise",
    "findings",
]

Say = Callable[[str], None]


@dataclass(frozen=True)
class Recipe:
    """One way to train for the advised training time: ``batch_size`` examples a step; epochs = steps * batch_size/n."""

    momentum: float
    batch_size: int
    full_batch: bool
    learning_rate: float
    steps: int
    epochs: float


@dataclass(frozen=True, eq=False)
class Findings:
    """What the kernel says.

    ``decision`` and ``stops``: the advised stop and every compared rule's; ``zero_shot`` [n] correctness of the prompt
    alone; ``crossed``: cross-validation of the whole procedure; ``sizes``: held-out results of smaller samples,
    ascending; ``low_step``..``high_step``: the times whose held-out loss is within 5 % of the best, ``best_step``;
    ``offsets`` [C]: what the fitted intercept adds to the logits of the classes; ``doubling``: accuracy gained per
    doubling of examples; ``exponent``: slope of log held-out loss in log n, both with 95 % intervals (nan when too few
    sizes); ``rate``: the slope of the excess risk that the eigenvalue decay implies; ``lambda_max`` of K/m.
    """

    problem: Problem = field(repr=False)
    decision: Decision
    stops: list[Stop]
    recipes: list[Recipe]
    zero_shot: np.ndarray
    crossed: HeldOut
    sizes: list[HeldOut]
    best_step: int
    low_step: int
    high_step: int
    offsets: np.ndarray
    doubling: tuple[float, float, float]
    exponent: tuple[float, float, float]
    rate: Rate
    lambda_max: float
    flags: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Advice:
    """Findings and where they come from; ``sample`` is the table of the examples used (prompts, labels, cut).

    ``notes``: what a person should know of the file and of the words before the answer.
    """

    settings: Settings
    file: File
    task: Task
    sample: pa.Table
    findings: Findings
    provenance: dict[str, Any]
    notes: tuple[str, ...] = ()


def findings(problem: Problem, settings: Settings, progress: bool = False, scale: float | None = None) -> Findings:
    """Return what a training kernel says about training on its examples, by the rule in ``advise_rule``.

    ``scale`` of the targets, where it is known already (None: ``settings.scale``); fits without some of the examples
    have their own all the same.
    Cost: for each of 50 cross-validation fits and 60 smaller ones two decompositions of m rows and those of the rule.
    """
    from tqdm import tqdm

    spec, t_max, seed = problem.spectrum(), settings.t_max, settings.seed
    if spec.lambda_max <= 0:
        raise AdviceError("--parameters: the kernel is zero: these parameters do not move the outputs")
    if scale is None:
        scale = settings.scale(spec, targets(problem.labels, problem.classes), problem.outputs)
    problem = replace(problem, scale=scale)
    # Every fit takes its step from its own lambda_1; AdamW's is that of batches, so many times that of all examples.
    spread = _batch_eigenvalue(problem, settings) / spec.lambda_max if settings.adam else 1.0

    def make_filter(lambda_1: float) -> Filter:
        return settings.filter(spread * lambda_1)

    filter = make_filter(spec.lambda_max)
    before = BeforeTraining(spec, problem.residual, filter, t_max, seed=seed, targets=problem.targets)
    compared = stops(before, COMPARED)
    decision = decide(spec, problem.residual, problem.targets, filter, t_max, seed, compared)
    folds = fold_splits(problem.labels, seed=seed)
    small = subset_splits(problem.labels, curve_sizes(problem.examples, problem.classes), seed=seed)
    bar = tqdm(total=len(folds) + sum(map(len, small)), desc="held-out", unit="fit", disable=not progress)

    def choose(part: Any, residual: np.ndarray, y: np.ndarray, own: Filter) -> int:
        bar.update()
        return decide(part, residual, y, own, t_max, seed).t

    def run(splits: list) -> HeldOut:
        return held_out(problem, make_filter, choose, t_max, splits, settings.scale)

    with bar:
        crossed = run(folds)
        sizes = [*(run(splits) for splits in small), crossed]
    best = judge(None, np.arange(t_max + 1), crossed.loss.mean(axis=1))
    law = decay_fit(
        spec.eigenvalues[: spec.degrees],
        half_sample_eigenvalues(problem.matrix, spec.columns, intercept=True, seed=seed),
    )
    trained_on = np.array([size.trained_on for size in sizes], dtype=float)
    return Findings(
        problem=problem,
        decision=decision,
        stops=compared,
        recipes=recipes(problem, settings, decision),
        zero_shot=(predicted_class(problem.outputs, problem.classes) == problem.labels).astype(float),
        crossed=crossed,
        sizes=sizes,
        best_step=int(best["t_oracle"]),
        low_step=int(best["low"]),
        high_step=int(best["high"]),
        offsets=spec.intercept_of(problem.residual) @ coding_matrix(problem.classes),
        doubling=slope_interval(np.log2(trained_on), np.stack([s.chosen_correct for s in sizes]), seed=seed),
        exponent=slope_interval(np.log(trained_on), np.stack([s.chosen_loss for s in sizes]), np.log, seed),
        rate=predicted_rate(law, spec.m),
        lambda_max=spec.lambda_max,
        flags=spec.flags,
    )


def recipes(problem: Problem, settings: Settings, decision: Decision) -> list[Recipe]:
    """Return full-batch and mini-batch recipes, plain and with momentum, that reach the advised training time eta.

    alpha = c/lambda_1 of the kernel for full batches, and of the largest of 100 sampled batches for mini-batches. AdamW
    has one, with the mini-batches that its kernel is for.
    """
    n, q, out = problem.examples, columns(problem.classes), []
    if settings.adam:
        batch, steps = settings.adam_batch(n), decision.t
        rate = settings.step_size / _batch_eigenvalue(problem, settings)
        return [Recipe(settings.beta, batch, False, rate, steps, steps * batch / n)]
    for batch in [n, settings.batch_size] if settings.batch_size < n else [n]:
        top = batch_lambda_max(problem.matrix, q, None if batch == n else batch, settings.seed)
        for momentum in dict.fromkeys([settings.beta, 0.0 if settings.beta else 0.9]):
            filter = settings.filter(top, momentum)
            steps = steps_to(filter, decision.stop.eta) if decision.t else 0
            out.append(Recipe(momentum, batch, batch == n, filter.lr, steps, steps * batch / n))
    return out


def _batch_eigenvalue(problem: Problem, settings: Settings) -> float:
    """Return the eigenvalue that AdamW's step is taken from: the largest of 100 sampled batches."""
    batch = settings.adam_batch(problem.examples)
    return batch_lambda_max(problem.matrix, columns(problem.classes), batch, settings.seed)


def steps_to(filter: Filter, eta: float) -> int:
    """Return the number of steps, at least 1, whose training time is nearest to ``eta``."""
    last = 64
    while float(filter.eta(last)) < eta:
        last *= 2
    return max(1, int(np.argmin(np.abs(filter.eta(np.arange(last + 1)) - eta))))


def advise(
    settings: Settings,
    *,
    file: File | None = None,
    assets: str = ASSETS,
    device: str = "auto",
    say: Say = lambda message: None,
    progress: bool = False,
) -> Advice:
    """Return the advice for a file and a model; nothing is written. ``say`` is told what is going on;
    ``file``: read already (``advise_door.look``).

    Raises ValueError (in the words of the config; ``advise_data.in_options`` turns them into those of options) for a
    file, column, word or model that cannot be used. Cost: one kernel of at most ``max_examples`` examples (two for
    AdamW), one backward pass less than there are classes for each, and a minute or less of small decompositions.
    """
    file = file or read_settings(settings)
    say(f"{file.path}: {file.rows} rows, labels {_listed(file)}")
    for note in file.notes:
        say(note)
    check_present(device)
    from stopwise.kernel.ntk import empirical_ntk
    from stopwise.network.adapters import LORA, with_adapter
    from stopwise.network.loading import BUILTIN, load_model, model_fingerprint

    if settings.model == BUILTIN and not (Path(assets) / "models" / BUILTIN / "config.json").is_file():
        say(f"fetching {BUILTIN} into {assets}: 98 MB, this once")
    say(f"loading {settings.model}")
    network, tokenizer = load_model(settings.model, revision=settings.revision, assets=assets)
    task = asked_task(file, tokenizer, settings, positions_of(network))
    if task.answers:
        say(task.answers)
    sample = task.sample(tokenizer, settings.seed)
    check_fit(network, sample, task.options)
    batch = batch_from_table(sample, "train")
    labels = batch["labels"].numpy()
    words = ", ".join(map(repr, task.verbalizers.values()))
    say(f"computing the kernel of {len(labels)} examples; the words for the labels are {words}")
    fingerprint, subset = model_fingerprint(network), settings.parameters
    if subset == "lora":
        network, subset = with_adapter(network, LORA, settings.seed), "trainable"
    kernel = empirical_ntk(network, batch, parameters=subset, device=device, progress=progress)
    problem, scale = Problem(kernel.matrix, kernel.outputs, labels, len(task.verbalizers)), None
    if settings.adam:
        # What AdamW divides by depends on the scale of the targets: that of the plain kernel is kept.
        scale = settings.scale(problem.spectrum(), problem.targets, problem.outputs)
        say(f"computing the kernel of AdamW, batches of {settings.adam_batch(len(labels))}")
        problem = replace(problem, matrix=_adam_kernel(network, batch, settings, subset, scale, device, progress))
    say("refitting without some of the examples, to see what training would reach on new ones")
    found = findings(problem, settings, progress, scale)
    record = {"config": asdict(settings), "data": _sha256(file.path), "model": fingerprint}
    notes = (*file.notes, *([task.answers] if task.answers else []))
    return Advice(settings, file, task, sample, found, record, notes)


def _listed(file: File, most: int = 20) -> str:
    """Return the labels of a file with their counts, the commonest first when there are many."""
    shares = list(file.shares.items())
    if len(shares) > most:
        shares = sorted(shares, key=lambda one: -one[1])[:most]
    return ", ".join(f"{label} ({count})" for label, count in shares) + (
        f" and {len(file.shares) - most} more" if len(file.shares) > most else ""
    )


def positions_of(network: Any) -> int | None:
    """Return how many tokens a model's prompt may have, by its configuration; None when it does not say."""
    known = [getattr(network.config, key, None) for key in ("max_position_embeddings", "n_positions")]
    return min((value for value in known if isinstance(value, int) and value > 0), default=None)


def check_fit(network: Any, sample: pa.Table, options: int = 0) -> None:
    """Raise AdviceError for prompts longer than the model has positions, and tokens that it has no embedding for."""
    ids = sample["input_ids"].to_pylist()
    longest, positions = max(map(len, ids)), positions_of(network)
    if positions is not None and longest > positions:
        raise AdviceError(
            f"--max-tokens: the longest prompt has {longest} tokens, and the model has {positions} positions; give"
            f" {positions - options} or less"
        )
    largest = max([*(max(one) for one in ids), *(verbalizers_of(sample) or [])])
    embeddings = network.get_input_embeddings().weight.shape[0]
    if largest >= embeddings:
        raise AdviceError(
            f"--model: its tokenizer gives token {largest}, and the model has embeddings for {embeddings} tokens only:"
            " they do not belong together"
        )


def _adam_kernel(
    network: Any,
    batch: Mapping[str, Any],
    settings: Settings,
    subset: Any,
    scale: float,
    device: str,
    progress: bool,
) -> np.ndarray:
    """Return the kernel of AdamW [m, m] with the settings' batches, for targets of this scale."""
    from stopwise.kernel.ntk import empirical_ntk
    from stopwise.training.adam_preconditioner import own_metric

    training = FinetuneSettings(
        optimizer="adamw",
        formula="adam",
        batch_size=settings.adam_batch(len(batch["labels"])),
        parameters=subset,
        target_scale=scale,
    )
    weights = own_metric(network, batch, training, settings.seed)
    options: dict[str, Any] = {"device": device, "progress": progress}
    return empirical_ntk(network, batch, parameters=subset, formula="adam", preconditioner=weights, **options).matrix


def _sha256(path: str) -> str:
    with Path(path).expanduser().open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
