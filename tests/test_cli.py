"""The console script: the doctor's report, and one clear line for what cannot be examined."""

import subprocess
import sys


def stopwise(*arguments):
    command = [sys.executable, "-c", "from stopwise.cli import main; main()", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_the_doctor_finds_a_pico_model_healthy():
    done = stopwise("doctor", "pico-llama")
    assert done.returncode == 0, done.stdout + done.stderr
    for check in ("formulas", "autograd", "batch size", "padding", "attention"):
        assert check in done.stdout
    assert "TOO FAR" not in done.stdout


def test_an_unknown_model_is_one_clear_line():
    done = stopwise("doctor", "./nowhere")
    assert done.returncode == 1
    assert done.stderr.strip().splitlines() == ["stopwise: model.source: there is no folder './nowhere'"]
