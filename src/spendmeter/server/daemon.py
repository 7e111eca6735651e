"""``spendmeter serve``: sockets, signals, the start and the end of the daemon."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import ssl
import sys
from collections.abc import Iterator, Sequence
from types import FrameType

import uvicorn

from spendmeter.config import Settings
from spendmeter.errors import ConfigError
from spendmeter.ledger.engine import safe
from spendmeter.server import tls
from spendmeter.server.app import create_app
from spendmeter.server.auth import THIS_HOST, Access, Keeper
from spendmeter.server.book import Book
from spendmeter.server.guard import is_loopback
from spendmeter.server.limits import WRITES_AT_ONCE, WRITES_PER_S, Buckets, Protocol
from spendmeter.server.workers import Workers, exports

GRACE_S = 5  # for answers under way when the daemon is told to end
KEEP_ALIVE_S = 75  # longer than scrape intervals are, so that a scraper keeps its connection
BACKLOG = 512
log = logging.getLogger("spendmeter.server")


def run(
    settings: Settings, host: str = "127.0.0.1", port: int = 9464, *, config: str | None = None, hosts: Sequence[str] = (), note: str = "",
    access: Access = THIS_HOST,
) -> None:  # fmt: skip
    """Serves the ledger until SIGTERM or SIGINT.

    Args:
        port: 0 takes a free one; the message at the start names it.
        config: the settings file, for runs of dead wrappers that are recovered meanwhile.
        hosts: names besides loopback ones that the Host header may hold where *host* is a loopback address; those in
            SPENDMETER_SERVE_HOSTS, with commas between, are added.
        note: a line for the message at the start.
        access: who may come in, and how.

    Raises:
        LedgerError: the ledger cannot be opened or read.
        ConfigError: the address cannot be listened on, an OTEL_* setting or the age of retention makes no sense, TLS files are of no
            use, or a token is needed and there is none.
    """
    _log_to_stderr()
    _check_retention(settings)
    secure = tls.context(*access.tls) if access.tls else None
    book = Book(settings)
    with contextlib.closing(book):
        book.check()
        if exports():
            _try_exporter(book)
        keeper = Keeper(book) if access.needs_token(host) else None
        if keeper:
            keeper.check()
        sockets = _listen(host, port)
        workers = Workers(book, config)
        writes = Buckets(WRITES_PER_S, WRITES_AT_ONCE) if access.beyond(host) else None
        app = create_app(book, workers, None if keeper else _allowed(host, hosts), keeper, writes)
        server = _Server(_uvicorn(app, secure, access.proxies))
        workers.start()
        try:
            _say_hello(settings, host, sockets[0].getsockname()[1], access, note)
            server.run(sockets=sockets)
        finally:
            workers.stop()


def _check_retention(settings: Settings) -> None:
    from spendmeter.ledger.retention import LEAST_S, TOO_SOON

    if settings.retention_calls_s is not None and settings.retention_calls_s < LEAST_S:
        raise ConfigError(f"[retention] calls: {TOO_SOON}")


class _Server(uvicorn.Server):
    """Ends with code 0 where uvicorn would end by the signal; a second SIGINT does not wait."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Takes SIGTERM and SIGINT while the server runs."""
        before = {number: signal.signal(number, self._end) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _end(self, number: int, _frame: FrameType | None) -> None:
        self.force_exit = self.should_exit and number == signal.SIGINT
        self.should_exit = True


def _uvicorn(app: object, secure: ssl.SSLContext | None = None, proxies: Sequence[str] = ()) -> uvicorn.Config:
    made = uvicorn.Config(
        app, log_config=None, access_log=False, server_header=False, proxy_headers=bool(proxies), forwarded_allow_ips=list(proxies),  # type: ignore[arg-type]
        ws="none", timeout_keep_alive=KEEP_ALIVE_S, timeout_graceful_shutdown=GRACE_S, lifespan="on", http=Protocol,
    )  # fmt: skip
    made.load()
    made.ssl = secure  # of its own making it would ask for a passphrase on the terminal
    return made


def _listen(host: str, port: int) -> list[socket.socket]:
    """A socket for each address of *host*, all on one port."""
    out: list[socket.socket] = []
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, address in dict.fromkeys((f, a) for f, _, _, _, a in found):
            bound = out[0].getsockname()[1] if out else port
            out.append(_bound(family, (address[0], bound, *address[2:])))
    except OSError as e:
        for made in out:
            made.close()
        raise ConfigError(_why(host, port, e)) from None
    return out


def _bound(family: int, address: tuple[object, ...]) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # by the protocol asyncio knows that it may set TCP_NODELAY
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind(address)
        made.listen(BACKLOG)
    except OSError:
        made.close()
        raise
    return made


def _why(host: str, port: int, e: OSError) -> str:
    if isinstance(e, socket.gaierror):
        return f'host "{host}" is not known; write an address of this machine, such as 127.0.0.1'
    remedy = {
        "Address already in use": "stop what listens there, or choose another port with --port",
        "Permission denied": "ports below 1024 need privileges; choose another port with --port",
        "Cannot assign requested address": "it is no address of this machine; choose another with --host",
    }.get(e.strerror or "", "choose another with --host and --port")
    return f"cannot listen on {host} port {port}: {e.strerror}; {remedy}"


def _allowed(host: str, hosts: Sequence[str]) -> list[str] | None:
    """Names for the Host header besides loopback ones; None where any will do."""
    if not is_loopback(host):
        return None
    named = os.environ.get("SPENDMETER_SERVE_HOSTS", "").split(",")
    return [n.strip() for n in (*hosts, *named) if n.strip()]


def _try_exporter(book: Book) -> None:
    """Raises now what the sending thread would only log."""
    from spendmeter.projections.export import Exporter, interval_s

    interval_s()
    Exporter(book.ledger()).close()


def _say_hello(settings: Settings, host: str, port: int, access: Access, note: str) -> None:
    shown = f"[{host}]" if ":" in host else host
    url = f"{'https' if access.tls else 'http'}://{shown}:{port}"
    zero_s = settings.zero_first_s
    first = f"at 0 for {zero_s:g} s first" if zero_s else "with their value at once (zero_first is 0)"
    lines = [
        f"spendmeter: serving {safe(settings.ledger)}",
        f"  page     {url}/",
        f"  metrics  {url}/metrics",
        f"  API      {url}/api/v1/openapi.json",
        f"  OTLP in  {url}/v1/logs, /v1/metrics, /v1/traces",
        f"  new series are shown {first}; OTLP is {'on' if exports() else 'off: no endpoint is set'}",
    ]
    sys.stderr.write("\n".join([*lines, *_doors(host, access), *([f"  {note}"] if note else [])]) + "\n")
    sys.stderr.flush()


def _doors(host: str, access: Access) -> Iterator[str]:
    """What there is to know of who can come in; nothing where it is this machine alone."""
    if access.needs_token(host):
        yield "  every request needs a token"
        if not access.tls and not access.proxies and not is_loopback(host):
            yield "  tokens cross the network in the clear: give --tls-cert and --tls-key, or stand behind a proxy with TLS (--proxy)"
    elif access.beyond(host):
        yield f"  anyone who can reach {host} can read and write all of it: no token is asked for"


def _log_to_stderr() -> None:
    """Warnings of ours and errors of uvicorn's, a line each; no requests."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("spendmeter: %(message)s"))
    handler.addFilter(lambda record: not record.getMessage().startswith("Cancel 0 "))  # an idle connection came in with the signal
    for name, level in (("spendmeter", logging.WARNING), ("uvicorn", logging.ERROR)):
        logger = logging.getLogger(name)
        logger.setLevel(level)
        logger.propagate = False
        if not logger.handlers:
            logger.addHandler(handler)
