"""The README keeps its word: links and figures exist, commands run (the long ones as a dry run), snippets work."""

import html
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from snakemake.utils import update_config

from pipeline import TEST_CONFIG, checkout, snakemake
from rule_graph import BEGIN, END, edges_of, inserted, mermaid, reduced
from stopwise.pipeline.config import validated

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
PROSE = re.sub(r"^```.*?^```", "", TEXT, flags=re.MULTILINE | re.DOTALL)
ALLOWED = (". .venv/bin/activate",)  # what only a shell can do
PROGRAMS = ("snakemake", "make", "stopwise")


def commands():
    """Every command of the README, from its blocks without a language and from its inline code."""
    lines = [
        line.partition("#")[0].strip()
        for kind, body in BLOCKS
        if kind in ("", "sh", "bash")
        for line in body.splitlines()
    ]
    inline = [span for span in re.findall(r"`([^`\n]+)`", PROSE) if span.split()[0] in PROGRAMS and " " in span]
    return [line for line in dict.fromkeys([*lines, *inline]) if line and line not in ALLOWED]


def of(program):
    return [shlex.split(line)[1:] for line in commands() if line.split()[0] == program]


def options(arguments):
    """Snakemake's own reading of a command's arguments."""
    from snakemake.cli import get_argument_parser

    return get_argument_parser(profiles=[]).parse_args(arguments)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return checkout(tmp_path_factory.mktemp("readme"))


def test_every_relative_link_and_picture_exists():
    found = re.findall(r"!?\[[^\]]*\]\(([^)\s]+)\)", TEXT)
    assert len(found) > 10
    for target in found:
        if not re.match(r"[a-z]+://|#", target):
            assert (ROOT / target.partition("#")[0]).exists(), target
    headings = {
        re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in re.findall(r"^#+ (.+)$", TEXT, re.MULTILINE)
    }
    for anchor in re.findall(r"\]\(#([^)]+)\)", TEXT):
        assert html.unescape(anchor) in headings


def test_every_line_of_a_shell_block_is_a_command_that_a_test_knows():
    for line in commands():
        assert line.split()[0] in PROGRAMS, line


def test_every_make_target_exists():
    named = of("make")
    assert len(named) >= 3
    for arguments in named:
        done = subprocess.run(["make", "-n", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_every_snakemake_command_is_one_that_this_snakemake_understands():
    named = of("snakemake")
    assert len(named) > 5
    for arguments in named:
        read = options(arguments)
        merged: dict = {}
        for path in map(str, read.configfile or []):
            update_config(merged, yaml.safe_load((ROOT / path).read_text(encoding="utf-8")))
        assert not read.configfile or validated(merged), arguments
        for profile in (read.profile, read.workflow_profile):
            assert profile is None or (ROOT / profile / "config.yaml").is_file() or (ROOT / profile).is_dir()


def test_every_target_of_the_readme_resolves_with_the_test_configuration_and_the_cluster_profile(folder):
    targets = sorted({target for arguments in of("snakemake") for target in options(arguments).targets})
    assert {"theory", "plan"} <= set(targets)
    (profile,) = {str(options(a).workflow_profile) for a in of("snakemake") if options(a).workflow_profile}
    run = snakemake(folder, "-n", "all", *targets, "--workflow-profile", profile)
    assert run.code == 0, run.output[-3000:]
    assert run.jobs()["finetune"] == 2


def test_the_console_script_has_the_commands_and_options_of_the_readme():
    import typer

    from stopwise.cli import app

    group = typer.main.get_command(app)
    for arguments in of("stopwise"):
        command = group.commands[arguments[0]]
        plain = [word.strip("[]") for word in arguments[1:]]
        command.make_context(arguments[0], plain, resilient_parsing=True)  # refuses an unknown option


def test_the_python_snippets_work_on_a_pico_model_and_the_own_data_snippet_on_a_csv(tmp_path):
    own = yaml.safe_load(next(body for kind, body in BLOCKS if kind == "yaml"))
    ((name, task),) = own["tasks"].items()
    csv = task["source"]["csv"]
    rows = [f"{task['text']},{task['label']}"]
    rows += [
        f"we saw the {word} one day {i},{label}"
        for i in range(120)
        for word, label in (("gift", "good"), ("storm", "bad"))
    ]
    (tmp_path / csv).write_text("\n".join(rows), encoding="utf-8")
    validated({"name": "x", "model": {"source": "pico-llama"}, "arithmetic": {"enabled": False}, **own})
    code = "".join(body for kind, body in BLOCKS if kind == "python")
    assert 'load_model("smollm2-135m")' in code
    assert 'Task.from_config("movie")' in code
    code = code.replace('load_model("smollm2-135m")', 'load_model("pico-llama")')
    code = code.replace('Task.from_config("movie")', f"Task.from_config({task | {'name': name}!r})")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "(32, 32)" in done.stdout


def test_every_figure_of_the_readme_has_its_rule_script_and_table(folder):
    rules = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "workflow/rules").glob("*.smk"))
    table = re.findall(
        r"^\| (F\d+) \|.*\| `(figure_F\d+)` \| \[[^\]]+\]\(([^)]+)\) \| `figures/(F\d+)\.parquet` \|$",
        TEXT,
        re.MULTILINE,
    )
    shown = [figure for figure, *_ in table]
    assert shown == sorted(shown, key=lambda figure: int(figure[1:]))
    assert {f"figure_{figure}" for figure in shown} == set(re.findall(r"^rule (figure_F\d+):", rules, re.MULTILINE))
    for figure, rule, script, drawn in table:
        assert rule == f"figure_{figure}"
        assert Path(script).stem == rule
        assert drawn == figure
        assert f"figures/{figure}.parquet" in rules
    for picture in re.findall(r"!\[[^\]]*\]\(docs/figures/(\w+)\.", TEXT):
        assert picture in shown, "a figure that no rule makes"


def test_the_picture_of_the_workflow_is_current(folder):
    graph = subprocess.run(
        [sys.executable, "-m", "snakemake", "--rulegraph", "dot", "--configfile", TEST_CONFIG],
        cwd=folder, capture_output=True, text=True, check=True, timeout=120,
    ).stdout  # fmt: skip
    chart = mermaid(reduced(edges_of(graph)))
    assert chart in TEXT, "run `make dag`"
    assert inserted(TEXT, chart) == TEXT


def test_the_graph_is_reduced_to_what_no_longer_path_implies():
    names = ("all", "a", "b\\nw: 1", "figure_F1", "figure_F2")
    dot = "".join(f'{number}[label = "{name}", color = "x"];\n' for number, name in enumerate(names))
    dot += "1 -> 2\n2 -> 3\n1 -> 3\n3 -> 4\n4 -> 0\n"
    edges = edges_of(dot)
    assert edges == {("a", "b"), ("b", "figures"), ("a", "figures")}
    assert reduced(edges) == {("a", "b"), ("b", "figures")}
    with pytest.raises(ValueError, match="no rule graph"):
        edges_of("nothing")
    with pytest.raises(ValueError, match="marks"):
        inserted("no marks", "x")
    assert inserted(f"{BEGIN}{END}", "x") == f"{BEGIN}\nx\n{END}"
