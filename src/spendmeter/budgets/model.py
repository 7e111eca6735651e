"""What a budget is: plain values. The calendar is in ``periods``, the file in ``file``, the sums in ``ledger.spend``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from functools import cache
from typing import Any, Literal

from spendmeter.budgets.periods import Period
from spendmeter.records import usd_text

Unit = Literal["usd", "tokens", "runs"]
Action = Literal["alert", "warn", "block", "kill"]
UNITS: tuple[Unit, ...] = ("usd", "tokens", "runs")
ACTIONS: tuple[Action, ...] = ("alert", "warn", "block", "kill")
SEVERITIES = ("info", "warning", "critical")
TAGS = ("agent", "task", "cli", "model", "repo")  # what a budget may match besides attributes
GUARDING = ("block", "kill")  # actions that keep a run from starting
FIRST_RUN_SHARE = 20  # a run of which nothing is known reserves this part of a limit


@dataclass(frozen=True, slots=True)
class Threshold:
    """A share of the limit (1 = all of it) and how bad it is to have used that much."""

    at: Decimal
    severity: str  # one of SEVERITIES


@dataclass(frozen=True, slots=True)
class Notifier:
    """Who is told when a threshold is crossed: a webhook or a command, one of both."""

    name: str
    webhook: str | None = None
    secret_env: str | None = None  # variable that holds the signing secret
    command: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Subject:
    """A run as budgets see it; None is not known (yet)."""

    agent: str | None = None
    task: str | None = None
    cli: str | None = None
    model: str | None = None
    repo: str | None = None
    attrs: Mapping[str, str] = field(default_factory=dict)

    def get(self, key: str) -> str | None:
        """The value of a tag or an attribute."""
        return getattr(self, key) if key in TAGS else self.attrs.get(key)


@dataclass(frozen=True, slots=True)
class Budget:
    """One entry of ``budgets.yaml``.

    ``limit``, ``reserve`` and ``least`` are in the unit: nano-USD, tokens (all that are billed, cached ones too) or runs.
    ``match``: tag or attribute -> globs (``*`` and ``?``), any of which will do; a run must match every key. ``per``: a tag or
    attribute each of whose values has a limit of its own. ``reserve``: what a run is expected to use where its agent has no
    history. ``least``: what a burn window must hold before it alerts. ``notify``: names of notifiers, None means all.
    """

    name: str
    period: Period
    unit: Unit
    limit: int
    match: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    per: str | None = None
    thresholds: tuple[Threshold, ...] = ()
    action: Action = "alert"
    reserve: int | None = None
    least: int = 0
    owner: str = ""
    description: str = ""
    notify: tuple[str, ...] | None = None

    def covers(self, subject: Subject) -> bool:
        """Whether a run of *subject* counts here. What is not known of it matches only ``*``."""
        return all(any(glob(p)(subject.get(key) or "") for p in patterns) for key, patterns in self.match.items())

    def may_cover(self, subject: Subject) -> bool:
        """Whether a run of *subject* counts here, or may once the models that it calls are known."""
        return replace(self, match={key: patterns for key, patterns in self.match.items() if key != "model"}).covers(subject)

    def value(self, subject: Subject) -> str | None:
        """The value of ``per`` whose limit a run of *subject* counts for; None where it has none, or the budget no ``per``."""
        return None if self.per is None else subject.get(self.per) or None

    def told(self, amount: int | None) -> Any:
        """*amount* for JSON: a decimal string of US dollars, else the number itself."""
        return usd_text(amount) if self.unit == "usd" else amount


@dataclass(frozen=True, slots=True)
class Budgets:
    """A whole ``budgets.yaml``. ``digest`` changes with its content."""

    budgets: tuple[Budget, ...] = ()
    notifiers: tuple[Notifier, ...] = ()
    digest: str = ""


@cache
def glob(pattern: str) -> Any:
    """A function that tells whether a text matches *pattern*, in which ``*`` is any text and ``?`` any character."""
    return re.compile("".join(".*" if c == "*" else "." if c == "?" else re.escape(c) for c in pattern), re.DOTALL).fullmatch
