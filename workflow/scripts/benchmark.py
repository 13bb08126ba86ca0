"""Write the benchmark's tables as text, and draw its figure."""

from pathlib import Path

from job import Job
from stopwise.artifacts import tables as artifacts
from stopwise.cost import figure as benchmark
from stopwise.figures import style

PARTS = ("floor", "training")
TITLES = {"encoder": "An encoder with a new head, all weights", "lora": "LoRA beside every linear layer"}

with Job(snakemake) as job:
    files = snakemake.input
    floor, peers, errors = (
        artifacts.read_table(files[part], f"benchmark_{part}") for part in ("floor", "peers", "errors")
    )
    large = [artifacts.read_table(path, "benchmark_large") for path in files.large]
    training = [artifacts.read_table(path, "benchmark_training") for path in files.training]
    kinds = {
        title: tuple(artifacts.read_table(files[kind][i], f"benchmark_{part}") for i, part in enumerate(PARTS))
        for kind, title in TITLES.items()
    }
    text = benchmark.markdown(floor, peers, errors, large, training, kinds)
    with artifacts.atomic_path(snakemake.output.text) as temporary:
        temporary.write_text(text, encoding="utf-8")
    style.save(benchmark.draw(floor, peers), Path(snakemake.output.svg).with_suffix(""))
    print(text)
