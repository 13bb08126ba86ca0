"""Install what requirements.lock pins, saying from the first second what runs and how long it will still take.

    python tools/install.py .venv/bin/python requirements.lock

Needs nothing but the standard library: it runs before anything is installed. pip's own words are shown when it fails.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

# The lines of pip that tell of one more package, of a download, and of the last part, which says nothing while it runs.
NAMED = re.compile(r"^(?:Collecting|Requirement already satisfied:) ([A-Za-z0-9._-]+)")
FETCHED = re.compile(r"^\s+Downloading \S*?([A-Za-z0-9._]+)-\S+ \(([\d.]+ [kMG]B)\)")
LAST = "Installing collected packages"
EVERY = 5.0  # seconds between two lines, where nothing special happens


def pinned(text: str) -> int:
    """Return how many packages a lock file pins."""
    lines = [line.split("#")[0].strip() for line in text.splitlines()]
    return sum(bool(line) and not line.startswith("-") for line in lines)


def told(lines: Iterable[str], total: int, clock: Callable[[], float] = time.monotonic) -> Iterator[str]:
    """Yield what to say of pip's lines: how many packages of ``total`` are there, the large ones, and what is left."""
    began = spoken = clock()
    names: set[str] = set()
    for line in lines:
        if line.startswith(LAST):
            yield f"{len(names)} packages are here after {clock() - began:.0f} s; unpacking them takes about a minute"
            continue
        if (fetched := FETCHED.match(line)) and _megabytes(fetched[2]) > 50:
            yield f"fetching {fetched[1]} ({fetched[2]})"
        if not (named := NAMED.match(line)):
            continue
        names.add(named[1].lower())
        now = clock()
        if now - spoken >= EVERY and len(names) < total:
            left = (now - began) / len(names) * (total - len(names))
            yield f"{len(names)} of {total} packages ({named[1]}), about {max(left, 5):.0f} s left"
            spoken = now


def _megabytes(size: str) -> float:
    number, unit = size.split()
    return float(number) * {"kB": 1e-3, "MB": 1.0, "GB": 1e3}[unit]


def main(python: str, lock: str) -> int:
    """Install; return pip's exit code."""
    total = pinned(Path(lock).read_text(encoding="utf-8"))
    print(f"Installing {total} packages from {lock} (about 1.5 GB on disk): two to six minutes", flush=True)
    command = [python, "-m", "pip", "install", "--progress-bar", "off", "--disable-pip-version-check"]
    command += ["--no-compile", "-r", lock]
    kept: list[str] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as pip:
        assert pip.stdout is not None

        def lines() -> Iterator[str]:
            for line in pip.stdout or ():
                kept.append(line)
                yield line

        for words in told(lines(), total):
            print(f"  {time.strftime('%H:%M:%S')}  {words}", flush=True)
    if pip.returncode:
        sys.stderr.write("".join(kept[-30:]))
    return pip.returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
