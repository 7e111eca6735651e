"""Any bytes: a result is found wherever it stands, and nothing else is made up."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spendmeter.errors import ParseError
from spendmeter.parsers import Stream, names, open_stream, read, read_file
from spendmeter.parsers.claude_rows import call_id
from spendmeter.records import Call, Finish, Level, Observation, Skip
from tests.runs import ROOT

SINGLE = (ROOT / "claude" / "json-single" / "stdout").read_text().strip()
STREAM = (ROOT / "claude" / "stream-json-tool" / "stdout").read_text()
TRANSCRIPT = next((ROOT / "claude" / "json-tool" / "home").rglob("*.jsonl")).read_text()


def told(text: str | bytes) -> list[Observation]:
    data = text if isinstance(text, bytes) else text.encode()
    return read(io.BytesIO(data), None, "log")[0]


def finishes(observations: list[Observation]) -> list[Finish]:
    return [o for o in observations if isinstance(o, Finish)]


WANT = finishes(told(SINGLE))[0]
FORMS = {
    "alone": SINGLE,
    "text before and after": f"starting…\n[warn] {{not json}}\n{SINGLE}\nbye {{}}\n",
    "log prefix on the line": f"2026-11-21T10:00:00Z INFO agent-7 stdout: {SINGLE} (end)\n",
    "text right after": SINGLE + "trailing",
    "crlf": f"hello\r\n{SINGLE}\r\nbye\r\n",
    "pretty-printed": json.dumps(json.loads(SINGLE), indent=2),
    "pretty-printed in a log": f"RESULT: {json.dumps(json.loads(SINGLE), indent=4)}\ndone\n",
    "pretty-printed, indented": "\n".join("    " + x for x in json.dumps(json.loads(SINGLE), indent=2).splitlines()),
    "array": f"[{SINGLE}]",
    "array over lines": f'[\n{{"type":"system","subtype":"init","session_id":"x"}},\n{SINGLE}\n]\n',
    "pretty array": json.dumps([{"type": "system"}, json.loads(SINGLE)], indent=2),
    "after an unclosed brace": f"function() {{\n  if (x) {{\n{SINGLE}\n",
    "bom": "\ufeff" + SINGLE,
    "bad bytes around": "x",
    "no newline, 1 byte at a time": "y",
}


@pytest.mark.parametrize("form", FORMS)
def test_a_result_is_found_in_any_log(form: str) -> None:
    """The result object is found whatever text stands before and after it, in every way it may be printed."""
    if form == "bad bytes around":
        seen = told(b"\xff\xfe\x00 garbage\n" + SINGLE.encode() + b"\n\x80\x81\n")
    elif form == "no newline, 1 byte at a time":
        stream = open_stream(None, "log")
        for b in SINGLE.encode():
            stream.feed(bytes([b]))
        seen = stream.finish()
    else:
        seen = told(FORMS[form])
    assert finishes(seen) == [WANT]
    assert len([o for o in seen if isinstance(o, Level)]) == 1


def test_verbose_array_equals_the_stream() -> None:
    """``--output-format json --verbose`` prints the events of the stream as one array; both tell the same."""
    rows = [json.loads(x) for x in STREAM.splitlines()]
    assert told(json.dumps(rows)) == told(STREAM)


def test_a_log_of_many_runs_holds_them_all() -> None:
    """An orchestrator's log with several results tells of each."""
    paths = sorted((ROOT / "claude").glob("json-*/stdout"))
    seen = finishes(told("\n---\n".join(p.read_text() for p in paths)))
    assert len(seen) == len(paths)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        "{",
        "[",
        "}" * 100,
        '{"type":"result"',
        "[" * 200_000,
        '{"a":' * 100_000,
        '{"type":"result",' * 50_000,
        '"\\ud800',
        "null",
        "[1,2,3]",
        '{"type":"result","session_id":5,"modelUsage":{}}',
        '{"type":"result","session_id":"s","modelUsage":[]}',
        '{"type":"result","session_id":"s","modelUsage":{"m":{"inputTokens":-1,"outputTokens":1}}}',
        '{"type":"result","session_id":"s","modelUsage":{"m":{"inputTokens":1e400,"outputTokens":1}}}',
        '{"type":"result","session_id":"s","modelUsage":{"m":{"inputTokens":"12","outputTokens":1}}}',
        '{"type":"result","session_id":"s","modelUsage":{"m":{"inputTokens":' + "9" * 5000 + ',"outputTokens":1}}}',
        '{"type":"assistant","sessionId":"s","message":{"usage":{"input_tokens":true}}}',
        '{"type":"assistant","sessionId":"s","message":{"id":"m","usage":7}}',
        '{"type":"assistant","sessionId":"s","requestId":"r","timestamp":"yesterday","message":{"id":"m","usage":{"input_tokens":1}}}',
    ],
    ids=lambda t: t[:40],
)
def test_bad_input_is_no_exception_and_no_number(text: str) -> None:
    """Broken, absurd or hostile JSON raises nothing and yields no bad number."""
    for o in told(text):
        if isinstance(o, Call | Level):
            assert all(x is None or 0 <= x < 1 << 53 for x in o.usage)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=4000))
