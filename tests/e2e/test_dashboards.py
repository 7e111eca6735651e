"""Every query of the dashboards, asked of a real Prometheus that has scraped a real daemon fed with captured runs."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import procs
import pytest
from tests import otlp_receiver
from tests.dashboards import Dashboard, Query, dashboards
from tests.runs import ROOT

import spendmeter
from spendmeter import rules
from spendmeter.budgets.file import load
from spendmeter.config import Settings
from spendmeter.grafana_src import alerting
from spendmeter.ledger import Ledger
from spendmeter.rules import files

pytestmark = pytest.mark.e2e
STEP_S = 15
Labels = tuple[tuple[str, str], ...]
Answer = dict[Labels, float]

BEFORE = [  # cli, captured run, agent, task
    ("claude", "json-opus", "developer", "T-1"),
    ("claude", "json-subagent-haiku", "reviewer", "T-1"),
    ("claude", "json-unknown-model", "developer", "T-2"),
    ("claude", "err-529", "reviewer", "T-2"),
    ("codex", "json-tool", "porter", "T-3"),
]
PLANNED = "json-opus"  # its files are read too: they tell the calls
AFTER = [
    ("claude", "json-tool", "developer", "T-2"),
    ("gemini", "json-tool", "porter", "T-3"),
    ("claude", "max-turns-1", "reviewer", "T-4"),
]
BUDGETS = """
budgets:
  - {name: month, period: month, limit_usd: 1}
  - {name: small, period: total, limit_usd: 0.01, match: {agent: developer}}
  - {name: tokens, period: month, limit_tokens: 100000, least_tokens: 1}
  - {name: per-task, per: task, period: 1h, limit_runs: 1}
"""
PLAN = """
name: book
estimates:
  - {workflow: draft, calls: 20, prompt_tokens: 150000, total_tokens: 180000, cost_usd: 0.90}
