"""``spendmeter doctor`` where this host's runs go to a central daemon: does it answer, is the token good, does anything wait?"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

from spendmeter.cli.checks import OK, PROBLEM, WARNING, Finding
from spendmeter.runner import admission, central
from spendmeter.runner.args import UsageError, daemon_url
from spendmeter.runner.spool import pending_runs, spool_dirs

LIMIT_S = 5.0


def remote(told: str, env: Mapping[str, str]) -> Iterator[Finding]:
    """How it is with the daemon at *told*.

    Raises:
        RemoteError, ConfigError: it takes no runs of this host.
    """
    try:
        url = daemon_url("SPENDMETER_REMOTE", told)
    except UsageError as e:
        yield Finding(PROBLEM, "remote", *str(e).split("; ", 1))
        return
    yield from _waiting(url, env)
    central.ask(url, "DELETE", f"{admission.PATH}/{secrets.token_hex(16)}", None, LIMIT_S)  # of no run: nothing changes
    yield Finding(OK, "remote", f"{url} answers and takes runs from here; budgets are its own")


def _waiting(url: str, env: Mapping[str, str]) -> Iterator[Finding]:
    """Runs that have ended and are still here."""
    folders = [folder for folder in spool_dirs(url, env) if folder.is_dir()]
    found = []
    for pending in (p for folder in folders for p in pending_runs(folder)):
        found.append(pending.path.stat().st_mtime)
        pending.release()
    if found:
        since = datetime.fromtimestamp(min(found), UTC)
        yield Finding(
            WARNING, "remote", f"runs that wait for {url}: {len(found)}, the oldest since {since:%Y-%m-%d %H:%M} UTC", "spendmeter send"
        )
    aside: list[Path] = sorted(p for folder in folders for p in folder.glob("*.unreadable"))
    if aside:
        remedy = "update the daemon, rename it back to *.json and run spendmeter send"
        yield Finding(WARNING, "remote", f"runs that were refused or cannot be read: {len(aside)}, such as {aside[0]}", remedy)
