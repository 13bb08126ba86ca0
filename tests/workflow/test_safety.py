"""Safe by default: nothing is unpickled or evaluated, no remote code, no page on the network."""

import ast
import re
from pathlib import Path

from stopwise.pipeline.config import validated

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("src", "workflow", "tools")
SOURCES = sorted(path for part in PARTS for path in (ROOT / part).rglob("*.py") if "egg-info" not in str(path))
RUNS_CODE = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}


def test_no_source_imports_what_unpickles_or_evaluates_text():
    assert len(SOURCES) > 200
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name for alias in node.names} | {getattr(node, "module", None) or ""}
                assert not {name.split(".")[0] for name in names} & RUNS_CODE, path
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in {"eval", "exec", "torch.load", "torch.save", "yaml.load"}, (path, called)
                assert not any(word.arg == "allow_pickle" for word in node.keywords), path


def test_code_from_the_hub_runs_only_when_it_is_asked_for():
    config = {"name": "x", "model": {"source": "owner/model"}, "tasks": {"movie": {}}}
    assert validated(config)["model"]["trust_remote_code"] is False


def test_every_command_that_shows_the_record_listens_on_the_loopback_address():
    found = []
    for path in [ROOT / "Makefile", *ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *SOURCES]:
        for line in path.read_text(encoding="utf-8").splitlines():
            if re.search(r"mlflow (ui|server) ", line):
                found.append(path)
                assert "--host 127.0.0.1" in line, (path, line)
    assert found