"""
NOTHING_TO_SHOW = {  # query -> why it has no answer here
    "budgets / Budgets in runs / E": "a rolling period has no end to foretell",
}


@dataclass
class World:
    """A daemon and a Prometheus that scraped it while runs came in, before and after the daemon was down."""

    ledger: Ledger
    prometheus: procs.Prometheus
    budgets: Path
    began: float
    between: float = 0.0
    at: float = 0.0  # all is there
    before: Mapping[str, list[dict[str, Any]]] | None = None
    after: Mapping[str, list[dict[str, Any]]] | None = None

    def record(self, runs: list[tuple[str, str, str, str]]) -> None:
        for cli, case, agent, task in runs:
            folder = ROOT / cli / case
            planned = {"plan": "book", "workflow": "draft"} if case == PLANNED else {}
            for source in [(folder / "stdout").read_text(), *(sorted(folder.rglob("*.jsonl")) if planned else [])]:
                spendmeter.record(source, agent=agent, task=task, ledger=self.ledger, attrs=planned)

    def report(self) -> dict[str, list[dict[str, Any]]]:
        """What ``spendmeter report`` says, by each of the tags."""
        out = {}
        for by in ("agent", "task", "model", "outcome", "agent,task", "agent,model"):
            command = [sys.executable, "-m", "spendmeter", "--ledger", self.ledger.settings.ledger, "report", "--by", by, "--json"]
            out[by] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)["rows"]
        return out

    def wait(self) -> float:
        """Until Prometheus has every counter as the ledger has it; returns the time."""
        procs.wait_for(self._all_there, "Prometheus has all")
        return time.time()

    def _all_there(self) -> bool:
        wanted = procs.counters(self.ledger)
        shown = {name: self.prometheus.query(name) for name in {name for name, _ in wanted}}
        return all(shown[name].get(labels) == value for (name, labels), value in wanted.items())

    def ask(self, board: Dashboard, query: Query, chosen: Mapping[str, str], since: float | None = None) -> Answer:
        """What Grafana would be answered for the time since *since* (the beginning); of a graph its points added up, as in its legend."""
        start = since or self.began
        length = math.ceil((self.at - start) / STEP_S) * STEP_S
        expr = board.filled(query.expr, chosen, range_s=length, step_s=STEP_S)
        form: dict[str, Any] = {"query": expr, "time": start + length}
        if query.ranged:  # each point tells of the step before it
            form = {"query": expr, "start": start + STEP_S, "end": start + length, "step": STEP_S}
        body = self.get(f"query{'_range' if query.ranged else ''}", form)
        return {_labels(x["metric"]): _sum(x) for x in body["result"]}

    def get(self, path: str, form: Mapping[str, Any]) -> Any:
        return json.loads(procs.get(f"{self.prometheus.url}/api/v1/{path}?{urllib.parse.urlencode(form)}"))["data"]


def _labels(metric: Mapping[str, str]) -> Labels:
    return tuple(sorted((k, v) for k, v in metric.items() if k not in ("job", "instance", "__name__")))


def _sum(series: Mapping[str, Any]) -> float:
    numbers = [float(v) for _, v in series.get("values") or [series["value"]]]
    return sum(x for x in numbers if not math.isnan(x))  # which is no point of a graph


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    tmp = tmp_path_factory.mktemp("dashboards")
    (tmp / "plan.yaml").write_text(PLAN)
    budgets = tmp / "budgets.yaml"
    budgets.write_text(BUDGETS)
    settings = Settings(f"sqlite:///{tmp / 'ledger.db'}", zero_first_s=3, settle_s=1)
    with _endpoint() as endpoint:
        env = os.environ | {
            "HOME": str(tmp), "SPENDMETER_LEDGER": settings.ledger, "SPENDMETER_METRICS_ZERO_FIRST": "3", "SPENDMETER_METRICS_SETTLE": "1",
            "SPENDMETER_BUDGETS": str(budgets), "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        }  # fmt: skip
        rules_file = _rules(tmp, budgets)
        subprocess.run(
            [sys.executable, "-m", "spendmeter", "plan", "record", str(tmp / "plan.yaml")], env=env, check=True, capture_output=True
        )
        daemon = procs.Daemon(env, tmp / "serve.log")
        daemon.start()
        began = time.time()
        more = ["--enable-feature=exemplar-storage"]
        prometheus = procs.Prometheus(tmp, f"127.0.0.1:{daemon.port}", rules=rules_file, more=more)
        with procs.stopping(daemon, prometheus):
            made = World(Ledger(settings), prometheus, budgets, began)
            _fill(made, daemon)
            yield made
            made.ledger.close()


def _fill(world: World, daemon: procs.Daemon) -> None:
    world.record(BEFORE)
    spendmeter.record('{"type": "result", "usage":', ledger=world.ledger)  # a torn line
    world.between = world.wait()
    world.before = world.report()
    daemon.kill()
    world.record(AFTER)
    time.sleep(2)  # Prometheus notes that there is no daemon
    daemon.start()
    world.at = world.wait()
    world.after = world.report()
    procs.wait_for(lambda: world.prometheus.query('ALERTS{alertstate="firing"}'), "an alert fires")
    world.at = time.time()


def _rules(folder: Path, budgets: Path) -> Path:
    """The rules of the budgets; alerts fire at once."""
    made = rules.build(load(budgets))
    for group in made["groups"]:
        for rule in group["rules"]:
            rule.pop("for", None)
    (folder / "rules.yml").write_text(files.text(made))
    return folder / "rules.yml"


@contextmanager
def _endpoint() -> Iterator[str]:
    yield from otlp_receiver.http(otlp_receiver.Receiver())


def chosen(board: Dashboard) -> dict[str, str]:
    """For variables that have no All."""
    values = {"agent": "developer", "task": "T-2", "plan": "book"}
    return {name: values[name] for name, v in board.variables.items() if v["type"] == "query" and not v["includeAll"]}


def test_every_query_is_answered(world: World) -> None:
    """Each query of each panel and annotation parses and has an answer, but for those that are named with their reason."""
    empty = set()
    for board in dashboards().values():
        for query in board.queries():
            if not world.ask(board, query, chosen(board)):
                empty.add(str(query))
    assert empty == set(NOTHING_TO_SHOW)


def test_every_variable_offers_what_there_is(world: World) -> None:
    """Agents, tasks, models, budgets, plans and daemons can be chosen as they are in the ledger."""
    rows = world.after or {}
    wanted = {
        "agent": {r["agent"] for r in rows["agent"]}, "task": {r["task"] for r in rows["task"] if r["tokens_out"]},
        "model": {r["model"] for r in rows["model"] if r["tokens_out"]}, "cli": {"claude", "codex", "gemini"},
        "budget": {"month", "small", "tokens", "per-task"}, "plan": {"book"}, "job": {"spendmeter"},
    }  # fmt: skip
    seen = set()
    for board in dashboards().values():
        for name in [n for n, v in board.variables.items() if v["type"] == "query"]:
            selector, label = board.lists(name)
            match = {"match[]": board.filled(selector, {}), "start": world.began, "end": world.at}
            offered = set(world.get(f"label/{label}/values", match))
            assert offered == wanted.get(name, offered), (board.uid, name)
            assert offered
            seen.add(name)
    assert wanted.keys() < seen


Total = Callable[[list[dict[str, Any]]], dict[Labels, float]]


def by(label: str, field: str, only: Mapping[str, str] | None = None) -> tuple[str, Total]:
    """What the report has in *field* for each value of *label*; "" is all of it."""
    keys = ",".join(sorted({label or "agent", *(only or {})}))

    def total(rows: list[dict[str, Any]]) -> dict[Labels, float]:
        out: dict[Labels, float] = {}
        for row in rows:
            if all(row[k] == v for k, v in (only or {}).items()) and (value := _field(row, field)):
                key = ((label, row[label]),) if label else ()
                out[key] = out.get(key, 0) + value
        return out

    return keys, total


def _field(row: Mapping[str, Any], field: str) -> float:
    if field == "tokens":
        return sum(row[x] or 0 for x in ("tokens_in", "tokens_out", "cache_read", "cache_write"))
    return float(row[field] or 0)


DEVELOPER, TASK = {"agent": "developer"}, {"task": "T-2"}
EXPECTED = {  # query -> the report's answer
    "overview / Last hour / A": by("", "cost_usd"),
    "overview / Today / A": by("", "cost_usd"),
    "overview / This month / A": by("", "cost_usd"),
    "overview / Cost by agent / A": by("agent", "cost_usd"),
    "overview / Cost by model / A": by("model", "cost_usd"),
    "overview / Top agents / A": by("agent", "cost_usd"),
    "overview / Top agents / B": by("agent", "runs"),
    "overview / Top agents / D": by("agent", "tokens"),
    "overview / Top tasks / A": by("task", "cost_usd"),
    "overview / Top tasks / B": by("task", "tokens"),
    "overview / Tokens by model / A": by("model", "tokens"),
    "overview / Runs by outcome / A": by("outcome", "runs"),
    "agent / Cost / A": by("", "cost_usd", DEVELOPER),
    "agent / Runs / A": by("", "runs", DEVELOPER),
    "agent / Cost by model / A": by("model", "cost_usd", DEVELOPER),
    "agent / Models / A": by("model", "cost_usd", DEVELOPER),
    "agent / Models / B": by("model", "tokens_in", DEVELOPER),
    "agent / Models / C": by("model", "cache_read", DEVELOPER),
    "agent / Models / D": by("model", "cache_write", DEVELOPER),
    "agent / Models / E": by("model", "tokens_out", DEVELOPER),
    "agent / Tasks / A": by("task", "cost_usd", DEVELOPER),
    "agent / Tasks / B": by("task", "tokens", DEVELOPER),
    "task / Cost in the range / A": by("", "cost_usd", TASK),
    "task / Cost by agent / A": by("agent", "cost_usd", TASK),
    "cache / Read / A": by("", "cache_read"),
    "cache / Written / A": by("", "cache_write"),
    "cache / Models / A": by("model", "tokens_in"),
    "cache / Models / C": by("model", "cache_write_5m"),
    "cache / Models / D": by("model", "cache_write_1h"),
    "operations / Tokens without a price / A": by("", "unpriced_tokens"),
}
WHOLE = {  # the same from the beginning, whatever the range
    "task / Cost so far / A": by("", "cost_usd", TASK),
    "task / Tokens so far / A": by("", "tokens", TASK),
    "task / Agents / A": by("agent", "cost_usd", TASK),
    "task / Agents / B": by("agent", "tokens_in", TASK),
    "task / Agents / C": by("agent", "cache_read", TASK),
    "task / Agents / D": by("agent", "cache_write", TASK),
    "task / Agents / E": by("agent", "tokens_out", TASK),
}


@cache
def queries() -> dict[str, tuple[Dashboard, Query]]:
    found = [(str(query), (board, query)) for board in dashboards().values() for query in board.queries()]
    assert len(found) == len(dict(found))
    return dict(found)


@pytest.mark.parametrize("name", [*EXPECTED, *WHOLE])
def test_totals_are_what_the_report_says(world: World, name: str) -> None:
    """To the last token and nano-dollar, also of runs that ended while the daemon was down; bars add up to the same."""
    board, query = queries()[name]
    keys, total = (EXPECTED | WHOLE)[name]
    got = world.ask(board, query, chosen(board))
    assert nonzero(got) == pytest.approx(total((world.after or {})[keys]), rel=1e-12)


@pytest.mark.parametrize("name", list(EXPECTED))
def test_the_parts_of_a_time_add_up(world: World, name: str) -> None:
    """From a moment at which the daemon was down, totals are what came after: nothing is lost at the edge, or counted on both sides."""
    board, query = queries()[name]
    keys, total = EXPECTED[name]
    before, after = (total((rows or {})[keys]) for rows in (world.before, world.after))
    got = world.ask(board, query, chosen(board), since=world.between + 1)
    assert nonzero(got) == pytest.approx(nonzero({k: v - before.get(k, 0) for k, v in after.items()}), rel=1e-9)


def nonzero(answer: Answer) -> Answer:
    return {labels: value for labels, value in answer.items() if abs(value) > 1e-12}


def test_shares_are_quotients_of_the_report(world: World) -> None:
    """Cost per run, failed runs, cache reads and what they save are told as the report's figures give them."""
    rows = (world.after or {})["agent"]
    all_of = {x: sum(_field(r, x) for r in rows) for x in ("cost_usd", "runs", "tokens_in", "cache_read", "cache_write", "cache_write_5m")}
    ok = next(r["runs"] for r in (world.after or {})["outcome"] if r["outcome"] == "ok")
    read = all_of["tokens_in"] + all_of["cache_read"] + all_of["cache_write"]
    hour = all_of["cache_write"] - all_of["cache_write_5m"]
    weighed = all_of["tokens_in"] + 0.1 * all_of["cache_read"] + 1.25 * all_of["cache_write_5m"] + 2 * hour
    wanted = {
        "overview / Runs not ok / A": 1 - ok / all_of["runs"],
        "cache / Cache read share / A": all_of["cache_read"] / read,
        "cache / Reads per write / A": all_of["cache_read"] / all_of["cache_write"],
        "cache / Saved by caching / A": 1 - weighed / read,
        "cache / Cost per successful run / A": all_of["cost_usd"] / ok,
    }
    got = {name: world.ask(*queries()[name], {}) for name in wanted}
    assert got == {name: {(): pytest.approx(value, rel=1e-9)} for name, value in wanted.items()}


