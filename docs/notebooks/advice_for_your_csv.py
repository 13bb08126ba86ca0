# %% [markdown]
# # Advice for your CSV
#
# You have a CSV with a column of texts and a column of labels, and few rows of it are labelled.
# Before any training, stopwise says how long to fine-tune a classifier on them, at which rate, and what to expect.
# It takes about three minutes on two cores, most of it waiting for downloads.

# %%
import csv
from pathlib import Path

from stopwise import Task, advise

FILE, TEXT, LABEL = "reviews.csv", "text", "label"  # your file and its columns
MODEL = "minilm"  # a small encoder, fetched once (84 MB); any Hugging Face id or folder works

# %% [markdown]
# Without a file of your own, this writes one from a set of movie reviews (32 MB, fetched once).

# %%
if not Path(FILE).exists():
    with open(FILE, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow([TEXT, LABEL])
        for row in Task.from_config("movie").rows:
            score = float(row["sentiment"])
            if abs(score) >= 1:
                table.writerow([row["text"], "positive" if score > 0 else "negative"])

# %% [markdown]
# ## Ask
#
# At most 64 rows are read, as evenly over the labels as they come.
# Nothing is trained.

# %%
advice = advise(MODEL, FILE, text=TEXT, label=LABEL, max_examples=64)
print(advice)

# %% [markdown]
# For the movie reviews the first line is:
#
# > Do not train: guessing by the labels' shares does as well as any training of up to 40 epochs.
#
# That holds for small steps, which the kernel predicts: at these, 64 reviews do not teach the small encoder enough.
# `learning_rate=5e-5, epochs=4, verify=4` lets four real trainings say what the usual rate does.
#
# The numbers are there as well:

# %%
print(advice.kind, advice.stop.epochs, advice.stop.t, advice.stop.loss_interval(advice.stop.best))

# %% [markdown]
# ## Look
#
# The curve is the expected log-loss of a new text along training, with the stop.
# Where it is flat, the exact step does not matter.

# %%
figure = advice.figure()
figure.savefig("advice.png", dpi=120)
figure  # noqa: B018 (a notebook shows the last value of a cell)

# %% [markdown]
# ## Keep it
#
# The folder has the whole answer as text, the figure, the tables, and a script that trains so.

# %%
print(advice.write("advice"))
