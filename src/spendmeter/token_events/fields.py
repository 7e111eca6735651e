"""What a field may hold: each kind checks a value and says the same as JSON Schema."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Protocol

from spendmeter.ledger import now_ms
from spendmeter.records import NANO, to_nusd

LABEL_MAX, NOTE_MAX = 128, 2000
COUNT_MAX = 10**12  # of one kind: at the dearest list price sums of such events still fit the ledger's 64 bits
COST_MAX_USD = 1_000_000
AHEAD_MS = 86_400_000  # clocks differ, but not by more
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MONEY = r"^[0-9]{1,7}(\.[0-9]{1,9})?$"


class Field(Protocol):
    """One kind of field."""

    def read(self, value: Any) -> Any:
        """*value*, not None, as it is kept.

        Raises:
            ValueError: it is not what the field takes; says what was expected, without the value.
        """

    def schema(self) -> dict[str, Any]:
        """What ``read`` takes, as JSON Schema."""


@dataclass(frozen=True, slots=True)
class Text:
    """A string without control characters; *lines* may hold tabs and line breaks."""

    about: str
    longest: int = LABEL_MAX
    lines: bool = False

    @property
    def _allowed(self) -> str:
        controls = r"\u0000-\u0008\u000b\u000c\u000e-\u001f" if self.lines else r"\u0000-\u001f"
        return rf"[^{controls}\u007f-\u009f\ud800-\udfff]"

    def read(self, value: Any) -> str:
        """As it stands."""
        if not isinstance(value, str):
            raise ValueError("must be a string")  # noqa: TRY004 - of what a client sent, every fault is a ValueError
        if not value:
            raise ValueError("is empty; leave it out where it is not known")
        if len(value) > self.longest:
            raise ValueError(f"has {len(value)} characters; the longest is {self.longest}")
        if not re.fullmatch(f"{self._allowed}+", value):
            raise ValueError("holds a control character, or half a character; take it out")
        return value

    def schema(self) -> dict[str, Any]:
        """Its limits."""
        return {"type": "string", "minLength": 1, "maxLength": self.longest, "pattern": f"^{self._allowed}+$", "description": self.about}


@dataclass(frozen=True, slots=True)
class Choice:
    """One of a few words."""

    about: str
    words: tuple[str, ...]

    def read(self, value: Any) -> str:
        """The word."""
        if value not in self.words:
            raise ValueError(f"must be one of {', '.join(self.words)}")
        return str(value)

    def schema(self) -> dict[str, Any]:
        """The words."""
        return {"type": "string", "enum": list(self.words), "description": self.about}


@dataclass(frozen=True, slots=True)
class Count:
    """A number of tokens."""

    about: str

    def read(self, value: Any) -> int:
        """As an integer; 5.0 is one too."""
        if isinstance(value, bool) or not isinstance(value, int | float | Decimal) or not 0 <= value <= COUNT_MAX or value != int(value):
            raise ValueError(f"must be an integer from 0 to {COUNT_MAX}")
        return int(value)

    def schema(self) -> dict[str, Any]:
        """Its limits."""
        return {"type": "integer", "minimum": 0, "maximum": COUNT_MAX, "description": self.about}


@dataclass(frozen=True, slots=True)
class Money:
    """US dollars; kept as nano-USD. A string is exact, a number is rounded half-even to a nano-USD."""

    about: str

    def read(self, value: Any) -> int:
        """Nano-USD."""
        told = re.fullmatch(MONEY, value) if isinstance(value, str) else True
        nusd = to_nusd(value) if told else None
        if nusd is None or nusd > COST_MAX_USD * NANO:
            raise ValueError(f'must be US dollars from 0 to {COST_MAX_USD}, as a number or a string such as "0.012345"')
        return nusd

    def schema(self) -> dict[str, Any]:
        """Either form."""
        text = {"type": "string", "pattern": MONEY, "examples": ["0.012345"]}
        return {"anyOf": [text, {"type": "number", "minimum": 0, "maximum": COST_MAX_USD}], "description": self.about}


@dataclass(frozen=True, slots=True)
class Moment:
    """A point in time; kept as milliseconds since the epoch, UTC."""

    about: str

    def read(self, value: Any) -> int:
        """Milliseconds."""
        try:
            told = datetime.fromisoformat(value)
        except (ValueError, TypeError):
            raise ValueError("must be ISO 8601, such as 2026-11-01T15:00:00Z") from None
        if told.tzinfo is None:
            raise ValueError("has no time zone; write it as 2026-11-01T15:00:00Z or with an offset")
        at_ms = (told - _EPOCH) // timedelta(milliseconds=1)
        if not 0 <= at_ms <= now_ms() + AHEAD_MS:
            raise ValueError("must lie between 1970 and a day from now")
        return at_ms

    def schema(self) -> dict[str, Any]:
        """RFC 3339."""
        return {"type": "string", "format": "date-time", "description": self.about}
