"""Assemble a figure's table from the artifacts that it reads, write it, and draw the written table as SVG and PNG."""

from pathlib import Path

from job import Job
from stopwise.artifacts import tables as artifacts
from stopwise.figures import style
from stopwise.figures.registry import FIGURES, figure

with Job(snakemake) as job:
    name, files = snakemake.params.figure, snakemake.input
    module = figure(name)
    upstream = {argument: artifacts.read_pairs(files[kind], kind) for argument, kind in FIGURES[name].reads.items()}
    job.write(snakemake.output.table, FIGURES[name].table(upstream), name)
    style.save(
        module.draw(artifacts.read_table(snakemake.output.table, name)), Path(snakemake.output.svg).with_suffix("")
    )
