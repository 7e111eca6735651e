"""What the wrapper itself has to say: one line on standard error."""

from __future__ import annotations

import os


def say(line: str) -> None:
    """Writes *line* to standard error, if there is one."""
    try:
        os.write(2, f"spendmeter: {line}\n".encode("utf-8", "surrogateescape"))
    except OSError:
        return
