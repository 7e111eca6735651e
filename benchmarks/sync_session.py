"""The lives of Claude Code sessions: runs, kills, resumes, forks and subagents, with the rows that each writes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import sync_rows as rows
from sync_rows import NEW, OLD, Answer, Place, Row

from spendmeter.records import NOTHING, Usage

if TYPE_CHECKING:
    from sync_tree import World

HOUR_MS = 3_600_000
SONNET, OPUS, HAIKU, UNPRICED = "claude-sonnet-4-5-20250929", "claude-opus-4-5-20251101", "claude-haiku-4-5-20251001", "house-coder-7b"
KINDS = ("plain",) * 8 + ("old",) * 4 + ("forked",) * 2 + ("old-forked", "killed", "killed-then-resumed", "gateway", "long", "compacted")
PROJECTS = 24
BRANCHES = ("main", "develop", "feat/SHOP-12-basket", "fix/SHOP-40-rounding")


class Log:
    """One transcript as it grows: its rows, and the conversation's thread through them."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.rows: list[Row] = []
        self.last: str | None = None
        self.torn: Row | None = None  # the row that a kill cut in half

    def add(self, row: Row) -> None:
        """Appends a row; one with a uuid is what the next one answers to."""
        self.rows.append(row)
        self.last = row.get("uuid", self.last)


