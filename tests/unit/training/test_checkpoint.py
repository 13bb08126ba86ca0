"""A training run that is killed at any moment ends with the very bits of one that was not."""

import json
import os
import signal
import subprocess
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from stopwise.network.adapters import with_adapter
from stopwise.network.pico import pico_model
from stopwise.training.checkpoint import CheckpointError, load_checkpoint, remove_checkpoint, save_checkpoint
from stopwise.training.finetune import FinetuneSettings, finetune, remove_sweep, sweep
from stopwise.training.resume import Pace
from training_reference import made_up_batch
from warm import executable

CONFIGS = {
    "holdout": {"optimizer": "heavy_ball", "stop": "holdout", "patience": 2, "continue_after_stop": True},
    "adamw": {"optimizer": "adamw", "learning_rate": 0.01, "batch_size": 5, "schedule": "cosine", "warmup": 2},
    "clipped": {"optimizer": "adamw", "learning_rate": 0.01, "batch_size": 5, "weight_decay": 0.1, "clip_norm": 0.05},
    "nesterov": {"optimizer": "nesterov", "batch_size": 7, "momentum": 0.5, "evaluate_every": 0.5},
    "lora": {"optimizer": "heavy_ball", "parameters": "trainable"},
    "tangent": {"optimizer": "gradient_descent", "tangent": True},
}
DEFAULTS = {"learning_rate": 0.3, "steps": 8, "evaluate_every": 2, "stop": "none"}


def data():
    return made_up_batch(12, seed=1), made_up_batch(8, seed=2, learnable=False), made_up_batch(8, seed=3)


def run(name, checkpoint=None, on_evaluation=None, **options):
    config = FinetuneSettings.from_config(DEFAULTS | CONFIGS[name])
    model = pico_model("gpt2", dtype="float32")
    if name == "lora":
        model = with_adapter(model, {"rank": 2, "target": "attention"}, seed=1)
    return finetune(
        model, *data(), config, checkpoint=checkpoint, on_evaluation=on_evaluation, progress=False, **options
    )


def assert_same(a, b):
    """Every number of two results, bit for bit, wall-clock times aside."""
    assert a.table_rows() == b.table_rows()
    assert a.layers == b.layers
    assert (a.best, a.stopped, a.stop_step, a.vector.metadata) == (b.best, b.stopped, b.stop_step, b.vector.metadata)
    assert np.array_equal(a.intercept, b.intercept)
    assert all(np.array_equal(a.outputs[name], b.outputs[name]) for name in a.outputs)
    assert list(a.vector) == list(b.vector)
    assert all(torch.equal(a.vector[name], b.vector[name]) for name in a.vector)


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("name", CONFIGS)
def test_an_interrupted_run_gives_the_same_numbers(tmp_path, name):
    """Interrupted at every single evaluation, one after another."""
    whole, path = run(name), tmp_path / "run.safetensors"
    seen = [row["step"] for row in whole.trajectory]

    def interrupt_after(step):
        def look(now):
            if now > step:
                raise Interrupted

        return look

    for step in seen[:-1]:
        with pytest.raises(Interrupted):
            run(name, path, interrupt_after(step))
        assert load_checkpoint(path)[1]["progress"]["step"] == step
    assert_same(run(name, path), whole)
    assert list(tmp_path.iterdir()) == []  # removed when the run is complete


