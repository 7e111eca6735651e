"""The chart of spend as a picture: an SVG that stands alone, for a report or a README."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from spendmeter.projections.chart import Chart
from spendmeter.projections.messages import Messages
from spendmeter.projections.reports import printable

WIDTH, HEIGHT = 960, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 74, 18, 52, 64
_STYLE = """
:root { --ground: #ffffff; --ink: #171b26; --soft: #565d70; --line: #e1e4ec; }
@media (prefers-color-scheme: dark) { :root { --ground: #171a23; --ink: #e9ebf2; --soft: #a0a7ba; --line: #2a2f3d; } }
text { font: 12px system-ui, sans-serif; fill: var(--soft); font-variant-numeric: tabular-nums; }
.title { font-size: 16px; font-weight: 600; fill: var(--ink); }
.ground { fill: var(--ground); } line { stroke: var(--line); }
.s0 { fill: #4a5de0; } .s1 { fill: #0e9384; } .s2 { fill: #d0701f; } .s3 { fill: #b03a86; } .s4 { fill: #8a6d0b; } .s5 { fill: #737b8f; }
"""


def svg(chart: Chart, m: Messages, title: str) -> str:
    """*chart* as the text of an SVG file; each column tells its sum when pointed at, and it follows light and dark."""
    body = "\n".join([*_axis(chart, m), *_columns(chart, m), *_legend(chart)])
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" role="img">'
    shown = escape(printable(title))
    return (
        f"{head}\n<title>{shown}</title>\n<style>{_STYLE}</style>\n"
        f'<rect class="ground" width="{WIDTH}" height="{HEIGHT}"/>\n<text class="title" x="{_LEFT}" y="30">{shown}</text>\n{body}\n</svg>\n'
    )


def _axis(chart: Chart, m: Messages) -> Iterator[str]:
    high = HEIGHT - _TOP - _BOTTOM
    for i, tick in enumerate(chart.ticks):
        y = _TOP + high * i / (len(chart.ticks) - 1)
        yield f'<line x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{escape(m.money(tick))}</text>'


def _columns(chart: Chart, m: Messages) -> Iterator[str]:
    high, wide = HEIGHT - _TOP - _BOTTOM, (WIDTH - _LEFT - _RIGHT) / max(1, len(chart.columns))
    bar = min(46.0, wide * 0.72)
    for i, column in enumerate(chart.columns):
        middle = _LEFT + wide * (i + 0.5)
        cost = "–" if column.amounts.cost_nusd is None else m.money(column.amounts.cost_nusd)
        yield f"<g><title>{escape(f'{column.title}: {cost}')}</title>"
        height = high * column.height / 100
        for s in column.segments:
            y = _TOP + high - height + height * s.top / 100
            size = f'width="{bar:.1f}" height="{height * s.height / 100:.2f}"'
            yield f'<rect class="s{s.slot}" x="{middle - bar / 2:.1f}" y="{y:.2f}" {size}/>'
        yield "</g>"
        if column.label:
            yield f'<text x="{middle:.1f}" y="{_TOP + high + 20}" text-anchor="middle">{escape(column.label)}</text>'


def _legend(chart: Chart) -> Iterator[str]:
    x = float(_LEFT)
    for slot, name in chart.legend:
        shown = printable(name)[:24]
        yield f'<rect class="s{slot}" x="{x:.0f}" y="{HEIGHT - 26}" width="10" height="10" rx="3"/>'
        yield f'<text x="{x + 16:.0f}" y="{HEIGHT - 17}">{escape(shown)}</text>'
        x += 36 + 7 * len(shown)
