"""The daemon's door for runs of other hosts: who is let in, what is set aside and for how long, when a run must end."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update
from starlette.testclient import TestClient

from spendmeter.budgets import Subject
from spendmeter.config import Settings
from spendmeter.ledger import Batch, Ledger, Process, liveness, now_ms, reservations
from spendmeter.ledger import schema as t
from spendmeter.records import Claim, Tags
from spendmeter.runner import spool, wire
from spendmeter.runner.admission import PATH
from spendmeter.server import app
from spendmeter.server.book import Book
from spendmeter.server.workers import Workers
from tests.made import Made

A, B, C = "a" * 32, "b" * 32, "c" * 32
CENT = 10_000_000
DEV = Subject("dev", "T-1", "claude")
ROOM = "budgets: [{name: all, period: total, limit_usd: 1, action: ACTION}]"
Doors = tuple[TestClient, Ledger, Callable[[str], None]]


@pytest.fixture
def doors(tmp_path: Path, new_url: Callable[[], str]) -> Iterator[Doors]:
    """A daemon's application on each database, its ledger in which a run of dev cost 0.25, and what writes its budgets."""
    file = tmp_path / "budgets.yaml"
    file.write_text("budgets: []")
    book = Book(Settings(new_url(), zero_first_s=0, settle_s=0, budgets_file=file))
    with closing(book), TestClient(app.create_app(book, Workers(book)), base_url="http://127.0.0.1:9464") as client:
        Made(book.ledger()).run({"reported_nusd": 25 * CENT, "tokens_in": 100}, agent="dev")
        yield client, book.ledger(), lambda text: (file.write_text(text), os.utime(file, (1, len(text))), None)[-1]


def ask(client: TestClient, run: str = A, **more: Any) -> dict[str, Any]:
    answer = client.post(PATH, json={"run_id": run, "agent": "dev", "cli": "claude"} | more)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def tell(client: TestClient, run: str = A, **more: Any) -> dict[str, Any]:
    answer = client.put(f"{PATH}/{run}", json={"agent": "dev", "cli": "claude", "expected_usd": "0.250000"} | more)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def held(ledger: Ledger, after_ms: int = 0) -> list[str]:
    """Run ids of what is set aside, so long from now."""
    with ledger.read() as conn:
        return [r.run_id for r in reservations.held(conn, now_ms() + after_ms)]


@pytest.mark.parametrize("action", ["block", "kill"])
def test_runs_of_other_hosts_are_let_in_as_long_as_there_is_room(doors: Doors, action: str) -> None:
    """What the agent's last run cost is set aside for each; the fourth hears why not. What was set aside goes with the observations."""
    client, ledger, budgets = doors
    budgets(ROOM.replace("ACTION", action))
    got = [ask(client, run) for run in (A, B, C)]
    assert [(g["allowed"], g["held"], g["kills"], g["expected_usd"], g["lines"]) for g in got] == [
        (True, True, action == "kill", "0.250000", [])
    ] * 3
    said = "budget all has no room: $0.25 of $1.00 spent, $0.75 reserved by 3 runs, a run of dev takes about $0.25"
    refused = ask(client, "d" * 32)
    assert (refused["allowed"], refused["lines"], refused["held"]) == (False, [said], False)
    process = Process("claude", "s", "r", B, 0, None, 1, 2, B, B[:16])
    body = wire.unzipped(wire.pack(Batch([], [], [process], settled=True)))
    assert client.post(wire.PATH, content=body, headers={"content-type": "application/json"}).status_code == 200
    assert held(ledger) == [A, C]
    assert ask(client, "d" * 32)["allowed"]


def test_a_word_that_its_own_run_has_overtaken_sets_nothing_aside(doors: Doors) -> None:
    """The renewal that was on its way while the run was recorded does not hold the run's share for another minute."""
    client, ledger, budgets = doors
    budgets(ROOM.replace("ACTION", "kill"))
    ask(client)
    at = now_ms()
    process = Process("claude", "s", "r", A, 0, None, at - 5000, at - 1000, A, A[:16])
    body = wire.unzipped(wire.pack(Batch([], [Claim("claude", "s", "r", Tags("dev"), "r")], [process], settled=True)))
    assert client.post(wire.PATH, content=body, headers={"content-type": "application/json"}).status_code == 200
    assert tell(client, used_usd="0.3")["exceeded"] is None
    assert held(ledger) == []
    tell(client, B)
    assert held(ledger) == [B]


def test_a_run_over_a_budget_that_warns_is_let_in_with_a_line(doors: Doors) -> None:
    """Nothing is set aside for it; of a budget that alerts it hears nothing."""
    client, ledger, budgets = doors
    for action, lines in (("warn", ["over budget all: $0.25 of $0.10 spent in all"]), ("alert", [])):
        budgets(ROOM.replace("ACTION", action).replace("1,", "0.1,"))
        told = ask(client)
        assert (told["allowed"], told["lines"], told["held"], held(ledger)) == (True, lines, False, [])


