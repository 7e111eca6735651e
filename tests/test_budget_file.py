"""Facts about budgets.yaml: what is read is what is written; schema and reference say the same."""

from __future__ import annotations

import re
import string
from decimal import Decimal
from hashlib import sha256
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spendmeter.budgets import Budget, Budgets, Notifier, Period, Threshold
from spendmeter.budgets.file import load
from spendmeter.budgets.keys import BUDGET, FILE, NOTIFIER, THRESHOLD
from spendmeter.budgets.periods import WEEKDAYS
from spendmeter.budgets.schema import json_schema
from spendmeter.errors import ConfigError
from spendmeter.records import NANO
from tests.standings import SCHEMA, written

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "budgets.yaml"
PAGE = ROOT / "docs" / "reference" / "budgets.md"
HOUR_MS = 3_600_000

INFO, WARNING, CRITICAL = Threshold(Decimal("0.5"), "info"), Threshold(Decimal("0.8"), "warning"), Threshold(Decimal(1), "critical")


def one(tmp_path: Path, keys: str) -> Budget:
    """The only budget of a file with these *keys* of it, in flow style."""
    return load(written(tmp_path, f"budgets: [{{name: b, {keys}}}]\n")).budgets[0]


def test_the_example_is_what_it_says() -> None:
    """Each budget of the example, whole."""
    budgets = {b.name: b for b in load(EXAMPLE).budgets}
    assert budgets == {
        "headless-credit": Budget(
            "headless-credit", Period("month", "Europe/Berlin"), "usd", 100 * NANO, {"agent": ("heartbeat*",)},
            thresholds=(INFO, WARNING, CRITICAL), least=5 * NANO,
        ),
        "task-cap": Budget(
            "task-cap", Period("total"), "usd", 5 * NANO, {"task": ("*-*",)}, "task", (WARNING, CRITICAL), "kill", NANO // 2, NANO // 4,
            description="A task that costs more was cut too large, or is going round in circles.",
        ),
        "team-month": Budget(
            "team-month", Period("month", "America/New_York", 25), "usd", 400 * NANO, {"team": ("?*",)}, "team",
            (INFO, Threshold(Decimal("0.75"), "warning"), CRITICAL, Threshold(Decimal("1.2"), "critical")), "warn", least=5 * NANO,
            owner="engineering-leads", notify=("finance",),
        ),
        "retry-storm": Budget(
            "retry-storm", Period("rolling", length_ms=HOUR_MS), "runs", 20, {"task": ("*-*",)}, "task", (CRITICAL,), "block", least=1,
            notify=("ops",),
        ),
        "large-model-week": Budget(
            "large-model-week", Period("week", "America/Los_Angeles", 7), "tokens", 500_000_000,
            {"model": ("claude-opus-*", "gpt-5*"), "cli": ("claude", "codex")}, thresholds=(INFO, WARNING, CRITICAL), action="warn",
            least=20_000_000,
        ),
        "five-hours": Budget(
            "five-hours", Period("rolling", length_ms=5 * HOUR_MS), "tokens", 60_000_000, {"cli": ("claude",)},
            thresholds=(WARNING, Threshold(Decimal("0.95"), "warning")), least=3_000_000,
        ),
        "project": Budget(
            "project", Period("total"), "usd", 2500 * NANO, {"repo": ("*/shop", "*/shop.git")}, thresholds=(INFO, WARNING, CRITICAL),
            action="block", least=5 * NANO,
        ),
    }  # fmt: skip
    assert load(EXAMPLE).notifiers == (
        Notifier("finance", "https://hooks.example.com/spend", "SPENDMETER_WEBHOOK_SECRET"),
        Notifier("ops", command=("logger", "--tag", "spendmeter")),
    )


def test_the_example_shows_every_key() -> None:
    """No key is left out of it, but those that stand for the other unit."""
    text = EXAMPLE.read_text()
    shown = {key for keys in (FILE, BUDGET, NOTIFIER, THRESHOLD) for key in keys if re.search(rf"\b{key}:", text)}
    assert {*FILE, *BUDGET, *NOTIFIER, *THRESHOLD} - shown == {"reserve_tokens", "least_usd"}


