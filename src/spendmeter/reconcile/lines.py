"""Usage at points of a session's line, and what joins into it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from spendmeter.records import NOTHING, Part, Usage


def with_parts(
    lines: list[tuple[Usage, Usage]], parts: list[Part], dates: Mapping[str, int], points: Sequence[int]
) -> list[tuple[Usage, Usage]]:
    """Joins in what the runs that had ended by each of *points* told of themselves."""
    ended = sorted(((dates[p.part_id], p) for p in parts), key=lambda x: x[0])
    main = running([(at, p.usage) for at, p in ended if p.role == "main"], points)
    hidden = running([(at, p.usage) for at, p in ended if p.role == "hidden"], points)
    lines = [(covered.join(a), aside.join(b)) for (covered, aside), a, b in zip(lines, main, hidden, strict=True)]
    return with_whole(lines, running([(at, p.usage) for at, p in ended], points)) if any(p.role == "any" for p in parts) else lines


def with_whole(lines: list[tuple[Usage, Usage]], every: list[Usage]) -> list[tuple[Usage, Usage]]:
    """Joins in sums that do not tell what readings cover from what they do not."""
    return [
        (covered.plus(aside).join(whole).minus(aside) if whole.known else covered, aside)
        for (covered, aside), whole in zip(lines, every, strict=True)
    ]


def running(dated: list[tuple[int, Usage]], points: Sequence[int]) -> list[Usage]:
    """Sum of all of *dated* up to each of *points*; both ascend."""
    out, now, n = [], NOTHING, 0
    for point in points:
        while n < len(dated) and dated[n][0] <= point:
            now = now.plus(dated[n][1])
            n += 1
        out.append(now)
    return out


def with_unsplit(best: Usage, told: Usage) -> Usage:
    """The larger of both per field, where *told* has the cache writes of both lifetimes as one: what is more of them counts as 5m."""
    written = told.cache_write_5m
    five = None if written is None else max(0, written - (best.cache_write_1h or 0))
    return best.join(told._replace(cache_write_5m=five))
