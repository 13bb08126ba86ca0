"""The examples of a training, with labels of any words: from a file, a data frame or a ``datasets.Dataset``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stopwise.advice.data import read_file
from stopwise.advice.held_out import stratified_order
from stopwise.advice.plan import FEWEST_EXAMPLES, Plan
from stopwise.advice.settings import AdviceError

TEXT_COLUMNS = ("text", "sentence", "question", "review", "content")
LABEL_COLUMNS = ("label", "labels", "category", "class", "sentiment", "target")


@dataclass(frozen=True, eq=False)
class Labelled:
    """The examples used: ``texts`` [n] of one column or two, ``labels`` [n] as numbers of ``classes``, in file order.

    ``rows``: those of the data; ``distinct``: the texts left when repeats, and copies with another label, are gone.
    ``shares``: how many distinct texts each class has.
    """

    texts: tuple[tuple[str, ...], ...]
    labels: np.ndarray
    classes: tuple[str, ...]
    rows: int
    shares: Mapping[str, int]

    @property
    def distinct(self) -> int:
        """The number of distinct texts."""
        return sum(self.shares.values())

    @property
    def names(self) -> list[str]:
        """The label of each example in words."""
        return [self.classes[label] for label in self.labels]


def labelled(plan: Plan, data: Any) -> Labelled:
    """Return at most ``plan.max_examples`` distinct examples, the classes in their proportion in the data.

    ``data``: a path, a pandas DataFrame, a ``datasets.Dataset``, or rows as mappings. Raises AdviceError, in one line,
    for data without two labels, with a label that one text has, or with too few texts.
    """
    rows = _rows(data, plan)
    known: dict[tuple[str, ...], set[str]] = {}
    for row in rows:
        known.setdefault(tuple(row[column].strip() for column in plan.text), set()).add(row[plan.label].strip())
    distinct = [(texts, next(iter(labels))) for texts, labels in known.items() if len(labels) == 1]
    shares = dict(sorted(Counter(label for _, label in distinct).items()))
    if len(shares) < 2:
        found = next(iter(shares), "")
        raise AdviceError(f"--label: column {plan.label!r} holds one label only, {found!r}; at least 2 needed")
    if len(shares) > len(distinct) / 2:
        some = ", ".join(map(repr, list(shares)[:3]))
        raise AdviceError(
            f"--label: column {plan.label!r} holds {len(shares)} different values ({some}, ...) in {len(distinct)}"
            " distinct texts: is it the label column?"
        )
    if len(distinct) < FEWEST_EXAMPLES:
        raise AdviceError(f"--data: {len(distinct)} distinct labelled texts; needs {FEWEST_EXAMPLES} or more")
    rare = [label for label, count in shares.items() if count < 2]
    if rare:
        raise AdviceError(f"--data: the label {rare[0]!r} has one text only; every label needs 2 or more")
    return _drawn(distinct, shares, len(rows), plan)


def _drawn(
    distinct: Sequence[tuple[tuple[str, ...], str]], shares: Mapping[str, int], rows: int, plan: Plan
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
    return Labelled(tuple(distinct[i][0] for i in chosen), labels[chosen], classes, rows, shares)


def _rows(data: Any, plan: Plan) -> list[dict[str, str]]:
    """Return the rows of any data as columns of text."""
    if isinstance(data, (str, Path)):
        return list(read_file(data, plan.text, plan.label, **plan.reading).task.rows)
    out = []
    for number, row in enumerate(_mappings(data), start=1):
        kept = {}
        for column in (*plan.text, plan.label):
            value = row.get(column)
            if column not in row or value is None or not str(value).strip():
                raise AdviceError(f"data: row {number}: column {column!r} holds nothing; needs text or a number")
            kept[column] = str(value)
        out.append(kept)
    return out


def _mappings(data: Any) -> Iterable[Mapping[str, Any]]:
    """Return the rows of a data frame, a data set (class numbers as their names) or a list."""
    if hasattr(data, "to_dict") and hasattr(data, "columns"):
        return data.to_dict("records")
    if not hasattr(data, "features"):
        return list(data)
    names = {key: kind.names for key, kind in data.features.items() if hasattr(kind, "names")}

    def named(key: str, value: Any) -> Any:
        return names[key][value] if key in names and isinstance(value, int) and value >= 0 else value

    return [{key: named(key, value) for key, value in row.items()} for row in data]


def columns_of(data: Any, text: str | Sequence[str] | None, label: str | None) -> tuple[tuple[str, ...], str]:
    """Return the columns of text and label: those named, else the usual names; AdviceError where there are none."""
    texts = (text,) if isinstance(text, str) else tuple(text or ())
    if texts and label:
        return texts, label
    held = _column_names(data)
    if not texts:
        texts = tuple(name for name in TEXT_COLUMNS if name in held)[:1]
    label = label or next((name for name in LABEL_COLUMNS if name in held), None)
    if not texts or label is None:
        raise AdviceError(f"{'label' if texts else 'text'}: name the column, found: {', '.join(held) or 'none'}")
    return texts, label


def _column_names(data: Any) -> list[str]:
    if isinstance(data, (str, Path)):
        import pandas as pd

        path = Path(data)
        if path.suffix == ".parquet":
            import pyarrow.parquet as pq

            return list(pq.read_schema(path).names)
        if path.suffix == ".jsonl":
            return [str(name) for name in pd.read_json(path, lines=True, nrows=1).columns]
        return [str(name) for name in pd.read_csv(path, sep="\t" if path.suffix == ".tsv" else ",", nrows=0).columns]
    found = getattr(data, "column_names", None) or getattr(data, "columns", None)
    return list(map(str, found)) if found is not None else list(map(str, data[0])) if len(data) else []
