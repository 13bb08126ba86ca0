"""Progress: every job has a line when it starts and ends, and the time left follows from what is known."""

import logging
import threading
import time

import pytest
from snakemake_interface_logger_plugins.common import LogEvent

from snakemake_logger_plugin_stopwise import LogHandler
from stopwise.pipeline.progress import Progress, duration, earlier_times


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.mark.parametrize(("seconds", "said"), [(8.4, "8 s"), (89, "89 s"), (300, "5 min"), (12_000, "3 h 20 min")])
def test_a_time_is_said_as_a_person_says_it(seconds, said):
    assert duration(seconds) == said


def test_the_time_left_follows_from_the_rules_own_times_and_the_jobs_side_by_side():
    clock = Clock()
    progress = Progress(clock)
    progress.plan({"train": 4, "draw": 1, "total": 5})
    assert progress.summary() == "0 of 5 jobs"
    for job in (1, 2):
        assert progress.start(job, "train", f"Training {job}") == f"start  Training {job}"
    clock.now = 100.0
    assert progress.finish(1).startswith("done   Training 1 (2 min); 1 of 5 jobs, 1 running, at least")
    progress.finish(2)
    # two jobs ran side by side: two more take another 100 s; the rule draw has no time yet
    assert progress.left() == (pytest.approx(100.0), False)
    progress.earlier = {"draw": 10.0}
    assert progress.left() == (pytest.approx(105.0), True)
    assert progress.summary() == "2 of 5 jobs, about 2 min left"
    for job, rule in ((3, "train"), (4, "train"), (5, "draw")):
        progress.start(job, rule, rule)
    clock.now = 150.0
    assert progress.fail(3) == "FAILED train (50 s)"
    progress.finish(4)
    assert progress.finish(5).endswith("4 of 5 jobs")


def test_what_still_runs_is_said_with_its_time_and_nothing_when_nothing_runs():
    clock = Clock()
    progress = Progress(clock)
    progress.plan({"train": 2, "total": 2})
    assert progress.still() == ""
    progress.start(1, "train", "Training 1")
    clock.now = 40.0
    assert progress.still() == "still   Training 1 (40 s); 0 of 2 jobs, 1 running"
    progress.finish(1)
    assert progress.still() == ""


def test_a_silent_run_says_what_still_runs(capsys, monkeypatch):
    monkeypatch.setattr("snakemake_logger_plugin_stopwise.QUIET", 0.05)
    handler = LogHandler.__new__(LogHandler)
    handler.progress, handler.spoken = Progress(), time.monotonic()
    handler.progress.plan({"train": 1, "total": 1})
    handler.progress.start(1, "train", "Training 1")
    threading.Thread(target=handler._watch, daemon=True).start()
    for _ in range(50):
        if "still   Training 1" in capsys.readouterr().err:
            break
        time.sleep(0.1)
    else:
        raise AssertionError("nothing was said")
    handler.progress.finish(1)


def test_earlier_times_come_from_the_benchmarks_of_the_run(tmp_path):
    files = {"finetune/a.tsv": 10, "finetune/b.tsv": 30, "summary.tsv": 2, "figures/F1.tsv": 3, "figures/F2.tsv": 5}
    for name, seconds in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"s\th:m:s\n{seconds}.0\t0:00:00\n", encoding="utf-8")
    (tmp_path / "gram").mkdir()
    (tmp_path / "gram" / "cut.tsv").write_text("s", encoding="utf-8")
    assert earlier_times(tmp_path) == {"finetune": 20.0, "summary": 2.0, "figure_F1": 3.0, "figure_F2": 5.0}
    assert earlier_times(tmp_path / "nowhere") == {}


class Settings:
    dryrun = False


def emit(handler, event, **fields):
    record = logging.LogRecord("snakemake", logging.INFO, __file__, 1, fields.pop("text", "text"), None, None)
    vars(record).update(fields, event=event)
    handler.emit(record)


def test_the_log_has_one_line_for_a_start_and_one_for_an_end(capsys):
    handler = LogHandler(Settings(), None)
    emit(handler, LogEvent.RUN_INFO, stats={"finetune": 2, "total": 2}, text="Job stats: ...")
    job = {"jobid": 7, "rule_name": "finetune", "benchmark": None}
    emit(handler, LogEvent.JOB_STARTED, jobs=[7])
    emit(handler, LogEvent.JOB_INFO, rule_msg="Fine-tuning: movie, seed 0", **job)
    emit(handler, LogEvent.JOB_FINISHED, job_id=7)
    emit(handler, LogEvent.PROGRESS, done=1, total=2)
    emit(handler, None, text="a warning of Snakemake's own")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Job stats: ..."
    assert lines[1].endswith("  start  Fine-tuning: movie, seed 0")
    assert lines[2].endswith("  done   Fine-tuning: movie, seed 0 (0 s); 1 of 2 jobs")
    assert lines[3:] == ["a warning of Snakemake's own"]


def test_errors_are_said_in_full(capsys):
    handler = LogHandler(Settings(), None)
    emit(handler, LogEvent.JOB_INFO, rule_msg=None, jobid=1, rule_name="gram", benchmark=None)
    emit(handler, LogEvent.JOB_ERROR, jobid=1, text="Error in rule gram: everything that Snakemake knows")
    text = capsys.readouterr().err
    assert "FAILED gram" in text
    assert "everything that Snakemake knows" in text


def test_a_dry_run_starts_nothing(capsys):
    settings = Settings()
    settings.dryrun = True
    handler = LogHandler(settings, None)
    emit(handler, LogEvent.JOB_INFO, rule_msg="x", jobid=1, rule_name="gram", benchmark=None, text="what would run")
    assert capsys.readouterr().err == "what would run\n"
    assert not handler.progress.running
