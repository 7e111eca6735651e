"""Repository, branch and commit of a folder, read from ``.git`` without running git."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

_ORIGIN = re.compile(r'^\s*\[remote "origin"\]\s*$(?P<body>(?:\n(?!\s*\[).*)*)', re.MULTILINE)
_URL = re.compile(r"^\s*url\s*=\s*(\S+)\s*$", re.MULTILINE)
_USER = re.compile(r"^(\w[\w+.-]*://)[^/@]*@")


class Repo(NamedTuple):
    """``name`` is origin's URL without a password, else the name of the top folder."""

    name: str | None = None
    branch: str | None = None
    commit: str | None = None


def repo_of(cwd: str | None) -> Repo:
    """The repository that holds *cwd*; all None where there is none that can be read."""
    try:
        top, git = _find(Path(cwd)) if cwd else (None, None)
        if top is None or git is None:
            return Repo()
        common = git / _line(git / "commondir") if (git / "commondir").is_file() else git
        branch, commit = _head(git, common)
        return Repo(_origin(common) or top.name, branch, commit)
    except (OSError, ValueError):
        return Repo()


def name_here() -> str | None:
    """The name of the repository that holds this process's folder; None where there is none, or the folder was removed."""
    try:
        return repo_of(str(Path.cwd())).name
    except OSError:
        return None


def _find(folder: Path) -> tuple[Path | None, Path | None]:
    for top in (folder, *folder.parents):
        git = top / ".git"
        if git.is_dir():
            return top, git
        if git.is_file():  # a worktree or a submodule: "gitdir: <path>"
            return top, top / _line(git).removeprefix("gitdir:").strip()
    return None, None


def _head(git: Path, common: Path) -> tuple[str | None, str | None]:
    head = _line(git / "HEAD")
    if not head.startswith("ref:"):
        return None, head or None
    ref = head.removeprefix("ref:").strip()
    branch = ref.removeprefix("refs/heads/")
    for folder in (git, common):
        if (folder / ref).is_file():
            return branch, _line(folder / ref)
    packed = common / "packed-refs"
    if packed.is_file():
        for row in packed.read_text("utf-8", "replace").splitlines():
            if row.endswith(f" {ref}"):
                return branch, row.split(" ", 1)[0]
    return branch, None


def _origin(common: Path) -> str | None:
    config = common / "config"
    if not config.is_file():
        return None
    section = _ORIGIN.search(config.read_text("utf-8", "replace"))
    url = _URL.search(section["body"]) if section else None
    return _USER.sub(r"\1", url[1]) if url else None


def _line(path: Path) -> str:
    return path.read_text("utf-8", "replace").partition("\n")[0].strip()
