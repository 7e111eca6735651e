"""The daemon: /metrics, the API, MCP and the web page over one ledger, and the threads that keep it going."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spendmeter.server.daemon import run

__all__ = ["run"]


def __getattr__(name: str) -> Any:
    """``run``, loaded when it is asked for: the MCP server on stdio needs modules from here, and no FastAPI."""
    if name != "run":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from spendmeter.server.daemon import run

    return run
