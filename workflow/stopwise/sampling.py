"""Which row goes where: one balanced, nested, grouped sample per seed, with a test set that no seed changes.

Rows are put in an order by a hash of the seed and their own content, never by a random generator: the sample does not
depend on library versions or on the order of the file, and a row added to a file moves few others.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass


class SplitError(ValueError):
    """Too few rows, or groups, for the splits asked for."""

    def __init__(self, split: str, wanted: int, available: int) -> None:
        self.split, self.wanted, self.available = split, wanted, available
        super().__init__(f"{split}: {wanted} rows wanted, {available} available")


@dataclass(frozen=True)
class Rows:
    """What splitting may look at: of each row, its class, its group, and a key of its content (unique)."""

    labels: Sequence[int]
    groups: Sequence[str]
    keys: Sequence[str]


def split_rows(rows: Rows, *, train: int, validation: int, test: int, seed: int) -> dict[str, list[int]]:
    """Return the indices of the train, validation and test rows, each list in its nested order.

    The test rows depend on ``test`` alone, not on the seed; the others are drawn by seed from what is left, without any
    row of a group that is used already. Every prefix of a list is balanced: class counts differ by at most one while
    no class has run out. The training rows are a prefix of those of any larger ``train``. Raises SplitError when the
    rows do not suffice. Cost: O(N log N) for N rows.
    """
    left = list(range(len(rows.labels)))
    held: dict[str, list[int]] = {}
    for name, count, salt in (("test", test, "test"), ("validation", validation, f"validation {seed}")):
        held[name] = _held_out(rows, left, name, count, salt)
        used = {rows.groups[i] for i in held[name]}
        left = [i for i in left if rows.groups[i] not in used]
    if len(left) < train:
        raise SplitError("train", train, len(left))
    drawn = _draw(rows, left, train, f"train {seed}")
    return {"train": drawn, "validation": held["validation"], "test": held["test"]}


def _rank(salt: str, key: str) -> bytes:
    return hashlib.blake2b(f"{salt}\0{key}".encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _draw(rows: Rows, pool: Sequence[int], count: int, salt: str) -> list[int]:
    """Return ``count`` rows of the pool: rounds over the classes, in a fresh order each round, one row of each."""
    queues: dict[int, deque[int]] = {}
    for i in sorted(pool, key=lambda i: _rank(salt, rows.keys[i])):
        queues.setdefault(rows.labels[i], deque()).append(i)
    drawn: list[int] = []
    turn = 0
    while len(drawn) < min(count, len(pool)):
        order = sorted((c for c in queues if queues[c]), key=lambda c: _rank(salt, f"round {turn} class {c}"))
        drawn += [queues[c].popleft() for c in order]
        turn += 1
    return drawn[:count]


def _held_out(rows: Rows, left: Sequence[int], name: str, count: int, salt: str) -> list[int]:
    """Return a balanced held-out set from the first part of the groups, so that enough of each class is left over.

    A third of the groups is looked at; up to half when that is needed for balance; more only when there are too few
    rows. Within that part all rows are drawn freely: many groups, few rows of each.
    """
    if len(left) < count:
        raise SplitError(name, count, len(left))
    by_group: dict[str, list[int]] = {}
    for i in left:
        by_group.setdefault(rows.groups[i], []).append(i)
    groups = sorted(by_group, key=lambda group: _rank(salt, group))
    classes = {rows.labels[i] for i in left}
    share = math.ceil(count / len(classes))
    pool: list[int] = []
    found: Counter[int] = Counter()
    for position, group in enumerate(groups):
        enough = len(pool) >= count
        balanced = enough and all(found[c] >= share for c in classes)
        if (position >= len(groups) / 3 and balanced) or (position >= len(groups) / 2 and enough):
            break
        pool += by_group[group]
        found.update(rows.labels[i] for i in by_group[group])
    return _draw(rows, pool, count, salt)
