"""Where the session files of every known CLI are: for ``sync --watch`` and ``doctor``."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from spendmeter.parsers import names


class Home(NamedTuple):
    """A folder of one CLI and its session files; the folder need not exist."""

    cli: str
    path: Path
    files: list[Path]


def homes(env: Mapping[str, str], home: Path | None = None) -> list[Home]:
    """Every CLI's folders, as its module ``parsers/<cli>_files.py`` finds them.

    Args:
        home: look under this folder instead of the user's own.
    """
    out = []
    for cli in names():
        name = f"spendmeter.parsers.{cli}_files"
        if find_spec(name):
            module = import_module(name)
            out += [Home(cli, path, module.transcripts(path)) for path in module.homes(env, home)]
    return out
