"""From a finished run to whoever is told: a real daemon, a real Prometheus, a real Alertmanager, a webhook.

The day ends when the test says so: its time zone is one whose midnight is soon. Processes, clocks and usage are real.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import procs
import pytest
import yaml
from tests.replay import clone
from tests.runs import ROOT

from spendmeter import rules
from spendmeter.budgets.file import load
from spendmeter.rules import files
from spendmeter.rules.routing import TOKEN_FILE

pytestmark = pytest.mark.e2e
EXAMPLES = Path(__file__).parents[2] / "examples" / "budgets.yaml"
DAY_S = 86_400
LEAD_S = 20  # until midnight, once the daemon is about to start again
TOKEN = "only-in-a-file"
BUDGETS = """
budgets:
  - name: today
    match: {agent: night-shift}
    period: day
    timezone: Test/Soon
    limit_usd: 0.07   # two runs of $0.0369999
    thresholds: [0.5, {at: 0.9, severity: critical}]
    owner: team-a
    least_usd: 1      # no burn-rate alert
    description: What the night shift may use.
  - {name: spree, period: month, limit_usd: 1, least_usd: 0.01, thresholds: []}
"""
_TODAY = {"alertname": "SpendmeterBudgetThreshold", "budget": "today", "owner": "team-a", "unit": "usd"}
LOWER, HIGHER = _TODAY | {"severity": "info", "threshold": "0.5"}, _TODAY | {"severity": "critical", "threshold": "0.9"}


class Receiver:
    """A webhook that keeps what it was sent: (path, alert), in order."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, dict[str, Any]]] = []
        self.tokens: set[str] = set()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                receiver.tokens.add(self.headers["authorization"])
                receiver.sent += [(self.path, alert) for alert in body["alerts"]]
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Keeps quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def told(self, status: str, labels: Mapping[str, str]) -> list[tuple[str, dict[str, Any]]]:
        """What came about one alert."""
        return [(path, a) for path, a in self.sent if a["status"] == status and a["labels"] == labels]

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.stop()


@pytest.fixture
def budgets(tmp_path: Path) -> Path:
    path = tmp_path / "budgets.yaml"
    path.write_text(BUDGETS)
    return path


@pytest.fixture
def env(tmp_path: Path, budgets: Path) -> dict[str, str]:
    """Of every process; the time zone must be there before the budgets are read."""
    midnight(tmp_path, 3600)
    zones = {"PYTHONTZPATH": os.pathsep.join([str(tmp_path / "zoneinfo"), "/usr/share/zoneinfo"])}
    ledger = {"SPENDMETER_LEDGER": f"sqlite:///{tmp_path / 'ledger.db'}", "SPENDMETER_BUDGETS": str(budgets)}
    return os.environ | zones | ledger | {"SPENDMETER_METRICS_SETTLE": "0", "SPENDMETER_METRICS_ZERO_FIRST": "2"}


def midnight(folder: Path, lead_s: int) -> float:
    """Makes the time zone Test/Soon, whose next midnight is in *lead_s*; returns it in seconds since the epoch.

    Source:
        RFC 8536: a TZif file of version 1 with one offset.
    """
    at_s = int(time.time()) + lead_s
    offset = -at_s % DAY_S
    offset -= DAY_S if offset > DAY_S // 2 else 0
    path = folder / "zoneinfo" / "Test" / "Soon"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"TZif" + bytes(16) + struct.pack(">6l", 0, 0, 0, 0, 1, 4) + struct.pack(">lbB", offset, 0, 0) + b"SOO\0")
    return at_s


