"""Facts about budgets.yaml: what is read, what is said of a mistake, and that the schema and the reference say the same."""

from __future__ import annotations

import ast
import re
import string
from collections.abc import Iterator
from decimal import Decimal
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spendmeter.budgets import Budget, Budgets, Notifier, Period, Threshold, file
from spendmeter.budgets.file import load
from spendmeter.budgets.keys import BUDGET, FILE, NOTIFIER, THRESHOLD
from spendmeter.budgets.periods import WEEKDAYS
from spendmeter.budgets.schema import json_schema
from spendmeter.errors import ConfigError
from spendmeter.records import NANO

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "budgets.yaml"
PAGE = ROOT / "docs" / "reference" / "budgets.md"
SCHEMA = jsonschema.Draft202012Validator(json_schema())
HOUR_MS = 3_600_000

INFO, WARNING, CRITICAL = Threshold(Decimal("0.5"), "info"), Threshold(Decimal("0.8"), "warning"), Threshold(Decimal(1), "critical")


def written(tmp_path: Path, text: str | bytes) -> Path:
    """A budgets.yaml that holds *text*."""
    path = tmp_path / "budgets.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


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


# -- mistakes ----------------------------------------------------------------------------------------------------------

GOOD = "period: day, limit_usd: 5"
KEYS = ", ".join(BUDGET)
DEFAULTS = "notify: [{name: ops, command: [true]}]"

