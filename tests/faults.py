"""The kill campaign: seeded kills of jobs, of Snakemake and of both, over all rules and moments, one after another.

Kills come in chains: a run from nothing is killed, run again with the plain command, killed again further on, and so on
until it is complete. After every kill each file under a final name must equal the undisturbed run's; at the end all of
them, with no temporary file left and nothing left to do.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random

import psutil

from stopwise import artifacts
from workshop import ROOT, Outcome, Workshop

HOOKS = ROOT / "tests" / "fault_hooks"
WRITES = ("torn", "before_rename", "after_rename")
START_UP = 2.0  # seconds that a script spends on imports before its own clock starts


@dataclass
class Kill:
    """One kill: of whom, in which rule's script, at which moment."""

    rule: str
    moment: str
    after: float
    victim: str
    fired: bool = False
    unlocked: bool = False
    seconds: float = 0.0

    def __str__(self) -> str:
        when = f"{self.after:.2f} s in" if self.moment == "time" else f"{self.moment} of write {self.after}"
        return f"{self.victim} in {self.rule}, {when}"


@dataclass
class Chain:
    """The kills of one run from nothing, and what went wrong."""

    kills: list[Kill]
    problems: list[str] = field(default_factory=list)


def rules_in_order(dry_run: Outcome) -> list[str]:
    """Return the rules with a script in the order of the pipeline, which is that of a dry run's table."""
    return [rule for rule in dry_run.jobs() if (ROOT / "workflow" / "scripts" / f"{rule}.py").is_file()]


def durations(reference: Workshop) -> dict[str, float]:
    """Return how long each rule's script took in the reference run, from its artifacts."""
    longest: dict[str, float] = {}
    for path in reference.results.rglob("*.parquet"):
        record = artifacts.read_provenance(path)
        longest[record["rule"]] = max(longest.get(record["rule"], 0.0), record["volatile"]["seconds"])
    return longest


def outputs_by_rule(reference: Workshop) -> dict[str, list[Path]]:
    """Return, relative to the results folder, what a run misses so much that it runs each rule again."""
    found = {
        # Snakemake asks for a file between two rules only when something downstream is missing too.
        "prepare_model": [Path("assets/models/pico-llama.json"), Path("test/data/colours/seed0.parquet")],
        "mlflow_database": [Path("mlflow/database.json"), Path("test/tracking.parquet")],
    }
    for path in (reference.results / "test").rglob("*.parquet"):
        wanted = path.with_suffix(".svg") if path.parent.name == "figures" else path
        found.setdefault(artifacts.read_provenance(path)["rule"], []).append(wanted.relative_to(reference.results))
    return found


def writes_by_rule(reference: Workshop) -> dict[str, int]:
    """Return how many files a job of each rule writes, two at most (a figure writes its table, then its pictures)."""
    jobs: Counter[tuple[str, str]] = Counter()
    for path in (reference.results / "test").rglob("*.parquet"):
        record = artifacts.read_provenance(path)
        jobs[record["rule"], str(record["wildcards"])] += 1 + (path.parent.name == "figures")
    return {rule: min(2, count) for (rule, _), count in jobs.items()}


def plan(
    rng: Random, count: int, rules: Sequence[str], seconds: dict[str, float], writes: dict[str, int]
) -> list[Kill]:
    """Return `count` kills, each rule as often as any other, in the order of the pipeline."""
    if not rules:
        raise ValueError("no rule to kill: the dry run lists no jobs")
    turns: list[str] = []
    while len(turns) < count:
        turns += rng.sample(list(rules), len(rules))
    kills = []
    for rule in sorted(turns[:count], key=list(rules).index):
        moment = rng.choice(["time", *WRITES])
        victim = rng.choice(["job", "both"] if moment == "torn" else ["job", "snakemake", "both"])
        after = (
            rng.uniform(0.1, START_UP + seconds.get(rule, 1.0))
            if moment == "time"
            else rng.randrange(writes.get(rule, 1))
        )
        kills.append(Kill(rule, moment, round(after, 2), victim))
    return kills


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
    fired = order.with_suffix(".fired")
    targets = [workshop.results / path for path in outputs_by_rule(reference)[kill.rule]]
    if all(path.exists() for path in targets):  # a run that another kill ended was past this rule: there it is again
        for path in targets:
            path.unlink()
    began = time.monotonic()
    outcome = workshop.run(STOPWISE_FAULT=str(order), PYTHONPATH=str(HOOKS))
    kill.seconds, kill.fired = round(time.monotonic() - began, 1), fired.exists()
    if not kill.fired:
        return [] if outcome.returncode == 0 else [f"no kill, yet the run failed:\n{outcome.text[-2000:]}"]
    problems = [] if outcome.returncode else [f"killed {kill}, yet the run ended with 0"]
    if kill.victim != "job":
        unlocked = workshop.run("--unlock")
        kill.unlocked = True
        if unlocked.returncode:
            problems.append(f"--unlock failed:\n{unlocked.text[-2000:]}")
    return problems + [f"after the kill of {kill}: {line}" for line in workshop.different(reference, complete=False)]


def wait_for_orphans(workshop: Workshop, seconds: float = 60) -> None:
    """Wait for scripts that outlived the Snakemake that started them."""

    def alive() -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter(["cwd", "cmdline", "status"]):
            known = process.info
            if known["cwd"] == str(workshop.folder) and known["status"] != psutil.STATUS_ZOMBIE:
                found.append(process)
        return found

    deadline = time.monotonic() + seconds
    while alive() and time.monotonic() < deadline:
        time.sleep(0.2)


def run_chain(workshop: Workshop, reference: Workshop, kills: list[Kill]) -> Chain:
    """Kill one run from nothing again and again, let it finish, and compare it with the reference."""
    chain = Chain(kills)
    for kill in kills:
        found = strike(workshop, kill, reference)
        chain.problems += found
        print(f"{'killed' if kill.fired else 'missed'}: {kill} ({kill.seconds} s, {len(found)} problems)", flush=True)
    last = workshop.run()
    if last.returncode:
        chain.problems.append(f"the last plain run failed:\n{last.text[-3000:]}")
    wait_for_orphans(workshop)
    chain.problems += workshop.different(reference, complete=True)
    chain.problems += [f"{path}: left behind" for path in workshop.temporaries()]
    again = workshop.run("--dry-run")
    if "Nothing to be done" not in again.text:
        chain.problems.append(f"something is left to do:\n{again.text[-2000:]}")
    return chain


def write_record(path: Path, chains: Sequence[Chain]) -> None:
    """Write what was done as JSON lines, one kill a line."""
    with path.open("w", encoding="utf-8") as file:
        for number, chain in enumerate(chains):
            for kill in chain.kills:
                file.write(json.dumps({"chain": number, **asdict(kill)}) + "\n")


def asked_for(default: int = 5) -> int:
    """Return how many kills the environment asks for."""
    return int(os.environ.get("STOPWISE_FAULTS", default))
