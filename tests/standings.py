"""Budgets made in place or read from a file, and where they stand in a ledger."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import jsonschema

from spendmeter.budgets import Budget, Budgets, Period, Subject, Threshold
from spendmeter.budgets.schema import json_schema
from spendmeter.ledger import Ledger
from spendmeter.ledger.budgeting import State, states
from tests.made import NOON

MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000
TOTAL, TODAY, MONTH = Period("total"), Period("day"), Period("month")
HALF, MOST, ALL = (Threshold(Decimal(at), severity) for at, severity in (("0.5", "info"), ("0.8", "warning"), ("1", "critical")))
SCHEMA = jsonschema.Draft202012Validator(json_schema())


def budget(name: str = "b", period: Period = TOTAL, unit: str = "tokens", limit: int = 100, **more: Any) -> Budget:
    return Budget(name, period, unit, limit, **({"thresholds": (HALF, MOST, ALL)} | more))  # type: ignore[arg-type]


def ms(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


def standing(ledger: Ledger, *budgets: Budget, at: int = NOON, subject: Subject | None = None) -> list[State]:
    return states(ledger, Budgets(budgets), at, subject)


def written(tmp_path: Path, text: str | bytes) -> Path:
    """A budgets.yaml that holds *text*."""
    path = tmp_path / "budgets.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path
