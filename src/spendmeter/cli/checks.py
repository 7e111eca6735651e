"""The checks of ``spendmeter doctor``: each looks at one thing and says how it is, and what to do where it is not well."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import spendmeter
from spendmeter.errors import ConfigError, SpendmeterError

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from spendmeter.attribution import Rules
    from spendmeter.config import Settings
    from spendmeter.ledger import Ledger

OK, WARNING, PROBLEM = "ok", "warning", "problem"
DRIFT = 0.02  # share by which a CLI's figures may leave the list price unremarked
OLD_PRICES_DAYS = 120
LOW_DISK = 500 << 20  # bytes
LATELY_DAYS = 7
OVERDUE_MS = 300_000  # settling this late means that nothing writes


class Finding(NamedTuple):
    """How one thing is; ``remedy`` is empty where nothing is to be done."""

    level: str  # ok | warning | problem
    name: str
    detail: str
    remedy: str = ""


@dataclass
class Site:
    """What is looked at: the flags, the environment and what follows from them."""

    env: Mapping[str, str]
    config: str | None = None
    url: str | None = None
    now_ms: int = 0

    @cached_property
    def settings(self) -> Settings:
        """The settings; may raise ConfigError."""
        from spendmeter.config import load

        return load(self.config, self.url, self.env)

    @cached_property
    def file(self) -> Path | None:
        """The SQLite ledger's file, None for another database."""
        from sqlalchemy.engine import make_url
        from sqlalchemy.exc import ArgumentError

        try:
            url = make_url(self.settings.ledger)
        except ArgumentError:
            return None
        return Path(url.database).expanduser() if url.get_backend_name() == "sqlite" and url.database else None


def examine(site: Site) -> Iterator[Finding]:
    """All findings in order. A check that fails is a finding; the others go on."""
    yield Finding(OK, "spendmeter", f"{spendmeter.__version__} on Python {platform.python_version()} ({sys.executable})")
    settings = _settings(site)
    yield settings
    yield from _guarded("prices", lambda: _prices(site))
    if settings.level != PROBLEM:
        yield from _guarded("ledger", lambda: _ledger(site))
        yield from _guarded("pending runs", lambda: _pending(site))
    if told := site.env.get("SPENDMETER_REMOTE"):
        yield from _guarded("remote", lambda: _remote(told, site.env))
    yield from _guarded("sessions", lambda: _homes(site))
    yield from _guarded("parsers", _parsers)
    yield _otel(site.env)


