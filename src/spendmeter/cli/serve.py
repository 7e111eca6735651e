"""``spendmeter serve``."""

from __future__ import annotations

import ipaddress
from pathlib import Path

import click

from spendmeter.cli.app import App, pass_app
from spendmeter.errors import ConfigError

_EXTRA = {"fastapi", "jinja2", "starlette", "uvicorn"}
_FILE = click.Path(path_type=Path)


def _addresses(_ctx: click.Context, _param: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    for value in values:
        try:
            ipaddress.ip_network(value)
        except ValueError:
            raise click.BadParameter(f'"{value}" is not an address or a network; write 10.0.0.7 or 10.0.0.0/24') from None
    return values


@click.command("serve")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=9464, show_default=True, help="Port to listen on; 0 takes a free one.")
@click.option("--require-token", is_flag=True, help="Ask for tokens on a loopback address too.")
@click.option("--insecure-no-token", is_flag=True, help="Ask for none beyond loopback: whoever reaches it may read and write.")
@click.option("--tls-cert", metavar="FILE", type=_FILE, help="Serve https with this certificate (PEM, with its chain),")
@click.option("--tls-key", metavar="FILE", type=_FILE, help="and this private key (PEM).")
@click.option("--proxy", metavar="ADDRESS", multiple=True, callback=_addresses,
              help="Take client and scheme from X-Forwarded-* of this address; may be given many times.")  # fmt: skip
@pass_app
def command(
    app: App, host: str, port: int, require_token: bool, insecure_no_token: bool, tls_cert: Path | None, tls_key: Path | None,
    proxy: tuple[str, ...],
) -> None:  # fmt: skip
    """Run the daemon: /metrics, API, web page, OTLP in and out.

    It listens to this host alone unless --host says otherwise. Beyond it, and behind a proxy, every request needs a token
    (spendmeter token create).
    """
    if require_token and insecure_no_token:
        raise click.UsageError("--require-token and --insecure-no-token contradict each other; give one of them")
    if (tls_cert is None) != (tls_key is None):
        raise click.UsageError("--tls-cert and --tls-key belong together; give both")
    try:
        from spendmeter.server import run
        from spendmeter.server.auth import Access
    except ModuleNotFoundError as e:
        if (e.name or "").partition(".")[0] in _EXTRA:
            raise ConfigError(f"serve needs {e.name}; install spendmeter[server]") from None
        raise
    with app.ledger(needs_recovery=True):
        pass  # opens it and finishes what dead wrappers left, before anything is shown
    files = (tls_cert, tls_key) if tls_cert and tls_key else None
    run(app.settings, host, port, config=app.flags["config"], access=Access(require_token, insecure_no_token, files, proxy))
