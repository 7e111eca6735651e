"""The command line: what is read in and what is told of it, in every form."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from sqlalchemy import update

from spendmeter.config import Settings
from spendmeter.ledger import Ledger
from spendmeter.ledger import schema as t
from tests.commands import RUNS, SINGLE, call, document, done

DESIGN = ("tokens_in", "tokens_out", "cache_read", "cache_write", "reasoning", "cost_usd", "runs", "calls")

# -- reading in --------------------------------------------------------------------------------------------------------


def test_what_is_ingested_is_reported(filled: None) -> None:
    """Tags, tokens, cost; the shape of design.md section 6; twice changes nothing."""
    found = document("report", "--by", "agent,task")
    assert list(found) == ["rows", "total"]
    assert all(list(r)[:2] == ["agent", "task"] and list(r)[2:10] == list(DESIGN) for r in found["rows"])
    row = next(r for r in found["rows"] if r["agent"] == "developer")
    assert [row[k] for k in DESIGN] == [1007, 111, 20013, 310, 0, "0.01206165", 1, None]
    again = document("ingest", "--agent", "developer", "--task", "SHOP-1", "--attr", "plan=book", str(SINGLE / "stdout"))
    assert (again["sources"], again["unchanged"]) == (0, 1)
    assert document("report", "--by", "agent,task") == found


def test_the_files_truth_is_the_reports_total() -> None:
    """What the model server billed."""
    done("sync", "--home", str(SINGLE / "home"))
    billed = json.loads((SINGLE / "truth.json").read_text())["calls"][0]["usage"]
    total = document("report", "--by", "model")["total"]
    assert {k: total[k] for k in billed if k in total} == {k: v for k, v in billed.items() if k in total}
    assert total["calls"] == 1


def test_standard_input_is_a_source() -> None:
    """Its name is -."""
    done("ingest", "--agent", "a", "-", given=(SINGLE / "stdout").read_bytes())
    assert document("report", "--by", "agent")["rows"][0]["tokens_in"] == 1007


def test_a_folder_is_a_source() -> None:
    """Everything in it that any CLI wrote; the rest is named on standard error."""
    result = call("ingest", str(SINGLE))
    assert result.exit_code == 0
    assert "truth.json: holds no usage that we know" in result.stderr
    assert document("report", "--by", "cli")["rows"][0]["tokens_in"] == 1007


def test_tags_may_stand_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """SPENDMETER_AGENT and SPENDMETER_TASK, as for run; a flag goes before."""
    monkeypatch.setenv("SPENDMETER_AGENT", "nightly")
    monkeypatch.setenv("SPENDMETER_TASK", "T-9")
    done("ingest", "--task", "T-1", str(SINGLE / "stdout"))
    assert [r["agent"] + r["task"] for r in document("report", "--by", "agent,task")["rows"]] == ["nightlyT-1"]


def test_parse_prints_observations_and_touches_no_ledger(tmp_path: Path) -> None:
    """One JSON object a line, kind first, usage as an object, unknown as null; no text of the conversation."""
    lines = [json.loads(x) for x in done("parse", str(SINGLE)).splitlines()]
    assert {x["kind"] for x in lines} >= {"call", "level", "finish", "moment", "context"}
    assert all(next(iter(x)) == "kind" for x in lines)
    call_ = next(x for x in lines if x["kind"] == "call")
    assert call_["usage"] == {
        "tokens_in": 1007, "cache_read": 20013, "cache_write_5m": 217, "cache_write_1h": 93, "tokens_out": 111, "reasoning": 0,
        "web_searches": None, "cost_usd": None,
    } | {"web_searches": call_["usage"]["web_searches"]}  # fmt: skip
    assert "MAIN-TASK" not in done("parse", str(SINGLE))
    assert not (tmp_path / "home" / ".local").exists()
    assert done("parse", "-", given=(SINGLE / "stdout").read_bytes()) == done("parse", str(SINGLE / "stdout"))


@pytest.mark.parametrize("folder", sorted(RUNS.iterdir()), ids=lambda p: p.name)
def test_everything_that_was_captured_can_be_parsed(folder: Path) -> None:
    """Each line is one JSON object."""
    for line in done("parse", "--cli", "claude", str(folder)).splitlines():
        assert isinstance(json.loads(line), dict)


def test_parse_goes_on_after_a_file_that_is_not_there() -> None:
    """And its exit code tells."""
    result = call("parse", "/nope", str(SINGLE / "stdout"))
    assert (result.exit_code, result.stderr) == (1, "spendmeter: /nope: no such file or folder; check the path\n")
    assert result.stdout


# -- looking -----------------------------------------------------------------------------------------------------------


def test_reports_in_every_form(filled: None) -> None:
    """Text in a pipe, CSV and JSON tell the same."""
    text = done("report", "--by", "agent").splitlines()
    assert text[0].split() == ["agent", "runs", "calls", "tokens_in", "cache_read", "cache_write", "tokens_out", "reasoning", "cost_usd"]
    assert text[-1].startswith("total")
    rows = document("report", "--by", "agent")["rows"]
    assert [x.split()[0] for x in text[1:-1]] == [r["agent"] for r in rows]
    assert [x.split(",")[0] for x in done("report", "--by", "agent", "--csv").splitlines()[1:]] == [r["agent"] for r in rows]


def test_reports_can_be_cut(filled: None) -> None:
    """By window, agent, task, tag; several --by add up."""
    assert document("report", "--agent", "developer")["total"]["runs"] == 1
    assert document("report", "--task", "SHOP-1")["total"]["runs"] == 2
    assert document("report", "--attr", "plan=book")["total"]["runs"] == 1
    assert document("report", "--since", "2026-11-21", "--until", "2026-11-21")["total"]["runs"] == 0
    assert list(document("report", "--by", "agent", "--by", "attr:plan")["rows"][0])[:2] == ["agent", "attr:plan"]
    assert document("report", "--by", "day", "--timezone", "Asia/Tokyo", "--cli", "claude")["rows"][0]["day"].startswith("2026-11-2")


def test_an_empty_report_says_what_to_do(filled: None) -> None:
    """On standard error, so that a pipe stays empty; JSON has a total of nothing."""
    result = call("report", "--agent", "nobody")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "No usage matches; the ledger holds 3 runs" in result.stderr
    fresh = call("--ledger", f"sqlite:///{os.environ['HOME']}/other.db", "report")
    assert "spendmeter sync" in fresh.stderr
    assert document("report", "--agent", "nobody")["total"]["cost_usd"] is None


def test_the_finish_comment(filled: None) -> None:
    """For the last run, or one that is named."""
    session = json.loads((SINGLE / "stdout").read_text())["session_id"]
    assert done("summary", "--run", session) == "✅ Developer done · 1.0k in / 111 out · $0.01 · 20.3k cached\n"
    assert done("summary", "--run", session, "--lang", "ru").startswith("✅ Developer: готово · 1,0")
    assert re.fullmatch(r"\S+ \S+ .* · .* in / .* out · .*\n", done("summary", "--run", "last"))
    told = document("summary", "--run", session)
    assert (told["agent"], told["cost_usd"], told["text"][:11]) == ("developer", "0.01206165", "✅ Developer")


def test_the_task_comment(filled: None) -> None:
    """Markdown, or JSON with the same text; an unknown task names near ones."""
    text = done("summary", "--task", "SHOP-1")
    assert text.startswith("### SHOP-1: what it took\n\n| Agent | Runs |")
    told = document("summary", "--task", "SHOP-1")
    assert told["text"].rstrip() == text.rstrip()
    assert [a["agent"] for a in told["agents"]] == ["reviewer", "developer"]
    result = call("summary", "--task", "SHOP-11")
    assert (result.exit_code, result.stderr) == (1, 'spendmeter: task "SHOP-11" is not in the ledger; did you mean SHOP-1?\n')


def test_prices_of_a_model_on_a_day() -> None:
    """USD per million tokens, long contexts apart; an unknown model names near ones; without a model all."""
    told = document("prices", "claude-sonnet-4-5", "--at", "2026-11-01")
    assert told["at"] == "2026-11-01"
    assert told["models"][0]["bands"][0]["usd_per_mtok"]["input"] == "3"
    assert done("prices", "claude-sonnet-4-5").splitlines()[1].split()[:3] == ["claude-sonnet-4-5", "3", "15"]
    result = call("prices", "claude-sonet-4-5")
    assert result.exit_code == 1
    assert 'no price for model "claude-sonet-4-5"; did you mean claude-sonnet-4-5' in result.stderr
    assert len(document("prices")["models"]) > 500


def test_an_override_file_counts(tmp_path: Path) -> None:
    """The price that the config file names is shown as the user's own."""
    (tmp_path / "prices.yaml").write_text("prices:\n  - {match: my-model, input: 1.5, output: 2}\n")
    (tmp_path / "spendmeter.toml").write_text('[prices]\nfile = "prices.yaml"\n')
    result = call("--config", str(tmp_path / "spendmeter.toml"), "prices", "my-model", "--json")
    assert result.exit_code in (0, 1)
    assert result.exit_code == 1 or json.loads(result.stdout)["models"][0]["source"] == "override"


