"""Budgets of 100 tokens that have something to tell, and what becomes of it."""

from __future__ import annotations

import threading
from decimal import Decimal
from typing import Any

from sqlalchemy import select

from spendmeter.budgets.model import Budget, Budgets, Notifier, Threshold
from spendmeter.budgets.periods import Period
from spendmeter.ledger import Ledger
from spendmeter.ledger import schema as t
from spendmeter.notices.channels import Notice
from spendmeter.notices.delivery import Delivered, deliver
from spendmeter.notices.raising import raise_new
from tests.feed import use
from tests.hooks import Receiver
from tests.made import NOON

DAY_MS, HOUR_MS = 86_400_000, 3_600_000
NOTICE = Notice("n1", "b", "0.5", "info", "past 50% of budget b", '{"id":"n1"}')


def rows(ledger: Ledger) -> list[Any]:
    with ledger.read() as conn:
        order = (t.notices.c.at_ms, t.notices.c.threshold, t.notices.c.budget, t.notices.c.notifier)
        return list(conn.execute(select(t.notices).order_by(*order)))


def defined(*notifiers: Notifier, names: tuple[str, ...] = ("b",), period: Period = Period("day")) -> Budgets:  # noqa: B008
    """Budgets of 100 tokens, told at half."""
    half = (Threshold(Decimal("0.5"), "info"),)
    return Budgets(tuple(Budget(name, period, "tokens", 100, thresholds=half) for name in names), notifiers, "x")


def hook(receiver: Receiver, name: str = "ops", **rest: Any) -> Notifier:
    return Notifier(name, webhook=receiver.url("/T0KEN?key=T0KEN"), **rest)


def raised(ledger: Ledger, budgets: Budgets) -> Budgets:
    """*budgets*, each with a notice for each notifier at NOON."""
    use(ledger, "s1", 60, NOON)
    assert raise_new(ledger, budgets, NOON) == len(budgets.budgets) * len(budgets.notifiers)
    return budgets


def passes(ledger: Ledger, budgets: Budgets, after_ms: int = 0) -> Delivered:
    return deliver(ledger, budgets, NOON + after_ms, threading.Event())


def errors(done: Delivered) -> list[str]:
    return [f.error for f in done.failed]
