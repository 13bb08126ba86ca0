"""Data at hand as a file read: a path, a data set of the hub, a ``datasets.Dataset``, a data frame or rows.

One reader serves them all: what is no file is written into a temporary one first, so that empty cells, labels of any
kind and class numbers with names are treated alike wherever they come from.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from stopwise.advice.data import File, read_file
from stopwise.advice.plan import Plan
from stopwise.advice.settings import AdviceError

TEXT_COLUMNS = ("text", "sentence", "question", "review", "content")
LABEL_COLUMNS = ("label", "labels", "category", "class", "sentiment", "target")


def read_data(plan: Plan, data: Any = None) -> File:
    """Return the data of a plan as a file read, whatever they are; needs no model and no torch.

    ``data``: a path, a pandas DataFrame, a ``datasets.Dataset``, rows as mappings, or a file read already (None: the
    plan's file, or its data set of the hub). Raises ValueError, in one line, as ``read_file`` does, and for a hub that
    cannot be reached.
    """
    if isinstance(data, File):
        return data
    options: dict[str, Any] = {"template": plan.template, "head": plan.head, **plan.reading}
    if data is None and plan.dataset is not None:
        return read_file(hub_file(plan), plan.text, plan.label, **options, name=plan.dataset)
    if data is None or isinstance(data, (str, Path)):
        return read_file(plan.data if data is None else data, plan.text, plan.label, **options)
    with tempfile.TemporaryDirectory() as folder:
        path = written(data, (*plan.text, plan.label), Path(folder))
        return read_file(path, plan.text, plan.label, **options, name=plan.data)


def hub_file(plan: Plan) -> Path:
    """Return the Parquet file of a plan's data set, fetched into the cache at its present commit when it is absent.

    Scripts that come with a data set are never run.
    """
    from stopwise.assets.hub import cache_folder, fetch_dataset

    hub_id, _, config = str(plan.dataset).partition(":")
    source = {"hub": hub_id, "split": plan.split} | ({"config": config} if config else {})
    return fetch_dataset(source, cache_folder(), "--dataset")


def with_columns(plan: Plan) -> Plan:
    """Return a plan whose columns are named: those given, else the usual names among the columns of its data."""
    if plan.text and plan.label:
        return plan
    data = hub_file(plan) if plan.dataset is not None else plan.data
    text, label = columns_of(data, plan.text, plan.label)
    return replace(plan, text=text, label=label)


def written(data: Any, columns: Sequence[str], folder: Path) -> Path:
    """Write columns of data at hand as Parquet, class numbers as their names; return the file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    held = _column_names(data)
    for column in columns:
        if column not in held:
            raise AdviceError(f"data: there is no column {column!r}; found: {', '.join(held) or 'none'}")
    rows = list(_mappings(data.select_columns(list(columns)) if hasattr(data, "select_columns") else data))
    table = {column: [_text(row.get(column)) for row in rows] for column in columns}
    path = folder / "rows.parquet"
    pq.write_table(pa.table({name: pa.array(values, pa.string()) for name, values in table.items()}), path)
    return path


def _text(value: Any) -> str | None:
    """Return a cell as text, None for one that is empty (NaN, NaT)."""
    import pandas as pd

    return None if pd.api.types.is_scalar(value) and pd.isna(value) else str(value)


def _mappings(data: Any) -> Iterable[Mapping[str, Any]]:
    """Return the rows of a data frame, a data set (class numbers as their names) or a list."""
    if hasattr(data, "to_dict") and hasattr(data, "columns"):
        return data.to_dict("records")
    if not hasattr(data, "features"):
        return list(data)
    names = {key: kind.names for key, kind in data.features.items() if hasattr(kind, "names")}

    def named(key: str, value: Any) -> Any:
        if key not in names or not isinstance(value, int):
            return value
        return names[key][value] if value >= 0 else None  # -1: no label

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
        raise AdviceError(f"--{'label' if texts else 'text'}: name the column, found: {', '.join(held) or 'none'}")
    return texts, label


def _column_names(data: Any) -> list[str]:
    if isinstance(data, (str, Path)):
        return _columns_of_file(Path(data).expanduser())
    if isinstance(data, Mapping):
        names = list(map(str, data))
        raise AdviceError(f"data: a mapping of {', '.join(names)}: give one of its splits, such as data[{names[0]!r}]")
    found = getattr(data, "column_names", None) or getattr(data, "columns", None)
    return list(map(str, found)) if found is not None else list(map(str, data[0])) if len(data) else []


def _columns_of_file(path: Path) -> list[str]:
    """Return the columns that a file names; none where they cannot be told without reading it."""
    import pandas as pd

    if not path.is_file():
        raise AdviceError(f"--data: there is no file {str(path)!r}")
    kind = Path(path.name.lower().removesuffix(".gz")).suffix
    try:
        if kind in (".parquet", ".pq"):
            import pyarrow.parquet as pq

            return list(pq.read_schema(path).names)
        if kind in (".jsonl", ".ndjson"):
            return [str(name) for name in pd.read_json(path, lines=True, nrows=1).columns]
        if kind == ".json":
            return [str(name) for name in pd.read_json(path).columns]
        return [str(name) for name in pd.read_csv(path, sep=None, engine="python", nrows=0).columns]
    except (ValueError, OSError, pd.errors.ParserError):
        return []
