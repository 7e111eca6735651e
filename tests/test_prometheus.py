"""The /metrics page and the collector: both formats parse, say the same, and say it exactly."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_classic

from spendmeter import metrics as m
from spendmeter.ledger import Ledger, now_ms, posting
from spendmeter.ledger.exposition import exposition
from spendmeter.projections import prometheus
from spendmeter.projections.prometheus import CLASSIC, OPENMETRICS, render
from spendmeter.prometheus import LedgerCollector
from tests.feed import make_ledger, use

PROMETHEUS_2 = (  # what Prometheus 2.42 asks for
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@pytest.fixture
def shown(tmp_path: Path) -> Iterator[Ledger]:
    """A ledger with something in most families, shown at once."""
    made = make_ledger(f"sqlite:///{tmp_path / 'page.db'}", zero_first_s=0)
    at = now_ms() + 10_000
    use(made, "s1", 1000, at, duration_ms=20_000, cost_nusd=123_456_789_012_345)
    use(made, "s2", 7, at, agent='a"b\\c', task="Zürich ✓", model="unpriced", outcome="error", duration_ms=500)
    yield made
    made.close()


def samples(body: bytes, parse: Any) -> Samples:
    """(name, labels) -> value, without what differs between formats or from page to page."""
    return {
        (s.name, tuple(sorted(s.labels.items()))): s.value
        for family in parse(body.decode())
        for s in family.samples
        if not s.name.endswith("_created") and "scrape_duration" not in s.name
    }


@pytest.mark.parametrize(
    ("accept", "openmetrics"),
    [
        (None, False),
        ("", False),
        ("*/*", False),
        ("text/html", False),
        ("application/openmetrics-text", True),
        (PROMETHEUS_2, True),
        ("application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,text/plain;version=1.0.0;q=0.4,*/*;q=0.2", True),
        ("application/openmetrics-text;version=0.0.1,text/plain;q=0.5", False),
        ("text/plain;version=0.0.4;q=0.9, application/openmetrics-text;version=1.0.0;q=0.5", False),
        ("application/openmetrics-text;q=0, text/plain", False),
        ("application/openmetrics-text;q=x, text/plain", False),
    ],
)
def test_the_accept_header_chooses_the_format(ledger: Ledger, accept: str | None, openmetrics: bool) -> None:
    """OpenMetrics 1.x is written to whoever ranks it at least as high as plain text, classic text to all others."""
    kind, body = render(exposition(ledger, "scrape"), accept)
    assert kind == (OPENMETRICS if openmetrics else CLASSIC)
    assert body.endswith(b"# EOF\n") is openmetrics


def test_both_formats_parse_and_say_the_same(shown: Ledger) -> None:
    """prometheus_client's own parsers read them; HELP and TYPE come once a family, for empty families too."""
    page = exposition(shown, "scrape")
    classic, openmetrics = render(page)[1], render(page, OPENMETRICS)[1]
    assert samples(classic, parse_classic) == samples(openmetrics, parse_openmetrics)
    for metric in m.ALL.values():
        assert classic.decode().count(f"# TYPE {metric.sample} {metric.kind}\n") == 1
        assert openmetrics.decode().count(f"# TYPE {metric.prometheus} {metric.kind}\n") == 1
        assert openmetrics.decode().count(f"# HELP {metric.prometheus} ") == 1


def test_every_sample_of_the_page_comes_from_metrics_py(shown: Ledger) -> None:
    """Names and label names are the declared ones."""
    suffixes = ("", "_bucket", "_sum", "_count", "_created")
    allowed = {x.sample + s: {*x.labels} for x in m.ALL.values() for s in suffixes} | {
        f"{x.prometheus}_created": {*x.labels} for x in m.DURABLE
    }
    for family in parse_openmetrics(render(exposition(shown, "scrape"), OPENMETRICS)[1].decode()):
        for s in family.samples:
            assert {*s.labels} - {"le"} == allowed[s.name]


