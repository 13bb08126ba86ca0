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

from stopwise.advice.data import AdviceError, File, make_task, read_file
from stopwise.advice.held_out import HeldOut, Problem, curve_sizes, fold_splits, held_out, slope_interval, subset_splits
from stopwise.advice.rule import DEFAULT_RULE, FALLBACKS, Decision, decide
from stopwise.assets.wheels import ASSETS
from stopwise.linearized.coding import coding_matrix, columns, predicted_class, targets
from stopwise.linearized.decay import Rate, decay_fit, half_sample_eigenvalues, predicted_rate
from stopwise.linearized.filters import Filter, GradientDescent, HeavyBall, Nesterov
from stopwise.linearized.replay import batch_lambda_max
from stopwise.linearized.spectrum import Spectrum
from stopwise.stopping.bayes import fitted_target_scale
from stopwise.stopping.judging import judge
from stopwise.stopping.known import BeforeTraining
from stopwise.stopping.registry import COMPARED
from stopwise.stopping.stops import Stop, stops
from stopwise.tasks.batch import batch_from_table
from stopwise.tasks.task import Task
from stopwise.training.settings import ADAM_BETAS, FinetuneSettings

__all__ = ["COMPARED", "DEFAULT_RULE", "FALLBACKS", "Advice", "Findings", "Settings", "advise", "findings"]

