"""Judge every way of choosing on the runs of the study that are there, and write its tables and its page."""

from pathlib import Path

from job import Job
from stopwise.artifacts import tables as artifacts
from stopwise.figures import style
from stopwise.figures.registry import figure
from stopwise.studies.encoder_cells import read_cells
from stopwise.studies.encoder_design import Design
from stopwise.studies.encoder_judge import cell_rows, judged_rows
from stopwise.studies.encoder_rows import Cell
from stopwise.studies.encoder_tables import grouped_table, label_rows, report
from stopwise.studies.encoder_ways import Settings

with Job(snakemake) as job:
    params, files, output = snakemake.params, snakemake.input, snakemake.output
    kinds = {"runs": "study_outputs", "labels": "study_labels", "steps": "study_steps", "kernels": "study_kernel"}
    read = {name: [artifacts.read_table(path, kind) for path in files.get(name, [])] for name, kind in kinds.items()}
    others = [artifacts.read_table(path, "study_answers") for path in files.get("answers", [])]
    design = Design.of(params.config)
    settings = Settings(design, params.weight_decay, params.patience)
    cells = list(read_cells(read["runs"], read["labels"], read["steps"], read["kernels"]))
    known = [row for table in others for row in table.to_pylist()]
    judged = [row for row in judged_rows(cells, settings, known) if row["task"] in params.tasks]
    facts = cell_rows(cell for cell in cells if cell.cell.task in params.tasks)
    table = grouped_table(judged, design)
    text = report(judged, facts, [Cell(*cell) for cell in params.expected], design, table)
    job.write(output.judged, judged, "study_judged")
    job.write(output.cells, facts, "study_cells")
    job.write(output.ways, table, "study_ways")
    job.write(output.labels_spent, label_rows(judged, design), "study_labels_spent")
    drawn = figure("F11")
    job.write(output.F11, drawn.table([artifacts.read_table(output.labels_spent, "study_labels_spent")]), "F11")
    style.save(drawn.draw(artifacts.read_table(output.F11, "F11")), Path(output.svg).with_suffix(""))
    with artifacts.atomic_path(output.text) as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(text)
