"""Write tests/data/*.csv, made-up sentences with a label to be learned from their words."""

from __future__ import annotations

import csv
import hashlib
import io
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "data"
ROWS = 400
NEUTRAL = ("the", "a", "this", "that", "one", "very")
FRAMES = (
    "we saw {0} {1} and {2} {3}",
    "{0} {1} was near {2} {3}",
    "it is {0} {1} with {2} {3}",
    "{0} {1} and {2} {3} in the day",
)
FILES = {
    "colours": {"red": "rose fire ruby brick cherry", "blue": "sea sky ocean ink denim"},
    "moods": {"positive": "party gift song smile dance", "negative": "rain grave tears loss storm"},
    "feelings": {
        "happy": "party gift song smile dance",
        "sad": "rain grave tears loss storm",
        "calm": "lake tea book nap garden",
    },
}
AGREE = 0.85  # share of content words that come from the label's own list: learnable, not trivial


def uniform(*key: object) -> float:
    """Return a number in [0, 1) that depends on the key alone, on every machine and version."""
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:6], "big") / 2**48


def pick(options, *key: object):
    return options[int(uniform(*key) * len(options))]


def sentence(name: str, label: str, number: int) -> str:
    words = []
    for slot in range(2):
        others = [other for other in FILES[name] if other != label]
        chosen = label if uniform(name, number, slot, "agree") < AGREE else pick(others, name, number, slot, "other")
        words += [pick(NEUTRAL, name, number, slot, "neutral"), pick(FILES[name][chosen].split(), name, number, slot)]
    return pick(FRAMES, name, number, "frame").format(*words)


def content(name: str) -> str:
    """Return one file: columns text, label and author (one of 50, for grouped splits), no sentence twice."""
    labels = list(FILES[name])
    seen: set[str] = set()
    rows = []
    number = 0
    while len(rows) < ROWS:
        label = labels[len(rows) % len(labels)]
        text = sentence(name, label, number)
        if text not in seen:
            seen.add(text)
            rows.append([text, label, f"author {int(uniform(name, number, 'author') * 50)}"])
        number += 1
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([["text", "label", "author"], *rows])
    return out.getvalue()


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name in FILES:
        (FOLDER / f"{name}.csv").write_text(content(name), encoding="utf-8")
