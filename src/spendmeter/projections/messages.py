"""Message catalogues: ``locale/<lang>.toml``, with each language's plural forms and number formats.

To add a language: one catalogue with the keys of ``en.toml``, and its plural rule here where it has more than "one" and "other".
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from decimal import ROUND_HALF_UP, Decimal
from functools import cache
from importlib import resources
from typing import Any

from spendmeter.errors import ConfigError
from spendmeter.records import usd

_SCALES = ((1_000, "thousand"), (1_000_000, "million"), (1_000_000_000, "billion"))
_CENT, _LEAST = Decimal("0.01"), Decimal("0.0001")


def languages() -> list[str]:
    """Names of the catalogues."""
    return sorted(f.name.removesuffix(".toml") for f in _folder().iterdir() if f.name.endswith(".toml"))


def messages(lang: str = "en") -> Messages:
    """The catalogue of *lang*.

    Raises:
        ConfigError: there is none; names those that are.
    """
    if lang not in languages():
        raise ConfigError(f'language "{lang}" is not one of {", ".join(languages())}')
    return _load(lang)


def _folder() -> Any:
    return resources.files("spendmeter.projections") / "locale"


@cache
def _load(lang: str) -> Messages:
    return Messages(lang, tomllib.loads((_folder() / f"{lang}.toml").read_text("utf-8")))


class Messages:
    """Texts, numbers, money and durations as one language writes them."""

    def __init__(self, lang: str, texts: dict[str, Any]) -> None:
        self.lang, self.texts = lang, texts
        self._form = _FORMS.get(lang, _one_other)

    def text(self, key: str, /, **values: object) -> str:
        """The text at the dotted *key*, filled in."""
        found = self._at(key)
        return str(found).format(**values) if values else str(found)

    def count(self, key: str, n: int) -> str:
        """The text at *key* in the form that goes with *n*."""
        return str(self._at(key)[self._form(n)]).format(n=self.whole(n))

    def outcome(self, name: str) -> str:
        """How a run ended, in a word or two; a name that no catalogue has stands as it is."""
        return str(self.texts["outcome"].get(name, name))

    def whole(self, n: int) -> str:
        """12,345"""
        return f"{n:,}".replace(",", str(self._at("number.group")))

    def compact(self, n: int) -> str:
        """812, 45.2k, 1.3M: one decimal, cut to what a reader takes in."""
        scale, name = 1, ""
        for size, label in _SCALES:
            if n >= size - size / 20_000:  # what would round to 1000.0 of the scale below
                scale, name = size, label
        if not name:
            return str(n)
        tenths = (Decimal(n) / scale).quantize(Decimal("0.1"), ROUND_HALF_UP)
        return self.text(f"number.{name}", n=self._decimal(f"{tenths:f}"))

    def money(self, nusd: int) -> str:
        """$1,234.56; four places below a cent."""
        value = usd(nusd)
        if 0 < value < _LEAST:
            return self.text("number.money_below", n=self._decimal(str(_LEAST)))
        shown = value.quantize(_LEAST if 0 < value < _CENT else _CENT, ROUND_HALF_UP)
        head, _, tail = f"{shown:f}".partition(".")
        return self.text("number.money", n=f"{self.whole(int(head))}{self._at('number.decimal')}{tail}")

    def percent(self, ratio: Decimal) -> str:
        """42%"""
        return self.text("number.percent", n=int((ratio * 100).to_integral_value(ROUND_HALF_UP)))

    def duration(self, ms: int) -> str:
        """2 h 10 min; the two greatest units."""
        minutes, s = divmod(max(0, ms + 500) // 1000, 60)
        hours, m = divmod(minutes, 60)
        days, h = divmod(hours, 24)
        if days >= 2:
            return self.text("duration.days", d=days, h=h)
        if hours:
            return self.text("duration.hours", h=hours, m=m)
        return self.text("duration.minutes", m=m, s=s) if m else self.text("duration.seconds", s=s)

    def _decimal(self, text: str) -> str:
        return text.replace(".", str(self._at("number.decimal")))

    def _at(self, key: str) -> Any:
        found: Any = self.texts
        for name in key.split("."):
            found = found[name]
        return found


def _one_other(n: int) -> str:
    return "one" if n == 1 else "other"


def _russian(n: int) -> str:
    """CLDR's rule for whole numbers."""
    if n % 10 == 1 and n % 100 != 11:
        return "one"
    return "few" if n % 10 in (2, 3, 4) and n % 100 not in (12, 13, 14) else "many"


_FORMS: dict[str, Callable[[int], str]] = {"ru": _russian}
