"""Which files of a folder may be sources."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from spendmeter.errors import ParseError
from spendmeter.parsers import is_source


def files(path: Path) -> Iterator[Path]:
    """The file at *path*, or every text file and known database below the folder, in a stable order.

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
            if file.is_file() and is_source(file):
                yield file
