"""What a running pipeline tells a person: one line when a job starts or ends, and how long the rest will take."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

CLOCK = "%H:%M:%S"


def duration(seconds: float) -> str:
    """Return a time as a person says it: 8 s, 12 min, 3 h 20 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def earlier_times(folder: Path) -> dict[str, float]:
    """Return the mean seconds of each rule in the benchmark files of a run's folder, by rule.

    The files of a rule lie in a folder of its name (or are ``rule.tsv``): tables with a column ``s``. A file that
    cannot be read is left out: an estimate must not stop a run.
    """
    found: dict[str, list[float]] = {}
    for path in sorted(folder.rglob("*.tsv")):
        try:
            header, row = (line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()[:2])
            seconds = float(row[header.index("s")])
        except (OSError, ValueError, IndexError):
            continue
        name = path.parent.name if path.parent != folder else path.stem
        found.setdefault(f"figure_{path.stem}" if name == "figures" else name, []).append(seconds)
    return {rule: sum(values) / len(values) for rule, values in found.items()}


class Progress:
    """The jobs of one run: which wait, run and are done, and how long each rule takes.

    Times are seconds of ``clock``. Rules without a time of their own (this run's, else an earlier one's) are left out
    of the estimate, which then says "at least".
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.waiting: dict[str, int] = {}
        self.running: dict[int, tuple[str, str, float]] = {}  # job id -> rule, message, start
        self.times: dict[str, list[float]] = {}
        self.earlier: dict[str, float] = {}
        self.total = self.done = 0
        self.began = clock()

    def plan(self, jobs: Mapping[str, int]) -> None:
        """Take the number of jobs by rule."""
        self.waiting = {rule: count for rule, count in jobs.items() if rule != "total"}
        self.total = sum(self.waiting.values())

    def start(self, job: int, rule: str, message: str) -> str:
        """Note that a job starts; return the line that says so."""
        self.running[job] = (rule, message, self.clock())
        self.waiting[rule] = max(0, self.waiting.get(rule, 1) - 1)
        return f"start  {message}"

    def finish(self, job: int) -> str:
        """Note that a job is done; return the line that says so, with its time and what is left."""
        rule, message, started = self.running.pop(job, ("", f"job {job}", self.clock()))
        seconds = self.clock() - started
        self.times.setdefault(rule, []).append(seconds)
        self.done += 1
        return f"done   {message} ({duration(seconds)}); {self.summary()}"

    def fail(self, job: int) -> str:
        """Note that a job failed; return the line that says so."""
        _, message, started = self.running.pop(job, ("", f"job {job}", self.clock()))
        return f"FAILED {message} ({duration(self.clock() - started)})"

    def still(self) -> str:
        """Return what runs, and for how long, for a time in which nothing starts or ends; empty when nothing runs."""
        now = self.clock()
        jobs = [f"{message} ({duration(now - started)})" for _, message, started in list(self.running.values())]
        return f"still   {', '.join(jobs)}; {self.summary()}" if jobs else ""

    def _time(self, rule: str) -> float | None:
        own = self.times.get(rule)
        return sum(own) / len(own) if own else self.earlier.get(rule)

    def left(self) -> tuple[float, bool]:
        """Return the seconds that are left, at the concurrency seen so far, and whether every rule's time is known."""
        now, work, known = self.clock(), 0.0, True
        for rule, count in self.waiting.items():
            one = self._time(rule)
            known = known and (one is not None or count == 0)
            work += count * (one or 0.0)
        for rule, _, started in self.running.values():
            one = self._time(rule)
            known = known and one is not None
            work += max(0.0, (one or 0.0) - (now - started))
        spent = sum(map(sum, self.times.values())) + sum(now - started for _, _, started in self.running.values())
        return work / max(1.0, spent / max(now - self.began, 1e-9)), known

    def summary(self) -> str:
        """Return how many jobs are done, how many run, and how long the rest will take."""
        text = f"{self.done} of {self.total} jobs"
        if self.done >= self.total:
            return f"{text}, all in {duration(self.clock() - self.began)}"
        seconds, known = self.left()
        running = f", {len(self.running)} running" if self.running else ""
        if seconds < 0.5:
            return f"{text}{running}"
        return f"{text}{running}, {'about' if known else 'at least'} {duration(seconds)} left"
