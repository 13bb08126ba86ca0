"""The study's tables: each way's measures with intervals over data sets, pairs compared, what limits the judge."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from stopwise.stats import interval, redrawn, wilson
from stopwise.stopping.scores import table_line, written
from stopwise.studies.encoder_design import Design
from stopwise.studies.encoder_judge import worth_rows
from stopwise.studies.encoder_rows import Cell
from stopwise.studies.encoder_ways import ways

Score = tuple[float, float, float]
Columns = Mapping[str, np.ndarray]

REFERENCE, SHORT, YARDSTICK = "holdout_refit", "epochs_3", "folds_8"
# Of each measure: the column that it is of, and the quantile that it is (None: the mean).
MEASURES: dict[str, tuple[str, float | None]] = {
    "hits": ("hit", None),
    "regret": ("regret", 0.5),
    "regret_90": ("regret", 0.9),
    "accuracy": ("gain", None),
    "calibration": ("calibration", None),
    "better": ("better", None),
    "better_short": ("better_short", None),
    "over_folds": ("over_folds", None),
    "worth": ("worth", 0.5),
    "trainings": ("trainings", None),
}
SHARES = ("hits", "better", "better_short")
COMPARED = {"better": REFERENCE, "better_short": SHORT, "over_folds": YARDSTICK}
HEADS = {
    "hits": ("hit rate", "%"),
    "regret": ("median regret", "%.1"),
    "regret_90": ("90th percentile", "%"),
    "accuracy": ("accuracy, points over the usual recipe", "points"),
    "calibration": ("calibration error", "ratio"),
    "better": ("better than hold-out with refit", "%"),
    "better_short": ("better than 3 epochs", "%"),
    "over_folds": ("mean log ratio to 8 folds", "log"),
    "worth": ("worth in labels, factor", "ratio"),
    "trainings": ("trainings", "short"),
}
CELL_FACTS = {
    "informative": "informative",
    "last_misses": "last step misses",
    "censored": "best is the last",
    "ceiling": "judge's ceiling",
    "constant_over_best": "constant's loss over the best",
}


def way_table(
    judged: Iterable[Mapping[str, Any]],
    design: Design,
    usual: Iterable[Mapping[str, Any]] = (),
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Return rows of ``study_ways``: each way and measure with its 95 % interval over data sets.

    ``judged``: rows of one group of recipes; ``usual``: where the rows of the usual recipe are. ``cells`` and
    ``data_sets``: how many the measure is over; with fewer than two data sets there is no interval. Comparisons are
    with another way on the same cell: a tie counts one half.
    """
    rows = list(judged)
    against = {name: _losses(rows, name) for name in (REFERENCE, SHORT, YARDSTICK)}
    accuracy = {
        (row["task"], row["seed"], row["n"]): row["accuracy"]
        for row in (*rows, *usual)
        if row["way"] == "all_steps" and row["recipe"] == design.usual
    }
    worth = {(_cell(row), row["way"]): row["factor"] for row in worth_rows(rows)}
    out = []
    for name in _order(rows, design):
        own = [row for row in rows if row["way"] == name]
        columns = _columns(own, against, accuracy, worth)
        groups = [row["task"] for row in own]
        for measure in MEASURES:
            value, low, high = _score(name, measure, columns, groups, seed)
            if np.isfinite(value):
                about = {"way": name, "measure": measure, "value": value, "low": low, "high": high}
                known = np.isfinite(columns[MEASURES[measure][0]])
                sets = {group for group, kept in zip(groups, known, strict=True) if kept}
                out.append({**about, "cells": int(known.sum()), "data_sets": len(sets)})
    return out


def _order(rows: Sequence[Mapping[str, Any]], design: Design) -> list[str]:
    known = list(ways(design))
    found = {row["way"] for row in rows}
    last = ["best"] if "best" in found else []
    return [*(name for name in known if name in found and name != "best"), *sorted(found - set(known)), *last]


def _cell(row: Mapping[str, Any]) -> Cell:
    return Cell(row["task"], row["seed"], row["n"], row["recipe"])


