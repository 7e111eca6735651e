"""Who tells notices, and when: the daemon, ``spendmeter budget notify``, and a run at its end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from spendmeter import notices
from spendmeter.budgets.definitions import Definitions
from spendmeter.cli import main
from spendmeter.ledger import Ledger, now_ms
from spendmeter.notices import teller
from spendmeter.notices.raising import raise_new
from tests.feed import use
from tests.hooks import Receiver
from tests.made import NOON
from tests.noticed import rows

# -- one process's part ------------------------------------------------------------------------------------------------


def write(path: Path, receiver: Receiver | None, *, limit: int = 100, more: str = "") -> Path:
    """A file with one budget and, where there is a receiver, one webhook with a token in its address."""
    told = f"notify: [{{name: ops, webhook: '{receiver.url('/T0KEN?key=T0KEN')}'}}]\n" if receiver else ""
    path.write_text(f"budgets: [{{name: b, period: total, limit_tokens: {limit}}}]\n{told}{more}")
    return path


def test_it_looks_only_where_something_may_be_new(
    ledger: Ledger, receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a commit, in a new minute, or when the file has changed."""
    looked = []
    monkeypatch.setattr(teller, "raise_new", lambda *args: looked.append(args[2]) or raise_new(*args))
    one = teller.Teller(Definitions(write(tmp_path / "b.yaml", receiver)))
    passes = [
        (0, lambda: None, 1),
        (1000, lambda: None, 1),
        (2000, lambda: use(ledger, "s1", 60, NOON), 2),
        (3000, lambda: None, 2),
        (60_000, lambda: None, 3),
        (61_000, lambda: write(tmp_path / "b.yaml", receiver, limit=110), 4),
        (62_000, lambda: None, 4),
    ]
    for after_ms, happens, expected in passes:
        happens()
        one.tell(ledger, NOON + after_ms, threading.Event())
        assert len(looked) == expected, after_ms
    assert len(receiver.posts) == 1


def test_an_old_ledger_tells_once_when_notices_are_switched_on(ledger: Ledger, receiver: Receiver, tmp_path: Path) -> None:
    """What was crossed before is told at the first look, not at the next process's."""
    use(ledger, "s1", 300, NOON)
    for _ in range(3):
        teller.Teller(Definitions(write(tmp_path / "b.yaml", receiver))).tell(ledger, now_ms(), threading.Event())
    assert [p.told["threshold"] for p in receiver.posts] == ["1"]


# -- spendmeter budget notify ------------------------------------------------------------------------------------------


def notify(ledger: Ledger, file: Path, *args: str) -> tuple[int, str, str]:
    """(exit code, standard output, standard error)"""
    env = {"SPENDMETER_LEDGER": ledger.settings.ledger, "SPENDMETER_BUDGETS": str(file)}
    done = CliRunner().invoke(main, ["budget", "notify", *args], env=env)
    return done.exit_code, done.stdout, done.stderr


def test_the_command_says_what_it_did(ledger: Ledger, receiver: Receiver, tmp_path: Path) -> None:
    """Exit code 1 while something cannot be delivered, with budget, threshold and host; never the address."""
    file = write(tmp_path / "b.yaml", receiver)
    use(ledger, "s1", 84, NOON)
    receiver.status = 401
    code, out, err = notify(ledger, file)
    assert (code, out) == (1, "1 new, 0 sent, 1 failed\n")
    assert err == "spendmeter: budget b at 80%: 127.0.0.1: answered 401; given up\n"
    receiver.status = 200
    use(ledger, "s2", 30, NOON)
    code, out, err = notify(ledger, file, "--json")
    assert (code, json.loads(out), err) == (0, {"raised": 1, "sent": 1, "failed": []}, "")
    assert notify(ledger, file) == (0, "0 new, 0 sent\n", "")
    use(ledger, "s3", 1, NOON)
    receiver.status = 503
    write(file, receiver, limit=110, more="")
    file.write_text(file.read_text().replace("limit_tokens: 110", "limit_tokens: 110, thresholds: [0.5, 0.8, 1, 1.01]"))
    code, out, err = notify(ledger, file, "--json")
    assert code == 1
    assert json.loads(out)["failed"] == [
        {
            "budget": "b", "value": "", "threshold": "1.01", "notifier": "ops", "place": "127.0.0.1", "attempts": 1,
            "error": "answered 503", "given_up": False,
        }
    ]  # fmt: skip
    assert "T0KEN" not in out + err


