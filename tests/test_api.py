"""The Python API: never raises for bad input, says what is unknown, counts once."""

from __future__ import annotations

import json
import os
import subprocess
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import spendmeter
from spendmeter.config import Settings
from spendmeter.ledger import Ledger
from tests.replay import clone
from tests.runs import ROOT, Chain

FAKE = Path(__file__).parent / "fakecli" / "claude"
CASES = ROOT / "claude"


def test_a_log_text_gives_the_runs_record(ledger: Ledger) -> None:
    """Text, bytes and path of one log give the same exact record, and counting it thrice counts it once."""
    path = CASES / "json-subagent" / "stdout"
    want = Chain("claude", (path.parent,)).truth(least=True)
    forms = (path.read_text(), path.read_bytes(), path, str(path))
    seen = [spendmeter.record(x, agent="developer", task="T-1", ledger=ledger) for x in forms]
    assert seen == seen[:1] * 4
    got = seen[0]
    assert (got.tokens_in, got.tokens_out, got.cache_read) == (want["tokens_in"], want["tokens_out"], want["cache_read"])
    assert got.cache_write == want["cache_write_5m"] + want["cache_write_1h"]
    assert (got.cost_source, got.outcome, got.cli, got.ok) == ("reported", "ok", "claude", True)
    assert got.cost_usd == Decimal(str(json.loads(path.read_text())["total_cost_usd"])).quantize(Decimal("1e-9"))
    assert json.loads(json.dumps(got.as_dict()))["cost_usd"] == str(got.cost_usd)


def test_a_resumed_runs_record_is_its_own_share(ledger: Ledger) -> None:
    """The record of a resumed run holds what this run used, not what the session has used."""
    seen = [spendmeter.record(CASES / name / "stdout", task=name, ledger=ledger) for name in ("resume-1-base", "resume-2-continue")]
    assert [s.tokens_out for s in seen] == [366, 221]


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (None, "source is a NoneType; give the log as str or bytes, or its path"),
        (7, "source is a int"),
        (Path("/nowhere/at/all"), "cannot be read"),
    ],
)
def test_a_wrong_source_is_an_error_in_the_record(ledger: Ledger, source: object, says: str) -> None:
    """What is no source does not raise; the record says what to give."""
    got = spendmeter.record(source, agent="a", ledger=ledger)
    assert got.error is not None
    assert says in got.error
    assert got.tokens_in is None


@pytest.mark.parametrize("text", ["", "just words", "{}", "[" * 100_000, '{"type":"result"}', "\ud800 lone surrogate", "\0" * 1000])
def test_a_text_without_usage_says_so(ledger: Ledger, text: str) -> None:
    """No usage is unknown usage, not 0 and not an error."""
    got = spendmeter.record(text, agent="a", task="t", ledger=ledger)
    assert (got.error, got.tokens_in, got.cost_usd) == (None, None, None)
    assert got.unknown == ("usage: nothing in the source tells it",)


@hypothesis_settings(max_examples=30, deadline=None)
@given(data=st.binary(max_size=300))
def test_any_bytes_give_a_record(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    """No bytes raise."""
    folder = tmp_path_factory.mktemp("any")
    ledger = Ledger(Settings(f"sqlite:///{folder / 'l.db'}"))
    assert spendmeter.record(data, ledger=ledger).error is None
    ledger.close()


@pytest.mark.parametrize("url", ["nonsense", "sqlite:////proc/nowhere/l.db", "mysql://user:secret@h/d"])
def test_a_ledger_that_cannot_be_had_is_an_error_in_the_record(url: str) -> None:
    """Neither a bad URL nor a place that cannot be written raises, and no password is told."""
    got = spendmeter.record("x", ledger=url)
    assert got.error is not None
    assert "secret" not in got.error


def test_metered_sees_what_was_started_inside(tmp_path: Path) -> None:
    """A CLI that is started with ``env=m.env`` is metered from its session files, in text mode too."""
    case = clone(CASES / "text-tool", tmp_path / "case", "m")
    env = os.environ | {"FAKE_CASE": str(case), "CLAUDE_CONFIG_DIR": str(tmp_path / "config")}
    with spendmeter.metered(agent="dev", task="T-2", ledger=f"sqlite:///{tmp_path / 'l.db'}", cwd=tmp_path, env=env) as m:
        assert m.env["TRACEPARENT"].startswith("00-")
        assert "spendmeter.task=T-2" in m.env["OTEL_RESOURCE_ATTRIBUTES"]
        subprocess.run([FAKE, "-p", "x"], env=m.env, cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)
    want = Chain("claude", (CASES / "text-tool",)).truth(least=True)
    assert m.record.error is None
    assert (m.record.tokens_in, m.record.tokens_out) == (want["tokens_in"], want["tokens_out"])


def test_metered_takes_what_was_printed(tmp_path: Path) -> None:
    """Output handed over in pieces is enough where no file was written."""
    text = (CASES / "json-tool" / "stdout").read_text()
    with spendmeter.metered(task="T-3", ledger=f"sqlite:///{tmp_path / 'l.db'}") as m:
        for at in range(0, len(text), 100):
            m.output(text[at : at + 100])
    assert m.record.tokens_out == Chain("claude", (CASES / "json-tool",)).truth(least=True)["tokens_out"]


def test_metered_lets_the_blocks_own_error_through(tmp_path: Path) -> None:
    """Metering hides nothing: an exception of the block arrives, the record says that nothing was seen."""
    m = spendmeter.metered(task="T-4", ledger=f"sqlite:///{tmp_path / 'l.db'}")
    with pytest.raises(KeyError), m:
        raise KeyError("mine")
    assert m.record.unknown


def test_metered_never_breaks_the_block() -> None:
    """A ledger that cannot be written is an error in the record, after the block has run."""
    done = False
    with spendmeter.metered(task="T-5", ledger="sqlite:////proc/nowhere/l.db") as m:
        done = True
    assert done
    assert m.record.error is not None
