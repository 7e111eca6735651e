"""The daemon: /metrics, the API and the web page over one ledger, and the threads that keep it going."""

from spendmeter.server.daemon import run

__all__ = ["run"]
