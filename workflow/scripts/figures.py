"""What the figure scripts share: read upstream tables with their wildcards, write the table, draw it."""

from pathlib import Path

from job import Job
from stopwise import artifacts
from stopwise.plots import figure, style


def pairs(paths, kind: str) -> list[tuple[dict, object]]:
    """Return (wildcards, table) of each artifact, the seed as an integer."""
    found = []
    for path in paths:
        wildcards = dict(artifacts.read_provenance(path)["wildcards"])
        if "seed" in wildcards:
            wildcards["seed"] = int(wildcards["seed"])
        found.append((wildcards, artifacts.read_table(path, kind)))
    return found


def draw(job: Job, name: str, *upstream) -> None:
    """Assemble the figure's table, write it, and draw the written table as SVG and PNG."""
    module = figure(name)
    output = job.snakemake.output
    job.write(output.table, module.table(*upstream), name)
    style.save(module.draw(artifacts.read_table(output.table, name)), Path(output.svg).with_suffix(""))