OPTIMIZERS = ("heavy_ball", "nesterov", "gradient_descent", "adamw")
# The longest path looked at, in full-batch steps: with momentum 0.9 one step counts for ten of plain descent. Real runs
# with momentum were flat after 24; the kernel of the start says little about what comes later. AdamW's are of batches.
STEPS = {"heavy_ball": 24, "nesterov": 24, "gradient_descent": 240, "adamw": 96}
Say = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """What a person asks for; every field is an option of ``stopwise advise``.

    ``steps``: the longest time considered (None: 24 with momentum, 240 without, 96 of AdamW). ``step_size``: c in
    alpha = c/lambda_1 of the kernel. ``batch_size``: the mini-batch that the recipes speak of; AdamW's, whose kernel
    depends on it, is at most half of the examples. ``target_scale``: of the regression targets (None: fitted to the
    start, ``bayes.fitted_target_scale``). Raises AdviceError for a wrong value.
    """

    model: str
    data: str
    text: tuple[str, ...]
    label: str
    template: str | None = None
    verbalizers: tuple[str, ...] = ()
    max_examples: int = 64
    max_tokens: int = 64
    parameters: str = "attention"
    seed: int = 0
    optimizer: str = "heavy_ball"
    momentum: float = 0.9
    steps: int | None = None
    step_size: float = 1.0
    batch_size: int = 16
    target_scale: float | None = None
    encoding: str = "utf-8"
    revision: str | None = None

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise AdviceError(f"--optimizer: {self.optimizer!r} is not one of {', '.join(OPTIMIZERS)}")
        ranges = {
            "max_examples": (self.max_examples >= 8, "8 or more"),
            "momentum": (0 <= self.momentum < 1, "in [0, 1)"),
            "steps": (self.steps is None or 1 <= self.steps <= 100_000, "1 to 100000"),
            "step_size": (0 < self.step_size <= 1, "in (0, 1]"),
            "batch_size": (self.batch_size >= 1, "1 or more"),
            "target_scale": (self.target_scale is None or 0 < self.target_scale <= 1000, "in (0, 1000]"),
        }
        for name, (right, allowed) in ranges.items():
            if not right:
                raise AdviceError(f"--{name.replace('_', '-')}: found {getattr(self, name)}, must be {allowed}")
        if self.adam and self.parameters == "lora":
            raise AdviceError("--optimizer: 'adamw' has no kernel for adapters (--parameters lora); choose another")

    @property
    def adam(self) -> bool:
        """Whether the advice is for AdamW, which has a kernel, a step and a clock of its own."""
        return self.optimizer == "adamw"

    def adam_batch(self, n: int) -> int:
        """AdamW's mini-batch of n examples: several in each epoch, or its kernel is that of sign descent."""
        return min(self.batch_size, n // 2)

    @property
    def t_max(self) -> int:
        """The longest time considered, in full-batch steps (AdamW: in its steps)."""
        return self.steps or STEPS[self.optimizer]

    def filter(self, lambda_1: float, momentum: float | None = None) -> Filter:
        """Return the filter of training with alpha = c/lambda_1; ``momentum`` 0 is plain descent, AdamW has its own."""
        if self.adam:
            own = FinetuneSettings(optimizer="adamw", formula="adam", step_size=self.step_size, steps=self.t_max)
            return own.filter(lambda_1)
        beta, alpha = self.beta if momentum is None else momentum, self.step_size / lambda_1
        if beta == 0:
            return GradientDescent(alpha)
        return Nesterov(alpha, beta) if self.optimizer == "nesterov" else HeavyBall(alpha, beta)

    def scale(self, spec: Spectrum, targets: np.ndarray, start: np.ndarray) -> float:
        """Return the scale of the targets: the one asked for, or the one fitted to targets of scale 1 and f0."""
        return fitted_target_scale(spec, targets, start) if self.target_scale is None else self.target_scale

    @property
    def beta(self) -> float:
        """The momentum that training really has: 0 for plain descent, that of AdamW's mean."""
        return {"gradient_descent": 0.0, "adamw": ADAM_BETAS[0]}.get(self.optimizer, self.momentum)


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
    """Findings and where they come from; ``sample`` is the table of the examples used (prompts, labels, cut)."""

    settings: Settings
    file: File
    task: Task
    sample: pa.Table
    findings: Findings
    provenance: dict[str, Any]


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
    decision = decide(spec, problem.residual, problem.targets, filter, t_max, seed)
    before = BeforeTraining(spec, problem.residual, filter, t_max, seed=seed, targets=problem.targets)
    compared = stops(before, COMPARED)
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
    assets: str = ASSETS,
    device: str = "auto",
    say: Say = lambda message: None,
    progress: bool = False,
) -> Advice:
    """Return the advice for a file and a model; nothing is written. ``say`` is told what is going on.

    Raises ValueError (in the words of the config; ``advise_data.in_options`` turns them into those of options) for a
    file, column, word or model that cannot be used. Cost: one kernel of at most ``max_examples`` examples (two for
    AdamW), one backward pass less than there are classes for each, and a minute or less of small decompositions.
    """
    file = read_file(settings.data, settings.text, settings.label, settings.encoding)
    say(f"{file.path}: {file.rows} rows, labels {', '.join(f'{k} ({v})' for k, v in file.shares.items())}")
    from stopwise.kernel.ntk import empirical_ntk
    from stopwise.network.loading import BUILTIN, load_model, model_fingerprint

    if settings.model == BUILTIN and not (Path(assets) / "models" / BUILTIN / "config.json").is_file():
        say(f"fetching {BUILTIN} into {assets}: 98 MB, this once")
    say(f"loading {settings.model}")
    network, tokenizer = load_model(settings.model, revision=settings.revision, assets=assets)
    task = make_task(
        file,
        tokenizer,
        template=settings.template,
        verbalizers=settings.verbalizers,
        max_tokens=settings.max_tokens,
        max_examples=settings.max_examples,
    )
    sample = task.sample(tokenizer, settings.seed)
    batch = batch_from_table(sample, "train")
    labels = batch["labels"].numpy()
    words = ", ".join(map(repr, task.verbalizers.values()))
    say(f"computing the kernel of {len(labels)} examples; the words for the labels are {words}")
    subset: Any = {"lora": {}} if settings.parameters == "lora" else settings.parameters
    kernel = empirical_ntk(network, batch, parameters=subset, device=device, progress=progress)
    problem, scale = Problem(kernel.matrix, kernel.outputs, labels, len(task.verbalizers)), None
    if settings.adam:
        # What AdamW divides by depends on the scale of the targets: that of the plain kernel is kept.
        scale = settings.scale(problem.spectrum(), problem.targets, problem.outputs)
        say(f"computing the kernel of AdamW, batches of {settings.adam_batch(len(labels))}")
        problem = replace(problem, matrix=_adam_kernel(network, batch, settings, subset, scale, device, progress))
    say("refitting without some of the examples, to see what training would reach on new ones")
    found = findings(problem, settings, progress, scale)
    record = {"config": asdict(settings), "data": _sha256(file.path), "model": model_fingerprint(network)}
    return Advice(settings, file, task, sample, found, record)


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
    from stopwise.training.adam_preconditioner import adam_preconditioner

    training = FinetuneSettings(
        optimizer="adamw",
        formula="adam",
        batch_size=settings.adam_batch(len(batch["labels"])),
        parameters=subset,
        target_scale=scale,
    )
    weights = adam_preconditioner(network, batch, training, settings.seed)
    options: dict[str, Any] = {"device": device, "progress": progress}
    return empirical_ntk(network, batch, parameters=subset, formula="adam", preconditioner=weights, **options).matrix


def _sha256(path: str) -> str:
    with Path(path).expanduser().open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