# A server that has imported everything once and forks one child per request: a kill costs a second, not an import.
SERVER = """
import os, signal, sys, time
sys.path[:0] = sys.argv[1:]
import torch
torch.set_num_threads(1)
import stopwise.training.checkpoint as checkpoint
from test_checkpoint import data, pico_model, run
from training_reference import outputs_one_by_one

outputs_one_by_one(pico_model("gpt2"), data()[0])  # imports the rest; no autograd, which must not run before a fork
write = checkpoint.save_file

def train(checkpoint_path, vector_path, dies, pause):
    count = [0]

    def half(tensors, path, metadata):
        # Die in the middle of writing the n-th checkpoint: half of its bytes are on the disk under the temporary name.
        write(tensors, path, metadata=metadata)
        count[0] += 1
        if count[0] == dies:
            os.truncate(path, path.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    def look(step):
        print(step, flush=True)
        time.sleep(pause)

    checkpoint.save_file = half
    run("holdout", checkpoint_path, look, keep_checkpoint=True).vector.save(vector_path)

for line in sys.stdin:
    checkpoint_path, vector_path, dies, pause = line.split()
    child = os.fork()
    if child == 0:
        train(checkpoint_path, vector_path, int(dies), float(pause))
        os._exit(0)
    print("pid", child, flush=True)
    print("ended", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Server:
    """Runs the training of this file in children that can be killed."""

    def __init__(self):
        here = Path(__file__).parent
        command = [executable(), "-c", SERVER, str(here), str(here.parents[1] / "helpers")]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, **pipes)

    def start(self, folder, dies=0, pause=0.0):
        """Start a child and return its process id."""
        print(
            folder / "run.safetensors", folder / "vector.safetensors", dies, pause, file=self.process.stdin, flush=True
        )
        return int(self._next("pid"))

    def ended(self):
        """Wait for the child and return its exit code."""
        return int(self._next("ended"))

    def evaluation(self):
        """Wait for the child's next evaluation."""
        assert self.process.stdout.readline().strip().isdigit()

    def _next(self, word):
        for line in self.process.stdout:
            if line.startswith(word):
                return line.split()[1]
        raise AssertionError("the training server is gone")

    def close(self):
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


@pytest.fixture(scope="module")
def server():
    found = Server()
    yield found
    found.close()


def final(folder):
    tensors, meta = load_checkpoint(folder / "run.safetensors")
    for row in meta["progress"]["rows"]:
        del row["seconds"]
    return tensors, (meta["progress"]["rows"], meta["stop"]), (folder / "vector.safetensors").read_bytes()


def assert_same_files(folder, other):
    (tensors, numbers, vector), (tensors_other, numbers_other, vector_other) = final(folder), final(other)
    assert numbers == numbers_other
    assert vector == vector_other
    assert all(torch.equal(tensors[key], tensors_other[key]) for key in tensors | tensors_other)


@pytest.mark.slow
def test_sigkill_at_five_moments_and_inside_two_writes_changes_nothing(tmp_path, server):
    """One run is killed seven times; the eighth process finishes it, with the same files to the last byte."""
    (killed := tmp_path / "killed").mkdir()
    (undisturbed := tmp_path / "undisturbed").mkdir()
    server.start(undisturbed)
    assert server.ended() == 0
    for moment in range(5):
        pid = server.start(killed, pause=0.4)
        for _ in range(1 + moment % 2):
            server.evaluation()
        time.sleep(0.13 * moment)  # inside the evaluation's pause, the write after it, or the next steps
        os.kill(pid, signal.SIGKILL)
        assert server.ended() == -signal.SIGKILL
    reached = load_checkpoint(killed / "run.safetensors")[1]["progress"]["step"]
    for write in (1, 2):
        server.start(killed, dies=write)
        assert server.ended() == -signal.SIGKILL
        assert (killed / "run.safetensors.part").exists()
        assert load_checkpoint(killed / "run.safetensors")[1]["progress"]["step"] >= reached
    server.start(killed)
    assert server.ended() == 0
    assert_same_files(killed, undisturbed)
    assert sorted(path.name for path in killed.iterdir()) == ["run.safetensors", "vector.safetensors"]


def test_a_checkpoint_of_another_run_is_reported_and_not_used(tmp_path):
    path = tmp_path / "run.safetensors"
    run("adamw", path, keep_checkpoint=True)
    with pytest.warns(UserWarning, match=r"checkpoint of another run \(lambda_1, settings.*differ\)|another run"):
        result = run("holdout", path)
    assert_same(result, run("holdout"))


def test_a_damaged_checkpoint_is_reported_and_not_used(tmp_path):
    path = tmp_path / "run.safetensors"
    whole = run("holdout", path, keep_checkpoint=True)
    content = bytearray(path.read_bytes())
    for where in (len(content) - 5, 30, None):
        damaged = bytearray(content)
        if where is None:
            del damaged[len(damaged) // 2 :]
        else:
            damaged[where] ^= 0x40
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=str(path)):
            load_checkpoint(path)
        with pytest.warns(UserWarning, match="starting this run from its beginning"):
            assert_same(run("holdout", path), whole)


