"""A small made-up file of texts whose labels are of several words, and a pico encoder in a folder."""

import csv

import numpy as np

from stopwise.network.pico import pico_classifier, pico_tokenizer

TOPICS = {
    "late delivery": ["parcel", "courier", "waiting", "tracking", "shipped"],
    "money back": ["refund", "charged", "invoice", "payment", "bank"],
    "does not work": ["broken", "error", "crash", "screen", "battery"],
}
FILLERS = ["the", "my", "please", "again", "today", "still", "very", "now"]


def topic_rows(n=30, seed=0):
    rng, labels = np.random.default_rng(seed), list(TOPICS)
    rows = []
    for i in range(n):
        label = labels[i % len(labels)]
        words = [*rng.choice(TOPICS[label], 2), *rng.choice(FILLERS, 3), str(i)]
        rows.append({"text": " ".join(rng.permutation(words)), "label": label})
    return rows


def write_topics(path, n=30, seed=0):
    with path.open("w", newline="", encoding="utf-8") as file:
        write = csv.DictWriter(file, ["text", "label"])
        write.writeheader()
        write.writerows(topic_rows(n, seed))
    return str(path)


def encoder_folder(path, arch="bert"):
    pico_classifier(arch, 2, dtype="float32").base_model.save_pretrained(path)
    pico_tokenizer().save_pretrained(path)
    return str(path)
