"""What each source saw of a session, beside what all of them give: no false alarm on any captured run, and every loss told."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from spendmeter import ingest
from spendmeter.cli import main
from spendmeter.errors import LedgerError
from spendmeter.ledger import Batch, Ledger, now_ms
from spendmeter.ledger.retention import retain
from spendmeter.ledger.sources import COMPLETE, LESS, UNSEEN, UNTOLD, Compared, Session, View, compare, of_session
from spendmeter.parsers import names
from spendmeter.projections import source_tables
from spendmeter.projections.source_texts import cli_as_dict, percent, session_as_dict, words
from spendmeter.reconcile.book import Book
from spendmeter.reconcile.seen import Seen
from spendmeter.records import NAMELESS, NOTHING, Call, Moment, Observation, Part, Usage, total
from tests.runs import FILES_TELL_LESS, STDOUT_TELLS_LESS, Chain, all_chains, chains, observe
from tests.test_otlp_in_rule import exported

CHAINS = [c for cli in names() for c in chains(cli) if c.files()]


def is_exported(chain: Chain) -> bool:
    """Whether its telemetry can be made up here: one session, with enough calls to lose one."""
    calls = {(o.session, o.call_id) for o in observe(chain.files()) if isinstance(o, Call)}
    return chain.cli != "opencode" and "resume" not in chain.name and len(calls) >= 4 and len({s for s, _ in calls}) == 1


EXPORTED = [c for c in CHAINS if is_exported(c)]


def named(name: str) -> Chain:
    return next(c for c in CHAINS if c.name == name)


def taken(ledger: Ledger, paths: Iterable[Path]) -> None:
    ingest.ingest_paths(ledger, [str(p) for p in paths])


def sessions(ledger: Ledger) -> list[Session]:
    """All sessions with usage, however large their gaps."""
    found = compare(ledger, None, names())
    with ledger.read() as conn:
        every = conn.exec_driver_sql("select session from sessions").scalars().all()
    out = [one for name in every for one in of_session(ledger, name, names())]
    assert sum(of.sessions for of in found.clis) <= len(out)
    return [one for one in out if one.total.tokens]


# -- captured runs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chain", CHAINS, ids=[c.name for c in CHAINS])
def test_what_sources_saw_of_a_captured_run(chain: Chain, both: Ledger) -> None:
    """Files saw all of it but the router and a compaction; what was printed saw all but where a CLI is known to print less."""
    taken(both, [*chain.stdouts(), *chain.files()])
    for one in sessions(both):
        files, printed = one.views["file"], one.views["stdout"]
        assert one.views["otlp"].verdict == UNSEEN
        known = chain.name in FILES_TELL_LESS or chain.name == "claude/kill-sigterm-stream-json"  # a call cut short is printed alone
        known |= chain.name == "claude/resume-6-after-compact"
        assert files.verdict == COMPLETE or known, (one.session, words(files))
        assert printed.verdict in (COMPLETE, UNSEEN) or _prints_less(chain), (one.session, words(printed))
        assert all(view.share is None or view.share <= 1 for view in one.views.values())


def _prints_less(chain: Chain) -> bool:
    if chain.name == "qwen/agents-5-after":  # its streams print no reasoning
        return True
    return bool(re.search(STDOUT_TELLS_LESS.get(chain.cli, "$^"), chain.name.partition("/")[2]))


@pytest.mark.parametrize("chain", EXPORTED, ids=[c.name for c in EXPORTED])
def test_telemetry_without_every_fourth_call_saw_less(chain: Chain, both: Ledger) -> None:
    """By just the tokens of the calls that are missing; files saw what they saw before."""
    files, book = observe(chain.files()), Book()
    book.add_all(files)
    told = {o.call_id: o for o in files if isinstance(o, Call)}
    (facts,) = (facts for facts in book.sessions.values() if facts.calls)
    calls = [replace(told[c.call_id], usage=c.usage, session=facts.session) for c in facts.calls.values()]
    kept = [exported(o) for i, o in enumerate(calls) if i % 4 != 3]
    both.commit(Batch([*files, *kept], settled=True))
    (one,) = sessions(both)
    assert one.views["otlp"].seen is not None
    assert (one.views["otlp"].seen.calls, one.views["otlp"].seen.usage.tokens) == (len(kept), total(o.usage for o in kept).tokens)
    assert one.views["otlp"].verdict == LESS
    assert set(one.views["otlp"].missing) >= {"tokens_in", "tokens_out"}
    assert one.views["otlp"].gap == one.total.tokens - total(o.usage for o in kept).tokens
    assert one.views["file"].verdict == COMPLETE


def test_half_of_the_exports_say_so_in_words(both: Ledger) -> None:
    """The share, the fields and what telemetry never tells."""
    _telemetry(both, keep=lambda i: i % 4 != 3)
    (one,) = of_session(both, "s", ["claude"])
    view = one.views["otlp"]
    assert words(view) == "saw less: 25% of tokens_in, cache_read, tokens_out missing; cannot tell reasoning"
    assert (view.share, view.seen) == (0.75, Seen(3, Usage(300, 3000, None, None, 30, None, None, 3_000)))
    assert words(one.views["file"]) == "complete; cannot tell cost"
    assert words(one.views["stdout"]) == "not seen"


def _telemetry(ledger: Ledger, keep: object = None, session: str = "s", at_ms: int = 1000) -> None:
    """Four calls in a transcript, those that *keep* takes exported."""
    used = Usage(100, 1000, None, None, 10, 1)
    rows: list[Observation] = [Moment("claude", session, "own", at_ms)]
    for i in range(4):
        call = Call("claude", f"r:{session}{i}", session, used, "m", "m", at_ms + i)
        rows.append(call)
        if callable(keep) and keep(i):
            rows.append(replace(call, view="otlp", asked=None, usage=used._replace(reasoning=None, cost_nusd=1000)))
    ledger.commit(Batch(rows, settled=True))


def test_metrics_are_compared_by_what_they_add_up_to(both: Ledger) -> None:
    """Both lifetimes of cache writes are one sum there; two kinds of points are never added."""
    used = Usage(100, 0, 30, 70, 10)
    told = [Call("claude", f"r:{i}", "s", used, "m", "m", 1000 + i) for i in range(4)]
    points = Usage(300, 0, 300, None, 30)
    parts = [Part("claude", "s", kind, "p", "m", points) for kind in ("otlp.delta", "otlp.cumulative")]
    both.commit(Batch([*told, *parts], settled=True))
    (one,) = of_session(both, "s", ["claude"])
    assert one.views["otlp"].missing == dict.fromkeys(("tokens_in", "cache_write", "tokens_out"), 0.25)
    assert one.views["otlp"].seen == Seen(None, points)


# -- the summary and the order -----------------------------------------------------------------------------------------


def test_a_summary_tells_sessions_that_were_missed_from_calls_that_were(both: Ledger) -> None:
    """Telemetry of two sessions of four, in one of them three calls of four: 44% of all, 88% where it saw any."""
    for i in range(4):
        _telemetry(both, (None, None, lambda _: True, lambda i: i < 3)[i], f"s{i}")
    found = compare(both, None, ["claude"])
    (of,) = found.clis
    otlp = of.sums["otlp"]
    assert (of.sessions, otlp.sessions, otlp.complete, otlp.calls, of.sums["file"].calls) == (4, 2, 1, 7, 16)
    told = cli_as_dict(of, (10, 3))
    assert told["files"] == {"read": 10, "gone": 3}
    assert (told["sources"]["otlp"]["share"], told["sources"]["otlp"]["share_where_seen"]) == (0.4375, 0.875)
    assert told["sources"]["otlp"]["words"] == "saw less: 12% of tokens_in, cache_read, tokens_out missing; cannot tell reasoning"
    assert [one.session for one in found.sessions] == ["s3", "s1", "s0"]  # seen in part, then not at all, the latest first


def test_sessions_are_no_more_than_asked_for_and_worst_first(both: Ledger) -> None:
    """However many there are; a source that is not in use is no gap."""
    for i in range(12):
        _telemetry(both, lambda k, i=i: k >= i % 4, f"s{i:02}", 120_000)
    found = compare(both, None, ["claude"], top=4)
    assert [one.views["otlp"].share for one in found.sessions] == [0.25, 0.25, 0.25, 0.5]
    assert [one.session for one in compare(both, None, ["claude"], top=2).sessions] == ["s11", "s07"]  # the latest of equals
    assert compare(both, None, ["codex"]) == Compared((), ())
    assert compare(both, now_ms(), ["claude"]) == Compared((), ())
    assert compare(both, 120_000, ["claude"]).clis[0].sessions == 12


def test_many_sessions_are_read_some_at_a_time(both: Ledger) -> None:
    """More than one statement takes."""
    rows = [Call("codex", f"c{i}", f"s{i}", Usage(1, 0, 0, 0, 1), "m", "m", 1000) for i in range(1100)]
    both.commit(Batch([*rows, *(replace(o, view="otlp", call_id=NAMELESS + o.call_id, role="any") for o in rows[::2])], settled=True))
    (of,) = compare(both, None, ["codex"]).clis
    assert (of.sessions, of.sums["file"].complete, of.sums["otlp"].complete) == (1100, 1100, 550)


def test_closed_sessions_are_not_called_missing(both: Ledger) -> None:
    """Their facts are gone; they are counted apart and no source is said to have missed them."""
    _telemetry(both, lambda _: True, "old", 1000)
    _telemetry(both, lambda _: True, "new", now_ms())
    assert retain(both, 86_400_000).sessions == 1
    found = compare(both, None, ["claude"])
    (of,) = found.clis
    assert (of.sessions, of.closed, of.sums["file"].sessions, of.total.tokens_in) == (2, 1, 1, 400)
    (old,) = of_session(both, "old", ["claude"])
    assert (old.closed, old.views, old.total.tokens_in) == (True, {}, 400)
    assert session_as_dict(old)["sources"] is None
    assert "closed (retention)" in source_tables.session_text(old)
    assert any("1 sessions are closed" in line for line in source_tables.notes(found, {}))


def test_a_session_is_found_by_its_alias_too(both: Ledger) -> None:
    """And one that is not there is an error that says where to look."""
    chain = named("copilot/json-tool-anthropic")
    taken(both, [*chain.stdouts(), *chain.files()])
    with both.read() as conn:
        (alias,) = conn.exec_driver_sql("select alias from aliases").scalars()
    (one,) = of_session(both, alias, ["copilot"])
    assert one.session != alias
    with pytest.raises(LedgerError, match='session "nope" is not in the ledger; spendmeter report --by session'):
        of_session(both, "nope", names())


# -- words -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("view", "verdict", "said"),
    [
        (View(NOTHING, None), UNSEEN, "not seen"),
        (View(Usage(10, tokens_out=1), Seen(None, NOTHING)), UNTOLD, "cannot tell tokens"),
        (View(NOTHING, Seen(0, NOTHING)), COMPLETE, "complete"),
        (View(Usage(10, cost_nusd=10**9), Seen(1, Usage(10, cost_nusd=10**9 - 10))), COMPLETE, "complete"),
        (View(Usage(10, cost_nusd=10**9), Seen(1, Usage(10))), COMPLETE, "complete; cannot tell cost"),
        (View(Usage(1000), Seen(1, Usage(999))), LESS, "saw less: 0.1% of tokens_in missing"),
        (View(Usage(10, 10), Seen(1, Usage(0, 5))), LESS, "saw less: 100% of tokens_in; 50% of cache_read missing"),
    ],
)
def test_a_verdict_in_words(view: View, verdict: str, said: str) -> None:
    """What is missing is told by field; what cannot be told is no loss, and a rounded cost is none either."""
    assert (view.verdict, words(view)) == (verdict, said)


def test_shares_are_never_rounded_to_all_or_nothing() -> None:
    """100% and 0% say just that."""
    shown = [percent(x) for x in (0, 1e-6, 0.0099, 0.25, 0.9901, 0.999, 0.999999, 1)]
    assert shown == ["0%", "<0.1%", "1%", "25%", "99%", "99.9%", ">99.9%", "100%"]


# -- the command -------------------------------------------------------------------------------------------------------


def call(ledger: Ledger, *args: str) -> Result:
    return CliRunner().invoke(main, ["--ledger", ledger.settings.ledger, "doctor", "--sources", *args])


def test_one_json_document(ledger: Ledger) -> None:
    """A summary by CLI, then sessions; every amount that is not known is null."""
    taken(ledger, (p for c in all_chains() if "otel" not in c.name for p in [*c.stdouts(), *c.files()]))
    told = json.loads(call(ledger, "--json", "--since", "2026-01-01").stdout)
    assert set(told) == {"since", "clis", "sessions"}
    assert [of["cli"] for of in told["clis"]] == sorted(names())
    for of in (*told["clis"], *told["sessions"]):
        assert set(of["sources"]) == {"stdout", "file", "otlp"}
        for view in of["sources"].values():
            assert {"verdict", "words", "missing", "cannot_tell", "share", "calls", "tokens_in", "cost_usd"} <= set(view)
            assert view["verdict"] in (COMPLETE, LESS, UNTOLD, UNSEEN)
            assert view["verdict"] != UNSEEN or (view["share"], view["calls"], view["tokens_in"], view["cost_usd"]) == (None,) * 4
    worst = told["sessions"][0]
    (one,) = json.loads(call(ledger, "--json", "--session", worst["session"]).stdout)["sessions"]
    assert one == worst
    (only,) = json.loads(call(ledger, "--json", "--since", "2026-01-01", "--cli", "codex").stdout)["clis"]
    assert (only["cli"], only["total"]["cost_usd"], only["sources"]["stdout"]["cost_usd"]) == ("codex", None, None)


def test_tables_fit_their_terminal_and_say_why(ledger: Ledger) -> None:
    """Narrow ones do without some columns; each shortfall that is known from the CLI comes with its reason."""
    taken(ledger, (p for name in ("opencode/json-subagent", "claude/json-single") for p in _sources(name)))
    found = compare(ledger, None, names())
    for width in (80, 140):
        out = StringIO()
        terminal = Console(file=out, width=width)
        for part in source_tables.tables(found, {"opencode": (4, 3)}, terminal):
            terminal.print(part)
        lines = out.getvalue().splitlines()
        assert max(map(len, lines)) <= width
        assert ("Calls" in lines[0]) == (width == 140)
        assert any("50%" in line for line in lines)
        assert " opencode, printed: subagents are not printed" in lines
        assert "opencode: 3 of 4 session files that were read here are gone" in out.getvalue()
    plain = call(ledger, "--since", "2026-01-01").stdout
    assert "opencode         1  printed          1         0" in plain
    (worst,) = found.sessions
    shown = call(ledger, "--session", worst.session).stdout
    assert "printed: saw less: 50% of tokens_in, cache_read, cache_write, tokens_out, cost missing (subagents are not printed)" in shown
    out = StringIO()
    for part in source_tables.session_table(worst):
        Console(file=out, width=100).print(part)
    assert [line.split()[0] for line in out.getvalue().splitlines()[3:8]] == [
        "calls",
        "tokens_in",
        "cache_read",
        "cache_write",
        "tokens_out",
    ]


def _sources(name: str) -> list[Path]:
    chain = next(c for c in all_chains() if name in c.name)
    return [*chain.stdouts(), *chain.files()]


def test_files_that_are_gone_are_counted(ledger: Ledger, tmp_path: Path) -> None:
    """Of the user's own session files: somebody who wonders whether transcripts are deleted sees how many."""
    folder = tmp_path / "home" / ".claude" / "projects" / "p"
    folder.mkdir(parents=True)
    for i in range(3):
        (folder / f"{i}.jsonl").write_text('{"type":"x"}\n')
    ingest.sync(ledger)
    _telemetry(ledger, session="s", at_ms=now_ms())
    (folder / "1.jsonl").unlink()
    (of,) = json.loads(call(ledger, "--json").stdout)["clis"]
    assert of["files"] == {"read": 3, "gone": 1}


def test_wrong_use_is_told(ledger: Ledger) -> None:
    """Flags that go with --sources do not stand alone; an empty ledger is no failure."""
    assert CliRunner().invoke(main, ["doctor", "--cli", "codex"]).exit_code == 2
    assert call(ledger, "--session", "x", "--since", "7d").exit_code == 2
    assert call(ledger, "--since", "whenever").exit_code == 2
    gone = call(ledger, "--session", "x")
    assert (gone.exit_code, gone.stderr.count("\n")) == (1, 1)
    empty = call(ledger)
    assert empty.exit_code == 0
    assert empty.stdout.startswith("No session since ")
