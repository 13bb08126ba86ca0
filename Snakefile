# stopwise: when to stop fine-tuning, read off the kernel before the first step.
# `snakemake --cores 2` runs config.yaml; `snakemake --cores 2 --configfile config/test.yaml` another one.
from snakemake.utils import min_version

min_version("9.0")

if not workflow.overwrite_configfiles:

    configfile: "config.yaml"


# With `--software-deployment-method apptainer`: the image of the Dockerfile, built under this name.
container: "docker://stopwise:0.1.0"


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"
include: "workflow/rules/sections.smk"
include: "workflow/rules/assets.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/jacobian.smk"
include: "workflow/rules/gram.smk"
include: "workflow/rules/spectrum.smk"
include: "workflow/rules/folds.smk"
include: "workflow/rules/finetune.smk"
include: "workflow/rules/drift.smk"
include: "workflow/rules/joint.smk"
include: "workflow/rules/arithmetic.smk"
include: "workflow/rules/figures.smk"
include: "workflow/rules/summary.smk"
include: "workflow/rules/claims.smk"
include: "workflow/rules/tracking.smk"
include: "workflow/rules/theory.smk"
include: "workflow/rules/study.smk"
include: "workflow/rules/encoder_design.smk"
include: "workflow/rules/encoder_study.smk"
include: "workflow/rules/benchmark.smk"
include: "workflow/rules/record.smk"


rule all:
    default_target: True
    input:
        artifact_paths(),
        figure_paths(),
        f"{RESULTS}/summary.md",
        f"{RESULTS}/claims.md",
        f"{RESULTS}/index.html",
        f"{RESULTS}/tracking.parquet",
    localrule: True


# Snakemake limits the starts of jobs (100 a second unless told), and looks for jobs again a second after every look. Each
# job that ends begins another such chain: after 80 jobs the next jobs are chosen 80 times a second, for a fifth of a core.
# The default limit, which no run here comes near, is lifted; one that the user set stays.
onstart:
    limit = getattr(workflow.scheduler, "job_rate_limiter", None)
    if limit is not None and (limit.max_jobs, limit.timespan) == (100, 1):
        workflow.scheduler.job_rate_limiter = None
