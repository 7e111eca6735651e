"""Reading a home full of transcripts: Spendmeter, other meters and floors side by side, and whose answer is right.

    python benchmarks/sync.py [--mb 50 500] [--rounds 5] [--write]

The trees (``sync_tree.py``) and the peers (``sync_peers.py``) are made on the first call and kept under .cache. Programs take turns, so
that a slow moment of the machine hits all; all files are in the page cache. Prints tables in Markdown; ``--write`` puts them into
docs/reference/benchmarks.md. Linux only, where /proc tells how much memory a program and its children hold together.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sync_peers import COLD, FLOOR, GROWN, HERE, WARM, Answer, Program, install, programs, truth

from spendmeter.prices import PriceTable

TREES = HERE.parent / ".cache" / "bench-trees"
PAGE = HERE.parent / "docs" / "reference" / "benchmarks.md"
BEGIN, END = "<!-- tables: begin -->\n", "<!-- tables: end -->\n"
KINDS = {
    "tokens_in": "input", "cache_read": "cache read", "cache_write": "cache write", "tokens_out": "output", "cost_nusd": "dollars"
}  # fmt: skip
BUILDER = ("sync_tree.py", "sync_session.py", "sync_rows.py")
SAMPLE_S = 0.004
Line = tuple[str, str]  # program, step


@dataclass(frozen=True)
class Tree:
    """A built tree, what is true of it, and the run by which one of its files can grow."""

    home: Path
    told: dict[str, Any]
    growth: dict[str, Any]

    @contextmanager
    def grown(self, really: bool) -> Iterator[None]:
        """Lets the file grow for a while, if *really*, and brings it back to what it was."""
        path, size = self.home / self.growth["file"], self.growth["size"]
        before = path.stat()
        try:
            if really:
                with path.open("a", encoding="utf-8") as handle:
                    handle.write(self.growth["text"])
            yield
        finally:
            if path.stat().st_size > size:
                os.truncate(path, size)
                os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@dataclass(frozen=True)
class Took:
    """What one run of a program took: seconds, and what it printed."""

    wall_s: float
    cpu_s: float
    out: bytes


def tree(mb: int) -> Tree:
    """The tree of *mb* megabytes, built anew when its builder has changed, or the prices have."""
    made = b"".join((HERE / n).read_bytes() for n in BUILDER) + PriceTable.load().version.encode()
    home = TREES / f"{mb}-{hashlib.sha256(made).hexdigest()[:8]}"
    if not (home / "growth.json").is_file():
        for old in TREES.glob(f"{mb}-*"):
            shutil.rmtree(old)
        subprocess.run([sys.executable, str(HERE / "sync_tree.py"), "--mb", str(mb), str(home)], check=True, stdout=sys.stderr)
    return Tree(home, *(json.loads((home / n).read_text()) for n in ("truth.json", "growth.json")))


def spawn(argv: tuple[str, ...], program: Program, sampler: Sampler | None = None) -> Took:
    """Runs *argv* as *program* to its end; its CPU time holds that of its children."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        begun = time.perf_counter()
        child = subprocess.Popen(argv, env=program.env, cwd=program.home, stdin=subprocess.DEVNULL, stdout=out, stderr=err)
        if sampler:
            sampler.start(child.pid)
        _, status, used = os.wait4(child.pid, 0)
        wall = time.perf_counter() - begun
        child.returncode = os.waitstatus_to_exitcode(status)
        if sampler:
            sampler.stop()
        out.seek(0)
        err.seek(0)
        if child.returncode:
            raise SystemExit(f"{' '.join(argv)} ended with {child.returncode}: {err.read()[-500:].decode(errors='replace')}")
        return Took(wall, used.ru_utime + used.ru_stime, out.read())