def test_any_bytes_raise_nothing(data: bytes) -> None:
    """Random bytes give no observation but skips."""
    assert all(isinstance(o, Skip) for o in told(data))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_damaged_source_raises_nothing(data: st.DataObject) -> None:
    """Bytes flipped, cut out or put into real sources raise nothing, and no count is negative."""
    raw = bytearray(data.draw(st.sampled_from([SINGLE, STREAM, TRANSCRIPT])).encode())
    for _ in range(data.draw(st.integers(1, 5))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at : at + data.draw(st.integers(0, 40))] = data.draw(st.binary(max_size=20))
    for o in told(bytes(raw)):
        if isinstance(o, Call | Level):
            assert all(x is None or x >= 0 for x in o.usage)


def test_every_usage_line_ends_as_an_observation_or_a_skip() -> None:
    """No assistant row with usage and no cost-state is passed over in silence."""
    for path in sorted((ROOT / "claude").glob("*/home/**/*.jsonl")):
        rows = [json.loads(x) for x in path.read_text().splitlines()]
        real = [r for r in rows if r["type"] == "assistant" and r["message"].get("usage") and r["message"]["model"] != "<synthetic>"]
        ids = {
            call_id(r.get("requestId"), r["message"].get("id"), r.get("requestSessionId") or r["sessionId"], r.get("uuid")) for r in real
        }
        seen = read_file(path)[0]
        assert {o.call_id for o in seen if isinstance(o, Call)} == ids
        assert not [o for o in seen if isinstance(o, Skip)]


def test_rows_of_one_call_become_one_and_others_stay_apart() -> None:
    """Neighbouring rows of a call join by maximum; rows without any id are calls of their own, however alike."""

    def row(uuid: str, out: int, **ids: str) -> dict[str, object]:
        message = {"model": "m", "usage": {"input_tokens": 5, "output_tokens": out}} | ({"id": ids["mid"]} if "mid" in ids else {})
        own = {"requestId": ids["rid"]} if "rid" in ids else {}
        return {"type": "assistant", "sessionId": "s", "uuid": uuid, "timestamp": "2026-11-01T10:00:00Z", "message": message} | own

    rows = [
        row("a", 9, rid="r"),
        row("b", 159, rid="r"),
        row("c", 9, rid="r"),
        row("d", 7),
        row("e", 7),
        row("f", 1, mid="x"),
        row("g", 2, mid="x"),
    ]
    calls = [o for o in told("\n".join(map(json.dumps, rows)).encode() + b"\n") if isinstance(o, Call)]
    assert [(c.call_id, c.usage.tokens_out) for c in calls] == [("r:r", 159), ("u:d", 7), ("u:e", 7), ("m:s:x", 2)]


