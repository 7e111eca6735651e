"""Reads and checks ``budgets.yaml``; every mistake is named by file and line. Money is never a float."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from spendmeter import yamlfile
from spendmeter.budgets import keys as k
from spendmeter.budgets.model import ACTIONS, SEVERITIES, UNITS, Budget, Budgets, Notifier, Threshold, Unit
from spendmeter.budgets.periods import LENGTHS_MS, WEEKDAYS, Kind, Period, zone
from spendmeter.errors import ConfigError
from spendmeter.records import MAX_USD, NANO, to_nusd, usd
from spendmeter.yamlfile import Node, suggest

LEAST = {"usd": 5 * NANO, "tokens": 5_000_000, "runs": 5}  # what one large run may use
LEAST_PART = 20  # of the limit: a window of 6 h holds a twentieth of a month at 6 times the even rate
_NAMED = 'begin each entry with "- name: ..."'

T = TypeVar("T")
D = TypeVar("D")
S = TypeVar("S", bound=str)
N = TypeVar("N", Budget, Notifier)


def load(path: Path) -> Budgets:
    """The budgets and notifiers of the file at *path*, in file order.

    Raises:
        ConfigError: ``budgets.yaml:12: <value seen>, <expectation>; <remedy>``
    """
    root, data = yamlfile.read(path, ConfigError, "a list of budgets")
    if root is None:
        raise ConfigError(f'{path}: empty; write "budgets:" with a list of budgets below it, or "budgets: []" for none')
    keys = root.mapping(tuple(k.FILE))
    if "budgets" not in keys:
        root.fail('a file without "budgets"; list them below it, or write "budgets: []" for none')
    notifiers = _got(keys, "notify", lambda node: tuple(_distinct(node, _notifier)), ())
    names = tuple(n.name for n in notifiers)
    budgets = tuple(_distinct(keys["budgets"], lambda node: _budget(node, names)))
    return Budgets(budgets, notifiers, sha256(data).hexdigest()[:12])


def _got(keys: Mapping[str, Node], key: str, read: Callable[[Node], T], default: D) -> T | D:
    return read(keys[key]) if key in keys else default


def _distinct(node: Node, read: Callable[[Node], N]) -> Iterator[N]:
    """What *read* makes of each child, each of another name."""
    lines: dict[str, int] = {}
    for child in node.items(_NAMED):
        one = read(child)
        if one.name in lines:
            child.fail(f'name "{one.name}" is that of line {lines[one.name]} already; give each a name of its own')
        lines[one.name] = child.line
        yield one


def _keys(node: Node, what: str, known: Mapping[str, Any], needs: Sequence[str]) -> dict[str, Node]:
    """Children by key, among them *needs*."""
    keys = node.mapping(tuple(known))
    for key in needs:
        if key not in keys:
            node.fail(f'a {what} without "{key}"; write {key}: {known[key]["examples"][0]}')
    return keys


def _one(node: Node, what: str, known: Sequence[S]) -> S:
    return known[known.index(node.one_of(what, known))]


def _name(node: Node) -> str:
    if not re.fullmatch(k.NAME, node.text()):
        node.fail(f'name {node.seen} is not 1 to 64 of the letters a to z, digits, ".", "_" and "-"')
    return node.text()


def _budget(node: Node, notifiers: Sequence[str]) -> Budget:
    keys = _keys(node, "budget", k.BUDGET, k.BUDGET_NEEDS)
    unit, limit = _limit(node, keys)
    least = _beside(keys, "least", unit)
    return Budget(
        name=_name(keys["name"]),
        period=_period(keys),
        unit=unit,
        limit=limit,
        match=_got(keys, "match", _match, {}),
        per=_got(keys, "per", Node.text, None),
        thresholds=_got(keys, "thresholds", _thresholds, tuple(_threshold_at(Decimal(x)) for x in k.THRESHOLDS)),
        action=_got(keys, "action", lambda n: _one(n, "action", ACTIONS), ACTIONS[0]),
        reserve=_beside(keys, "reserve", unit),
        least=min(limit // LEAST_PART, LEAST[unit]) if least is None else least,
        owner=_got(keys, "owner", Node.text, ""),
        description=_got(keys, "description", Node.text, ""),
        notify=_got(keys, "notify", lambda n: _notify(n, notifiers), None),
    )


def _limit(node: Node, keys: Mapping[str, Node]) -> tuple[Unit, int]:
    units = [unit for unit in UNITS if f"limit_{unit}" in keys]
    if not units:
        node.fail(f"a budget without a limit; give it one of {', '.join(f'limit_{unit}' for unit in UNITS)}")
    key, *more = (f"limit_{unit}" for unit in units)
    if more:
        keys[more[0]].fail(f"{more[0]} beside {key}; a budget has one limit, make two budgets of it")
    return units[0], _amount(keys[key], key, units[0])


def _beside(keys: Mapping[str, Node], what: str, unit: Unit) -> int | None:
    """The amount under reserve_UNIT or least_UNIT, which has to be the limit's unit."""
    for other in UNITS:
        if other != unit and (key := f"{what}_{other}") in keys:
            remedy = f"write {what}_{unit}" if f"{what}_{unit}" in k.BUDGET else "remove it"
            keys[key].fail(f"{key} in a budget that has limit_{unit}; {remedy}")
    return _got(keys, key := f"{what}_{unit}", lambda node: _amount(node, key, unit), None)


def _amount(node: Node, key: str, unit: Unit) -> int:
    if unit != "usd":
        return node.whole(key, unit, 0)
    value = node.number(key)
    nusd = to_nusd(value)
    if nusd is None or usd(nusd) != value:
        node.fail(f"{key} {node.seen} is not an amount of US dollars below {MAX_USD} with at most 9 decimals")
    return nusd


