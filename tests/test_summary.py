"""Comments on runs and tasks, in English and Russian: shape, plural forms, numbers."""

from __future__ import annotations

import re
import string
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import spendmeter.projections
from spendmeter.errors import ConfigError
from spendmeter.ledger.query import Amounts, RunLine, TaskTotals
from spendmeter.plans.model import Estimate, Figures, Plan, Snapshot
from spendmeter.plans.variance import Actual, compare
from spendmeter.projections.messages import languages, messages
from spendmeter.projections.summary import ICONS, finish_line, task_markdown

CATALOGUES = sorted((Path(spendmeter.projections.__file__).parent / "locale").glob("*.toml"))
NBSP = "\u00a0"
USED = Amounts(tokens_in=45_213, tokens_out=12_098, reported_nusd=210_000_000, runs=1)


def run(amounts: Amounts = USED, **fields: Any) -> RunLine:
    plain = {
        "run_key": "r", "cli": "claude", "session": "s", "agent": "developer", "task": "T-1", "outcome": "ok", "implied": False,
        "attrs": {}, "models": (), "started_ms": None, "ended_ms": 0, "duration_ms": None, "exit_code": 0,
        "repo": None, "branch": None, "notes": (),
    }  # fmt: skip
    return RunLine(**(plain | fields), amounts=amounts)


def task(*agents: tuple[str, Amounts], **fields: Any) -> TaskTotals:
    total = Amounts()
    for _, amounts in agents:
        total = total.plus(amounts)
    plain = {"task": "SHOP-1", "outcomes": {"ok": total.runs}, "work_ms": 65_000, "first_ms": 0, "last_ms": 7_800_000}
    return TaskTotals(agents=agents, total=total, **(plain | fields))


# -- the finish comment ------------------------------------------------------------------------------------------------


def test_the_finish_comment_has_the_required_shape() -> None:
    """Icon, agent, how it ended, tokens, cost."""
    assert finish_line(run(), messages("en")) == "✅ Developer done · 45.2k in / 12.1k out · $0.21"


def test_cache_is_added_where_there_was_any() -> None:
    """After the required shape; reads and writes together."""
    cached = USED._replace(cache_read=60_000, cache_write_5m=90, cache_write_1h=10)
    assert finish_line(run(cached), messages("en")) == "✅ Developer done · 45.2k in / 12.1k out · $0.21 · 60.1k cached"
    assert finish_line(run(USED._replace(cache_read=0)), messages("en")).endswith("$0.21")


def test_the_finish_comment_in_russian() -> None:
    """Decimal comma, scale words and currency as Russian writes them, with spaces that do not break."""
    expected = f"✅ Developer: готово · 45,2{NBSP}тыс. вход / 12,1{NBSP}тыс. выход · 0,21{NBSP}$"
    assert finish_line(run(), messages("ru")) == expected


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        ("ok", "✅ Developer done"), ("error", "❌ Developer failed"), ("max_budget", "💸 Developer stopped by budget"),
        ("max_turns", "🔁 Developer stopped by turn limit"), ("interrupted", "✋ Developer interrupted"), ("killed", "🛑 Developer killed"),
        ("unknown", "⚪ Developer ended"), ("melted", "⚪ Developer melted"),
    ],
)  # fmt: skip
def test_every_outcome_has_its_icon_and_word(outcome: str, expected: str) -> None:
    """An outcome that no catalogue has stands as it is."""
    assert finish_line(run(outcome=outcome), messages("en")).startswith(f"{expected} · ")


def test_unknown_usage_and_cost_are_said_so() -> None:
    """Never 0."""
    en = messages("en")
    assert finish_line(run(Amounts(runs=1), outcome="error"), en) == "❌ Developer failed · usage unknown · cost unknown"
    assert finish_line(run(USED._replace(reported_nusd=None)), en) == "✅ Developer done · 45.2k in / 12.1k out · cost unknown"
    assert finish_line(run(USED._replace(tokens_in=None)), en) == "✅ Developer done · ? in / 12.1k out · $0.21"


@pytest.mark.parametrize(
    ("agent", "shown"),
    [
        ("heartbeat-3", "Heartbeat-3"), ("QA", "QA"), ("unknown", "Run"), ("ревью", "Ревью"),
        ("a|b*c", "A\\|b\\*c"), ("x\ny\x1b[31m", "X y \\[31m"),
    ],
)  # fmt: skip
def test_an_agents_name_starts_the_sentence_and_stays_one_plain_line(agent: str, shown: str) -> None:
    """Markdown, line breaks and terminal codes in a name do nothing."""
    assert finish_line(run(agent=agent), messages("en")).startswith(f"✅ {shown} done")


