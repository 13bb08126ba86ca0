"""The kill campaign: seeded kills of jobs, of Snakemake and of both, over all rules and moments, each judged alone.

Before each kill a finished run is copied and one job undone, with all that depends on it. Then the plain command runs
and is killed. Every file under a final name must equal the undisturbed run's already; the plain command again must
complete the run: all files equal, no temporary file left, everything recorded, and nothing left to do.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random

import psutil

from fault_jobs import JobFiles, jobs_of, seconds_of, undo
from fault_record import Kill, append, read
from stopwise.artifacts import tables as artifacts
from workshop import ROOT, Workshop

HOOKS = ROOT / "tests" / "helpers" / "fault_hooks"
WRITES = ("torn", "before_rename", "after_rename")
START_UP = 0.5  # seconds that a script spends on its own imports before its clock starts


def plan(seed: int, rules: Sequence[str], writes: dict[str, int], seconds: dict[str, float]) -> Iterator[Kill]:
    """Yield kills without end, each rule as often as any other; the same ones for the same seed and rules.

    The moment within a script is a share of how long it took in the reference run, which no machine repeats exactly.
    """
    if not rules:
        raise ValueError("no rule to kill: the reference run lists no jobs")
    rng, number = Random(seed), 0
    while True:
        for rule in rng.sample(list(rules), len(rules)):
            moment = rng.choice(["time", *WRITES])
            victim = rng.choice(["job", "both"] if moment == "torn" else ["job", "snakemake", "both"])
            share = rng.random()
            clock = round(0.1 + 0.8 * share * (START_UP + seconds[rule]), 2)  # the reference run may have been slower
            after = clock if moment == "time" else int(share * writes[rule])
            yield Kill(seed, number, rule, moment, after, victim)
            number += 1


class Campaign:
    """Kills one after another against copies of one undisturbed run."""

    def __init__(self, reference: Workshop, folder: Path, seed: int) -> None:
        self.reference, self.folder, self.seed = reference, folder, seed
        self.jobs = jobs_of(reference)
        self.rules = list(dict.fromkeys(job.rule for job in self.jobs))

    def kills(self) -> Iterator[Kill]:
        """Yield the planned kills of the seed."""
        last = {job.rule: job for job in self.jobs}
        seconds = {rule: seconds_of(self.reference, job) for rule, job in last.items()}
        return plan(self.seed, self.rules, {rule: len(job.outputs) for rule, job in last.items()}, seconds)

    def run(self, count: int, record: Path | None = None, patience: float = float("inf")) -> list[Kill]:
        """Kill until `count` kills of this seed were done, those in the record included; return them all.

        No kill is begun after `patience` seconds: the next call with the same record goes on.
        """
        deadline = time.monotonic() + patience
        done = [kill for kill in read(record) if kill.seed == self.seed] if record else []
        for kill in self.kills():
            if sum(known.fired for known in done) >= count or time.monotonic() > deadline:
                break
            if kill.number in {known.number for known in done}:
                continue
            self.judge(kill)
            done.append(kill)
            if record:
                append(record, kill)
            print(kill.line(), flush=True)
            assert len(done) <= 2 * count + 5, "the plans miss their moments"
        return done

    def judge(self, kill: Kill) -> None:
        """Do one kill and write into it what was wrong; the copy is kept when something was."""
        copy = self.reference.clone(self.folder / f"seed{kill.seed}-kill{kill.number}")
        victim = self.victim(kill)
        kill.undone = undo(copy, self.jobs, victim)
        began = time.monotonic()
        kill.problems = strike(copy, kill, self.reference)
        kill.killed_after, began = round(time.monotonic() - began, 1), time.monotonic()
        if kill.fired:
            kill.problems += completed(copy, self.reference)
            kill.completed_after = round(time.monotonic() - began, 1)
        if not kill.problems:
            shutil.rmtree(copy.folder)

    def victim(self, kill: Kill) -> JobFiles:
        """Return the job that is killed, of those that the rule has."""
        mine = [job for job in self.jobs if job.rule == kill.rule]
        return mine[kill.number % len(mine)]


def write_order(workshop: Workshop, kill: Kill) -> Path:
    """Write the plan that the hook reads; a file with the suffix .fired appears beside it when the kill is done."""
    order = workshop.folder / "fault.json"
    fired = order.with_suffix(".fired")
    fired.unlink(missing_ok=True)
    known = {"rule": kill.rule, "moment": kill.moment, "after": kill.after, "victim": kill.victim, "fired": str(fired)}
    order.write_text(json.dumps(known), encoding="utf-8")
    return order


def strike(workshop: Workshop, kill: Kill, reference: Workshop) -> list[str]:
    """Run the pipeline with one kill planned; return what is wrong afterwards."""
    order = write_order(workshop, kill)
    outcome = workshop.run(STOPWISE_FAULT=str(order), PYTHONPATH=str(HOOKS))
    kill.fired = order.with_suffix(".fired").exists()
    if not kill.fired:
        return [] if outcome.returncode == 0 else [f"no kill, yet the run failed:\n{outcome.text[-2000:]}"]
    problems = [] if outcome.returncode else ["killed, yet the run ended with 0"]
    if kill.victim != "job":
        unlocked = workshop.run("--unlock")
        if unlocked.returncode:
            problems.append(f"--unlock failed:\n{unlocked.text[-2000:]}")
    return problems + [f"after the kill: {line}" for line in workshop.different(reference, complete=False)]


def completed(workshop: Workshop, reference: Workshop) -> list[str]:
    """Run the plain command again; return what is not as in the undisturbed run."""
    again = workshop.run()
    problems = [] if again.returncode == 0 else [f"the plain rerun failed:\n{again.text[-3000:]}"]
    wait_for_orphans(workshop)
    problems += workshop.different(reference, complete=True)
    problems += [f"{path}: left behind" for path in workshop.temporaries()]
    if not problems:
        problems += unrecorded(workshop)
        rest = workshop.run("--dry-run")
        problems += [] if "Nothing to be done" in rest.text else [f"something is left to do:\n{rest.text[-2000:]}"]
    return problems


def unrecorded(workshop: Workshop) -> list[str]:
    """Return what the run did not record in MLflow."""
    table = workshop.results / "test" / "tracking.parquet"
    if not table.is_file():
        return ["the rerun ended with 0 and recorded nothing"]
    rows = artifacts.read_table(table, "tracking").to_pylist()
    return [f"{row['artifact']}: not recorded" for row in rows if row["status"] == "pending"]


def wait_for_orphans(workshop: Workshop, seconds: float = 60) -> None:
    """Wait for scripts that outlived the Snakemake that started them."""

    def alive() -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter(["cwd", "status"]):
            known = process.info
            if known["cwd"] == str(workshop.folder) and known["status"] != psutil.STATUS_ZOMBIE:
                found.append(process)
        return found

    deadline = time.monotonic() + seconds
    while alive() and time.monotonic() < deadline:
        time.sleep(0.2)


def asked_for(default: int = 5) -> int:
    """Return how many kills the environment asks for."""
    return int(os.environ.get("STOPWISE_FAULTS", default))
