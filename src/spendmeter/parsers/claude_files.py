"""Where Claude Code keeps its transcripts, and which of them a run wrote.

Source: measured on claude-code 2.1.330. ``<home>/projects/<slug of cwd>/<session>.jsonl`` is a session,
``<session>/subagents/agent-*.jsonl`` beside it are its subagents; older versions put ``agent-*.jsonl`` beside the sessions.
``<home>/sessions/<pid>.json`` names the session of a living process and stays behind when that is killed by SIGKILL.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from heapq import nlargest
from pathlib import Path
from typing import Any

SLUG_LENGTH = 200  # a longer slug is cut here and gets a hash
NEWEST = 300  # old transcripts that are looked at again after the child's exit: a continued session is a recent one
Marks = dict[str, tuple[int, int]]  # name of a file below a project folder -> (size, ctime in ns)


def homes(env: Mapping[str, str], home: Path | None = None) -> list[Path]:
    """Claude Code's folders: CLAUDE_CONFIG_DIR, else ~/.claude and, where it exists, $XDG_CONFIG_HOME/claude.

    Args:
        home: look here instead: a user's home, or a folder that holds ``projects`` itself.
    """
    if home is None and env.get("CLAUDE_CONFIG_DIR"):
        return [Path(env["CLAUDE_CONFIG_DIR"])]
    if home is not None and (home / "projects").is_dir():
        return [home]
    user = home or Path(env.get("HOME") or Path.home())
    xdg = Path(env.get("XDG_CONFIG_HOME") or user / ".config") if home is None else user / ".config"
    return [user / ".claude", *([xdg / "claude"] if (xdg / "claude").is_dir() else [])]


def slug(cwd: str) -> str:
    """Name of the project folder of *cwd*, before any cut."""
    return "".join(c if c.isascii() and c.isalnum() else "-" * (1 + (ord(c) > 0xFFFF)) for c in cwd)


def transcripts(home: Path) -> list[Path]:
    """All transcripts of sessions and subagents under *home*, sorted."""
    projects = home / "projects"
    return sorted([*projects.glob("*/*.jsonl"), *projects.glob("*/*/subagents/**/*.jsonl")])


def session_of(path: Path) -> str | None:
    """Session whose usage *path* holds; None where it cannot be told."""
    parts = path.parts
    if "subagents" in parts[1:]:
        return parts[len(parts) - 2 - parts[::-1].index("subagents")]
    return _told_session(path) if path.name.startswith("agent-") else path.stem


class Watch:
    """Tells the transcripts of one run from all others in one home.

    Call ``snapshot`` soon after the child has started, ``poll`` now and then while it runs, ``after`` when it has ended. Times are
    compared only among the file system's own (ctime); those in the rows are never looked at.

    Attributes:
        reason: why ``after`` could not tell, in one line, or None.
        found: sessions that the run's own process files have named.
    """

    def __init__(self, home: Path, cwd: str | None, start_ns: int, early: Mapping[str, Marks] | None = None) -> None:
        """*start_ns* is the file system's time just before the child started; *early* what was read right then, by project folder."""
        self.home, self.cwd, self.start_ns = home, cwd, start_ns
        self.reason: str | None = None
        self.found: set[str] = set()
        self._foreign: set[str] = set()
        self._read: dict[str, tuple[int, int]] = {}
        self._early: dict[str, Marks] = {name: dict(marks) for name, marks in (early or {}).items()}
        self._before: dict[str, Marks] = {}
        self._recent: list[tuple[int, str, str]] = []
        self._changed: set[Path] = set()

    def snapshot(self) -> None:
        """Notes the size of every transcript as it was when the child started.

        A file that has changed since, before it was looked at, is taken for a new one: what size it had is not known, and a run
        without a known start begins with its segment.
        """
        for folder in self._folders():
            marks = self._early.get(folder.name) or _marks(folder)
            self._before[folder.name] = {n: m for n, m in marks.items() if m[1] < self.start_ns}
        self._rank()

    def poll(self, is_ours: Callable[[int], bool]) -> set[str]:
        """Reads the files of living processes; returns ``found``. *is_ours* tells whether a process belongs to the run."""
        for path in _files(self.home / "sessions", ".json"):
            stat = _stat(path)
            if stat is None or self._read.get(path.name) == (stat.st_ctime_ns, stat.st_size) or not path.stem.isdigit():
                continue
            session, pid = _pid_session(path), int(path.stem)
            if session is None:
                continue
            self._read[path.name] = (stat.st_ctime_ns, stat.st_size)
            if stat.st_ctime_ns >= self.start_ns and is_ours(pid):
                self.found.add(session)
            elif Path(f"/proc/{pid}").exists():
                self._foreign.add(session)
        return self.found

    def refresh(self) -> None:
        """Looks at every transcript again; costs some 25 ms for 10,000, so only while no session is known."""
        for folder in self._folders():
            self._changed |= {folder / name for name, mark in _marks(folder).items() if self._differs(folder.name, name, mark[0])}

    def after(
        self,
        sessions: Iterable[str],
        pids: Iterable[int] = (),
        *,
        maybe: str | None = None,
        parents: Iterable[str] = (),
        guess: bool = True,
    ) -> list[tuple[Path, int]]:
        """Files of this run, each with its size when the run started; sets ``reason`` and adds to ``found``.

        Args:
            sessions: ids that the run is known to have used.
            pids: processes of the run, in case they left their file behind.
            maybe: an id that the run was told to resume: holds where no other is known and its files have changed.
            parents: ids of which the run made a fork; their files come along.
            guess: whether, where no id is known, the only session that changed is taken.
        """
        self._left_behind(pids)
        self.found |= set(sessions)
        if maybe and not self.found and self._has_changed(maybe):
            self.found.add(maybe)
        if not self.found and guess:
            self.found |= self._only_changed()
        if not self.found and maybe:
            self.found.add(maybe)
        wanted = [*sorted(self.found), *parents]
        return [(path, self._offset(path)) for session in dict.fromkeys(wanted) for path in self._files_of(session)]

    def newest(self) -> str | None:
        """The session that ``--continue`` takes: the last one of the cwd's project before the run."""
        marks = [(mark[1], n) for f in self._home_folders() for n, mark in self._before.get(f.name, {}).items()]
        names = [n for _, n in sorted(marks) if "/" not in n and not n.startswith("agent-")]
        return names[-1].removesuffix(".jsonl") if names else None

    def state(self) -> dict[str, Any]:
        """The watch as JSON values, for ``restored``."""
        return {"home": str(self.home), "cwd": self.cwd, "start_ns": self.start_ns, "found": sorted(self.found), "before": self._before}

    @classmethod
    def restored(cls, state: Mapping[str, Any]) -> Watch:
        """The watch that ``state`` gave."""
        watch = cls(Path(state["home"]), state["cwd"], state["start_ns"])
        watch.found = set(state["found"])
        watch._before = {folder: {n: (m[0], m[1]) for n, m in marks.items()} for folder, marks in state["before"].items()}
        watch._rank()
        return watch

    def _folders(self) -> list[Path]:
        """Project folders, the cwd's first."""
        own = self._home_folders()
        return [*own, *(f for f in _entries(self.home / "projects") if f not in own)]

    def _home_folders(self) -> list[Path]:
        if self.cwd is None:
            return []
        name, projects = slug(self.cwd), self.home / "projects"
        if len(name) > SLUG_LENGTH:
            return [f for f in _entries(projects) if f.name.startswith(name[:SLUG_LENGTH])]
        return [projects / name] if (projects / name).is_dir() else []

    def _left_behind(self, pids: Iterable[int]) -> None:
        for pid in pids:
            path = self.home / "sessions" / f"{pid}.json"
            stat = _stat(path)
            if stat is not None and stat.st_ctime_ns >= self.start_ns and (session := _pid_session(path)):
                self.found.add(session)

    def _files_of(self, session: str) -> Iterator[Path]:
        for folder in self._folders():
            path = folder / f"{session}.jsonl"
            if path.is_file():
                yield path
            yield from sorted((folder / session / "subagents").glob("**/*.jsonl"))
            yield from (p for p in self._loose_agents(folder) if _told_session(p) == session)

    def _loose_agents(self, folder: Path) -> list[Path]:
        """Subagents' files of older versions that this run wrote."""
        before = self._before.get(folder.name, {})
        if _ctime(folder) < self.start_ns:
            return []
        return sorted(folder / n for n in _names(folder) if n.startswith("agent-") and n.endswith(".jsonl") and n not in before)

    def _offset(self, path: Path) -> int:
        stat = _stat(path)
        if stat is None:
            return 0
        folder = next(p for p in path.parents if p.parent.name == "projects")
        known = self._before.get(folder.name, {}).get(str(path.relative_to(folder)))
        if known is not None:
            return known[0] if known[0] <= stat.st_size else 0
        return stat.st_size if stat.st_ctime_ns < self.start_ns else 0

    def _has_changed(self, session: str) -> bool:
        return any(self._offset(p) != s.st_size for p in self._files_of(session) if (s := _stat(p)))

    def _only_changed(self) -> set[str]:
        """The one session that changed: in the cwd's project, else anywhere; none, and a reason, where there are several."""
        self._look_again()
        own = self._home_folders()
        near = {p for p in self._changed if p.parent in own}
        for paths in (near, self._changed):
            changed = {s for p in paths if (s := session_of(p))} - self._foreign
            if len(changed) > 1:
                self.reason = f"{len(changed)} sessions changed, cannot tell which is this run's"
                return set()
            if changed:
                return changed
        return set()

    def _look_again(self) -> None:
        """New files by their folders' change, grown ones among the newest: cheap however many there are."""
        names = [(f, n) for _, f, n in self._recent]
        for folder in self._folders():
            if _ctime(folder) >= self.start_ns:
                before = self._before.get(folder.name, {})
                names += [(folder.name, n) for n in _names(folder) if n.endswith(".jsonl") and n not in before]
        projects = self.home / "projects"
        for folder_name, name in names:
            size = _size(f"{projects}/{folder_name}/{name}")
            if size is not None and self._differs(folder_name, name, size):
                self._changed.add(projects / folder_name / name)

    def _rank(self) -> None:
        known = ((mark[1], f, n) for f, marks in self._before.items() for n, mark in marks.items())
        self._recent = nlargest(NEWEST, known)

    def _differs(self, folder: str, name: str, size: int) -> bool:
        """Whether the file is new, or holds more (a mere touch is no usage)."""
        before = self._before.get(folder, {}).get(name)
        return before is None or before[0] != size