class Session:
    """One session and its subagents, from its first prompt on."""

    def __init__(self, world: World, kind: str, at_ms: int, parent: Session | None = None) -> None:
        self.world, self.luck, self.source = world, world.luck, world.source
        self.kind, self.at_ms, self.old = kind, at_ms, kind in ("old", "old-forked", "gateway")
        at = parent.main.place if parent else None
        cwd = at.cwd if at else f"/home/dev/project-{self.luck.randrange(PROJECTS)}"
        branch = at.branch if at else self.luck.choice(BRANCHES)
        self.main = Log(Place(self.source.uuid(), cwd, branch, OLD if self.old else NEW))
        self.agents: list[Log] = []
        self.asked = parent.asked if parent else self._model()
        self.hourly = self.luck.choice((0.0, 0.0, 0.3, 1.0))  # share of cache writes that live an hour
        self.context = self.luck.randrange(10_000, 40_000) + (205_000 if kind == "long" else 0)
        self.epoch_ms = parent.epoch_ms if parent else at_ms
        self.spent: dict[str, Usage] = dict(parent.spent) if parent else {}
        self.helpers = 0.024  # subagents per call
        self._messages = 0
        if self.old:
            self.main.add(rows.summary(self.source))
        self._inherited = self._copies(parent) if parent else []

    def _model(self) -> str:
        if self.kind == "gateway":
            return UNPRICED
        return f"{SONNET}[1m]" if self.kind == "long" else self.luck.choice((SONNET, SONNET, SONNET, OPUS))

    def _copies(self, parent: Session) -> list[Row]:
        """The parent's conversation as a fork repeats it; versions that write readings also name whose each answer was."""
        out = []
        for row in parent.main.rows:
            if row["type"] in ("user", "assistant", "attachment"):
                named = row["type"] == "assistant" and not self.old
                owner = {"requestSessionId": row.get("requestSessionId", parent.main.place.session)} if named else {}
                out.append(row | {"sessionId": self.main.place.session} | owner)
        return out

    @property
    def path(self) -> Path:
        """Where its transcript is."""
        return self.world.folder(self.main.place.cwd) / f"{self.main.place.session}.jsonl"

    def run(self, turns: int, *, killed: bool = False) -> None:
        """One run of the CLI: a prompt and *turns* calls; a reading at its end unless it is killed or too old for that."""
        self._prompt()
        for n in range(turns):
            self._call(self.main, self.asked, done=n == turns - 1)
            if self.luck.random() < self.helpers:
                self._subagent()
            if self.kind == "compacted" and n == turns // 2:
                self._compact()
        if killed:
            if self.world.tears():
                self._tear()
            self.spent = {}
        elif not self.old:
            self.main.add(rows.cost_state(self.main.place.session, self.spent, self.epoch_ms, self.at_ms))

    def rest(self, hours: float) -> None:
        """Lets time pass between runs; without a reading the next one begins a new epoch."""
        self.at_ms += int(self.luck.uniform(0.05, hours) * HOUR_MS)
        if not self.spent:
            self.epoch_ms = self.at_ms

    def write(self) -> None:
        """Writes the session's files; some are there twice, as when a project's folder was copied."""
        self.world.write(self.path, self.main.rows, self.at_ms, self.main.torn)
        if self.luck.random() < 0.03:
            self.world.write(self.world.folder(f"{self.main.place.cwd}-copy") / self.path.name, self.main.rows, self.at_ms)
        for log in self.agents:
            beside = self.path.parent if self.old else self.path.with_suffix("") / "subagents"
            self.world.write(beside / f"agent-{log.place.agent}.jsonl", log.rows, self.at_ms)

    def _tick(self, most_ms: int = 20_000) -> int:
        self.at_ms += self.luck.randrange(200, most_ms)
        return self.at_ms

    def _prompt(self) -> None:
        session, text = self.main.place.session, self.source.text(300)
        self.main.add(rows.queue(session, "enqueue", self._tick(900), text))
        self.main.add(rows.queue(session, "dequeue", self._tick(900)))
        for row in self._inherited:
            self.main.add(row)
        self._inherited = []
        if self.old:
            self.main.add(rows.snapshot(self.source, self.at_ms))
        self.main.add(rows.user(self.main.place, text, self._tick(900), self.source.uuid(), self.main.last))
        for kind in ("environment", "deferred_tools_delta", "skill_listing", "prompt_snapshot"):
            self._attach(self.main, kind, self.luck.randrange(300, 3000))
        if not self.old:
            self.main.add(rows.request_shape(self.source, session, self.at_ms, self.source.name("", 64)))

    def _attach(self, log: Log, kind: str, length: int) -> None:
        log.add(rows.attachment(log.place, kind, self.source.text(length), self._tick(900), self.source.uuid(), log.last))

    def _subagent(self) -> None:
        """A helper with its own file; its calls are in the session's readings."""
        log = Log(replace(self.main.place, agent=self.source.uuid().replace("-", "")[:17]))
        self.agents.append(log)
        asked = self.asked if self.kind == "gateway" else self.luck.choice((HAIKU, HAIKU, SONNET))
        log.add(rows.user(log.place, self.source.text(900), self._tick(900), self.source.uuid(), None))
        turns = self.world.turns(14)
        for n in range(turns):
            self._call(log, asked, done=n == turns - 1)

    def _compact(self) -> None:
        """A call of the CLI's own that no row tells of, only the next reading."""
        self._count(self.asked, self._usage(self._tick(), self.asked), hidden=True)
        self.main.add(rows.compacted(self.main.place, self.at_ms, self.source.uuid()))
        self.main.add(rows.user(self.main.place, self.source.text(4000), self._tick(900), self.source.uuid(), self.main.last))
        self.context = 15_000

    def _call(self, log: Log, asked: str, *, done: bool) -> None:
        """One request, the rows of its answer and, unless it is the last, of its tools' results."""
        answer = self._answer(log, asked, done=done)
        if not self.old:
            log.add(rows.api_request(log.place, answer, self.source.name("", 64)))
        outs = self._outs(answer)
        for i, out in enumerate(outs):
            log.add(rows.assistant(log.place, answer, i, out, self._tick(3000), self.source.uuid(), log.last))
        for block in answer.blocks:
            if block["type"] == "tool_use":
                self._result(log, block)
        self._count(asked, answer.used)
        self._chatter(log)

    def _answer(self, log: Log, asked: str, *, done: bool) -> Answer:
        at_ms, plain = self._tick(), self.kind != "gateway"
        self._messages += 1
        anonymous = not plain and self.luck.random() < 0.05  # some gateways give no id at all
        message = None if anonymous else self.source.name("msg_01", 22) if plain else f"chatcmpl-{self._messages}"
        blocks = self._blocks(done=done)[: 1 if anonymous else None]
        request = self.source.name("req_011C", 20) if plain else None
        return Answer(_plain(asked), asked, self._usage(at_ms, asked), at_ms, request, message, self.source.uuid(), tuple(blocks))

    def _blocks(self, *, done: bool) -> list[Row]:
        out: list[Row] = []
        if self.luck.random() < 0.4:
            out.append({"type": "thinking", "thinking": self.source.text(400), "signature": self.source.name("", 120)})
        if done or self.luck.random() < 0.5:
            out.append({"type": "text", "text": self.source.text(self.luck.randrange(80, 1500))})
        for _ in range(0 if done else self.luck.choice((1, 1, 1, 2))):
            given = {"command": self.source.text(self.luck.randrange(40, 600)), "description": self.source.text(40)}
            out.append({"type": "tool_use", "id": self.source.name("toolu_01", 22), "name": self.luck.choice(rows.TOOLS), "input": given})
        return out

    def _usage(self, at_ms: int, asked: str) -> Usage:
        luck = self.luck
        written = luck.randrange(200, 6000)
        hour = int(written * self.hourly)
        out = min(24_000, int(luck.lognormvariate(5.5, 1.0)) + 12)
        searches = luck.randrange(1, 4) if luck.random() < 0.01 else 0
        used = Usage(luck.randrange(3, 1200), self.context, written - hour, hour, out, None, searches)
        ceiling = 900_000 if self.kind == "long" else 150_000
        self.context = self.context + written if self.context + written < ceiling else ceiling // 4
        return used._replace(cost_nusd=self.world.prices.price(_plain(asked), used, at_ms))

    def _outs(self, answer: Answer) -> list[int]:
        """The output that each block's row tells: all of it, or what there was so far; now and then a shorter copy comes last."""
        whole, n = answer.used.tokens_out or 0, len(answer.blocks)
        if n == 1 or not (self.old or self.luck.random() < 0.3):
            return [whole] * n
        outs = [min(9, whole)] * (n - 1) + [whole]
        return outs[::-1] if self.luck.random() < 0.1 else outs

    def _result(self, log: Log, block: Row) -> None:
        text = self.source.text(min(60_000, int(self.luck.lognormvariate(6.9, 1.1)) + 20))
        content = [{"tool_use_id": block["id"], "type": "tool_result", "content": text, "is_error": False}]
        result = rows.tool_result(self.source, block["name"], text)
        log.add(rows.user(log.place, content, self._tick(3000), self.source.uuid(), log.last, result))
        if not self.old:
            log.add(rows.request_blob(log.place, content, self.source.name("", 64)))

    def _chatter(self, log: Log) -> None:
        if self.luck.random() < 0.15:
            self._attach(log, self.luck.choice(("todo", "edited_text_file", "total_tokens_reminder")), self.luck.randrange(60, 2500))
        if self.luck.random() < 0.004:
            log.add(rows.synthetic(log.place, self._tick(900), self.source.uuid(), log.last, self.source.name("req_011C", 20)))

    def _count(self, asked: str, used: Usage, *, hidden: bool = False) -> None:
        self.world.truth.add(self.main.place.session, _plain(asked), used, hidden=hidden)
        self.spent[asked] = self.spent.get(asked, NOTHING).plus(used)

    def _tear(self) -> None:
        """The kill that came while a row was being written: nobody can know what its call used."""
        answer = self._answer(self.main, self.asked, done=True)
        self.main.torn = rows.assistant(self.main.place, answer, 0, 9, self.at_ms, self.source.uuid(), self.main.last)


def _plain(asked: str) -> str:
    return asked.removesuffix("[1m]")


def family(world: World, kind: str, at_ms: int) -> Session:
    """Writes a session of *kind*, and the forks that it may have."""
    session = Session(world, kind, at_ms)
    made = [session]
    last = kind == "killed"
    for n in range(runs := world.luck.choice((1, 1, 2, 3)) + (kind == "killed-then-resumed")):
        killed = (last and n == runs - 1) or (kind == "killed-then-resumed" and n == 0)
        session.run(world.turns(18), killed=killed)
        session.rest(8)
    if kind.endswith("forked"):
        made.append(_fork(session))
        if world.luck.random() < 0.5:
            made.append(_fork(made[-1]))
        session.run(world.turns(20))
    for one in made:
        one.write()
    return session


def _fork(parent: Session) -> Session:
    """A session that goes on from all that its parent has said so far, while the parent goes its own way."""
    fork = Session(parent.world, parent.kind, parent.at_ms, parent)
    parent.rest(1)
    fork.run(parent.world.turns(15))
    fork.rest(1)
    return fork
