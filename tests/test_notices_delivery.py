"""How notices are delivered: signed, one sender at a time, again when it fails, never a word of it in a message."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from spendmeter.budgets.model import Budget, Budgets, Notifier, Threshold
from spendmeter.budgets.periods import Period
from spendmeter.ledger import Ledger
from spendmeter.ledger import schema as t
from spendmeter.notices import channels, delivery
from spendmeter.notices.channels import Answer, Notice
from spendmeter.notices.delivery import CLAIM_MS, ORPHAN_MS, Delivered, deliver
from spendmeter.notices.raising import raise_new
from spendmeter.notices.webhook import sign
from tests.feed import use
from tests.hooks import Receiver
from tests.made import NOON

HOUR_MS = 3_600_000
NOTICE = Notice("n1", "b", "0.5", "info", "past 50% of budget b", '{"id":"n1"}')


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.close()


def defined(*notifiers: Notifier, names: tuple[str, ...] = ("b",), period: Period = Period("day")) -> Budgets:  # noqa: B008
    """Budgets of 100 tokens, told at half."""
    half = (Threshold(Decimal("0.5"), "info"),)
    return Budgets(tuple(Budget(name, period, "tokens", 100, thresholds=half) for name in names), notifiers, "x")


def hook(receiver: Receiver, name: str = "ops", **rest: Any) -> Notifier:
    return Notifier(name, webhook=receiver.url("/T0KEN?key=T0KEN"), **rest)


def raised(ledger: Ledger, budgets: Budgets) -> None:
    """Each of *budgets* has a notice for each notifier at NOON."""
    use(ledger, "s1", 60, NOON)
    assert raise_new(ledger, budgets, NOON) == len(budgets.budgets) * len(budgets.notifiers)


def passes(ledger: Ledger, budgets: Budgets, after_ms: int = 0) -> Delivered:
    return deliver(ledger, budgets, NOON + after_ms, threading.Event())


def rows(ledger: Ledger) -> list[Any]:
    with ledger.read() as conn:
        return list(conn.execute(select(t.notices).order_by(t.notices.c.budget, t.notices.c.notifier)))


def errors(done: Delivered) -> list[str]:
    return [f.error for f in done.failed]


# -- signatures --------------------------------------------------------------------------------------------------------


def test_the_published_example_is_signed_as_published() -> None:
    """The test vector that the libraries of the Standard Webhooks share."""
    secret, body = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", '{"test": 2432232314}'
    assert sign(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body) == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def verified(key: bytes, headers: dict[str, str], body: bytes) -> bool:
    """As the published algorithm says, from the raw bytes alone; see https://www.standardwebhooks.com/."""
    message = b".".join([headers["webhook-id"].encode(), headers["webhook-timestamp"].encode(), body])
    digest = hmac.new(key, message, hashlib.sha256).digest()
    versions = [x.split(",", 1) for x in headers["webhook-signature"].split(" ")]
    return any(v == "v1" and hmac.compare_digest(base64.b64decode(s), digest) for v, s in versions)


@pytest.mark.parametrize(
    ("secret", "key"),
    [("whsec_" + base64.b64encode(b"\0\xff" * 16).decode(), b"\0\xff" * 16), ("схема 7", "схема 7".encode())],
    ids=["base64", "plain"],
)
def test_a_webhook_is_signed_each_time_it_is_sent(
    ledger: Ledger, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, secret: str, key: bytes
) -> None:
    """Base64 behind whsec_, else the secret itself; another try has the same id and body, and a time of its own."""
    monkeypatch.setenv("SECRET", secret)
    told = defined(hook(receiver, secret_env="SECRET"))
    raised(ledger, told)
    receiver.status = 500
    passes(ledger, told)
    receiver.status = 200
    time.sleep(1.1)
    passes(ledger, told, HOUR_MS)
    first, second = receiver.posts
    assert verified(key, dict(first.headers), first.body)
    assert verified(key, dict(second.headers), second.body)
    assert not verified(key, dict(second.headers), second.body.replace(b"61", b"60"))
    assert (first.headers["webhook-id"], first.body) == (second.headers["webhook-id"], second.body)
    assert first.headers["webhook-timestamp"] < second.headers["webhook-timestamp"]
    assert abs(time.time() - int(second.headers["webhook-timestamp"])) < 60
    assert second.headers["content-type"] == "application/json"


