"""Opens the database behind a ledger URL and brings its schema up to date."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event, inspect, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DataError, DBAPIError, NoSuchModuleError, SQLAlchemyError

from spendmeter.errors import LedgerError, UnfitError
from spendmeter.ledger.schema import HEAD, META

BUSY_MS = 30_000  # how long a writer waits for another
RECONNECT_S = 5.0  # a server that was restarted is back by then, or the caller keeps what it has
RECONNECT_PAUSE_S = 0.2
FULL = ("too many clients", "too many connections", "remaining connection slots", "no more connections allowed")  # the last: PgBouncer
UNFIT = "no database takes this: a number or a sum beyond 64 bits, or a text with a NUL or half a character; leave it out"
T = TypeVar("T")


class ConnectionLostError(LedgerError):
    """The database server went away in the middle of a transaction; whether that was committed is not known."""


def safe(url: str) -> str:
    """*url* without its password, for messages."""
    try:
        return make_url(url).render_as_string(hide_password=True)
    except ArgumentError:
        return "(not a URL)"


def open_engine(url: str, busy_ms: int = BUSY_MS) -> Engine:
    """An engine for *url* with the current schema; it waits *busy_ms* for another writer.

    Raises:
        LedgerError: not a URL, no driver, no permission, disk full, a newer schema; names the URL and what to do.
    """
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise LedgerError(f'ledger "{url[:64]}" is not a URL; write e.g. sqlite:///path/to/ledger.db or postgresql://host/name') from None
    backend = parsed.get_backend_name()
    if backend == "postgresql":
        parsed = parsed.set(drivername="postgresql+psycopg")
    elif backend != "sqlite":
        raise LedgerError(f'ledger "{backend}://..." is not supported; write sqlite:///... or postgresql://...')
    with translated(url):
        if backend == "sqlite" and parsed.database:
            Path(parsed.database).expanduser().parent.mkdir(parents=True, exist_ok=True)
        engine = _engine(parsed, busy_ms)
        try:
            _migrate(engine, url)
        except BaseException:
            engine.dispose()
            raise
    return engine


def _engine(parsed: Any, busy_ms: int) -> Engine:
    try:
        if parsed.get_backend_name() != "sqlite":
            engine = create_engine(parsed, connect_args=_in_time(parsed, busy_ms), pool_pre_ping=True)  # the server may have restarted
            event.listen(engine, "do_connect", _queueing(busy_ms))
            return engine
        engine = create_engine(parsed, connect_args={"timeout": busy_ms / 1000})
    except (ModuleNotFoundError, NoSuchModuleError):
        raise LedgerError("the PostgreSQL driver is missing; install spendmeter[postgres]") from None
    event.listen(engine, "connect", _connector(busy_ms))
    event.listen(engine, "begin", _sqlite_begin)
    return engine


def _in_time(parsed: Any, busy_ms: int) -> dict[str, int]:
    """A server that does not answer is waited for no longer than a writer, unless the URL says how long; libpq takes 2 s at least."""
    return {} if "connect_timeout" in parsed.query else {"connect_timeout": max(2, busy_ms // 1000)}


def _queueing(busy_ms: int) -> Callable[..., object]:
    """Opens a connection; where the server has no room for another it is waited for as for a writer."""

    def connect(dialect: Any, _record: object, args: list[Any], params: dict[str, Any]) -> object:
        end = time.monotonic() + busy_ms / 1000
        while True:
            try:
                return dialect.connect(*args, **params)
            except dialect.dbapi.OperationalError as e:
                if time.monotonic() > end or not any(mark in str(e) for mark in FULL):
                    raise
            time.sleep(RECONNECT_PAUSE_S)

    return connect


def _connector(busy_ms: int) -> Callable[[Any, object], None]:
    def connect(dbapi: Any, _record: object) -> None:
        dbapi.isolation_level = None  # we say BEGIN ourselves
        for pragma in (f"busy_timeout={busy_ms}", "synchronous=FULL", "foreign_keys=ON"):
            dbapi.execute(f"PRAGMA {pragma}")
        with contextlib.suppress(Exception):  # it stands in the file already, or that cannot be written: who writes will hear of it
            dbapi.execute("PRAGMA journal_mode=WAL")

    return connect


def _sqlite_begin(conn: Connection) -> None:
    """A writer takes its lock at once, so that what it read cannot have changed when it writes."""
    conn.exec_driver_sql("BEGIN" if conn.get_execution_options().get("reading") else "BEGIN IMMEDIATE")


def _version(engine: Engine) -> str | None:
    with engine.connect().execution_options(reading=True) as conn, contextlib.suppress(DBAPIError):
        return str(conn.execute(text("select version_num from alembic_version")).scalar_one_or_none() or "") or None
    return None


def _migrate(engine: Engine, url: str) -> None:
    found = _version(engine)
    if found == HEAD:
        return
    if found is not None and found > HEAD:
        raise LedgerError(f"ledger {safe(url)} has schema {found}, this spendmeter knows up to {HEAD}; update spendmeter on this host")
    with engine.begin() as conn:  # one migrates, the others wait and then find it done
        if conn.dialect.name == "postgresql":
            conn.execute(text("select pg_advisory_xact_lock(7317310)"))
        if inspect(conn).get_table_names():
            upgrade(conn)
        else:
            _make(conn)
        made = conn.execute(text("select count(*) from meta")).scalar_one()
        if not made:
            for key, value in (("ledger_id", secrets.token_hex(16)), ("created_ms", str(int(time.time() * 1000)))):
                conn.execute(text("insert into meta (key, value) values (:k, :v)"), {"k": key, "v": value})


def upgrade(conn: Connection) -> None:
    """Brings the schema of an older spendmeter, or of none, to the current one, migration by migration."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = conn
    command.upgrade(config, "head")


