"""What holds for the parsers of all CLIs: rows are told apart, nothing raises, every usage is an observation or a skip."""

from __future__ import annotations

import io
import json
import sqlite3
import sys
import tempfile
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spendmeter import parsers
from spendmeter.parsers import PARSERS, Stream, places, read, read_file
from spendmeter.parsers.scan import Scanner
from spendmeter.records import Call, Level, Part, Skip
from tests.runs import CLIS, ROOT, Chain, all_chains, observe

RUNS = [f for cli in CLIS for f in sorted((ROOT / cli).iterdir())]
TEXTS = [p for c in all_chains() for p in [*c.stdouts(), *c.files()] if p.suffix != ".db"]
DATABASE = ROOT / "opencode" / "json-subagent-anthropic" / "home" / ".local" / "share" / "opencode" / "opencode.db"


def rows(path: Path) -> Iterator[dict[str, Any]]:
    """Every JSON object of a file."""
    scanner = Scanner((b"{",))
    yield from (row for _, row in scanner.feed(path.read_bytes()))
    yield from (row for _, row in scanner.finish())


def claims(row: dict[str, Any]) -> list[tuple[str, str]]:
    return [(p.NAME, kind) for p in PARSERS for kind, knows in (("stdout", p.is_stdout), ("file", p.is_file)) if knows(row)]


@pytest.mark.parametrize("run", RUNS, ids=[f"{r.parent.name}/{r.name}" for r in RUNS])
def test_every_row_is_known_to_its_own_cli_or_to_none(run: Path) -> None:
    """Of all parsers at most one claims a row, it is the right one, and it knows whether the row was printed or written."""
    cli = run.parent.name
    for part, kind in (("stdout", "stdout"), ("home", "file"), ("work", "stdout")):
        for path in [run / part] if part == "stdout" else sorted((run / part).rglob("*.json*")):
            for row in rows(path):
                assert claims(row) in ([], [(cli, kind)]), (path.name, sorted(row))


@pytest.mark.parametrize("cli", CLIS)
def test_rows_of_every_cli_are_known(cli: str) -> None:
    """The test above is not empty: of each CLI's printed and written rows some are known."""
    chains = [c for c in all_chains() if c.cli == cli]
    printed = {x for c in chains for p in c.stdouts() for r in rows(p) for x in claims(r)}
    written = {x for c in chains for p in c.transcripts() for r in rows(p) for x in claims(r)}
    assert printed == {(cli, "stdout")}
    assert written == ({(cli, "file")} if cli != "opencode" else set())  # opencode writes a database


def test_a_log_of_all_clis_holds_them_all() -> None:
    """An orchestrator's log with a run of each CLI tells of each, and of nothing else."""
    names = {"claude": "json-tool", "codex": "json-tool", "gemini": "json-tool", "qwen": "json-tool", "opencode": "json-tool-anthropic"}
    log = b"\n--- next ---\n".join((ROOT / cli / name / "stdout").read_bytes() for cli, name in names.items())
    seen, stream = read(io.BytesIO(log), None, "log")
    alone = [o for cli, name in names.items() for o in read_file(ROOT / cli / name / "stdout")[0]]
    assert {cli for cli, _ in stream.kinds} == set(names)
    assert set(map(repr, seen)) == {repr(o) for o in alone}


def fine(observations: list[Any]) -> None:
    """No number is negative or absurd, no text is more than a name."""
    for o in observations:
        assert not (isinstance(o, Skip) and o.reason.startswith("not understood")), o
        if isinstance(o, Call | Level | Part):
            assert all(x is None or 0 <= x < 1 << 63 for x in o.usage)
        if not isinstance(o, Skip):
            assert len(o.session) <= 256
            words = [v for v in (getattr(o, name) for name in o.__slots__) if isinstance(v, str)]
            assert all("\0" not in w and w.encode() is not None for w in words)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_damaged_source_raises_nothing(data: st.DataObject) -> None:
    """Bytes flipped, cut out or put into real sources of any CLI raise nothing."""
    path = data.draw(st.sampled_from(TEXTS))
    raw = bytearray(path.read_bytes()[:200_000])
    for _ in range(data.draw(st.integers(1, 5))):
        at = data.draw(st.integers(0, max(0, len(raw) - 1)))
        raw[at : at + data.draw(st.integers(0, 40))] = data.draw(st.binary(max_size=20))
    fine(read(io.BytesIO(bytes(raw)), None, "log", places.session_of(path))[0])


KNOWN = [row for path in TEXTS for row in rows(path) if claims(row)][::3]
NUMBERS = [True, -1, 0, 1.5, 1 << 53, 10**40, float("nan"), float("inf")]
WORDS = ["", "x", "12", "\ud800", "\0", "2026-13-40", "0001-01-01T00:00:00Z", "y" * 1000]
ODD: list[Any] = [None, *NUMBERS, *WORDS, [], [None], {}, {"x": 1}, [[]], {"a": {"b": {}}}]