def test_budgets_and_plans_are_as_the_ledger_has_them(world: World) -> None:
    """Spent is the report's sum; limit, rest, share and the plan's estimate beside it are the files'."""
    after = world.after or {}
    spent = sum(_field(r, "cost_usd") for r in after["agent"])
    mine = sum(_field(r, "cost_usd") for r in after["agent"] if r["agent"] == "developer")
    tokens = sum(_field(r, "tokens") for r in after["agent"])
    usd = {"month": (spent, 1.0), "small": (mine, 0.01)}
    most = max(r["runs"] for r in after["task"])
    wanted = {
        "budgets / Budgets in US dollars / A": {k: v[0] for k, v in usd.items()},
        "budgets / Budgets in US dollars / B": {k: v[1] for k, v in usd.items()},
        "budgets / Budgets in US dollars / C": {k: v[1] - v[0] for k, v in usd.items()},
        "budgets / Budgets in US dollars / F": {k: v[0] / v[1] for k, v in usd.items()},
        "budgets / Used / A": {k: v[0] / v[1] for k, v in usd.items()} | {"tokens": tokens / 100_000, "per-task": most},
        "budgets / Budgets in tokens / A": {"tokens": tokens},
        "budgets / Budgets in runs / A": {"per-task": most},
    }
    got = {name: {dict(k)["budget"]: v for k, v in world.ask(*queries()[name], {}).items()} for name in wanted}
    assert got == {name: pytest.approx(value, rel=1e-9) for name, value in wanted.items()}
    book = next(r for r in after["agent,task"] if (r["agent"], r["task"]) == ("developer", "T-1"))  # one run, which is the plan's
    plan = [world.ask(*queries()[f"task / Plan and actual / {ref}"], {"plan": "book"}) for ref in "ABCDEF"]
    figures = (0.9, _field(book, "cost_usd"), 180_000, _field(book, "tokens"), 20, book["calls"])
    assert plan == [{(("workflow", "draft"),): pytest.approx(x, rel=1e-9)} for x in figures]