def _losses(rows: Iterable[Mapping[str, Any]], name: str) -> dict[Cell, float]:
    return {_cell(row): row["loss"] for row in rows if row["way"] == name}


def _columns(
    rows: Sequence[Mapping[str, Any]],
    against: Mapping[str, Mapping[Cell, float]],
    usual: Mapping[tuple, float],
    worth: Mapping[tuple[Cell, str], float],
) -> dict[str, np.ndarray]:
    def better(name: str) -> np.ndarray:
        other = np.array([against[name].get(_cell(row), np.nan) for row in rows])
        loss = np.array([row["loss"] for row in rows])
        return np.where(np.isnan(other), np.nan, (loss < other) + 0.5 * (loss == other))

    folds = np.array([against[YARDSTICK].get(_cell(row), np.nan) for row in rows])
    gain = [row["accuracy"] - usual.get((row["task"], row["seed"], row["n"]), np.nan) for row in rows]
    return {
        "hit": np.array([row["hit"] for row in rows], dtype=float),
        "regret": np.array([row["regret"] for row in rows]),
        "gain": np.array(gain),
        "calibration": np.array([row["calibration"] for row in rows]),
        "better": better(REFERENCE),
        "better_short": better(SHORT),
        "over_folds": np.log(np.array([row["loss"] for row in rows]) / folds),
        "worth": np.array([worth.get((_cell(row), row["way"]), np.nan) for row in rows]),
        "trainings": np.array([row["trainings"] for row in rows]),
    }


def _score(name: str, measure: str, columns: Columns, groups: Sequence[str], seed: int) -> Score:
    """Return a measure of one way with its interval over data sets; nan where it is not known, or of itself."""
    column, share = MEASURES[measure]
    values = columns[column]
    known = np.isfinite(values)
    if not known.any() or COMPARED.get(measure) == name:
        return np.nan, np.nan, np.nan
    value = float(np.mean(values[known]) if share is None else np.quantile(values[known], share))
    own = [group for group, kept in zip(groups, known, strict=True) if kept]
    count = len(set(own))
    certain = measure == "trainings" or (name == "best" and column in ("hit", "regret"))
    if count < 2 or certain:
        return value, np.nan, np.nan
    if measure in SHARES and value in (0.0, 1.0):
        return value, *wilson(value * count, count)

    def measured(columns: Columns) -> np.ndarray:
        drawn = columns["values"]
        return np.mean(drawn, axis=-1) if share is None else np.quantile(drawn, share, axis=-1)

    return value, *interval({"values": values[known]}, measured, redrawn(own, seed))


def way_lines(table: Iterable[Mapping[str, Any]], design: Design, expected: Sequence[Cell]) -> list[str]:
    """Return rows of ``way_table`` as Markdown; ``expected``: the cells of a finished study."""
    rows = list(table)
    pick = {(row["way"], row["measure"]): row for row in rows}
    words = {name: one.words for name, one in ways(design).items()}
    words["constant"] = "a constant step, learnt on the other data sets"
    lines = table_line(["way", "runs", *(head for head, _ in HEADS.values())])
    lines += table_line(["---"] * (2 + len(HEADS)))
    for name in dict.fromkeys(row["way"] for row in rows):
        cells = pick[name, "hits"]["cells"]
        made_for = {YARDSTICK: design.folded, "anchored": design.followed}.get(name, lambda cell: True)
        wanted = [cell for cell in expected if made_for(cell)]
        shown = [_shown(pick.get((name, measure)), scale) for measure, (_, scale) in HEADS.items()]
        lines += table_line([words.get(name, name), f"{cells} of {len(wanted)}", *shown])
    return lines


def _shown(row: Mapping[str, Any] | None, scale: str) -> str:
    if row is None:
        return "–"
    value = row["value"], row["low"], row["high"]
    if scale in ("points", "log"):
        factor = 100 if scale == "points" else 1
        form = "+.1f" if scale == "points" else "+.2f"
        text = f"{factor * value[0]:{form}}"
        return text + (f" [{factor * value[1]:{form}}, {factor * value[2]:{form}}]" if np.isfinite(value[1]) else "")
    return written(value, scale)


