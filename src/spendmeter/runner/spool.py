"""Runs that are under way, and runs that could not be recorded yet: one small file each, beside the ledger.

A file is locked (flock) as long as its wrapper lives, so a lock that can be had means a dead wrapper; that holds across reused
process ids, containers and reboots. No file holds any text of a prompt, an argument or an answer.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from spendmeter.config import data_dir
from spendmeter.records import Alias, Base, Call, Context, Finish, Level, Moment, Observation, Part, Skip, Tags
from spendmeter.runner.finished import FinishedRun

ATTEMPTS = 10
RUNNING, FINISHED = "running", "finished"
KINDS: dict[str, type[Observation]] = {c.__name__: c for c in (Call, Level, Part, Base, Alias, Moment, Finish, Context, Skip)}
_PLAIN = (
    "run_id", "cli", "exit_code", "signal", "started_ms", "ended_ms", "trace_id", "span_id", "parent_span_id",
    "resumed", "forked", "continued", "notes", "cwd", "repo", "branch", "commit",
)  # fmt: skip
_LATER = ("stopped",)  # which files of older versions lack
_PASSWORD = re.compile(r"(//[^/@:]*):[^/@]*@")
_SQLITE = re.compile(r"sqlite(?:\+\w+)?:///(?P<path>[^?]+)")


def spool_dirs(ledger: str, env: Mapping[str, str]) -> list[Path]:
    """Where the pending runs of the ledger at URL *ledger* may lie: the first is for writing, the others where that fails."""
    digest = hashlib.sha256(_PASSWORD.sub(r"\1@", ledger).encode()).hexdigest()[:12]
    state = Path(env.get("XDG_STATE_HOME") or Path(env.get("HOME") or Path.home()) / ".local" / "state")
    file = _SQLITE.fullmatch(ledger)
    if file and file["path"] != ":memory:":
        path = Path(file["path"]).expanduser()
        digest = hashlib.sha256(str(path.absolute()).encode()).hexdigest()[:12]
        first = path.with_name(path.name + ".spool").absolute()
    else:
        first = data_dir(env) / "spool" / digest
    return [first, state / "spendmeter" / "spool" / digest]


class Pending:
    """One file of the spool, locked by this process. ``data`` is its JSON."""

    def __init__(self, path: Path, data: dict[str, Any], fd: int) -> None:
        self.path, self.data, self._fd = path, data, fd

    @property
    def is_finished(self) -> bool:
        """Whether the run was observed to its end; else its wrapper was killed."""
        return bool(self.data.get("state") == FINISHED)

    def update(self, data: dict[str, Any], *, durable: bool = False) -> None:
        """Replaces what the file holds."""
        old, self._fd = self._fd, _write(self.path, data, durable=durable)
        self.data = data
        os.close(old)

    def remove(self) -> None:
        """The run is in the ledger: the file goes."""
        self.path.unlink(missing_ok=True)
        with suppress(OSError):  # other runs are pending
            self.path.parent.rmdir()
        self.release()

    def release(self) -> None:
        """Leaves the file to whoever comes next."""
        os.close(self._fd)


def create(folders: list[Path], run_id: str, data: dict[str, Any], *, durable: bool = False) -> Pending:
    """Writes a new file in the first of *folders* that can be written.

    Raises:
        OSError: none can.
    """
    for folder in folders[:-1]:
        with suppress(OSError):
            return _create(folder, run_id, data, durable=durable)
    return _create(folders[-1], run_id, data, durable=durable)


def write_pending(folders: list[Path], run: FinishedRun) -> Path:
    """Keeps a finished run that the ledger could not take; where it lies.

    Raises:
        OSError: no folder can be written.
    """
    pending = create(folders, run.run_id, to_json(run), durable=True)
    pending.release()
    return pending.path


def pending_runs(folder: Path) -> Iterator[Pending]:
    """The files in *folder* whose wrapper is gone, each locked for the caller, who ends with ``remove`` or ``release``.

    A file that cannot be read is set aside as ``*.unreadable``.
    """
    for path in sorted(folder.glob("*.json")):
        fd = _lock(path)
        if fd is None:
            continue
        try:
            data = json.loads(path.read_bytes())
            data["run_id"].encode()
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            with suppress(OSError):
                set_aside(path)
            os.close(fd)
            continue
        yield Pending(path, data, fd)


def set_aside(path: Path) -> Path:
    """Keeps the file from being tried again; where it lies then."""
    return path.rename(path.with_suffix(".unreadable"))


def is_pending(folders: list[Path], run_id: str) -> bool:
    """Whether the run is under way, or has ended and is still to be recorded."""
    return any((folder / f"{run_id}.json").exists() for folder in folders)


def to_json(run: FinishedRun) -> dict[str, Any]:
    """*run* as JSON values."""
    import msgspec

    out: dict[str, Any] = {name: getattr(run, name) for name in (*_PLAIN, *_LATER)}
    out |= {"state": FINISHED, "tags": tags_json(run.tags), "sessions": sorted(run.sessions)}
    out["files"] = [[str(path), offset] for path, offset in run.files]
    out["observations"] = [[type(o).__name__, msgspec.to_builtins(o)] for o in run.observations]
    return out


def from_json(data: Mapping[str, Any]) -> FinishedRun:
    """The run that ``to_json`` gave.

    Raises:
        ValueError: *data* is not what it gave.
    """
    import msgspec

    try:
        observed: list[Observation] = [msgspec.convert(value, type=KINDS[kind]) for kind, value in data["observations"]]
        rest = {name: data[name] for name in _PLAIN} | {name: data.get(name) for name in _LATER}
        files = [(Path(path), int(offset)) for path, offset in data["files"]]
        return FinishedRun(tags=Tags(**data["tags"]), sessions=set(data["sessions"]), files=files, observations=observed, **rest)
    except (KeyError, TypeError, msgspec.ValidationError) as e:
        raise ValueError(f"not a pending run: {type(e).__name__}") from None


def tags_json(tags: Tags) -> dict[str, Any]:
    """*tags* as JSON values."""
    return {"agent": tags.agent, "task": tags.task, "attrs": dict(tags.attrs)}


def _create(folder: Path, run_id: str, data: dict[str, Any], *, durable: bool) -> Pending:
    path = folder / f"{run_id}.json"
    for _ in range(ATTEMPTS):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # another wrapper removed the empty folder just now
            return Pending(path, data, _write(path, data, durable=durable))
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder))


def _write(path: Path, data: dict[str, Any], *, durable: bool) -> int:
    """Writes *path* as a whole; returns a descriptor that holds its lock."""
    new = path.with_suffix(f".{os.getpid()}.tmp")
    fd = os.open(new, os.O_CREAT | os.O_TRUNC | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with open(fd, "wb", closefd=False) as handle:
            handle.write(json.dumps(data, separators=(",", ":")).encode())
        if durable:
            os.fsync(fd)
        new.replace(path)
    except BaseException:
        os.close(fd)
        new.unlink(missing_ok=True)
        raise
    return fd


def _lock(path: Path) -> int | None:
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(fd).st_ino == path.stat().st_ino:  # else its wrapper has replaced it meanwhile
            return fd
    except OSError:
        pass
    os.close(fd)
    return None