def test_a_choice_narrows_what_is_shown(world: World) -> None:
    """An agent and a model that are chosen on the overview are the only ones that count; two can be chosen at once."""
    board, query = queries()["overview / Cost by model / A"]
    rows = (world.after or {})["agent,model"]
    for agents in ("reviewer", "reviewer|porter"):
        got = world.ask(board, query, {"agent": f"({agents})", "model": "claude-.+"})
        mine = [r for r in rows if r["agent"] in agents.split("|") and (r["model"] or "").startswith("claude-")]
        assert nonzero(got) == pytest.approx(by("model", "cost_usd")[1](mine), rel=1e-12)


def test_points_lead_to_the_runs(world: World) -> None:
    """The exemplars of a graph name the traces of the runs in the ledger."""
    board, query = queries()["overview / Cost by agent / A"]
    expr = board.filled(query.expr, {}, step_s=STEP_S)
    found = world.get("query_exemplars", {"query": expr, "start": world.began, "end": world.at})
    traces = {e["labels"]["trace_id"] for series in found for e in series["exemplars"]}
    with world.ledger.read() as conn:
        known = set(conn.exec_driver_sql("select trace_id from runs").scalars())
    assert traces
    assert traces <= known


def test_grafanas_alerts_say_what_prometheus_says(world: World) -> None:
    """Each alert in Grafana's form has the same series and values as the rule of Prometheus that it was made from."""
    made = rules.build(load(world.budgets))
    pairs = [
        (rule["expr"], made_of["data"][0]["model"]["expr"])
        for group, converted in zip(made["groups"], alerting.provisioned(made)["groups"], strict=True)
        for rule, made_of in zip([r for r in group["rules"] if "alert" in r], converted["rules"], strict=True)
    ]
    answers = [[_alerting(world, expr) for expr in pair] for pair in pairs]
    assert [of_grafana for _, of_grafana in answers] == [of_prometheus for of_prometheus, _ in answers]
    assert sum(bool(x) for x, _ in answers) >= 5


def _alerting(world: World, expr: str) -> Answer:
    """Series without the labels that the recording rules add; the alerts have them as their own."""
    body = world.get("query", {"query": expr, "time": world.at})
    return {
        tuple(x for x in _labels(r["metric"]) if x[0] not in ("unit", "window")): pytest.approx(float(r["value"][1]), rel=1e-9)
        for r in body["result"]
    }