def _make(conn: Connection) -> None:
    """The current schema at once, as all migrations together make it (a test compares), in a tenth of the time."""
    META.create_all(conn)
    conn.exec_driver_sql("create table alembic_version (version_num varchar(32) not null primary key)")
    conn.execute(text("insert into alembic_version (version_num) values (:head)"), {"head": HEAD})


@contextlib.contextmanager
def patience(conn: Connection, busy_ms: int, usual_ms: int) -> Iterator[None]:
    """Lets SQLite wait *busy_ms* for another writer meanwhile."""
    raw: Any = conn.connection.driver_connection
    differs = conn.dialect.name == "sqlite" and busy_ms != usual_ms
    if differs:
        raw.execute(f"PRAGMA busy_timeout={busy_ms}")
    try:
        yield
    finally:
        if differs:
            raw.execute(f"PRAGMA busy_timeout={usual_ms}")


@contextlib.contextmanager
def translated(url: str) -> Iterator[None]:
    """Turns what the database throws into a LedgerError that says what to do."""
    try:
        yield
    except (DataError, OverflowError, UnicodeEncodeError):  # SQLite's driver throws the latter two itself
        raise UnfitError(f"ledger {safe(url)}: {UNFIT}") from None
    except (SQLAlchemyError, OSError) as e:
        lost = isinstance(e, DBAPIError) and e.connection_invalidated
        raise (ConnectionLostError if lost else LedgerError)(f"ledger {safe(url)}: {_why(e)}") from None


def reconnecting(step: Callable[[], T]) -> T:
    """What *step* returns; once it has lost its connection midway it is tried again for ``RECONNECT_S``. Twice must be as once."""
    end, lost = time.monotonic() + RECONNECT_S, False
    while True:
        try:
            return step()
        except LedgerError as e:
            lost = lost or isinstance(e, ConnectionLostError)
            if not lost or time.monotonic() > end:
                raise
        time.sleep(RECONNECT_PAUSE_S)


def _why(e: Exception) -> str:
    if isinstance(e, OSError):
        return f"{e.strerror or type(e).__name__}; choose another place with --ledger or SPENDMETER_LEDGER"
    said = str(getattr(e, "orig", None) or type(e).__name__).splitlines()[0][:200]
    for mark, remedy in (
        ("readonly", "make the file and its folder writable, or choose another place with --ledger"),
        ("unable to open", "check that the folder exists and can be written, or choose another place with --ledger"),
        ("disk is full", "free space on its disk; nothing of the ledger is lost"),
        ("disk I/O", "check its disk; nothing of the ledger is lost"),
        ("refused", "start the database server, or correct the URL"),
        ("terminating connection", "the database server was stopped; start it and try again"),
        ("server closed the connection", "the database server was stopped; start it and try again"),
        ("timeout expired", "start the database server, or correct the URL"),
        ("password", "correct user and password in the URL"),
        ("lock timeout", "another process held it for long; try again"),
        ("locked", "another process held it for long; try again"),
        ("not a database", "the file is something else; choose another place with --ledger"),
        ("malformed", "the file is damaged; restore a backup, or move it away and sync again"),
        *((mark, "close some connections, or raise max_connections on the server") for mark in FULL),
        ("connection to server", "start the database server, or correct the URL"),
    ):
        if mark in said:
            return f"{said}; {remedy}"
    return said
