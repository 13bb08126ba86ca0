"""What is measured for each claim of `claim_tests`, from the rows of a run's artifacts.

A measure takes an `Evidence` and returns one number for each run (start, task and seed, at the largest size unless its
name says otherwise), or a number with an interval of its own; nothing when the run holds no such rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from stopwise.artifacts.gram import AssembledKernel
from stopwise.artifacts.sample import Sample
from stopwise.claims.verdicts import Evidence, Measured, Row, interval
from stopwise.linearized.coding import squared_loss
from stopwise.linearized.paths import kernel_regression
from stopwise.linearized.spectrum import Spectrum
from stopwise.stats import rank_correlation, slope

HIT = 1.05  # of the best loss: as good as the best, the margin that the rules are judged by
SIZES_FOR_A_SLOPE = 3
Key = tuple[str, str, int]  # start, task, seed


def ridge_rows(
    kernel: AssembledKernel,
    sample: Sample,
    coding: str,
    target_scale: float | str,
    intercept: str,
    n: int,
    etas: Iterable,
) -> list[dict[str, Any]]:
    """Return the test loss of kernel ridge regression at mu = 1/eta for each training time: rows n, eta, loss.

    eta = 0 is no training at all: the outputs at the start with the fitted intercept. O(n^3) once.
    """
    leading = kernel.leading(n)
    spec = Spectrum.of(leading.train, leading.columns, intercept == "fitted")
    scale = kernel.scale(target_scale)
    residual = sample.targets("train", coding, scale, n) - leading.outputs
    held_out = len(sample.labels("validation"))
    f0, cross = leading.outputs_new[held_out:], leading.new[held_out * leading.columns :]
    times = [float(eta) for eta in etas if eta > 0]
    fitted = kernel_regression(spec, residual, cross, 1 / np.array(times)) if times else np.empty((0, len(cross)))
    offset = residual.mean(axis=0) if intercept == "fitted" else 0.0
    y = sample.targets("test", coding, scale)
    rows = [{"n": n, "eta": 0.0, "loss": squared_loss(f0 + offset, y)}]
    rows += [
        {"n": n, "eta": eta, "loss": squared_loss(f0 + one.reshape(f0.shape), y)}
        for eta, one in zip(times, fitted, strict=True)
    ]
    return rows


def at_largest(rows: Iterable[Row], start: str | None = "pretrained") -> dict[Key, list[Row]]:
    """Group rows by (start, task, seed), each at its largest n; of one start only unless that is None."""
    groups: dict[Key, list[Row]] = {}
    for row in rows:
        if start in (None, row["start"]):
            groups.setdefault((row["start"], row["task"], int(row["seed"])), []).append(row)
    return {key: [r for r in group if r["n"] == max(o["n"] for o in group)] for key, group in groups.items()}


def _runs(values: Mapping[Key, float]) -> list[tuple[str, int, float]]:
    return [(task, seed, value) for (_, task, seed), value in values.items() if math.isfinite(value)]


def _best(rows: Sequence[Row], column: str) -> float:
    losses = [row[column] for row in rows if row.get(column) is not None and math.isfinite(row[column])]
    return min(losses, default=math.nan)


def few_epochs(evidence: Evidence) -> Measured:
    """Epochs until the measured test loss is within 5 % of the lowest of its run."""
    found, falling = {}, 0
    for key, rows in at_largest(evidence.trajectories).items():
        measured = sorted((r for r in rows if r["test_loss"] is not None), key=lambda r: r["step"])
        best = _best(measured, "test_loss")
        if math.isfinite(best):
            found[key] = next(r["epoch"] for r in measured if r["test_loss"] <= HIT * best)
            falling += measured[-1]["test_loss"] == best
    size = "full batches: an epoch is one step" if evidence.batch_size is None else f"batches of {evidence.batch_size}"
    note = (
        f"With {size}. In {falling} of {len(found)} runs the test loss was lowest at the last step: longer"
        if found
        else ""
    )
    return Measured(_runs(found), note=note + " training could lower it." if note else "")


def decay_exponent(evidence: Evidence) -> Measured:
    """Fitted 2 beta of the kernels with a power law."""
    groups = at_largest(evidence.decays)
    found = {key: rows[0]["exponent"] for key, rows in groups.items() if rows[0]["kind"] == "power"}
    others = [rows[0]["kind"].replace("_", " ") for rows in groups.values() if rows[0]["kind"] != "power"]
    faster = ", ".join(f"{others.count(kind)} × {kind}" for kind in sorted(set(others)))
    return Measured(_runs(found), note=f"Not averaged, as they follow another law: {faster}." if faster else "")


def rate(evidence: Evidence) -> Measured:
    """Measured minus predicted slope of the excess test loss in n."""
    groups: dict[Key, list[Row]] = {}
    for row in evidence.slopes:
        if row["start"] == "pretrained":
            groups.setdefault((row["start"], row["task"], int(row["seed"])), []).append(row)
    found, left = {}, 0
    for key, rows in groups.items():
        usable = [r for r in rows if r["excess"] is not None and r["excess"] > 0]
        predicted = rows[0]["predicted_slope"]
        if len({r["n"] for r in usable}) < SIZES_FOR_A_SLOPE or predicted is None or not math.isfinite(predicted):
            left += 1
            continue
        found[key] = slope([r["n"] for r in usable], [r["excess"] for r in usable])[0] - predicted
    note = (
        f"{left} of {len(groups)} runs have too few sizes with a positive excess, or no predicted slope."
        if left
        else ""
    )
    return Measured(_runs(found), note=note)


def start_against(other: str) -> Any:
    """Return the measure of the best test loss from another start over that from the pretrained one."""

    def measure(evidence: Evidence) -> Measured:
        best = {key: _best(rows, "test_loss") for key, rows in at_largest(evidence.trajectories, None).items()}
        pairs = {
            key: best[key] / best["pretrained", *key[1:]]
            for key in best
            if key[0] == other and ("pretrained", *key[1:]) in best
        }
        return Measured(_runs(pairs))

    return measure


def _ridge_over(evidence: Evidence, column: str) -> Measured:
    ridge = {key: _best(rows, "loss") for key, rows in at_largest(evidence.ridge).items()}
    stopped = {key: _best(rows, column) for key, rows in at_largest(evidence.trajectories).items()}
    return Measured(_runs({key: ridge[key] / stopped[key] for key in ridge if key in stopped}))


def ridge_over_linearised(evidence: Evidence) -> Measured:
    """Best test loss of ridge over the best of the linearised path."""
    return _ridge_over(evidence, "linearised_test_loss")


def ridge_over_training(evidence: Evidence) -> Measured:
    """Best test loss of ridge over the best of real training."""
    return _ridge_over(evidence, "test_loss")


def linearity(evidence: Evidence) -> Measured:
    """Real test loss over the linearised one, at the step where the real one is lowest: distance from 1 as a factor."""
    found = {}
    for key, rows in at_largest(evidence.trajectories).items():
        usable = [r for r in rows if r["test_loss"] is not None and r.get("linearised_test_loss") is not None]
        if usable:
            best = min(usable, key=lambda r: r["test_loss"])
            found[key] = math.exp(abs(math.log(best["test_loss"] / best["linearised_test_loss"])))
    return Measured(_runs(found))


def guarantee(evidence: Evidence) -> Measured:
    """Largest training loss over its guarantee, over all steps after the start, of pretrained runs."""
    loss, promised = (
        {_point(r): r[c] for r in _of(evidence, q)} for q, c in (("loss", "measured"), ("guarantee", "predicted"))
    )
    later = [key for key in promised if key[-1] > 0]
    shares = [loss[key] / promised[key] for key in later if loss.get(key) is not None and promised[key]]
    if not shares:
        return Measured()
    return Measured(given=(max(shares),) * 3, count=len(shares), over="steps, the largest")


def drift(evidence: Evidence) -> Measured:
    """Relative change of the whole kernel at the last step at which it was computed."""
    found = {}
    for key, rows in at_largest(row for row in _of(evidence, "drift") if row["layer"] is None).items():
        found[key] = max(rows, key=lambda row: row["step"])["measured"]
    return Measured(_runs(found))


def _of(evidence: Evidence, quantity: str) -> list[Row]:
    return [row for row in evidence.training if row["quantity"] == quantity and row["start"] == "pretrained"]


def _point(row: Row) -> tuple:
    return row["task"], int(row["seed"]), row["n"], int(row["step"])


def bound(evidence: Evidence) -> Measured:
    """Largest estimated risk (test loss minus the estimated noise) over its bound, at the worst-case rule's stops."""
    said = {(*key, row["n"]): row for key, rows in _by_run(evidence.stoppings).items() for row in rows if _worst(row)}
    lost = {(*key, row["n"]): row for key, rows in _by_run(evidence.evaluations).items() for row in rows if _worst(row)}
    shares = [
        (lost[key]["loss"] - row["sigma"] ** 2) / row["bound"]
        for key, row in said.items()
        if key in lost and _finite(row["bound"], row["sigma"], lost[key]["loss"]) and row["bound"] > 0
    ]
    silent = len(said) - len(shares)
    note = f"In {silent} of {len(said)} runs the rule gave no answer (see its flags)." if silent else ""
    if not shares:
        return Measured(note=note)
    note = f"The shares lie between {min(shares):.2g} and {max(shares):.2g}. {note}".strip()
    return Measured(given=(max(shares),) * 3, count=len(shares), over="runs, the largest", note=note)


