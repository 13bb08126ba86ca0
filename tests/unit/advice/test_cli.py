"""The console script: help at once, the doctor's report, advice in words, one clear line for what cannot be used."""

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from stopwise.cli import app
from warm import executable

MOODS = str(Path(__file__).parents[2] / "data" / "moods.csv")


def stopwise(*arguments, python=sys.executable, **options):
    """Run the command; ``executable()`` as its Python has torch and the like already."""
    command = [python, "-c", "from stopwise.cli import main; main()", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, **options)


SLOW_TO_IMPORT = ("torch", "numpy", "scipy", "pandas", "pyarrow", "transformers", "datasets", "mlflow", "matplotlib")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [(["--help"], "advise"), (["advise", "--help"], "--verbalizers"), (["--version"], "stopwise 0.")],
)
def test_help_and_version_come_at_once(arguments, expected):
    """Nothing that takes long to import is; seconds are not asserted, for a busy machine takes any number of them."""
    script = (
        f"import sys; from stopwise.cli import app; app({arguments!r}, standalone_mode=False); "
        f"print([name for name in {SLOW_TO_IMPORT!r} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert expected in done.stdout
    assert done.stderr.strip() == "[]"


@pytest.mark.slow
def test_advice_is_printed_in_words_and_written(tmp_path):
    options = ["--data", MOODS, "--text", "text", "--label", "label", "--model", "pico-llama", "--max-examples", "24"]
    done = stopwise("advise", *options, cwd=tmp_path, python=executable())
    assert done.returncode == 0, done.stderr
    assert "How sure: " in done.stdout
    assert "The whole answer: advice/advice.md" in done.stdout
    assert "moods.csv: 400 rows, labels negative (200), positive (200)" in done.stderr
    assert (tmp_path / "advice" / "advice.png").is_file()
    again = stopwise("advise", *options, "--seed", "1", cwd=tmp_path, python=executable())
    assert again.returncode == 1
    assert again.stderr.strip().splitlines()[-1].startswith("stopwise: --output: advice holds the advice of other")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "none.csv"], "stopwise: --data: there is no file 'none.csv'"),
        (
            ["--data", MOODS, "--label", "mood"],
            "stopwise: --data: there is no column 'mood'; found: text, label, author",
        ),
        (["--data", MOODS, "--momentum", "2"], "stopwise: --momentum: belongs to --objective squared"),
        (
            ["--data", MOODS, "--objective", "squared", "--momentum", "2"],
            "stopwise: --momentum: found 2.0, must be in [0, 1)",
        ),
        (["--data", MOODS, "--optimizer", "heavy_ball"], "stopwise: --optimizer: 'heavy_ball' has no kernel under"),
        (["--data", MOODS, "--rank", "4"], "stopwise: --rank: belongs to --adapter lora"),
        (["--data", MOODS, "--split", "test"], "stopwise: --split: belongs to --dataset, and a file has no splits"),
        (["--data", MOODS, "--dataset", "a/b"], "stopwise: --dataset: a file is given with --data already"),
        ([], "stopwise: --data: name a file, or a data set of the hub with --dataset"),
        (["--data", MOODS, "--verify", "1"], "stopwise: --verify: found 1, must be 2 to 20 folds"),
        (
            ["--data", MOODS, "--objective", "squared", "--verify", "4"],
            "stopwise: --verify: belongs to --objective cross_entropy, not to squared",
        ),
    ],
)
def test_wrong_input_is_one_clear_line(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    label = [] if "--label" in arguments else ["--label", "label"]
    done = CliRunner().invoke(app, ["advise", "--text", "text", *label, *arguments])
    assert isinstance(done.exception, (ValueError, OSError))  # which ``main`` prints, as the next test sees
    assert f"stopwise: {done.exception}".startswith(message)
    assert "\n" not in str(done.exception)
    assert not list(tmp_path.iterdir())


def test_an_error_ends_with_its_line_and_code_1(tmp_path):
    done = stopwise("advise", "--data", "none.csv", "--text", "text", "--label", "label", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("stopwise: --data: there is no file 'none.csv'")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["--data", "none.csv"],
        ["--data", MOODS, "--label", "mood"],
        ["--data", MOODS, "--label", "label", "--label", "author"],
        ["--data", MOODS, "--device", "tpu"],
        ["--data", MOODS, "--model", "./nowhere"],
        ["--data", MOODS, "--parameters", "head"],
        ["--data", MOODS, "--template", "{txt}:"],
        ["--data", MOODS, "--verbalizers", "positive=good"],
        ["--data", MOODS, "--delimiter", ";;"],
    ],
)
def test_what_is_wrong_is_said_before_torch_is_imported(tmp_path, arguments):
    script = (
        "import sys; from stopwise.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert end.code == 1\n"
        "assert not {'torch', 'transformers', 'scipy', 'matplotlib', 'mlflow'} & set(sys.modules)"
    )
    label = [] if "--label" in arguments else ["--label", "label"]
    command = [sys.executable, "-c", script, "advise", "--text", "text", *label, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert lines[0].startswith("stopwise: reading ")
    assert lines[-1].startswith("stopwise: --"), lines


def test_the_first_line_comes_before_anything_slow_is_imported(tmp_path):
    """Python says what it imports, in order, on the stream of the first line."""
    said = [sys.executable, "-X", "importtime", "-c", "from stopwise.cli import main; main()"]
    options = ["advise", "--data", MOODS, "--text", "text", "--label", "label", "--model", "pico-llama"]
    imported, line = [], ""
    with subprocess.Popen([*said, *options], stderr=subprocess.PIPE, text=True, cwd=tmp_path) as running:
        for line in running.stderr or ():
            if line.startswith("stopwise: reading "):
                break
            imported.append(line.rsplit("|", 1)[-1].strip())
        running.kill()
    assert line.startswith("stopwise: reading ")
    assert "typer" in imported
    assert not set(SLOW_TO_IMPORT) & set(imported)


def test_the_names_of_built_in_models_are_those_of_the_library():
    from stopwise.advice.door import BUILT_IN
    from stopwise.network.loading import BUILTIN, PICO

    assert (BUILTIN, *PICO) == BUILT_IN


def test_the_doctor_finds_a_pico_model_healthy():
    done = stopwise("doctor", "pico-llama", python=executable())
    assert done.returncode == 0, done.stdout + done.stderr
    for check in ("formulas", "autograd", "batch size", "padding", "attention"):
        assert check in done.stdout
    assert "TOO FAR" not in done.stdout


def test_an_unknown_model_is_one_clear_line():
    done = stopwise("doctor", "./nowhere", python=executable())
    assert done.returncode == 1
    assert done.stderr.strip().splitlines() == ["stopwise: model.source: there is no folder './nowhere'"]
