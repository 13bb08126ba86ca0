"""The answer as code: a complete Trainer script that runs as it is and ends with a saved model."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence

from stopwise.advice.larger import Larger
from stopwise.advice.text import number, percent
from stopwise.advice.under_schedule import TrainingAdvice
from stopwise.stopping.horizon import Horizon

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
@PART@
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
@PART@
with open(HERE / "examples.csv", encoding="utf-8", newline="") as file:
    rows = list(csv.DictReader(file))
train = [answer_example(tokenizer(row["prompt"])["input_ids"], words[LABELS.index(row["answer"])]) for row in rows]
"""

_LORA = """\
config = LoraConfig(
    task_type="@TASK@",
    r=@RANK@,
    lora_alpha=@ALPHA@,
    use_rslora=@RSLORA@,
    target_modules=@TARGET@,@SAVED@
)
model = get_peft_model(model, config)
"""

_FROZEN = """\
# Of the network @WHAT@ trained@HEADTOO@, as the advice supposes.
for name, parameter in model.named_parameters():
    parameter.requires_grad_(name.endswith(TRAINED))
"""

_STOP = """

class Stop(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= @STOPAT@  # where the real folds were best

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
@NAMES@@STOP@
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
    data_collator=@COLLATOR@(tokenizer),@LOSS@@CALLBACKS@
)
@TRAIN@
@SAVE@
tokenizer.save_pretrained(HERE / "model")
print("@EXPECT@")
print(f"The model is in {HERE / 'model'}; @USE@")
'''


_TRAIN = """\
done = trainer.train()
print(f"Trained for {done.global_step} steps in {done.metrics['train_runtime']:.0f} s.")"""
_NEXT_WORD = "its answer is the most probable of LABELS as the next token after a prompt"


def train_script(advice: TrainingAdvice) -> str:
    """Return train.py for an advice; it reads ``examples.csv`` and, of a head, ``head.safetensors`` beside itself."""
    head, names = advice.plan.head, trained_names(advice)
    values = _data_values(advice) | _training_values(advice)
    values |= {
        "TITLE": _title(advice),
        "IMPORTS": _imports(advice),
        "PART": _part(advice, bool(names)),
        "NAMES": f"TRAINED = {_tuple(names)}\n" if names else "",
        "STOP": _STOP.replace("@STOPAT@", str(advice.stop_at)) if advice.stop_at else "",
    }
    script = _SCRIPT.replace("@BODY@", _HEAD if head else _WORDS)
    return re.sub(r"@([A-Z]+)@", lambda found: values[found[1]], script)


def _data_values(advice: TrainingAdvice) -> dict[str, str]:
    """Return what the script says of the model and of the data."""
    plan, head = advice.plan, advice.plan.head
    start = "The head starts as a logistic regression on the features, as the advice supposes."
    if advice.penalty is None:
        start = "The head starts at random, with the numbers that the advice was computed for."
    return {
        "MODEL": json.dumps(advice.folder),
        "LABELS": json.dumps(list(advice.data.classes if head else advice.words), ensure_ascii=False),
        "SEED": str(plan.seed),
        "START": start,
        "COLUMNS": ", ".join(f'row["{name}"]' for name in columns_of(advice)[:-1]),
        "TOKENS": str(plan.max_tokens),
    }


def _training_values(advice: TrainingAdvice) -> dict[str, str]:
    """Return what the script says of the training."""
    plan, stop, advised = advice.plan, advice.stop, advice.kind != "do_not_train"
    about: Horizon | Larger = advice.carried or stop
    low, high = (steps / about.steps_per_epoch for steps in (about.low, about.high))
    if advice.folds is not None:
        low, high = advice.folds.within
    save = 'model.save_pretrained(HERE / "model")'
    if plan.adapter:
        save = (
            'model.save_pretrained(HERE / "adapter")  # for peft\n'
            'model.merge_and_unload().save_pretrained(HERE / "model")'
        )
    return {
        "EPOCHS": f"{max(advice.epochs, 0.0 if stop.t or advice.folds else 1.0):g}",
        "STEPS": str(advice.steps),
        "RANGE": f"; {low:.1f} to {high:.1f} epochs are within 5 % of the lowest expected log-loss",
        "RATE": f"{stop.learning_rate:.6g}",
        "SCHEDULE": plan.schedule,
        "WARMUP": str(advice.warmup_steps),
        "BATCH": str(plan.batch_size),
        "DECAY": f"{plan.weight_decay:g}",
        "CLIP": f"{plan.clip:g}",
        "COLLATOR": _collator(advice),
        "LOSS": "" if plan.head else "\n    compute_loss_func=answer_loss(words),",
        "CALLBACKS": "\n    callbacks=[Stop()]," if advice.stop_at else "",
        "TRAIN": _TRAIN if advised else "# trainer.train()  # advised against: it does not pay",
        "USE": "use it with pipeline('text-classification', model=...)" if plan.head else _NEXT_WORD,
        "EXPECT": _expected(advice),
        "SAVE": save,
    }


def _collator(advice: TrainingAdvice) -> str:
    return "DataCollatorWithPadding" if advice.plan.head else "DataCollatorForSeq2Seq"


def _imports(advice: TrainingAdvice) -> str:
    head = advice.plan.head
    auto = "AutoModelForSequenceClassification" if head else "AutoModelForCausalLM"
    own = ["Trainer", *(["TrainerCallback"] if advice.stop_at else []), "TrainingArguments", "set_seed"]
    names = [*sorted([auto, "AutoTokenizer", _collator(advice)]), *own]
    lines = ["from peft import LoraConfig, get_peft_model"] if advice.plan.adapter else []
    lines += ["from safetensors.torch import load_file"] if head else []
    lines.append("from transformers import (\n" + "".join(f"    {name},\n" for name in names) + ")")
    if not head:
        lines.append("\nfrom stopwise.integrations.losses import answer_example, answer_loss")
    return "\n".join(lines)


def _part(advice: TrainingAdvice, frozen: bool) -> str:
    """Return the lines that choose what is trained."""
    plan = advice.plan
    if frozen:
        what = "only the attention layers are" if plan.trained == "attention" else "only the linear layers are"
        return _FROZEN.replace("@WHAT@", what).replace("@HEADTOO@", ", and the head" if plan.head else "")
    if plan.lora is None:
        return ""
    saved = sorted({name.split(".")[0] for name in advice.head})
    values = {
        "TASK": "SEQ_CLS" if plan.head else "CAUSAL_LM",
        "RANK": str(plan.rank),
        "ALPHA": f"{plan.alpha:g}",
        "RSLORA": str(plan.rslora),
        "TARGET": json.dumps(plan.target if plan.target == "all-linear" else list(advice.targets)),
        "SAVED": f"\n    modules_to_save={json.dumps(saved)}," if plan.head else "",
    }
    return re.sub(r"@([A-Z]+)@", lambda found: values[found[1]], _LORA)


def trained_names(advice: TrainingAdvice) -> tuple[str, ...]:
    """Return the endings of the names of the trained parameters; none where all weights are, or an adapter is."""
    if advice.plan.adapter or advice.plan.trained == "all":
        return ()
    return tuple(sorted({re.sub(r"^.*\.\d+\.", "", name) for name in advice.trained}))


def _tuple(names: Sequence[str]) -> str:
    lines = "".join(f"    {json.dumps(name)},\n" for name in names)
    return f"(\n{lines})"


def _title(advice: TrainingAdvice) -> str:
    if advice.kind == "do_not_train":
        return "Fine-tuning is advised against: it does not pay on these examples."
    epochs = (advice.carried or advice.stop).epochs if advice.folds is None else advice.folds.epoch
    first = f"Fine-tune for {epochs:.1f} epochs at learning rate {number(advice.stop.learning_rate)}"
    right = _accuracy(advice)
    return f"{first}; expected accuracy {percent(right[0])} ({percent(right[1])} to {percent(right[2])})."


def _accuracy(advice: TrainingAdvice) -> tuple[float, float, float]:
    """Return the accuracy that is expected of what the script trains, and its 95 % interval."""
    if advice.folds is not None:
        return advice.folds.accuracy_interval(advice.folds.best)
    right = advice.stop.accuracy_interval(advice.stop.best)
    return right if advice.carried is None else advice.carried.accuracy or right


def _expected(advice: TrainingAdvice) -> str:
    """Return what the script says at its end: no label is left on which it could measure an accuracy."""
    if advice.kind == "do_not_train":
        return "Training was advised against: these examples do not pay for it."
    right = _accuracy(advice)
    return f"Expected on new texts: an accuracy of {percent(right[0])} ({percent(right[1])} to {percent(right[2])})."


def columns_of(advice: TrainingAdvice) -> list[str]:
    """Return the columns of examples.csv."""
    if not advice.plan.head:
        return ["prompt", "answer"]
    return ["text", "pair", "label"] if len(advice.plan.text) == 2 else ["text", "label"]


def examples_csv(advice: TrainingAdvice) -> str:
    """Return what train.py trains on as CSV."""
    text = io.StringIO()
    write = csv.writer(text)
    write.writerow(columns_of(advice))
    names = advice.data.classes if advice.plan.head else advice.words
    for texts, label in advice.examples:
        write.writerow([*texts, names[label]])
    return text.getvalue()
