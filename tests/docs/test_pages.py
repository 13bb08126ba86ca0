"""Every page keeps its word: links and anchors exist, commands run (the long ones as a dry run), snippets work."""

import re
import subprocess
from pathlib import Path, PurePosixPath

import pytest
import yaml

import pages
from pages import ROOT, of
from pipeline import checkout, snakemake
from stopwise.figures.registry import FIGURES
from stopwise.pipeline.config import validated
from warm import executable

PAGES = pages.pages()
CONFIG = yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))
# What stands for the built-in task: its rows have scores as the built-in ones do.
STAND_IN = {
    "name": "movie",
    "source": {"csv": "rows.csv"},
    "text": "text",
    "label": "sentiment",
    "minimum_abs_score": 1.0,
    "template": "Review: {text}\nSentiment:",
    "verbalizers": {"negative": " negative", "positive": " positive"},
}
# Followed on a finished run in test_readme_boxes.py.
NEEDS_A_RUN = ("docs/how-to/merge-task-vectors.md",)
# Its code is run by test_how_to_trainer.py; that of the other needs the built-in encoder and a file of one's own.
RUN_ELSEWHERE = ("docs/how-to/stop-a-trainer.md", "docs/how-to/advice-for-a-classifier.md")
RUN_ELSEWHERE += tuple(page for page in PAGES if page.startswith("docs/notebooks/"))  # test_notebooks.py
# Scripts that stopwise itself writes for a person.
WRITTEN = ("advice/train.py", "advice-tickets/train.py")


def options(arguments):
    """Snakemake's own reading of a command's arguments."""
    from snakemake.cli import get_argument_parser

    return get_argument_parser(profiles=[]).parse_args(arguments)


def configured(paths):
    """The configuration of several files, each over the ones before it, as Snakemake reads them."""
    from snakemake.utils import update_config

    merged = {}
    for path in paths:
        update_config(merged, yaml.safe_load(path.read_text(encoding="utf-8")))
    return merged


