"""Where the session files of every known CLI are: for ``sync --watch`` and ``doctor``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from spendmeter.parsers import names, places_of
from spendmeter.parsers.places import Places


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
    return [Home(cli, path, place.session_files(path)) for cli, place in _placed(()) for path in place.homes(env, home)]


def folders(env: Mapping[str, str], home: Path | None = None, clis: Sequence[str] = ()) -> Iterator[tuple[str, Path]]:
    """(CLI, folder) as ``homes``, of *clis* alone where any are named, without a look at their files."""
    for cli, place in _placed(clis):
        yield from ((cli, path) for path in place.homes(env, home))


def _placed(clis: Sequence[str]) -> Iterator[tuple[str, Places]]:
    for cli in names():
        place = places_of(cli) if not clis or cli in clis else None
        if place:
            yield cli, place