def test_money_is_exact(shown: Ledger) -> None:
    """Nano-USD become decimal text without rounding, in both formats."""
    line = 'spendmeter_cost_usd_total{agent="dev",cli="claude",model="m",cost_source="reported"} 123456.789012345'
    page = exposition(shown, "scrape")
    assert f"{line}\n" in render(page)[1].decode()
    assert f"{line} # " in render(page, OPENMETRICS)[1].decode()


@given(st.integers(0, 10**24))
def test_any_amount_is_exact(nusd: int) -> None:
    """What is written is the number, to the last nano-dollar and millisecond."""
    assert Decimal(prometheus.usd(nusd)) == Decimal(nusd).scaleb(-9)
    assert Decimal(prometheus.seconds(nusd)) == Decimal(nusd).scaleb(-3)
    assert not prometheus.usd(nusd).endswith(".")
    assert prometheus.usd(nusd).replace(".", "").isdigit()


@given(st.text(max_size=300))
def test_any_label_text_survives_both_formats(text: str) -> None:
    """Quotes, backslashes, line breaks, control characters, any script: one label value, the cleaned one."""
    cleaned = posting.label(text)
    labels = prometheus._labels(("agent", "task"), (cleaned, text.replace("\r", "")))
    line = f"# TYPE x_total counter\nx_total{labels} 1\n"
    (family,) = parse_classic(line)
    assert [s.labels["agent"] for s in family.samples] == [cleaned]
    (family,) = parse_openmetrics(f"# TYPE x counter\nx_total{labels} 1\n# EOF\n")
    assert [s.labels for s in family.samples] == [{"agent": cleaned, "task": text.replace("\r", "")}]


def test_histograms_are_whole(shown: Ledger) -> None:
    """Every bucket, +Inf, sum in seconds and count."""
    found = samples(render(exposition(shown, "scrape"))[1], parse_classic)
    of = {k[1][-1][1]: v for k, v in found.items() if k[0].endswith("_bucket") and dict(k[1])["agent"] == "dev"}
    edges = [*map(str, m.DURATION_BUCKETS_S), "+Inf"]
    assert of == dict.fromkeys(edges[:3], 0) | dict.fromkeys(edges[3:], 1)
    assert found["spendmeter_run_duration_seconds_sum", (("agent", "dev"), ("cli", "claude"))] == 20
    assert found["spendmeter_run_duration_seconds_count", (("agent", "dev"), ("cli", "claude"))] == 1


def test_counters_carry_the_run_that_moved_them(shown: Ledger) -> None:
    """Exemplars: trace id, task and the amount, within 128 characters, on counters that show their value."""
    use(shown, "s3", 40, now_ms() + 20_000, task="x" * 500)
    with shown.read() as conn:
        trace = conn.exec_driver_sql("select trace_id from runs where session = 's3'").scalar_one()
    families = {f.name: f for f in parse_openmetrics(render(exposition(shown, "scrape"), OPENMETRICS)[1].decode())}
    (sample,) = [s for s in families["spendmeter_tokens_in"].samples if s.labels["agent"] == "dev" and s.exemplar]
    assert sample.exemplar.labels["trace_id"] == trace
    assert (sample.value, sample.exemplar.value) == (1040, 40)
    assert sum(len(k) + len(v) for k, v in sample.exemplar.labels.items()) == 128
    assert sample.exemplar.labels["task"] == "x" * 84


def test_a_changed_exemplar_replaces_the_kept_text(shown: Ledger) -> None:
    """The text that is kept from page to page follows the ledger."""
    first, second = (render(exposition(shown, "scrape"), OPENMETRICS)[1].split(b"# TYPE spendmeter_pending") for _ in range(2))
    assert first[0] == second[0]
    use(shown, "s3", 40, now_ms() + 20_000, task="another")
    assert b'task="another"} 40 ' in render(exposition(shown, "scrape"), OPENMETRICS)[1]


