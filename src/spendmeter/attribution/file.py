"""Reads and checks the ``[[attribution]]`` rules of ``spendmeter.toml``; every mistake is named by file, line and rule."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

from spendmeter.attribution.model import ATTR, FIELDS, HOLE, OF_USAGE, TAGS, Pattern, Rule, Rules
from spendmeter.config import Settings
from spendmeter.errors import ConfigError

_KINDS = ("glob", "regex")
_EXAMPLES = {"match": 'match = {cwd = "*/shop*"}', "set": 'set = {agent = "developer"}'}
_HEADER = re.compile(r"^[ \t]*\[\[[ \t]*attribution[ \t]*\]\]", re.MULTILINE)
_SHOWN = 60  # of a value in a message


def load(settings: Settings) -> Rules | None:
    """The rules of the settings' file, in its order; None where it has no ``attribution``, none of them where that is empty.

    Raises:
        ConfigError: ``spendmeter.toml:12: attribution rule 2: <value seen>, <expectation>; <remedy>``
    """
    if settings.attribution is None:
        return None
    if not isinstance(settings.attribution, list):
        raise ConfigError(f"{settings.file}: attribution is not a list of rules; write [[attribution]] above each rule")
    places = [f"{settings.file}{f':{n}' if n else ''}: attribution rule" for n in lines(settings)]
    return Rules(tuple(_Reader(f"{at} {i}").rule(raw) for i, (at, raw) in enumerate(zip(places, settings.attribution, strict=True), 1)))


def lines(settings: Settings) -> list[int | None]:
    """The line of each rule's ``[[attribution]]``, None where that cannot be told."""
    told = len(settings.attribution or ())
    try:
        text = Path(settings.file).read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return [None] * told
    found: list[int | None] = [text.count("\n", 0, m.start()) + 1 for m in _HEADER.finditer(text)]
    return found if len(found) == told else [None] * told


class _Reader:
    """One rule as the file has it. ``place`` is where, for messages."""

    def __init__(self, place: str) -> None:
        self._place = place

    def rule(self, raw: object) -> Rule:
        """The rule that *raw* says."""
        body = self._table(raw, "the rule", " and ".join(_EXAMPLES.values()))
        self._known(body, tuple(_EXAMPLES), "")
        for key, example in _EXAMPLES.items():
            if not body.get(key):
                self._fail(f"{key} is missing or empty; write {example}")
        made = Rule(dict(self._match(body["match"])), dict(self._sets(body["set"])))
        self._check(made)
        return made

    def _fail(self, what: str) -> NoReturn:
        raise ConfigError(f"{self._place}: {what}")

    def _table(self, raw: object, name: str, example: str) -> Mapping[str, Any]:
        if not isinstance(raw, dict):
            self._fail(f"{name} {_seen(raw)} is not a table; write {example}")
        return raw

    def _known(self, table: Mapping[str, Any], known: tuple[str, ...], before: str, also: str = "") -> None:
        for key in table:
            if key not in known:
                near = get_close_matches(key, known, 1)
                hint = f'; did you mean "{before}{near[0]}"?' if near else ""
                self._fail(f'unknown key "{before}{key}"; known are {", ".join(known)}{also}{hint}')

    # -- conditions ----------------------------------------------------------------------------------------------------
    def _match(self, raw: object) -> Iterator[tuple[str, tuple[Pattern, ...]]]:
        table = dict(self._table(raw, "match", _EXAMPLES["match"]))
        if "env" in table:
            self._fail("match.env: the environment of a run is not known; match a tag, or one of OTEL_RESOURCE_ATTRIBUTES, as attr.KEY")
        attrs = self._table(table.pop("attr", {}), "match.attr", 'match = {attr.team = "search"}')
        attrs = {**attrs, **{key.removeprefix(ATTR): table.pop(key) for key in list(table) if key.startswith(ATTR)}}
        self._known(table, FIELDS, "match.", " and attr.KEY")
        for name, told in {**table, **{f"{ATTR}{key}": told for key, told in attrs.items()}}.items():
            some = told if isinstance(told, list) else [told]
            if not some:
                self._fail(f"match.{name} is an empty list, which nothing matches; give one pattern at least, or remove it")
            yield name, tuple(self._pattern(f"match.{name}", one) for one in some)

    def _pattern(self, name: str, raw: object) -> Pattern:
        if isinstance(raw, dict):
            self._known(raw, _KINDS, f"{name}.")
            if len(raw) != 1:
                self._fail(f'{name} has {len(raw)} patterns in one table; write {{glob = "..."}} or {{regex = "..."}}')
            kind, text = next(iter(raw.items()))
            found, told = Pattern(kind, self._text(f"{name}.{kind}", text)), ""
        else:
            found = Pattern.guessed(self._text(name, raw))
            told = f'; it was taken for one because of its signs, {{glob = "{_cut(found.text)}"}} takes them as they are'
        try:
            _ = found.groups
        except (re.error, OverflowError, RecursionError) as e:
            why = getattr(e, "msg", "too large")
            self._fail(f"{name} {_seen(found.text)} is not a regular expression ({why}){told or '; correct it'}")
        return found

    def _text(self, name: str, raw: object) -> str:
        """A task 12 needs no quotes."""
        text = "" if isinstance(raw, bool) or not isinstance(raw, str | int) else str(raw)
        if not text.strip() or "\0" in text:
            self._fail(f"{name} {_seen(raw)} is not a text; write it in quotes")
        return text

    # -- what it sets --------------------------------------------------------------------------------------------------
    def _sets(self, raw: object) -> Iterator[tuple[str, str]]:
        for key, told in self._table(raw, "set", _EXAMPLES["set"]).items():
            near = get_close_matches(key.lower(), TAGS, 1, 0.8)
            if near and key not in TAGS:
                self._fail(f'set.{key} would be an attribute; did you mean "{near[0]}"?')
            yield key, self._text(f"set.{key}", told)

    def _check(self, rule: Rule) -> None:
        """What it sets can be filled in, and is of what it matches."""
        for key, template in rule.sets.items():
            for name in HOLE.findall(template):
                if name not in rule.names:
                    near = get_close_matches(name, sorted(rule.names), 1)
                    hint = f'; did you mean "{{{near[0]}}}"?' if near else ""
                    known = ", ".join(sorted(rule.names))
                    self._fail(f'set.{key} {_seen(template)}: "{{{name}}}" is no capture and no matched field of this rule ({known}){hint}')
            if rule.splits and key not in TAGS:
                by = " and ".join(sorted(OF_USAGE & rule.match.keys()))
                self._fail(f"set.{key}: a rule on {by} gives a part of a run's usage an agent or a task; put {key} into a rule without it")


def _seen(raw: object) -> str:
    """A value as a message shows it."""
    return f'"{_cut(str(raw))}"' if isinstance(raw, str | int | float) else f"({type(raw).__name__})"


def _cut(text: str) -> str:
    shown = "".join(c if c.isprintable() else "?" for c in text)
    return f"{shown[:_SHOWN]}..." if len(shown) > _SHOWN else shown
