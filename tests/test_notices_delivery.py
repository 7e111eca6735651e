"""How notices are delivered: one sender at a time, to commands too, never a word of an address in a message."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import update

from spendmeter.budgets.model import Notifier
from spendmeter.ledger import Ledger
from spendmeter.ledger import schema as t
from spendmeter.notices import channels, delivery
from spendmeter.notices.channels import Answer
from spendmeter.notices.delivery import CLAIM_MS, ORPHAN_MS, Delivered, deliver
from tests.hooks import Receiver
from tests.made import NOON
from tests.noticed import HOUR_MS, NOTICE, defined, errors, hook, passes, raised, rows

# -- many senders ------------------------------------------------------------------------------------------------------


def test_no_two_send_the_same_at_once(both: Ledger, receiver: Receiver) -> None:
    """Six senders, thirty notices, a slow receiver: each arrives once."""
    told = raised(both, defined(hook(receiver), names=tuple(f"b{i}" for i in range(30))))
    receiver.delay_s = 0.02
    with ThreadPoolExecutor(6) as pool:
        assert sum(done.sent for done in pool.map(lambda _: passes(both, told), range(6))) == 30
    assert set(receiver.ids.values()) == {1}
    assert len(receiver.ids) == 30


@pytest.mark.alone
def test_a_slow_notifier_holds_up_no_other(ledger: Ledger, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are sent to side by side; one that fails gets one try in a pass."""
    monkeypatch.setattr(channels, "WEBHOOK_S", 2.0)
    slow = Receiver()
    slow.delay_s = 20
    told = raised(ledger, defined(hook(slow, "a"), hook(receiver, "b"), names=("b", "c", "d")))
    began = time.monotonic()
    done = passes(ledger, told)
    assert time.monotonic() - began < 4
    assert (done.sent, errors(done)) == (3, ["no answer within 2 s"])
    assert (len(slow.posts), len(receiver.posts)) == (1, 3)
    slow.close()