# -- the end-of-task summary -------------------------------------------------------------------------------------------

DEVELOPER = Amounts(tokens_in=45_213, tokens_out=12_098, cache_read=60_000, reported_nusd=210_000_000, calls=9, runs=3)
REVIEWER = Amounts(tokens_in=900, tokens_out=80, estimated_nusd=4_200_000, unpriced_tokens=0, runs=1)


def test_the_task_summary_has_a_line_per_agent_and_a_total() -> None:
    """Markdown, in the order given."""
    text = task_markdown(task(("developer", DEVELOPER), ("reviewer", REVIEWER), outcomes={"error": 1, "ok": 3}), messages("en"))
    assert text == (
        "### SHOP-1: what it took\n\n"
        "| Agent | Runs | In | Out | Cached | Cost |\n"
        "|---|---:|---:|---:|---:|---:|\n"
        "| Developer | 3 | 45.2k | 12.1k | 60.0k | $0.21 |\n"
        "| Reviewer | 1 | 900 | 80 | – | $0.0042 |\n"
        "| **Total** | **4** | **46.1k** | **12.2k** | **60.0k** | **$0.21** |\n\n"
        "- 4 runs: 3 done, 1 failed\n"
        "- Duration: 1 min 5 s of work within 2 h 10 min\n"
        "- $0.0042 of this is estimated at list prices; no CLI reported it.\n"
    )


def test_the_task_summary_in_russian() -> None:
    """The same facts, with the plural that 4 takes."""
    text = task_markdown(task(("developer", DEVELOPER), ("reviewer", REVIEWER)), messages("ru")).replace(NBSP, " ")
    assert "| Developer | 3 | 45,2 тыс. | 12,1 тыс. | 60,0 тыс. | 0,21 $ |" in text
    assert "| **Итого** | **4** |" in text
    assert "- 4 запуска: готово — 4\n- Длительность: 1 мин 5 с работы за 2 ч 10 мин\n" in text


def test_one_agent_is_its_own_total_and_no_plan_no_line() -> None:
    """A total line would only repeat; each plan is told in its one line, last."""
    alone = task(("developer", DEVELOPER))
    assert "Total" not in task_markdown(alone, messages("en"))
    assert "Plan" not in task_markdown(alone, messages("en"))
    planned = Snapshot("0" * 16, Plan("a|b", (Estimate((None, None, None), Figures(cost_nusd=900_000_000)),)), 0, 0)
    used = [((None, None, "developer"), Actual(reported_nusd=210_000_000, unpriced_tokens=0, runs=1))]
    text = task_markdown(alone, messages("en"), [compare("a|b", None, planned, used), compare("gone", None, None, [])])
    assert text.endswith(
        "\n- Plan variance: a\\|b · cost $0.21 of $0.90 (−77%)\n"
        "- Plan variance: gone · cost $0.00 · calls 0 · tokens 0 · no snapshot of the plan is kept\n"
    )


def test_unpriced_usage_is_told() -> None:
    """So that nobody takes the cost for the whole."""
    lost = Amounts(tokens_in=21, unpriced_tokens=21, runs=1)
    assert "- The cost of 21 tokens is unknown: their model has no price.\n" in task_markdown(task(("x", lost)), messages("en"))
    assert "- Стоимость 21 токена неизвестна: у модели нет цены.\n" in task_markdown(task(("x", lost)), messages("ru"))


# -- language ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "expected"),
    [
        (0, "0 запусков"), (1, "1 запуск"), (2, "2 запуска"), (4, "4 запуска"), (5, "5 запусков"), (11, "11 запусков"), (12, "12 запусков"),
        (14, "14 запусков"), (21, "21 запуск"), (22, "22 запуска"), (25, "25 запусков"), (101, "101 запуск"), (111, "111 запусков"),
        (1_004, f"1{NBSP}004 запуска"),
    ],
)  # fmt: skip
def test_russian_plural_forms(n: int, expected: str) -> None:
    """CLDR's rule for whole numbers."""
    assert messages("ru").count("task.run_count", n) == expected


@pytest.mark.parametrize(("n", "expected"), [(0, "0 runs"), (1, "1 run"), (2, "2 runs"), (21, "21 runs"), (1_004, "1,004 runs")])
def test_english_plural_forms(n: int, expected: str) -> None:
    """One and other."""
    assert messages("en").count("task.run_count", n) == expected


