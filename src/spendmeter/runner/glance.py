"""What the cwd's transcripts were when the child started: read while it is still being executed, so without heavy imports.

Says again what ``parsers.claude_files`` says of homes and slugs; tests/test_runner_parts.py compares the two.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping

Marks = dict[str, tuple[int, int]]
_REALTIME_COARSE = 5  # <linux/time.h>: the clock that stamps files


def file_time_ns() -> int:
    """Now, by the clock of the file system: no later file has an earlier ctime."""
    return time.clock_gettime_ns(_REALTIME_COARSE) if sys.platform == "linux" else time.time_ns() - 20_000_000


def glance(env: Mapping[str, str], cwd: str | None, session: str | None) -> dict[str, Marks]:
    """(size, ctime in ns) of each transcript in the cwd's project folder, and of the subagents of *session*, by folder."""
    if cwd is None:
        return {}
    folder, name = f"{claude_home(env)}/projects/{slug(cwd)}", slug(cwd)
    found = _marks(folder, "")
    if session:
        found |= _marks(f"{folder}/{session}/subagents", f"{session}/subagents/")
    return {name: found}


def claude_home(env: Mapping[str, str]) -> str:
    """Claude Code's folder."""
    return env.get("CLAUDE_CONFIG_DIR") or f"{env.get('HOME', '')}/.claude"


def slug(cwd: str) -> str:
    """Name of the project folder of *cwd*."""
    return "".join(c if c.isascii() and c.isalnum() else "-" * (1 + (ord(c) > 0xFFFF)) for c in cwd)


def _marks(folder: str, prefix: str) -> Marks:
    out: Marks = {}
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.endswith(".jsonl"):
                    stat = entry.stat()
                    out[prefix + entry.name] = (stat.st_size, stat.st_ctime_ns)
    except OSError:
        return out
    return out