def test_another_thread_count_warns(tmp_path):
    path = tmp_path / "run.safetensors"
    run("holdout", path, keep_checkpoint=True)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(before + 1)
        with pytest.warns(
            UserWarning, match=f"threads {before} -> {before + 1}; the last bits of the results may differ"
        ):
            run("holdout", path)
    finally:
        torch.set_num_threads(before)


def test_a_finished_run_is_not_trained_again(tmp_path):
    path = tmp_path / "run.safetensors"
    whole = run("nesterov", path, keep_checkpoint=True)

    def never(step):
        raise AssertionError("trained again")

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same(run("nesterov", path, never), whole)


def test_a_killed_sweep_keeps_its_finished_sizes(tmp_path):
    config = FinetuneSettings.from_config(DEFAULTS | CONFIGS["holdout"])

    def look(step):
        steps.append(step)
        if len(steps) == stop_at:
            raise Interrupted

    def swept():
        model = pico_model("gpt2", dtype="float32")
        options = {"checkpoints": tmp_path / "ck", "on_evaluation": look, "progress": False}
        return dict(sweep(model, *data(), config, (4, 8, 12), spectra={}, **options))

    steps, stop_at = [], 8  # in the second size
    with pytest.raises(Interrupted):
        swept()
    steps, stop_at = [], 0
    results = swept()
    assert len(steps) == 3 + 5  # the rest of the second size, and the third
    for n, result in results.items():
        train, validation, test = data()
        train = {key: value if key == "verbalizers" else value[:n] for key, value in train.items()}
        model = pico_model("gpt2", dtype="float32")
        assert_same(result, finetune(model, train, validation, test, config, progress=False))
    remove_sweep(tmp_path / "ck", results)
    assert list(tmp_path.iterdir()) == []


FULL = """
import resource, signal, sys
from pathlib import Path
import torch
from stopwise.training.checkpoint import save_checkpoint
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
path = Path(sys.argv[1])
save_checkpoint(path, {"a": torch.zeros(4)}, {"step": 1})
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    save_checkpoint(path, {"a": torch.zeros(40_000)}, {"step": 2})
except OSError as error:
    print(error)
"""


def test_a_disk_without_room_is_named_and_keeps_the_checkpoint_before(tmp_path):
    path = tmp_path / "run.safetensors"
    done = subprocess.run([executable(), "-c", FULL, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"{path}: the checkpoint could not be written (")
    assert list(tmp_path.iterdir()) == [path]
    assert load_checkpoint(path)[1] == {"step": 1}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8])
def test_tensors_and_numbers_return_unchanged(tmp_path, dtype):
    path = tmp_path / "a" / "checkpoint.safetensors"
    tensors = {
        "x": torch.arange(7).to(dtype),
        "scalar": torch.tensor(3).to(dtype),
        "empty": torch.zeros(0, dtype=dtype),
    }
    meta = {"numbers": [0.1, 1e-300, float("nan"), None, True], "text": "ü"}
    save_checkpoint(path, tensors, meta)
    found, numbers = load_checkpoint(path)
    assert json.dumps(numbers) == json.dumps(meta)
    assert all(torch.equal(found[key], tensors[key]) and found[key].dtype == dtype for key in tensors)
    assert os.listdir(path.parent) == [path.name]
    remove_checkpoint(path)
    remove_checkpoint(path)
    assert not path.exists()


def test_checkpoints_are_written_by_time(tmp_path, monkeypatch):
    """A run that is cut off loses seconds, and one that evaluates often does not spend its time on writing."""
    clock, written = iter(range(0, 1000, 10)), []  # ten seconds from one evaluation to the next
    monkeypatch.delenv("STOPWISE_CHECKPOINT_SECONDS")
    monkeypatch.setattr(Pace, "clock", lambda pace: next(clock))
    monkeypatch.setattr("stopwise.training.finetune.save_run", lambda run, *_: written.append(run.progress.step))
    monkeypatch.setitem(DEFAULTS, "evaluate_every", 1)
    run("adamw", tmp_path / "ck.safetensors")
    assert written == [2, 5, 8]


def test_a_strange_time_between_checkpoints_is_refused(monkeypatch):
    monkeypatch.setenv("STOPWISE_CHECKPOINT_SECONDS", "soon")
    with pytest.raises(ValueError, match="STOPWISE_CHECKPOINT_SECONDS: 'soon' is not a number of seconds"):
        Pace()