@pytest.mark.parametrize(
    ("n", "english", "russian"),
    [
        (0, "0", "0"), (999, "999", "999"), (1_000, "1.0k", "1,0 тыс."), (45_249, "45.2k", "45,2 тыс."), (45_250, "45.3k", "45,3 тыс."),
        (999_949, "999.9k", "999,9 тыс."), (999_950, "1.0M", "1,0 млн"), (1_250_000, "1.3M", "1,3 млн"),
        (2_000_000_000, "2.0B", "2,0 млрд"),
    ],
)  # fmt: skip
def test_large_numbers_are_cut_to_what_a_reader_takes_in(n: int, english: str, russian: str) -> None:
    """One decimal, never 1000.0k."""
    assert (messages("en").compact(n), messages("ru").compact(n).replace(NBSP, " ")) == (english, russian)


@pytest.mark.parametrize(
    ("nusd", "english", "russian"),
    [
        (0, "$0.00", "0,00 $"), (1, "<$0.0001", "<0,0001 $"), (4_200_000, "$0.0042", "0,0042 $"), (210_000_000, "$0.21", "0,21 $"),
        (215_000_000, "$0.22", "0,22 $"), (1_234_567_000_000, "$1,234.57", "1 234,57 $"),
    ],
)  # fmt: skip
def test_money_keeps_the_places_that_matter(nusd: int, english: str, russian: str) -> None:
    """Cents, and four places below a cent."""
    assert (messages("en").money(nusd), messages("ru").money(nusd).replace(NBSP, " ")) == (english, russian)


@pytest.mark.parametrize(
    ("ms", "expected"),
    [
        (0, "0 s"), (499, "0 s"), (59_600, "1 min 0 s"), (65_000, "1 min 5 s"), (7_800_000, "2 h 10 min"), (90_000_000, "25 h 0 min"),
        (2 * 86_400_000, "2 d 0 h"),
    ],
)  # fmt: skip
def test_durations_tell_their_two_greatest_units(ms: int, expected: str) -> None:
    """Rounded to a second."""
    assert messages("en").duration(ms) == expected


def leaves(value: Any, path: str = "") -> dict[str, str]:
    if isinstance(value, dict):
        return {k: v for name, inner in value.items() for k, v in leaves(inner, f"{path}.{name}").items()}
    return {path: value}


PLURALS = re.compile(r"\.(one|few|many|other)$")


def names(text: str) -> set[str | None]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}


@pytest.mark.parametrize("path", CATALOGUES, ids=lambda p: p.stem)
def test_every_catalogue_has_the_same_messages(path: Path) -> None:
    """Same keys, same fields to fill in; every outcome with an icon has a word."""
    english = leaves(tomllib.loads((path.parent / "en.toml").read_text("utf-8")))
    found = leaves(tomllib.loads(path.read_text("utf-8")))
    assert {PLURALS.sub("", k) for k in found} == {PLURALS.sub("", k) for k in english}
    for key, text in found.items():
        assert names(text) == names(english[PLURALS.sub(".other", key) if PLURALS.search(key) else key]), key
    assert ICONS.keys() == {k.removeprefix(".outcome.") for k in found if k.startswith(".outcome.")}


def test_the_languages_are_the_catalogues() -> None:
    """And another one is refused."""
    assert languages() == [p.stem for p in CATALOGUES] == ["en", "ru"]
    with pytest.raises(ConfigError, match='language "de" is not one of en, ru'):
        messages("de")


AMOUNT = st.none() | st.integers(0, 10**15)


@given(st.sampled_from(["en", "ru"]), st.lists(AMOUNT, min_size=12, max_size=12), st.text(max_size=30), st.text(max_size=10))
def test_any_run_makes_one_line(lang: str, amounts: list[int | None], agent: str, outcome: str) -> None:
    """Whatever the names and numbers."""
    line = finish_line(run(Amounts(*amounts, runs=1), agent=agent, outcome=outcome), messages(lang))  # type: ignore[arg-type]
    assert " · " in line
    assert "None" not in line
    assert "\n" not in line


@given(st.sampled_from(["en", "ru"]), st.lists(AMOUNT, min_size=12, max_size=12), st.lists(st.text(max_size=30), min_size=1, max_size=4))
def test_any_task_makes_a_whole_table(lang: str, amounts: list[int | None], agents: list[str]) -> None:
    """Every line of the table has seven bars, whatever the names hold."""
    used = Amounts(*amounts, runs=1)  # type: ignore[arg-type]
    table = [x for x in task_markdown(task(*[(a, used) for a in agents]), messages(lang)).splitlines() if x.startswith("|")]
    assert len(table) == 2 + len(agents) + (len(agents) > 1)
    assert {len(re.findall(r"(?<!\\)(?:\\\\)*\|", x)) for x in table} == {7}