def generated(folder: Path, env: Mapping[str, str], receiver: Receiver) -> tuple[Path, Path]:
    """What ``spendmeter rules`` wrote, with waiting times for people with less patience: (rules, Alertmanager's configuration)."""
    spendmeter(env, "rules", "--output", str(folder), "--webhook", receiver.url)
    (folder / TOKEN_FILE).write_text(TOKEN)
    made = yaml.safe_load((folder / "spendmeter.yml").read_text())
    for rule in made["groups"][0]["rules"]:
        if rule.get("alert", "").endswith(("Threshold", "Burn")):
            rule["for"] = "1s"
    (folder / "spendmeter.yml").write_text(files.text(made))
    config = yaml.safe_load((folder / "alertmanager.yml").read_text())
    config["route"] |= {"group_wait": "1s", "group_interval": "1s"}
    (folder / "alertmanager.yml").write_text(files.text(config))
    return folder / "spendmeter.yml", folder / "alertmanager.yml"


def spendmeter(env: Mapping[str, str], *args: str) -> None:
    subprocess.run([sys.executable, "-m", "spendmeter", *args], env=env, check=True, capture_output=True)


def feed(folder: Path, env: Mapping[str, str], name: str) -> None:
    """One captured run, as it is printed now."""
    case = clone(ROOT / "claude" / "json-tool", folder / name, name)
    spendmeter(env, "ingest", "--agent", "night-shift", "--task", "T-1", str(case / "stdout"))


def test_a_threshold_is_told_and_ends_with_its_day(tmp_path: Path, env: dict[str, str], receiver: Receiver) -> None:
    """Each threshold reaches its owner's receiver once, the burn rate too; a kill -9 adds nothing; at midnight the alert is resolved."""
    rule_file, config = generated(tmp_path / "rules", env, receiver)
    alertmanager, daemon = procs.Alertmanager(tmp_path, config), procs.Daemon(env, tmp_path / "serve.log")
    prometheus = procs.AlertingPrometheus(tmp_path, f"127.0.0.1:{daemon.port}", rule_file, alertmanager)
    with procs.stopping(daemon, prometheus, alertmanager):
        procs.wait_for(prometheus.evaluated, "the rules are evaluated")
        daemon.start()
        feed(tmp_path, env, "first")
        procs.wait_for(lambda: receiver.told("firing", LOWER), "half of the budget is told")
        feed(tmp_path, env, "second")
        procs.wait_for(lambda: receiver.told("firing", HIGHER), "nine tenths of the budget are told")
        daemon.kill()
        time.sleep(2)
        daemon.start()
        time.sleep(3)
        check_told(receiver)
        daemon.kill()
        end_s = midnight(tmp_path, LEAD_S)
        daemon.start()
        procs.wait_for(lambda: receiver.told("resolved", HIGHER), "a new day ends the alert")
        assert time.time() > end_s
        assert prometheus.query('spendmeter_budget_spent_usd{budget="today"}') == {(("budget", "today"),): 0.0}
        assert [a["labels"]["alertname"] for _, a in receiver.sent if a["status"] == "firing"].count("SpendmeterBudgetThreshold") == 2
        assert receiver.tokens == {f"Bearer {TOKEN}"}


def check_told(receiver: Receiver) -> None:
    """Nobody was told twice, or told that it is over; the words hold the numbers."""
    assert not [a for _, a in receiver.sent if a["status"] != "firing"]
    (lower_path, lower), (higher_path, higher) = *receiver.told("firing", LOWER), *receiver.told("firing", HIGHER)
    assert (lower_path, higher_path) == ("/notify/team-a", "/page/team-a")
    assert lower["annotations"]["summary"] == "Budget today: 52.86% of the limit is used"
    assert higher["annotations"]["description"] == "Spent today: $0.07 of $0.07. What the night shift may use."
    assert higher["annotations"]["runbook_url"] == "docs/runbooks/alerts.md#spendmeterbudgetthreshold"
    burning = {(path, a["labels"]["severity"], a["labels"]["window"]) for path, a in receiver.sent if a["labels"]["budget"] == "spree"}
    assert burning == {("/page", "critical", "1h"), ("/page", "critical", "6h")}