def test_the_digest_is_of_the_bytes(tmp_path: Path) -> None:
    """It changes with a comment too."""
    assert load(written(tmp_path, "budgets: []")) == Budgets((), (), sha256(b"budgets: []").hexdigest()[:12])
    assert load(written(tmp_path, "budgets: []#")).digest != load(written(tmp_path, "budgets: []")).digest


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ("period: day, limit_usd: 0.000000001", {"unit": "usd", "limit": 1, "least": 0}),
        ("period: day, limit_usd: 999999999.999999999", {"limit": 10**18 - 1, "least": 5 * NANO}),
        ("period: day, limit_usd: 0.1", {"limit": NANO // 10, "least": NANO // 200}),
        ("period: day, limit_usd: 1e2", {"limit": 100 * NANO}),
        ("period: day, limit_usd: 99", {"least": 99 * NANO // 20}),
        ("period: day, limit_usd: 0", {"limit": 0, "least": 0}),
        ("period: day, limit_tokens: 0", {"unit": "tokens", "limit": 0}),
        ("period: day, limit_runs: 0", {"unit": "runs", "limit": 0}),
        ("period: day, limit_tokens: 1000000000000000", {"limit": 10**15, "least": 5_000_000}),
        ("period: day, limit_runs: 1000", {"least": 5}),
        ("period: day, limit_usd: 1, least_usd: 0, reserve_usd: 2.5", {"least": 0, "reserve": 5 * NANO // 2}),
        ("period: day, limit_tokens: 1, least_tokens: 7, reserve_tokens: 0", {"least": 7, "reserve": 0}),
        ("period: 1m, limit_runs: 1", {"period": Period("rolling", length_ms=60_000)}),
        ("period: 90m, limit_runs: 1", {"period": Period("rolling", length_ms=90 * 60_000)}),
        ("period: 30d, limit_runs: 1, timezone: Asia/Tokyo", {"period": Period("rolling", "Asia/Tokyo", length_ms=720 * HOUR_MS)}),
        ("period: week, limit_runs: 1", {"period": Period("week", starts=1)}),
        ("period: week, limit_runs: 1, starts: sunday", {"period": Period("week", starts=7)}),
        ("period: month, limit_runs: 1, starts: 31", {"period": Period("month", starts=31)}),
        ("period: day, limit_runs: 1, thresholds: []", {"thresholds": ()}),
        ("period: day, limit_runs: 1, thresholds: [1.50, 0.799]", {"thresholds": (("0.799", "info"), ("1.5", "critical"))}),
        ("period: day, limit_runs: 1, thresholds: [10, 0.001]", {"thresholds": (("0.001", "info"), ("10", "critical"))}),
        ("period: day, limit_runs: 1, thresholds: [{at: 2, severity: info}, 0.99]", {"thresholds": (("0.99", "warning"), ("2", "info"))}),
        ("period: day, limit_runs: 1, match: {task: 12, team: on}", {"match": {"task": ("12",), "team": ("on",)}}),
        ("period: day, limit_runs: 1, match: {}", {"match": {}}),
        ("period: day, limit_runs: 1, notify: []", {"notify": ()}),
        ("period: day, limit_runs: 1", {"notify": None, "per": None, "action": "alert", "reserve": None, "owner": "", "description": ""}),
    ],
)
def test_a_budget_as_it_is_read(tmp_path: Path, keys: str, expected: dict[str, Any]) -> None:
    """Amounts to the last digit, lengths, first days, severities by share, and what holds where a key is left out."""
    budget = one(tmp_path, keys)
    read = {key: getattr(budget, key) for key in expected}
    if "thresholds" in expected:
        read["thresholds"] = tuple((str(x.at), x.severity) for x in budget.thresholds)
    assert read == expected
    assert list(SCHEMA.iter_errors(yaml.safe_load(f"budgets: [{{name: b, {keys.replace('1e2', '100')}}}]"))) == []


# -- any text ----------------------------------------------------------------------------------------------------------

words = st.one_of(
    st.sampled_from(["day", "month", "week", "5h", "UTC", "alert", "monday", "1", "0.5", "-1", "nan", "Infinity", "~", "true", "ops"]),
    st.sampled_from(["1e999999", "1e-999999", "1e999999999999", "a\0", "\ud800", "\n"]),
    st.text(max_size=8), st.integers(), st.floats(), st.none(), st.booleans(),
)  # fmt: skip
keys = st.sampled_from([*FILE, *BUDGET, *NOTIFIER, *THRESHOLD]) | st.text(max_size=5)
values = st.recursive(words, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4), max_leaves=12)
needed = st.fixed_dictionaries({"name": words, "period": words, "limit_usd": words})
budgets_like = st.builds(
    lambda budgets, notifiers: {"budgets": budgets, "notify": notifiers},
    st.lists(st.builds(dict.__or__, needed, st.dictionaries(st.sampled_from(list(BUDGET)), values, max_size=4))),
    st.lists(st.dictionaries(st.sampled_from(list(NOTIFIER)), values)) | values,
)
dumped = st.builds(lambda value, plain: yaml.safe_dump(value, allow_unicode=plain), values | budgets_like, st.booleans())


@st.composite
def edited(draw: st.DrawFn) -> str:
    """The example with some of its characters replaced."""
    text = EXAMPLE.read_text()
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(text)))
        new = draw(st.text(string.printable + "é\u2028\x85\ufeff", max_size=3))
        text = text[:at] + new + text[at + draw(st.integers(0, 6)) :]
    return text


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.binary() | st.one_of(st.text(), edited(), dumped).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_are_budgets_or_a_config_error(tmp_path: Path, data: bytes) -> None:
    """Nothing else is raised; what is said is one line that begins with the path."""
    path = written(tmp_path, data)
    try:
        said = f"{path}: {load(path).digest}"
    except ConfigError as e:
        said = str(e)
    assert re.fullmatch(rf"{re.escape(str(path))}:.+", said)


names = st.text(string.ascii_letters + string.digits + "._-", min_size=1, max_size=64).map(lambda x: f"n{x[1:]}")
texts = st.text(st.characters(codec="utf-8", categories=("L", "N", "P")), min_size=1, max_size=10)
usd = st.decimals(0, 999_999_999, places=3, allow_nan=False).map(float)
count = st.integers(0, 10**15)
globs = st.one_of(texts, st.lists(texts, min_size=1, max_size=3), st.integers())
share = st.integers(1, 10_000).map(lambda n: n / 1000)
optional = {
    "match": st.dictionaries(texts, globs, max_size=3), "per": texts, "owner": texts, "description": texts,
    "timezone": st.just("Asia/Tokyo"),
    "thresholds": st.lists(share, unique=True, max_size=3) | st.just([{"at": 0.9, "severity": "info"}, 1]),
    "action": st.sampled_from(["alert", "warn", "block", "kill"]), "notify": st.just([]) | st.just(["ops"]),
}  # fmt: skip
limits = st.one_of(
    st.fixed_dictionaries({"limit_usd": usd}, optional={"reserve_usd": usd, "least_usd": usd}),
    st.fixed_dictionaries({"limit_tokens": count}, optional={"reserve_tokens": count, "least_tokens": count}),
    st.fixed_dictionaries({"limit_runs": count}),
)
periods = st.one_of(
    st.fixed_dictionaries({"period": st.sampled_from(["day", "total", "90m", "5h", "30d", "week", "month"])}),
    st.fixed_dictionaries({"period": st.just("week"), "starts": st.sampled_from(WEEKDAYS)}),
    st.fixed_dictionaries({"period": st.just("month"), "starts": st.integers(1, 31)}),
)
rest = st.fixed_dictionaries({"name": names}, optional=optional)
valid = st.tuples(rest, limits, periods).map(lambda parts: parts[0] | parts[1] | parts[2])


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.lists(valid, max_size=3, unique_by=lambda budget: budget["name"]))
def test_what_is_right_is_right_for_both(tmp_path: Path, budgets: list[dict[str, Any]]) -> None:
    """The loader takes it, the schema takes it, and amounts are as they were written."""
    whole = {"budgets": budgets, "notify": [{"name": "ops", "webhook": "https://h:8080/x"}]}
    assert list(SCHEMA.iter_errors(whole)) == []
    for read, given_ in zip(load(written(tmp_path, yaml.safe_dump(whole))).budgets, budgets, strict=True):
        factor = NANO if read.unit == "usd" else 1
        assert read.limit == Decimal(str(given_[f"limit_{read.unit}"])) * factor
        assert [str(x.at) for x in read.thresholds] == sorted({str(x.at) for x in read.thresholds}, key=Decimal)