def _match(node: Node) -> dict[str, tuple[str, ...]]:
    return {key: _globs(value) for key, value in node.mapping(None, '{agent: "heartbeat*"}').items()}


def _globs(node: Node) -> tuple[str, ...]:
    globs = tuple(child.text() for child in node.items()) if node.is_list else (node.text(),)
    if not globs:
        node.fail("an empty list of globs, which no run matches; give one at least, or remove the key")
    return globs


def _period(keys: Mapping[str, Node]) -> Period:
    node = keys["period"]
    timezone = _got(keys, "timezone", _timezone, "UTC")
    if length := re.fullmatch(k.LENGTH, node.text()):
        return Period("rolling", timezone, _starts(keys, "rolling"), int(length[1]) * LENGTHS_MS[length[2]])
    if node.text() not in k.CALENDAR:
        hint = suggest(node.text(), k.CALENDAR)
        node.fail(f"period {node.seen} is not one of {', '.join(k.CALENDAR)} or a length such as 5h, 30d{hint}")
    kind = _one(node, "period", k.CALENDAR)
    return Period(kind, timezone, _starts(keys, kind))


def _timezone(node: Node) -> str:
    try:
        zone(node.text())
    except (OSError, ValueError, KeyError):
        from zoneinfo import available_timezones  # walks a folder: only for a mistake

        hint = suggest(node.text(), sorted(available_timezones())) or "; write an IANA name such as UTC or Europe/Berlin"
        node.fail(f"timezone {node.seen} is not known{hint}")
    return node.text()


def _starts(keys: Mapping[str, Node], kind: Kind) -> int:
    if "starts" not in keys:
        return 1
    node = keys["starts"]
    if kind == "week":
        return WEEKDAYS.index(node.one_of("starts", WEEKDAYS)) + 1
    if kind != "month":
        node.fail(f"starts {node.seen} beside period {keys['period'].seen}; only a week (monday) and a month (1 to 31) have it")
    if not re.fullmatch(k.DAY_OF_MONTH, node.text()):
        node.fail(f"starts {node.seen} is not a day of the month from 1 to 31")
    return int(node.text())


def _thresholds(node: Node) -> tuple[Threshold, ...]:
    out: dict[Decimal, Threshold] = {}
    for child in node.items("write them as [0.5, 0.8, 1]"):
        one = _threshold(child)
        if one.at in out:
            child.fail(f"threshold {one.at} is given twice; keep one of them")
        out[one.at] = one
    return tuple(out[at] for at in sorted(out))


def _threshold(node: Node) -> Threshold:
    keys = _keys(node, "threshold", k.THRESHOLD, k.THRESHOLD_NEEDS) if node.is_mapping else {"at": node}
    at = keys["at"].number("threshold")
    if not Decimal(k.LEAST_SHARE) <= at <= Decimal(k.MOST_SHARE):
        keys["at"].fail(f"threshold {keys['at'].seen} is not a share from {k.LEAST_SHARE} to {k.MOST_SHARE}; write 80 % as 0.8")
    one = _threshold_at(Decimal(f"{at.normalize():f}"))  # 0.80 is 0.8: its text names it
    return Threshold(one.at, _got(keys, "severity", lambda n: _one(n, "severity", SEVERITIES), one.severity))


def _threshold_at(at: Decimal) -> Threshold:
    return Threshold(at, "critical" if at >= 1 else "warning" if at >= Decimal("0.8") else "info")


def _notify(node: Node, notifiers: Sequence[str]) -> tuple[str, ...]:
    names = []
    for child in node.items("write it as [ops]"):
        if child.text() not in notifiers:
            child.fail(f'notifier {child.seen} is not defined; list it under "notify" beside "budgets"{suggest(child.text(), notifiers)}')
        names.append(child.text())
    return tuple(names)


def _notifier(node: Node) -> Notifier:
    keys = _keys(node, "notifier", k.NOTIFIER, k.NOTIFIER_NEEDS)
    if "webhook" not in keys and "command" not in keys:
        node.fail('a notifier without "webhook" and without "command"; give it one of them')
    if "command" in keys and "webhook" in keys:
        keys["webhook"].fail("webhook beside command; make two notifiers of it")
    if "command" in keys and "secret_env" in keys:
        keys["secret_env"].fail("secret_env beside command; it signs what a webhook is sent, remove it")
    return Notifier(
        name=_name(keys["name"]),
        webhook=_got(keys, "webhook", _webhook, None),
        secret_env=_got(keys, "secret_env", _variable, None),
        command=_got(keys, "command", _command, ()),
    )


def _webhook(node: Node) -> str:
    """Its URL may be a secret: no message shows it."""
    url = node.text()
    try:
        parts = urlsplit(url)
        valid = re.fullmatch(k.WEBHOOK, url) and parts.hostname and parts.port != 0 and parts.username is None
    except ValueError:
        valid = False
    if not valid:
        node.fail("webhook is not an http or https URL; write it as https://host/path")
    return url


def _variable(node: Node) -> str:
    """What is there by mistake may be the secret itself: no message shows it."""
    if not re.fullmatch(k.VARIABLE, node.text()):
        node.fail("secret_env is not the name of an environment variable; put the secret into a variable and write its name")
    return node.text()


def _command(node: Node) -> tuple[str, ...]:
    command = tuple(child.text() for child in node.items("write it as [notify-send, over budget]"))
    if not command:
        node.fail("an empty command; write it as [notify-send, over budget]")
    return command