def _finite(*values: float | None) -> bool:
    return all(value is not None and math.isfinite(value) for value in values)


def _worst(row: Row) -> bool:
    return row["rule"] == "worst_case"


def _by_run(rows: Iterable[Row]) -> dict[Key, list[Row]]:
    groups: dict[Key, list[Row]] = {}
    for row in rows:
        groups.setdefault((row["start"], row["task"], int(row["seed"])), []).append(row)
    return groups


def regret_of(rule: str) -> Any:
    """Return the measure of one rule's relative regret, over all sizes."""

    def measure(evidence: Evidence) -> Measured:
        own = [r for r in evidence.evaluations if r["rule"] == rule and r["start"] == "pretrained"]
        every = {(r["task"], r["seed"], r["n"]) for r in evidence.evaluations if r["start"] == "pretrained"}
        runs = [(r["task"], int(r["seed"]), r["relative_regret"]) for r in own if r["relative_regret"] is not None]
        silent = len(every) - len(runs)
        note = (
            f"In {silent} of {len(every)} runs the rule gave no answer, and is not judged." if runs and silent else ""
        )
        return Measured(runs, note=note)

    return measure


def prediction_error(quantity: str) -> Any:
    """Return the measure of |measured - predicted| over the pairs of tasks."""

    def measure(evidence: Evidence) -> Measured:
        own = [r for r in evidence.pairs if r["quantity"] == quantity and None not in (r["predicted"], r["measured"])]
        rows = [r for r in own if not r.get("outside_theory")]  # those were fitted to what training gave
        runs = [(f"{r['task_a']}|{r['task_b']}", int(r["seed"]), abs(r["measured"] - r["predicted"])) for r in rows]
        rank = rank_correlation([r["predicted"] for r in rows], [r["measured"] for r in rows])
        note = f"Rank correlation of predicted and measured: {rank:.2f}. " if math.isfinite(rank) else ""
        nothing = [(name, seed, abs(r["measured"])) for (name, seed, _), r in zip(runs, rows, strict=True)]
        return Measured(runs, unit="pair", note=note + _beside("Predicting 0 for every pair", nothing))

    return measure


