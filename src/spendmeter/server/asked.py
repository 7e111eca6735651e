"""What a page's address asks for: a period, filters, a time zone; and the addresses that its links lead to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from datetime import datetime, timedelta
from urllib.parse import urlencode

from spendmeter.errors import LedgerError
from spendmeter.ledger.periods import when_ms, zone
from spendmeter.ledger.query import Where
from spendmeter.server.problems import BadFieldError

PERIODS = {"today": "Today", "week": "Last 7 days", "month": "This month", "all": "All time"}
FILTERS = ("agent", "task", "model", "cli", "repo", "outcome")
SORTS = {"cost": "cost", "tokens": "tokens"}


@dataclass(frozen=True, slots=True)
class Asked:
    """Query parameters of a page; None is not asked for."""

    period: str | None = None
    agent: str | None = None
    task: str | None = None
    model: str | None = None
    cli: str | None = None
    repo: str | None = None
    outcome: str | None = None
    sort: str | None = None
    tz: str | None = None

    @classmethod
    def of(cls, params: Mapping[str, str]) -> Asked:
        """Those in *params*; what is unknown is passed over.

        Raises:
            BadFieldError: a period, order or zone that is none.
        """
        asked = cls(**{f.name: params[f.name] for f in fields(cls) if params.get(f.name)})
        if asked.period is not None and asked.period not in PERIODS:
            raise BadFieldError("period", f"not one of {', '.join(PERIODS)}")
        if asked.sort is not None and asked.sort not in SORTS:
            raise BadFieldError("sort", f"not one of {', '.join(SORTS)}")
        try:
            zone(asked.zone)
        except LedgerError as e:
            raise BadFieldError("tz", str(e)) from None
        return asked

    @property
    def zone(self) -> str:
        """Where days begin."""
        return self.tz or "UTC"

    @property
    def filters(self) -> dict[str, str]:
        """Filters in force."""
        return {name: value for name in FILTERS if (value := getattr(self, name)) is not None}

    def link(self, path: str = "/", **changes: str | None) -> str:
        """The address of *path* with these parameters but for *changes*."""
        wanted = replace(self, **changes)
        query = {f.name: value for f in fields(wanted) if (value := getattr(wanted, f.name)) is not None}
        return f"{path}?{urlencode(query)}" if query else path

    def where(self, period: str) -> Where:
        """The ledger's window and filters for *period*."""
        return self.filtered(self.since_ms(period))

    def filtered(self, since_ms: int | None = None) -> Where:
        """As the ledger is asked, from *since_ms* on."""
        return Where(since_ms, **self.filters)  # type: ignore[arg-type]

    def since_ms(self, period: str) -> int | None:
        """When *period* began; None for all time."""
        if period == "all":
            return None
        today = self.today()
        first = {"today": today, "week": today - timedelta(days=6), "month": today.replace(day=1)}[period]
        return when_ms(f"{first:%Y-%m-%d}", self.zone)

    def today(self) -> datetime:
        """The day that it is there."""
        return datetime.now(zone(self.zone))
