"""Generated rules and routes: Prometheus and Alertmanager accept them, each alert fires and is silent when it should."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from spendmeter import rules
from spendmeter.budgets import Budget, Budgets, Period, Threshold
from spendmeter.budgets.file import load
from spendmeter.cli import main
from spendmeter.cli.rules import ROUTES, RULES
from spendmeter.errors import ConfigError
from spendmeter.records import NANO
from spendmeter.rules import files, spending
from tests.e2e import procs

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples" / "budgets.yaml"
GENERATED = ROOT / "deploy" / "prometheus" / "rules" / "spendmeter.yml"
CASES = sorted((ROOT / "tests" / "rules").glob("*.yml"))
HALF = (Threshold(Decimal("0.5"), "info"),)


def tool(name: str, *args: str | Path) -> str:
    """What promtool or amtool says; it must be content."""
    done = subprocess.run([procs.part(name), *map(str, args)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def alerts(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [rule for group in document["groups"] for rule in group["rules"] if "alert" in rule]


def budget(name: str = "b", kind: str = "month", **changes: Any) -> Budget:
    period = Period("rolling", length_ms=changes.pop("length_ms")) if kind == "rolling" else Period(kind)  # type: ignore[arg-type]
    return Budget(name, period, **{"unit": "usd", "limit": 100 * NANO, "thresholds": HALF} | changes)


# -- what Prometheus and Alertmanager say ------------------------------------------------------------------------------


def test_the_tools_accept_what_is_checked_in() -> None:
    """promtool takes rules (no duplicates) and configuration, amtool the routes."""
    assert "SUCCESS" in tool("promtool", "check", "rules", "--lint-fatal", GENERATED)
    tool("promtool", "check", "config", ROOT / "deploy" / "prometheus" / "prometheus.yml")
    tool("amtool", "check-config", ROOT / "deploy" / "alertmanager" / "alertmanager.yml")


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.stem)
def test_alerts_fire_and_are_silent(case: Path) -> None:
    """promtool evaluates the series of each case and finds just the alerts that the case names, with every word of theirs."""
    tool("promtool", "test", "rules", case)


def test_every_alert_has_a_silent_and_a_firing_instant() -> None:
    """Each alert of the generated file is expected at some instant, and not at another one at which its own series are there."""
    fired, silent = set(), set()
    wanted = {key(rule["alert"], rule["labels"]) for rule in alerts(yaml.safe_load(GENERATED.read_text()))}
    for name, series, expected in instants():
        firing = {key(name, e["exp_labels"]) for e in expected}
        fired |= {k for k in wanted if any(same(k, f) for f in firing)}
        silent |= {k for k in wanted if k[0] == name and of_these(k, series) and not any(same(k, f) for f in firing)}
    assert CASES
    assert wanted - fired == set()
    assert wanted - silent == set()


Key = tuple[str, frozenset[tuple[str, str]]]  # alert name, labels


def key(name: str, labels: dict[str, str]) -> Key:
    return name, frozenset(labels.items())


def same(rule: Key, alert: Key) -> bool:
    """Whether *alert*, which may have labels of its series besides, is of *rule*."""
    return rule[0] == alert[0] and rule[1] <= alert[1]


def instants() -> Iterator[tuple[str, list[str], list[dict[str, Any]]]]:
    """Every instant of the cases: alert name, input series, expected alerts."""
    for case in CASES:
        for test in yaml.safe_load(case.read_text())["tests"]:
            for instant in test["alert_rule_test"]:
                yield instant["alertname"], [s["series"] for s in test["input_series"]], instant["exp_alerts"]


def of_these(rule: Key, series: list[str]) -> bool:
    """Whether there are series of the rule's budget; an alert without one is about its only series."""
    name = dict(rule[1]).get("budget")
    return name is None or any(f'budget="{name}"' in s for s in series)


def promtool_case(folder: Path, budgets: Budgets, series: dict[str, str]) -> list[tuple[str, str]]:
    """What the alerts about thresholds say that fire after 5 minutes of *series*: (description, summary)."""
    (folder / RULES).write_text(files.text(rules.build(budgets)))
    test = {
        "interval": "1m", "input_series": [{"series": k, "values": v} for k, v in series.items()],
        "alert_rule_test": [{"eval_time": "5m", "alertname": spending.THRESHOLD, "exp_alerts": []}],
    }  # fmt: skip
    (folder / "case.yml").write_text(yaml.safe_dump({"rule_files": [RULES], "tests": [test]}))
    done = subprocess.run([procs.part("promtool"), "test", "rules", folder / "case.yml"], capture_output=True, text=True, check=False)
    return re.findall(r'description="(.*?)", runbook_url=.*?summary="(.*?)"', (done.stdout + done.stderr).partition("got:")[2])


