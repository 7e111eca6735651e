"""Shared fixtures: a ledger in a temporary folder, no user's home, no user's settings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from spendmeter.config import Settings
from spendmeter.ledger import Ledger


@pytest.fixture(autouse=True)
def _own_world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test sees the user's home, ledger or OTEL settings."""
    import os

    for name in list(os.environ):
        if name.startswith(("SPENDMETER_", "OTEL_", "CLAUDE_", "XDG_")) and name != "SPENDMETER_OTELCOL":
            monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(f"sqlite:///{tmp_path / 'ledger.db'}", zero_first_s=0, settle_s=0)


@pytest.fixture
def ledger(settings: Settings) -> Iterator[Ledger]:
    made = Ledger(settings)
    yield made
    made.close()
