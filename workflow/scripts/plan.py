"""Print what the configured kernels will cost, without loading weights."""

from job import Job
from stopwise import artifacts
from stopwise.kernel_plan import markdown, plan_rows

with Job(snakemake) as job:
    config = snakemake.params.config
    rows = plan_rows(config, snakemake.params.assets)
    text = markdown(config, rows)
    with artifacts.atomic_path(snakemake.output.text) as temporary:
        temporary.write_text(text, encoding="utf-8")
    job.write(snakemake.output.table, rows, "plan")
    print(text)
