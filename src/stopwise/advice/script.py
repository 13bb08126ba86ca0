"""The answer as code: a complete Trainer script that runs as it is and ends with a saved model."""

from __future__ import annotations

import csv
import io
import json
import re

from stopwise.advice.text import number, percent
from stopwise.advice.under_schedule import TrainingAdvice

_HEAD = """\
tokenizer = AutoTokenizer.from_pretrained(MODEL)
tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
names = dict(enumerate(LABELS))
model = AutoModelForSequenceClassification.from_pretrained(
    MODEL,
    num_labels=len(LABELS),
    id2label=names,
    label2id={name: i for i, name in names.items()},
    pad_token_id=tokenizer.pad_token_id,
    ignore_mismatched_sizes=True,
    dtype="float32",
)
# @START@
model.load_state_dict(load_file(HERE / "head.safetensors"), strict=False)

with open(HERE / "examples.csv", encoding="utf-8", newline="") as file:
    rows = list(csv.DictReader(file))
train = [
    {**tokenizer(@COLUMNS@, truncation=True, max_length=@TOKENS@), "labels": LABELS.index(row["label"])}
    for row in rows
]
"""

_WORDS = """\
tokenizer = AutoTokenizer.from_pretrained(MODEL)
tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
model = AutoModelForCausalLM.from_pretrained(MODEL, dtype="float32")
words = [tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in LABELS]

with open(HERE / "examples.csv", encoding="utf-8", newline="") as file:
    rows = list(csv.DictReader(file))
train = [answer_example(tokenizer(row["prompt"])["input_ids"], words[LABELS.index(row["answer"])]) for row in rows]
"""

_SCRIPT = '''\
"""@TITLE@

Run it as it is: python train.py. The trained model is put into the folder model beside this file.
"""

import csv
from pathlib import Path

@IMPORTS@

HERE = Path(__file__).resolve().parent
MODEL = @MODEL@
LABELS = @LABELS@

set_seed(@SEED@)
@BODY@
args = TrainingArguments(
    str(HERE / "trainer"),
    num_train_epochs=@EPOCHS@,  # @STEPS@ steps@RANGE@
    learning_rate=@RATE@,
    lr_scheduler_type="@SCHEDULE@",
    warmup_steps=@WARMUP@,
    per_device_train_batch_size=@BATCH@,
    weight_decay=@DECAY@,
    max_grad_norm=@CLIP@,
    seed=@SEED@,
    save_strategy="no",
    report_to="none",
)
trainer = Trainer(
    model,
    args,
    train_dataset=train,
    data_collator=@COLLATOR@(tokenizer),@LOSS@
)
@TRAIN@
model.save_pretrained(HERE / "model")
tokenizer.save_pretrained(HERE / "model")
'''


def train_script(advice: TrainingAdvice) -> str:
    """Return train.py for an advice; it reads ``examples.csv`` and, of a head, ``head.safetensors`` beside itself."""
    plan, stop, head = advice.plan, advice.stop, advice.plan.head
    auto = "AutoModelForSequenceClassification" if head else "AutoModelForCausalLM"
    collator = "DataCollatorWithPadding" if head else "DataCollatorForSeq2Seq"
    names = [*sorted([auto, "AutoTokenizer", collator]), "Trainer", "TrainingArguments", "set_seed"]
    own = ["from safetensors.torch import load_file"] if head else []
    imports = [*own, "from transformers import (\n" + "".join(f"    {name},\n" for name in names) + ")"]
    if not head:
        imports.append("\nfrom stopwise.integrations.losses import answer_example, answer_loss")
    columns = [f'row["{name}"]' for name in columns_of(advice)[:-1]]
    start = "The head starts as a logistic regression on the features, as the advice supposes."
    if advice.penalty is None:
        start = "The head starts at random, with the numbers that the advice was computed for."
    low, high = (steps / stop.steps_per_epoch for steps in (stop.low, stop.high))
    values = {
        "TITLE": _title(advice),
        "IMPORTS": "\n".join(imports),
        "MODEL": json.dumps(advice.folder),
        "LABELS": json.dumps(list(advice.data.classes if head else advice.words), ensure_ascii=False),
        "SEED": str(plan.seed),
        "START": start,
        "COLUMNS": ", ".join(columns),
        "TOKENS": str(plan.max_tokens),
        "EPOCHS": f"{max(advice.epochs, 1.0 if stop.t == 0 else 0.0):g}",
        "STEPS": str(stop.t),
        "RANGE": f"; {low:.1f} to {high:.1f} epochs cost less than 5 %",
        "RATE": f"{stop.learning_rate:.6g}",
        "SCHEDULE": plan.schedule,
        "WARMUP": str(advice.warmup_steps),
        "BATCH": str(plan.batch_size),
        "DECAY": f"{plan.weight_decay:g}",
        "CLIP": f"{plan.max_grad_norm:g}",
        "COLLATOR": collator,
        "LOSS": "" if head else "\n    compute_loss_func=answer_loss(words),",
        "TRAIN": "trainer.train()" if stop.t else "# trainer.train()  # advised against: the start is as good",
    }
    script = _SCRIPT.replace("@BODY@", _HEAD if head else _WORDS)
    return re.sub(r"@([A-Z]+)@", lambda found: values[found[1]], script)


def _title(advice: TrainingAdvice) -> str:
    stop = advice.stop
    right = stop.accuracy_interval(stop.best)
    first = f"Fine-tune for {stop.epochs:.1f} epochs at learning rate {number(stop.learning_rate)}"
    return f"{first}; expected accuracy {percent(right[0])} ({percent(right[1])} to {percent(right[2])})."


def columns_of(advice: TrainingAdvice) -> list[str]:
    """Return the columns of examples.csv."""
    if not advice.plan.head:
        return ["prompt", "answer"]
    return ["text", "pair", "label"] if len(advice.plan.text) == 2 else ["text", "label"]


def examples_csv(advice: TrainingAdvice) -> str:
    """Return the examples used as CSV: what train.py trains on."""
    text = io.StringIO()
    write = csv.writer(text)
    write.writerow(columns_of(advice))
    names = advice.data.classes if advice.plan.head else advice.words
    for texts, label in zip(advice.data.texts, advice.data.labels, strict=True):
        write.writerow([*texts, names[label]])
    return text.getvalue()
