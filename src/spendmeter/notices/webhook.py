"""A notice as a signed POST. Apart, because HTTP takes long to import and most runs have nothing to tell."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import time
from email.utils import parsedate_to_datetime
from http.client import HTTPException, HTTPMessage
from urllib.parse import unquote_to_bytes, urlsplit
from urllib.request import Request

from spendmeter.budgets.model import Notifier
from spendmeter.ledger.gauges import version
from spendmeter.notices.channels import Answer, Notice
from spendmeter.outgoing import opener, why

BASE64_SECRET = "whsec_"  # noqa: S105 - how the Standard Webhooks mark one
_PASSING = (408, 425, 429)  # client errors that another try may get over


def post(notifier: Notifier, notice: Notice, limit_s: float) -> Answer:
    """Posts *notice* by the Standard Webhooks, signed where a secret is named."""
    now_s = int(time.time())
    headers = {
        "content-type": "application/json", "user-agent": f"spendmeter/{version()}",
        "webhook-id": notice.id, "webhook-timestamp": str(now_s),
    }  # fmt: skip
    if variable := notifier.secret_env:
        if not (secret := os.environ.get(variable)):
            return Answer(f"not sent: {variable} is not set; put the signing secret in it")
        try:
            headers["webhook-signature"] = sign(secret, notice.id, now_s, notice.body)
        except ValueError:
            return Answer(f"not sent: {variable} holds no base64 after {BASE64_SECRET}; copy the secret again")
    url, user = _without_user(notifier.webhook or "")
    request = Request(url, notice.body.encode(), headers | user, method="POST")  # noqa: S310 - the opener knows HTTP alone
    try:
        with opener().open(request, timeout=limit_s) as response:
            return _judged(response.status, response.headers, now_s)
    except (OSError, HTTPException) as e:
        return Answer(why(e, limit_s))


def sign(secret: str, notice_id: str, timestamp_s: int, body: str) -> str:
    """The value of ``webhook-signature``.

    Args:
        secret: as it is given to both sides: base64 behind ``whsec_``, else the key itself.

    Raises:
        ValueError: what stands behind ``whsec_`` is not base64, or nothing stands there.
    Source:
        https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
    """
    coded = secret.startswith(BASE64_SECRET)
    key = base64.b64decode(secret.removeprefix(BASE64_SECRET), validate=True) if coded else secret.encode()
    if not key:
        raise ValueError
    made = hmac.new(key, f"{notice_id}.{timestamp_s}.{body}".encode(), hashlib.sha256).digest()
    return f"v1,{base64.b64encode(made).decode()}"


def _without_user(url: str) -> tuple[str, dict[str, str]]:
    """*url* without user and password, and the header that gives them: urllib knows them in no address."""
    parts = urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    if not at:
        return url, {}
    return parts._replace(netloc=host).geturl(), {"authorization": f"Basic {base64.b64encode(unquote_to_bytes(user)).decode()}"}


def _judged(status: int, headers: HTTPMessage, now_s: int) -> Answer:
    if 200 <= status < 300:
        return Answer()
    if 300 <= status < 400:
        return Answer(f"answered {status}, a redirect, which is not followed; write the final address as its webhook")
    if 400 <= status < 500 and status not in _PASSING:
        return Answer(f"answered {status}", final=True)
    return Answer(f"answered {status}", wait_s=_wait_s(headers.get("retry-after"), now_s))


def _wait_s(told: str | None, now_s: int) -> float:
    """Retry-After, which is in seconds or a date; 0 where it says nothing."""
    if told is None:
        return 0.0
    if told.strip().isdecimal():
        return float(told)
    try:
        return max(0.0, parsedate_to_datetime(told).timestamp() - now_s)
    except (ValueError, OverflowError):
        return 0.0
