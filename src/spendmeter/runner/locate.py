"""Finds the command as a shell would, and becomes it."""

from __future__ import annotations

import errno
import os
import stat

TYPE_CHECKING = False  # importing typing costs 5 ms before the child starts
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import NoReturn

NOT_FOUND = 127
NOT_EXECUTABLE = 126


class CannotRunError(Exception):
    """The command cannot be started; ``code`` is the shell's exit code for that."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def locate(name: str, env: Mapping[str, str]) -> str:
    """Path of the program *name*, searched in PATH unless it holds a slash.

    Raises:
        CannotRunError: 127 where there is none, 126 where it is a directory or not executable.
    """
    if "/" in name:
        candidates = [name]
    else:
        candidates = [f"{folder or '.'}/{name}" for folder in env.get("PATH", os.defpath).split(os.pathsep)] if name else []
    refused = None
    for path in candidates:
        problem = _problem(path)
        if problem is None:
            return path
        if problem != errno.ENOENT:
            refused = refused or problem
    if refused and ("/" in name or refused == errno.EACCES):
        raise failure(name, refused)
    raise failure(name, errno.ENOENT)


def failure(name: str, code: int) -> CannotRunError:
    """The error for *name* that failed with errno *code*."""
    if code == errno.ENOENT:
        reason = "no such file" if "/" in name else "command not found; is it installed, and its folder in PATH?"
        return CannotRunError(f"{name}: {reason}", NOT_FOUND)
    return CannotRunError(f"{name}: cannot be executed ({os.strerror(code)})", NOT_EXECUTABLE)


def become(path: str, argv: Sequence[str], env: Mapping[str, str]) -> NoReturn:
    """Replaces this process; a script without ``#!`` goes to sh, as in a shell.

    Raises:
        OSError: it could not.
    """
    try:
        os.execve(path, list(argv), dict(env))  # noqa: S606 - no shell is meant
    except OSError as e:
        if e.errno != errno.ENOEXEC:
            raise
        os.execve("/bin/sh", ["/bin/sh", path, *argv[1:]], dict(env))  # noqa: S606 - as above


def _problem(path: str) -> int | None:
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116 - pathlib would delay the child by 4 ms
    except NotADirectoryError:
        return errno.ENOENT
    except OSError as e:
        return e.errno
    if stat.S_ISDIR(mode):
        return errno.EISDIR
    return None if os.access(path, os.X_OK) else errno.EACCES
