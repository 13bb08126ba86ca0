"""The kill campaign plans every rule alike, resumes from its record, and the page shows what the record holds."""

from itertools import islice

import pytest

from fault_jobs import JobFiles, downstream, in_order
from fault_record import BEGIN, END, MOMENTS, PAGE, VICTIMS, Kill, append, read, renewed, table
from faults import plan

RECORD = PAGE.parents[1] / "records" / "faults.jsonl"
RULES = ["data", "gram", "finetune"]


def planned(seed, seconds=1.0):
    return plan(seed, RULES, dict.fromkeys(RULES, 3), dict.fromkeys(RULES, seconds))


def test_kills_are_spread_over_rules_moments_and_victims():
    kills = list(islice(planned(3), 120))
    assert all(sum(kill.rule == rule for kill in kills) == 40 for rule in RULES)
    assert {kill.moment for kill in kills} == set(MOMENTS)
    assert {kill.victim for kill in kills} == set(VICTIMS)
    assert {kill.after for kill in kills if kill.moment == "torn"} == {0, 1, 2}


def test_the_same_seed_plans_the_same_kills_on_a_slower_machine():
    def keys(kills):
        return [(kill.rule, kill.moment, kill.victim) for kill in islice(kills, 30)]

    fast, slow, other = keys(planned(0)), keys(planned(0, 9)), keys(planned(1))
    assert fast == slow != other


def test_no_rule_to_kill_is_an_error():
    with pytest.raises(ValueError, match="no rule to kill"):
        next(plan(0, [], {}, {}))


def test_what_depends_on_a_job_is_undone_with_it_and_nothing_else():
    jobs = [
        JobFiles("summary", ["s"], {"b2"}),
        JobFiles("b", ["b1", "b2"], {"a1"}),
        JobFiles("b", ["c1"], {"a2"}),
        JobFiles("a", ["a1"], {"rows.csv"}),
        JobFiles("a", ["a2"], {"rows.csv"}),
    ]
    ordered = in_order(jobs)
    assert [job.outputs[0] for job in ordered] == ["a1", "a2", "b1", "c1", "s"]
    assert [job.outputs[0] for job in downstream(ordered, ordered[0])] == ["a1", "b1", "s"]


def test_a_record_that_is_continued_holds_all_its_kills(tmp_path):
    path, kills = tmp_path / "kills.jsonl", list(islice(planned(0), 3))
    assert read(path) == []
    for kill in kills:
        append(path, kill)
    assert read(path) == kills


def test_the_table_counts_kills_that_were_done_and_names_what_failed():
    done = [Kill(0, 0, "gram", "torn", 0, "job", True), Kill(0, 1, "gram", "time", 1.0, "both", True, problems=["no"])]
    text = table([*done, Kill(0, 2, "data", "time", 9.0, "job")])
    assert text.startswith("2 kills done (seed 0), 1 survived; 1 planned moments did not come.")
    assert "| `gram` | 2 | 1 | 0 | 1 | 1 | 1 | 0 | 0 | 1 |" in text
    assert "`data`" not in text
    assert renewed(f"a {BEGIN} old {END} z", done).startswith(f"a {BEGIN}\n\n2 kills")


def test_the_page_shows_the_recorded_campaign():
    kills, page = read(RECORD), PAGE.read_text(encoding="utf-8")
    assert sum(kill.fired for kill in kills) >= 40
    assert not [kill.line() for kill in kills if kill.problems]
    assert renewed(page, kills) == page, (
        "python tests/helpers/fault_record.py docs/records/faults.jsonl --write renews it"
    )
