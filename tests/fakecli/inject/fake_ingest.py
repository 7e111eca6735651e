"""Stands for ``spendmeter.ingest`` where a test needs to see, or to break, what the wrapper hands over."""

import json
import os
import time
from pathlib import Path

from spendmeter.config import load
from spendmeter.errors import LedgerError
from spendmeter.runner.spool import to_json

MODE = os.environ.get("FAKE_INGEST", "")
if MODE == "import":
    raise ImportError("No module named 'sqlalchemy'")


def prepare(ledger_url, config):
    if MODE == "hang":
        time.sleep(600)


def ready(ledger_url, config):
    return None


def commit_run(ledger_url, config, run):
    load(config, ledger_url)
    if MODE == "slow":
        time.sleep(600)
    if MODE == "locked":
        raise LedgerError("ledger sqlite:///l.db is locked by another process;\n try again")
    if MODE == "crash":
        raise RuntimeError(f"cannot parse {run.observations!r} SECRET")
    path = Path(os.environ["FAKE_INGEST_OUT"], f"{run.run_id}.json")
    path.write_text(json.dumps(to_json(run)))
    return run.run_id
