"""Pages name tests and files that exist, versions agree, and what belongs together in several places does."""

import json
import re
from pathlib import Path

import pytest
import yaml

import pages
import stopwise
from stopwise.figures import style
from stopwise.pipeline.config_messages import schema
from stopwise.stopping import registry as stopping

ROOT = Path(__file__).resolve().parents[2]
RECIPES = "docs/how-to/extend.md"
# Packages whose conda name differs from that on PyPI.
CONDA_NAMES = {"pytorch": "torch", "matplotlib-base": "matplotlib"}


def pinned():
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    return {normal(name): version for name, _, version in (line.partition("==") for line in lines) if version}


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("page", pages.pages())
def test_a_page_points_to_tests_and_files_that_exist(page):
    written = pages.prose(page)
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", written)
    for file, test in named:
        assert f"def {test}(" in (ROOT / file).read_text(encoding="utf-8"), test
    assert page != RECIPES or len(named) >= 8
    for path in re.findall(r"`((?:tests|workflow|src|config|envs|profiles|docs)/[\w./-]+)`", written):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("page", pages.pages())
def test_a_name_is_in_the_file_that_a_page_says_it_is_in(page):
    for name, path in re.findall(
        r"`(\w+)`[^`\n]{0,60}? (?:in|of)\s+`((?:tests|workflow|src)/[\w./]+\.py)`", pages.prose(page)
    ):
        assert re.search(rf"\b{name}\b", (ROOT / path).read_text(encoding="utf-8")), (name, path)


def test_every_rule_is_known_to_the_schema_and_to_the_figures():
    sections = schema()["$defs"]
    assert set(sections["Stopping"]["properties"]["rules"]["items"]["enum"]) == set(stopping.RULES)
    measured = {*stopping.MEASURED_STOPS, *stopping.FOLDED_STOPS, stopping.FIXED_STOP}
    stops = set(sections["Finetune"]["properties"]["stop"]["enum"]) - measured
    assert stops == set(stopping.RULES) - set(stopping.MEASURED)
    assert set(style.RULES) == set(stopping.RULES)


@pytest.mark.parametrize("path", sorted((ROOT / "envs").glob("*.yaml")), ids=lambda path: path.name)
def test_conda_environments_hold_the_locked_versions(path):
    lock, found = pinned(), 0
    for entry in yaml.safe_load(path.read_text(encoding="utf-8"))["dependencies"]:
        name, _, version = entry.partition("=")
        if name == "python":
            continue
        assert version == lock[normal(CONDA_NAMES.get(name, name))], entry
        found += 1
    assert found > 10


def test_conda_environments_hold_every_dependency_of_the_library():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [*project["dependencies"], *project["optional-dependencies"]["workflow"]]
    wanted = {normal(re.split(r"[=<>]", entry)[0]) for entry in asked}
    for path in (ROOT / "envs").glob("*.yaml"):
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))["dependencies"]
        held = {normal(CONDA_NAMES.get(name, name)) for name in (entry.partition("=")[0] for entry in entries)}
        # Snakemake itself starts the environments; the environment of a rule does not hold it.
        assert wanted - {"snakemake", "snakemake-interface-logger-plugins"} <= held, wanted - held
    assert wanted <= set(pinned())


def test_the_version_is_one():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert stopwise.__version__ == project["version"] == citation["version"]
    assert (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").count("## ") >= 1


def test_the_citation_has_what_the_format_asks_for():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    # Required by the schema of the Citation File Format 1.2.0.
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["cff-version"] == "1.2.0"
    assert citation["type"] in ("software", "dataset")
    (paper,) = citation["references"]
    assert {"type", "title", "authors"} <= set(paper)
    assert all({"family-names", "given-names"} <= set(author) for author in paper["authors"])
    assert "2602.13942" in json.dumps(paper)
