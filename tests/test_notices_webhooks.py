"""Webhooks: signed each time, and what each answer of a receiver leads to."""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from spendmeter.budgets.model import Notifier
from spendmeter.budgets.periods import Period
from spendmeter.ledger import Ledger
from spendmeter.notices import channels
from spendmeter.notices.channels import Answer
from spendmeter.notices.delivery import Delivered
from spendmeter.notices.webhook import sign
from tests.hooks import Receiver
from tests.made import NOON
from tests.noticed import HOUR_MS, NOTICE, defined, errors, hook, passes, raised, rows

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
    told = raised(ledger, defined(hook(receiver, secret_env="SECRET")))
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
    told = raised(ledger, defined(hook(receiver)))
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
    told = raised(ledger, defined(hook(receiver, secret_env="SECRET")))
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
    told = raised(ledger, defined(hook(receiver)))
    receiver.status = status
    assert passes(ledger, told) == Delivered(1)
    assert passes(ledger, told, 30 * 24 * HOUR_MS) == Delivered()
    (row,) = rows(ledger)
    assert (row.attempts, row.due_ms, row.error) == (1, None, None)
    assert NOON <= row.sent_ms < NOON + 10_000


@pytest.mark.parametrize("status", [400, 401, 404, 410, 422])
def test_other_client_errors_are_given_up(ledger: Ledger, receiver: Receiver, status: int) -> None:
    """With the status as the reason."""
    told = raised(ledger, defined(hook(receiver)))
    receiver.status = status
    assert [str(f) for f in passes(ledger, told).failed] == [f"budget b at 50%: 127.0.0.1: answered {status}; given up"]
    assert passes(ledger, told, HOUR_MS) == Delivered()
    assert (len(receiver.posts), rows(ledger)[0].error) == (1, f"answered {status}")


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_what_may_pass_is_tried_again(ledger: Ledger, receiver: Receiver, status: int) -> None:
    """After half a minute, then a minute and so on, each a fifth more or less; six hours at most."""
    told = raised(ledger, defined(hook(receiver), period=Period("rolling", length_ms=30 * 24 * HOUR_MS)))
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
    told = raised(ledger, defined(hook(receiver), period=period))
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
    told = raised(ledger, defined(hook(receiver), Notifier("z", command=("false",)), names=("b", "c")))
    receiver.status, receiver.headers = 429, {"retry-after": "3600" if form == "seconds" else in_an_hour}
    passes(ledger, told)
    assert len(receiver.posts) == 1
    dues = {(r.budget, r.notifier): (r.due_ms - NOON) / 1000 for r in rows(ledger)}
    assert dues["b", "ops"] == dues["c", "ops"]
    assert 3500 < dues["b", "ops"] < 3615  # a date is told ahead of time, and the machine may be busy
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
    told = raised(ledger, defined(hook(receiver)))
    assert errors(passes(ledger, told)) == [f"answered {status}, a redirect, which is not followed; write the final address as its webhook"]
    assert other.posts == []
    assert rows(ledger)[0].due_ms is not None
    other.close()


def test_a_receiver_that_was_down_gets_it_once(ledger: Ledger) -> None:
    """However often it was tried meanwhile."""
    probe = Receiver()
    port = probe.port
    probe.close()
    told = raised(ledger, defined(Notifier("ops", webhook=f"http://127.0.0.1:{port}/")))
    at = 0
    for _ in range(4):
        assert errors(passes(ledger, told, at)) == ["Connection refused"]
        at = rows(ledger)[0].due_ms - NOON
    up = Receiver(port)
    assert [passes(ledger, told, at + i * HOUR_MS).sent for i in range(3)] == [1, 0, 0]
    assert list(up.ids.values()) == [1]
    up.close()