def test_what_is_set_aside_lasts_a_minute_after_the_last_word(doors: Doors) -> None:
    """Not by the life of any process here: a host that is silent holds nothing, one that is heard again holds what it had."""
    client, ledger, budgets = doors
    budgets(ROOM.replace("ACTION", "block"))
    ask(client)
    ask(client, B)
    with ledger.write() as conn:
        conn.execute(update(t.reservations).values(beat_ms=t.reservations.c.beat_ms - 50_000, started_ms=5))
    tell(client, B, used_usd="0.3", used_tokens=7)
    assert (held(ledger, 9_000), held(ledger, 11_000), held(ledger, 59_000), held(ledger, 61_000)) == ([A, B], [B], [B], [])
    with ledger.read() as conn:
        found = reservations.find(conn, B)
    assert found is not None
    assert (found[0].started_ms, found[0].expected_nusd, found[0].used_nusd, found[0].used_tokens) == (5, 25 * CENT, 30 * CENT, 7)
    with ledger.write() as conn:
        reservations.drop(conn, B)
    tell(client, B)
    assert held(ledger) == [A, B]


def test_who_only_looks_writes_nothing(doors: Doors) -> None:
    """Unless the last renewal is 15 s old: a daemon that is asked often has its ledger free for others."""
    client, ledger, budgets = doors
    budgets(ROOM.replace("ACTION", "kill"))
    ask(client)
    tell(client, used_usd="0.1", models=["m"])
    for ago_ms, writes in ((10_000, False), (15_000, True)):
        with ledger.write() as conn:
            conn.execute(update(t.reservations).values(beat_ms=(before := now_ms() - ago_ms)))
        tell(client, used_usd="0.1", models=["m"])
        with ledger.read() as conn:
            found = reservations.find(conn, A)
        assert found is not None
        assert (found[1] > before) is writes


def test_a_run_that_did_not_come_about_gives_back_what_it_had(doors: Doors) -> None:
    """Once more changes nothing."""
    client, ledger, budgets = doors
    budgets(ROOM.replace("ACTION", "block"))
    ask(client)
    assert [client.delete(f"{PATH}/{A}").status_code for _ in range(2)] == [204, 204]
    assert held(ledger) == []


def test_a_run_learns_what_it_may_use_and_when_that_is_gone(doors: Doors) -> None:
    """What is left is the limit less what is spent and less what others have used; the line is as a ledger of its own would say it."""
    client, _, budgets = doors
    budgets("budgets: [{name: all, period: total, limit_usd: 1, action: kill}, {name: t, period: total, limit_tokens: 1000, action: kill},"
            "{name: r, period: total, limit_runs: 9, action: kill}]")  # fmt: skip
    ask(client)
    both = [{"budget": "all", "left_usd": "0.750000", "left_tokens": None}, {"budget": "t", "left_usd": None, "left_tokens": 900}]
    assert ask(client, B)["left"] == both
    assert tell(client, used_usd="0.45") == {"exceeded": None, "line": None, "left": both}
    ended = tell(client, B, used_usd="0.3", used_tokens=10)
    assert ended["left"] == [both[0] | {"left_usd": "0.300000"}, both[1]]
    said = "over budget all: $1.00 of $1.00 spent in all, $0.75 of it by runs under way"
    assert (ended["exceeded"], ended["line"]) == ("all", said)


def test_a_budget_on_models_counts_once_one_is_called(doors: Doors) -> None:
    """It watches the run from its start, with nothing to say."""
    client, _, budgets = doors
    budgets(ROOM.replace("ACTION", "kill, match: {model: '*opus*'}"))
    told = ask(client)
    assert (told["kills"], told["left"]) == (True, [])
    assert tell(client, used_usd="5", models=["haiku"])["exceeded"] is None
    assert tell(client, used_usd="5", models=["haiku", "claude-opus-4-5"])["exceeded"] == "all"


def test_budgets_are_those_of_the_file_as_it_is_now(doors: Doors) -> None:
    """A file that is wrong leaves them as they were."""
    client, _, budgets = doors
    assert ask(client) == {
        "allowed": True, "lines": [], "held": False, "kills": False, "expected_usd": None, "expected_tokens": None, "left": []
    }  # fmt: skip
    budgets(ROOM.replace("ACTION", "block").replace("1,", "0,"))
    assert not ask(client)["allowed"]
    budgets("budgets: [{SECRET: 1}]")
    assert not ask(client)["allowed"]


def test_a_file_that_was_never_right_lets_nobody_in(tmp_path: Path, settings: Settings) -> None:
    """503, and nothing of what it holds: the host decides what that means."""
    (file := tmp_path / "budgets.yaml").write_text("budgets: [{SECRET: 1}]")
    book = Book(Settings(settings.ledger, budgets_file=file))
    with closing(book), TestClient(app.create_app(book, Workers(book)), base_url="http://localhost") as client:
        answer = client.post(PATH, json={"run_id": A})
    assert (answer.status_code, answer.json()["detail"]) == (503, "the daemon's budgets file is wrong; its log says where")


