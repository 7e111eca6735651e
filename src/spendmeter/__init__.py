"""Exact metering of coding-agent CLIs: ``record``, ``metered``, ``prometheus.LedgerCollector``.

The public names are loaded on first use, so that ``import spendmeter`` costs nothing on a wrapper's hot path.
"""

from __future__ import annotations

TYPE_CHECKING = False  # importing typing takes longer than all of this
__version__ = "0.1.0"
__all__ = ["RunRecord", "metered", "record"]

if TYPE_CHECKING:
    from spendmeter.api import RunRecord, metered, record


def __getattr__(name: str) -> object:
    if name in __all__:
        from spendmeter import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
