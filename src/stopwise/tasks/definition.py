"""A task's definition, checked key by key: columns, words, scores and sizes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from stopwise.tasks.batch import TaskError

AUTO = "auto"
SIGNS = ("negative", "positive")
DEFAULTS = {"max_tokens": 24, "validation": 32, "test": 96, "train": 64}
OTHER_LABELS = ("error", "leave_out")


def numbered(column: Any) -> Any:
    """Return a column given by its number as text; anything else as it is."""
    return str(column) if isinstance(column, int) and not isinstance(column, bool) else column


def check_keys(given: Mapping[str, Any], allowed: Sequence[str], key: str) -> None:
    """Raise TaskError for a key that is not allowed."""
    unknown = sorted(str(name) for name in given if name not in allowed)
    if unknown:
        raise TaskError(f"{key}: unknown key {', '.join(unknown)}; allowed: {', '.join(allowed)}")


def text_of(value: Any, key: str) -> str:
    """Return a value that must be text."""
    if not isinstance(value, str) or not value:
        raise TaskError(f"{key}: {value!r} is not text")
    return value


def columns_of(value: Any, key: str) -> tuple[str, ...]:
    """Return the text columns: one, or a list of distinct ones, by name or by number."""
    value = [numbered(column) for column in value] if isinstance(value, (list, tuple)) else numbered(value)
    columns = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, (list, tuple)) else ()
    if not columns or not all(isinstance(c, str) and c for c in columns) or len(set(columns)) != len(columns):
        raise TaskError(f"{key}: {value!r} is not a column name or a list of distinct ones")
    return columns


def words_of(value: Any, key: str) -> dict[str, str]:
    """Return the word of each label, none when they are to be chosen."""
    if value is None or value == AUTO:
        return {}
    if not isinstance(value, Mapping) or len(value) < 2:
        raise TaskError(f"{key}: {value!r} is neither auto nor a mapping from at least two labels to words")
    words = {str(label): word for label, word in value.items()}
    for label, word in words.items():
        if not isinstance(word, str) or not word.strip():
            raise TaskError(f"{key}.{label}: {word!r} is not a word")
    repeated = [word for word, times in Counter(words.values()).items() if times > 1]
    if repeated or len(words) != len(value):
        raise TaskError(f"{key}: {repeated or list(value)} stands for two labels; allowed: distinct labels and words")
    return words


def score_of(value: Any, verbalizers: Any, key: str) -> float | None:
    """Return the smallest absolute score that counts, None where the label is no score."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise TaskError(f"{key}.minimum_abs_score: {value!r} is not a number >= 0")
    if verbalizers not in (None, AUTO) and set(verbalizers) != set(SIGNS):
        raise TaskError(
            f"{key}.verbalizers: a score gives the labels {', '.join(SIGNS)}, found {', '.join(verbalizers)}"
        )
    return float(value)


def sizes_of(defaults: Mapping[str, Any]) -> dict[str, int]:
    """Return the data section, completed."""
    check_keys(defaults, tuple(DEFAULTS), "data")
    sizes = {**DEFAULTS, **defaults}
    for key, value in sizes.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise TaskError(f"data.{key}: {value!r} is not an integer >= 1")
    return sizes


def leaves_out(value: Any, key: str) -> bool:
    """Return whether rows of labels without a word are left out rather than refused."""
    if value not in OTHER_LABELS:
        raise TaskError(f"{key}.other_labels: {value!r} is not one of {', '.join(OTHER_LABELS)}")
    return value == "leave_out"
