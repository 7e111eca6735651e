"""``spendmeter mcp``: one client, on standard input and output."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from functools import partial

import anyio
from mcp.server.stdio import stdio_server

from spendmeter.config import Settings
from spendmeter.runner.recover import recover
from spendmeter.runner.repo import name_here
from spendmeter.server.mcp_server.caller import of_process
from spendmeter.server.mcp_server.protocol import server
from spendmeter.server.mcp_server.source import Opening, Source


def run(settings: Settings, ledger: str | None = None, config: str | None = None) -> None:
    """Serves until standard input ends. Standard output carries the protocol and nothing else.

    Args:
        ledger: the flag by which runs of dead wrappers are found; likewise *config*.
    """
    logging.basicConfig(format="spendmeter: %(message)s", level=logging.WARNING)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a thread that waits for input would not hear of an exception
    with contextlib.closing(Opening(settings, partial(recover, ledger, config))) as opening:
        anyio.run(_serve, Source(settings, opening, of_process(os.environ, name_here())))


async def _serve(source: Source) -> None:
    made = server(source)
    async with stdio_server() as (reader, writer):
        await made.run(reader, writer, made.create_initialization_options())
