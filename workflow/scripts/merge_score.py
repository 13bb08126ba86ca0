"""Score the merge advice against the measured arithmetic: hit rate, and regret of the advised coefficient."""

from job import Job
from stopwise.artifacts import tables as artifacts
from stopwise.merging.pairs import score, score_markdown

with Job(snakemake) as job:
    advice = artifacts.read_table(snakemake.input.advice, "merge_advice").to_pylist()
    scores = []
    for path in snakemake.input.arithmetic:
        seed = int(artifacts.read_provenance(path)["seed"])
        own = [row for row in advice if row["seed"] == seed]
        scores += score(own, artifacts.read_table(path, "arithmetic").to_pylist())
    with artifacts.atomic_path(snakemake.output.text) as temporary:
        temporary.write_text(score_markdown(scores), encoding="utf-8")
    metrics = {"hit_rate": sum(row["hit"] for row in scores) / max(len(scores), 1)}
    metrics |= {key: sum(row[key] for row in scores) / max(len(scores), 1) for key in ("regret", "regret_chosen")}
    job.write(snakemake.output.table, scores, "merge_score", metrics=metrics)