def test_created_is_the_ledgers_and_can_be_switched_off(shown: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """The start of a counter is the ledger's; prometheus_client's switch leaves the samples out."""
    page = exposition(shown, "scrape")
    found = [s.value for f in parse_openmetrics(render(page, OPENMETRICS)[1].decode()) for s in f.samples if s.name.endswith("_created")]
    assert {*found} == {page.created_ms / 1000}
    monkeypatch.setenv("PROMETHEUS_DISABLE_CREATED_SERIES", "true")
    assert b"_created{" not in render(page, OPENMETRICS)[1]


def test_promtool_accepts_the_page(shown: Ledger) -> None:
    """Prometheus' own linter has nothing to say."""
    promtool = shutil.which("promtool")
    if promtool is None:
        assert not os.environ.get("CI"), "promtool is missing; install Debian's prometheus package"
        pytest.skip("promtool is missing; install Debian's prometheus package")
    done = subprocess.run([promtool, "check", "metrics"], input=render(exposition(shown, "scrape"))[1], capture_output=True, check=False)
    assert (done.returncode, (done.stdout + done.stderr).decode()) == (0, "")


def test_the_collector_says_what_the_page_says(shown: Ledger) -> None:
    """generate_latest of any registry gives our page, in both formats, up to what a float can hold."""
    registry = CollectorRegistry()
    registry.register(LedgerCollector(shown))
    page = exposition(shown, "scrape")
    assert samples(generate_latest(registry), parse_classic) == samples(render(page)[1], parse_classic)
    ours, theirs = render(page, OPENMETRICS)[1], generate_openmetrics(registry)
    assert samples(theirs, parse_openmetrics) == samples(ours, parse_openmetrics)
    exemplars = [
        {(s.name, *sorted(s.labels.items())): s.exemplar for f in parse_openmetrics(body.decode()) for s in f.samples if s.exemplar}
        for body in (ours, theirs)
    ]
    assert exemplars[0]
    assert exemplars[0] == exemplars[1]


def test_the_collector_keeps_zero_first(tmp_path: Path) -> None:
    """A page counts as sent when the next one is asked for; its time is that of the page."""
    ledger = make_ledger(f"sqlite:///{tmp_path / 'z.db'}", zero_first_s=0.3, settle_s=0)
    use(ledger, "s1", 1000, now_ms())
    registry = CollectorRegistry()
    collector = LedgerCollector(ledger)
    registry.register(collector)
    labels = {"agent": "dev", "cli": "claude", "model": "m"}
    assert registry.get_sample_value("spendmeter_tokens_in_total", labels) == 0
    assert collector._last is not None
    until = collector._last.at_ms + 300
    assert registry.get_sample_value("spendmeter_tokens_in_total", labels) == 0
    while now_ms() < until:
        pass
    assert registry.get_sample_value("spendmeter_tokens_in_total", labels) == 1000
    ledger.close()


def test_describe_touches_no_values(shown: Ledger) -> None:
    """A registry learns the names without reading the ledger, and refuses a second collector of them."""
    collector = LedgerCollector(shown)
    assert {x.name for x in collector.describe()} == {x.prometheus for x in m.ALL.values()}
    assert collector._last is None
    registry = CollectorRegistry()
    registry.register(collector)
    with pytest.raises(ValueError, match="Duplicated"):
        registry.register(LedgerCollector(shown))


def test_a_collector_opens_the_ledger_that_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By URL, or by the environment."""
    url = f"sqlite:///{tmp_path / 'named.db'}"
    by_url = LedgerCollector(url)
    monkeypatch.setenv("SPENDMETER_LEDGER", url)
    by_env = LedgerCollector()
    assert by_env._ledger.settings.ledger == by_url._ledger.settings.ledger == url
    by_url._ledger.close()
    by_env._ledger.close()