# -- what is in them ---------------------------------------------------------------------------------------------------


def test_a_limit_of_nothing_alerts_with_the_first_cent(tmp_path: Path) -> None:
    """With a limit of 0 there is no share: 0 spent is silent, anything above fires, and there is no burn rate or forecast."""
    nothing = Budgets((budget("none", limit=0),))
    series = {'spendmeter_budget_limit_usd{budget="none"}': "0x10", 'spendmeter_budget_spent_usd{budget="none"}': "0x10"}
    assert promtool_case(tmp_path, nothing, series) == []
    series['spendmeter_budget_spent_usd{budget="none"}'] = "0.01x10"
    told = ("Spent this month: $0.01 of $0.00.", "Budget none allows nothing, and something is spent")
    assert promtool_case(tmp_path, nothing, series) == [told]
    assert [r["alert"] for r in alerts(rules.build(nothing))][:2] == [spending.THRESHOLD, spending.MISSING]


def test_text_of_users_is_told_as_it_is_written(tmp_path: Path) -> None:
    """Braces of a description are no template, and quotes of an owner break no file."""
    odd = budget(description="see {{ wiki }} and `code`", owner='o"w\\n}}{{er', per="ta`sk{{")
    series = {'spendmeter_budget_limit_usd{budget="b"}': "100x10", 'spendmeter_budget_spent_usd{budget="b"}': "60x10"}
    series['spendmeter_budget_over{budget="b"}'] = "0x10"
    said = "Spent this month by the ta`sk{{ that spent most: $60.00 of $100.00; 0 have used up theirs. see {{ wiki }} and `code`"
    assert promtool_case(tmp_path, Budgets((odd,)), series) == [(said, "Budget b: 60% of the limit is used")]
    (tmp_path / ROUTES).write_text(files.text(rules.alertmanager(Budgets((odd,)))))
    tool("amtool", "check-config", tmp_path / ROUTES)
    assert tool("amtool", "config", "routes", "test", f"--config.file={tmp_path / ROUTES}", "owner=x").strip() == "notify"


@pytest.mark.parametrize(
    ("changes", "windows"),
    [
        ({"kind": "month"}, ["1h", "6h", "1d", "3d"]),
        ({"kind": "day"}, ["15m", "30m", "1h", "2h24m"]),
        ({"kind": "rolling", "length_ms": 3_600_000}, []),
        ({"kind": "total"}, []),
        ({"kind": "month", "per": "task"}, []),
    ],
)
def test_burn_rates_are_where_they_tell_something(changes: dict[str, Any], windows: list[str]) -> None:
    """A period has windows of its size; none where a pair could only fire after the limit, where nothing ends, or per task."""
    found = alerts(rules.build(Budgets((budget(**changes),))))
    assert [r["labels"]["window"] for r in found if r["alert"] == spending.BURN] == windows