# -- the ledger --------------------------------------------------------------------------------------------------------


def test_the_ledger_tells_about_itself(filled: None) -> None:
    """Where it is, who it is, how large."""
    assert done("ledger", "path") == f"sqlite:///{os.environ['HOME']}/.local/share/spendmeter/ledger.db\n"
    assert call("--ledger", "postgresql://u:secret@h/x", "ledger", "path").stdout == "postgresql://u:***@h/x\n"
    assert document("ledger", "info")["sessions"] == 3
    assert "sessions   3\n" in done("ledger", "info")


def test_verify_finds_what_was_tampered_with(filled: None) -> None:
    """Exit code 1 and a line for each difference."""
    assert document("ledger", "verify") == {"ok": True, "differences": []}
    ledger = Ledger(Settings(done("ledger", "path").strip()))
    with ledger.write() as conn:
        conn.execute(update(t.entries).values(tokens_in=t.entries.c.tokens_in + 1))
    ledger.close()
    result = call("ledger", "verify")
    assert result.exit_code == 1
    assert re.search(r"^\w+ .*: stands at .*, should be .*$", result.stdout, re.MULTILINE)
    told = json.loads(call("ledger", "verify", "--json").stdout)
    assert not told["ok"]
    assert told["differences"]


def test_export_without_an_endpoint_says_so(filled: None) -> None:
    """And asks for --once."""
    assert "set OTEL_EXPORTER_OTLP_ENDPOINT" in call("export", "--once").stderr
    assert document("export", "--once")["configured"] is False
    assert call("export").exit_code == 2