def fact_lines(cells: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return one line a data set and one for all: how many runs, and what limits every way on them."""
    rows = list(cells)
    lines = table_line(["data set", "classes", "test rows a seed", "runs", *CELL_FACTS.values()])
    lines += table_line(["---"] * (4 + len(CELL_FACTS)))
    groups = [(task, [row for row in rows if row["task"] == task]) for task in dict.fromkeys(r["task"] for r in rows)]
    for name, own in [*groups, ("all", rows)]:
        shares = [f"{100 * np.mean([row[key] for row in own]):.0f} %" for key in list(CELL_FACTS)[:4]]
        ratio = np.median([row["constant_loss"] / row["best_loss"] for row in own])
        about = ["", ""] if name == "all" else [own[0]["classes"], own[0]["test_rows"]]
        lines += table_line([name, *about, len(own), *shares, f"{ratio:.2f}"])
    return lines


def label_rows(judged: Iterable[Mapping[str, Any]], design: Design) -> list[dict[str, Any]]:
    """Return rows of ``study_labels_spent``: the mean test log-loss and accuracy of each way by size and recipe.

    The mean is over data sets, of the first seed, and only over data sets that have the way at every size that it is
    made for, so that a curve does not change its data sets on the way. ``labels``: spent; ``trainings``: its cost.
    """
    rows, out = [row for row in judged if row["seed"] == design.seeds[0]], []
    for recipe in design.primary:
        for way in _order(rows, design):
            own = [row for row in rows if row["recipe"] == recipe and row["way"] == way]
            folded = way == YARDSTICK and design.folds_size is not None
            sizes = [design.folds_size] if folded else list(design.sizes)
            by_task = {
                task: {row["n"]: row for row in own if row["task"] == task} for task in sorted({r["task"] for r in own})
            }
            whole = [rows for rows in by_task.values() if set(rows) == set(sizes)]
            for n in sizes if whole else ():
                parts = [rows[n] for rows in whole]
                mean = {key: float(np.mean([row[key] for row in parts])) for key in ("loss", "accuracy")}
                spent = {key: parts[0][key] for key in ("labels", "trainings")}
                out.append({"recipe": recipe, "way": way, "n": n, **spent, **mean, "data_sets": len(whole)})
    return out


def report(
    judged: Sequence[Mapping[str, Any]],
    cells: Sequence[Mapping[str, Any]],
    expected: Sequence[Cell],
    design: Design,
    table: Iterable[Mapping[str, Any]],
) -> str:
    """Return the page of one group of data sets: how much is finished, facts of the runs, and the ways by recipe."""
    rows = list(table)
    have = {_cell(row) for row in cells}
    tasks = sorted({cell.task for cell in have})
    words = [
        f"{len(have & set(expected))} of {len(expected)} runs are finished, of {len(tasks)} data sets"
        f" ({', '.join(tasks) or 'none'}).",
        "The unit is the data set: in brackets are 95 % intervals over data sets, and none with fewer than two.",
        "",
        *fact_lines(cells),
    ]
    for group in dict.fromkeys(row["recipes"] for row in rows):
        own = [row for row in rows if row["recipes"] == group]
        wanted = [cell for cell in expected if cell.recipe in members(group, design)]
        words += ["", f"Recipes: {group}.", "", *way_lines(own, design, wanted)]
    return "\n".join(words) + "\n"


def members(group: str, design: Design) -> tuple[str, ...]:
    """Return the recipes of a group: ``primary``, ``others``, or one by its name."""
    others = tuple(name for name in design.recipes if name not in design.primary)
    return {"primary": design.primary, "others": others}.get(group, (group,))


def grouped_table(judged: Sequence[Mapping[str, Any]], design: Design) -> list[dict[str, Any]]:
    """Return ``way_table`` for the primary recipes together and one by one, and for the others together."""
    out = []
    single = [name for name in design.primary if len(design.primary) > 1]
    for group in ("primary", *single, "others"):
        own = [row for row in judged if row["recipe"] in members(group, design)]
        out += [{"recipes": group, **row} for row in way_table(own, design, judged)]
    return out
