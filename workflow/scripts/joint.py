"""Train several tasks together, beside what their joint kernel says of it."""

from dataclasses import replace
from pathlib import Path

from job import Job, use_device
from stopwise.artifacts.sample import SPLITS, read_sample
from stopwise.stopping.judging import evaluate_rules
from stopwise.stopping.registry import MEASURED
from stopwise.training.joint_prediction import JointPlan, joint_rows

with Job(snakemake) as job:
    device = use_device(job, snakemake.params.device)
    from stopwise.kernel.ntk import task_kernels
    from stopwise.network.loading import load_start
    from stopwise.tasks.batch import batch_from_table
    from stopwise.training.checkpoint import remove_checkpoint
    from stopwise.training.finetune import FinetuneSettings, finetune, first_examples

    params, kernel, stopping = snakemake.params, snakemake.params.kernel, snakemake.params.stopping
    names, n = params.tasks, params.joint["size"]
    coding = {key: kernel[key] for key in ("parameters", "outputs")}
    rooms = {key: stopping[key] for key in ("intercept", "target_scale")}
    settings = FinetuneSettings.from_config(params.finetune, **coding, **rooms)
    settings = replace(settings, stop="none", stop_at=None, batch_size=None, tangent=False)
    samples = {name: read_sample(path) for name, path in zip(names, snakemake.input.data, strict=True)}
    batches = {
        split: {name: batch_from_table(s.table, split, verbalizers=s.verbalizers) for name, s in samples.items()}
        for split in SPLITS
    }
    batches["train"] = first_examples(batches["train"], n)
    model, stamp = load_start(snakemake, "pretrained", int(job.wildcards["seed"]), device)
    options = {key: kernel[key] for key in ("parameters", "outputs", "formula", "memory_gb")}
    blocks = task_kernels(model, batches["train"], device=device, progress=True, **options)
    targets = {name: s.targets("train", kernel["outputs"], stopping["target_scale"], n) for name, s in samples.items()}
    plan = JointPlan.of(blocks, targets, stopping["intercept"] == "fitted", settings)
    rules = [rule for rule in stopping["rules"] if rule not in MEASURED]
    stops = plan.stops(rules, stopping["t_max"] or settings.steps, stopping["noise"], stopping["radius"])
    folder = Path(snakemake.output.joint).parents[1]
    checkpoint = folder / "checkpoints" / "joint" / f"seed{job.wildcards['seed']}.safetensors"
    run = finetune(
        model,
        *(batches[split] for split in SPLITS),
        settings,
        spectrum=plan.spectrum,
        predicted={"train": plan.path},
        checkpoint=checkpoint,
        keep_checkpoint=True,
        metadata={"task": "+".join(names)},
        seed=int(job.wildcards["seed"]),
    )
    judged = evaluate_rules(run.table_rows(), stops, stopping["rules"], settings.patience, settings.min_delta)
    origin = {"model": stamp["fingerprint"], "data": ",".join(s.digest for s in samples.values())}
    job.write(snakemake.output.joint, joint_rows(run, plan), "joint", **origin)
    job.write(snakemake.output.stopping, stops, "stopping", **origin)
    metrics = {f"regret/{row['rule']}": row["relative_regret"] for row in judged}
    job.write(snakemake.output.evaluation, judged, "evaluation", metrics=metrics, **origin)
    remove_checkpoint(checkpoint)
