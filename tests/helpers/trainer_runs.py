"""Small real Trainers on pico models, which record what they draw, for the tests of the callback."""

import numpy as np
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from stopwise.integrations.examples import read_examples
from stopwise.integrations.losses import answer_example, answer_loss
from stopwise.integrations.reading import linearised, trained_objective
from stopwise.integrations.trainer_schedule import TrainerRun, trainer_schedule
from stopwise.linearized.coding import coding_matrix
from stopwise.network.pico import pico_classifier, pico_model
from stopwise.network.quiet import untouched
from training_reference import VERBALIZERS, made_up_batch

N = 14


def rows_of(kind, n=N, classes=2, seed=0):
    """Rows of a training set as a Trainer takes them, each with its number."""
    made, out = made_up_batch(n, seed, classes), []
    for i in range(n):
        prompt, label = made["input_ids"][i][made["attention_mask"][i].bool()].tolist(), int(made["labels"][i])
        if kind == "words":
            row = answer_example(prompt, VERBALIZERS[label])
        else:
            row = {"input_ids": prompt, "attention_mask": [1] * len(prompt), "labels": label}
        out.append(row | {"number": i})
    return out


class Collate:
    """Pad on the right, and remember the numbers of the rows of every micro-batch."""

    def __init__(self):
        self.seen = []

    def __call__(self, rows):
        self.seen.append(np.array([row["number"] for row in rows]))
        longest = max(len(row["input_ids"]) for row in rows)

        def pad(key, fill):
            return torch.tensor([row[key] + [fill] * (longest - len(row[key])) for row in rows])

        labels = [row["labels"] for row in rows]
        out = {"input_ids": pad("input_ids", 0), "attention_mask": pad("attention_mask", 0)}
        return out | {"labels": pad("labels", -100) if isinstance(labels[0], list) else torch.tensor(labels)}


def network(kind, classes=2, dtype="float64", seed=0, **options):
    """A pico model of a kind: ``words`` (a llama with words), an architecture of a head, or these after ``lora-``."""
    kind, adapted = kind.removeprefix("lora-"), kind.startswith("lora-")
    if kind == "words":
        model = pico_model("llama", dtype=dtype, seed=seed, **options)
    else:
        model = pico_classifier(kind, classes, dtype=dtype, seed=seed, **options)
    if not adapted:
        return model.requires_grad_(True)
    from peft import LoraConfig, get_peft_model

    names = "all-linear" if kind == "words" else ["query", "value"]
    settings = {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": names,
        "task_type": "CAUSAL_LM" if kind == "words" else "SEQ_CLS",
    }
    torch.manual_seed(seed)
    return get_peft_model(model, LoraConfig(**settings)).to(getattr(torch, dtype))


def make(kind, folder, callbacks=(), n=N, classes=2, model=None, rows=None, loss="words", dtype="float64", **values):
    """Return a Trainer that trains little and fast; ``trainer.data_collator.seen`` has its micro-batches."""
    base = kind.removeprefix("lora-")
    model = network(kind, classes, dtype) if model is None else model
    own = {"num_train_epochs": 3, "per_device_train_batch_size": 4, "learning_rate": 1e-3, "use_cpu": True, "seed": 7}
    own |= {"report_to": "none", "save_strategy": "no", "logging_steps": 100, "disable_tqdm": True}
    own |= {"remove_unused_columns": False}
    losses = {"words": answer_loss(VERBALIZERS[:classes]), "vocabulary": answer_loss(), "model": None}
    return Trainer(
        model,
        TrainingArguments(str(folder), **own | values),
        train_dataset=rows_of(base, n, classes) if rows is None else rows,
        data_collator=Collate(),
        compute_loss_func=losses[loss] if base == "words" else None,
        callbacks=list(callbacks),
    )


def outputs(model, rows, classes=2, kind="words", coding="contrast"):
    """Outputs of the rows one by one, each from its own unpadded pass through the whole model; [n] of [columns]."""
    out, b = [], torch.as_tensor(coding_matrix(classes, coding))
    for row in rows:
        if kind == "words":
            at = next(i for i, label in enumerate(row["labels"]) if label >= 0)
            logits = model(input_ids=torch.tensor([row["input_ids"][:at]])).logits[0, -1]
            words = torch.tensor(VERBALIZERS[:classes])
            rest = logits[~torch.isin(torch.arange(len(logits)), words)].logsumexp(0)
            logits = torch.cat([logits[words], rest[None]]) if coding == "vocabulary" else logits[words]
        else:
            logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0]
        out.append(b.to(logits.dtype) @ logits)
    return out


def jacobian(model, rows, parameters, **options):
    """J [n * columns, P] by autograd, and f0 [n, columns]; float64."""
    was = model.training
    model.eval()
    f = outputs(model, rows, **options)
    found = []
    for value in (value for row in f for value in row):  # of one row's graph: backward visits no other row
        own = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
        filled = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, own, strict=True)]
        found.append(torch.cat([g.flatten() for g in filled]))
    model.train(was)
    return torch.stack(found).double().numpy(), torch.stack(f).detach().double().numpy()


class Reader(TrainerCallback):
    """Keep the run as the callback is given it, and its linearisation at the beginning or after some steps."""

    def __init__(self, trainer, at=0):
        self.trainer, self.at, self.read = trainer, at, None
        trainer.add_callback(self)

    def keep(self, args, state, model, optimizer, lr_scheduler, train_dataloader):
        run = TrainerRun(model, args, optimizer, lr_scheduler, train_dataloader, state.max_steps, self.trainer)
        with untouched(model):
            examples = read_examples(model, run.dataset, run.collate, 256, 0)
            objective, flags = trained_objective(run, examples)
            schedule, own = trainer_schedule(run, examples, self.at)
            net, schedule, found = linearised(run, examples, objective, schedule)
        self.read = examples, objective, schedule, net, (*flags, *own, *found)
        self.trainer.data_collator.seen.clear()

    def on_train_begin(self, args, state, control, **given):
        if self.at == 0:
            given = {k: given[k] for k in ("model", "optimizer", "lr_scheduler", "train_dataloader")}
            self.keep(args, state, **given)


def drawn_by(trainer, together):
    """Micro-batches of the optimizer steps that a trained Trainer drew, epoch by epoch."""
    seen, out, per_epoch = trainer.data_collator.seen, [], len(trainer.get_train_dataloader())
    for first in range(0, len(seen), per_epoch):
        epoch = seen[first : first + per_epoch]
        out += [epoch[s : s + together] for s in range(0, len(epoch), together)]
    return out
