"""Which notices are raised: each threshold once in its period, whoever looks; and what the commands do about them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from sqlalchemy import select

from spendmeter import metrics as m
from spendmeter import notices
from spendmeter.budgets.definitions import Definitions
from spendmeter.budgets.file import load
from spendmeter.budgets.model import Budget, Budgets, Notifier, Threshold
from spendmeter.budgets.periods import Period
from spendmeter.cli import main
from spendmeter.ledger import Ledger, now_ms
from spendmeter.ledger import schema as t
from spendmeter.ledger.exposition import exposition
from spendmeter.notices import teller
from spendmeter.notices.delivery import deliver
from spendmeter.notices.raising import raise_new
from tests.feed import make_ledger, use
from tests.hooks import Receiver
from tests.made import NOON

DAY_MS, HOUR_MS = 86_400_000, 3_600_000
DAY = Period("day")
OPS = Notifier("ops", webhook="http://127.0.0.1:1/")
HOW_TO = Path(__file__).parents[1] / "docs" / "how-to" / "notices.md"


def budget(name: str = "b", period: Period = DAY, at: tuple[str, ...] = ("0.5", "0.8", "1"), **rest: Any) -> Budget:
    """100 tokens in a day."""
    return Budget(name, period, "tokens", 100, thresholds=tuple(Threshold(Decimal(x), "info") for x in at), **rest)


def defined(*budgets: Budget, notifiers: tuple[Notifier, ...] = (OPS,)) -> Budgets:
    return Budgets(budgets, notifiers, "x")


def rows(ledger: Ledger) -> list[Any]:
    with ledger.read() as conn:
        return list(conn.execute(select(t.notices).order_by(t.notices.c.at_ms, t.notices.c.threshold, t.notices.c.notifier)))


def waiting(ledger: Ledger) -> list[tuple[str, str, str]]:
    """(value, threshold, notifier) of what is to be delivered."""
    return [(r.value, r.threshold, r.notifier) for r in rows(ledger) if r.due_ms is not None]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.close()


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
    time.sleep(2)
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


# -- one process's part ------------------------------------------------------------------------------------------------


def write(path: Path, receiver: Receiver | None, *, limit: int = 100, more: str = "") -> Path:
    """A file with one budget and, where there is a receiver, one webhook with a token in its address."""
    told = f"notify: [{{name: ops, webhook: '{receiver.url('/T0KEN?key=T0KEN')}'}}]\n" if receiver else ""
    path.write_text(f"budgets: [{{name: b, period: total, limit_tokens: {limit}}}]\n{told}{more}")
    return path


def test_it_looks_only_where_something_may_be_new(
    ledger: Ledger, receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a commit, in a new minute, or when the file has changed."""
    looked = []
    monkeypatch.setattr(teller, "raise_new", lambda *args: looked.append(args[2]) or raise_new(*args))
    one = teller.Teller(Definitions(write(tmp_path / "b.yaml", receiver)))
    passes = [
        (0, lambda: None, 1),
        (1000, lambda: None, 1),
        (2000, lambda: use(ledger, "s1", 60, NOON), 2),
        (3000, lambda: None, 2),
        (60_000, lambda: None, 3),
        (61_000, lambda: write(tmp_path / "b.yaml", receiver, limit=110), 4),
        (62_000, lambda: None, 4),
    ]
    for after_ms, happens, expected in passes:
        happens()
        one.tell(ledger, NOON + after_ms, threading.Event())
        assert len(looked) == expected, after_ms
    assert len(receiver.posts) == 1


def test_an_old_ledger_tells_once_when_notices_are_switched_on(ledger: Ledger, receiver: Receiver, tmp_path: Path) -> None:
    """What was crossed before is told at the first look, not at the next process's."""
    use(ledger, "s1", 300, NOON)
    for _ in range(3):
        teller.Teller(Definitions(write(tmp_path / "b.yaml", receiver))).tell(ledger, now_ms(), threading.Event())
    assert [p.told["threshold"] for p in receiver.posts] == ["1"]


# -- spendmeter budget notify ------------------------------------------------------------------------------------------


def notify(ledger: Ledger, file: Path, *args: str) -> tuple[int, str, str]:
    """(exit code, standard output, standard error)"""
    env = {"SPENDMETER_LEDGER": ledger.settings.ledger, "SPENDMETER_BUDGETS": str(file)}
    done = CliRunner().invoke(main, ["budget", "notify", *args], env=env)
    return done.exit_code, done.stdout, done.stderr