# What stands in the file, what is said after its path, and whether a JSON Schema can tell.
MISTAKES: list[tuple[str | bytes, str, bool]] = [
    ("", ': empty; write "budgets:" with a list of budgets below it, or "budgets: []" for none', True),
    ("# none\n", ': empty; write "budgets:" with a list of budgets below it, or "budgets: []" for none', True),
    ("notify: []", ':1: a file without "budgets"; list them below it, or write "budgets: []" for none', True),
    ("[]", ":1: a list where a mapping was expected, with keys budgets, notify", True),
    ("budget: []", ':1: key "budget" is not one of budgets, notify; did you mean "budgets"?', True),
    ("budgets:\n", ':1: "" where a list was expected; begin each entry with "- name: ..."', True),
    ("budgets:\n  - b\n", f':2: "b" where a mapping was expected, with keys {KEYS}', True),
    (f"budgets:\n- name: b\n  {GOOD.replace(', ', chr(10) + '  ')}\n  treshold: 1\n",
     f':5: key "treshold" is not one of {KEYS}; did you mean "thresholds"?', True),
    ("budgets:\n- {period: day, period: week}", ':2: key "period" is given twice in one mapping; keep one of them', False),
    # what a budget needs
    ("budgets:\n- {period: day, limit_usd: 5}", ':2: a budget without "name"; write name: all-agents', True),
    ("budgets:\n- {name: b, limit_usd: 5}", ':2: a budget without "period"; write period: month', True),
    ("budgets:\n- {name: b, period: day}", ":2: a budget without a limit; give it one of limit_usd, limit_tokens, limit_runs", True),
    ("budgets:\n- {name: b, period: day, limit_tokens: 5,\n limit_usd: 5}",
     ":2: limit_tokens beside limit_usd; a budget has one limit, make two budgets of it", True),
    (f"budgets:\n- {{name: a b, {GOOD}}}", ':2: name "a b" is not 1 to 64 of the letters a to z, digits, ".", "_" and "-"', True),
    (f"budgets:\n- {{name: é, {GOOD}}}", ':2: name "é" is not 1 to 64 of the letters a to z, digits, ".", "_" and "-"', True),
    (f"budgets:\n- {{name: ~, {GOOD}}}", ':2: "~" where a text was expected', True),
    (f"budgets:\n- {{name: [b], {GOOD}}}", ":2: a list where a text was expected", True),
    (f'budgets:\n- {{name: b, {GOOD}, owner: "a\\0"}}',
     ':2: "a?" holds a character that cannot be stored; remove the escape \\0 or \\ud800 to \\udfff', False),
    (f"budgets:\n- {{name: b, {GOOD}}}\n- {{name: b, {GOOD}}}",
     ':3: name "b" is that of line 2 already; give each a name of its own', False),
    # amounts
    ("budgets:\n- {name: b, period: day, limit_usd: $5}", ':2: limit_usd "$5" is not a number; write it as 3 or 0.25', True),
    ("budgets:\n- {name: b, period: day, limit_usd: -5}", ':2: limit_usd "-5" is not a finite number of 0 or more', True),
    ("budgets:\n- {name: b, period: day, limit_usd: 1000000000}",
     ':2: limit_usd "1000000000" is not an amount of US dollars below 1000000000 with at most 9 decimals', False),
    ("budgets:\n- {name: b, period: day, limit_usd: 0.0000000001}",
     ':2: limit_usd "0.0000000001" is not an amount of US dollars below 1000000000 with at most 9 decimals', False),
    ("budgets:\n- {name: b, period: day, limit_tokens: 1.5}", ':2: limit_tokens "1.5" is not a whole number of tokens of 0 or more', True),
    ("budgets:\n- {name: b, period: day, limit_runs: 1000000000000001}",
     ':2: limit_runs "1000000000000001" is more than 1000000000000000; write a smaller number', True),
    ("budgets:\n- {name: b, period: day, limit_usd: 5, reserve_tokens: 5}",
     ":2: reserve_tokens in a budget that has limit_usd; write reserve_usd", True),
    ("budgets:\n- {name: b, period: day, limit_runs: 5, least_usd: 5}", ":2: least_usd in a budget that has limit_runs; remove it", True),
    # which runs
    (f"budgets:\n- {{name: b, {GOOD}, match: heartbeat}}",
     ':2: "heartbeat" where a mapping was expected, as {agent: "heartbeat*"}', True),
    (f"budgets:\n- {{name: b, {GOOD}, match: {{agent: []}}}}",
     ":2: an empty list of globs, which no run matches; give one at least, or remove the key", True),
    (f'budgets:\n- {{name: b, {GOOD}, match: {{"a\\0": b}}}}', ':2: key "a?" is not a name', False),
    # periods
    ("budgets:\n- {name: b, limit_usd: 5, period: weakly}",
     ':2: period "weakly" is not one of day, week, month, total or a length such as 5h, 30d; did you mean "week"?', True),
    ("budgets:\n- {name: b, limit_usd: 5, period: 30s}",
     ':2: period "30s" is not one of day, week, month, total or a length such as 5h, 30d', True),
    ("budgets:\n- {name: b, limit_usd: 5, period: 0h}",
     ':2: period "0h" is not one of day, week, month, total or a length such as 5h, 30d', True),
    (f"budgets:\n- {{name: b, {GOOD}, timezone: Europe/Berln}}",
     ':2: timezone "Europe/Berln" is not known; did you mean "Europe/Berlin"?', False),
    (f"budgets:\n- {{name: b, {GOOD}, timezone: ../etc}}",
     ':2: timezone "../etc" is not known; write an IANA name such as UTC or Europe/Berlin', False),
    ("budgets:\n- {name: b, limit_usd: 5, period: week, starts: Sunday}",
     f':2: starts "Sunday" is not one of {", ".join(WEEKDAYS)}; did you mean "sunday"?', True),
    ("budgets:\n- {name: b, limit_usd: 5, period: month, starts: 32}",
     ':2: starts "32" is not a day of the month from 1 to 31', True),
    ("budgets:\n- {name: b, limit_usd: 5, period: 7d, starts: monday}",
     ':2: starts "monday" beside period "7d"; only a week (monday) and a month (1 to 31) have it', True),
    # thresholds and what follows
    (f"budgets:\n- {{name: b, {GOOD}, thresholds: 0.9}}", ':2: "0.9" where a list was expected; write them as [0.5, 0.8, 1]', True),
    (f"budgets:\n- {{name: b, {GOOD}, thresholds: [80]}}",
     ':2: threshold "80" is not a share from 0.001 to 10; write 80 % as 0.8', True),
    (f"budgets:\n- {{name: b, {GOOD}, thresholds: [0]}}", ':2: threshold "0" is not a share from 0.001 to 10; write 80 % as 0.8', True),
    (f"budgets:\n- {{name: b, {GOOD}, thresholds: [0.5, 0.50]}}", ":2: threshold 0.5 is given twice; keep one of them", True),
    (f"budgets:\n- {{name: b, {GOOD}, thresholds: [{{severity: info}}]}}", ':2: a threshold without "at"; write at: 0.8', True),
    (f"budgets:\n- {{name: b, {GOOD}, thresholds: [{{at: 1, severity: warn}}]}}",
     ':2: severity "warn" is not one of info, warning, critical; did you mean "warning"?', True),
    (f"budgets:\n- {{name: b, {GOOD}, action: stop}}", ':2: action "stop" is not one of alert, warn, block, kill', True),
    # who is told
    (f"budgets:\n- {{name: b, {GOOD}, notify: ops}}\n{DEFAULTS}", ':2: "ops" where a list was expected; write it as [ops]', True),
    (f"budgets:\n- {{name: b, {GOOD}, notify: [opps]}}\n{DEFAULTS}",
     ':2: notifier "opps" is not defined; list it under "notify" beside "budgets"; did you mean "ops"?', False),
    ("budgets: []\nnotify: [{webhook: https://h/}]", ':2: a notifier without "name"; write name: ops', True),
    ("budgets: []\nnotify: [{name: n}]", ':2: a notifier without "webhook" and without "command"; give it one of them', True),
    ("budgets: []\nnotify: [{name: n, webhook: https://h/, command: [x]}]", ":2: webhook beside command; make two notifiers of it", True),
    ("budgets: []\nnotify: [{name: n, secret_env: S, command: [x]}]",
     ":2: secret_env beside command; it signs what a webhook is sent, remove it", True),
    ("budgets: []\nnotify: [{name: n, webhook: ftp://h/}]",
     ":2: webhook is not an http or https URL; write it as https://host/path", True),
    ("budgets: []\nnotify: [{name: n, webhook: 'https://[h/'}]",
     ":2: webhook is not an http or https URL; write it as https://host/path", False),
    ("budgets: []\nnotify: [{name: n, webhook: https://h/, secret_env: s3cr3t!}]",
     ":2: secret_env is not the name of an environment variable; put the secret into a variable and write its name", True),
    ("budgets: []\nnotify: [{name: n, command: []}]", ":2: an empty command; write it as [notify-send, over budget]", True),
    # no YAML at all
    ("budgets: [", ":1: not YAML (expected the node content, but found '<stream end>'); expected a list of budgets", False),
    (b"\xff\xfe\xfa", ": byte 0 is not UTF-8; save the file as UTF-8", False),
    ('"\\UFFFFFFFF"', ": not YAML (OverflowError); expected a list of budgets", False),
    (f"%YAML {'9' * 5000}.1\n--- x", ": not YAML (ValueError); expected a list of budgets", False),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message", "_in_schema"), MISTAKES)
def test_a_mistake_is_named(tmp_path: Path, text: str | bytes, message: str, _in_schema: bool) -> None:
    """File, line, value seen, expectation, remedy: one line."""
    path = written(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert str(caught.value) == f"{path}{message}"


@pytest.mark.parametrize("text", [text for text, _, in_schema in MISTAKES if in_schema])
def test_the_schema_refuses_it_too(text: str) -> None:
    """Whatever a schema can tell, it tells."""
    assert list(SCHEMA.iter_errors(yaml.safe_load(text))) != []


def test_every_message_is_tried(tmp_path: Path) -> None:
    """No place in the loader raises that is not raised by a mistake of the table."""
    source = Path(file.__file__)
    raising = {
        range(node.lineno, (node.end_lineno or node.lineno) + 1)
        for node in ast.walk(ast.parse(source.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("fail", "ConfigError")
    }
    raised: set[int] = set()
    for text, _, _ in MISTAKES:
        try:
            load(written(tmp_path, text))
        except ConfigError as e:
            raised |= {line for name, line in frames(e.__traceback__) if name == str(source)}
    assert len(raising) > 15
    assert [lines for lines in raising if not raised & set(lines)] == []


def frames(at: TracebackType | None) -> Iterator[tuple[str, int]]:
    """File and line of each frame."""
    while at:
        yield at.tb_frame.f_code.co_filename, at.tb_lineno
        at = at.tb_next


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    """Its path, the reason and what to give."""
    path = tmp_path / "budgets.yaml"
    with pytest.raises(ConfigError, match=re.escape(f"{path}: cannot be read (No such file or directory); give the path of a file")):
        load(path)


@pytest.mark.parametrize("secret", ["webhook: hooks.example.com/T0/SECRET", "webhook: https://h/, secret_env: SECRET-1"])
def test_no_secret_is_told(tmp_path: Path, secret: str) -> None:
    """A URL that is refused, or a secret where its variable's name belongs, is not in the message."""
    with pytest.raises(ConfigError) as caught:
        load(written(tmp_path, f"budgets: []\nnotify: [{{name: n, {secret}}}]"))
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "h/x",
        "//h/x",
        "HTTPS://h/x",
        "https://",
        "https://:80/x",
        "https://h:0/x",
        "https://h:65536/x",
        "https://h /x",
        "https://h/é",
        "https://u:p@h/",
    ],
)
def test_a_webhook_is_a_url_that_can_be_posted_to(tmp_path: Path, url: str) -> None:
    """Scheme, host, a port that exists, no user, and no character that would have to be quoted."""
    with pytest.raises(ConfigError, match="webhook is not an http or https URL"):
        load(written(tmp_path, f"budgets: []\nnotify: [{{name: n, webhook: {url!r}}}]"))


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
