"""Loaded by every Python process of a run under test: kills at the moment that the plan names, once.

The plan is a JSON file named by STOPWISE_FAULT: {"rule", "moment", "after", "victim", "fired"}. Moments: "time" (so
many seconds into the rule's script), and "torn", "before_rename", "after_rename" of the script's nth write ("after"
counts writes). Torn leaves half of the temporary file, as a kill in the middle of writing does. Victims: "job" (the
script), "snakemake" (the main process; the script lives on), "both" (the whole session, as when a machine goes down).
"""

import json
import os
import re
import signal
import sys
import threading

PLAN = os.environ.get("STOPWISE_FAULT", "")
SCRIPT = re.compile(r"tmp\w+\.(\w+)\.py")


def rule_of_this_process():
    """Return the name of the rule whose script this process runs, or None."""
    for word in sys.orig_argv[1:]:
        found = SCRIPT.fullmatch(os.path.basename(word))
        if found:
            return found.group(1) if found.group(1) != "figure" else figure_of(word)
    return None


def figure_of(script):
    """Return the rule of a figure, all of which share one script: Snakemake writes the job's outputs into it."""
    with open(script, "rb") as file:
        return "figure_" + re.search(rb"figures/(F\d+)\.parquet", file.read()).group(1).decode()


def claim(plan, moment):
    """Return whether this process is the one that strikes: the first of the run to ask."""
    try:
        with open(plan["fired"], "x", encoding="utf-8") as record:
            record.write(f"{plan['rule']} {moment} {plan['victim']}\n")
    except FileExistsError:
        return False
    return True


def strike(plan):
    """Kill the plan's victim, this process included for "job" and "both"."""
    # The driver starts Snakemake as the leader of a session. A warm Python's own is another: its caller's counts.
    main = int(os.environ.get("WARM_SESSION") or os.getsid(0))
    if plan["victim"] == "job":
        os.kill(os.getpid(), signal.SIGKILL)
    elif plan["victim"] == "snakemake":
        os.kill(main, signal.SIGKILL)
    else:
        os.killpg(main, signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)


def watch_clock(plan):
    """Strike so many seconds after the start."""

    def ring():
        if claim(plan, "time"):
            strike(plan)

    clock = threading.Timer(plan["after"], ring)
    clock.daemon = True
    clock.start()


def watch_writes(plan):
    """Strike at the nth rename of a temporary file: before it, after it, or with the file cut in half."""
    seen = 0
    real = {"replace": os.replace, "rename": os.rename}

    def watched(name):
        def move(source, target, **options):
            nonlocal seen
            mine = ".part" in os.path.basename(os.fspath(source))
            due = mine and seen == plan["after"] and claim(plan, plan["moment"])
            seen += mine
            if due and plan["moment"] == "torn" and os.path.isfile(source):
                os.truncate(source, os.path.getsize(source) // 2)
            if due and plan["moment"] != "after_rename":
                strike(plan)
            real[name](source, target, **options)
            if due and plan["moment"] == "after_rename":
                strike(plan)

        return move

    os.replace, os.rename = watched("replace"), watched("rename")


def arm():
    """Read the plan; when this process is its target, start the clock or watch the writes."""
    with open(PLAN, encoding="utf-8") as file:
        plan = json.load(file)
    if plan["rule"] != rule_of_this_process() or os.path.exists(plan["fired"]):
        return
    (watch_clock if plan["moment"] == "time" else watch_writes)(plan)


if PLAN:
    arm()
