"""Attribution in the ledger: whose usage it becomes, and that nothing else changes."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import select

from spendmeter import api, ingest
from spendmeter.budgets import Budget, Period
from spendmeter.config import Settings
from spendmeter.ledger import Batch, Ledger, Process, query, rollup, spend
from spendmeter.ledger import schema as t
from spendmeter.ledger.verify import verify
from spendmeter.records import Alias, Claim, Finish, Level, Tags, Usage
from tests.attributed import BY_BRANCH, HELPER, Host, Raw, at, by_agent, call, put, whose
from tests.made import NOON, Made, empty
from tests.replay import clone
from tests.runs import ROOT, Chain, all_chains
from tests.test_ledger import dump

SUBAGENTS = [c for c in all_chains() if "subagent" in c.name]
SINGLE = ROOT / "claude" / "json-single"


def take(ledger: Ledger, chain: Chain, tags: Tags | None = None) -> None:
    ingest.ingest_paths(ledger, [str(p) for p in [*chain.stdouts(), *chain.files()]], tags=tags)


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
    assert told["helper"].runs == 0
    whole = query.report(plain, []).total.runs
    assert sum(amounts.runs for amounts in told.values()) == whole == sum(by_agent(ledger, "spendmeter.runs").values()) > 0
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
