"""How one notice leaves: a signed POST or a command. Of what comes back only a status is kept, never a word."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from dataclasses import dataclass
from urllib.parse import urlsplit

from spendmeter.budgets.model import Notifier
from spendmeter.outgoing import no_answer

WEBHOOK_S = 10.0
COMMAND_S = 30.0


@dataclass(frozen=True, slots=True)
class Notice:
    """What is to be told. ``body`` is the JSON document, ``text`` its one line for people."""

    id: str
    budget: str
    threshold: str
    severity: str
    text: str
    body: str


@dataclass(frozen=True, slots=True)
class Answer:
    """How a try ended; *error* is "" where the notice was taken. ``final``: no other try will do. ``wait_s``: asked to wait so long."""

    error: str = ""
    final: bool = False
    wait_s: float = 0.0


def place(notifier: Notifier) -> str:
    """Where it tells, for messages: the webhook's host alone, for its address may hold a secret."""
    if notifier.webhook is None:
        return f"command of {notifier.name}"
    with contextlib.suppress(ValueError):
        return urlsplit(notifier.webhook).hostname or notifier.name
    return notifier.name


def allowed_s(notifier: Notifier) -> float:
    """How long a try may take."""
    return WEBHOOK_S if notifier.webhook else COMMAND_S


def send(notifier: Notifier, notice: Notice, limit_s: float) -> Answer:
    """Tries once to tell *notice*; never raises."""
    try:
        if notifier.webhook is None:
            return _execute(notifier.command, notice, limit_s)
        from spendmeter.notices.webhook import post

        return post(notifier, notice, limit_s)
    except Exception as e:  # noqa: BLE001 - the text of an error may hold the address, or anything
        return Answer(f"not sent ({type(e).__name__})")


def _execute(command: tuple[str, ...], notice: Notice, limit_s: float) -> Answer:
    told = {"ID": notice.id, "BUDGET": notice.budget, "THRESHOLD": notice.threshold, "SEVERITY": notice.severity, "TEXT": notice.text}
    env = os.environ | {f"SPENDMETER_NOTICE_{name}": value.replace("\0", "\ufffd") for name, value in told.items()}
    quiet = subprocess.DEVNULL
    try:
        hook = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=quiet, stderr=quiet, env=env, start_new_session=True)
    except OSError as e:
        return Answer(f"cannot be started: {e.strerror}")
    with hook:
        try:
            hook.communicate(notice.body.encode(), timeout=limit_s)
        except subprocess.TimeoutExpired:
            os.killpg(hook.pid, signal.SIGKILL)
            return Answer(no_answer(limit_s))
    if hook.returncode:
        return Answer(f"exit code {hook.returncode}" if hook.returncode > 0 else f"ended by signal {-hook.returncode}")
    return Answer()
