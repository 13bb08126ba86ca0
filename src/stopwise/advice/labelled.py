"""The examples of a training with a classification head, whose labels may be of any words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stopwise.advice.held_out import stratified_order
from stopwise.advice.plan import FEWEST_EXAMPLES, Plan
from stopwise.advice.rows import read_data
from stopwise.advice.settings import AdviceError


@dataclass(frozen=True, eq=False)
class Labelled:
    """The examples used: ``texts`` [n] of one column or two, ``labels`` [n] as numbers of ``classes``, in file order.

    ``rows``: those of the data; ``distinct``: the texts left when repeats, and copies with another label, are gone.
    ``shares``: how many distinct texts each class has. ``notes``: what a person should know of how the data were read.
    ``rest``: texts and class of those not used, in an order whose every part holds the classes in their proportion.
    """

    texts: tuple[tuple[str, ...], ...]
    labels: np.ndarray
    classes: tuple[str, ...]
    rows: int
    shares: Mapping[str, int]
    notes: tuple[str, ...] = ()
    rest: tuple[tuple[tuple[str, ...], int], ...] = ()

    @property
    def distinct(self) -> int:
        """The number of distinct texts."""
        return sum(self.shares.values())

    @property
    def names(self) -> list[str]:
        """The label of each example in words."""
        return [self.classes[label] for label in self.labels]


def labelled(plan: Plan, data: Any = None) -> Labelled:
    """Return at most ``plan.max_examples`` distinct examples, the classes in their proportion in the data.

    ``data``: what ``rows.read_data`` takes. A label that one text has alone is left out, and said. Raises AdviceError,
    in one line, for data without two labels, or with too few texts.
    """
    file = read_data(plan, data)
    rows = file.task.rows
    known: dict[tuple[str, ...], set[str]] = {}
    for row in rows:
        known.setdefault(tuple(row[column].strip() for column in plan.text), set()).add(row[plan.label].strip())
    distinct = [(texts, next(iter(labels))) for texts, labels in known.items() if len(labels) == 1]
    counts = Counter(label for _, label in distinct)
    notes, rare = file.notes, sorted(label for label, count in counts.items() if count < 2)
    if len(counts) > max(len(distinct) / 2, 1):
        some = ", ".join(map(repr, sorted(counts)[:3]))
        raise AdviceError(
            f"--label: column {plan.label!r} holds {len(counts)} different values ({some}, ...) in {len(distinct)}"
            " distinct texts: is it the label column?"
        )
    if rare:
        distinct = [(texts, label) for texts, label in distinct if label not in rare]
        shown = ", ".join(map(repr, rare[:3])) + (f" and {len(rare) - 3} more" if len(rare) > 3 else "")
        notes = (*notes, f"labels with one text only are left out: {shown}")
    shares = dict(sorted((label, count) for label, count in counts.items() if count > 1))
    if len(shares) < 2:
        found = next(iter(shares), "")
        raise AdviceError(f"--label: column {plan.label!r} holds one label only, {found!r}; at least 2 needed")
    if len(distinct) < FEWEST_EXAMPLES:
        raise AdviceError(f"--data: {len(distinct)} distinct labelled texts; needs {FEWEST_EXAMPLES} or more")
    return _drawn(distinct, shares, len(rows), plan, notes)


def _drawn(
    distinct: Sequence[tuple[tuple[str, ...], str]],
    shares: Mapping[str, int],
    rows: int,
    plan: Plan,
    notes: tuple[str, ...],
) -> Labelled:
    """Return a seeded draw of the examples that holds two of every class, else their proportion."""
    classes = tuple(shares)
    labels = np.array([classes.index(label) for _, label in distinct])
    wanted = min(plan.max_examples, len(labels))
    if wanted < 2 * len(classes):
        raise AdviceError(
            f"--max-examples: {wanted} examples are too few for {len(classes)} labels; give {2 * len(classes)} or more"
        )
    order = stratified_order(labels, np.random.default_rng(plan.seed))
    first = [order[labels[order] == label][:2] for label in range(len(classes))]
    needed = np.concatenate(first)
    rest = order[~np.isin(order, needed)]
    # The draw by proportion, in which a rare class may have fewer than two, and what such a class lacks.
    drawn = [i for i in order[:wanted] if i not in set(needed)]
    chosen = np.sort(np.concatenate([needed, np.array(drawn[: wanted - len(needed)], dtype=np.int64)]))
    if len(chosen) < wanted:
        spare = rest[~np.isin(rest, chosen)][: wanted - len(chosen)]
        chosen = np.sort(np.concatenate([chosen, spare]))
    used = set(chosen.tolist())
    others = tuple((distinct[i][0], int(labels[i])) for i in order if i not in used)
    texts = tuple(distinct[i][0] for i in chosen)
    return Labelled(texts, labels[chosen], classes, rows, shares, notes, others)
