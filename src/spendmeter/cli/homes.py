"""Where the session files of every known CLI are: for ``sync --watch`` and ``doctor``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from spendmeter.parsers import names, places_of


class Home(NamedTuple):
    """A folder of one CLI and its session files; the folder need not exist."""

    cli: str
    path: Path
    files: list[Path]


def homes(env: Mapping[str, str], home: Path | None = None) -> list[Home]:
    """Every CLI's folders, as ``parsers/places.py`` finds them.

    Args:
        home: look under this folder instead of the user's own.
    """
    out = []
    for cli in names():
        if place := places_of(cli):
            out += [Home(cli, path, place.session_files(path)) for path in place.homes(env, home)]
    return out
