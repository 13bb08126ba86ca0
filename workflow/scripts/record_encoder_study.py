"""Copy what the study has so far into docs/records: outputs without texts by data set, and the judge's tables."""

import shutil
from pathlib import Path

import pyarrow as pa

from job import Job
from stopwise.artifacts import tables as artifacts
from stopwise.report.record import revisions

TITLES = {"encoder-study": "a small encoder", "language-model-study": "a language model"}
KINDS = {"runs": "study_outputs", "steps": "study_steps", "kernels": "study_kernel", "labels": "study_labels"}

with Job(snakemake) as job:
    params, files = snakemake.params, snakemake.input
    folder = Path(snakemake.output[0]).parent
    kept = {}
    for name, kind in KINDS.items():
        for path in files.get(name, []):
            table = artifacts.read_table(path, kind)
            if not table.num_rows:  # a kernel that nothing asks for
                continue
            kept.setdefault((kind, table["task"][0].as_py()), []).append(table)
    for (kind, task), tables in sorted(kept.items()):
        job.write(str(folder / f"{kind}-{task}.parquet"), pa.concat_tables(tables), kind)
    # Without a data set that was trained at every size the figure has nothing to show.
    drawn = any(Path(path).name == "F11.parquet" and artifacts.read_table(path, "F11").num_rows for path in files.judge)
    for path in files.judge:
        if drawn or Path(path).stem != "F11":
            shutil.copyfile(path, folder / Path(path).name)
    made_at = ", ".join(sorted(revisions(files.runs))) or "none"
    lines = [
        f"# Record of the study on {TITLES[params.page]}",
        "",
        f"Recorded with `{params.command}` from runs made at revision {made_at} of this repository.",
        f"[The study](../../results/{params.page}.md) has the protocol and says what is finished.",
        "[The judge's page](ways.md) has every way of choosing.",
        "",
        "| file | what |",
        "| --- | --- |",
        "| `study_outputs-{data set}.parquet` | outputs along every training, in half precision; no texts |",
        "| `study_steps-{data set}.parquet` | each step's rate, batch and outputs, by length |",
        "| `study_kernel-{data set}.parquet` | AdamW's kernel at each start, the plain one where gradients are cut |",
        "| `study_labels-{data set}.parquet` | the labels by split |",
        "| `judged`, `cells`, `ways`, `labels_spent`, `F11` | the judge's tables |",
        "",
        "[Artifacts](../../reference/artifacts.md) says what each column holds.",
    ]
    if drawn:
        lines += ["", "![Test log-loss and accuracy against labels spent](F11.png)"]
    with artifacts.atomic_path(snakemake.output[0]) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