def test_a_quiet_day_is_quiet(tmp_path: Path, env: dict[str, str], receiver: Receiver) -> None:
    """With every rule of the examples and no spending nothing fires or is about to, and a kill -9 of the daemon changes nothing."""
    env["SPENDMETER_BUDGETS"] = str(EXAMPLES)
    rule_file, config = generated(tmp_path / "rules", env, receiver)
    alertmanager, daemon = procs.Alertmanager(tmp_path, config), procs.Daemon(env, tmp_path / "serve.log")
    prometheus = procs.AlertingPrometheus(tmp_path, f"127.0.0.1:{daemon.port}", rule_file, alertmanager)
    with procs.stopping(daemon, prometheus, alertmanager):
        daemon.start()
        procs.wait_for(prometheus.evaluated, "the rules are evaluated")
        procs.wait_for(lambda: prometheus.query("count(spendmeter_budget_over)") == {(): 7.0}, "every budget is scraped")
        procs.wait_for(lambda: prometheus.query("ALERTS") == {}, "no alert is even pending")
        daemon.kill()
        procs.wait_for(lambda: prometheus.query("ALERTS") != {}, "Prometheus has missed the daemon")
        daemon.start()
        procs.wait_for(lambda: prometheus.query("ALERTS") == {}, "no alert is pending again")
        time.sleep(3)
        assert prometheus.query("ALERTS") == {}
        assert prometheus.query('count_over_time(ALERTS{alertstate="firing"}[1h])') == {}
        assert receiver.sent == []


def alert(name: str, **labels: str) -> dict[str, str]:
    return {"alertname": f"Spendmeter{name}"} | labels


LOUD = [
    alert("BudgetThreshold", budget="a", severity="critical", threshold="1"),
    alert("BudgetThreshold", budget="b", severity="warning", threshold="0.8"),
    alert("BudgetBurn", budget="c", severity="critical", window="1h"),
    alert("ExportFailing", signal="traces", severity="warning"),
    alert("BudgetBurn", budget="b", severity="warning", window="3d"),
    alert("BudgetForecast", budget="d", severity="warning"),
    alert("ExportBacklog", signal="logs", severity="warning"),
    alert("TargetDown", severity="warning"),
]
QUIET = [
    alert("BudgetBurn", budget="a", severity="critical", window="1h"),
    alert("BudgetForecast", budget="a", severity="warning"),
    alert("BudgetThreshold", budget="a", severity="warning", threshold="0.8"),
    alert("BudgetThreshold", budget="b", severity="info", threshold="0.5"),
    alert("BudgetMissing", budget="c", severity="warning"),
    alert("ExportBacklog", signal="traces", severity="warning"),
]


def test_only_the_worst_is_told(tmp_path: Path) -> None:
    """Alertmanager holds back what a worse alert of the same budget tells, and everything of ours while there is no data."""
    config = tmp_path / "alertmanager.yml"
    config.write_text(files.text(rules.alertmanager(load(EXAMPLES))))
    (tmp_path / TOKEN_FILE).write_text(TOKEN)
    alertmanager = procs.Alertmanager(tmp_path, config)
    with procs.stopping(alertmanager):
        alertmanager.post([*LOUD, *QUIET])
        assert inhibited(alertmanager) == names(QUIET)
        others = [alert("Down", severity="critical"), {"alertname": "NodeDown", "severity": "critical"}]
        alertmanager.post(others)
        assert inhibited(alertmanager) == names([*LOUD, *QUIET])
        assert len(alertmanager.alerts()) == len([*LOUD, *QUIET, *others])


def inhibited(alertmanager: procs.Alertmanager) -> list[str]:
    return names([a["labels"] for a in alertmanager.alerts() if a["status"]["inhibitedBy"]])


def names(alerts: list[dict[str, str]]) -> list[str]:
    return sorted(json.dumps(a, sort_keys=True) for a in alerts)