def test_without_a_secret_there_is_no_signature(ledger: Ledger, receiver: Receiver) -> None:
    """Its id and time are there."""
    told = defined(hook(receiver))
    raised(ledger, told)
    assert passes(ledger, told) == Delivered(1)
    assert {k for k in receiver.posts[0].headers if k.startswith("webhook-")} == {"webhook-id", "webhook-timestamp"}


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "not sent: SECRET is not set; put the signing secret in it"),
        ("", "not sent: SECRET is not set; put the signing secret in it"),
        ("whsec_!", "not sent: SECRET holds no base64 after whsec_; copy the secret again"),
        ("whsec_c2Vj!cmV0", "not sent: SECRET holds no base64 after whsec_; copy the secret again"),
        ("whsec_", "not sent: SECRET holds no base64 after whsec_; copy the secret again"),
    ],
)
def test_a_missing_secret_is_said_and_mended_later(
    ledger: Ledger, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, value: str | None, said: str
) -> None:
    """Nothing goes out unsigned; once the variable is right, the notice does."""
    if value is not None:
        monkeypatch.setenv("SECRET", value)
    told = defined(hook(receiver, secret_env="SECRET"))
    raised(ledger, told)
    assert errors(passes(ledger, told)) == [said]
    assert receiver.posts == []
    assert rows(ledger)[0].error == said
    monkeypatch.setenv("SECRET", "right")
    assert passes(ledger, told, HOUR_MS) == Delivered(1)
    assert rows(ledger)[0].error is None


def test_user_and_password_of_an_address_go_as_a_header(receiver: Receiver) -> None:
    """Percent-decoded."""
    address = receiver.url("/x").replace("http://", "http://us%40er:p%3Aw@")
    assert channels.send(Notifier("ops", webhook=address), NOTICE, 5) == Answer()
    assert receiver.posts[0].headers["authorization"] == "Basic " + base64.b64encode(b"us@er:p:w").decode()
    assert receiver.posts[0].path == "/x"


# -- what the receiver answers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 202, 204])
def test_2xx_is_delivered(ledger: Ledger, receiver: Receiver, status: int) -> None:
    """And never sent again."""
    told = defined(hook(receiver))
    raised(ledger, told)
    receiver.status = status
    assert passes(ledger, told) == Delivered(1)
    assert passes(ledger, told, 30 * 24 * HOUR_MS) == Delivered()
    (row,) = rows(ledger)
    assert (row.attempts, row.due_ms, row.error) == (1, None, None)
    assert NOON <= row.sent_ms < NOON + 10_000


@pytest.mark.parametrize("status", [400, 401, 404, 410, 422])
def test_other_client_errors_are_given_up(ledger: Ledger, receiver: Receiver, status: int) -> None:
    """With the status as the reason."""
    told = defined(hook(receiver))
    raised(ledger, told)
    receiver.status = status
    assert [str(f) for f in passes(ledger, told).failed] == [f"budget b at 50%: 127.0.0.1: answered {status}; given up"]
    assert passes(ledger, told, HOUR_MS) == Delivered()
    assert (len(receiver.posts), rows(ledger)[0].error) == (1, f"answered {status}")


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_what_may_pass_is_tried_again(ledger: Ledger, receiver: Receiver, status: int) -> None:
    """After half a minute, then a minute and so on, each a fifth more or less; six hours at most."""
    told = defined(hook(receiver), period=Period("rolling", length_ms=30 * 24 * HOUR_MS))
    raised(ledger, told)
    receiver.status = status
    at, waits = 0, []
    for _ in range(13):
        (failure,) = passes(ledger, told, at).failed
        assert (failure.error, failure.given_up) == (f"answered {status}", False)
        waits.append((rows(ledger)[0].due_ms - NOON - at) / 1000)
        assert passes(ledger, told, int(at + waits[-1] * 900) - 2000) == Delivered()
        at = rows(ledger)[0].due_ms - NOON
    for i, wait_s in enumerate(waits):
        expected = min(30 * 2**i, 6 * 3600)
        assert 0.8 * expected <= wait_s < 1.2 * expected + 5
    receiver.status = 200
    assert passes(ledger, told, at) == Delivered(1)
    assert set(receiver.ids.values()) == {14}


