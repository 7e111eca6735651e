"""What an attribution rule is, and what rules give a run: plain values, pure functions.

A rule holds where each of its conditions does. Rules are tried in order; for each key (agent, task, an attribute) the first rule that
holds and sets it wins, so that one rule may give the agent and a later one the task.
"""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from hashlib import sha256
from typing import Any

FIELDS = ("cwd", "branch", "repo", "cli", "model", "session", "subagent")
ATTR = "attr."  # before the name of an attribute
OF_USAGE = frozenset({"model", "subagent"})  # what differs within a run
TAGS = ("agent", "task")  # what a part of a run's usage may have of its own
HOLE = re.compile(r"\{([^{}]*)\}")  # of a template
_REGEX = re.compile(r"[()|\\^$+]|\.\*")  # what no glob needs

Subject = Mapping[str, tuple[str, ...]]  # field or attr.KEY -> the names that it goes by; what is not known has none


@dataclass(frozen=True, slots=True)
class Pattern:
    """What a value must look like; ``kind`` is "glob" (``*``, ``?``, ``[...]``), for all of it, or "regex", from its beginning."""

    kind: str
    text: str

    @classmethod
    def guessed(cls, text: str) -> Pattern:
        """A regular expression where *text* holds any of ``( ) | \\ ^ $ +`` or ``.*``, else a glob."""
        return cls("regex" if _REGEX.search(text) else "glob", text)

    def match(self, value: str) -> Mapping[str, str] | None:
        """What *value* holds by the names of the groups that took part; None where it does not look so."""
        found = _matcher(self.kind, self.text)(value)
        return None if found is None else {name: part for name, part in found.groupdict().items() if part is not None}

    @property
    def groups(self) -> frozenset[str]:
        """Names of what it captures. ``re.error`` where it is no regular expression."""
        return frozenset(re.compile(self.text).groupindex) if self.kind == "regex" else frozenset()


@cache
def _matcher(kind: str, text: str) -> Callable[[str], re.Match[str] | None]:
    return re.compile(text).match if kind == "regex" else re.compile(fnmatch.translate(text)).fullmatch


@dataclass(frozen=True)
class Rule:
    """``match``: field -> patterns, any of which will do. ``sets``: key -> template with ``{name}`` for a capture or a matched field."""

    match: Mapping[str, tuple[Pattern, ...]]
    sets: Mapping[str, str]

    @cached_property
    def splits(self) -> bool:
        """Whether it holds for a part of a run's usage and not for the run."""
        return not OF_USAGE.isdisjoint(self.match)

    @property
    def names(self) -> frozenset[str]:
        """What its templates may name: its captures, and the fields that it matches."""
        return frozenset(self.match).union(*(p.groups for patterns in self.match.values() for p in patterns))

    def given(self, subject: Subject) -> dict[str, str]:
        """What it sets for *subject*, nothing where it does not hold; a key is left out whose captures took no part."""
        found: dict[str, str] = {}
        captured: dict[str, str] = {}
        for name, patterns in sorted(self.match.items()):
            hit = next((c for v in subject.get(name, ()) for p in patterns if (c := p.match(v)) is not None), None)
            if hit is None:
                return {}
            found[name] = subject[name][-1]
            captured |= hit
        found |= captured
        return {key: value for key, template in self.sets.items() if (value := _filled(template, found))}


def _filled(template: str, found: Mapping[str, str]) -> str:
    """*template* with its holes filled; "" where one stays empty."""
    if any(not found.get(name) for name in HOLE.findall(template)):
        return ""
    return HOLE.sub(lambda m: found[m[1]], template).strip()


@dataclass(frozen=True, slots=True)
class Given:
    """What rules gave: None and no attributes where none did. ``by``: key -> number of the rule that set it, from 1."""

    agent: str | None = None
    task: str | None = None
    attrs: Mapping[str, str] = field(default_factory=dict)
    by: Mapping[str, int] = field(default_factory=dict)


NOTHING = Given()


@dataclass(frozen=True)
class Rules:
    """Rules in the order in which they are tried. ``body`` says all of them, ``name`` stands for that."""

    rules: tuple[Rule, ...] = ()

    def given(self, subject: Subject) -> Given:
        """What the rules set for *subject*, for each key the first that sets it."""
        out: dict[str, str] = {}
        by: dict[str, int] = {}
        for number, rule in enumerate(self.rules, 1):
            for key, value in rule.given(subject).items():
                if key not in out:
                    out[key], by[key] = value, number
        attrs = {key: value for key, value in out.items() if key not in TAGS}
        return Given(out.get("agent"), out.get("task"), attrs, by) if out else NOTHING

    @cached_property
    def splits(self) -> bool:
        """Whether any of them may give a part of a run's usage away."""
        return any(rule.splits for rule in self.rules)

    @cached_property
    def body(self) -> str:
        """The rules as JSON, equal for equal rules."""
        rows = [{"match": {f: [[p.kind, p.text] for p in ps] for f, ps in r.match.items()}, "set": dict(r.sets)} for r in self.rules]
        return json.dumps(rows, sort_keys=True, separators=(",", ":"), ensure_ascii=False)

    @cached_property
    def name(self) -> str | None:
        """Digest of ``body``; None where there is no rule."""
        return sha256(self.body.encode("utf-8", "replace")).hexdigest()[:16] if self.rules else None


@cache
def read(body: str) -> Rules:
    """The rules that ``Rules.body`` says."""
    rows: list[dict[str, Any]] = json.loads(body)
    return Rules(tuple(Rule({f: tuple(Pattern(*p) for p in ps) for f, ps in r["match"].items()}, r["set"]) for r in rows))
