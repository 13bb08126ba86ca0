"""The wheel works by itself: built, installed with its own dependencies only, used outside the checkout."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import Distribution, distribution
from importlib.util import cache_from_source
from pathlib import Path

import pytest

ROOT = next(folder for folder in Path(__file__).resolve().parents if (folder / "pyproject.toml").exists())
pytestmark = [pytest.mark.wheel, pytest.mark.timeout(900)]


def run(*command: object, cwd: Path) -> str:
    """Run a command in a folder outside the checkout, with nothing of the test's own Python on its path."""
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=kept, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The path of the wheel, built from the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, ROOT, cwd=folder)
    return next(folder.glob("stopwise-*.whl"))


@pytest.fixture(scope="module")
def installed(wheel):
    """The Python of an environment that holds the wheel and what it asks for, at the versions of the lock.

    In the empty environment pip decides what that is. What it chose is linked from the environment of the tests, which
    holds the same versions: unpacking it again takes minutes.
    """
    environment, lock, chosen = wheel.parent / "environment", ROOT / "requirements.lock", wheel.parent / "chosen.json"
    run(sys.executable, "-m", "venv", environment, cwd=wheel.parent)
    python = environment / "bin" / "python"
    pip = [python, "-m", "pip", "install", "-q", "--no-compile"]
    run(*pip, "--dry-run", "--report", chosen, "-c", lock, wheel, cwd=wheel.parent)
    packages = Path(
        run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=wheel.parent).strip()
    )
    for one in json.loads(chosen.read_text(encoding="utf-8"))["install"]:
        if (name := one["metadata"]["name"]) != "stopwise":
            link(distribution(name), one["metadata"]["version"], packages)
    run(*pip, "--no-deps", wheel, cwd=wheel.parent)
    run(python, "-m", "pip", "check", cwd=wheel.parent)
    return python


def link(package: Distribution, version: str, folder: Path) -> None:
    """Put an installed package of this version into another folder of packages, file by file, but for its programs."""
    assert package.version.partition("+")[0] == version.partition("+")[0]
    home = Path(str(package.locate_file("")))
    for file in package.files or ():
        if ".." not in file.parts and file.suffix != ".pyc":
            compiled = [cache_from_source(str(home / file))] if file.suffix == ".py" else []
            for source in (home / file, *(Path(path) for path in compiled if Path(path).exists())):
                target = folder / source.relative_to(home)
                target.parent.mkdir(parents=True, exist_ok=True)
                try:
                    os.link(source, target)
                except OSError:  # another file system
                    shutil.copy2(source, target)


def test_the_wheel_holds_its_data_and_its_types(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    package = ROOT / "src" / "stopwise"
    data = {path for path in package.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert {"py.typed", "artifacts.yaml", "config.schema.json"} <= {path.name for path in data}
    missing = [path for path in data if str(path.relative_to(package.parent)) not in names]
    assert not missing


def test_advice_needs_neither_snakemake_nor_mlflow(installed, tmp_path):
    (tmp_path / "moods.csv").write_bytes((ROOT / "tests" / "data" / "moods.csv").read_bytes())
    found = run(
        installed,
        "-c",
        "import importlib.util as u, stopwise; print(stopwise.__file__);"
        "print([name for name in ('snakemake', 'mlflow', 'plotly', 'pytest') if u.find_spec(name)])",
        cwd=tmp_path,
    ).splitlines()
    assert not Path(found[0]).is_relative_to(ROOT)
    assert found[1] == "[]"
    command = [installed.parent / "stopwise", "advise", "--data", "moods.csv", "--text", "text", "--label", "label"]
    command += ["--model", "pico-llama", "--max-examples", "16", "--epochs", "2", "--output", "advice"]
    run(*command, cwd=tmp_path)
    written = {path.suffix for path in (tmp_path / "advice").iterdir()}
    assert {".md", ".png", ".parquet"} <= written
    assert "stop" in next((tmp_path / "advice").glob("*.md")).read_text(encoding="utf-8").lower()
