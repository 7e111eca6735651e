"""``spendmeter serve``: sockets, signals, the start and the end of the daemon."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from types import FrameType

import uvicorn

from spendmeter.config import Settings
from spendmeter.errors import ConfigError
from spendmeter.ledger.engine import safe
from spendmeter.server.app import create_app
from spendmeter.server.book import Book
from spendmeter.server.guard import is_loopback
from spendmeter.server.workers import Workers, exports

GRACE_S = 5  # for answers under way when the daemon is told to end
KEEP_ALIVE_S = 75  # longer than scrape intervals are, so that a scraper keeps its connection
BACKLOG = 512
log = logging.getLogger("spendmeter.server")


def run(
    settings: Settings, host: str = "127.0.0.1", port: int = 9464, *, config: str | None = None, hosts: Sequence[str] = (), note: str = ""
) -> None:
    """Serves the ledger until SIGTERM or SIGINT.

    Args:
        port: 0 takes a free one; the message at the start names it.
        config: the settings file, for runs of dead wrappers that are recovered meanwhile.
        hosts: names besides loopback ones that the Host header may hold where *host* is a loopback address; those in
            SPENDMETER_SERVE_HOSTS, with commas between, are added.
        note: a line for the message at the start.

    Raises:
        LedgerError: the ledger cannot be opened or read.
        ConfigError: the address cannot be listened on, or an OTEL_* setting makes no sense.
    """
    _log_to_stderr()
    book = Book(settings)
    with contextlib.closing(book):
        book.check()
        if exports():
            _try_exporter(book)
        sockets = _listen(host, port)
        workers = Workers(book, config)
        names = _allowed(host, hosts)
        server = _Server(_uvicorn(create_app(book, workers, names)))
        workers.start()
        try:
            _say_hello(settings, host, sockets[0].getsockname()[1], note)
            server.run(sockets=sockets)
        finally:
            workers.stop()


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


def _uvicorn(app: object) -> uvicorn.Config:
    return uvicorn.Config(
        app, log_config=None, access_log=False, server_header=False, proxy_headers=False, ws="none", timeout_keep_alive=KEEP_ALIVE_S,  # type: ignore[arg-type]
        timeout_graceful_shutdown=GRACE_S, lifespan="on",
    )  # fmt: skip


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
    made = socket.socket(family, socket.SOCK_STREAM)
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


def _say_hello(settings: Settings, host: str, port: int, note: str) -> None:
    shown = f"[{host}]" if ":" in host else host
    url = f"http://{shown}:{port}"
    zero_s = settings.zero_first_s
    first = f"at 0 for {zero_s:g} s first" if zero_s else "with their value at once (zero_first is 0)"
    lines = [
        f"spendmeter: serving {safe(settings.ledger)}",
        f"  page     {url}/",
        f"  metrics  {url}/metrics",
        f"  API      {url}/api/v1/openapi.json",
        f"  new series are shown {first}; OTLP is {'on' if exports() else 'off: no endpoint is set'}",
    ]
    if not is_loopback(host):
        lines.append(f"  anyone who can reach {host} can read all of it: there is no password")
    sys.stderr.write("\n".join([*lines, *([f"  {note}"] if note else [])]) + "\n")
    sys.stderr.flush()


def _log_to_stderr() -> None:
    """Warnings of ours and errors of uvicorn's, a line each; no requests."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("spendmeter: %(message)s"))
    for name, level in (("spendmeter", logging.WARNING), ("uvicorn", logging.ERROR)):
        logger = logging.getLogger(name)
        logger.setLevel(level)
        logger.propagate = False
        if not logger.handlers:
            logger.addHandler(handler)