def test_the_command_says_what_it_did(ledger: Ledger, receiver: Receiver, tmp_path: Path) -> None:
    """Exit code 1 while something cannot be delivered, with budget, threshold and host; never the address."""
    file = write(tmp_path / "b.yaml", receiver)
    use(ledger, "s1", 84, NOON)
    receiver.status = 401
    code, out, err = notify(ledger, file)
    assert (code, out) == (1, "1 new, 0 sent, 1 failed\n")
    assert err == "spendmeter: budget b at 80%: 127.0.0.1: answered 401; given up\n"
    receiver.status = 200
    use(ledger, "s2", 30, NOON)
    code, out, err = notify(ledger, file, "--json")
    assert (code, json.loads(out), err) == (0, {"raised": 1, "sent": 1, "failed": []}, "")
    assert notify(ledger, file) == (0, "0 new, 0 sent\n", "")
    use(ledger, "s3", 1, NOON)
    receiver.status = 503
    write(file, receiver, limit=110, more="")
    file.write_text(file.read_text().replace("limit_tokens: 110", "limit_tokens: 110, thresholds: [0.5, 0.8, 1, 1.01]"))
    code, out, err = notify(ledger, file, "--json")
    assert code == 1
    assert json.loads(out)["failed"] == [
        {
            "budget": "b", "value": "", "threshold": "1.01", "notifier": "ops", "place": "127.0.0.1", "attempts": 1,
            "error": "answered 503", "given_up": False,
        }
    ]  # fmt: skip
    assert "T0KEN" not in out + err


def test_the_command_needs_budgets(ledger: Ledger) -> None:
    """One line that says where to name them."""
    env = os.environ | {"SPENDMETER_LEDGER": ledger.settings.ledger}
    done = subprocess.run([sys.executable, "-m", "spendmeter", "budget", "notify"], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("spendmeter: no budgets")
    assert len(done.stderr.splitlines()) == 1


# -- after a run -------------------------------------------------------------------------------------------------------


@pytest.fixture
def env(ledger: Ledger, receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Variables that name the ledger and a budgets file with a webhook; the file."""
    file = write(tmp_path / "b.yaml", receiver)
    monkeypatch.setenv("SPENDMETER_BUDGETS", str(file))
    monkeypatch.setenv("SPENDMETER_LEDGER", ledger.settings.ledger)
    return file


def test_a_run_tells_at_its_end(ledger: Ledger, receiver: Receiver, env: Path) -> None:
    """Once."""
    use(ledger, "s1", 60, NOON)
    assert notices.after_run(None, None) == []
    assert notices.after_run(None, None) == []
    assert len(receiver.posts) == 1


@pytest.mark.alone
def test_a_run_does_not_wait_for_a_slow_receiver(ledger: Ledger, receiver: Receiver, env: Path) -> None:
    """Three seconds at most; the notice is kept."""
    receiver.delay_s = 30
    use(ledger, "s1", 60, NOON)
    began = time.monotonic()
    said = notices.after_run(None, None)
    assert time.monotonic() - began < notices.AFTER_RUN_S + 1
    assert said in ([], ["budget b at 50%: 127.0.0.1: no answer within 3 s; kept, and tried again"])  # [] where the machine is busy
    assert [(r.attempts, r.sent_ms, r.due_ms > now_ms()) for r in rows(ledger)] == [(1, None, True)]


@pytest.mark.alone
def test_a_run_does_not_wait_for_a_locked_ledger(ledger: Ledger, receiver: Receiver, env: Path) -> None:
    """Another writer may hold it for long."""
    use(ledger, "s1", 60, NOON)
    with ledger.write():
        began = time.monotonic()
        assert notices.after_run(None, None) == []
        assert time.monotonic() - began < notices.AFTER_RUN_S + 1
    assert receiver.posts == []


@pytest.mark.parametrize("wrong", ["ledger", "file", "missing"])
def test_nothing_that_is_wrong_reaches_the_run(env: Path, monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    """A ledger that cannot be opened, a file that is wrong or has gone."""
    if wrong == "ledger":
        monkeypatch.setenv("SPENDMETER_LEDGER", "sqlite:////proc/none/ledger.db")
    elif wrong == "file":
        env.write_text("budgets: 3\n")
    else:
        env.unlink()
    assert notices.after_run(None, None) == []


@pytest.mark.parametrize("defined_", [False, True])
def test_a_run_without_notifiers_loads_nothing_for_them(tmp_path: Path, defined_: bool) -> None:
    """Neither a database nor HTTP, with budgets or without."""
    code = (
        "import sys; from spendmeter import notices; notices.after_run(None, None); "
        "print([x for x in ('sqlalchemy', 'urllib.request', 'spendmeter.notices.teller') if x in sys.modules])"
    )
    budgets = {"SPENDMETER_BUDGETS": str(write(tmp_path / "b.yaml", None))} if defined_ else {}
    env = os.environ | budgets | {"SPENDMETER_LEDGER": "sqlite:////proc/none/ledger.db"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


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
