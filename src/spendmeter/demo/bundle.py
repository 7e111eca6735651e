"""The bundled runs and whose they are said to be."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from spendmeter.finding import Result
from spendmeter.ingest import ingest_paths
from spendmeter.ledger import Ledger
from spendmeter.records import Tags

SAMPLE = Path(__file__).parent / "sample"
RUNS: Mapping[str, Tags] = {  # folder of SAMPLE -> tags; the runs of a resumed session in their order
    "json-subagent": Tags("developer", "T-1"),
    "json-opus": Tags("reviewer", "T-1"),
    "resume-1-base": Tags("developer", "T-2"),
    "resume-2-continue": Tags("reviewer", "T-2"),
    "resume-3-resume": Tags("developer", "T-2"),
    "max-budget-usd": Tags("heartbeat", "T-3"),
    "max-turns-1": Tags("heartbeat", "T-3"),
}


def load(ledger: Ledger) -> Result:
    """Ingests the sample the ordinary way; a second time changes nothing.

    Raises:
        LedgerError: the ledger cannot be written.
    """
    whole = Result()
    for name, tags in RUNS.items():
        done = ingest_paths(ledger, [str(SAMPLE / name)], tags=tags)
        whole.sources += done.sources
        whole.unchanged += done.unchanged
        whole.changed += done.changed
        whole.session_ids |= done.session_ids
    return whole
