"""Measure the weight disentanglement error over the plane of coefficients, beside what the kernels predict."""

import itertools

from job import Job, use_device
from stopwise.merging.predicted import disentanglement_rows, read_spaces
from stopwise.training.settings import FinetuneSettings

with Job(snakemake) as job:
    params, files = snakemake.params, snakemake.input
    device = use_device(job, params.device)
    from stopwise.merging.linearised import TangentBench, disentanglement
    from stopwise.merging.workbench import read_bench
    from stopwise.network.loading import load_start

    seed, own = int(job.wildcards["seed"]), params.arithmetic
    spaces = read_spaces(
        params.tasks,
        **{key: files[key] for key in ("data", "gram", "index", "outputs", "blocks")},
        settings=FinetuneSettings.from_config(params.finetune, **params.kernel, **params.stopping),
        formula=params.formula,
        size=own["size"],
        seed=seed,
    )
    grid, rows = own["disentanglement"], []
    for method, space in spaces.by_method.items():
        rows += disentanglement_rows(space, grid, method)
    model, stamp = load_start(snakemake, "pretrained", seed, device)
    options = {"outputs": params.kernel["outputs"], "target_scale": params.stopping["target_scale"]}
    bench, digests = read_bench(
        model, stamp["fingerprint"], params.tasks, files.data, files.index, files.vectors, options
    )
    tangent = TangentBench(bench) if own["tangent"] else None
    for a, b in itertools.combinations(params.tasks, 2):
        for row in disentanglement(bench, a, b, grid, tangent):
            named = {"measured": row.pop("xi"), "linearised": row.pop("xi_linearised", None)}
            rows += [{**row, "method": method, "xi": xi} for method, xi in named.items() if xi is not None]
    job.write(snakemake.output[0], rows, "disentanglement", model=stamp["fingerprint"], data=digests)