def test_the_least_that_counts_is_in_the_budgets_unit() -> None:
    """A guard in US dollars is a decimal number, one in tokens a whole one."""
    money, tokens = budget("m", least=NANO // 4), budget("t", unit="tokens", limit=10**9, least=5_000_000)
    found = {r["labels"]["budget"]: r["expr"] for r in alerts(rules.build(Budgets((money, tokens)))) if r["alert"] == spending.FORECAST}
    assert found["m"].endswith(">= 0.25")
    assert found["t"].endswith(">= 5000000")


def test_every_alert_has_its_runbook() -> None:
    """Each alert links to a section that is there, has a time to wait and a severity; each section is of an alert."""
    found = alerts(rules.build(load(EXAMPLES)))
    sections = re.findall(r"^## (\w+)$", (ROOT / rules.RUNBOOKS).read_text(), re.MULTILINE)
    assert sections == list(dict.fromkeys(r["alert"] for r in found))
    for rule in found:
        assert rule["annotations"]["runbook_url"] == f"{rules.RUNBOOKS}#{rule['alert'].lower()}"
        assert rule["for"]
        assert rule["labels"]["severity"] in ("info", "warning", "critical")


@pytest.mark.parametrize(
    ("labels", "receiver"),
    [
        (["severity=warning"], "notify"),
        (["severity=critical"], "page"),
        (["owner=engineering-leads", "severity=info"], "notify/engineering-leads"),
        (["owner=engineering-leads", "severity=critical"], "page/engineering-leads"),
    ],
)
def test_owners_and_severities_have_receivers(labels: list[str], receiver: str) -> None:
    """An alert goes to its budget's owner, else to all's, and to the pager where it is critical."""
    config = ROOT / "deploy" / "alertmanager" / "alertmanager.yml"
    assert tool("amtool", "config", "routes", "test", f"--config.file={config}", *labels).strip() == receiver


def test_no_secret_is_in_the_routes() -> None:
    """Tokens come from a file beside the configuration."""
    for made in rules.alertmanager(load(EXAMPLES))["receivers"]:
        (hook,) = made["webhook_configs"]
        assert hook["http_config"] == {"authorization": {"credentials_file": "webhook.token"}}
        assert hook["url"] == f"{rules.WEBHOOK}/{made['name']}"


# -- the command -------------------------------------------------------------------------------------------------------


def test_the_command_prints_and_writes_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is printed is what is checked in, and what --output writes; nothing else is left in the folder."""
    monkeypatch.setenv("SPENDMETER_BUDGETS", str(EXAMPLES))
    shown, routes = (CliRunner().invoke(main, ["rules", *flags]) for flags in ([], ["--alertmanager"]))
    assert (shown.exit_code, shown.stderr, shown.stdout) == (0, "", GENERATED.read_text())
    done = CliRunner().invoke(main, ["rules", "--output", str(tmp_path / "new")])
    assert done.stdout == f"wrote {tmp_path / 'new' / RULES}\nwrote {tmp_path / 'new' / ROUTES}\n"
    assert {p.name: p.read_text() for p in (tmp_path / "new").iterdir()} == {RULES: shown.stdout, ROUTES: routes.stdout}
    assert {p.stat().st_mode & 0o777 for p in (tmp_path / "new").iterdir()} == {0o644}


def test_a_check_names_what_is_not_up_to_date(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--check exits 0 over files as they are written, 1 over others or none, and writes nothing."""
    monkeypatch.setenv("SPENDMETER_BUDGETS", str(EXAMPLES))
    ask = ["rules", "--output", str(tmp_path), "--check"]
    missing = CliRunner().invoke(main, ask)
    assert (missing.exit_code, list(tmp_path.glob("*.yml"))) == (1, [])
    CliRunner().invoke(main, ["rules", "--output", str(tmp_path)])
    assert CliRunner().invoke(main, ask).exit_code == 0
    (tmp_path / RULES).write_text("groups: []\n")
    stale = CliRunner().invoke(main, ask)
    assert (stale.exit_code, stale.stdout) == (1, "")
    assert stale.stderr == f"spendmeter: {tmp_path}: not up to date: {RULES}; run spendmeter rules --output {tmp_path}\n"


def test_without_budgets_there_are_alerts_about_the_metering() -> None:
    """No budgets file is no error: it is said, and the health rules are printed."""
    done = CliRunner().invoke(main, ["rules"])
    assert done.exit_code == 0
    assert [group["name"] for group in yaml.safe_load(done.stdout)["groups"]] == ["spendmeter-health"]
    assert done.stderr.startswith("spendmeter: no budgets file is set")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("flags", [["--check"], ["--alertmanager", "--output", "x"]])
def test_flags_that_make_no_sense_are_bad_usage(flags: list[str]) -> None:
    """--check needs a folder, --alertmanager none."""
    assert CliRunner().invoke(main, ["rules", *flags]).exit_code == 2


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    """A file where a folder is wanted, or a folder where a file is: one error that names it, and nothing half written."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"file: cannot be written .*--output"):
        files.write(tmp_path / "file", {RULES: "x"})
    (tmp_path / "dir" / RULES).mkdir(parents=True)
    with pytest.raises(ConfigError, match="dir: cannot be written"):
        files.write(tmp_path / "dir", {RULES: "x"})
    assert [p.name for p in (tmp_path / "dir").iterdir()] == [RULES]
