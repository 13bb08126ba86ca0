"""The configuration as a reference page, as a table beside the ready ones, and as a JSON schema for editors.

`python -m stopwise.pipeline.config_reference PAGE TABLE` writes all three from the models.
"""

from __future__ import annotations

import json
import os
import sys
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from stopwise.pipeline.config_fields import LEFT_OUT, Section
from stopwise.pipeline.config_messages import schema
from stopwise.pipeline.config_models import SECTIONS, Config, Task

SCHEMA_FILE = Path(str(resources.files("stopwise").joinpath("schemas", "config.schema.json")))

_INTRODUCTION = """# Configuration

Written by `make schema` from the models that check every configuration.

A configuration is a YAML file. `config.yaml` is the one that runs when no other is given, and its comments say how to
choose a value. `snakemake --cores 2 --configfile config/test.yaml` runs
another one in its place.
Only `name` and `tasks` have to be given: every other key has the default below, which is what `config.yaml` says.
An unknown key is an error.
Several files may be given after one `--configfile`. Later files then add to earlier ones and overrule them.
"""

_BESIDE = """# Configurations

Written by `make schema` from the models that check every configuration.

`snakemake --cores 2 --configfile config/test.yaml` runs one of the files here instead of `config.yaml`.
The studies of `config/studies` are a base and an overlay each: `--configfile config/studies/base.yaml OVERLAY`.
A configuration of your own needs a `name` and `tasks`. Every other key has the default below.
`docs/reference/configuration.md` says what is allowed for each.

"""


def schema_text() -> str:
    """Return the JSON schema as the text of its file."""
    return json.dumps(schema(), indent=2) + "\n"


def page() -> str:
    """Return the reference page: a table of the keys of the top level, of every section, and of a task."""
    own = {key: field for key, field in Config.model_fields.items() if key not in SECTIONS}
    parts = [_INTRODUCTION, "## Top level\n", f"{_text(Config)}\n", _table(own)]
    sections: dict[str, type[Section]] = {"tasks.NAME": Task, **SECTIONS}
    for name, section in sections.items():
        parts += [f"## {name}\n", f"{_text(section)}\n", _table(section.model_fields)]
    return "\n".join(parts)


def key_table() -> str:
    """Return the page that lies beside the ready configurations: each key with its default, in one table."""
    rows = ["| Key | Default | Meaning |", "|---|---|---|"]
    own = {key: field for key, field in Config.model_fields.items() if key not in SECTIONS}
    sections: dict[str, type[Section]] = {"tasks.NAME": Task, **SECTIONS}
    named = {**own, **{f"{name}.{key}": f for name, s in sections.items() for key, f in s.model_fields.items()}}
    for key, field in named.items():
        meaning = (field.description or "").rpartition(": ")[2]
        rows.append(f"| `{key}` | {_default(field)} | {meaning} |".replace("\\|", "|"))
    return _BESIDE + "\n".join(rows) + "\n"


def _text(section: type[Section]) -> str:
    return " ".join((section.__doc__ or "").split())


def _table(fields: dict[str, FieldInfo]) -> str:
    rows = ["| Key | Allowed | Default | Meaning |", "|---|---|---|---|"]
    for key, field in fields.items():
        allowed, _, meaning = (field.description or "").rpartition(": ")
        cells = (f"`{key}`", allowed, _default(field), meaning)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows) + "\n"


def _default(field: FieldInfo) -> str:
    """Return a default as YAML writes it; in words for a key that has none."""
    if field.is_required():
        return "required"
    if LEFT_OUT in field.metadata and field.default is None:
        return "that of the built-in task" if field in Task.model_fields.values() else "none"
    value: Any = field.default
    return f"`{value}`" if isinstance(value, str) else f"`{json.dumps(value).replace(chr(34), '')}`"


def write(path: Path, text: str) -> None:
    """Write a text under a temporary name and rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".part-{path.name}")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


if __name__ == "__main__":
    write(SCHEMA_FILE, schema_text())
    write(Path(sys.argv[1]), page())
    write(Path(sys.argv[2]), key_table())
