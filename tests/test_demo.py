"""The sample that ``spendmeter demo`` shows: what it is made of, and what it says."""

from __future__ import annotations

from spendmeter.demo import RUNS, SAMPLE, load
from spendmeter.ledger import Ledger
from spendmeter.ledger.query import report, runs
from tests.runs import FIELDS, ROOT, Chain


def test_the_sample_is_what_was_captured() -> None:
    """Its files are the fixtures', byte for byte."""
    for name in RUNS:
        case = ROOT / "claude" / name
        theirs = {"stdout": case / "stdout"} | {
            str(p.relative_to(next(case.glob("home/.claude/projects/*")))): p for p in case.rglob("home/**/*.jsonl")
        }
        mine = {str(p.relative_to(SAMPLE / name)): p for p in (SAMPLE / name).rglob("*") if p.is_file()}
        assert {k: p.read_bytes() for k, p in theirs.items()} == {k: p.read_bytes() for k, p in mine.items()}


def test_the_sample_says_what_the_server_billed(ledger: Ledger) -> None:
    """Totals equal the truth beside the fixtures; taking it in twice changes nothing."""
    load(ledger)
    truth = Chain("claude", tuple(ROOT / "claude" / name for name in RUNS)).truth(least=False)
    first = report(ledger, ["agent", "task"])
    assert {name: getattr(first.total, name) for name in FIELDS} == truth
    again = load(ledger)
    assert (again.sources, again.changed, again.unchanged) == (0, 0, 15)
    assert report(ledger, ["agent", "task"]) == first
    assert {(r.agent, r.task) for r in runs(ledger)} == {(x.agent, x.task) for x in RUNS.values()}
