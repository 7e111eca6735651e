"""The dashboards as files: whole, sound, and made of metrics that exist. What their queries answer is in e2e/test_dashboards.py."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from spendmeter import metrics as m
from spendmeter import rules
from spendmeter.budgets.file import load
from spendmeter.cli import main
from spendmeter.grafana_src import FIRST_PANEL, PROMETHEUS_UID, TEMPO_UID, alerting, cache, shipped
from spendmeter.grafana_src.files import texts
from spendmeter.grafana_src.sdk import JSONEncoder, model
from spendmeter.prices import PriceTable
from spendmeter.rules.spending import BURNING
from tests.dashboards import FOLDER, Dashboard, dashboards

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "budgets.yaml"
BOARDS = dashboards()
NAMES = ("overview", "agent", "task", "budgets", "cache", "operations")
RAW = {"Cost build-up"}  # panels that show a counter as it is
_SELECTOR = re.compile(r"(?<![\w\"$])([a-zA-Z_][\w:]*)\{([^}]*)\}(\[?)")

each = pytest.mark.parametrize("board", [pytest.param(b, id=uid) for uid, b in BOARDS.items()])


def test_there_is_a_dashboard_for_each_question() -> None:
    """Their uids follow from their names, are those of their files, and are all that is shipped."""
    assert {f"spendmeter-{name}" for name in NAMES} == set(BOARDS)
    assert all(b.path.stem == uid for uid, b in BOARDS.items())


def test_nothing_else_lies_in_the_folder() -> None:
    """Every file under grafana/ is written by its generator, but for the linter's settings."""
    found = {str(p.relative_to(FOLDER)) for p in FOLDER.rglob("*") if p.is_file()}
    assert found == {*texts(load(EXAMPLE)), "dashboards/.lint"}


@each
def test_it_is_of_the_classic_schema(board: Dashboard) -> None:
    """Read into the types that Grafana's SDK generates from its schema and written again it is the same: no field is unknown."""
    again = json.loads(json.dumps(model.Dashboard.from_json(json.loads(board.path.read_text())), cls=JSONEncoder))
    for shown in (*again["links"], *again["annotations"]["list"]):
        del shown["placement"]  # the SDK's own
    assert again == board.body
    assert board.body["schemaVersion"] >= 36
    assert {"uid", "title", "description", "tags", "time", "refresh", "timezone", "templating", "panels"} < board.body.keys()
    assert "spendmeter" in board.body["tags"]


@each
def test_panels_are_told_apart(board: Dashboard) -> None:
    """Numbers and titles are unique; alerts lead to the first panel, which is no row."""
    ids = Counter(p["id"] for p in board.all_panels())
    titles = Counter(p["title"] for p in board.panels())
    assert max(ids.values()) == 1
    assert max(titles.values()) == 1
    assert FIRST_PANEL in {p["id"] for p in board.panels()}


@each
def test_panels_fill_the_grid(board: Dashboard) -> None:
    """No two overlap, none leaves the 24 columns, and no row has a hole."""
    cells = Counter(cell for panel in board.all_panels() for cell in _cells(panel["gridPos"]))
    assert max(cells.values()) == 1
    by_row = Counter(y for _, y in cells)
    assert set(by_row.values()) == {24}
    assert all(0 <= x < 24 for x, _ in cells)


