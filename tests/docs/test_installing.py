"""What `make env` says while it installs: how many packages there are, which is fetched, and how long it will take."""

import sys
from pathlib import Path

import install

PIP = """Processing /wheels/numpy-2.4.0-cp313-manylinux_2_28_x86_64.whl (from -r requirements.lock (line 3))
  Downloading numpy-2.4.0-cp313-manylinux_2_28_x86_64.whl (16.9 MB)
Collecting torch==2.13.0 (from -r requirements.lock (line 9))
  Downloading torch-2.13.0-cp313-manylinux_2_28_x86_64.whl (899.8 MB)
Requirement already satisfied: pip==26.0 in ./.venv/lib (from -r requirements.lock (line 7))
Collecting scipy==1.17.0 (from -r requirements.lock (line 8))
Installing collected packages: numpy, torch, scipy
Successfully installed numpy-2.4.0
""".splitlines(keepends=True)


def test_packages_are_counted_large_ones_named_and_the_time_left_follows():
    times = iter(range(0, 1000, 6))
    said = list(install.told(PIP, 4, lambda: float(next(times))))
    assert said == [
        "1 of 4 packages (numpy), about 18 s left",
        "2 of 4 packages (torch), about 12 s left",
        "fetching torch (899.8 MB)",
        "3 of 4 packages (pip), about 6 s left",
        "4 packages are here after 30 s; unpacking them takes up to a minute",
    ]


def test_the_lock_file_is_counted():
    lock = (Path(__file__).resolve().parents[2] / "requirements.lock").read_text(encoding="utf-8")
    assert install.pinned(lock) == sum("==" in line for line in lock.splitlines())
    assert install.pinned("# words\n\na==1  # why\n-e .\nb==2\n") == 2


def test_a_failure_of_pip_is_shown_and_returned(tmp_path, capsys):
    lock = tmp_path / "lock.txt"
    lock.write_text("no-such-package-of-stopwise @ file:///nowhere/at/all.whl\n", encoding="utf-8")
    assert install.main(sys.executable, str(lock)) != 0
    captured = capsys.readouterr()
    assert captured.out.startswith("Installing 1 packages from ")
    assert "ERROR: " in captured.err


def test_two_calls_share_all_packages_and_both_know_the_options():
    hands = install.dealt("--index-url x\na==1\n# words\nb==2  # why\nc==3\n")
    assert hands == [["--index-url x", "a==1", "c==3"], ["--index-url x", "b==2"]]
    assert install.dealt("a==1\n") == [["a==1"]]


def test_unpacking_is_spoken_of_once_all_calls_do_it():
    times = iter(range(100))
    lines = ["Collecting a==1\n", "Installing collected packages: a\n", "Collecting b==2\n"]
    both = [*lines, "Installing collected packages: b\n"]
    assert list(install.told(lines, 2, lambda: float(next(times)), calls=2)) == []
    assert list(install.told(both, 2, lambda: float(next(times)), calls=2)) == [
        "2 packages are here after 3 s; unpacking them takes up to a minute"
    ]


def test_a_lock_that_lacks_what_a_package_asks_for_is_an_error(tmp_path, capsys):
    lock = tmp_path / "lock.txt"
    lock.write_text("pip\n", encoding="utf-8")
    pip = tmp_path / "python"  # installs anything, and finds it wanting
    pip.write_text('#!/bin/sh\n[ "$3" = check ] && echo "a 1 requires b, which is not installed." && exit 1\nexit 0\n')
    pip.chmod(0o755)
    assert install.main(str(pip), str(lock)) == 1
    assert "lock.txt: a 1 requires b" in capsys.readouterr().err