@pytest.mark.alone
def test_a_receiver_that_drips_is_not_waited_for(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte now and then satisfies the socket's timeout, but not ours."""
    import socket

    monkeypatch.setattr(channels, "WEBHOOK_S", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def drip() -> None:
            conn, _ = server.accept()
            with conn:
                for byte in b"HTTP/1.1 200 OK\r\nx: " + b"y" * 30:
                    try:
                        conn.sendall(bytes([byte]))
                    except OSError:
                        return
                    time.sleep(0.3)

        threading.Thread(target=drip, daemon=True).start()
        told = raised(ledger, defined(Notifier("ops", webhook=f"http://127.0.0.1:{server.getsockname()[1]}/")))
        began = time.monotonic()
        assert errors(passes(ledger, told)) == ["no answer within 1 s"]
        assert time.monotonic() - began < 3


@pytest.mark.alone
def test_a_stop_ends_the_pass(ledger: Ledger, receiver: Receiver) -> None:
    """What is under way gets some seconds, stays claimed, and is sent again later under its id."""
    receiver.delay_s = 8
    told = raised(ledger, defined(hook(receiver), names=("b", "c")))
    stop = threading.Event()
    threading.Timer(0.5, stop.set).start()
    began = time.monotonic()
    assert deliver(ledger, told, NOON, stop) == Delivered()
    assert 3 < time.monotonic() - began < 5
    assert [(r.attempts, r.due_ms - NOON > 100_000) for r in rows(ledger)] in ([(1, True), (0, False)], [(0, False), (1, True)])
    receiver.delay_s = 0
    assert passes(ledger, told, CLAIM_MS + 10_000).sent == 2
    assert sorted(receiver.ids.values()) == [1, 2]


SENDER = """
import sys, threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from spendmeter.budgets.file import load
from spendmeter.config import Settings
from spendmeter.ledger import Ledger
from spendmeter.notices.delivery import deliver
deliver(Ledger(Settings(sys.argv[1])), load(Path(sys.argv[2])), int(sys.argv[3]), threading.Event())
"""


def test_kill_minus_nine_between_sending_and_noting(both: Ledger, receiver: Receiver, tmp_path: Path) -> None:
    """It is sent again under its id when the claim is over, not before; what was never sent is not lost."""
    file = tmp_path / "b.yaml"
    file.write_text(
        "budgets: [{name: b, period: day, limit_tokens: 100, thresholds: [0.5]}, {name: c, period: day, limit_tokens: 100}]\n"
        f"notify: [{{name: ops, webhook: '{receiver.url()}'}}]\n"
    )
    told = raised(both, defined(hook(receiver), names=("b", "c")))
    started: list[subprocess.Popen[bytes]] = []
    ready = threading.Event()

    def kill(_: str) -> None:
        ready.wait(60)
        os.kill(started[0].pid, signal.SIGKILL)
        started[0].wait()

    receiver.before = kill
    started.append(subprocess.Popen([sys.executable, "-c", SENDER, both.settings.ledger, str(file), str(NOON)]))
    ready.set()
    assert started[0].wait(60) == -signal.SIGKILL
    receiver.before = lambda _: None
    (killed,) = receiver.ids
    row = next(r for r in rows(both) if r.id == killed)
    assert (row.attempts, row.sent_ms, row.error) == (1, None, "the sender ended before the answer came")
    assert passes(both, told, CLAIM_MS - 20_000).sent == 1
    assert passes(both, told, CLAIM_MS + 20_000).sent == 1
    assert sorted(receiver.ids.values()) == [1, 2]
    assert receiver.ids[killed] == 2
    assert passes(both, told, HOUR_MS) == Delivered()


def test_an_answer_that_comes_after_another_has_claimed_it_still_counts(ledger: Ledger, receiver: Receiver) -> None:
    """Delivered is delivered; a failure then changes nothing, for the row is the other's."""
    told = raised(ledger, defined(hook(receiver)))

    def steal(notice_id: str) -> None:
        with ledger.write() as conn:
            conn.execute(update(t.notices).where(t.notices.c.id == notice_id).values(due_ms=NOON + 999_999))

    receiver.before, receiver.status = steal, 500
    passes(ledger, told)
    assert rows(ledger)[0].due_ms == NOON + 999_999
    receiver.status = 200
    passes(ledger, told, 1_000_000)
    assert (rows(ledger)[0].due_ms, rows(ledger)[0].sent_ms is not None) == (None, True)


# -- what is gone ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gone", ["notifier", "budget", "routing"])
def test_what_the_file_no_longer_tells_is_not_sent(ledger: Ledger, receiver: Receiver, gone: str) -> None:
    """It is left for an hour to hosts whose file may still know it, then given up."""
    told = raised(ledger, defined(hook(receiver)))
    now = {
        "notifier": replace(told, notifiers=()),
        "budget": replace(told, budgets=()),
        "routing": replace(told, budgets=(replace(told.budgets[0], notify=()),)),
    }[gone]
    assert passes(ledger, now, ORPHAN_MS - 10_000) == Delivered()
    assert rows(ledger)[0].due_ms == NOON
    passes(ledger, now, ORPHAN_MS + 10_000)
    assert (rows(ledger)[0].due_ms, rows(ledger)[0].error) == (None, "the budgets file no longer tells this notifier of it")
    assert passes(ledger, told, ORPHAN_MS + 20_000) == Delivered()
    assert receiver.posts == []


def test_a_known_notice_is_late_but_not_given_up(ledger: Ledger, receiver: Receiver) -> None:
    """Nobody sent for two days; then it goes out."""
    told = raised(ledger, defined(hook(receiver)))
    assert passes(ledger, told, 48 * HOUR_MS) == Delivered(1)


# -- commands ----------------------------------------------------------------------------------------------------------


def shell(script: str, name: str = "ops") -> Notifier:
    return Notifier(name, command=("sh", "-c", script))


def test_a_command_gets_the_notice(ledger: Ledger, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """JSON on standard input, parts in the environment; what it prints goes nowhere."""
    told = raised(ledger, defined(shell(f"cat > {tmp_path}/body; env > {tmp_path}/env; echo CANARY; echo CANARY >&2")))
    assert passes(ledger, told) == Delivered(1)
    body = json.loads((tmp_path / "body").read_text())
    env = dict(line.partition("=")[::2] for line in (tmp_path / "env").read_text().splitlines())
    assert {k.removeprefix("SPENDMETER_NOTICE_"): v for k, v in env.items() if k.startswith("SPENDMETER_NOTICE_")} == {
        "ID": body["id"], "BUDGET": "b", "THRESHOLD": "0.5", "SEVERITY": "info", "TEXT": body["text"],
    }  # fmt: skip
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("sh", "-c", "exit 3"), "exit code 3"),
        (("sh", "-c", "kill -TERM $$"), "ended by signal 15"),
        (("no-such-command-7",), "cannot be started: No such file or directory"),
        (("/",), "cannot be started: Permission denied"),
    ],
)
def test_a_command_that_fails_is_tried_again(ledger: Ledger, command: tuple[str, ...], said: str) -> None:
    """With its exit code, and nothing that it printed."""
    told = raised(ledger, defined(Notifier("ops", command=command)))
    assert [str(f) for f in passes(ledger, told).failed] == [f"budget b at 50%: command of ops: {said}; kept, and tried again"]
    assert (rows(ledger)[0].error, rows(ledger)[0].due_ms > NOON + 20_000) == (said, True)