@pytest.mark.parametrize("path", sorted((ROOT / "claude").glob("*/home/**/*.jsonl"))[::3], ids=lambda p: p.parent.name[-20:] + p.stem[:8])
def test_the_quick_way_tells_what_the_slow_one_tells(path: Path) -> None:
    """Decoding only the keys that are read, and rows wrapped in a log line's prefix, which no quick way takes, tell the same."""
    prefixed = b"".join(b"2026-11-22 out | " + line + b"\n" for line in path.read_bytes().splitlines())
    assert read(io.BytesIO(path.read_bytes()), "claude", "x")[0] == read(io.BytesIO(prefixed), "claude", "x")[0]


def test_a_half_written_last_line_counts_once_it_is_whole() -> None:
    """What is cut off is a skip; read again when complete it is the row."""
    data = TRANSCRIPT.encode()
    whole = told(data)
    end = data.rstrip().rfind(b"\n", 0, data.rfind(b'"type":"assistant"'))
    cut = told(data[: end + 400])
    assert [o for o in cut if isinstance(o, Skip)]
    assert [o for o in cut if isinstance(o, Call)] == [o for o in whole if isinstance(o, Call)][
        : len([o for o in cut if isinstance(o, Call)])
    ]


def test_rows_grow_and_the_largest_counts() -> None:
    """Rows 9, 9, 159 of one call are 159, whatever comes last; a missing requestId falls back to the message id."""
    from spendmeter.reconcile.book import Book

    def row(out: int, **more: object) -> str:
        usage = {"input_tokens": 5, "output_tokens": out}
        return json.dumps(
            {"type": "assistant", "sessionId": "s", "message": {"id": "m1", "model": "x", "usage": usage}, "uuid": f"u{out}"} | more
        )

    for order in ((9, 9, 159), (159, 9), (9, 159, 9)):
        book = Book()
        book.add_all(told("\n".join(row(n) for n in order)))
        assert [c.usage.tokens_out for c in book.sessions["claude", "s"].calls.values()] == [159]


def test_unknown_cli_is_named() -> None:
    """An unknown --cli says what is known."""
    with pytest.raises(ParseError, match=f'"klaude" is not one of {", ".join(names())}'):
        open_stream("klaude", "x")


def test_missing_file_is_named(tmp_path: Path) -> None:
    """A path that is not there is named with a remedy."""
    with pytest.raises(ParseError, match=r"nothing.log: cannot be read .* check the path"):
        read_file(tmp_path / "nothing.log")


@pytest.mark.parametrize("newlines", [True, False], ids=["lines", "one line"])
def test_a_huge_log_takes_bounded_memory(tmp_path: Path, newlines: bool) -> None:
    """A 2 GB log with one result at its end is read within 400 MB of address space growth, in lines or in one."""
    path = tmp_path / "huge.log"
    block = (b"x" * 199 + (b"\n" if newlines else b"x")) * 5000
    with path.open("wb") as handle:
        handle.truncate(0)
        handle.write(block)
        handle.truncate(2_000_000_000)  # a hole: no disk is used, the reader sees NUL bytes
        handle.seek(0, 2)
        handle.write((b"\n" if newlines else b" ") + SINGLE.encode())
    code = (
        "import re,sys; from pathlib import Path; from spendmeter.parsers import read_file;"
        "seen,_=read_file(Path(sys.argv[1])); print(sum(type(o).__name__=='Finish' for o in seen),"
        # not ru_maxrss: that remembers how big the process was that started this one
        "re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    found, peak_kb = (int(x) for x in done.stdout.split())
    assert found == 1
    assert peak_kb < 400_000


def test_stream_names_its_sessions() -> None:
    """The sessions of a stream are known while it is read."""
    stream = Stream("claude", "log")
    stream.feed(STREAM.encode())
    assert stream.sessions == {json.loads(STREAM.splitlines()[0])["session_id"]}
