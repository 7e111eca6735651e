"""Attribution in the ledger: whose usage it becomes, and that nothing else changes; re-attribution leaves counters' past alone."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import select, update

from spendmeter import api, ingest
from spendmeter.budgets import Budget, Period
from spendmeter.config import Settings
from spendmeter.ledger import Batch, Ledger, Process, attributing, now_ms, query, rollup, spend
from spendmeter.ledger import schema as t
from spendmeter.ledger.attributing import attribute
from spendmeter.ledger.copying import copy
from spendmeter.ledger.retention import retain
from spendmeter.ledger.shifts import _group, _left, applied
from spendmeter.ledger.verify import verify
from spendmeter.records import Alias, Call, Claim, Context, Finish, Level, Moment, Observation, Tags, Usage
from tests.made import NOON, Made, empty
from tests.replay import clone
from tests.runs import ROOT, Chain, all_chains
from tests.test_ledger import counters, dump

Raw = list[dict[str, Any]]
Host = Callable[[Raw | None], Ledger]
DAY_MS = 86_400_000
SUBAGENTS = [c for c in all_chains() if "subagent" in c.name]
SINGLE = ROOT / "claude" / "json-single"
BY_BRANCH: Raw = [
    {"match": {"cwd": "/home/dev/*", "branch": "feat/(?P<key>[A-Z]+-[0-9]+).*"}, "set": {"agent": "developer", "task": "{key}"}}
]
HELPER: Raw = [{"match": {"subagent": "*"}, "set": {"agent": "helper"}}, {"match": {"cwd": "*"}, "set": {"agent": "developer"}}]


@pytest.fixture
def host(both: Ledger) -> Iterator[Host]:
    """Opens the ledger as a host whose settings have these rules."""
    made: list[Ledger] = []

    def open_(rules: Raw | None) -> Ledger:
        made.append(Ledger(replace(both.settings, attribution=rules)))
        return made[-1]

    yield open_
    for ledger in made:
        ledger.close()


def take(ledger: Ledger, chain: Chain, tags: Tags | None = None) -> None:
    ingest.ingest_paths(ledger, [str(p) for p in [*chain.stdouts(), *chain.files()]], tags=tags)


def whose(ledger: Ledger) -> dict[tuple[str | None, ...], int]:
    """Tokens by agent and task."""
    return {r.keys: r.amounts.tokens for r in query.report(ledger, ["agent", "task"]).rows}


def by_agent(ledger: Ledger, family: str = "spendmeter.tokens_in") -> dict[str, int]:
    """What a counter shows, by its first label."""
    out: dict[str, int] = {}
    for (name, labels), value in counters(ledger).items():
        if name == family:
            agent = labels.split('"')[1]
            out[agent] = out.get(agent, 0) + value
    return {agent: n for agent, n in out.items() if n}


def call(session: str, n: int, tokens: int, *, subagent: str | None = None, model: str = "m", at_ms: int = NOON) -> Call:
    return Call("claude", f"r:{session}{n}", session, Usage(tokens_in=tokens), model, model, at_ms + n, subagent=subagent)


def put(ledger: Ledger, *facts: Observation, claims: list[Claim] | None = None, settled: bool = True) -> None:
    """Commits facts and, where they are settled, has them counted."""
    ledger.commit(Batch(facts, claims or [], settled=settled))


def at(session: str, cwd: str = "/home/dev/shop", branch: str | None = "feat/ABC-1") -> Context:
    return Context("claude", session, cwd, branch)


# -- whose it becomes --------------------------------------------------------------------------------------------------


def test_a_branch_gives_a_captured_session_its_task(host: Host, tmp_path: Path) -> None:
    """A transcript that nobody wrapped, on branch feat/ABC-123-x: its task is ABC-123, in reports and in the counters."""
    ledger = host(BY_BRANCH)
    case = clone(SINGLE, tmp_path / "case", "x", {'"gitBranch":"HEAD"': '"gitBranch":"feat/ABC-123-x"'})
    ingest.sync(ledger, home=case / "home", clis=["claude"])
    plain = host(None)
    assert whose(plain) == {("developer", "ABC-123"): query.report(plain, []).total.tokens}
    assert by_agent(plain) == {"developer": query.report(plain, []).total.tokens_in}
    assert verify(plain) == []


@pytest.mark.parametrize("chain", SUBAGENTS, ids=[c.name for c in SUBAGENTS])
def test_what_a_subagent_used_goes_to_another_agent(host: Host, chain: Chain) -> None:
    """Of a captured run the calls of the subagent are the helper's, the rest stays the run's; sums and runs are as without rules."""
    plain = Ledger(replace(host(None).settings, ledger="sqlite://"))
    ledger = host(HELPER)
    for one in (plain, ledger):
        take(one, chain)
    with ledger.read() as conn:
        calls = conn.execute(select(t.calls).where(t.calls.c.subagent.is_not(None), t.calls.c.views != "stdout")).all()
    told = {r.keys[0]: r.amounts for r in query.report(ledger, ["agent"]).rows}
    assert told["helper"].tokens_in == sum(c.tokens_in or 0 for c in calls) > 0
    assert told["helper"].calls == len(calls)
    for by in (["model"], ["day", "model"], ["cli", "outcome"], ["session"], []):
        assert query.report(ledger, by).as_dict() == query.report(plain, by).as_dict()
    assert [r.amounts.runs for r in query.report(ledger, ["agent"]).rows] == [
        1 if r.keys[0] != "helper" else 0 for r in query.report(ledger, ["agent"]).rows
    ]
    assert sum(by_agent(ledger, "spendmeter.runs").values()) == 1
    assert by_agent(ledger)["helper"] == told["helper"].tokens_in
    assert verify(ledger) == []
    plain.close()


def test_types_of_subagents_are_told_where_a_file_tells_them(host: Host) -> None:
    """Claude, Qwen and opencode name the role, not only an id."""
    ledger = host([{"match": {"subagent": "general|general-purpose"}, "set": {"agent": "{subagent}"}}])
    for chain in SUBAGENTS:
        take(ledger, chain)
    found = {(r.keys[0], r.keys[1]) for r in query.report(ledger, ["cli", "agent"]).rows if r.keys[1] != "unknown"}
    assert found == {("claude", "general-purpose"), ("qwen", "general-purpose"), ("opencode", "general")}


def test_a_run_goes_as_a_whole_where_all_it_used_goes_one_way(host: Host) -> None:
    """A rule on the model alone gives the run with it; where two models go two ways the run stays whose it was."""
    ledger = host([{"match": {"model": "big"}, "set": {"agent": "thinker"}}, {"match": {"model": "small"}, "set": {"agent": "quick"}}])
    put(ledger, call("one", 1, 10, model="big"), call("two", 1, 20, model="big"), call("two", 2, 5, model="small"))
    assert whose(ledger) == {("thinker", "unknown"): 30, ("quick", "unknown"): 5, ("unknown", "unknown"): 0}
    runs = {r.session: r.agent for r in query.runs(ledger)}
    assert runs == {"one": "thinker", "two": "unknown"}
    assert by_agent(ledger, "spendmeter.runs") == {"thinker": 1, "unknown": 1}
    assert verify(ledger) == []


def test_usage_in_no_call_stays_with_the_run(host: Host) -> None:
    """What a reading tells beyond the calls has no subagent; a rule on the model still holds for it."""
    level = Level("claude", "s", "m", Usage(tokens_in=100), "e", "r", NOON - 1000, NOON - 1000, NOON + 10)
    ledger = host(HELPER)
    put(ledger, at("s"), level, call("s", 1, 30, subagent="a1"), call("s", 2, 20))
    assert whose(ledger) == {("developer", "unknown"): 70, ("helper", "unknown"): 30}
    assert verify(ledger) == []


def test_the_users_word_wins(host: Host) -> None:
    """Rules fill what he left open, agent and task each for itself, and attributes that he did not set."""
    rules: Raw = [{"match": {"cwd": "*"}, "set": {"agent": "ruled", "task": "T-rule", "team": "x", "stage": "y"}}]
    ledger = host([*HELPER[:1], *rules])
    said = {"a": Tags("said"), "b": Tags(task="T-said"), "c": Tags("said", "T-said", {"team": "mine"}), "d": Tags()}
    for session, tags in said.items():
        claim = Claim("claude", session, "run:r", tags, "r")
        finish = Finish("claude", session, "r", "r", "ok", ended_ms=NOON + 5)
        put(ledger, at(session), call(session, 1, 10), call(session, 2, 5, subagent="sub"), finish, claims=[claim])
    runs = {r.session: (r.agent, r.task, dict(r.attrs)) for r in query.runs(ledger)}
    assert runs == {
        "a": ("said", "T-rule", {"team": "x", "stage": "y"}),
        "b": ("ruled", "T-said", {"team": "x", "stage": "y"}),
        "c": ("said", "T-said", {"team": "mine", "stage": "y"}),
        "d": ("ruled", "T-rule", {"team": "x", "stage": "y"}),
    }
    assert whose(ledger) == {
        ("said", "T-rule"): 15, ("said", "T-said"): 15, ("ruled", "T-said"): 10, ("helper", "T-said"): 5,
        ("ruled", "T-rule"): 10, ("helper", "T-rule"): 5,
    }  # fmt: skip
    assert verify(ledger) == []


def test_a_repository_goes_by_what_the_wrapper_saw_else_by_the_folder(host: Host) -> None:
    """Its URL, its short name, and without a wrapper the last part of the working folder."""
    ledger = host([{"match": {"repo": "shop"}, "set": {"task": "{repo}"}}, {"match": {"repo": "https://*"}, "set": {"agent": "remote"}}])
    for session, process in (("a", Process("claude", "a", "r", "id", repo="https://example.org/acme/shop.git")), ("b", None)):
        facts = [at(session), call(session, 1, 10), Finish("claude", session, "r", "r", "ok", ended_ms=NOON + 5)]
        ledger.commit(Batch(facts, processes=[process] if process else [], settled=True))
    assert {r.session: (r.agent, r.task) for r in query.runs(ledger)} == {"a": ("remote", "shop"), "b": ("unknown", "shop")}


def test_tags_of_a_run_give_its_agent(host: Host) -> None:
    """attr.KEY matches what the user told by --attr, or a resource attribute."""
    ledger = host([{"match": {"attr.team": "sea*", "session": "s"}, "set": {"agent": "{attr.team}-dev"}}])
    claim = Claim("claude", "s", "w", Tags(attrs={"team": "search"}))
    put(ledger, call("s", 1, 10), claims=[claim])
    assert whose(ledger) == {("search-dev", "unknown"): 10}


def test_the_record_of_a_call_from_python_is_found_under_rules(host: Host) -> None:
    """``record`` with an agent alone: the rules say the task, and the record does."""
    ledger = host([{"match": {"cli": "claude"}, "set": {"task": "T-rule"}}])
    made = api.record(SINGLE / "stdout", agent="dev", ledger=ledger)  # type: ignore[arg-type]
    assert (made.agent, made.task, made.outcome, made.unknown) == ("dev", "T-rule", "ok", ())
    assert made.tokens_in


# -- facts -------------------------------------------------------------------------------------------------------------


def test_a_host_without_rules_undoes_nothing(host: Host) -> None:
    """What a session goes by is in the ledger: another host that derives it anew, or verifies it, comes to the same."""
    put(host(BY_BRANCH), at("s"), call("s", 1, 10))
    other = host(None)
    put(other, call("s", 2, 5))
    assert whose(other) == {("developer", "ABC-1"): 15}
    put(host([{"match": {"cwd": "*"}, "set": {"agent": "someone else"}}]), call("s", 3, 1))
    assert whose(other) == {("developer", "ABC-1"): 16}
    assert verify(other) == []


def test_context_that_comes_late_still_leads_to_the_task(host: Host) -> None:
    """Calls first, the folder afterwards, even from a host without rules."""
    put(host(BY_BRANCH), call("s", 1, 10))
    other = host(None)
    assert whose(other) == {("unknown", "unknown"): 10}
    put(other, at("s"))
    assert whose(other) == {("developer", "ABC-1"): 10}
    assert verify(other) == []


def test_a_session_that_was_known_by_another_name_keeps_its_rules(host: Host) -> None:
    """What was filed under an alias brings along what it went by, also where a host without rules learns of the alias."""
    put(host(BY_BRANCH), Level("claude", "also", "m", Usage(tokens_in=10), reading="r"))
    other = host(None)
    put(other, Alias("claude", "also", "s"), at("s"))
    assert whose(other) == {("developer", "ABC-1"): 10}
    assert verify(other) == []


RULES = st.lists(
    st.fixed_dictionaries({
        "match": st.dictionaries(
            st.sampled_from(["cwd", "branch", "cli", "model", "subagent", "session", "repo", "attr.team"]),
            st.sampled_from(["*", "claude*", "/home/*", "HEAD", "a.*", "[a-m]*"]), min_size=1, max_size=2,
        ),
        "set": st.dictionaries(st.sampled_from(["agent", "task"]), st.sampled_from(["x", "y", "unknown", "z"]), min_size=1),
    }),
    max_size=4,
)  # fmt: skip
WORDS = st.sampled_from([None, Tags("said"), Tags(task="T-said", attrs={"team": "a"}), Tags("said", "T-said")])
PICKED = [c for c in all_chains() if "subagent" in c.name or c.name in ("claude/resume-5-fork", "claude/json-opus", "codex/resume-4-fork")]
FIXED = hypothesis_settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
BYS = ([], ["model"], ["day"], ["cli", "outcome"], ["session", "model"])


@FIXED
@given(chain=st.sampled_from(PICKED), rules=RULES, tags=WORDS, seed=st.integers(0, 99))
def test_rules_change_no_sum_in_any_order(chain: Chain, rules: Raw, tags: Tags | None, seed: int) -> None:
    """Tokens, cost and runs are as without rules; any order of the sources gives the same owners; he who said something keeps it."""
    paths = [str(p) for p in [*chain.stdouts(), *chain.files()]]
    plain, first, second = (Ledger(Settings("sqlite://", settle_s=3600, attribution=x)) for x in (None, rules, rules))
    ingest.ingest_paths(plain, paths, tags=tags)
    ingest.ingest_paths(first, paths, tags=tags)
    random.Random(seed).shuffle(paths)
    for path in paths:
        ingest.ingest_paths(second, [path], tags=tags)
    for by in BYS:
        assert query.report(first, by).as_dict() == query.report(plain, by).as_dict()
    assert sum(r.amounts.runs for r in query.report(first, ["agent", "task"]).rows) == query.report(plain, []).total.runs
    assert dump(second) == dump(first)
    for key in ("agent", "task"):
        if tags and getattr(tags, key) != "unknown":
            assert [r.keys for r in query.report(first, [key]).rows] == [(getattr(tags, key),)]
    for ledger in (first, second):
        assert verify(ledger) == []
    for ledger in (plain, first, second):
        ledger.close()


SHARE = st.sampled_from([("", ""), ("x", ""), ("", "y"), ("x", "y")])
SHARED = st.lists(
    st.tuples(st.integers(0, 90), st.sampled_from(["m", "n"]), SHARE, st.none() | st.integers(0, 50)),
    max_size=5, unique_by=lambda e: e[:3],
)  # fmt: skip


@FIXED
@given(
    runs=st.lists(st.tuples(SHARED, st.sampled_from(["x", "z"])), max_size=4),
    folded=st.integers(0, 3),
    since=st.none() | st.integers(-10, 120),
    until=st.none() | st.integers(-10, 120),
)
def test_hours_budgets_and_filters_go_by_whose_each_part_is(
    made: Made, runs: list[Any], folded: int, since: int | None, until: int | None
) -> None:
    """By each dimension, of each agent and each task: folded hours, entries and budgets tell the same sums and runs."""
    empty(made.ledger)
    with made.ledger.write() as conn:
        conn.execute(t.rulesets.insert().values(id="r", body="[]", splits=True))
    for entries, agent in runs:
        rows = [
            {"minute_ms": NOON + n * 60_000, "model": m, "agent": a if a != agent else "", "task": k, "tokens_in": used}
            for n, m, (a, k), used in entries
        ]
        made.run(*{(r["minute_ms"], r["model"], r["agent"], r["task"]): r for r in rows}.values(), agent=agent, ended_ms=NOON)
    made.ledger.fold(NOON + folded * 3_600_000)
    edges = [None if x is None else NOON + x * 60_000 for x in (since, until)]
    where = query.Where(*edges)
    with made.ledger.read() as conn:
        assert rollup.differences(conn) == []
        for dim in rollup.DIMS:
            plain = {r.keys[0] if dim else "": r.amounts for r in query._rows(conn, (dim,) if dim else (), where, "UTC")}
            assert rollup.sums(conn, dim, where) == plain
            for key, amounts in plain.items():
                if dim and key is not None:
                    assert rollup.sums(conn, dim, where, key) == {key: amounts}
                    named = query._rows(conn, (), replace(where, **{dim: key}), "UTC")
                    assert [r.amounts for r in named] == [amounts]
            if dim in ("agent", "task"):
                want = {k: a.tokens for k, a in plain.items() if a.tokens}
                budget = Budget("b", Period("total"), "tokens", 1, {}, dim)
                assert {k: s.amount for k, s in spend.spent(conn, budget, *edges).items() if s.amount} == want
                for key, amount in want.items():
                    one = replace(budget, per=None, match={dim: (key,)})
                    assert spend.spent_one(conn, one, *edges, None).amount == amount == spend.spent_one(conn, budget, *edges, key).amount


# -- re-attribution ----------------------------------------------------------------------------------------------------


def test_re_attribution_moves_rows_and_not_the_counters_past(host: Host) -> None:
    """Reports move at once; the old series stands, the new one begins with what is used from now on; verify is clean throughout."""
    old, new = host(None), host(BY_BRANCH)
    for session in ("a", "b"):
        put(old, at(session), call(session, 1, 100))
    before = counters(old)
    done = attribute(new)
    assert (done.sessions, done.looked) == (2, 2)
    assert whose(old) == {("developer", "ABC-1"): 200}
    assert counters(old) == before
    assert verify(old) == []
    put(old, call("a", 2, 7))
    assert by_agent(old) == {"unknown": 200, "developer": 7}
    assert by_agent(old, "spendmeter.task.tokens_in") == {"unknown": 200, "developer": 7}
    assert all(counters(old)[key] >= value for key, value in before.items())
    assert verify(old) == []
    assert attribute(new).looked == 0


def test_usage_that_was_not_counted_goes_under_the_new_labels_at_once(host: Host) -> None:
    """Of a session that waits to be settled, only what was posted before stays under the old ones."""
    old, new = host(None), host(BY_BRANCH)
    put(old, call("s", 1, 100), at("s"))
    slow = Ledger(replace(old.settings, settle_s=3600))
    put(slow, call("s", 2, 11), settled=False)
    put(slow, call("t", 1, 5), at("t"), settled=False)
    attribute(new)
    assert by_agent(old) == {"unknown": 100}
    new.settle(now_ms() + 3_700_000)
    assert by_agent(old) == {"unknown": 100, "developer": 16}
    assert verify(old) == []
    slow.close()


def test_a_session_that_grows_takes_the_rules_and_leaves_its_counters_alone(host: Host) -> None:
    """Rules that come later hold for a session from its next usage on, without a word of anybody."""
    put(host(None), at("s"), call("s", 1, 100))
    new = host(BY_BRANCH)
    put(new, call("s", 2, 9))
    assert whose(new) == {("developer", "ABC-1"): 109}
    assert by_agent(new) == {"unknown": 100, "developer": 9}
    put(new, call("s", 2, 9))
    assert verify(new) == []


def test_rules_change_back_and_forth(host: Host) -> None:
    """Each change leaves what was counted meanwhile where it is; back at the first rules everything is as it began, and goes on there."""
    put(host(None), at("s"), call("s", 1, 100))
    attribute(one := host(BY_BRANCH))
    put(one, call("s", 2, 10))
    attribute(two := host([{"match": {"cwd": "*"}, "set": {"agent": "other"}}]))
    put(two, call("s", 3, 1))
    assert by_agent(two) == {"unknown": 100, "developer": 10, "other": 1}
    attribute(none := host([]))
    assert whose(none) == {("unknown", "unknown"): 111}
    assert by_agent(none) == {"unknown": 100, "developer": 10, "other": 1}
    put(none, call("s", 4, 2))
    assert by_agent(none) == {"unknown": 102, "developer": 10, "other": 1}
    assert verify(none) == []


def test_usage_that_turns_out_to_be_another_sessions_is_a_debit_of_the_old_series(host: Host) -> None:
    """After re-attribution a session falls: no series falls, none is below nothing, the totals are right."""
    ledger = host(BY_BRANCH)
    put(host(None), at("s"), Moment("claude", "s", "own", 2000), call("s", 1, 100), call("s", 2, 50))
    attribute(ledger)
    before = counters(ledger)
    put(ledger, Moment("claude", "p", "own", 1000), replace(call("s", 1, 100), session="p"))
    assert whose(ledger) == {("developer", "ABC-1"): 50, ("unknown", "unknown"): 100}
    after = counters(ledger)
    assert all(after[key] >= value for key, value in before.items())
    with ledger.read() as conn:
        assert {r.labels: r.target for r in conn.execute(select(t.series).where(t.series.c.family == "spendmeter.tokens_in"))} == {
            '["unknown","claude","m"]': 150
        }
    assert verify(ledger) == []


def test_a_split_that_comes_later_moves_no_counter(host: Host) -> None:
    """A rule on subagents for what was counted already: rows are parted, the counter is not, and goes on in two series."""
    ledger = host(HELPER)
    put(host(None), at("s"), call("s", 1, 60), call("s", 2, 40, subagent="x"))
    before = counters(ledger)
    done = attribute(ledger)
    assert [(m.rules, m.before, m.after, m.sessions, m.amounts.runs, m.amounts.tokens) for m in done.moves] == [
        ((1,), ("unknown", "unknown"), ("helper", "unknown"), 1, 1, 40),
        ((2,), ("unknown", "unknown"), ("developer", "unknown"), 1, 1, 60),
    ]
    assert counters(ledger) == before
    put(ledger, call("s", 3, 3, subagent="x"), call("s", 4, 4))
    assert by_agent(ledger) == {"unknown": 100, "helper": 3, "developer": 4}
    assert verify(ledger) == []


def test_tasks_beyond_the_greatest_number_keep_their_past(both: Ledger) -> None:
    """Re-attributed to a task that later finds no series of its own: the old series stands, the overflow has the new usage alone."""
    few = Ledger(replace(both.settings, max_tasks=1, attribution=BY_BRANCH))
    plain = Ledger(replace(both.settings, max_tasks=1))
    put(plain, at("s"), call("s", 1, 100))
    attribute(few)
    put(plain, call("s", 2, 7))
    shown = {k[1]: n for k, n in counters(few).items() if k[0] == "spendmeter.task.tokens_in"}
    assert shown == {'["unknown","unknown"]': 100, '["developer","__overflow__"]': 7}
    assert verify(few) == []
    few.close()
    plain.close()


def test_closed_sessions_stay_and_a_copy_keeps_what_was_left(host: Host, new_url: Callable[[], str]) -> None:
    """Re-attribution passes over what retention has closed; its shifts stay with it, and ``ledger copy`` takes them along."""
    put(host(None), at("s"), call("s", 1, 100))
    attribute(one := host(BY_BRANCH))
    put(one, call("s", 2, 5))
    retain(one, DAY_MS, at_ms=now_ms() + 400 * DAY_MS)
    done = attribute(two := host([{"match": {"cwd": "*"}, "set": {"agent": "other"}}]))
    assert (done.looked, done.closed, whose(two)) == (0, 1, {("developer", "ABC-1"): 105})
    assert verify(two) == []
    copy(two, url := new_url())
    moved = Ledger(replace(two.settings, ledger=url))
    assert (counters(moved), whose(moved), verify(moved)) == (counters(two), whose(two), [])
    moved.close()


def test_only_what_was_active_lately_is_looked_at(host: Host) -> None:
    """``since`` leaves older sessions as they are; a dry run leaves all."""
    put(host(None), at("old"), call("old", 1, 1, at_ms=NOON - 9 * DAY_MS), at("new"), call("new", 1, 2))
    ledger = host(BY_BRANCH)
    assert attribute(ledger, dry_run=True).sessions == 2
    assert whose(ledger) == {("unknown", "unknown"): 3}
    assert attribute(ledger, since_ms=NOON - DAY_MS).sessions == 1
    assert whose(ledger) == {("unknown", "unknown"): 1, ("developer", "ABC-1"): 2}


def test_attributes_and_runs_without_usage_move_too(host: Host) -> None:
    """A run that used nothing has an agent; attributes alone are a move from someone to himself."""
    put(host(None), at("s"), Finish("claude", "s", "r", "r", "error", ended_ms=NOON))
    done = attribute(one := host(BY_BRANCH))
    assert [(m.after, m.amounts.runs, m.amounts.tokens) for m in done.moves] == [(("developer", "ABC-1"), 1, 0)]
    done = attribute(host([*BY_BRANCH, {"match": {"cwd": "*"}, "set": {"team": "x", "plan": "book"}}]))
    assert [(m.rules, m.before, m.after, m.attrs) for m in done.moves] == [
        ((2,), ("developer", "ABC-1"), ("developer", "ABC-1"), ("plan", "team"))
    ]
    with one.read() as conn:
        assert conn.execute(select(t.runs.c.plan)).scalar_one() == "book"
    assert verify(one) == []


LABELS = st.sampled_from(['["a","c","m"]', '["b","c","m"]', '["d","c","m"]', '["a","c","n"]'])
PART = st.dictionaries(st.tuples(st.just("spendmeter.tokens_in"), LABELS), st.integers(1, 1000))


@given(held=PART, wanted=PART, later=PART)
def test_shifts_keep_every_sum(held: dict[Any, int], wanted: dict[Any, int], later: dict[Any, int]) -> None:
    """By all labels but agent and task, shares add up to the rows, whatever those become; none is negative; equal sums stay put."""

    def by_group(amounts: dict[Any, int]) -> dict[Any, int]:
        out: dict[Any, int] = {}
        for key, n in amounts.items():
            out[_group(key)] = out.get(_group(key), 0) + n
        return {k: n for k, n in out.items() if n}

    shifts = _left(held, wanted)
    assert by_group(shifts) == {}
    for now in (wanted, later):
        shares = applied(now, shifts)
        assert by_group(shares) == by_group(now)
        assert all(n > 0 for n in shares.values())
    if by_group(held) == by_group(wanted):
        assert applied(wanted, shifts) == held


MANY = 200
VICTIM = """
import sys
from spendmeter.config import Settings
from spendmeter.ledger import Ledger
from spendmeter.ledger.attributing import attribute
ledger = Ledger(Settings(sys.argv[1], settle_s=0, attribution=[{"match": {"cwd": "*"}, "set": {"agent": "developer"}}]))
attribute(ledger, progress=lambda done, all_: print(done, flush=True))
"""


def fill(ledger: Ledger, number: int) -> None:
    """Sessions of three calls, one of them a subagent's."""
    facts: list[Observation] = []
    for i in range(number):
        facts += [at(f"s{i}"), *[call(f"s{i}", n, 10 * n, subagent="x" if n == 2 else None) for n in (1, 2, 3)]]
    put(ledger, *facts)


