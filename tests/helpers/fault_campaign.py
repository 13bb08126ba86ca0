"""Run the kill campaign piece by piece: `tests/helpers/fault_campaign.py FOLDER RECORD --kills 40 --seconds 500`.

The undisturbed run is made in FOLDER once and found there by the next call; RECORD grows by one line a kill, and a call
goes on where the last one ended. Exit code 1 when a kill was not survived.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from fault_record import read
from faults import Campaign
from workshop import Workshop


def undisturbed(folder: Path) -> Workshop:
    """Return the finished run that all kills are compared with, made when it is not there."""
    workshop = Workshop(folder) if folder.is_dir() else Workshop.fresh(folder)
    outcome = workshop.run(timeout=1800)
    if outcome.returncode:
        raise SystemExit(f"the undisturbed run failed:\n{outcome.text[-3000:]}")
    return workshop


def main() -> int:
    """Parse the arguments and kill."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the runs go")
    parser.add_argument("record", type=Path, help="a file of JSON lines that the kills are added to")
    parser.add_argument("--kills", type=int, default=40, help="how many kills the record shall hold of this seed")
    parser.add_argument("--seed", type=int, default=0, help="which kills")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no kill after so many seconds")
    chosen = parser.parse_args()
    folder = chosen.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    campaign = Campaign(undisturbed(folder / "reference"), folder, chosen.seed)
    campaign.run(chosen.kills, chosen.record.resolve(), chosen.seconds)
    return int(any(kill.problems for kill in read(chosen.record)))


if __name__ == "__main__":
    raise SystemExit(main())
