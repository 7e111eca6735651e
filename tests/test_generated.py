"""What is generated is as ``make gen`` writes it, and no document names a metric that does not exist."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

from spendmeter import metrics as m
from spendmeter.rules.spending import BURNING, USED

ROOT = Path(__file__).parents[1]


def test_generated_files_are_up_to_date() -> None:
    """Each generated file equals its generator's output, byte for byte."""
    for path, text in runpy.run_path(str(ROOT / "scripts" / "gen.py"))["pages"]().items():
        assert text == path.read_text(), f"{path.name}: run make gen"


def test_every_metric_that_is_named_exists() -> None:
    """Documents and shipped configurations name only metrics of metrics.py."""
    known = {x.sample for x in m.ALL.values()} | {x.prometheus for x in m.ALL.values()}
    known |= {f"{m.RUN_DURATION.prometheus}_{s}" for s in ("bucket", "sum", "count")}
    known |= {name.split(":")[1] for name in (USED, BURNING)}
    seen = 0
    for path in [
        ROOT / "README.md",
        ROOT / "collector-config.yaml",
        *sorted((ROOT / "docs").rglob("*.md")),
        *sorted((ROOT / "deploy").rglob("*.y*ml")),
    ]:
        for name in re.findall(r"\bspendmeter_[a-z0-9_]+", path.read_text()):
            if name.endswith("_"):
                continue  # a family written with a wildcard
            seen += 1
            assert name in known, f"{path.name} names {name}"
    assert seen > 10
