"""The tables of the reference pages, read off the code, the schemas and the workflow (no torch)."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import yaml

import stopwise
from doc_results import table
from stopwise.stopping.rule_table import rules_table

ROOT = Path(__file__).resolve().parents[1]
WORKFLOW = ROOT / "workflow"
ARTIFACTS = ROOT / "src" / "stopwise" / "schemas" / "artifacts.yaml"

FIGURES = {
    "F1": ("f01_decay", "eigenvalue decay of each task's kernel, with fitted laws, from every start"),
    "F2": ("f02_curves", "real fine-tuning curves, every rule's stop, the linearised prediction"),
    "F3": ("f03_rules", "the rules compared: hit rate, regret, T/T_oracle"),
    "F4": ("f04_sample_size", "test error against sample size beside the slope that the spectrum predicts"),
    "F5": ("f05_ridge", "ridge at 1/η against early stopping at η (`snakemake --cores 2 theory`)"),
    "F6": ("f06_training", "errors by eigendirection in real training beside what the kernel says, loss, distance"),
    "F7": ("f07_task_vectors", "task vectors' cosine and interference, predicted by the kernels and measured"),
    "F8": ("f08_merging", "task addition and negation against the scaling coefficient"),
    "F9": ("f09_layers", "the kernel by layer"),
    "F10": ("f10_known_truth", "rates and regret where the truth is known (`snakemake --cores 2 theory`)"),
    "F11": (
        "f11_labels",
        "log-loss and accuracy against labels spent, by way of choosing a stop (`encoder_study`,"
        " `language_model_study`)",
    ),
}
TARGETS = {
    "all": "everything that a run writes, with `index.html`, `summary.md` and `claims.md`; the default",
    "plan": "the number of jobs of each rule, their hours and memory on this machine and on data-sheet GPUs; nothing is"
    " fetched or loaded",
    "merge_advice": "which task vectors should add well, and at which coefficient; nothing is merged",
    "stopping_study": "the stopping rules judged on the kernel's own path",
    "stopping_runs": "the stopping rules, and variants of `bayes`, judged on the real runs",
    "language_model_study": "ways of choosing a stop judged on real training, `language_model_study_so_far` on what is"
    " finished; `encoder_study` and `encoder_study_so_far` mean the same",
    "theory": "the rules where the truth is known: F5, F10 and `theory/summary.md`",
    "benchmark": "time and memory of the kernel engine and of training on this machine, beside other ways",
    "provenance": "one table of where every artifact comes from",
    "record": "the small tables, pages and pictures of a finished run, copied to `docs/records`",
    "record_study": "the same of a finished study on the path",
}


def rules() -> str:
    """Return the table of the stopping rules, as the registry has it."""
    return rules_table()


def figures() -> str:
    """Return the table of the figures and the caption of each. Raises ValueError for a figure that no rule draws."""
    drawn = set(re.findall(r"\bF\d+\b", "".join(path.read_text(encoding="utf-8") for path in _rule_files())))
    if not set(FIGURES) <= drawn:
        raise ValueError(f"no rule draws {sorted(set(FIGURES) - drawn)}")
    rows = [
        [name, words, f"`figure_{name}`", f"`src/stopwise/figures/{module}.py`", f"`figures/{name}.parquet`"]
        for name, (module, words) in FIGURES.items()
    ]
    text = [table(["figure", "shows", "rule", "drawn by", "drawn from"], rows)]
    for name in FIGURES:
        caption = (WORKFLOW / "report" / f"{name.lower()}.rst").read_text(encoding="utf-8").strip()
        text.append(f"## {name}\n\n{sentences(caption)}")
    return "\n\n".join(text)


def notebook(name: str) -> str:
    """Return a notebook, a script in percent format, as Markdown: words as they are, code in blocks.

    Its first heading is left out: the page has one.
    """
    script = (ROOT / "docs" / "notebooks" / f"{name}.py").read_text(encoding="utf-8")
    parts = []
    for cell in re.split(r"^# %%", script, flags=re.MULTILINE)[1:]:
        kind, _, body = cell.partition("\n")
        if kind.strip() == "[markdown]":
            words = "\n".join(line.removeprefix("#").removeprefix(" ") for line in body.strip().splitlines())
            parts.append(re.sub(r"\A# .*\n+", "", words).strip())
        else:
            parts.append(f"```python\n{body.strip()}\n```")
    return "\n\n".join(parts)


def sentences(text: str) -> str:
    """Return a text with one sentence a line."""
    return re.sub(r"(?<=[.?!]) (?=[A-Z])", "\n", " ".join(text.split()))


def _rule_files() -> list[Path]:
    return sorted([ROOT / "Snakefile", *(WORKFLOW / "rules").glob("*.smk")])


def artifacts() -> str:
    """Return a section for each kind of Parquet artifact: what it holds, and its columns with their comments."""
    text = ARTIFACTS.read_text(encoding="utf-8")
    comments = _comments(text)
    out = []
    for kind, entry in yaml.safe_load(text).items():
        rows = []
        for column, declared in entry["columns"].items():
            about = declared if isinstance(declared, dict) else {"type": declared}
            empty = "yes" if about.get("nullable") or about.get("optional") else ""
            rows.append([f"`{column}`", f"`{about['type']}`", empty, comments.get((kind, column), "")])
        columns = table(["column", "type", "may be empty", "what"], rows)
        out.append(f"## {kind}\n\n{sentences(entry['description'])}\n\n{columns}")
    return "\n\n".join(out)


def _comments(text: str) -> dict[tuple[str, str], str]:
    """Return the comment behind each column of the schema, by kind and column."""
    found, kind = {}, ""
    for line in text.splitlines():
        if head := re.match(r"(\w+):", line):
            kind = head[1]
        elif column := re.match(r"    (\w+):.*?\s#\s*(.+)$", line):
            found[kind, column[1]] = column[2].replace("|", "\\|")
    return found


def commands() -> str:
    """Return every command of the console script with its arguments and options."""
    import typer

    from stopwise.cli import app

    group: Any = typer.main.get_command(app)
    out = [sentences(group.help or "")]
    for name, command in group.commands.items():
        usage = f"stopwise {name} " + " ".join(_usage(parameter) for parameter in command.params if parameter.required)
        paragraphs = inspect.cleandoc(command.help).split("\n\n")
        rows = [_option(parameter) for parameter in command.params]
        options = table(["option", "default", "what"], rows)
        out.append(f"## stopwise {name}\n\n```text\n{usage} ...\n```")
        out += [sentences(paragraph) for paragraph in paragraphs if not paragraph.startswith("Example:")]
        out.append(options)
    return "\n\n".join(out)


def _usage(parameter: Any) -> str:
    shown = parameter.name.upper()
    return shown if parameter.param_type_name == "argument" else f"{parameter.opts[0]} {shown}"


def _option(parameter: Any) -> list[str]:
    name = parameter.name.upper() if parameter.param_type_name == "argument" else ", ".join(parameter.opts)
    default = parameter.default
    plain = default is None or default is False or callable(default)
    shown = "needed" if parameter.required else "" if plain else f"`{default}`"
    return [f"`{name}`", shown, (getattr(parameter, "help", "") or "").replace("|", "\\|")]


def targets() -> str:
    """Return the targets of Snakemake. Raises ValueError for one that no rule has."""
    text = "".join(path.read_text(encoding="utf-8") for path in _rule_files())
    # The targets of a study on real training are named after what answers, words or a head.
    named = set(re.findall(r'^rule (\w+):|"(\w+_study)"', text, re.MULTILINE))
    named = {name for pair in named for name in pair}
    if not set(TARGETS) <= named:
        raise ValueError(f"no rule is called {', '.join(sorted(set(TARGETS) - named))}")
    return table(["target", "what it makes"], [[f"`{name}`", words] for name, words in TARGETS.items()])


def make() -> str:
    """Return the targets of the Makefile with what each says of itself."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    found = re.findall(r"^([a-z-]+):[^#\n]*##\s*(.+)$", text, re.MULTILINE)
    return table(["target", "what it does"], [[f"`make {name}`", words] for name, words in found])


def api() -> str:
    """Return one directive of mkdocstrings for each public name, where it is defined."""
    public = stopwise._PUBLIC
    return "\n\n".join(f"::: stopwise.{public[name]}.{name}" for name in stopwise.__all__)


GENERATORS = {
    "rules": rules,
    "figures": figures,
    "notebook": notebook,
    "artifacts": artifacts,
    "commands": commands,
    "targets": targets,
    "make": make,
    "api": api,
}
