"""``spendmeter doctor``: what it looks at, what it warns of, what it does not show."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, update

from spendmeter.config import Settings
from spendmeter.ledger import Ledger
from spendmeter.ledger import schema as t
from tests.commands import call, document, done, on_terminal


def levels(told: Any) -> dict[str, str]:
    return {c["name"]: c["level"] for c in told["checks"]}


def test_doctor_looks_at_everything(filled: None, tmp_path: Path) -> None:
    """A ledger in order: no problem, exit code 0."""
    (home := Path(os.environ["HOME"]) / ".claude" / "projects" / "x").mkdir(parents=True)
    (home / "s.jsonl").write_text("")
    told = document("doctor")
    assert told["ok"]
    assert set(levels(told)) >= {
        "spendmeter", "settings", "prices", "ledger", "writing", "journal", "counters", "export", "skipped", "unpriced", "cost drift",
        "disk", "pending runs", "sessions", "OTLP",
    }  # fmt: skip
    assert all(c["remedy"] for c in told["checks"] if c["level"] != "ok")
    assert "sessions" in done("doctor")


def test_doctor_makes_no_ledger() -> None:
    """One that is not there yet is no problem, and stays away."""
    assert levels(document("doctor"))["ledger"] == "ok"
    assert not (Path(os.environ["HOME"]) / ".local").exists()


def test_doctor_shows_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the ledger's password nor the endpoint's; a ledger that cannot be reached is a problem."""
    monkeypatch.setenv("SPENDMETER_LEDGER", "postgresql://u:hush-1@127.0.0.1:1/x")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://u:hush-2@h:4318/?key=hush-3")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=hush-4")
    result = call("doctor", "--json")
    assert result.exit_code == 1
    assert "hush" not in result.output
    assert levels(json.loads(result.stdout))["ledger"] == "problem"
    assert "http://h:4318" in result.stdout


@pytest.mark.parametrize(
    ("name", "value"), [("SPENDMETER_METRICS_SETTLE", "soon"), ("SPENDMETER_CONFIG", "/nope.toml"), ("SPENDMETER_LEDGER", "nonsense")]
)
def test_doctor_names_a_bad_setting(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """A problem with its remedy; the other checks go on."""
    monkeypatch.setenv(name, value)
    result = call("doctor")
    assert result.exit_code == 1
    assert re.search(r"^problem +(settings|ledger) .* -> ", result.stdout, re.MULTILINE)
    assert "OTLP" in result.stdout


def test_doctor_warns_of_what_is_not_well(filled: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Skips, unpriced models, drift, sessions that do not settle, a spool that waits: warnings with remedies, exit code 0."""
    ledger = Ledger(Settings(done("ledger", "path").strip()))
    with ledger.write() as conn:
        conn.execute(insert(t.skips).values(id="x", source="jsonl", reason="not JSON", at_ms=1))
        conn.execute(update(t.entries).values(unpriced_tokens=7, listed_nusd=t.entries.c.listed_nusd * 2))
        conn.execute(update(t.sessions).values(settle_at_ms=1))
        conn.execute(insert(t.spool).values(session_id=1, run_key="x", print="x", traced=False, logged=False))
    ledger.close()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    told = document("doctor")
    found = levels(told)
    assert {n for n in found if found[n] == "warning"} >= {"skipped", "unpriced", "cost drift", "counters", "export"}
    assert "claude -50.0%" in next(c["detail"] for c in told["checks"] if c["name"] == "cost drift")


def test_doctor_is_good_to_look_at(filled: None) -> None:
    """A mark, a name, a detail; remedies below; a count last."""
    seen = on_terminal(["doctor"], {"TERM": "xterm-256color", "COLUMNS": "100"})
    assert "✓" in seen
    assert "→" in seen
    assert "warning" in seen.splitlines()[-1]