@pytest.mark.parametrize(("period", "hours"), [(Period("day"), 24), (Period("rolling", length_ms=5 * HOUR_MS), 24), (Period("week"), 168)])
def test_it_is_tried_as_long_as_the_period_but_a_day_at_least(ledger: Ledger, receiver: Receiver, period: Period, hours: int) -> None:
    """Then it is given up, with the last reason."""
    told = defined(hook(receiver), period=period)
    raised(ledger, told)
    receiver.status = 500
    at = 0
    while (due := rows(ledger)[0].due_ms) is not None:
        at = due - NOON
        (last,) = passes(ledger, told, at).failed
    assert (hours - 7.3) * HOUR_MS < at < hours * HOUR_MS
    assert (last.given_up, rows(ledger)[0].error) == (True, "answered 500")


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_holds_for_the_notifier(ledger: Ledger, receiver: Receiver, form: str) -> None:
    """For its other notices too, and for no other notifier; six hours at most."""
    in_an_hour = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
    told = defined(hook(receiver), Notifier("z", command=("false",)), names=("b", "c"))
    raised(ledger, told)
    receiver.status, receiver.headers = 429, {"retry-after": "3600" if form == "seconds" else in_an_hour}
    passes(ledger, told)
    assert len(receiver.posts) == 1
    dues = {(r.budget, r.notifier): (r.due_ms - NOON) / 1000 for r in rows(ledger)}
    assert dues["b", "ops"] == dues["c", "ops"]
    assert 3590 < dues["b", "ops"] < 3615
    assert min(dues["b", "z"], dues["c", "z"]) < 60
    assert errors(passes(ledger, told, 3_500_000)) == ["exit code 1"]
    assert len(receiver.posts) == 1
    receiver.headers = {"retry-after": "999999"}
    passes(ledger, told, 3_700_000)
    assert max(r.due_ms for r in rows(ledger)) < NOON + 3_700_000 + 6 * HOUR_MS + 10_000


@pytest.mark.parametrize("told", ["", "soon", "-5", "Wed, 99 Foo 2026"])
def test_a_retry_after_without_sense_is_none(ledger: Ledger, receiver: Receiver, told: str) -> None:
    """The usual wait."""
    receiver.status, receiver.headers = 503, {"retry-after": told}
    assert channels.send(hook(receiver), NOTICE, 5) == Answer("answered 503")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_not_followed(ledger: Ledger, receiver: Receiver, status: int) -> None:
    """Neither to another host nor to the same: it is said, and tried again."""
    other = Receiver()
    receiver.status, receiver.headers = status, {"location": other.url("/steal")}
    told = defined(hook(receiver))
    raised(ledger, told)
    assert errors(passes(ledger, told)) == [f"answered {status}, a redirect, which is not followed; write the final address as its webhook"]
    assert other.posts == []
    assert rows(ledger)[0].due_ms is not None
    other.close()


def test_a_receiver_that_was_down_gets_it_once(ledger: Ledger) -> None:
    """However often it was tried meanwhile."""
    probe = Receiver()
    port = probe.port
    probe.close()
    told = defined(Notifier("ops", webhook=f"http://127.0.0.1:{port}/"))
    raised(ledger, told)
    at = 0
    for _ in range(4):
        assert errors(passes(ledger, told, at)) == ["Connection refused"]
        at = rows(ledger)[0].due_ms - NOON
    up = Receiver(port)
    assert [passes(ledger, told, at + i * HOUR_MS).sent for i in range(3)] == [1, 0, 0]
    assert list(up.ids.values()) == [1]
    up.close()


# -- many senders ------------------------------------------------------------------------------------------------------


def test_no_two_send_the_same_at_once(both: Ledger, receiver: Receiver) -> None:
    """Six senders, thirty notices, a slow receiver: each arrives once."""
    told = defined(hook(receiver), names=tuple(f"b{i}" for i in range(30)))
    raised(both, told)
    receiver.delay_s = 0.02
    sent: list[int] = []
    senders = [threading.Thread(target=lambda: sent.append(passes(both, told).sent)) for _ in range(6)]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    assert sum(sent) == 30
    assert set(receiver.ids.values()) == {1}
    assert len(receiver.ids) == 30


