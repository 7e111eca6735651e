"""What people and models said stays where it was: planted canaries are in nothing that spendmeter stores, sends, shows or says."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from spendmeter.parsers import read
from spendmeter.records import Skip
from tests import otlp_receiver
from tests.replay import clone
from tests.runs import ROOT

FAKE = Path(__file__).parent / "fakecli" / "claude"
CANARIES = {
    "MAIN-TASK run echo hi": "CANARY-prompt-31f0",
    "Done. n=3": "CANARY-answer-77a1",
    "Running echo.": "CANARY-answer-0c52",
    "I should echo.": "CANARY-thought-9b1d",
    "echo hi": "cat CANARY-argument-5e09.txt",
    "echo one": "CANARY-argument-81c3",
    '"stdout":"hi"': '"stdout":"CANARY-output-d2a4"',
    "Print text": "CANARY-description-10ff",
}


def spendmeter(env: dict[str, str], *args: str, stdin: str | None = None) -> bytes:
    done = subprocess.run(
        [sys.executable, "-m", "spendmeter", *args], env=env, input=(stdin or "").encode(), capture_output=True, check=False
    )
    return done.stdout + done.stderr


@pytest.mark.parametrize("case", ["json-tool", "stream-json-tool", "stream-json-partial", "kill-sigterm-stream-json", "text-tool"])
def test_no_canary_leaves_the_sources(tmp_path: Path, case: str) -> None:
    """Canaries in prompts, answers, thoughts, arguments, file names and outputs are nowhere in ledger, exports, pages or messages."""
    copy = clone(ROOT / "claude" / case, tmp_path / "case", "p", CANARIES)
    planted = b"".join(p.read_bytes() for p in copy.rglob("*") if p.is_file())
    assert sum(c.encode() in planted for c in ("CANARY-prompt-31f0", "CANARY-argument-5e09", "CANARY-thought-9b1d")) >= 2
    receiver = otlp_receiver.Receiver()
    data = tmp_path / "data"
    seen = b""
    with contextlib.contextmanager(otlp_receiver.http)(receiver) as endpoint:
        env = os.environ | {
            "XDG_DATA_HOME": str(data),
            "XDG_STATE_HOME": str(data / "state"),
            "FAKE_CASE": str(copy),
            "CLAUDE_CONFIG_DIR": str(tmp_path / "config"),
            "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
            "SPENDMETER_METRICS_ZERO_FIRST": "0",
            "SPENDMETER_METRICS_SETTLE": "0",
        }
        ran = subprocess.run(
            [sys.executable, "-m", "spendmeter", "run", "--agent", "a", "--task", "t", "--", str(FAKE), "-p", "CANARY-prompt-31f0"],
            env=env,
            capture_output=True,
            check=True,
        )
        assert ran.stdout == (copy / "stdout").read_bytes()
        seen += ran.stderr
        broken = tmp_path / "broken.log"
        broken.write_text((copy / "stdout").read_text() + '\n{"type":"result","CANARY-broken": \n{"type":"assistant" CANARY-broken')
        for args in (
            ("ingest", "--agent", "a", "--task", "t", "--json", str(broken), str(copy)),
            ("sync", "--home", str(copy / "home")),
            ("report",),
            ("report", "--by", "session,task,model", "--json"),
            ("summary", "--run", "last"),
            ("summary", "--task", "t"),
            ("export", "--once"),
            ("doctor", "--json"),
            ("doctor", "--sources", "--since", "2026-01-01", "--json"),
            ("ledger", "verify"),
            ("parse", str(broken)),
            ("ingest", str(tmp_path / "missing")),
            ("ingest", "-"),
        ):
            seen += spendmeter(env, *args, stdin=broken.read_text())
    sent = repr(receiver.spans()) + repr(receiver.logs()) + repr(receiver.metrics())
    assert "spendmeter" in sent
    kept = b"".join(p.read_bytes() for p in data.rglob("*") if p.is_file())
    assert kept
    assert b"CANARY" not in kept
    assert "CANARY" not in sent
    assert b"CANARY" not in seen
    assert b"CANARY" not in page(data, env)


def page(data: Path, env: dict[str, str]) -> bytes:
    """What /metrics shows."""
    from spendmeter.config import load
    from spendmeter.ledger import Ledger
    from spendmeter.ledger.exposition import exposition
    from spendmeter.projections.prometheus import render

    ledger = Ledger(load(env=env))
    try:
        body = render(exposition(ledger, "scrape"), "")[1]
    finally:
        ledger.close()
    assert b"spendmeter_tokens_in_total" in body
    return bytes(body)


def test_a_skip_names_line_and_length_never_text() -> None:
    """A line that cannot be read becomes a skip with its reason, line and length."""
    line = b'{"type":"result","secret":"CANARY" oops}'
    assert read(io.BytesIO(b"ok\n" + line + b"\n"), None, "x.log")[0] == [Skip("x.log", "not JSON", 2, len(line))]