@pytest.mark.alone
def test_a_command_that_takes_too_long_is_killed_with_its_group(tmp_path: Path) -> None:
    """Also what it has started."""
    slow = shell(f"sleep 30 & echo $! > {tmp_path}/pid; wait")
    began = time.monotonic()
    assert channels.send(slow, NOTICE, 1) == Answer("no answer within 1 s")
    assert time.monotonic() - began < 3
    deadline = time.monotonic() + 60
    pid = int((tmp_path / "pid").read_text())
    while Path(f"/proc/{pid}/stat").exists() and Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.alone
def test_a_command_need_not_read_and_may_leave_something_running(tmp_path: Path) -> None:
    """Closing standard input is no failure; what stays behind is not waited for."""
    big = replace(NOTICE, body="x" * 1_000_000)
    began = time.monotonic()
    assert channels.send(shell("exec <&-; sleep 5 & exit 0"), big, 4) == Answer()
    assert time.monotonic() - began < 3


def test_a_value_that_no_environment_takes_does_no_harm(tmp_path: Path) -> None:
    """A NUL in a task's name."""
    odd = replace(NOTICE, text="past 50% of T\0-1")
    assert channels.send(shell(f'printf %s "$SPENDMETER_NOTICE_TEXT" > {tmp_path}/text'), odd, 5) == Answer()
    assert (tmp_path / "text").read_text() == "past 50% of T\ufffd-1"


# -- silence -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        "http://127.0.0.1:1/T0KEN",
        "http://T0KEN:T0KEN@127.0.0.1:1/",
        "https://127.0.0.1:{port}/T0KEN",
        "http://no-such-host.invalid/T0KEN",
        "http://127.0.0.1:{port}/T0KEN{space}",
        "ftp://127.0.0.1/T0KEN",
        "http://[T0KEN/",
    ],
)
def test_no_address_is_in_any_message(
    ledger: Ledger, receiver: Receiver, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], address: str
) -> None:
    """Whatever goes wrong: rows, failures, logs and streams name the host at most."""
    receiver.status = 500
    told = raised(ledger, defined(Notifier("ops", webhook=address.format(port=receiver.port, space="\u00e9 \n"))))
    (failure,) = passes(ledger, told).failed
    assert failure.error
    assert "T0KEN" not in f"{failure}{failure!r}{rows(ledger)}{caplog.text}{capfd.readouterr()}"


def test_what_the_receiver_says_is_not_kept(ledger: Ledger, receiver: Receiver) -> None:
    """Neither its words nor its headers."""
    receiver.status, receiver.headers = 500, {"x-reason": "CANARY"}
    told = raised(ledger, defined(hook(receiver)))
    assert "CANARY" not in repr(passes(ledger, told)) + repr(rows(ledger))


def test_the_limits_are_in_order() -> None:
    """A claim outlasts any try, and a stop is over before the daemon stops waiting."""
    from spendmeter.server import workers

    assert delivery.CLAIM_MS / 1000 > 2 * max(channels.WEBHOOK_S, channels.COMMAND_S)
    assert delivery.STOP_S + delivery.POLL_S < workers.JOIN_S
