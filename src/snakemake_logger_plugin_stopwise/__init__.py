"""Snakemake's log as a person reads it, `snakemake --logger stopwise`: a line a job, and how long the rest will take.

Everything else (errors, warnings, the table of jobs) is Snakemake's own text.
"""

from __future__ import annotations

import sys
import threading
import time
from logging import LogRecord
from pathlib import Path

from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent

from stopwise.pipeline.progress import CLOCK, Progress, earlier_times

# Snakemake's own lines that the lines here replace, or that tell a person nothing.
CHATTER = ("Select jobs to execute...", "None", "")
QUIET = 30.0  # seconds of silence after which a line says what is still running
SILENT = (LogEvent.PROGRESS, LogEvent.RESOURCES_INFO, LogEvent.JOB_STARTED)


class LogHandler(LogHandlerBase):
    """Write to the terminal: lines for jobs, Snakemake's text for the rest."""

    def __post_init__(self) -> None:
        """Start with no job known."""
        self.progress = Progress()
        self.dry = bool(getattr(self.common_settings, "dryrun", False))
        self.spoken = time.monotonic()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        """Say what is still running, whenever nothing was said for a while."""
        while True:
            time.sleep(max(1.0, self.spoken + QUIET - time.monotonic()))
            if time.monotonic() - self.spoken >= QUIET and (line := self.progress.still()):
                self._say(line)

    def emit(self, record: LogRecord) -> None:
        """Write one record."""
        event, found = getattr(record, "event", None), vars(record)  # Snakemake's fields are attributes of the record
        if event == LogEvent.JOB_INFO and not self.dry:
            self._look_back(found.get("benchmark"))
            message = (found["rule_msg"] or found["rule_name"]).strip()
            self._say(self.progress.start(found["jobid"], found["rule_name"], message))
        elif event == LogEvent.JOB_FINISHED:
            self._say(self.progress.finish(found["job_id"]))
        elif event not in SILENT:
            if event == LogEvent.RUN_INFO:
                self.progress.plan(found["stats"])
            if event == LogEvent.JOB_ERROR:
                self._say(self.progress.fail(found["jobid"]))
            text = self.format(record)
            if text not in CHATTER:
                self._write(text)

    def _look_back(self, benchmark: object) -> None:
        """Read how long jobs took earlier in the same run's folder, once."""
        parts = Path(str(benchmark or "")).parts
        if "benchmarks" in parts and not self.progress.earlier:
            self.progress.earlier = earlier_times(Path(*parts[: parts.index("benchmarks") + 1]))

    def _say(self, line: str) -> None:
        self.spoken = time.monotonic()
        self._write(f"{time.strftime(CLOCK)}  {line}")

    @staticmethod
    def _write(text: str) -> None:
        sys.stderr.write(text + "\n")
        sys.stderr.flush()

    @property
    def writes_to_stream(self) -> bool:
        """Take the place of Snakemake's own log."""
        return True

    @property
    def writes_to_file(self) -> bool:
        """Write no file: Snakemake keeps its own under .snakemake/log."""
        return False

    @property
    def has_filter(self) -> bool:
        """Let Snakemake drop what --quiet asks to drop."""
        return False

    @property
    def has_formatter(self) -> bool:
        """Let Snakemake word what is not a job."""
        return False

    @property
    def needs_rulegraph(self) -> bool:
        """Ask for no rule graph."""
        return False
