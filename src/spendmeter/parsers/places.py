"""Where each CLI keeps its session files, and which session a file belongs to.

Source: measured on the versions that the parsers name. A parser of a third party has a ``PLACES`` of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from spendmeter.parsers import claude_files

_UUID_END = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}$")
_HEAD = 1 << 20  # bytes of a first line that are read: instructions are in it
Env = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Places:
    """``homes(env, home)`` are the CLI's folders (they need not exist), ``session_files(home)`` what it wrote in one of them.

    ``session_of(path)`` is the session whose usage a file holds: None where the path is no file of this CLI, "" where it
    is one and only its rows tell.
    """

    homes: Callable[[Env, Path | None], list[Path]]
    session_files: Callable[[Path], list[Path]]
    session_of: Callable[[Path], str | None]


def _homes(variable: str, folder: str, within: str, holds: str) -> Callable[[Env, Path | None], list[Path]]:
    """The folder that *variable* names (*within* it), else ``~/folder``; a given home may be that folder itself, if it *holds* that."""

    def homes(env: Env, home: Path | None = None) -> list[Path]:
        if home is None and env.get(variable):
            return [Path(env[variable]) / within]
        if home is not None and (home / holds).exists():
            return [home]
        return [(home or Path(env.get("HOME") or Path.home())) / folder]

    return homes


def _find(*patterns: str) -> Callable[[Path], list[Path]]:
    return lambda home: sorted({p for pattern in patterns for p in home.glob(pattern) if p.is_file()})


def _below(path: Path, *names: str) -> tuple[str, ...] | None:
    """The parts of *path* below its last folder named *names* in a row, or None."""
    parts = path.parts
    for i in range(len(parts) - len(names) - 1, -1, -1):
        if parts[i : i + len(names)] == names:
            return parts[i + len(names) :]
    return None


def _codex_session(path: Path) -> str | None:
    if not path.name.startswith("rollout-"):
        return None
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError), path.open("rb") as file:
        return str(json.loads(file.readline(_HEAD))["payload"]["session_id"])  # of a subagent's thread the session that it works for
    found = _UUID_END.search(path.stem)
    return found[0] if found else ""


def _gemini_session(path: Path) -> str | None:
    """``chats/session-*.jsonl`` is a session, ``chats/<session>/<id>.jsonl`` a subagent of it."""
    below = _below(path, "chats")
    if below is None or "tmp" not in path.parts:
        return None
    return below[0] if len(below) == 2 else ""


def _qwen_session(path: Path) -> str | None:
    if path.name == "usage_record.jsonl":
        return ""
    below = _below(path, "chats")
    return path.stem if below is not None and len(below) == 1 and path.parent.parent.parent.name == "projects" else None


def _copilot_session(path: Path) -> str | None:
    below = _below(path, "session-state")
    return below[0] if below is not None and len(below) == 2 else None


def _qwen_homes(env: Env, home: Path | None = None) -> list[Path]:
    """$QWEN_RUNTIME_DIR has the chats where it is set, $QWEN_HOME or ``~/.qwen`` the rest."""
    told = [Path(env[n]) for n in ("QWEN_RUNTIME_DIR", "QWEN_HOME") if env.get(n)] if home is None else []
    if home is not None and ((home / "usage_record.jsonl").exists() or (home / "projects").is_dir()):
        return [home]
    user = (home or Path(env.get("HOME") or Path.home())) / ".qwen"
    return told if home is None and env.get("QWEN_HOME") else [*told, user]


def _opencode_session(path: Path) -> str | None:
    return "" if path.name.startswith("opencode") and path.suffix == ".db" else None


def _opencode_homes(env: Env, home: Path | None = None) -> list[Path]:
    if home is not None and any(home.glob("opencode*.db")):
        return [home]
    user = home or Path(env.get("HOME") or Path.home())
    data = Path(env["XDG_DATA_HOME"]) if home is None and env.get("XDG_DATA_HOME") else user / ".local" / "share"
    return [data / "opencode"]


PLACES: dict[str, Places] = {
    "codex": Places(
        _homes("CODEX_HOME", ".codex", "", "sessions"),
        _find("sessions/**/rollout-*.jsonl", "archived_sessions/**/rollout-*.jsonl"),
        _codex_session,
    ),
    "gemini": Places(
        _homes("GEMINI_CLI_HOME", ".gemini", ".gemini", "tmp"),
        _find("tmp/*/chats/**/*.jsonl", "tmp/*/chats/*.json"),
        _gemini_session,
    ),
    "qwen": Places(
        _qwen_homes,
        _find("projects/*/chats/*.jsonl", "usage_record.jsonl"),
        _qwen_session,
    ),
    "opencode": Places(_opencode_homes, _find("opencode*.db"), _opencode_session),
    "copilot": Places(_homes("COPILOT_HOME", ".copilot", "", "session-state"), _find("session-state/*/events.jsonl"), _copilot_session),
    "claude": Places(claude_files.homes, claude_files.transcripts, claude_files.session_of),  # last: it knows every path
}


def session_of(path: Path, cli: str | None = None) -> str:
    """The session that *path* belongs to as its place tells, of *cli* or of the first CLI that knows such a place; else ""."""
    for name, places in PLACES.items():
        if cli in (None, name) and (found := places.session_of(path)) is not None:
            return found
    return ""


def companions(path: Path) -> list[Path]:
    """Files beside *path* that change instead of it while a database is in use."""
    return [p for end in ("-wal", "-journal") if os.path.lexists(p := path.with_name(path.name + end))]
