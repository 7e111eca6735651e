"""Which notices are raised: each threshold once in its period, whoever looks; the how-to is right."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from spendmeter import metrics as m
from spendmeter.budgets.file import load
from spendmeter.budgets.model import Budget, Budgets, Notifier, Threshold
from spendmeter.budgets.periods import Period
from spendmeter.ledger import Ledger
from spendmeter.ledger.exposition import exposition
from spendmeter.notices.delivery import deliver
from spendmeter.notices.raising import raise_new
from tests.feed import make_ledger, use
from tests.hooks import Receiver
from tests.made import NOON
from tests.noticed import DAY_MS, HOUR_MS, rows

DAY = Period("day")
OPS = Notifier("ops", webhook="http://127.0.0.1:1/")
HOW_TO = Path(__file__).parents[1] / "docs" / "how-to" / "notices.md"


def budget(name: str = "b", period: Period = DAY, at: tuple[str, ...] = ("0.5", "0.8", "1"), **rest: Any) -> Budget:
    """100 tokens in a day."""
    return Budget(name, period, "tokens", 100, thresholds=tuple(Threshold(Decimal(x), "info") for x in at), **rest)


def defined(*budgets: Budget, notifiers: tuple[Notifier, ...] = (OPS,)) -> Budgets:
    return Budgets(budgets, notifiers, "x")


def waiting(ledger: Ledger) -> list[tuple[str, str, str]]:
    """(value, threshold, notifier) of what is to be delivered."""
    return [(r.value, r.threshold, r.notifier) for r in rows(ledger) if r.due_ms is not None]


# -- raising -----------------------------------------------------------------------------------------------------------


def test_a_threshold_is_raised_once(both: Ledger) -> None:
    """However often anyone looks, and at nothing that has not been crossed."""
    assert raise_new(both, defined(budget()), NOON) == 0
    use(both, "s1", 50, NOON)
    assert [raise_new(both, defined(budget()), NOON + i * 60_000) for i in range(3)] == [1, 0, 0]
    assert waiting(both) == [("", "0.5", "ops")]
    use(both, "s2", 30, NOON)
    assert raise_new(both, defined(budget()), NOON + HOUR_MS) == 1
    assert [(r.threshold, r.at_ms, r.period_start_ms) for r in rows(both)] == [
        ("0.5", NOON, NOON - DAY_MS // 2),
        ("0.8", NOON + HOUR_MS, NOON - DAY_MS // 2),
    ]


def test_of_several_at_once_the_highest_is_told(both: Ledger) -> None:
    """The lower ones are recorded and never sent."""
    use(both, "s1", 99, NOON)
    assert raise_new(both, defined(budget()), NOON) == 1
    assert waiting(both) == [("", "1", "ops")]
    assert [(r.threshold, r.due_ms, r.sent_ms, r.error) for r in rows(both)][:2] == [("0.5", None, None, None), ("0.8", None, None, None)]


def test_a_higher_one_takes_the_place_of_a_lower_one_that_still_waits(both: Ledger) -> None:
    """Whoever was down gets the last word only."""
    use(both, "s1", 50, NOON)
    raise_new(both, defined(budget()), NOON)
    use(both, "s2", 40, NOON)
    raise_new(both, defined(budget()), NOON)
    assert waiting(both) == [("", "0.8", "ops")]


def test_a_lower_threshold_that_is_added_later_is_not_told(both: Ledger) -> None:
    """After 100 %, 90 % is no news."""
    use(both, "s1", 99, NOON)
    raise_new(both, defined(budget()), NOON)
    assert raise_new(both, defined(budget(at=("0.5", "0.8", "0.9", "1"))), NOON + 1) == 0
    assert waiting(both) == [("", "1", "ops")]
    assert len(rows(both)) == 3


STEPS = [  # used in all, limit, the threshold that is news
    (104, 100, "1"),
    (105, 110, None),  # 80% of it is less than what had been spent
    (110, 110, "1"),
    (150, 200, None),
    (165, 200, "0.8"),
    (166, 200, None),
    (167, 180, None),
    (168, 160, "1"),
    (169, 320, None),
    (256, 320, "0.8"),
]


def test_another_limit_has_news_again(both: Ledger) -> None:
    """Raised, of amounts larger than what was told of; lowered, of larger shares; and nothing twice."""
    for i, (used, limit, news) in enumerate(STEPS):
        use(both, f"s{i}", used - (STEPS[i - 1][0] if i else 0), NOON)
        limited = defined(replace(budget(), limit=limit))
        assert [raise_new(both, limited, NOON + i) for _ in range(2)] == [news is not None, 0], STEPS[i]
        assert news is None or waiting(both) == [("", news, "ops")]


def test_a_new_period_tells_again(both: Ledger) -> None:
    """A day's threshold on the next day; a total's never."""
    both_budgets = defined(budget(), budget("all", Period("total"), ("0.5",)))
    for day in range(3):
        use(both, f"s{day}", 60, NOON + day * DAY_MS)
        raise_new(both, both_budgets, NOON + day * DAY_MS)
        raise_new(both, both_budgets, NOON + day * DAY_MS + DAY_MS // 2 - 1)
    told = [(r.budget, (r.at_ms - NOON) // DAY_MS) for r in rows(both)]
    assert sorted(told) == [("all", 0), ("b", 0), ("b", 1), ("b", 2)]


def test_a_rolling_period_tells_again_when_it_is_over(both: Ledger) -> None:
    """Not before the last time is as long ago as the period; what is still above then is told."""
    five_hours = defined(budget(period=Period("rolling", length_ms=5 * HOUR_MS), at=("0.5", "0.8")))
    for hour in range(12):
        use(both, f"s{hour}", 15, NOON + hour * HOUR_MS)
        raise_new(both, five_hours, NOON + hour * HOUR_MS)
    told = [((r.at_ms - NOON) // HOUR_MS, r.threshold) for r in rows(both)]
    # 16 tokens an hour, five hours in the window: 64 from the fourth on, 80 from the fifth.
    assert told == [(3, "0.5"), (4, "0.8"), (9, "0.5"), (9, "0.8")]
    assert len({r.id for r in rows(both)}) == 4


def test_each_value_and_each_notifier_is_told(both: Ledger) -> None:
    """A budget names its notifiers; None is all of them."""
    pager = Notifier("pager", command=("true",))
    use(both, "s1", 60, NOON, task="T-1")
    use(both, "s2", 90, NOON, task="T-2")
    use(both, "s3", 10, NOON, task="T-3")
    asked = defined(budget(per="task"), budget("some", per="task", notify=("pager",)), budget("none", notify=()), notifiers=(OPS, pager))
    assert raise_new(both, asked, NOON) == 6
    assert sorted(waiting(both)) == [
        ("T-1", "0.5", "ops"), ("T-1", "0.5", "pager"), ("T-1", "0.5", "pager"),
        ("T-2", "0.8", "ops"), ("T-2", "0.8", "pager"), ("T-2", "0.8", "pager"),
    ]  # fmt: skip


def test_ids_are_of_the_ledger(tmp_path: Path) -> None:
    """Two ledgers with the same budgets do not seem to say the same thing twice."""
    ids = []
    for name in "ab":
        made = make_ledger(f"sqlite:///{tmp_path / name}.db")
        use(made, "s1", 60, NOON)
        raise_new(made, defined(budget()), NOON)
        ids += [r.id for r in rows(made)]
        made.close()
    assert len(set(ids)) == 2
    assert {len(x) for x in ids} == {32}


RAISER = """
import sys
from pathlib import Path
from spendmeter.budgets.file import load
from spendmeter.config import Settings
from spendmeter.ledger import Ledger
from spendmeter.notices.raising import raise_new
ledger, budgets = Ledger(Settings(sys.argv[1])), load(Path(sys.argv[2]))
print("ready", flush=True)
sys.stdin.read(1)
print(sum(raise_new(ledger, budgets, int(at)) for at in sys.argv[3:]))
"""


def test_many_processes_raise_each_once(both: Ledger, tmp_path: Path) -> None:
    """Four processes look at the same forty periods at the same time."""
    file = tmp_path / "budgets.yaml"
    file.write_text("budgets: [{name: b, period: day, limit_tokens: 100}, {name: r, period: 24h, limit_tokens: 100}]\n")
    file.write_text(file.read_text() + "notify: [{name: ops, command: ['true']}]\n")
    days = [NOON + day * DAY_MS for day in range(20)]
    for at in days:
        use(both, f"s{at}", 85, at)
    line = [sys.executable, "-c", RAISER, both.settings.ledger, str(file), *map(str, days)]
    started = [subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    assert [process.stdout.readline() for process in started if process.stdout] == ["ready\n"] * 4
    for process in started:
        assert process.stdin is not None
        process.stdin.write("x")
        process.stdin.close()
    counts = [int(process.stdout.read()) for process in started if process.stdout]
    assert [process.wait() for process in started] == [0] * 4
    assert sum(counts) == 40
    assert len(waiting(both)) == 40
    for process in started:
        assert process.stdout is not None
        process.stdout.close()


def test_the_message_tells_where_the_budget_stands(ledger: Ledger) -> None:
    """A document and one line, with money as text; nothing of a session, a path or a prompt."""
    money = Budget(
        "credit", Period("month", "Europe/Berlin"), "usd", 10**10, thresholds=(Threshold(Decimal("0.8"), "warning"),), per="task"
    )
    use(ledger, "session-7f31", 1, NOON, cost_nusd=8_312_345_678)
    raise_new(ledger, defined(money), NOON)
    row = rows(ledger)[0]
    told = json.loads(row.body)
    standing = told.pop("budget")
    assert told == {
        "id": row.id, "type": "budget.threshold", "created_at": "2026-11-02T12:00:00.000+00:00", "threshold": "0.8", "severity": "warning",
        "text": "past 80% of budget credit for task T-1: $8.31 of $10.00 spent since 2026-11-01 00:00 Europe/Berlin",
        "ledger_id": ledger.facts_about()["ledger_id"],
    }  # fmt: skip
    assert (standing["name"], standing["value"], standing["spent_usd"]) == ("credit", "T-1", "8.312345678")
    assert "session-7f31" not in row.body


def test_the_gauge_counts_what_waits(ledger: Ledger) -> None:
    """0 where there is nothing to tell."""
    assert exposition(ledger, "scrape").gauge(m.NOTICES_PENDING) == [((), 0)]
    use(ledger, "s1", 99, NOON)
    raise_new(ledger, defined(budget(), budget("c")), NOON)
    assert exposition(ledger, "scrape").gauge(m.NOTICES_PENDING) == [((), 2)]


# -- the how-to --------------------------------------------------------------------------------------------------------


def block(language: str) -> str:
    return HOW_TO.read_text().partition(f"```{language}\n")[2].partition("```")[0]


def test_the_how_tos_file_is_right_and_its_code_verifies(
    ledger: Ledger, receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The YAML loads; the Python takes a real message and refuses it with anything changed."""
    (tmp_path / "b.yaml").write_text(block("yaml"))
    assert [n.name for n in load(tmp_path / "b.yaml").notifiers] == ["ops", "pager"]
    known: dict[str, Any] = {}
    exec(block("python"), known)
    use(ledger, "s1", 60, NOON)
    for secret in ("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "plain secret"):
        monkeypatch.setenv("SECRET", secret)
        signed = defined(budget(f"b{len(secret)}"), notifiers=(Notifier("ops", receiver.url(), "SECRET"),))
        assert raise_new(ledger, signed, NOON) == 1
        assert deliver(ledger, signed, NOON, threading.Event()).sent == 1
        post = receiver.posts[-1]
        assert known["verify"](post.headers, post.body, secret)
        assert not known["verify"](post.headers, post.body + b" ", secret)
        assert not known["verify"](post.headers, post.body, "another")
        old = dict(post.headers) | {"webhook-timestamp": str(int(post.headers["webhook-timestamp"]) - 301)}
        assert not known["verify"](old, post.body, secret)
    assert set(json.loads(block("json"))) == set(receiver.posts[0].told)


def test_a_port_that_nobody_listens_on_is_named_by_its_host(ledger: Ledger, tmp_path: Path) -> None:
    """And why."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    use(ledger, "s1", 60, NOON)
    dead = defined(budget(), notifiers=(Notifier("ops", f"http://127.0.0.1:{port}/T0KEN"),))
    raise_new(ledger, dead, NOON)
    failed = deliver(ledger, dead, NOON, threading.Event()).failed
    assert [str(f) for f in failed] == ["budget b at 50%: 127.0.0.1: Connection refused; kept, and tried again"]
