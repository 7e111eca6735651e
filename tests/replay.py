"""Makes any number of distinct runs out of one captured run: new ids everywhere, numbers untouched."""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Mapping
from pathlib import Path

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_TAG = re.compile(r"Stub[0-9a-f]{8}")


def clone(case: Path, out: Path, seed: str, swap: Mapping[str, str] | None = None) -> Path:
    """Copies ``stdout`` and ``home`` of *case* to *out* with ids that follow from *seed*; *swap* replaces text besides."""

    def renewed(text: str) -> str:
        text = _UUID.sub(lambda m: str(uuid.uuid5(uuid.NAMESPACE_OID, seed + m[0])), text)
        text = _TAG.sub(lambda m: "Stub" + hashlib.sha256((seed + m[0]).encode()).hexdigest()[:8], text)
        for old, new in (swap or {}).items():
            text = text.replace(old, new)
        return text

    for path in [case / "stdout", *sorted((case / "home").rglob("*"))]:
        if path.is_file():
            target = out / renewed(str(path.relative_to(case)))
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(renewed(path.read_text()))
    return out
