"""Reads the session that a CLI's own hook names: ``spendmeter hook``. Whatever happens, the CLI is not held up.

Source: what Claude Code 2.1.330, Codex 0.169.0 (``notify``) and Gemini CLI 0.61.0 hand over, measured. Of that only the session's id and
the places of its files are looked at: the rest may be text of a prompt or an answer.
"""

from __future__ import annotations

import json
import os
import select
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spendmeter.runner.describe import describe

if TYPE_CHECKING:
    from spendmeter.records import Tags

WAIT_S = 1.5  # how long a hook waits for its own work, which goes on without it
DAY_S = 86400.0
HEAD_BYTES = 1 << 20  # a rollout's first row holds the CLI's instructions
CLIS = ("claude", "codex", "gemini")


def detached(work: Callable[[], str]) -> str:
    """Does *work* in a process of its own and gives the line that it made, or "" where that takes longer than WAIT_S.

    That process holds none of ours' streams: the CLI waits until they are closed.
    """
    read_end, write_end = os.pipe()
    if os.fork() == 0:
        try:
            os.setsid()
            null = os.open(os.devnull, os.O_RDWR)
            for fd in (0, 1, 2):
                os.dup2(null, fd)
            os.write(write_end, work().encode("utf-8", "replace")[: select.PIPE_BUF])
        finally:
            os._exit(0)
    os.close(write_end)
    try:
        return os.read(read_end, select.PIPE_BUF).decode("utf-8", "replace") if select.select([read_end], [], [], WAIT_S)[0] else ""
    finally:
        os.close(read_end)


def take(cli: str, payload: bytes, env: Mapping[str, str], *, ledger: str | None, config: str | None) -> str:
    """Reads the session that *payload* names into the ledger, or for the daemon of SPENDMETER_REMOTE; what failed, if anything, or ""."""
    try:
        files = session_files(cli, json.loads(payload), env)
        if not files:
            return "its session's files were not found; spendmeter doctor tells where they are looked for"
        _ingest(cli, files, _tags(env), env, ledger, config)
    except Exception as e:  # noqa: BLE001 - a hook never fails; the text of an error may hold content
        return f"the session was not read: {describe(e)}; spendmeter sync can still read it"
    return ""


def session_files(cli: str, told: object, env: Mapping[str, str]) -> list[Path]:
    """The files of the session that a hook of *cli* was told of, those of its subagents too."""
    values = told if isinstance(told, dict) else {}
    found = _codex(_text(values, "thread-id"), env) if cli == "codex" else _written_beside(values)
    return [path for path in dict.fromkeys(found) if path.is_file()]


def _written_beside(told: Mapping[str, Any]) -> Iterable[Path]:
    """The transcript, and what its CLI keeps in a folder that bears the session's name."""
    for key in ("transcript_path", "agent_transcript_path"):
        if text := _text(told, key):
            yield Path(text)
    path, session = _text(told, "transcript_path"), _text(told, "session_id")
    if path and session and "/" not in session and session not in (".", ".."):
        yield from sorted((Path(path).parent / session).rglob("*.jsonl"))


def _codex(thread: str, env: Mapping[str, str]) -> Iterable[Path]:
    """The thread's rollout, and those of its subagents, which tell in their first row whose they are."""
    from spendmeter.parsers import places

    place = places.PLACES["codex"]
    rollouts = [file for home in place.homes(env, None) for file in place.session_files(home)]
    own = [file for file in rollouts if thread and place.session_of(file) == thread]
    yield from own
    since_s = max((file.stat().st_mtime for file in own), default=float("inf")) - DAY_S
    yield from (file for file in rollouts if file.stat().st_mtime >= since_s and _is_started_by(thread, file))


def _is_started_by(thread: str, rollout: Path) -> bool:
    from spendmeter.parsers.codex import parent_of

    with rollout.open("rb") as handle:
        head = handle.readline(HEAD_BYTES)
    try:
        meta = json.loads(head)["payload"]
        return bool(parent := parent_of(meta)) and thread in (parent, meta.get("session_id"))
    except (ValueError, KeyError, TypeError, AttributeError):
        return False


def _ingest(cli: str, files: list[Path], tags: Tags | None, env: Mapping[str, str], ledger: str | None, config: str | None) -> None:
    from spendmeter.ingest import ingest_paths

    paths = [str(path) for path in files]
    if not ledger and (url := env.get("SPENDMETER_REMOTE")):
        from spendmeter.runner.args import daemon_url
        from spendmeter.runner.remote import Daemon

        ingest_paths(Daemon(daemon_url("SPENDMETER_REMOTE", url)), paths, cli=cli, tags=tags)
        return
    from spendmeter.config import load
    from spendmeter.ledger import Ledger

    with closing(Ledger(load(config, ledger, env))) as opened:
        ingest_paths(opened, paths, cli=cli, tags=tags)


def _tags(env: Mapping[str, str]) -> Tags | None:
    from spendmeter.records import Tags

    agent, task = env.get("SPENDMETER_AGENT"), env.get("SPENDMETER_TASK")
    return Tags(agent or "unknown", task or "unknown") if agent or task else None


def _text(told: Mapping[str, Any], key: str) -> str:
    value = told.get(key)
    return value if isinstance(value, str) else ""
