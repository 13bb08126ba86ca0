"""Fine-tuning that stops on time, resumes exactly and can be held against its prediction.

One call trains one model on one task's sample from one start. It leaves the model as it found it, bit for bit, and
returns the trajectory, the outputs along it, and the task vector of the state that the stop rule chose.

    settings = FinetuneSettings.from_config(config["finetune"], parameters="attention", outputs="contrast")
    result = finetune(model, train, validation, test, settings, spectrum=spectrum)
    result.vector.save("vector.safetensors")
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stopwise.linearized.objectives import Objective
from stopwise.network.learner import Learner, Prompts, TangentLearner
from stopwise.network.parameters import select_parameters
from stopwise.network.task_vectors import TaskVector, difference
from stopwise.training.checkpoint import remove_checkpoint
from stopwise.training.joint import JointObjective, JointPrompts
from stopwise.training.loop import Split, Trainer
from stopwise.training.resume import Pace, environment, resume_run, run_identity, save_run
from stopwise.training.settings import FinetuneSettings

__all__ = ["FinetuneResult", "FinetuneSettings", "finetune", "sweep"]

# One task's batch, or the batches of several tasks by name, which are then trained together.
Batch = Mapping[str, Any]
# Entries of a batch that belong to the task, not to one example.
_SHARED = ("verbalizers",)


@dataclass(frozen=True, eq=False)
class FinetuneResult:
    """What one run of fine-tuning gave.

    ``trajectory``: one mapping per evaluation (steps, epochs, eta; losses are means over rows with b_hat included).
    ``best``: the step whose state was kept; ``stopped``: patience, predicted, steps or diverged; ``stop_step``: when
    the rule fired, None if it did not. ``vector``: theta_best - theta_0. ``intercept``: b_hat, float64 [columns].
    ``outputs``: f along the run by split, [evaluations, n, columns], without b_hat. ``tasks``: of a joint training, the
    loss and accuracy of each task at each evaluation. ``layers``: the distance moved by
    each layer at each evaluation. ``environment``: threads, device and torch version. ``seconds``: training time over
    all parts of an interrupted run.
    """

    trajectory: list[dict[str, Any]]
    best: int
    stopped: str
    stop_step: int | None
    vector: TaskVector
    intercept: np.ndarray
    outputs: dict[str, np.ndarray]
    layers: list[dict[str, Any]]
    environment: dict[str, Any]
    seconds: float
    n: int
    tasks: list[dict[str, Any]] = field(default_factory=list)

    def table_rows(self) -> list[dict[str, Any]]:
        """Return the trajectory with the sample size in front and without wall-clock times: equal runs, equal rows."""
        return [
            {"n": self.n} | {key: value for key, value in row.items() if key != "seconds"} for row in self.trajectory
        ]

    @property
    def best_row(self) -> dict[str, Any]:
        """The evaluation of the kept state."""
        return next(row for row in self.trajectory if row["step"] == self.best)


def finetune(
    model: Any,
    train: Batch,
    validation: Batch | None,
    test: Batch | None,
    settings: FinetuneSettings,
    *,
    spectrum: Any = None,
    predicted: Mapping[str, np.ndarray] | None = None,
    start_outputs: Mapping[str, np.ndarray] | None = None,
    checkpoint: str | Path | None = None,
    keep_checkpoint: bool = False,
    on_evaluation: Callable[[int], None] | None = None,
    metadata: Mapping[str, Any] | None = None,
    progress: bool = True,
    seed: int = 0,
) -> FinetuneResult:
    """Fine-tune ``model`` on ``train`` and return the result; the model ends with the weights it came with.

    A batch may be a mapping from task names to batches: these tasks are then trained together on the mean over all
    rows, each with its own intercept (``intercept`` holds one after another, the vector's metadata by task).
    ``spectrum``: gives lambda_1 for the step size: a number, its ``lambda_max``, or the largest of its ``eigenvalues``.
    ``predicted``: linearised paths by split, to sit beside the measured losses. ``start_outputs``: known f0 by split.
    ``checkpoint``: a file written at every evaluation, from which an interrupted call continues bit for bit on the same
    device with the same thread count; removed at the end unless ``keep_checkpoint``. ``on_evaluation(step)`` is called
    while the model holds the weights of an evaluation, before its checkpoint (so a resume may call it again).
    ``metadata`` joins the vector's. Memory: the trained parameters four times (start, best, gradient, velocity). Raises
    ValueError for a setting or batch that cannot be used.
    """
    path = Path(checkpoint) if checkpoint is not None else None
    given = {"train": train, "validation": validation, "test": test}
    batches = {name: batch for name, batch in given.items() if batch is not None}
    lambda_1 = None if spectrum is None else _largest(spectrum)
    # What is known of a split that is not given stays unread.
    predicted, start_outputs = (_of_splits(known, batches) for known in (predicted, start_outputs))
    identity = {} if path is None else _identity(model, batches, settings, predicted, start_outputs, lambda_1, seed)
    parameters = select_parameters(model, settings.parameters)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        kind = TangentLearner if settings.tangent else Learner
        learner = kind(model, parameters, settings.outputs, settings.autocast)
        splits = {name: _split(batch, settings, model) for name, batch in batches.items()}
        trainer = Trainer(
            learner, splits, settings, lambda_1, seed=seed, predicted=predicted, start_outputs=start_outputs
        )
        try:
            _train(trainer, path, identity, on_evaluation, progress, metadata)
            result = _result(trainer, {"seed": seed, "start": "pretrained"} | dict(metadata or {}))
        finally:
            for tensor, start in zip(trainer.tensors, trainer.start, strict=True):
                tensor.copy_(start)
    if path is not None and not keep_checkpoint:
        remove_checkpoint(path)
    return result


def sweep(
    model: Any,
    train: Batch,
    validation: Batch | None,
    test: Batch | None,
    settings: FinetuneSettings,
    sizes: Iterable[int],
    *,
    spectra: Mapping[int, Any],
    predicted: Mapping[int, Mapping[str, np.ndarray]] | None = None,
    start_outputs: Mapping[str, np.ndarray] | None = None,
    checkpoints: str | Path | None = None,
    settings_of: Callable[[int, FinetuneSettings], FinetuneSettings] | None = None,
    **options: Any,
) -> Iterator[tuple[int, FinetuneResult]]:
    """Yield (n, result) of training on the first n examples of ``train`` for each n, in one process.

    Outputs at the start are computed once; ``start_outputs`` gives those by split that are known already, [n, columns]
    without b_hat, such as the kernel's f0 (of ``train``: of all its examples). With ``checkpoints`` (a folder) finished
    sizes are kept until all are done, so that a killed sweep repeats nothing but its last evaluation interval; the
    caller removes the folder's files when the results are safe (``remove_sweep``). ``settings_of(n, settings)`` may set
    what depends on n, such as ``stop_at``.
    """
    given = dict(start_outputs or {})
    train_outputs = given.pop("train", None)
    known: dict[str, np.ndarray] = given
    for n in sizes:
        own_train = {} if train_outputs is None else {"train": train_outputs[:n]}
        own = settings if settings_of is None else settings_of(n, settings)
        path = None if checkpoints is None else Path(checkpoints) / f"n{n}.safetensors"
        result = finetune(
            model,
            first_examples(train, n),
            validation,
            test,
            own,
            spectrum=spectra.get(n),
            predicted=None if predicted is None else predicted.get(n),
            start_outputs=known | own_train,
            checkpoint=path,
            keep_checkpoint=True,
            **options,
        )
        known |= {name: result.outputs[name][0] for name in ("validation", "test") if name in result.outputs}
        yield n, result


def remove_sweep(checkpoints: str | Path, sizes: Iterable[int]) -> None:
    """Remove the checkpoints of a finished sweep, and their folder when nothing else is in it."""
    folder = Path(checkpoints)
    for n in sizes:
        remove_checkpoint(folder / f"n{n}.safetensors")
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def first_examples(batch: Batch, n: int) -> dict[str, Any]:
    """Return the first n examples of a batch; raises ValueError when it has fewer."""
    if _is_joint(batch):
        return {task: first_examples(own, n) for task, own in batch.items()}
    have = len(batch["input_ids"])
    if not 1 <= n <= have:
        raise ValueError(f"sizes: {n} training examples wanted, the sample has {have}")
    return {key: value if key in _SHARED else value[:n] for key, value in batch.items()}


def rows_of(batch: Batch, index: Iterable[int]) -> dict[str, Any]:
    """Return the examples of a batch at these places, in their order."""
    chosen = torch.as_tensor(list(index))
    return {key: value if key in _SHARED else value[chosen] for key, value in batch.items()}


def _of_splits(known: Mapping[str, np.ndarray] | None, batches: Mapping[str, Batch]) -> dict[str, np.ndarray]:
    return {name: value for name, value in (known or {}).items() if name in batches or name == "distance"}


def _largest(spectrum: Any) -> float:
    if isinstance(spectrum, (int, float)):
        return float(spectrum)
    found = getattr(spectrum, "lambda_max", None)
    return float(np.max(spectrum.eigenvalues) if found is None else found)


def _identity(
    model: Any,
    batches: Mapping[str, Batch],
    settings: FinetuneSettings,
    predicted: Mapping[str, np.ndarray],
    start_outputs: Mapping[str, np.ndarray],
    lambda_1: float | None,
    seed: int,
) -> dict[str, Any]:
    arrays = {f"predicted.{name}": value for name, value in predicted.items()}
    arrays |= {f"start.{name}": value for name, value in start_outputs.items()}
    return run_identity(model, batches, settings.as_dict(), arrays, lambda_1=lambda_1, seed=seed)


def _is_joint(batch: Batch) -> bool:
    return "input_ids" not in batch


def _split(batch: Batch, settings: FinetuneSettings, model: Any) -> Split:
    if _is_joint(batch):
        parts = {task: _split(own, settings, model) for task, own in batch.items()}
        prompts_of, objective_of = ([getattr(p, key) for p in parts.values()] for key in ("prompts", "objective"))
        return Split(JointPrompts.joined(prompts_of), JointObjective(dict(zip(parts, objective_of, strict=True))))
    # Forward-mode derivatives, which the linearised model needs, run padded.
    prompts = Prompts.of(batch, settings.tokens_per_batch, None if settings.tangent else model)
    objective = Objective(
        settings.objective,
        np.asarray(batch["labels"]),
        len(prompts.verbalizers),
        settings.outputs,
        settings.target_scale,
        np.zeros(1),
    )
    return Split(prompts, objective)


def _train(
    trainer: Trainer,
    path: Path | None,
    identity: Mapping[str, Any],
    on_evaluation: Callable[[int], None] | None,
    progress: bool,
    metadata: Mapping[str, Any] | None,
) -> None:
    pace = Pace()

    def save() -> None:
        if path is not None and pace.due():
            save_run(trainer, path, identity)

    if path is None or not resume_run(trainer, path, identity):
        trainer.set_intercept()
    title = f"fine-tuning {(metadata or {}).get('task', '')} n={trainer.n}"
    trainer.run(save, on_evaluation or (lambda step: None), progress, title)


def _result(trainer: Trainer, metadata: dict[str, Any]) -> FinetuneResult:
    state, stop = trainer.progress, trainer.stop
    facts: dict[str, Any] = {"n": trainer.n, "step": stop.best_step, "intercept": trainer.intercept.tolist()}
    objective = trainer.splits["train"].objective
    if isinstance(objective, JointObjective):
        facts["intercepts"] = {task: b_hat.tolist() for task, b_hat in objective.intercepts().items()}
    return FinetuneResult(
        trajectory=state.rows,
        best=stop.best_step,
        stopped="diverged" if state.diverged else stop.reason,
        stop_step=stop.stop_step,
        vector=TaskVector(_displacement(trainer), metadata | facts),
        intercept=trainer.intercept,
        outputs={name: np.stack(f) for name, f in state.outputs.items()},
        layers=state.layers,
        environment=environment(trainer.learner.device),
        seconds=state.seconds,
        n=trainer.n,
        tasks=_task_rows(trainer),
    )


def _task_rows(trainer: Trainer) -> list[dict[str, Any]]:
    """Return the loss and accuracy of each task of a joint training at each evaluation."""
    rows = []
    for name, split in trainer.splits.items():
        if not isinstance(split.objective, JointObjective):
            continue
        for at, f in zip(trainer.progress.rows, trainer.progress.outputs[name], strict=True):
            for task, own in split.objective.split(f).items():
                part = split.objective.parts[task]
                values = {"loss": part.loss(own), "accuracy": part.accuracy(own)}
                rows.append({"step": at["step"], "task": task, "split": name} | values)
    return rows


def _displacement(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Return theta_best - theta_0 by parameter name."""
    named = zip(trainer.learner.names, trainer.best, trainer.start, strict=True)
    return {name: difference(best, start) for name, best, start in named}
