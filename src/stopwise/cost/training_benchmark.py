"""What a training step costs beside the stock ``transformers`` Trainer, and what merging large vectors needs.

The stock Trainer gets equal settings: the same examples in the same batches, squared loss on the same contrast of
classes, heavy-ball SGD on the same parameters; it pads each batch and multiplies the whole vocabulary, as it always
does. Both train from the same weights, and how far apart they end is in the row: the contest is only fair when it is
nothing.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stopwise.cost.benchmark import measured
from stopwise.linearized.coding import coding_matrix, targets
from stopwise.linearized.objectives import Objective
from stopwise.network.learner import Learner, Prompts
from stopwise.network.parameters import select_parameters
from stopwise.network.task_vectors import TaskVector
from stopwise.network.tensor_files import TensorSpec, write_tensor_file
from stopwise.training.optimizers import make_optimizer

Row = dict[str, Any]


def against_stock_trainer(
    model: Any,
    batch: Mapping[str, torch.Tensor],
    *,
    batch_size: int = 16,
    steps: int = 4,
    learning_rate: float = 1e-3,
    momentum: float = 0.9,
    parameters: Any = "attention",
) -> list[Row]:
    """Return rows (method, examples_per_second, ratio, difference) of stopwise and of the stock Trainer.

    ``batch`` is gone through in order, ``batch_size`` examples a step; the first step warms up and is not counted, the
    fastest of the others is. ``ratio`` is over the stock Trainer; ``difference`` the relative distance of the weights'
    displacements: nothing but rounding where the network drops nothing out. The model ends as it began.
    """
    chosen, flags = select_parameters(model, parameters), [(p, p.requires_grad) for p in model.parameters()]
    start = {name: parameter.detach().clone() for name, parameter in chosen.items()}
    moved: dict[str, dict[str, torch.Tensor]] = {}
    seconds = {}
    for method, train in (("stopwise", _train_here), ("transformers", _train_stock)):
        times = train(model, chosen, batch, batch_size, steps, learning_rate, momentum)
        seconds[method] = min(times[1:])
        moved[method] = {name: parameter.detach() - start[name] for name, parameter in chosen.items()}
        with torch.no_grad():
            for name, parameter in chosen.items():
                parameter.copy_(start[name])
    for parameter, flag in flags:
        parameter.requires_grad_(flag)
    ours, stock = (TaskVector(moved[method]) for method in ("stopwise", "transformers"))
    difference = (ours - stock).norm() / stock.norm()
    return [
        {
            "method": method,
            "examples_per_second": batch_size / seconds[method],
            "ratio": seconds["transformers"] / seconds[method],
            "difference": difference,
        }
        for method in seconds
    ]


def _rows(batch: Mapping[str, torch.Tensor], step: int, size: int) -> np.ndarray:
    return np.arange(step * size, (step + 1) * size) % len(batch["labels"])


def _train_here(
    model: Any, chosen: dict, batch: Mapping, size: int, steps: int, learning_rate: float, momentum: float
) -> list[float]:
    learner = Learner(model, chosen, "contrast")
    optimizer = make_optimizer("heavy_ball", learner.tensors, momentum=momentum)
    labels = np.asarray(batch["labels"])
    objective = Objective("squared", labels, len(batch["verbalizers"]), "contrast", 1.0, np.zeros(1))
    prompts, times = Prompts.of(batch, 1024, model), []
    with learner.trainable():
        for step in range(steps):
            began = time.perf_counter()
            index = _rows(batch, step, size)
            _, gradients = learner.gradient(prompts.rows(index, 1024), objective.rows(index).gradient)
            optimizer.update(gradients, learning_rate)
            times.append(time.perf_counter() - began)
    return times


def _train_stock(
    model: Any, chosen: dict, batch: Mapping, size: int, steps: int, learning_rate: float, momentum: float
) -> list[float]:
    import transformers

    classes = len(batch["verbalizers"])
    coding = torch.as_tensor(coding_matrix(classes)).to(next(model.parameters()))
    y = torch.as_tensor(targets(np.asarray(batch["labels"]), classes))
    times: list[float] = []

    class Stock(transformers.Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            wanted = inputs.pop("targets")
            logits = model(**inputs).logits
            if logits.ndim > 2:  # a language model's, of every token
                last = inputs["attention_mask"].sum(1) - 1
                logits = logits[torch.arange(len(last)), last]
            f = logits[:, batch["verbalizers"]] @ coding.T
            return 0.5 * ((f - wanted.to(f)) ** 2).mean()

        def _get_train_sampler(self, *arguments, **named):
            return torch.utils.data.SequentialSampler(examples)

        def training_step(self, *arguments, **named):
            times.append(time.perf_counter())
            return super().training_step(*arguments, **named)

    examples = []
    for i in np.concatenate([_rows(batch, step, size) for step in range(steps)]):
        real = batch["attention_mask"][i].bool()
        examples.append({"input_ids": batch["input_ids"][i][real], "targets": y[i]})
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for parameter in chosen.values():
        parameter.requires_grad_(True)
    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            folder,
            per_device_train_batch_size=size,
            max_steps=steps,
            max_grad_norm=0.0,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            remove_unused_columns=False,
            use_cpu=next(model.parameters()).device.type == "cpu",
        )
        sgd = torch.optim.SGD(chosen.values(), lr=learning_rate, momentum=momentum)
        constant = torch.optim.lr_scheduler.LambdaLR(sgd, lambda step: 1.0)
        trainer = Stock(model, arguments, _padded, examples, optimizers=(sgd, constant))
        trainer.train()
        times.append(time.perf_counter())
    model.eval().requires_grad_(False)
    return list(np.diff(times))


def _padded(examples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Pad a batch on the right to its longest prompt, as the stock collator does."""
    pad = torch.nn.utils.rnn.pad_sequence
    ids = [example["input_ids"] for example in examples]
    return {
        "input_ids": pad(ids, batch_first=True),
        "attention_mask": pad([torch.ones_like(row) for row in ids], batch_first=True),
        "targets": torch.stack([example["targets"] for example in examples]),
    }


def merging_memory(folder: str | Path, numbers: int = 402_000_000, tensors: int = 96, vectors: int = 2) -> Row:
    """Make large vectors on disk, save their mean, and return (vector_gb, peak_gb, ratio, seconds).

    The default is the size of GPT-Neo-1.3B's attention weights. ``ratio`` is the peak growth of the process over the
    size of one vector. Disk: vectors + 1 files of ``4 * numbers`` bytes, removed afterwards.
    """
    size = numbers // tensors
    specs = {f"layers.{i}.weight": TensorSpec(torch.float32, (size,)) for i in range(tensors)}
    with tempfile.TemporaryDirectory(dir=folder) as made:
        paths = [Path(made) / f"{i}.safetensors" for i in range(vectors)]
        for i, path in enumerate(paths):
            write_tensor_file(path, specs, partial(_constant, torch.full((size,), float(i + 1))))

        def merge() -> None:
            loaded = [TaskVector.load(path) for path in paths]
            mean = sum(loaded[1:], start=loaded[0]) / len(paths)
            mean.save(Path(made) / "mean.safetensors")

        _, seconds, peak = measured(merge)
    one = 4e-9 * size * tensors
    return {"vector_gb": one, "peak_gb": peak / 1e9, "ratio": peak / 1e9 / one, "seconds": seconds}


def _constant(values: torch.Tensor, name: str) -> torch.Tensor:
    return values
