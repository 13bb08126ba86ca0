# %% [markdown]
# # Stop a Trainer run
#
# You have a `transformers.Trainer` and no rows to spare for validation.
# `StopwiseCallback` reads the kernel of the training rows before the first step, replays your schedule on it, and stops
# the run where the expected loss of new rows is least.

# %%
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    set_seed,
)

from stopwise import Task
from stopwise.integrations.callback import StopwiseCallback
from stopwise.integrations.preview import preview

MODEL = "sentence-transformers/all-MiniLM-L6-v2"  # a Hugging Face id, or a folder
ROWS = 64
EPOCHS = 8  # the most that you would train; the callback stops earlier

# %% [markdown]
# Any rows with `input_ids`, `attention_mask` and `labels` will do.
# Here they are movie reviews (32 MB, fetched once), the first of each label.

# %%
wanted, examples = {"negative": ROWS // 2, "positive": ROWS // 2}, []
for row in Task.from_config("movie").rows:
    score = float(row["sentiment"])
    label = "positive" if score > 0 else "negative"
    if abs(score) >= 1 and wanted[label]:
        wanted[label] -= 1
        examples.append((row["text"], label))

# %%
set_seed(0)
tokenizer = AutoTokenizer.from_pretrained(MODEL)
model = AutoModelForSequenceClassification.from_pretrained(MODEL, num_labels=2)
train = [
    {**tokenizer(text, truncation=True, max_length=48), "labels": int(label == "positive")} for text, label in examples
]

# %% [markdown]
# ## Ask first
#
# `preview` says what the callback would do. Nothing is trained.

# %%
args = TrainingArguments(
    "out",
    num_train_epochs=EPOCHS,
    learning_rate=2e-4,
    per_device_train_batch_size=8,
    save_strategy="no",
    report_to="none",
)
trainer = Trainer(
    model,
    args,
    train_dataset=train,
    data_collator=DataCollatorWithPadding(tokenizer),
    callbacks=[StopwiseCallback()],
)
answer = preview(trainer)
print(f"stop after {answer.epochs:.1f} of {EPOCHS} epochs")
print(f"expected log-loss {answer.expected_loss:.3f}, accuracy {answer.expected_accuracy:.2f}")
print("reservations:", ", ".join(answer.flags) or "none")

# %% [markdown]
# ## Train
#
# The run ends at the stop.
# With `StopwiseCallback(stop=False)` it is only told, and the run is the same to the last bit.

# %%
trainer.train()
state = trainer.state
print(f"stopped after {state.epoch:.1f} epochs, at step {state.global_step} of {state.max_steps}")