@pytest.mark.parametrize("delay_ms", [0, 30, 80, 150])
def test_kill_9_in_the_middle_of_re_attribution_leaves_whole_sessions(host: Host, delay_ms: int) -> None:
    """What was done stays, the rest is done the next time; the counters never move."""
    ledger = host([{"match": {"cwd": "*"}, "set": {"agent": "developer"}}])
    fill(host(None), MANY)
    before = counters(ledger)
    args = [sys.executable, "-c", VICTIM, ledger.settings.ledger]
    victim = subprocess.Popen(args, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(Path.cwd())})
    assert victim.stdout is not None
    victim.stdout.readline()
    time.sleep(delay_ms / 1000)
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    assert (verify(ledger), counters(ledger)) == ([], before)
    rest = attribute(ledger).looked
    assert rest <= MANY - attributing.AT_ONCE
    assert whose(ledger) == {("developer", "unknown"): 60 * MANY}
    assert (verify(ledger), counters(ledger)) == ([], before)


def test_a_thousand_sessions_are_quick(host: Host) -> None:
    """Re-attribution of 1,000 sessions takes seconds, and again no time at all."""
    fill(host(None), 1000)
    begun = time.monotonic()
    assert attribute(ledger := host(HELPER)).sessions == 1000
    took = time.monotonic() - begun
    assert took < 30, took
    begun = time.monotonic()
    assert attribute(ledger).looked == 0
    assert time.monotonic() - begun < 1


def test_verify_notices_a_shift_that_was_tampered_with(host: Host) -> None:
    """A shift is held to what the counters stand at."""
    put(host(None), at("s"), call("s", 1, 100))
    attribute(ledger := host(BY_BRANCH))
    with ledger.write() as conn:
        conn.execute(update(t.shifts).where(t.shifts.c.amount > 0).values(amount=t.shifts.c.amount + 1))
    assert {d.what for d in verify(ledger)} == {"series"}
