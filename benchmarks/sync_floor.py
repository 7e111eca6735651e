"""The least that reading transcripts costs in Python: msgspec decodes every line into the fields that a meter needs, and drops them.

    python benchmarks/sync_floor.py PROCESSES FOLDER

No dedupe, no sums, no prices, nothing is kept. The files are dealt out by size.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import msgspec


class Writes(msgspec.Struct):
    ephemeral_1h_input_tokens: int = 0
    ephemeral_5m_input_tokens: int = 0


class Use(msgspec.Struct):
    input_tokens: int = 0
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int = 0
    output_tokens: int = 0
    cache_creation: Writes | None = None


class Message(msgspec.Struct):
    id: str | None = None
    model: str | None = None
    usage: Use | None = None


class Line(msgspec.Struct, rename="camel"):
    type: str = ""
    uuid: str | None = None
    session_id: str | None = None
    request_id: str | None = None
    request_session_id: str | None = None
    timestamp: str | None = None
    message: Message | None = None


def read(files: list[Path]) -> int:
    """How many lines could be decoded."""
    decode, n = msgspec.json.Decoder(Line).decode, 0
    for file in files:
        with file.open("rb") as handle:
            for line in handle:
                try:
                    decode(line)
                except msgspec.DecodeError:
                    continue  # half-written
                n += 1
    return n


def main() -> None:
    """Forks one process fewer than asked for and reads a share itself."""
    processes, folder = int(sys.argv[1]), Path(sys.argv[2])
    files = sorted(folder.rglob("*.jsonl"), key=lambda f: f.stat().st_size, reverse=True)
    for share in range(1, processes):
        if os.fork() == 0:
            read(files[share::processes])
            os._exit(0)
    print(read(files[::processes]))
    for _ in range(1, processes):
        os.wait()


if __name__ == "__main__":
    main()