def merged_accuracy(evidence: Evidence) -> Measured:
    """|measured - predicted| accuracy of merged models, at the coefficient that validation chose."""
    rows = [r for r in _chosen(evidence) if r.get("predicted_accuracy") is not None]
    nothing = [(_pair(r), 0, abs(r["accuracy"] - r["accuracy_zero_shot"])) for r in rows]
    runs = [(_pair(r), 0, abs(r["accuracy"] - r["predicted_accuracy"])) for r in rows]
    return Measured(runs, unit="pair", note=_beside("Predicting the accuracy before merging", nothing))


def addition(evidence: Evidence) -> Measured:
    """Accuracy of the sum of two vectors over that of the evaluated task's own vector."""
    rows = [r for r in _chosen(evidence) if r["kind"] == "addition" and r["accuracy_single"]]
    worse = sum(r["accuracy_single"] < r["accuracy_zero_shot"] for r in rows)
    note = f"In {worse} of {len(rows)} cases the own vector alone is less accurate than the start." if worse else ""
    return Measured([(_pair(r), 0, r["accuracy"] / r["accuracy_single"]) for r in rows], unit="pair", note=note)


def _beside(what: str, runs: Sequence[tuple[str, int, float]]) -> str:
    """Say the mean error of a prediction that needs no kernel, taken over the same units as the claim's."""
    if not runs:
        return ""
    value, *_ = interval(runs, unit="pair")
    return f"{what} would err by {value:.3g}."


def _chosen(evidence: Evidence) -> list[Row]:
    return [r for r in evidence.arithmetic if r["chosen"] and r["split"] == "test" and r["accuracy"] is not None]


def _pair(row: Row) -> str:
    return f"{row['kind']} {row['task_a']} {row['task_b']}"


def synthetic_rate(decay: str) -> Any:
    """Return the measure of the synthetic slope at the worst-case stop, sigma and R known, minus theory's."""

    def measure(evidence: Evidence) -> Measured:
        own = {
            r["quantity"]: r
            for r in evidence.rates
            if r["decay"] == decay and r["rule"] == "worst_case" and r["known"] and r["m"] is None
        }
        if not {"slope", "theory_slope"} <= set(own):
            return Measured()
        theory, found = own["theory_slope"]["value"], own["slope"]
        value, low, high = (found[end] - theory for end in ("value", "low", "high"))
        return Measured(given=(value, low, high), count=found["count"], over="data sets")

    return measure


def synthetic_bound(evidence: Evidence) -> Measured:
    """Largest risk over bound in the synthetic study, sigma and R known."""
    shares = [r for r in evidence.rates if r["quantity"] == "bound_share" and r["decay"] == "all" and r["known"]]
    if not shares:
        return Measured()
    row = shares[0]
    note = f"Its median is {row['value']:.2g}."
    return Measured(given=(row["high"],) * 3, count=row["count"], over="data sets, the largest", note=note)


def synthetic_ridge(evidence: Evidence) -> Measured:
    """Best risk of ridge over the best of early stopping, one value a decay."""
    best = {(r["source"], r["filter"]): r["best"] for r in evidence.study}
    runs = [
        (source, 0, best[source, "ridge"] / best[source, "descent"])
        for source in sorted({s for s, _ in best})
        if {(source, "ridge"), (source, "descent")} <= set(best)
    ]
    return Measured(runs, unit="decay")
