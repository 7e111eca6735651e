"""Wall time that ``spendmeter run`` adds to a command: run it as ``python benchmarks/run_overhead.py [--runs 30] [--live 0.5]``.

The command is tests/fakecli/claude, which writes a captured transcript, lives a while and prints what was captured. Bare and wrapped
runs alternate, so that a slow moment of the machine hits both. Prints a table of medians in milliseconds.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FAKE = ROOT / "tests" / "fakecli" / "claude"
CASES = ROOT / "tests" / "fixtures" / "runs" / "claude"


def main() -> None:
    args = _args()
    print(f"{'case':<34}{'home':>8}{'bare':>9}{'run':>9}{'added':>9}{'p90':>9}   (ms, {args.runs} runs each)")
    for case, old in (("json-single", 0), ("stream-json-tool", 0), ("text-tool", 0), ("text-tool", 10_000)):
        with tempfile.TemporaryDirectory() as folder:
            bare, wrapped = _measured(Path(folder), case, old, args)
        added = [w - b for w, b in zip(wrapped, bare, strict=True)]
        p90 = statistics.quantiles(added, n=10)[-1]
        row = [statistics.median(x) for x in (bare, wrapped, added)]
        print(f"{case:<34}{old:>8}" + "".join(f"{x * 1e3:>9.1f}" for x in (*row, p90)), flush=True)


def _args() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--live", default="0.5")
    return parser.parse_args()


def _measured(folder: Path, case: str, old: int, args: argparse.Namespace) -> tuple[list[float], list[float]]:
    """Wall times of bare and wrapped runs, in seconds."""
    env = _env(folder, case, args.live)
    _fill(folder, old)
    wrapper = [sys.executable, "-m", "spendmeter", "--ledger", f"sqlite:///{folder}/ledger.db", "run", "--agent", "bench", "--"]
    bare, wrapped = [], []
    for i in range(args.runs + 1):  # the first makes the ledger, so it does not count
        times = [_timed([*prefix, str(FAKE), "-p", "hi"], env, folder) for prefix in ([], wrapper)]
        if i:
            bare.append(times[0])
            wrapped.append(times[1])
    return bare, wrapped


def _env(folder: Path, case: str, live: str) -> dict[str, str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("SPENDMETER_", "CLAUDE", "XDG_"))}
    return env | {"HOME": str(folder), "FAKE_CASE": str(CASES / case), "FAKE_LIVE_S": live, "PYTHONPATH": str(ROOT / "src")}


def _fill(folder: Path, old: int) -> None:
    for i in range(old):
        path = folder / ".claude" / "projects" / f"-old-{i % 100}" / f"{i:08x}-0000-4000-8000-000000000000.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}\n")


def _timed(argv: list[str], env: dict[str, str], cwd: Path) -> float:
    began = time.perf_counter()
    done = subprocess.run(argv, env=env, cwd=cwd, capture_output=True, check=True)
    took = time.perf_counter() - began
    if done.stderr:
        print(done.stderr.decode(), file=sys.stderr)
    return took


if __name__ == "__main__":
    main()