def _told_session(path: Path) -> str | None:
    """The session that the first row of *path* names."""
    try:
        with path.open("rb") as handle:
            row = json.loads(handle.readline(1 << 20))
    except (OSError, ValueError):
        return None
    return _text(row, "sessionId")


def _pid_session(path: Path) -> str | None:
    try:
        return _text(json.loads(path.read_bytes()), "sessionId")
    except (OSError, ValueError):
        return None


def _text(row: object, key: str) -> str | None:
    value = row.get(key) if isinstance(row, dict) else None
    return value if isinstance(value, str) and value else None


def _marks(folder: Path) -> Marks:
    out: Marks = {}
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.endswith(".jsonl"):
                    stat = entry.stat()
                    out[entry.name] = (stat.st_size, stat.st_ctime_ns)
    except OSError:
        return out
    return out


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208 - 10,000 Path objects cost more than the listing
    except OSError:
        return []


def _entries(folder: Path) -> list[Path]:
    return [folder / name for name in sorted(_names(folder))]


def _files(folder: Path, suffix: str) -> list[Path]:
    return [p for p in _entries(folder) if p.suffix == suffix]


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None


def _size(path: str) -> int | None:
    try:
        return os.stat(path).st_size  # noqa: PTH116 - hundreds of Path objects take longer than the look
    except OSError:
        return None


def _ctime(path: Path) -> int:
    stat = _stat(path)
    return stat.st_ctime_ns if stat is not None else 0
