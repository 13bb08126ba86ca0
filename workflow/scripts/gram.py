"""Sum the Jacobian shards' Gram contributions and describe the kernel layer by layer."""

from job import Job
from stopwise import artifacts
from stopwise.gram_assembly import assemble, layer_shares
from stopwise.samples import read_sample

with Job(snakemake) as job:
    records = {str(path): artifacts.read_provenance(path) for path in snakemake.input.shards}
    models = {record["model"] for record in records.values()}
    if len(models) > 1:
        raise artifacts.ArtifactError(f"shards of different models: {', '.join(records)}; remove the stale ones")
    sample = read_sample(snakemake.input.data)
    for path, record in records.items():
        if record["data"] != sample.digest:
            raise artifacts.ArtifactError(f"{path}: made from other data than {snakemake.input.data}; remove it")
    kernel = assemble({path: artifacts.read_table(path, "jacobian") for path in records})
    stopping = snakemake.params.stopping
    y = sample.targets("train", snakemake.params.outputs, stopping["target_scale"])
    shares = layer_shares(kernel, y - kernel.outputs, centred=stopping["intercept"] == "fitted")
    origin = {"model": models.pop(), "data": sample.digest}
    trace = float(kernel.train.trace())
    job.write(snakemake.output.gram, kernel.rows(), "gram", metrics={"trace": trace}, **origin)
    job.write(snakemake.output.layer_share, shares, "layer_share", **origin)
