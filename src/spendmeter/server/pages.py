"""HTML from templates, escaped throughout, and how numbers, money and times are written in it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote
from zoneinfo import ZoneInfo

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.responses import HTMLResponse, Response

import spendmeter
from spendmeter.ledger.amounts import Amounts
from spendmeter.ledger.budgeting import State
from spendmeter.ledger.periods import zone
from spendmeter.records import iso, usd_text

UNKNOWN = "–"
OUTCOMES = {
    "ok": "done", "error": "failed", "max_budget": "out of budget", "max_turns": "out of turns", "interrupted": "interrupted",
    "killed": "killed", "unknown": "unknown",
}  # fmt: skip
_NUSD = 1_000_000_000
_SMALL_NUSD = 10 * _NUSD  # below, money is shown with four places


def number(n: int | None) -> str:
    """12,345"""
    return UNKNOWN if n is None else f"{n:,}"


def places(total: Amounts) -> int:
    """How many places money has on a page whose greatest sum is *total*."""
    return 4 if (total.cost_nusd or 0) < _SMALL_NUSD else 2


def money(nusd: int | None, digits: int = 2) -> str:
    """$1,234.56; what would round to nothing shows as less than the least."""
    if nusd is None:
        return UNKNOWN
    step = _NUSD // 10**digits
    if 0 < nusd < step / 2:
        return f"<${1 / 10**digits:.{digits}f}"
    whole, rest = divmod((nusd + step // 2) // step, 10**digits)
    return f"${whole:,}.{rest:0{digits}d}"


def cost(a: Amounts, digits: int = 2) -> str:
    """Its cost; "~" marks what is estimated, in whole or in part."""
    return ("~" if a.estimated_nusd else "") + money(a.cost_nusd, digits)


def budgeted(state: State, amount: int) -> str:
    """An amount in the budget's unit: $1.50, 12,345 tokens, 20 runs."""
    return money(amount) if state.budget.unit == "usd" else f"{amount:,} {state.budget.unit}"


def percent(part: int | None, whole: int | None) -> float | None:
    """How much *part* is of *whole*, in percent; None where nobody can tell."""
    return None if part is None or not whole else 100 * part / whole


def duration(ms: int | None) -> str:
    """0.6 s, 42 s, 3 min 20 s, 2 h 10 min."""
    if ms is None:
        return UNKNOWN
    if ms < 9_950:
        return f"{ms / 1000:.1f} s"
    minutes, s = divmod((ms + 500) // 1000, 60)
    hours, m = divmod(minutes, 60)
    return f"{hours} h {m} min" if hours else f"{m} min {s} s" if m else f"{s} s"


def moment(ms: int | None, tz: str, now: datetime | None = None, *, seconds: bool = False) -> str:
    """21 Nov, 23:27; with the year where it is not this one."""
    if ms is None:
        return UNKNOWN
    place = zone(tz)
    at, today = _local(ms, place), now or datetime.now(place)
    year = "" if at.year == today.year else f" {at.year}"
    return f"{at.day} {at:%b}{year}, {at:%H:%M:%S}" if seconds else f"{at.day} {at:%b}{year}, {at:%H:%M}"


def _local(ms: int, place: ZoneInfo | Any) -> datetime:
    return datetime.fromtimestamp(ms / 1000, place)


def html(name: str, context: Mapping[str, Any], status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """The template *name*, filled in."""
    body = _ENV.get_template(name).render(context)
    return HTMLResponse(body, status, headers={"cache-control": "no-store"} | dict(headers or {}))


def error_page(status: int, title: str, detail: str, headers: Mapping[str, str] | None = None) -> Response:
    """A page that says what is wrong; it needs no ledger, and looks again by itself where waiting may help."""
    return html("error.html", {"status": status, "title": title, "detail": detail}, status, headers)


def login_page(status: int = 200, detail: str = "", headers: Mapping[str, str] | None = None) -> Response:
    """The form that takes a token, with what was wrong with the last one."""
    return html("login.html", {"detail": detail}, status, headers)


def _environment() -> Environment:
    templates = FileSystemLoader(Path(__file__).parent / "templates")
    env = Environment(loader=templates, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    env.filters |= {
        "number": number, "money": money, "cost": cost, "duration": duration, "moment": moment, "iso": iso, "usd": usd_text,
        "budgeted": budgeted, "part": lambda text: quote(text, safe=""),
    }  # fmt: skip
    env.globals |= {"outcomes": OUTCOMES, "version": spendmeter.__version__, "percent": percent}
    return env


_ENV = _environment()