def _cells(at: dict[str, int]) -> Iterator[tuple[int, int]]:
    return ((x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"]))


@each
def test_every_panel_says_what_it_shows(board: Dashboard) -> None:
    """Each has a title, a description in sentences, and a unit that Grafana knows."""
    from grafana_foundation_sdk.models import units

    known = {v for v in vars(units).values() if isinstance(v, str)}
    for panel in board.panels():
        assert panel["title"]
        assert panel["description"].endswith("."), panel["title"]
        if panel["type"] == "text":
            continue
        assert panel["fieldConfig"]["defaults"]["unit"] in known, panel["title"]
        told = [p["value"] for o in panel["fieldConfig"]["overrides"] for p in o["properties"] if p["id"] == "unit"]
        assert set(told) <= known


@each
def test_data_sources_are_chosen_not_written(board: Dashboard) -> None:
    """Panels, queries, variables and annotations ask the source that is chosen above; a dashboard fits any Grafana."""
    sources = [x["datasource"] for x in _with_source(board.body)]
    offered = {f"${{{name}}}": v["query"] for name, v in board.variables.items() if v["type"] == "datasource"}
    assert sources
    assert all(offered[s["uid"]] == s["type"] for s in sources)


def _with_source(part: Any) -> Iterator[dict[str, Any]]:
    if isinstance(part, dict):
        if "datasource" in part:
            yield part
        part = list(part.values())
    if isinstance(part, list):
        for inner in part:
            yield from _with_source(inner)


@each
def test_every_metric_exists(board: Dashboard) -> None:
    """Queries and variables name only metrics of metrics.py, what the rules record, and Prometheus' alerts."""
    histograms = {f"{x.sample}_{s}" for x in m.ALL.values() if x.kind == "histogram" for s in ("bucket", "sum", "count")}
    known = {x.sample for x in m.ALL.values()} | histograms | {BURNING, "ALERTS"}
    asked = [q.expr for q in board.queries()] + [board.lists(n)[0] for n, v in board.variables.items() if v["type"] == "query"]
    names = {n for expr in asked for n in re.findall(r"\b(?:\w+:)?spendmeter_[\w:]+|\bALERTS\b", expr)}
    assert names
    assert names <= known


def test_every_metric_is_shown() -> None:
    """No metric is without a panel."""
    asked = " ".join(q.expr for b in BOARDS.values() for q in b.queries())
    assert {x.sample for x in m.ALL.values() if x.sample not in asked} == set()


@each
def test_variables_are_declared_and_used(board: Dashboard) -> None:
    """Every variable that is written is there, and every one that is there is written somewhere."""
    own = {**board.body, "templating": {}, "links": []}
    text = json.dumps(own) + " ".join(v["query"]["query"] for v in board.variables.values() if v["type"] == "query")
    used = {name for name in re.findall(r"\$\{?(\w+)", text) if not name.startswith("__")}
    assert used == set(board.variables)


@each
def test_one_choice_is_a_text_and_many_are_a_pattern(board: Dashboard) -> None:
    """A variable of one value is compared by =, others by =~: Grafana escapes what is chosen accordingly."""
    for query in board.queries():
        for label, operator, name in re.findall(r'(\w+)(=~?)"\$(\w+)"', query.expr):
            assert operator == ("=~" if board.variables[name]["multi"] else "="), f"{query}: {label}"


@each
def test_links_lead_to_dashboards(board: Dashboard) -> None:
    """Every link names a dashboard that is there, and a variable that it has; time and data source go along."""
    links = re.findall(r'"url": "([^"]+)"', json.dumps(board.body))
    for url in links:
        found = re.fullmatch(r"/d/([\w-]+)\?(.*)", url)
        assert found, url
        target = BOARDS[found[1]]
        assert set(re.findall(r"var-(\w+)=", found[2])) <= target.variables.keys()
        assert "${__url_time_range}" in found[2]
        assert "${prometheus_datasource:queryparam}" in found[2]
    siblings = board.body["links"][0]
    assert (siblings["includeVars"], siblings["keepTime"], siblings["tags"]) == (True, True, ["spendmeter"])


def test_some_tables_lead_on() -> None:
    """From the overview an agent's and a task's page can be opened."""
    text = json.dumps(BOARDS["spendmeter-overview"].body)
    assert "/d/spendmeter-agent?var-agent=" in text
    assert "/d/spendmeter-task?var-task=" in text


@each
def test_counters_are_never_shown_bare(board: Dashboard) -> None:
    """A counter is only read over a time, but where a panel means its value since the beginning."""
    counters = {x.sample for x in m.ALL.values() if x.kind == "counter"}
    for query in board.queries():
        for name, _, bracket in _SELECTOR.findall(query.expr):
            assert name not in counters or bracket == "[" or query.panel in RAW, str(query)


@each
def test_graphs_of_counters_ask_for_exemplars(board: Dashboard) -> None:
    """Where bars tell of counters, points lead to the traces of the runs."""
    for panel in board.panels():
        if panel["type"] == "timeseries" and panel["fieldConfig"]["defaults"]["custom"].get("drawStyle") == "bars":
            assert all(t["exemplar"] for t in panel["targets"]), panel["title"]


# -- the rules of grafana/dashboard-linter, in our own words --------------------------------------------------------------

LINT = yaml.safe_load((FOLDER / "dashboards" / ".lint").read_text())["exclusions"]


def excepted(rule: str, board: Dashboard, panel: str) -> bool:
    return any((e["dashboard"], e["panel"]) == (board.body["title"], panel) for e in LINT.get(rule, {}).get("entries", ()))


@each
def test_lint_variables(board: Dashboard) -> None:
    """template-*: sources are named after their kind, job and instance can be chosen, lists follow the time, nobody edits in the UI."""
    sources = {n: (v["query"], v["label"]) for n, v in board.variables.items() if v["type"] == "datasource"}
    assert sources == {f"{kind}_datasource": (kind, f"{kind.title()} data source") for kind, _ in sources.values()}
    for name in ("job", "instance"):
        v = board.variables[name]
        assert (v["multi"], v["includeAll"], v["allValue"], v["label"]) == (True, True, ".+", name.title())
        assert v["datasource"]["uid"] == "${prometheus_datasource}"
    assert {v["refresh"] for v in board.variables.values() if v["type"] == "query"} == {2}
    assert board.body["editable"] is False


@each
def test_lint_targets(board: Dashboard) -> None:
    """target-*: selectors take job and instance as chosen, nothing is a rate() over a fixed time, all is PromQL: but for exceptions."""
    seen = 0
    for query in board.queries():
        if query.ref == "annotation":
            continue
        for name, matchers, _ in _SELECTOR.findall(query.expr):
            seen += 1
            for label in ("job", "instance"):
                there = f'{label}=~"${label}"' in matchers
                assert there != excepted(f"target-{label}-rule", board, query.panel), f"{query}: {name}"
        assert not re.search(r"\brate\(", query.expr)
    assert seen
    other = {p["title"] for p in board.panels() for t in p.get("targets", ()) if t["datasource"]["type"] != "prometheus"}
    assert other == {p["title"] for p in board.panels() if excepted("target-promql-rule", board, p["title"])}


# -- what caching saves ---------------------------------------------------------------------------------------------------


def test_the_weights_are_those_of_the_price_table() -> None:
    """Claude's cache reads and writes cost the stated multiples of uncached input, model by model."""
    table = PriceTable.load(None)
    at_ms = 1_760_000_000_000
    rates = [table.rates(model, at_ms) for model in ("claude-opus-4-1", "claude-sonnet-4-5", "claude-haiku-4-5")]
    kinds = {"read_weight": "cache_read", "write_5m_weight": "cache_write_5m", "write_1h_weight": "cache_write_1h"}
    for rate in rates:
        assert rate is not None
        usd = rate.bands[0].usd
        assert {name: usd[kind] / usd["input"] for name, kind in kinds.items()} == {n: Decimal(w) for n, w in cache.WEIGHTS.items()}


# -- provisioning ---------------------------------------------------------------------------------------------------------


def provisioned(name: str) -> Any:
    return yaml.safe_load((FOLDER / name / "spendmeter.yml").read_text())


def test_exemplars_lead_to_the_traces() -> None:
    """The Prometheus source links an exemplar's trace_id to the Tempo source beside it."""
    sources = {s["type"]: s for s in provisioned("provisioning/datasources")["datasources"]}
    (link,) = sources["prometheus"]["jsonData"]["exemplarTraceIdDestinations"]
    assert (link["name"], link["datasourceUid"]) == ("trace_id", sources["tempo"]["uid"])
    assert (sources["prometheus"]["uid"], sources["tempo"]["uid"]) == (PROMETHEUS_UID, TEMPO_UID)


def test_each_alert_of_the_rules_is_one_of_grafana() -> None:
    """Nothing is lost; titles and uids are unique and short; no template asks Prometheus, no series is one that rules record."""
    made = rules.build(load(EXAMPLE))
    wanted = [r for g in made["groups"] for r in g["rules"] if "alert" in r]
    got = [r for g in provisioned("alerting")["groups"] for r in g["rules"]]
    assert [(r["labels"], r["for"]) for r in got] == [(r["labels"], r["for"]) for r in wanted]
    assert all(g["title"].split()[0] == w["alert"] for g, w in zip(got, wanted, strict=True))
    assert max(Counter(r["title"] for r in got).values()) == 1
    assert max(Counter(r["uid"] for r in got).values()) == 1
    for rule in got:
        assert re.fullmatch(r"[a-z0-9-]{1,40}", rule["uid"])
        assert rule["dashboardUid"] in BOARDS
        assert ":ratio" not in rule["data"][0]["model"]["expr"]
        assert not re.search(r"\| query|\$value\b", " ".join(rule["annotations"].values()))


def test_what_an_owner_wrote_stays() -> None:
    """Where a description asks Prometheus, the rest of it is kept."""
    written = [b.description for b in load(EXAMPLE).budgets if b.description]
    told = [r["annotations"].get("description", "") for g in provisioned("alerting")["groups"] for r in g["rules"]]
    assert written
    assert set(written) <= set(told)


def test_recorded_series_are_put_in_for_the_same_labels() -> None:
    """Matchers that are the rule's own labels choose it, others go into every selector of what it records."""
    recorded = [
        {"record": "a:b", "expr": "max by (x) (spendmeter_c[5m]) / spendmeter_d", "labels": {"window": "1h"}},
        {"record": "a:b", "expr": 'spendmeter_e{y="2"}', "labels": {"window": "1d"}},
    ]
    got = [alerting.inlined(expr, recorded) for expr in ('a:b{x="1", window="1h"} > 2', 'a:b{x="1", window="1d"}', "a:b", "other")]
    assert got == [
        '(max by (x) (spendmeter_c{x="1"}[5m]) / spendmeter_d{x="1"}) > 2',
        '(spendmeter_e{y="2", x="1"})',
        '(max by (x) (spendmeter_c[5m]) / spendmeter_d or spendmeter_e{y="2"})',
        "other",
    ]


def test_text_reaches_grafana_as_it_is() -> None:
    """A $ in a label would be a variable of Grafana's environment: it is doubled. In annotations it is the template's own."""
    rule = {
        "alert": "A", "expr": "x > 0", "for": "1m", "labels": {"severity": "warning", "owner": "$team"},
        "annotations": {"summary": "{{ $labels.x }} is {{ $value | humanize }}"},
    }  # fmt: skip
    (made,) = alerting.provisioned({"groups": [{"name": "g", "rules": [rule]}]})["groups"][0]["rules"]
    assert made["labels"]["owner"] == "$$team"
    assert made["annotations"] == {"summary": "{{ $labels.x }} is {{ $values.A.Value | humanize }}"}


# -- the command ----------------------------------------------------------------------------------------------------------


def run(*args: str) -> Any:
    return CliRunner().invoke(main, ["dashboards", *args])


def test_the_command_writes_what_is_shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dashboards as they are here, data sources as asked for, alerts of the budgets in force; each file is named."""
    monkeypatch.setenv("SPENDMETER_BUDGETS", str(EXAMPLE))
    done = run("--output", str(tmp_path / "g"), "--prometheus", "http://p:1", "--tempo", "http://t:2")
    assert (done.exit_code, done.stderr) == (0, "")
    written = {p: p.read_text() for p in (tmp_path / "g").rglob("*") if p.is_file()}
    assert sorted(done.stdout.split()) == sorted(["wrote", *map(str, written)] + ["wrote"] * (len(written) - 1))
    assert {p.name: t for p, t in written.items() if p.suffix == ".json"} == {b.path.name: b.path.read_text() for b in BOARDS.values()}
    sources, provider, alerts = (
        yaml.safe_load(written[tmp_path / "g" / x / "spendmeter.yml"])
        for x in ("provisioning/datasources", "provisioning/dashboards", "alerting")
    )
    assert [s["url"] for s in sources["datasources"]] == ["http://p:1", "http://t:2"]
    assert provider["providers"][0]["options"]["path"] == str(tmp_path / "g" / "dashboards")
    assert alerts == provisioned("alerting")


def test_the_command_checks(tmp_path: Path) -> None:
    """--check exits 0 on what was just written, and 1 with the names of what differs; it writes nothing."""
    run("--output", str(tmp_path))
    assert run("--output", str(tmp_path), "--check").exit_code == 0
    changed = tmp_path / "dashboards" / "spendmeter-task.json"
    changed.write_text("{}")
    done = run("--output", str(tmp_path), "--check")
    assert done.exit_code == 1
    assert "not up to date: dashboards/spendmeter-task.json; run spendmeter dashboards --output" in done.stderr
    assert changed.read_text() == "{}"


def test_the_command_says_where_it_cannot_write(tmp_path: Path) -> None:
    """A file where the folder should be is one line and exit code 1."""
    (tmp_path / "file").write_text("")
    done = run("--output", str(tmp_path / "file"))
    assert done.exit_code == 1
    assert "cannot be written" in done.stderr


def test_missing_dashboards_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken installation says so."""
    monkeypatch.setattr(shipped, "_HERE", tmp_path)
    monkeypatch.setattr(shipped, "_SOURCE", tmp_path)
    done = run("--output", str(tmp_path / "out"))
    assert done.exit_code == 1
    assert "no dashboards; they belong to the package" in done.stderr


@pytest.mark.e2e
def test_an_installed_wheel_has_them(tmp_path: Path) -> None:
    """From a wheel in an environment of its own, where the SDK cannot be imported, the command writes the same."""
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(tmp_path / "site"), str(wheel)], check=True)
    (tmp_path / "site" / "grafana_foundation_sdk.py").write_text("raise ImportError('not installed')")
    env = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    code = "import spendmeter.grafana_src.shipped as s; print(s.__file__)"
    found = subprocess.run([sys.executable, "-c", code], env=env, check=True, capture_output=True, text=True).stdout.strip()
    assert Path(found).is_relative_to(tmp_path)
    done = subprocess.run([sys.executable, "-m", "spendmeter", "dashboards", "--output", str(tmp_path / "out")], env=env, check=True)
    assert done.returncode == 0
    written = {p.name: p.read_text() for p in (tmp_path / "out" / "dashboards").iterdir()}
    assert written == {b.path.name: b.path.read_text() for b in BOARDS.values()}
