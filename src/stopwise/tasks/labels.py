"""The labels of a file: which are classes, which are too many or too rare, and which cells hold several."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

MOST_CLASSES = 20
FEWEST_OF_A_CLASS = 2  # one to learn from, one to look at
SEPARATORS = (";", "|", ",")
HOW_TO = "make one column that holds one label a row: keep the first, or one row for each"


class LabelError(ValueError):
    """A label column that cannot be classes."""


@dataclass(frozen=True)
class Classes:
    """The labels that are classes, sorted; those left out; and what is said of these."""

    labels: tuple[str, ...]
    left_out: tuple[str, ...] = ()
    said: tuple[str, ...] = ()


def choose_classes(texts: Mapping[str, int]) -> Classes:
    """Return the classes among labels, given how many distinct texts each has: the commonest 20 that have 2 or more."""
    rare = sorted(label for label, count in texts.items() if count < FEWEST_OF_A_CLASS)
    common = sorted(set(texts) - set(rare), key=lambda label: (-texts[label], label))
    kept, dropped = sorted(common[:MOST_CLASSES]), common[MOST_CLASSES:]
    said = []
    if rare and len(kept) >= 2:
        one = len(rare) == 1
        said.append(
            f"{'label' if one else 'labels'} {_listed(rare)} left out: {'it has' if one else 'they have'} one text"
            " only, and a class needs 2"
        )
    if dropped:
        share = sum(texts[label] for label in kept) / sum(texts.values())
        said.append(
            f"{len(texts)} labels: the commonest {MOST_CLASSES} are used, which hold {100 * share:.0f} % of the texts;"
            " the others are left out"
        )
    return Classes(tuple(kept), tuple(sorted([*rare, *dropped])), tuple(said))


def _listed(labels: Sequence[str], most: int = 3) -> str:
    return ", ".join(map(repr, labels[:most])) + (f" and {len(labels) - most} more" if len(labels) > most else "")


def check_one_label(values: Iterable[str], column: str, one_hot: Sequence[str] = ()) -> None:
    """Raise LabelError, in one line that says what to do, for cells of several labels and for one-hot columns."""
    if one_hot:
        shown = ", ".join(one_hot[:6]) + (", …" if len(one_hot) > 6 else "")
        raise LabelError(
            f"column {column!r} is one of {len(one_hot)} one-hot columns ({shown}), and one label column is needed:"
            " make one that holds the name of the column that is 1 (in pandas: table[columns].idxmax(axis=1))"
        )
    found = several_labels(Counter(values))
    if found:
        raise LabelError(f"column {column!r} holds {found!r}: several labels an example are not supported; {HOW_TO}")


def several_labels(counts: Mapping[str, int]) -> str | None:
    """Return a cell that holds several labels, such as ``red;blue``, or None.

    A separator parts labels, and is not punctuation within one, when every part of every cell that has it recurs: as a
    label of its own, or (not for commas) in another such cell. A list written out, ``['red', 'blue']``, is one too.
    """
    labels = list(counts)
    listed = next((label for label in labels if label[:1] in "[{(" and label[-1:] in "]})" and "," in label), None)
    if listed:
        return listed
    for separator in SEPARATORS:
        joined = [label for label in labels if separator in label.strip(separator)]
        if not joined:
            continue
        parts = {label: [part.strip() for part in label.split(separator) if part.strip()] for label in joined}
        uses = Counter(part for label in joined for part in set(parts[label]))
        whole = set(labels) - set(joined)
        recurring = all(
            part in whole or (separator != "," and uses[part] > 1) for label in joined for part in parts[label]
        )
        if recurring:
            return joined[0]
    return None
