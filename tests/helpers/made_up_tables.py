"""Made-up tables with the layouts of the artifacts, small and large, for the tests of figures and page."""

import numpy as np
import pyarrow as pa

TASKS = ("movie", "amazon", "spam", "trec", "tweets", "my own task")
RULES = ("worst_case", "balance", "sure", "gcv", "loo", "discrepancy", "holdout", "oracle")


def spectra(tasks=3, seeds=2, sizes=(16, 32, 64), starts=("pretrained",)):
    """Pairs of `spectrum` and `decay` artifacts."""
    spectrum, decay = [], []
    for k, start in enumerate(starts):
        for i, task in enumerate(TASKS[:tasks]):
            for seed in range(seeds):
                rng = np.random.default_rng([k, i, seed])
                rows, fits = [], []
                for n in sizes:
                    index = np.arange(1, n + 1)
                    beta = 0.7 + 0.2 * i
                    fitted = 30.0 * (k + 1) * index ** (-2 * beta)
                    values = np.sort(fitted * np.exp(0.1 * rng.standard_normal(n)))[::-1].copy()
                    values[-1] = 0.0
                    for j in range(n):
                        inside = 2 <= j < n // 2
                        rows.append((n, j + 1, values[j], rng.standard_normal(), fitted[j] if inside else None))
                    fits.append((n, n, "power", 2 * beta, 2 * beta - 0.1, 2 * beta + 0.15, 40.0, 3.0, 5.0, 0.1, 0.7))
                wildcards = {"start": start, "task": task, "seed": str(seed)}
                spectrum.append((wildcards, table(rows, "n index eigenvalue coefficient fitted")))
                names = (
                    "n m kind exponent exponent_low exponent_high trace stable_rank effective_dimension mu alignment"
                )
                decay.append((wildcards, table(fits, names)))
    return spectrum, decay


def table(rows, names):
    """Rows (tuples) as a pyarrow table."""
    names = names.split()
    return pa.table({name: pa.array([row[i] for row in rows]) for i, name in enumerate(names)})


