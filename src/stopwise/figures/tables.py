"""Assemble the table of a figure from tables already read, and check it before it is drawn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

Pairs = Iterable[tuple[Mapping[str, Any], pa.Table]]  # (wildcards of the artifact, its table)


def column(table: pa.Table, field: pa.Field, wildcards: Mapping[str, Any], figure: str) -> pa.ChunkedArray | pa.Array:
    """One column of a figure's table: from the table, else from the wildcards, else empty when the field is nullable.

    ValueError when a column that must be there is in neither, or holds values of another type.
    """
    if field.name in table.column_names:
        values = table[field.name]
    elif field.name in wildcards:
        values = pa.repeat(pa.scalar(wildcards[field.name]), table.num_rows)
    elif field.nullable:
        return pa.nulls(table.num_rows, field.type)
    else:
        raise ValueError(f"figure {figure}: column {field.name!r} is missing; found {', '.join(table.column_names)}")
    try:
        return values.cast(field.type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        message = f"figure {figure}: column {field.name!r} is {values.type}, not {field.type}: {error}"
        raise ValueError(message) from error


def gather(pairs: Pairs, schema: pa.Schema, figure: str) -> pa.Table:
    """Stack tables into one with the columns of `schema`, filling what a table lacks from its wildcards.

    Columns that the schema does not name are dropped. Raises what `column` raises.
    """
    parts = [
        pa.Table.from_arrays([column(table, field, wildcards, figure) for field in schema], schema=schema)
        for wildcards, table in pairs
    ]
    return pa.concat_tables(parts) if parts else schema.empty_table()


def frame(table: pa.Table, schema: pa.Schema, figure: str) -> pd.DataFrame:
    """The rows of a figure's table as a data frame with the columns of `schema`; empty numbers become NaN.

    ValueError when a column is missing or of another type, or when a column that must be filled holds an empty value.
    """
    checked = gather([({}, table)], schema, figure)
    for field in schema:
        if not field.nullable and checked[field.name].null_count:
            raise ValueError(
                f"figure {figure}: column {field.name!r} has {checked[field.name].null_count} empty values"
            )
    return checked.to_pandas()


def ordered(values: Iterable[Any], known: Iterable[Any] = ()) -> list[Any]:
    """Distinct values, the known ones first and in their own order, the others sorted."""
    found = {v for v in values if not pd.isna(v)}
    first = [v for v in known if v in found]
    return first + sorted(found.difference(first))


def spread(values: list[Any], most: int) -> list[Any]:
    """At most `most` of some values, evenly spread, the first and the last among them."""
    if len(values) <= most:
        return list(values)
    return [values[i] for i in np.unique(np.round(np.linspace(0, len(values) - 1, most)).astype(int))]