def test_what_is_still_to_be_recorded_on_the_daemons_own_host_stays_set_aside(doors: Doors) -> None:
    """A dead run of its own, which lies in its spool, has spent what it had set aside."""
    client, ledger, budgets = doors
    budgets(ROOM.replace("ACTION", "block"))
    with ledger.write() as conn:
        for run in (A, B, C):
            reservations.put(conn, reservations.Reservation(run, DEV, 1, 25 * CENT), now_ms(), dead())
    pending = spool.create(spool.spool_dirs(ledger.settings.ledger, os.environ), A, {"run_id": A})
    assert ask(client, "d" * 32)["allowed"]
    assert ask(client, "e" * 32)["allowed"]
    assert not ask(client, "f" * 32)["allowed"]
    pending.remove()
    assert ask(client, "f" * 32)["allowed"]


def dead() -> liveness.Mark:
    """A process of this host that has ended."""
    return liveness.Mark(liveness.here(), os.getpid(), "1")


GOOD: dict[str, Any] = {"run_id": A}
UNDER_WAY: dict[str, Any] = {}


@pytest.mark.parametrize(("method", "path", "doc", "field"), [
    ("POST", "", {}, "run_id"),
    ("POST", "", GOOD | {"run_id": "x"}, "run_id"),
    ("POST", "", GOOD | {"run_id": A + "\n"}, "run_id"),
    ("POST", "", GOOD | {"run_id": "../../etc/passwd"}, "run_id"),
    ("POST", "", GOOD | {"boss": 1}, "boss"),
    ("POST", "", GOOD | {"agent": None}, "agent"),
    ("POST", "", GOOD | {"agent": "a\0b"}, "agent"),
    ("POST", "", GOOD | {"agent": "x" * 2001}, "agent"),
    ("POST", "", GOOD | {"attrs": {"k": 1}}, "attrs.k"),
    ("POST", "", GOOD | {"attrs": {"k\0": "v"}}, "attrs.k\0.[key]"),
    ("POST", "", GOOD | {"attrs": {str(i): "" for i in range(101)}}, "attrs"),
    ("POST", "", GOOD | {"max_cost_usd": "1e3"}, "max_cost_usd"),
    ("POST", "", GOOD | {"max_cost_usd": 1}, "max_cost_usd"),
    ("POST", "", GOOD | {"max_cost_usd": "-1"}, "max_cost_usd"),
    ("POST", "", GOOD | {"max_tokens": -1}, "max_tokens"),
    ("POST", "", GOOD | {"max_tokens": 10**13}, "max_tokens"),
    ("POST", "", GOOD | {"max_tokens": "1"}, "max_tokens"),
    ("POST", "", GOOD | {"used_usd": "1"}, "used_usd"),
    ("PUT", "/x", UNDER_WAY, "run_id"),
    ("PUT", f"/{A.upper()}", UNDER_WAY, "run_id"),
    ("PUT", f"/{A}", {"models": ["m"] * 101}, "models"),
    ("PUT", f"/{A}", {"models": "m"}, "models"),
    ("PUT", f"/{A}", {"used_tokens": 1.5}, "used_tokens"),
    ("DELETE", "/' OR 1=1 --", None, "run_id"),
])  # fmt: skip
def test_what_is_no_run_is_refused_by_its_field(doors: Doors, method: str, path: str, doc: Any, field: str) -> None:
    """422 that names it, and nothing is set aside."""
    client, ledger, budgets = doors
    budgets(ROOM.replace("ACTION", "block"))
    answer = client.request(method, PATH + path, json=doc)
    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")
    assert [e["field"] for e in answer.json()["errors"]] == [field]
    assert held(ledger) == []


@pytest.mark.parametrize(("body", "status"), [
    (b"", 422), (b"[]", 422), (b"{", 422), (b"\xff", 400), (b"null", 422), (b"[" * 100_000, 400),
    (json.dumps(GOOD | {"attrs": {"\ud800": "x"}}).encode(), 422), (json.dumps(GOOD | {"agent": "\ud800"}).encode(), 422),
    (json.dumps(GOOD | {"\ud800": 1}).encode(), 422), (b" " * (4 << 20) + b"x", 413),
], ids=["empty", "list", "cut", "bytes", "null", "deep", "half key", "half text", "half field", "large"])  # fmt: skip
def test_a_body_that_is_no_run_is_no_defect(doors: Doors, body: bytes, status: int) -> None:
    """Neither is one that no database could take."""
    client, ledger, _ = doors
    answer = client.post(PATH, content=body, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.headers["content-type"], held(ledger)) == (status, "application/problem+json", [])
