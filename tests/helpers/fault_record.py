"""The record of a kill campaign, one JSON line a kill, and the table that docs/explanation/reliability.md shows of it.

`python tests/helpers/fault_record.py docs/records/faults.jsonl` prints the table, with `--write` it renews the page.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "explanation" / "reliability.md"
BEGIN, END = "<!-- kills: written by tests/helpers/fault_record.py -->", "<!-- end of kills -->"
VICTIMS = {"job": "the job", "snakemake": "Snakemake", "both": "both"}
MOMENTS = {
    "time": "inside the script",
    "torn": "a write cut in half",
    "before_rename": "before the rename",
    "after_rename": "after the rename",
}


@dataclass
class Kill:
    """One kill: of whom, in which rule's script, at which moment; and what came of it."""

    seed: int
    number: int
    rule: str
    moment: str
    after: float
    victim: str
    fired: bool = False
    undone: int = 0
    killed_after: float = 0.0
    completed_after: float = 0.0
    problems: list[str] = field(default_factory=list)

    def line(self) -> str:
        """Say in one line what was done and what came of it."""
        when = f"{self.after:.2f} s in" if self.moment == "time" else f"{self.moment} of write {self.after}"
        verdict = f"{len(self.problems)} problems" if self.fired else "missed"
        times = f"{self.killed_after} s, completed in {self.completed_after} s, {self.undone} jobs undone"
        return f"{self.seed}/{self.number} {self.victim} in {self.rule}, {when}: {verdict} ({times})"


def read(path: Path) -> list[Kill]:
    """Return the kills of a record, none when there is no file."""
    if not path.is_file():
        return []
    return [Kill(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def append(path: Path, kill: Kill) -> None:
    """Add one kill to the record, whole: a campaign that is cut off loses no other."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(kill)) + "\n")
        file.flush()
        os.fsync(file.fileno())


def table(kills: Sequence[Kill]) -> str:
    """Return the kills that were done as a Markdown table by rule, and a line with the totals."""
    done = [kill for kill in kills if kill.fired]
    head = ["killed in", "kills", *(f"of {name}" for name in VICTIMS.values()), *MOMENTS.values(), "survived"]
    rows = []
    for rule in sorted({kill.rule for kill in done}):
        rows.append([f"`{rule}`", *counts([kill for kill in done if kill.rule == rule])])
    rows.append(["all", *counts(done)])
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in (head, ["---"] * len(head), *rows)]
    survived, missed = sum(not kill.problems for kill in done), len(kills) - len(done)
    seeds = ", ".join(map(str, sorted({kill.seed for kill in done})))
    seconds = sorted(kill.killed_after + kill.completed_after for kill in done)
    total = (
        f"{len(done)} kills done (seed {seeds}), {survived} survived; {missed} planned moments did not come. "
        f"A kill with the run that completes it took {seconds[len(seconds) // 2]:.0f} s in the median."
    )
    return "\n".join([total, "", *lines])


def counts(kills: Sequence[Kill]) -> list[int]:
    """Return the cells of one row: kills, by victim, by moment, survived."""
    return [
        len(kills),
        *(sum(kill.victim == name for kill in kills) for name in VICTIMS),
        *(sum(kill.moment == name for kill in kills) for name in MOMENTS),
        sum(not kill.problems for kill in kills),
    ]


def renewed(page: str, kills: Sequence[Kill]) -> str:
    """Return the page with the table of these kills between its two marks."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{table(kills)}\n\n{END}{after}"


def main(arguments: Sequence[str]) -> None:
    """Print the table of a record, or write it into the page."""
    kills = read(Path(arguments[0]))
    if not kills:
        raise SystemExit(f"{arguments[0]}: no kills recorded there")
    if "--write" in arguments[1:]:
        PAGE.write_text(renewed(PAGE.read_text(encoding="utf-8"), kills), encoding="utf-8")
    else:
        print(table(kills))


if __name__ == "__main__":
    main(sys.argv[1:])
