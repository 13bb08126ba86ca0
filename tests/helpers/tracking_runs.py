"""A made-up run to record: tables with provenance, figures and weights, as the pipeline writes them."""

from stopwise.artifacts import tables as artifacts

SVG = "<svg xmlns='http://www.w3.org/2000/svg'/>"


def small_run(folder):
    """Write a trajectory, a spectrum's summary, a figure with its table, one without, and weights."""
    trajectory(folder / "finetune/pretrained/movie/seed0/trajectory.parquet")
    decay(folder / "decay/pretrained/movie/seed0.parquet")
    decay(folder / "figures/F1.parquet", rule="F1", wildcards={})
    for name in ("F1.svg", "F2_movie.svg"):
        (folder / "figures" / name).write_text(SVG)
    (folder / "finetune/pretrained/movie/seed0/n16.safetensors").write_bytes(b"weights")
    return folder


def record(rule, wildcards=None, **more):
    return {
        "rule": rule,
        "wildcards": {"start": "pretrained", "task": "movie", "seed": "0"} if wildcards is None else wildcards,
        "config": {"finetune": {"steps": 12, "momentum": 0.9}, "sizes": [16, 32], "empty": {}},
        "inputs": {"results/demo/data/movie/seed0.parquet": "abc"},
        "model": "m" * 64,
        "data": "d" * 64,
        "versions": {"stopwise": "0.1.0", "numpy": "2.4"},
        "seed": 0,
        "volatile": {
            "git": "0123456789ab+",
            "started": "2026-01-02T03:04:05+00:00",
            "seconds": 2.5,
            "peak_mb": 100.0,
            "device": "cpu",
            "host": "node1",
        },
        **more,
    }


def trajectory(path, steps=(0, 2, 4)):
    rows = [
        {
            "n": n,
            "step": step,
            "epoch": float(step),
            "eta": step / 10,
            "train_loss": 1.0 / (1 + step),
            "train_accuracy": 0.5,
            "test_loss": 2.0 / (1 + step) if n == 16 else None,
            "distance": 0.0,
            "relative_distance": 0.0,
        }
        for n in (16, 32)
        for step in steps
    ]
    artifacts.write_table(path, rows, "trajectory", record("finetune", metrics={"best_step": 4}))


def decay(path, rule="spectrum", trace=1.5, **more):
    row = {
        "n": 16,
        "m": 16,
        "kind": "polynomial",
        "trace": trace,
        "stable_rank": 1.0,
        "effective_dimension": 2.0,
        "mu": 0.1,
        "alignment_top10": 0.5,
    }
    artifacts.write_table(path, [row], "decay", record(rule, metrics={"trace": trace}, **more))