@pytest.mark.alone
def test_a_slow_notifier_holds_up_no_other(ledger: Ledger, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are sent to side by side; one that fails gets one try in a pass."""
    monkeypatch.setattr(channels, "WEBHOOK_S", 2.0)
    slow = Receiver()
    slow.delay_s = 20
    told = defined(hook(slow, "a"), hook(receiver, "b"), names=("b", "c", "d"))
    raised(ledger, told)
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
        told = defined(Notifier("ops", webhook=f"http://127.0.0.1:{server.getsockname()[1]}/"))
        raised(ledger, told)
        began = time.monotonic()
        assert errors(passes(ledger, told)) == ["no answer within 1 s"]
        assert time.monotonic() - began < 3


@pytest.mark.alone
def test_a_stop_ends_the_pass(ledger: Ledger, receiver: Receiver) -> None:
    """What is under way gets some seconds, stays claimed, and is sent again later under its id."""
    receiver.delay_s = 8
    told = defined(hook(receiver), names=("b", "c"))
    raised(ledger, told)
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
    told = defined(hook(receiver), names=("b", "c"))
    raised(both, told)
    started: list[subprocess.Popen[bytes]] = []
    ready = threading.Event()

    def kill(_: str) -> None:
        ready.wait(10)
        os.kill(started[0].pid, signal.SIGKILL)
        started[0].wait()

    receiver.before = kill
    started.append(subprocess.Popen([sys.executable, "-c", SENDER, both.settings.ledger, str(file), str(NOON)]))
    ready.set()
    assert started[0].wait(20) == -signal.SIGKILL
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
    told = defined(hook(receiver))
    raised(ledger, told)

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
    told = defined(hook(receiver))
    raised(ledger, told)
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
    told = defined(hook(receiver))
    raised(ledger, told)
    assert passes(ledger, told, 48 * HOUR_MS) == Delivered(1)


# -- commands ----------------------------------------------------------------------------------------------------------


def shell(script: str, name: str = "ops") -> Notifier:
    return Notifier(name, command=("sh", "-c", script))


def test_a_command_gets_the_notice(ledger: Ledger, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """JSON on standard input, parts in the environment; what it prints goes nowhere."""
    told = defined(shell(f"cat > {tmp_path}/body; env > {tmp_path}/env; echo CANARY; echo CANARY >&2"))
    raised(ledger, told)
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
    told = defined(Notifier("ops", command=command))
    raised(ledger, told)
    assert [str(f) for f in passes(ledger, told).failed] == [f"budget b at 50%: command of ops: {said}; kept, and tried again"]
    assert (rows(ledger)[0].error, rows(ledger)[0].due_ms > NOON + 20_000) == (said, True)


@pytest.mark.alone
def test_a_command_that_takes_too_long_is_killed_with_its_group(tmp_path: Path) -> None:
    """Also what it has started."""
    slow = shell(f"sleep 30 & echo $! > {tmp_path}/pid; wait")
    began = time.monotonic()
    assert channels.send(slow, NOTICE, 1) == Answer("no answer within 1 s")
    assert time.monotonic() - began < 3
    deadline = time.monotonic() + 5
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
    told = defined(Notifier("ops", webhook=address.format(port=receiver.port, space="\u00e9 \n")))
    raised(ledger, told)
    (failure,) = passes(ledger, told).failed
    assert failure.error
    assert "T0KEN" not in f"{failure}{failure!r}{rows(ledger)}{caplog.text}{capfd.readouterr()}"


def test_what_the_receiver_says_is_not_kept(ledger: Ledger, receiver: Receiver) -> None:
    """Neither its words nor its headers."""
    receiver.status, receiver.headers = 500, {"x-reason": "CANARY"}
    told = defined(hook(receiver))
    raised(ledger, told)
    assert "CANARY" not in repr(passes(ledger, told)) + repr(rows(ledger))


def test_the_limits_are_in_order() -> None:
    """A claim outlasts any try, and a stop is over before the daemon stops waiting."""
    from spendmeter.server import workers

    assert delivery.CLAIM_MS / 1000 > 2 * max(channels.WEBHOOK_S, channels.COMMAND_S)
    assert delivery.STOP_S + delivery.POLL_S < workers.JOIN_S