# -- schema and reference ----------------------------------------------------------------------------------------------


def test_the_schema_is_one() -> None:
    """Of draft 2020-12, and its keys are the loader's."""
    jsonschema.Draft202012Validator.check_schema(json_schema())
    defs = json_schema()["$defs"]
    assert json_schema()["properties"].keys() == FILE.keys()
    assert (defs["budget"]["properties"].keys(), defs["notifier"]["properties"].keys()) == (BUDGET.keys(), NOTIFIER.keys())


def test_the_schema_takes_the_example() -> None:
    """So an editor shows no mistake in it; the example names the schema where it lies."""
    assert list(SCHEMA.iter_errors(yaml.safe_load(EXAMPLE.read_text()))) == []
    (named,) = re.findall(r"^# yaml-language-server: \$schema=(\S+)$", EXAMPLE.read_text(), re.MULTILINE)
    assert (EXAMPLE.parent / named).resolve() == ROOT / "docs" / "reference" / "budgets.schema.json"


def test_the_reference_has_every_key() -> None:
    """Each table has the keys of the loader, in its order."""
    rows = [re.findall(r"`([a-z_]+)`", cells.split("|")[0]) for cells in re.findall(r"^\| (.*)\|$", PAGE.read_text(), re.MULTILINE)]
    told = [key for row in rows for key in row]
    assert [key for key in told if key in BUDGET] == [*BUDGET, "name"]  # and that of a notifier
    assert [key for key in told if key in NOTIFIER and key != "name"] == [key for key in NOTIFIER if key != "name"]


def test_the_references_blocks_are_true(tmp_path: Path) -> None:
    """Its YAML is read, and the message that it shows is the one that is said."""
    (block,) = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert [b.name for b in load(written(tmp_path, block)).budgets] == ["headless-credit", "task-cap"]
    (message,) = re.findall(r"```text\n(.*?)\n```", PAGE.read_text(), re.DOTALL)
    with pytest.raises(ConfigError) as caught:
        load(written(tmp_path, "\n" * 10 + "budgets:\n- {name: b, limit_usd: 5, period: weakly}"))
    assert str(caught.value) == f"{tmp_path}/{message}"
