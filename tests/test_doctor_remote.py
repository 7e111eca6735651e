"""``spendmeter doctor`` on a host whose runs go to a daemon, and of notices that reached nobody."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from click.testing import CliRunner
from sqlalchemy import insert

from spendmeter.cli import main
from spendmeter.config import load
from spendmeter.ledger import Ledger, now_ms
from spendmeter.ledger import schema as t
from spendmeter.records import Tags
from spendmeter.runner.finished import FinishedRun
from spendmeter.runner.spool import create, spool_dirs, write_pending
from tests.remotes import Central, answering


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> Iterator[Central]:
    with answering() as made:
        monkeypatch.setenv("SPENDMETER_REMOTE", made.url)
        yield made


def found(name: str) -> list[dict[str, Any]]:
    """What the doctor says of *name*."""
    return [c for c in json.loads(CliRunner().invoke(main, ["doctor", "--json"]).stdout)["checks"] if c["name"] == name]


def test_a_daemon_that_takes_runs_is_well(daemon: Central) -> None:
    """It is asked in a way that changes nothing there."""
    (told,) = found("remote")
    assert (told["level"], told["detail"]) == ("ok", f"{daemon.url} answers and takes runs from here; budgets are its own")
    assert [(method, path.rpartition("/")[0], body) for method, path, body in daemon.asked] == [("DELETE", "/api/v1/admissions", None)]


@pytest.mark.parametrize(("status", "detail", "remedy"), [
    (401, "answered 401: no", "put a token with the scope write into SPENDMETER_TOKEN or SPENDMETER_TOKEN_FILE"),
    (403, "answered 403: no", "give its token the scope write"),
    (404, "answered 404: no", "is that its address, and is its spendmeter as new as this one?"),
])  # fmt: skip
def test_a_daemon_that_takes_none_is_a_problem(daemon: Central, status: int, detail: str, remedy: str) -> None:
    """With what to do about it."""
    daemon.release = status, {"detail": "no"}, 0.0
    (told,) = found("remote")
    assert (told["level"], told["detail"], told["remedy"]) == ("problem", f"{daemon.url}: {detail}", remedy)


def test_a_daemon_that_is_away_is_a_problem(daemon: Central) -> None:
    """The host's other checks go on."""
    daemon.shutdown()  # else its thread may take one more connection
    daemon.server_close()
    (told,) = found("remote")
    assert (told["level"], "Connection refused" in told["detail"]) == ("problem", True)
    assert found("OTLP")


def test_an_address_that_is_none_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """There may be a password in it."""
    monkeypatch.setenv("SPENDMETER_REMOTE", "https://user:hunter2@meter.example")
    (told,) = found("remote")
    assert (told["level"], "hunter2" in str(told), "SPENDMETER_TOKEN" in told["remedy"]) == ("problem", False, True)


def test_runs_that_wait_are_counted(daemon: Central) -> None:
    """Since when, and what sends them; one that is under way does not wait, one that was refused is told apart."""
    folders = spool_dirs(daemon.url, os.environ)
    paths = [write_pending(folders, FinishedRun(f"{i:032x}", Tags(), "claude", 0, None, 1, 2, "t", "s")) for i in range(3)]
    os.utime(paths[0], (1_763_800_000, 1_763_800_000))
    paths[2].rename(aside := paths[2].with_suffix(".unreadable"))
    under_way = create(folders, "f" * 32, {"run_id": "f" * 32})
    waiting, refused, fine = found("remote")
    assert (waiting["level"], waiting["remedy"], fine["level"]) == ("warning", "spendmeter send", "ok")
    assert waiting["detail"] == f"runs that wait for {daemon.url}: 2, the oldest since 2025-11-22 08:26 UTC"
    assert (refused["level"], str(aside) in refused["detail"]) == ("warning", True)
    under_way.remove()
    assert sorted(folders[0].iterdir()) == sorted([*paths[:2], aside])


def test_without_a_daemon_nothing_is_said_of_one() -> None:
    """Neither is anything asked."""
    assert found("remote") == []


def test_notices_that_were_given_up_are_told() -> None:
    """How many within a week, and the last one's reason; those that were sent, or that still wait, are not among them."""
    week_ms = 7 * 86_400_000
    rows = [(1, None, None, "answered 404"), (0, None, None, "answered 410"), (0, 5, None, "x"), (0, None, 5, None), (0, None, None, None),
            (week_ms + 60_000, None, None, "answered 500")]  # fmt: skip
    with closing(Ledger(load())) as ledger, ledger.write() as conn:
        for i, (ago_ms, due, sent, error) in enumerate(rows):
            conn.execute(insert(t.notices).values(
                id=str(i), budget=f"b{i}", value="", threshold="1", period_start_ms=0, notifier="ops", at_ms=now_ms() - ago_ms, body="{}",
                attempts=1, due_ms=due, sent_ms=sent, error=error,
            ))  # fmt: skip
    (told,) = found("notices")
    assert (told["level"], told["detail"]) == ("warning", "2 were given up, the last of budget b1 to ops: answered 410")
    assert "spendmeter budget list" in told["remedy"]
