"""Print what the configuration will cost: its jobs and its kernels, without loading weights."""

from job import Job
from stopwise.artifacts import tables as artifacts
from stopwise.cost import jobs as job_plan
from stopwise.cost import kernels as kernel_plan
from stopwise.cost.estimate import DEVICES, count, measure_device

with Job(snakemake) as job:
    config, assets = snakemake.params.config, snakemake.params.assets
    kernels = kernel_plan.plan_rows(config, assets)
    counts = count(kernel_plan.model_skeleton(config["model"], assets), config["kernel"]["parameters"])
    rows = job_plan.job_rows(config, counts, kernels, [measure_device(), *DEVICES.values()])
    storage = job_plan.storage_gb(config, counts, kernels)
    text = kernel_plan.markdown(config, kernels) + "\n" + job_plan.markdown(rows, storage)
    with artifacts.atomic_path(snakemake.output.text) as temporary:
        temporary.write_text(text, encoding="utf-8")
    job.write(snakemake.output.table, kernels, "plan")
    job.write(snakemake.output.jobs, rows, "plan_jobs")
    print(text)