def runs(tasks=3, seeds=2, sizes=(16, 32, 64), starts=("pretrained",), steps=24, rules=RULES):
    """Pairs of `trajectory` and `evaluation` artifacts: a test loss with a minimum, rules that stop around it."""
    trajectories, evaluations = [], []
    for k, start in enumerate(starts):
        for i, task in enumerate(TASKS[:tasks]):
            for seed in range(seeds):
                rng = np.random.default_rng([k, i, seed])
                rows, judged = [], []
                for n in sizes:
                    step = np.arange(0, steps + 1, max(1, steps // 12))
                    best = steps * (0.3 + 0.3 * rng.random())
                    train = 0.5 * np.exp(-step / (0.3 * steps)) + 0.01
                    test = 0.25 + 2 / n + 4 / n * (np.log1p(step) - np.log1p(best)) ** 2 / 5 + 0.1 * k
                    for j, s in enumerate(step):
                        a, b, c = train[j], test[j] * 1.1, test[j]
                        near = 1 + 0.02 * rng.standard_normal()
                        measured = (a, 1 - a, b, 1 - b, c, 1 - c, 1.0, 0.01 * s, 1e-4 * s)
                        linearised = (a * near, b * near, c * near, 1 - c * near)
                        rows.append((n, s, s, 0.1 * s, *measured, *linearised))
                    oracle = int(np.argmin(test))
                    judged += [_judge(rule, n, step, test, oracle, rng) for rule in rules]
                wildcards = {"start": start, "task": task, "seed": str(seed)}
                names = (
                    "n step epoch eta train_loss train_accuracy validation_loss validation_accuracy "
                    "test_loss test_accuracy gradient_norm distance relative_distance "
                    "linearised_train_loss linearised_validation_loss linearised_test_loss linearised_test_accuracy"
                )
                trajectories.append((wildcards, table(rows, names)))
                names = "n rule t eta epochs loss accuracy t_oracle loss_oracle relative_regret hit ratio flags"
                evaluations.append((wildcards, table(judged, names)))
    return trajectories, evaluations


def _judge(rule, n, step, test, oracle, rng):
    at = oracle if rule == "oracle" else int(np.clip(oracle + rng.integers(-4, 5), 0, len(step) - 1))
    if rule == "worst_case":
        at = 0 if rng.random() < 0.5 else 1
    t, best = int(step[at]), float(test[oracle])
    if rule == "discrepancy" and rng.random() < 0.4:
        return (
            n,
            rule,
            int(step[-1]) * 3,
            0.3 * step[-1],
            3.0,
            None,
            None,
            int(step[oracle]),
            best,
            None,
            None,
            None,
            ["beyond"],
        )
    loss = float(test[at])
    regret = (loss - best) / best
    ratio = t / int(step[oracle]) if step[oracle] else None
    flags = ["do_not_train"] if t == 0 else []
    return (
        n,
        rule,
        t,
        0.1 * t,
        float(t),
        loss,
        1 - loss,
        int(step[oracle]),
        best,
        regret,
        regret <= 0.05,
        ratio,
        flags,
    )


def arithmetic(tasks=3, coefficients=(0.2, 0.4, 0.6, 0.8, 1.0)):
    """Pairs of `addition` and `negation` artifacts over all pairs of tasks, the coefficient chosen at 0.6."""
    added, negated = [], []
    for i, a in enumerate(TASKS[:tasks]):
        for j, b in enumerate(TASKS[:tasks]):
            for c in coefficients:
                for split in ("validation", "test"):
                    if i < j:
                        for k, name in ((i, a), (j, b)):
                            value = 0.55 + 0.3 * c - 0.12 * c**2 * (1 + 0.3 * abs(i - j)) + 0.01 * k
                            row = (a, b, c, name, split, value, 0.55 + 0.01 * k, 0.8, 1 - value, c == 0.6)
                            added.append((*row, value + 0.02, 0.82))
                    value = (0.8 - 0.4 * c) if i == j else 0.6 - 0.05 * c + 0.02 * j
                    row = (a, None, c, b, split, value, 0.8 if i == j else 0.6 + 0.02 * j, None, 1 - value, c == 0.6)
                    negated.append((*row, None, None))
    names = (
        "task_a task_b coefficient task split accuracy accuracy_zero_shot accuracy_single loss chosen "
        "predicted_accuracy accuracy_joint"
    )
    schema = {"kind": "addition"}, {"kind": "negation"}
    return tuple(
        [(kind, table(rows, names))] if rows else [] for kind, rows in zip(schema, (added, negated), strict=True)
    )


def stopping(evaluations, sigma=0.45):
    """Pairs of `stopping` artifacts (the columns that figures read) of the runs of `evaluations`."""
    keep = [(w, t.select(["n", "rule", "t", "eta"])) for w, t in evaluations]
    return [(w, t.append_column("sigma", pa.array([sigma] * t.num_rows))) for w, t in keep]


def along_the_run(trajectories, layers=6, directions=10):
    """Pairs of the measurements along the runs: residual by direction, kernel drift by layer."""
    residuals, drifts = [], []
    for wildcards, run in trajectories:
        rows, moved = [], []
        for n, step in zip(run["n"].to_pylist(), run["step"].to_pylist(), strict=True):
            for i in range(directions + 1):
                filtered = float(np.exp(-0.4 * step / (i + 1))) if i else float(np.exp(-0.01 * step))
                rows.append((n, step, i, filtered * (1 + 0.05 * np.sin(step)), filtered))
            moved.append((n, step, None, 0.01 * np.sqrt(step), 1e-4 * step))
            for layer in range(layers):
                moved.append((n, step, f"model.layers.{layer}", 0.004 * layer * np.sqrt(step), 2e-5 * layer * step))
        residuals.append((wildcards, table(rows, "n step direction measured predicted")))
        drifts.append((wildcards, table(moved, "n step layer drift relative_distance")))
    return residuals, drifts


def pairs_of_tasks(tasks=3, seeds=2):
    """Pairs of predicted and measured cosine and interference."""
    out = []
    for seed in range(seeds):
        rng, rows = np.random.default_rng(seed), []
        for i, a in enumerate(TASKS[:tasks]):
            for j, b in enumerate(TASKS[:tasks]):
                value = 0.6 / (1 + abs(i - j)) - 0.1
                if i < j:
                    rows.append(("cosine", a, b, value, value + 0.05 * rng.standard_normal()))
                if i != j:
                    rows.append(("interference", a, b, value / 2, value / 2 + 0.03 * rng.standard_normal()))
                    rows.append(("transfer", a, b, 0.1 - value, 0.1 - value + 0.02 * rng.standard_normal()))
        out.append(({"seed": str(seed)}, table(rows, "quantity task_a task_b predicted measured")))
    return [(w, t) for w, t in out if t.num_rows]


def layer_shares(tasks=3, seeds=2, sizes=(16, 32, 64), starts=("pretrained",), blocks=30, modules=()):
    """Pairs of `layer_share` artifacts, by block or by module."""
    out = []
    for start in starts:
        for i, task in enumerate(TASKS[:tasks]):
            for seed in range(seeds):
                rng = np.random.default_rng([i, seed])
                names = [
                    f"model.layers.{k}" + (f".self_attn.{m}" if m else "")
                    for k in range(blocks)
                    for m in modules or [""]
                ]
                share = np.exp(rng.normal(np.linspace(0, 2, len(names)), 0.1))
                share /= share.sum()
                rows = [
                    (n, name, s, 0.1 + 0.01 * i, 5 + 3 * s) for n in sizes for name, s in zip(names, share, strict=True)
                ]
                wildcards = {"start": start, "task": task, "seed": str(seed)}
                out.append((wildcards, table(rows, "n layer trace_share alignment effective_dimension")))
    return out


def upstream(figure, **shape):
    """The arguments of a figure's `table` function for a made-up run of this shape."""
    few = {k: v for k, v in shape.items() if k in ("tasks", "seeds")}
    if figure == "F1":
        return spectra(**shape)
    if figure == "F7":
        return (pairs_of_tasks(**few),)
    if figure == "F8":
        return arithmetic(shape.get("tasks", 3))
    if figure == "F9":
        return (layer_shares(**shape),)
    trajectories, evaluations = runs(**shape)
    if figure == "F4":
        return evaluations, spectra(**shape)[1], stopping(evaluations)
    if figure == "F6":
        return trajectories, *along_the_run(trajectories)
    return (trajectories, evaluations) if figure == "F2" else (evaluations,)