def sentences(csv, label, values):
    """Write a table of short sentences, with a label whose two values depend on one word."""
    rows = [f"text,{label}"]
    for number in range(120):
        rows += [
            f"we saw the {word} one day {number},{value}" for word, value in zip(("gift", "storm"), values, strict=True)
        ]
    csv.write_text("\n".join(rows), encoding="utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return checkout(tmp_path_factory.mktemp("pages"))


@pytest.mark.parametrize("page", PAGES)
def test_every_relative_link_and_anchor_leads_somewhere(page):
    for target in pages.links(page):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        reached = (ROOT / page).parent / path if path else ROOT / page
        assert reached.exists(), target
        if anchor:
            name = reached.resolve().relative_to(ROOT).as_posix()
            assert anchor in pages.anchors(name), target


def test_every_page_is_reached_from_the_readme():
    reached, waiting = set(), ["README.md"]
    while waiting:
        page = waiting.pop()
        if page in reached or not (ROOT / page).is_file():
            continue
        reached.add(page)
        for target in pages.links(page):
            path = target.partition("#")[0]
            if path.endswith(".md") and not re.match(r"[a-z]+:", path):
                linked = ((ROOT / page).parent / path).resolve()
                if linked.is_relative_to(ROOT) and PurePosixPath(linked.relative_to(ROOT)).as_posix() in PAGES:
                    waiting.append(linked.relative_to(ROOT).as_posix())
    assert set(PAGES) <= reached


@pytest.mark.parametrize("page", PAGES)
def test_every_line_of_a_shell_block_is_a_command_that_a_test_knows(page):
    for words in pages.commands(page):
        assert words[0] in pages.PROGRAMS, words


def test_every_make_target_exists():
    named = of("make")
    assert len(named) >= 10
    for arguments in {tuple(arguments) for arguments in named}:
        done = subprocess.run(["make", "-n", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", [page for page in PAGES if of("snakemake", page)])
def test_every_snakemake_command_is_one_that_this_snakemake_understands(page):
    for arguments in of("snakemake", page):
        read = options(arguments)
        named = [Path(path) for path in read.configfile or []]
        # A file that the reader makes is named once more, where the page says what to put there.
        made = [path for path in named if not (ROOT / path).exists() and f"to `{path}`" in pages.text(page)]
        if named and not made:
            assert validated(configured([ROOT / path for path in named])), arguments
        for profile in (read.profile, read.workflow_profile):
            assert profile is None or (ROOT / profile / "config.yaml").is_file() or (ROOT / profile).is_dir()


def test_every_target_resolves_with_the_test_configuration_and_the_cluster_profile(folder):
    targets = sorted({target for arguments in of("snakemake") for target in options(arguments).targets})
    assert {"theory", "plan", "record", "provenance", "stopping_runs"} <= set(targets)
    (profile,) = {str(options(a).workflow_profile) for a in of("snakemake") if options(a).workflow_profile}
    run = snakemake(folder, "-n", "all", *targets, "--workflow-profile", profile)
    assert run.code == 0, run.output[-3000:]
    assert run.jobs()["finetune"] == 2


def test_the_console_script_has_the_commands_and_options_of_the_pages():
    import typer

    from stopwise.cli import app

    group = typer.main.get_command(app)
    named = of("stopwise")
    assert {"advise", "doctor"} <= {arguments[0] for arguments in named}
    for arguments in named:
        if arguments[0].startswith("-"):
            continue
        command = group.commands[arguments[0]]
        plain = [word.strip("[]") for word in arguments[1:]]
        command.make_context(arguments[0], plain, resilient_parsing=True)  # refuses an unknown option


def test_python_commands_name_files_that_exist_and_pip_what_is_installed():
    for arguments in of("python"):
        for path in arguments:
            assert not path.endswith(".py") or path in WRITTEN or (ROOT / path).is_file(), path
        if arguments[0] == "-c":
            compile(arguments[1], "page", "exec")
    for arguments in of("pip"):
        assert arguments[0] == "install"
        for word in arguments[1:]:
            assert not word.endswith((".lock", ".txt")) or (ROOT / word).is_file(), word


@pytest.mark.parametrize("page", [page for page in PAGES if pages.blocks(page, "yaml")])
def test_every_piece_of_configuration_is_valid(page):
    found = [yaml.safe_load(body) for body in pages.blocks(page, "yaml")]
    for given in found:
        if not set(given) <= set(CONFIG):
            assert "merge_method" in given, "neither a configuration nor one of mergekit"
            continue
        base = {key: value for key, value in CONFIG.items() if key not in ("tasks", "arithmetic") or key not in given}
        merged = {"arithmetic": {"enabled": False}, **{k: v for k, v in base.items() if k != "arithmetic"}, **given}
        assert validated(merged)


def test_the_own_data_snippet_reads_a_csv(tmp_path, monkeypatch):
    from stopwise import Task, load_model

    (body,) = pages.blocks("docs/how-to/own-data.md", "yaml")
    ((name, task),) = yaml.safe_load(body)["tasks"].items()
    sentences(tmp_path / task["source"]["csv"], task["label"], list(task["verbalizers"]))
    monkeypatch.chdir(tmp_path)
    _, tokenizer = load_model("pico-llama")
    batch = Task.from_config({**task, "name": name}).encode(tokenizer, "train", n=16)
    assert sorted(batch["labels"].tolist()) == [0] * 8 + [1] * 8


@pytest.mark.parametrize("page", [p for p in PAGES if pages.snippets(p) and p not in (*NEEDS_A_RUN, *RUN_ELSEWHERE)])
def test_the_python_of_a_page_works_on_a_pico_model_and_a_small_table(page, tmp_path):
    sentences(tmp_path / "rows.csv", "sentiment", ("2.5", "-2.5"))
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    for code in pages.snippets(page):
        code = code.replace('"smollm2-135m"', '"pico-llama"')
        code = code.replace('Task.from_config("movie")', f"Task.from_config({STAND_IN!r})")
        done = subprocess.run(
            [executable(), "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120
        )
        assert done.returncode == 0, done.stderr[-3000:]


def test_every_figure_has_its_rule_its_table_and_its_code():
    rules = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "workflow/rules").glob("*.smk"))
    table = re.findall(
        r"^\| (F\d+) \|.*\| `(figure_F\d+)` \| `([^`]+)` \| `figures/(F\d+)\.parquet` \|$",
        pages.text("docs/reference/figures.md"),
        re.MULTILINE,
    )
    shown = [figure for figure, *_ in table]
    assert shown == sorted(shown, key=lambda figure: int(figure[1:]))
    assert set(shown) == set(FIGURES) == set(re.findall(r'^    "(F\d+)": \{', rules, re.MULTILINE))
    for figure, rule, code, drawn in table:
        assert rule == f"figure_{figure}"
        assert drawn == figure
        assert (ROOT / code).is_file(), code
    for page in PAGES:
        for picture in re.findall(r"figures/(F\d+)\.png", " ".join(pages.links(page))):
            assert picture in shown, "a figure that no rule makes"