def spots(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all values within *value*."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from spots(inner, (*path, key))


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_odd_values_raise_nothing(data: st.DataObject) -> None:
    """Any value of a row of any CLI may be missing or be anything else."""
    row = json.loads(json.dumps(data.draw(st.sampled_from(KNOWN))))
    for _ in range(data.draw(st.integers(1, 3))):
        if not (found := list(spots(row))):
            break
        *way, last = data.draw(st.sampled_from(found))
        inner = row
        for key in way:
            inner = inner[key]
        if isinstance(inner, dict) and data.draw(st.booleans()):
            del inner[last]
        else:
            inner[last] = deepcopy(data.draw(st.sampled_from(ODD)))
    fine(read(io.BytesIO(json.dumps(row).encode()), None, "log", "s")[0])


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_damaged_database_is_a_skip(data: st.DataObject) -> None:
    """Any bytes of opencode's database may be anything: what cannot be read is a skip or is not there."""
    raw = bytearray(DATABASE.read_bytes())
    for _ in range(data.draw(st.integers(1, 200))):
        at = data.draw(st.integers(20, len(raw) - 1))
        raw[at : at + 30] = data.draw(st.binary(min_size=30, max_size=30))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "opencode.db"
        path.write_bytes(raw)
        fine(read_file(path)[0])


def test_a_damage_that_is_no_text_is_a_skip(tmp_path: Path) -> None:
    """SQLite says what is wrong in the file's own bytes."""
    raw = DATABASE.read_bytes()
    path = tmp_path / "opencode.db"
    for good, bad in ((b"tablepartpart", b"table\xff\xfe\xff\xfepart"), (b"CREATE TABLE `part` (", b"CREATE TABLE ((((((((")):
        assert (raw.count(good), len(good)) == (1, len(bad))
        raw = raw.replace(good, bad)
    path.write_bytes(raw)
    fine(read_file(path)[0])


def test_a_foreign_database_is_no_source(tmp_path: Path) -> None:
    """Another program's database is passed over."""
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as db:
        db.execute("create table session (id text)")
    db.close()
    assert not parsers.is_source(path)
    assert read_file(path)[0] == []


SAID = ("MAIN-TASK", "SUB-TASK", "Stub answer", "Running echo", "Done. n=", "echo hi", "redacted", "[API Error")


@pytest.mark.parametrize("chain", all_chains(), ids=lambda c: c.name)
def test_no_content_is_observed(chain: Chain) -> None:
    """Nothing that was asked, answered or run is in any observation."""
    told = repr(observe([*chain.stdouts(), *chain.files()]))
    assert not [word for word in SAID if word in told]


# -- places ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chain", all_chains(), ids=lambda c: c.name)
def test_places_find_every_file_that_holds_usage(chain: Chain) -> None:
    """What ``sync`` finds in a home is all that tells of usage there, and its place names its session rightly or not at all."""
    place = parsers.places_of(chain.cli)
    assert place is not None
    for folder in chain.folders:
        home = folder / "home"
        found = {f for root in place.homes({}, home) for f in place.session_files(root)}
        for path in home.rglob("*.*"):
            told = {o.session for o in read_file(path)[0] if isinstance(o, Call | Level)} if path.is_file() else set()
            assert not told or path in found
            if told and (named := places.session_of(path)):
                assert named in told  # a fork's file tells of its parent too


def test_a_home_may_be_named_by_the_environment(tmp_path: Path) -> None:
    """Each CLI's own variable moves its home; ``home`` may be a user's or the CLI's folder."""
    env = {"CODEX_HOME": "/c", "GEMINI_CLI_HOME": "/g", "QWEN_HOME": "/q", "XDG_DATA_HOME": "/d", "COPILOT_HOME": "/p", "HOME": "/h"}
    want = {"codex": "/c", "gemini": "/g/.gemini", "qwen": "/q", "opencode": "/d/opencode", "copilot": "/p"}
    got = {cli: [str(h) for h in places.PLACES[cli].homes(env, None)] for cli in want}
    assert got == {cli: [path] for cli, path in want.items()}
    (tmp_path / "sessions").mkdir()
    assert places.PLACES["codex"].homes(env, tmp_path) == [tmp_path]
    assert places.PLACES["copilot"].homes(env, tmp_path) == [tmp_path / ".copilot"]


# -- parsers of third parties ------------------------------------------------------------------------------------------

THIRD = """
from pathlib import Path
from spendmeter.parsers.places import Places
from spendmeter.records import Call, Usage
NAME, MARKS = "thirdcli", (b'"thirdcli"',)
PLACES = Places(lambda env, home: [Path("/third")], lambda home: [], lambda path: None)
def is_stdout(row): return "thirdcli" in row
def is_file(row): return False
class StdoutReader:
    def __init__(self, source): self.out, self.last_ms = [], {}
    def row(self, line, r): self.out.append(Call(NAME, "1", "s", Usage(tokens_in=r["thirdcli"])))
    def finish(self): return self.out
FileReader = StdoutReader
"""


def test_third_parties_add_parsers_and_a_broken_one_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The entry point group spendmeter.parsers is read; what cannot be loaded or lacks a part is named and passed over."""
    (tmp_path / "thirdcli_parser.py").write_text(THIRD)
    (tmp_path / "halfcli_parser.py").write_text("NAME = 'half'\n")
    info = tmp_path / "thirdcli-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: thirdcli\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[spendmeter.parsers]\na = thirdcli_parser\nb = nowhere_to_be_found\nc = halfcli_parser\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    parsers._found.cache_clear()
    try:
        assert parsers.names() == [*CLIS, "thirdcli"]
        assert [line.partition(")")[2] for line in parsers.broken()] == [" cannot be loaded: ModuleNotFoundError", " has no MARKS"]
        stream = Stream(None, "log")
        stream.feed(b'{"thirdcli": 7}\n')
        assert [o.usage.tokens_in for o in stream.finish() if isinstance(o, Call)] == [7]
        place = parsers.places_of("thirdcli")
        assert place is not None
        assert place.homes({}, None) == [Path("/third")]
    finally:
        parsers._found.cache_clear()
