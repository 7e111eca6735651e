"""Which files of a folder may be sources."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from spendmeter.errors import ParseError

HEAD = 4096


def files(path: Path) -> Iterator[Path]:
    """The file at *path*, or every text file below the folder, in a stable order.

    Raises:
        ParseError: nothing is there.
    """
    if not path.exists():
        raise ParseError(f"{path}: no such file or folder; check the path")
    if not path.is_dir():
        yield path
        return
    for folder, names, found in os.walk(path):
        names.sort()
        for name in sorted(found):
            file = Path(folder) / name
            if file.is_file() and not binary(file):
                yield file


def binary(path: Path) -> bool:
    """Whether *path* begins as no text does; False where it cannot be read (reading it will say why)."""
    try:
        with path.open("rb") as handle:
            return b"\0" in handle.read(HEAD)
    except OSError:
        return False
