"""Removal of what a killed job left behind: half-written files beside its outputs, under their temporary names.

A job that is killed while it writes leaves the temporary file, never a half-written output. The next run of the same
job starts by removing the temporary files of its own outputs, and of nothing else.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable
from pathlib import Path

from stopwise.artifacts.tables import TEMPORARY_PREFIX

RANDOM_PART = "?" * 8  # what tempfile puts between prefix and suffix


def leftovers(outputs: Iterable[str | os.PathLike]) -> list[Path]:
    """Return the temporary files of interrupted writes of these outputs, sorted: ``.part-*-NAME`` and ``NAME.part``."""
    found: set[Path] = set()
    for output in map(Path, outputs):
        name = glob.escape(output.name)
        for pattern in (f"{TEMPORARY_PREFIX}{RANDOM_PART}-{name}", f"{name}.part"):
            found.update(output.parent.glob(pattern))
    return sorted(found)


def remove_leftovers(outputs: Iterable[str | os.PathLike]) -> list[Path]:
    """Remove and return the temporary files of interrupted writes of these outputs."""
    removed = leftovers(outputs)
    for path in removed:
        path.unlink(missing_ok=True)
    return removed