class Sampler:
    """The most memory that a process and its descendants hold at one time; shared pages count once (PSS)."""

    def __init__(self) -> None:
        self.peak_kb = 0
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, pid: int) -> None:
        """Begins to look, every few milliseconds; that slows the process, so no time is taken of it."""
        self._done.clear()
        self._thread = threading.Thread(target=self._watch, args=(pid,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends it."""
        self._done.set()
        if self._thread:
            self._thread.join()

    def _watch(self, pid: int) -> None:
        while not self._done.wait(SAMPLE_S):
            self.peak_kb = max(self.peak_kb, sum(_pss_kb(p) for p in _family(pid)))


def _family(pid: int) -> Iterator[int]:
    yield pid
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = task.read_text().split()
        except OSError:
            continue
        for child in children:
            yield from _family(int(child))


def _pss_kb(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0  # it has just ended
    return next((int(x.split()[1]) for x in lines if x.startswith("Pss:")), 0)


def steps(program: Program, on: Tree) -> Iterator[str]:
    """The program's steps, the tree and its memory being as each needs them."""
    if COLD in program.steps:
        program.forget()
    program.home.mkdir(parents=True, exist_ok=True)
    for step in program.steps:
        with on.grown(step == GROWN):
            yield step


def answers(every: list[Program], on: Tree) -> tuple[dict[Line, Answer], dict[Line, int]]:
    """What each program says, and the memory it holds in kB; nothing is timed."""
    said: dict[Line, Answer] = {}
    memory: dict[Line, int] = {}
    for program in every:
        for step in steps(program, on):
            sampler = Sampler()
            out = spawn(program.argv, program, sampler).out
            memory[program.name, step] = sampler.peak_kb
            if program.read:
                said[program.name, step] = answer = program.read(spawn(program.asks, program).out if program.asks else out)
                if (answer["cache_read"] or 0) < truth(on.told)["cache_read"] / 2:
                    raise SystemExit(f"{program.name} has not seen the tree: {answer}")
    return said, memory


def times(every: list[Program], on: Tree, rounds: int) -> dict[Line, list[Took]]:
    """Each step of each program, *rounds* times, by turns."""
    out: dict[Line, list[Took]] = defaultdict(list)
    for n in range(rounds):
        print(f"round {n + 1} of {rounds}", file=sys.stderr)
        for program in every:
            for step in steps(program, on):
                out[program.name, step].append(spawn(program.argv, program))
    return out


def speed_table(took: dict[Line, list[Took]], memory: dict[Line, int]) -> str:
    """Seconds and megabytes; the ratio is to two processes that only decode."""
    floor = statistics.median(t.wall_s for t in took[FLOOR, ""])
    lines = ["| | median s | fastest s | to the floor | CPU s | peak MB |", "|---|---|---|---|---|---|"]
    for (name, step), runs in took.items():
        wall, cpu = statistics.median(t.wall_s for t in runs), statistics.median(t.cpu_s for t in runs)
        numbers = f"{wall:.2f} | {min(t.wall_s for t in runs):.2f} | {wall / floor:.2f}x | {cpu:.2f} | {memory[name, step] / 1024:.0f}"
        lines.append(f"| {_label(name, step)} | {numbers} |")
    return "\n".join(lines) + "\n"


def _label(name: str, step: str) -> str:
    return f"{name}, {step}" if step else name


def answer_table(said: dict[Line, Answer], on: Tree) -> str:
    """How far each first answer is from the truth, and whether what came later was added rightly."""
    real, more = truth(on.told), truth(on.growth)
    lines = [f"| | {' | '.join(KINDS.values())} | the run more |", "|---" * (len(KINDS) + 2) + "|"]
    lines.append(f"| the truth | {' | '.join(_amount(k, real[k]) for k in KINDS)} | |")
    for (name, step), answer in said.items():
        if step in (WARM, GROWN):
            continue
        cells = [_off(answer[k], real[k]) for k in KINDS]
        lines.append(f"| {name} | {' | '.join(cells)} | {_added(said, name, answer, more)} |")
    return "\n".join(lines) + "\n"


def _added(said: dict[Line, Answer], name: str, first: Answer, more: Answer) -> str:
    """Whether *name* counts nothing twice when nothing is new, and a grown file's new run once."""
    if (name, GROWN) not in said:
        return ""
    if said[name, WARM] != first:
        return "counts again"
    rise = {k: (said[name, GROWN][k] or 0) - v for k, v in first.items() if v is not None}
    return "exact" if all(rise[k] == more[k] for k in rise) else _off(sum(rise[k] for k in _TOKENS), sum(more[k] or 0 for k in _TOKENS))


_TOKENS = tuple(k for k in KINDS if k != "cost_nusd")


def _amount(kind: str, n: int | None) -> str:
    return "–" if n is None else f"${n / 1e9:,.2f}" if kind == "cost_nusd" else f"{n:,}"


def _off(told: int | None, real: int | None) -> str:
    if told is None or real is None:
        return "–"
    return "exact" if told == real else f"{(told - real) / real:+.2%}"


def tables(mb: int, rounds: int) -> str:
    """Everything about the tree of *mb* megabytes."""
    on = tree(mb)
    with tempfile.TemporaryDirectory() as scratch:
        every = programs(on.home, Path(scratch))
        said, memory = answers(every, on)
        took = times(every, on, rounds)
    told = on.told
    head = f"{told['bytes'] / 1e6:.0f} MB: {told['files']:,} files, {told['lines']:,} lines, {told['total']['calls']:,} calls"
    return f"## {head}\n\n{speed_table(took, memory)}\nAnswers, against the truth:\n\n{answer_table(said, on)}"


def write(text: str) -> None:
    """Puts the tables into the documentation."""
    page = PAGE.read_text()
    before, _, rest = page.partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}{text}{END}{rest.partition(END)[2]}")


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--mb", type=int, nargs="+", default=[50, 500])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", action="store_true", help="into docs/reference/benchmarks.md too")
    args = parser.parse_args()
    install()
    for mb in args.mb:
        tree(mb)
    made = f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores, {args.rounds} rounds, load before it {os.getloadavg()[0]:.1f}.\n"
    text = "\n".join([made, *(tables(mb, args.rounds) for mb in args.mb)])
    print(text)
    if args.write:
        write(text)


if __name__ == "__main__":
    main()
