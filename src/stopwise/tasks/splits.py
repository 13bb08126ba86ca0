"""Which row goes where: one balanced, nested, grouped sample per seed, with a test set that no seed changes.

Rows are put in an order by a hash of the seed and their own content, never by a random generator: the sample does not
depend on library versions or on the order of the file, and a row added to a file moves few others.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter, deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

SPLITS = ("train", "validation", "test")


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


@dataclass
class _Seen:
    """What has been drawn so far, as the model will see it: a row that looks the same to it is passed over."""

    look: Callable[[int], Hashable]
    drawn: set[Hashable] = field(default_factory=set)

    def new(self, i: int) -> bool:
        look = self.look(i)
        if look in self.drawn:
            return False
        self.drawn.add(look)
        return True


def split_rows(
    rows: Rows, *, train: int, validation: int, test: int, seed: int, look: Callable[[int], Hashable] | None = None
) -> dict[str, list[int]]:
    """Return the indices of the train, validation and test rows, each list in its nested order.

    The test rows depend on ``test`` alone, not on the seed; the others are drawn by seed from what is left, without any
    row of a group that is used already. Every prefix of a list is balanced: class counts differ by at most one while
    no class has run out. The training rows are a prefix of those of any larger ``train``. ``look`` gives what the model
    sees of a row, asked for drawn rows only (default: its key): no two rows of the sample look the same, the test rows
    are chosen first and the training rows last. Raises SplitError when the rows do not suffice. Cost: O(N log N) for N
    rows.
    """
    left = list(range(len(rows.labels)))
    seen = _Seen(look or (lambda i: rows.keys[i]))
    held: dict[str, list[int]] = {}
    for name, count, salt in (("test", test, "test"), ("validation", validation, f"validation {seed}")):
        held[name] = _held_out(rows, left, name, count, salt, seen)
        used = {rows.groups[i] for i in held[name]}
        left = [i for i in left if rows.groups[i] not in used]
    if len(left) < train:
        raise SplitError("train", train, len(left))
    drawn = _draw(rows, left, train, f"train {seed}", seen)
    if len(drawn) < train:
        raise SplitError("train", train, len(drawn))
    return {"train": drawn, "validation": held["validation"], "test": held["test"]}


def _rank(salt: str, key: str) -> bytes:
    return hashlib.blake2b(f"{salt}\0{key}".encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _draw(rows: Rows, pool: Sequence[int], count: int, salt: str, seen: _Seen) -> list[int]:
    """Return ``count`` rows of the pool: rounds over the classes, in a fresh order each round, one row of each.

    Fewer where too many look like others.
    """
    queues: dict[int, deque[int]] = {}
    for i in sorted(pool, key=lambda i: _rank(salt, rows.keys[i])):
        queues.setdefault(rows.labels[i], deque()).append(i)
    drawn: list[int] = []
    turn = 0
    while len(drawn) < count and any(queues.values()):
        for c in sorted((c for c in queues if queues[c]), key=lambda c: _rank(salt, f"round {turn} class {c}")):
            while len(drawn) < count and queues[c]:
                if seen.new(i := queues[c].popleft()):
                    drawn.append(i)
                    break
        turn += 1
    return drawn


def _held_out(rows: Rows, left: Sequence[int], name: str, count: int, salt: str, seen: _Seen) -> list[int]:
    """Return a balanced held-out set from the first part of the groups, so that enough of each class is left over.

    A third of the groups is looked at; up to half when that is needed for balance; more only when there are too few
    rows that look different. Within that part all rows are drawn freely: many groups, few rows of each.
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
    drawn = _draw(rows, pool, count, salt, seen)
    if len(drawn) < count:
        inside = set(pool)
        drawn += _draw(rows, [i for i in left if i not in inside], count - len(drawn), salt, seen)
    if len(drawn) < count:
        raise SplitError(name, count, len(drawn))
    return drawn
