"""Install what requirements.lock pins, saying from the first second what runs and how long it will still take.

    python tools/install.py .venv/bin/python requirements.lock

Needs nothing but the standard library: it runs before anything is installed. pip's own words are shown when it fails.
"""

from __future__ import annotations

import queue
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

# The lines of pip that tell of one more package, of a download, and of the last part, which says nothing while it runs.
NAMED = re.compile(
    r"^(?:(?:Collecting|Requirement already satisfied:) ([A-Za-z0-9._-]+)|Processing \S*/([A-Za-z0-9._]+)-)"
)
FETCHED = re.compile(r"^\s+Downloading \S*?([A-Za-z0-9._]+)-\S+ \(([\d.]+ [kMG]B)\)")
LAST = "Installing collected packages"
EVERY = 5.0  # seconds between two lines, where nothing special happens


def pinned(text: str) -> int:
    """Return how many packages a lock file pins."""
    lines = [line.split("#")[0].strip() for line in text.splitlines()]
    return sum(bool(line) and not line.startswith("-") for line in lines)


def told(
    lines: Iterable[str], total: int, clock: Callable[[], float] = time.monotonic, calls: int = 1
) -> Iterator[str]:
    """Yield what to say of pip's lines: how many packages of ``total`` are there, the large ones, and what is left.

    ``calls``: how many calls of pip the lines are of. The last of them to begin to unpack ends the waiting.
    """
    began = spoken = clock()
    names: set[str] = set()
    for line in lines:
        if line.startswith(LAST):
            calls -= 1
            if calls:
                continue
            yield f"{len(names)} packages are here after {clock() - began:.0f} s; unpacking them takes up to a minute"
            continue
        if (fetched := FETCHED.match(line)) and _megabytes(fetched[2]) > 50:
            yield f"fetching {fetched[1]} ({fetched[2]})"
        if not (named := NAMED.match(line)):
            continue
        name = named[1] or named[2]
        names.add(name.lower().replace("_", "-"))
        now = clock()
        if now - spoken >= EVERY and len(names) < total:
            left = (now - began) / len(names) * (total - len(names))
            yield f"{len(names)} of {total} packages ({name}), about {max(left, 5):.0f} s left"
            spoken = now


def _megabytes(size: str) -> float:
    number, unit = size.split()
    return float(number) * {"kB": 1e-3, "MB": 1.0, "GB": 1e3}[unit]


def dealt(lock: str, hands: int = 2) -> list[list[str]]:
    """Deal the pinned packages of a lock file to several calls of pip, as cards are dealt; its options go to each."""
    lines = [line.split("#")[0].strip() for line in lock.splitlines()]
    options = [line for line in lines if line.startswith("-")]
    packages = [line for line in lines if line and not line.startswith("-")]
    return [[*options, *packages[hand::hands]] for hand in range(min(hands, len(packages)))]


def main(python: str, lock: str) -> int:
    """Install; return pip's exit code.

    pip unpacks one package after another on one core, so two calls of it share the lock. A lock names every package
    there is, so that neither needs to know the other's; a last look says whether one that another asks for is missing.
    """
    text = Path(lock).read_text(encoding="utf-8")
    total = pinned(text)
    print(f"Installing {total} packages from {lock} (about 1.5 GB on disk): one to six minutes", flush=True)
    pip = [python, "-m", "pip"]
    command = [*pip, "install", "--progress-bar", "off", "--disable-pip-version-check", "--no-compile", "--no-deps"]
    said: queue.Queue[tuple[int, str | None]] = queue.Queue()
    kept: list[list[str]] = []
    with tempfile.TemporaryDirectory() as folder:
        calls = []
        for number, hand in enumerate(dealt(text)):
            part = Path(folder) / f"part{number}.txt"
            part.write_text("\n".join(hand) + "\n", encoding="utf-8")
            kept.append([])
            calls.append(
                subprocess.Popen(
                    [*command, "-r", str(part)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
                )
            )
            threading.Thread(target=_listen, args=(number, calls[-1], said), daemon=True).start()
        for words in told(_heard(said, kept), total, calls=len(calls)):
            print(f"  {time.strftime('%H:%M:%S')}  {words}", flush=True)
        codes = [call.wait() for call in calls]
    for code, lines in zip(codes, kept, strict=True):
        if code:
            sys.stderr.write("".join(lines[-30:]))
    if any(codes):
        return max(codes)
    check = subprocess.run([*pip, "check"], stdout=subprocess.PIPE, text=True, check=False)
    sys.stderr.write(f"{lock}: {check.stdout}" * bool(check.returncode))
    return check.returncode


def _listen(number: int, call: subprocess.Popen[str], said: queue.Queue[tuple[int, str | None]]) -> None:
    assert call.stdout is not None
    for line in call.stdout:
        said.put((number, line))
    said.put((number, None))


def _heard(said: queue.Queue[tuple[int, str | None]], kept: list[list[str]]) -> Iterator[str]:
    """Yield the lines of all calls as they come, and keep each call's."""
    open_ones = len(kept)
    while open_ones:
        number, line = said.get()
        if line is None:
            open_ones -= 1
            continue
        kept[number].append(line)
        yield line


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