def test_the_command_needs_budgets(ledger: Ledger) -> None:
    """One line that says where to name them."""
    env = os.environ | {"SPENDMETER_LEDGER": ledger.settings.ledger}
    done = subprocess.run([sys.executable, "-m", "spendmeter", "budget", "notify"], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("spendmeter: no budgets")
    assert len(done.stderr.splitlines()) == 1


# -- after a run -------------------------------------------------------------------------------------------------------


@pytest.fixture
def env(ledger: Ledger, receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Variables that name the ledger and a budgets file with a webhook; the file."""
    file = write(tmp_path / "b.yaml", receiver)
    monkeypatch.setenv("SPENDMETER_BUDGETS", str(file))
    monkeypatch.setenv("SPENDMETER_LEDGER", ledger.settings.ledger)
    return file


def test_a_run_tells_at_its_end(ledger: Ledger, receiver: Receiver, env: Path) -> None:
    """Once."""
    use(ledger, "s1", 60, NOON)
    assert notices.after_run(None, None) == []
    assert notices.after_run(None, None) == []
    assert len(receiver.posts) == 1


@pytest.mark.alone
def test_a_run_does_not_wait_for_a_slow_receiver(ledger: Ledger, receiver: Receiver, env: Path) -> None:
    """Three seconds at most; the notice is kept."""
    receiver.delay_s = 30
    use(ledger, "s1", 60, NOON)
    began = time.monotonic()
    said = notices.after_run(None, None)
    assert time.monotonic() - began < notices.AFTER_RUN_S + 1
    assert said in ([], ["budget b at 50%: 127.0.0.1: no answer within 3 s; kept, and tried again"])  # [] where the machine is busy
    assert [(r.attempts, r.sent_ms, r.due_ms > now_ms()) for r in rows(ledger)] == [(1, None, True)]


@pytest.mark.alone
def test_a_run_does_not_wait_for_a_locked_ledger(ledger: Ledger, receiver: Receiver, env: Path) -> None:
    """Another writer may hold it for long."""
    use(ledger, "s1", 60, NOON)
    with ledger.write():
        began = time.monotonic()
        assert notices.after_run(None, None) == []
        assert time.monotonic() - began < notices.AFTER_RUN_S + 1
    assert receiver.posts == []


@pytest.mark.parametrize("wrong", ["ledger", "file", "missing"])
def test_nothing_that_is_wrong_reaches_the_run(env: Path, monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    """A ledger that cannot be opened, a file that is wrong or has gone."""
    if wrong == "ledger":
        monkeypatch.setenv("SPENDMETER_LEDGER", "sqlite:////proc/none/ledger.db")
    elif wrong == "file":
        env.write_text("budgets: 3\n")
    else:
        env.unlink()
    assert notices.after_run(None, None) == []


@pytest.mark.parametrize("defined_", [False, True])
def test_a_run_without_notifiers_loads_nothing_for_them(tmp_path: Path, defined_: bool) -> None:
    """Neither a database nor HTTP, with budgets or without."""
    code = (
        "import sys; from spendmeter import notices; notices.after_run(None, None); "
        "print([x for x in ('sqlalchemy', 'urllib.request', 'spendmeter.notices.teller') if x in sys.modules])"
    )
    budgets = {"SPENDMETER_BUDGETS": str(write(tmp_path / "b.yaml", None))} if defined_ else {}
    env = os.environ | budgets | {"SPENDMETER_LEDGER": "sqlite:////proc/none/ledger.db"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
