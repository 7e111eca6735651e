"""MCP: the ledger as tools for agents, on stdio (``spendmeter mcp``) and over HTTP (``/mcp`` of the daemon)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spendmeter.server.book import Book

if TYPE_CHECKING:
    from spendmeter.server.mcp_server.endpoint import Door

SDK = {"mcp", "mcp_types"}  # top-level modules of the MCP SDK


def door(book: Book) -> Door | None:
    """The endpoint for HTTP; None where the SDK is not installed, or is older than 2."""
    try:
        from spendmeter.server.mcp_server.endpoint import Door
    except ModuleNotFoundError as e:
        if (e.name or "").partition(".")[0] in SDK:
            return None
        raise
    return Door(book)
