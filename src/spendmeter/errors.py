"""The errors a caller can meet.

::

    SpendmeterError
    ├── ParseError    a source is not what its format says
    ├── PriceError    a price table is malformed
    ├── LedgerError   the ledger cannot be opened, read or written
    │   └── UnfitError   nor ever, with what was given to it
    ├── ConfigError   a setting is missing, unknown or out of range
    ├── ExportError   an endpoint refused what was sent
    └── RemoteError   a central daemon did not take a run
        └── RunRefusedError   and never will

A message says where, what was seen, what was expected and what to do. It never holds text of a prompt or an answer.
"""

from __future__ import annotations


class SpendmeterError(Exception):
    """Base of every error that spendmeter raises on purpose."""


class ParseError(SpendmeterError):
    """A source is not what its format says; names source, line and length, never the text."""


class PriceError(SpendmeterError):
    """A price table is malformed; names file, entry, value and expectation."""


class LedgerError(SpendmeterError):
    """The ledger cannot be opened, read or written; names its URL without a password."""


class UnfitError(LedgerError):
    """What was to be kept or looked for is more than a database takes; another try changes nothing."""


class ConfigError(SpendmeterError):
    """A setting is missing, unknown or out of range; names where it was set."""


class ExportError(SpendmeterError):
    """An OTLP endpoint could not take what was sent; the spool keeps it."""


class RemoteError(SpendmeterError):
    """A central daemon did not take a run; names its URL, what it answered and what to do. The run is kept."""


class RunRefusedError(RemoteError, ValueError):
    """A central daemon will never take a run as it is. The run is set aside."""
