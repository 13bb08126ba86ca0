"""Hold the paper's claims against this run: a table, and the same as text."""

from job import Job
from stopwise.artifacts import tables as artifacts
from stopwise.artifacts.gram import read_gram
from stopwise.artifacts.sample import read_sample
from stopwise.claims import verdicts as claims
from stopwise.claims.measures import ridge_rows
from stopwise.claims.paper import CLAIMS


def rows(paths, kind):
    """Return the rows of artifacts with their wildcards."""
    return [{**wildcards, **row} for wildcards, table in artifacts.read_pairs(paths, kind) for row in table.to_pylist()]


with Job(snakemake) as job:
    params, files = snakemake.params, snakemake.input
    evidence = claims.Evidence(
        trajectories=rows(files.trajectory, "trajectory"),
        evaluations=rows(files.evaluation, "evaluation"),
        stoppings=rows(files.stopping, "stopping"),
        decays=rows(files.decay, "decay"),
        slopes=rows(files.F4, "F4"),
        training=rows(files.F6, "F6"),
        pairs=rows(files.F7, "F7"),
        arithmetic=rows(files.F8, "F8"),
        rates=rows(files.F10, "F10"),
        study=rows(files.F5, "F5"),
        batch_size=params.batch_size,
    )
    samples = {}
    for path in files.data:
        found = artifacts.read_provenance(path)["wildcards"]
        samples[found["task"], int(found["seed"])] = read_sample(path)
    for wildcards, table in artifacts.read_pairs(files.gram, "gram"):
        own = [row for row in evidence.trajectories if all(row[key] == value for key, value in wildcards.items())]
        n = max(row["n"] for row in own)
        etas = sorted({row["eta"] for row in own if row["n"] == n})
        sample = samples[wildcards["task"], wildcards["seed"]]
        found = ridge_rows(read_gram(table), sample, params.outputs, n=n, etas=etas, **params.stopping)
        evidence.ridge += [{**wildcards, **row} for row in found]
    judged = claims.judged(CLAIMS, evidence)
    with artifacts.atomic_path(snakemake.output.text) as temporary:
        temporary.write_text(claims.markdown(params.name, params.facts, judged), encoding="utf-8")
    job.write(snakemake.output.table, judged, "claims")
