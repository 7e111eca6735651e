"""Mistakes in budgets.yaml: each is named in one line, and none is missed."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import pytest
import yaml

from spendmeter.budgets import file
from spendmeter.budgets.file import load
from spendmeter.budgets.keys import BUDGET
from spendmeter.budgets.periods import WEEKDAYS
from spendmeter.errors import ConfigError
from tests.standings import SCHEMA, written

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
