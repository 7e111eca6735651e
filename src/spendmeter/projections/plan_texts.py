"""Planned against actual in one line, for reports and comments."""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import ROUND_HALF_UP, Decimal

from spendmeter.plans.variance import Variance
from spendmeter.projections.messages import Messages

_MARKDOWN = re.compile(r"([\\`*<>|\[\]])")


def line(v: Variance, m: Messages) -> str:
    """``Plan variance: book · cost $1.12 of $0.90 (+24%) · calls 23 of 20 · tokens 201.0k of 180.0k``

    What is not known is left out, or "?" where the plan has a figure; without a snapshot there is only what was used.
    """
    planned, used = v.whole.planned, v.whole.actual.figures
    cost = _of(planned.cost_nusd, used.cost_nusd, m.money, m)
    if percent := change(planned.cost_nusd, used.cost_nusd, m):
        cost = m.text("plan.changed", value=cost, change=percent)
    told = {
        "cost": cost, "calls": _of(planned.calls, used.calls, m.whole, m),
        "tokens": _of(planned.total_tokens, used.total_tokens, m.compact, m),
    }  # fmt: skip
    parts = [m.text(f"plan.{name}", value=value) for name, value in told.items() if value] or [m.text("run.usage_unknown")]
    parts += [m.text("plan.unresolved")] if v.recorded_ms is None else []
    return m.text("plan.line", plan=one_line(v.plan), parts=" · ".join(parts))


def _of(planned: int | None, actual: int | None, shown: Callable[[int], str], m: Messages) -> str:
    """The actual figure, of the planned one where there is one; empty where neither is known."""
    used = "" if actual is None else shown(actual)
    return used if planned is None else m.text("plan.of", actual=used or "?", planned=shown(planned))


def change(planned: int | None, actual: int | None, m: Messages) -> str:
    """``+24%``, ``−8%``, ``0%``: by how much *actual* is above or below *planned*; empty where that cannot be told."""
    if actual is None or not planned:
        return ""
    percent = (Decimal(100 * (actual - planned)) / planned).to_integral_value(ROUND_HALF_UP)
    sign = "+" if percent > 0 else "−" if percent < 0 else ""
    return sign + m.percent(abs(percent) / 100)


def one_line(text: str) -> str:
    """*text* as one line that Markdown leaves alone."""
    printable = "".join(c if c.isprintable() else " " for c in text)
    return _MARKDOWN.sub(r"\\\1", printable)
