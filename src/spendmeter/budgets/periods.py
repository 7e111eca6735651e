"""Calendar periods in a time zone, and rolling ones. Pure arithmetic over milliseconds UTC."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["day", "week", "month", "rolling", "total"]


@dataclass(frozen=True, slots=True)
class Window:
    """From ``start_ms``, which is in it, to ``end_ms``, which no longer is; None is without end."""

    start_ms: int
    end_ms: int | None


@dataclass(frozen=True, slots=True)
class Period:
    """How long a limit holds.

    ``starts``: of a week its first day (1 Monday .. 7 Sunday), of a month its first day (1 .. 31; in a shorter month its last
    day). ``length_ms``: of a rolling period.
    """

    kind: Kind
    timezone: str = "UTC"
    starts: int = 1
    length_ms: int | None = None

    def window(self, at_ms: int) -> Window:
        """The period that holds *at_ms*: of a rolling one, the length that ends with its minute."""
        raise NotImplementedError