def _guarded(name: str, check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    try:
        yield from check()
    except SpendmeterError as e:
        yield Finding(PROBLEM, name, *_halves(str(e)))
    except OSError as e:
        yield Finding(PROBLEM, name, f"{e.strerror or type(e).__name__}: {e.filename or ''}")


def _halves(message: str) -> tuple[str, str]:
    """What is wrong and what to do, as our messages have them around their last semicolon."""
    what, semicolon, remedy = message.rpartition("; ")
    return (what, remedy) if semicolon else (message, "")


def _settings(site: Site) -> Finding:
    path = site.config or site.env.get("SPENDMETER_CONFIG")
    names = sorted(n for n in site.env if n.startswith("SPENDMETER_") and n not in ("SPENDMETER_CONFIG", "SPENDMETER_RUN_ID"))
    from spendmeter import attribution

    try:
        attribution.load(site.settings)
    except ConfigError as e:
        return Finding(PROBLEM, "settings", *_halves(str(e)))
    return Finding(OK, "settings", f"file: {path or 'none'}; environment: {', '.join(names) or 'nothing set'}")


def _prices(site: Site) -> Iterator[Finding]:
    from spendmeter.prices import PriceTable

    override = site.settings.prices_file if _settings(site).level == OK else None
    table = PriceTable.load(override)
    newest = _newest_price(datetime.fromtimestamp(site.now_ms / 1000, UTC).date())
    age = "" if newest is None else f"; newest dated price {newest}"
    detail = f"{table.version}{age}"
    if newest and (datetime.fromtimestamp(site.now_ms / 1000, UTC).date() - newest).days > OLD_PRICES_DAYS:
        yield Finding(WARNING, "prices", detail, f"pip install -U genai-prices (installed: {metadata.version('genai-prices')})")
    else:
        yield Finding(OK, "prices", detail)


def _newest_price(today: date) -> date | None:
    """First day of the newest price that is in force: how far the data reaches."""
    from genai_prices.data_snapshot import get_snapshot

    found = []
    for provider in get_snapshot().providers:
        for model in provider.models:
            for price in model.prices if isinstance(model.prices, list) else []:
                start = getattr(price.constraint, "start_date", None)
                if start is not None and start <= today:
                    found.append(start)
    return max(found, default=None)


# -- the ledger --------------------------------------------------------------------------------------------------------


def _ledger(site: Site) -> Iterator[Finding]:
    from spendmeter.ledger import Ledger
    from spendmeter.ledger.engine import safe

    url = safe(site.settings.ledger)
    if site.file and not site.file.exists():
        yield _unmade(site.file, url)
        return
    with closing(Ledger(site.settings)) as ledger:
        yield _opened(ledger, url)
        yield _writable(ledger)
        with ledger.read() as conn:
            if site.file:
                yield _journal(conn)
            yield _settling(conn, site.now_ms)
            yield _spool(conn, site.env)
            yield _skips(conn)
            yield _unpriced(conn)
            yield _drift(conn)
            yield _attribution(conn, ledger.rules, site.now_ms)
            yield from _untold(conn, site.now_ms)
    if site.file:
        yield _disk(site.file)


def _unmade(file: Path, url: str) -> Finding:
    folder = next((p for p in file.absolute().parents if p.exists()), Path("/"))
    if os.access(folder, os.W_OK):
        return Finding(OK, "ledger", f"{url} will be made when it is first used")
    remedy = "choose another place with --ledger or SPENDMETER_LEDGER"
    return Finding(PROBLEM, "ledger", f"{url} cannot be made: {folder} is not writable", remedy)


def _opened(ledger: Ledger, url: str) -> Finding:
    from spendmeter.ledger.schema import HEAD

    facts = ledger.facts_about()
    size = "" if facts["bytes"] is None else f", {facts['bytes'] / 1e6:,.1f} MB"
    return Finding(OK, "ledger", f"{url}: schema {HEAD}, {facts['sessions']:,} sessions, {facts['calls']:,} calls{size}")


def _writable(ledger: Ledger) -> Finding:
    from sqlalchemy import update

    from spendmeter.errors import LedgerError
    from spendmeter.ledger.schema import meta

    try:
        with ledger.write() as conn:
            conn.execute(update(meta).where(meta.c.key == "ledger_id").values(value=meta.c.value))
    except LedgerError as e:
        return Finding(PROBLEM, "writing", *_halves(str(e)))
    return Finding(OK, "writing", "the ledger can be written")


def _journal(conn: Connection) -> Finding:
    mode = str(conn.exec_driver_sql("pragma journal_mode").scalar_one())
    if mode == "wal":
        return Finding(OK, "journal", "write-ahead log: readers do not wait for writers")
    return Finding(WARNING, "journal", f"{mode}, not a write-ahead log", "keep the ledger on a local disk, not on a network share")


def _settling(conn: Connection, now_ms: int) -> Finding:
    waiting = _one(conn, "select count(*) from sessions where settle_at_ms is not null")
    overdue = _one(conn, "select count(*) from sessions where settle_at_ms < :before", before=now_ms - OVERDUE_MS)
    if overdue:
        remedy = "start spendmeter serve, or run any command that writes (spendmeter sync)"
        return Finding(WARNING, "counters", f"{overdue:,} sessions are in reports but not yet in the counters", remedy)
    return Finding(OK, "counters", f"{waiting:,} sessions will settle soon" if waiting else "every session is in the counters")


def _spool(conn: Connection, env: Mapping[str, str]) -> Finding:
    spans, events = (_one(conn, f"select count(*) from spool where {c} = false") for c in ("traced", "logged"))  # noqa: S608 - fixed names
    if not spans and not events:
        return Finding(OK, "export", "nothing waits")
    detail = f"{spans:,} traces and {events:,} events wait"
    if not _endpoints(env):
        return Finding(OK, "export", f"{detail}; no OTLP endpoint is set")
    return Finding(WARNING, "export", detail, "spendmeter export --once, or keep spendmeter serve running")


def _skips(conn: Connection) -> Finding:
    from sqlalchemy import func, select

    from spendmeter.ledger.schema import skips

    rows = conn.execute(select(skips.c.reason, func.count().label("n")).group_by(skips.c.reason).order_by(func.count().desc())).all()
    if not rows:
        return Finding(OK, "skipped", "every line that looked like usage could be read")
    told = ", ".join(f"{r.n:,} {r.reason}" for r in rows[:5])
    return Finding(WARNING, "skipped", told, "spendmeter parse FILE shows where; half-written lines of a killed run are normal")


def _unpriced(conn: Connection) -> Finding:
    from sqlalchemy import func, select

    from spendmeter.ledger.schema import entries as e

    lost = func.sum(e.c.unpriced_tokens).label("n")
    rows = conn.execute(select(e.c.model, lost).where(e.c.unpriced_tokens > 0).group_by(e.c.model).order_by(lost.desc())).all()
    if not rows:
        return Finding(OK, "unpriced", "all usage has a cost")
    told = ", ".join(f"{r.model} ({int(r.n):,} tokens)" for r in rows[:5])
    return Finding(WARNING, "unpriced", told, "give these models a price in the override file: [prices] file, see docs/reference/prices.md")


def _drift(conn: Connection) -> Finding:
    from sqlalchemy import func, select

    from spendmeter.ledger.schema import entries, runs

    e, r = entries.c, runs.c
    both = select(r.cli, func.sum(e.reported_nusd).label("told"), func.sum(e.listed_nusd).label("listed")).join(
        runs, (r.session_id == e.session_id) & (r.run_key == e.run_key)
    )
    both = both.where(e.reported_nusd.is_not(None), e.listed_nusd > 0, func.coalesce(e.estimated_nusd, 0) == 0).group_by(r.cli)
    ratios = {row.cli: float(row.told) / float(row.listed) for row in conn.execute(both)}
    if not ratios:
        return Finding(OK, "cost drift", "no cost of a CLI's own to compare with list prices")
    told = ", ".join(f"{cli} {ratio - 1:+.1%}" for cli, ratio in sorted(ratios.items()))
    if any(abs(ratio - 1) > DRIFT for ratio in ratios.values()):
        remedy = "compare: spendmeter report --by model --json (cost_reported_usd, cost_listed_usd); put your rates into the override file"
        return Finding(WARNING, "cost drift", f"CLIs' figures against list prices: {told}", remedy)
    return Finding(OK, "cost drift", f"CLIs' figures against list prices: {told}")


def _untold(conn: Connection, now_ms: int) -> Iterator[Finding]:
    """Notices of late that reached nobody and are tried no more."""
    from sqlalchemy import select

    from spendmeter.ledger.schema import notices as n

    lost = n.c.due_ms.is_(None) & n.c.sent_ms.is_(None) & n.c.error.is_not(None) & (n.c.at_ms >= now_ms - LATELY_DAYS * 86_400_000)
    rows = conn.execute(select(n.c.budget, n.c.notifier, n.c.error).where(lost).order_by(n.c.at_ms.desc())).all()
    if rows:
        last = f"the last of budget {rows[0].budget} to {rows[0].notifier}: {rows[0].error}"
        yield Finding(
            WARNING, "notices", f"{len(rows):,} were given up, {last}", "mend the notifier; spendmeter budget list shows what it missed"
        )


def _attribution(conn: Connection, rules: Rules | None, now_ms: int) -> Finding:
    """Rules, and the sessions of late whose agent or task nobody has said."""
    lately = "select count(distinct session_id) from runs where last_ms >= :since"
    unknown = ("", " and agent = 'unknown'", " and task = 'unknown'")
    all_, agent, task = (_one(conn, lately + more, since=now_ms - LATELY_DAYS * 86_400_000) for more in unknown)
    told = f"{len(rules.rules) if rules else 0} rules; of {all_:,} sessions of the last {LATELY_DAYS} days "
    told += f"{agent:,} have no agent, {task:,} no task"
    by_others = "select count(*) from sessions where closed_ms is null and coalesce(ruleset, '') <> :name"
    if rules and (other := _one(conn, by_others, name=rules.name)):
        return Finding(OK, "attribution", f"{told}; {other:,} go by other rules", "spendmeter attribute --dry-run tells what would move")
    hint = "say them by rules: docs/how-to/attribution.md" if not rules and (agent or task) else ""
    return Finding(OK, "attribution", told, hint)


def _disk(file: Path) -> Finding:
    free = shutil.disk_usage(file.parent).free
    detail = f"{free / 1e9:,.1f} GB free beside the ledger"
    return Finding(OK, "disk", detail) if free > LOW_DISK else Finding(WARNING, "disk", detail, "free some space")


def _one(conn: Connection, sql: str, **values: Any) -> int:
    from sqlalchemy import text

    return int(conn.execute(text(sql), values).scalar_one() or 0)


# -- around it ---------------------------------------------------------------------------------------------------------


def _pending(site: Site) -> Iterator[Finding]:
    from spendmeter.runner.recover import folders

    files = [p for folder in folders(site.url, site.config, site.env) if folder.is_dir() for p in sorted(folder.iterdir()) if p.is_file()]
    unread = [p for p in files if p.suffix == ".unreadable"]
    if unread:
        yield Finding(WARNING, "pending runs", f"{len(unread)} files cannot be read, such as {unread[0]}", "report it, then delete them")
    rest = len(files) - len(unread)
    yield Finding(OK, "pending runs", f"{rest} under way, or recorded by the next command" if rest else "none")


def _remote(told: str, env: Mapping[str, str]) -> Iterator[Finding]:
    from spendmeter.cli.checks_remote import remote

    return remote(told, env)


def _parsers() -> Iterator[Finding]:
    """Parsers of other packages that cannot be used."""
    from spendmeter.parsers import broken

    for line in broken():
        yield Finding(WARNING, "parsers", line, "update or remove the package that brings it")


def _homes(site: Site) -> Iterator[Finding]:
    from spendmeter.cli.homes import homes

    found = homes(site.env)
    for home in found:
        if home.files:
            yield Finding(OK, "sessions", f"{home.cli}: {len(home.files):,} session files in {home.path}")
    if not any(h.files for h in found):
        looked = ", ".join(str(h.path) for h in found)
        yield Finding(WARNING, "sessions", f"no session files in {looked}", "run a CLI once, or name its home: spendmeter sync --home DIR")


def _endpoints(env: Mapping[str, str]) -> list[str]:
    return sorted(n for n in env if n.startswith("OTEL_EXPORTER_OTLP") and n.endswith("ENDPOINT") and env[n])


def _otel(env: Mapping[str, str]) -> Finding:
    """Which OTLP endpoints are set, without user, password or query."""
    names = _endpoints(env)
    if env.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return Finding(WARNING, "OTLP", "OTEL_SDK_DISABLED is true: nothing is sent", "unset OTEL_SDK_DISABLED to export")
    if not names:
        return Finding(OK, "OTLP", "no endpoint set (OTEL_EXPORTER_OTLP_ENDPOINT): nothing is sent")
    return Finding(OK, "OTLP", ", ".join(f"{n}={_bare(env[n])}" for n in names))


def _bare(url: str) -> str:
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return "(not a URL)"
    return f"{parts.scheme}://{parts.hostname or ''}{f':{port}' if port else ''}"
