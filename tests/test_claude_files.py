"""Which transcripts Claude Code wrote, and which of them one run wrote."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from spendmeter.parsers.claude_files import Watch, homes, session_of, slug, transcripts
from tests.fakecli.harness import CASES

IDS = [f"{i:08d}-0000-4000-8000-000000000000" for i in range(9)]
CWD = "/home/dev/repo"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / ".claude"


def write(home: Path, session: str, text: str = "{}\n", cwd: str = CWD, agent: str = "") -> Path:
    """Appends *text* to a transcript."""
    folder = home / "projects" / slug(cwd)
    path = folder / session / "subagents" / f"agent-{agent}.jsonl" if agent else folder / f"{session}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as handle:
        handle.write(text)
    return path


def started(home: Path, cwd: str | None = CWD) -> Watch:
    """A watch as of now."""
    time.sleep(0.02)  # beyond the tick of the clock that stamps files
    watch = Watch(home, cwd, time.time_ns() - 8_000_000)
    watch.snapshot()
    return watch


def nobody(pid: int) -> bool:
    return False


def test_homes_follow_the_environment(tmp_path: Path) -> None:
    """CLAUDE_CONFIG_DIR alone, else ~/.claude and an existing XDG folder; a given home instead of both."""
    env = {"HOME": str(tmp_path)}
    assert homes(env | {"CLAUDE_CONFIG_DIR": "/c"}) == [Path("/c")]
    assert homes(env) == [tmp_path / ".claude"]
    (tmp_path / ".config" / "claude").mkdir(parents=True)
    assert homes(env) == [tmp_path / ".claude", tmp_path / ".config" / "claude"]
    assert homes(env | {"XDG_CONFIG_HOME": "/none"}) == [tmp_path / ".claude"]
    assert homes({"HOME": "/x", "CLAUDE_CONFIG_DIR": "/c"}, tmp_path) == homes(env)
    (tmp_path / "other" / "projects").mkdir(parents=True)
    assert homes({}, tmp_path / "other") == [tmp_path / "other"]


def test_every_captured_transcript_is_found_and_knows_its_session() -> None:
    """Sessions by their file name, subagents by the folder that they lie in."""
    seen = 0
    for case in sorted(CASES.iterdir()):
        home = case / "home" / ".claude"
        assert transcripts(home) == sorted(p for p in home.rglob("*.jsonl") if "projects" in p.parts)
        for path in transcripts(home):
            told = {json.loads(line).get("sessionId") for line in path.read_text().splitlines()} - {None}
            assert session_of(path) in told
            seen += 1
    assert seen > 40


def test_a_loose_subagent_file_of_older_versions_names_its_session(home: Path) -> None:
    """By its first row; where that cannot be read the session is not known."""
    loose = write(home, "agent-1", json.dumps({"sessionId": IDS[0]}) + "\n")
    assert session_of(loose) == IDS[0]
    assert session_of(write(home, "agent-2", "{broken")) is None


def test_named_sessions_come_with_subagents_and_former_sizes(home: Path) -> None:
    """What stdout or argv names is taken, whatever else changed."""
    grown = write(home, IDS[0], "before\n")
    agent = write(home, IDS[0], "before\n", agent="old")
    watch = started(home)
    for session in IDS[:3]:
        write(home, session, "more\n")
    new = write(home, IDS[0], "new\n", agent="new")
    assert watch.after({IDS[0]}, []) == [(grown, 7), (new, 0), (agent, 7)]
    assert watch.reason is None


def test_a_session_that_moved_is_found_in_every_project(home: Path) -> None:
    """One id may have files in several project folders."""
    watch = started(home)
    here, there = write(home, IDS[0]), write(home, IDS[0], cwd="/elsewhere")
    assert watch.after({IDS[0]}, []) == [(here, 0), (there, 0)]


@pytest.mark.parametrize("cwd", [CWD, "/elsewhere", None])
@pytest.mark.parametrize("old", [True, False])
def test_the_only_change_is_the_runs(home: Path, cwd: str | None, old: bool) -> None:
    """A new or a grown transcript, in the cwd's project or in another one."""
    for session in IDS[4:]:
        write(home, session, "old\n")
    if old:
        write(home, IDS[0], "old\n")
    watch = started(home, cwd)
    path = write(home, IDS[0], "new\n")
    assert watch.after(set(), []) == [(path, 4 if old else 0)]
    assert watch.found == {IDS[0]}


def test_a_change_in_the_cwds_project_goes_before_others(home: Path) -> None:
    """Parallel runs in other folders do not matter."""
    watch = started(home)
    write(home, IDS[1], cwd="/other")
    path = write(home, IDS[0])
    assert watch.after(set(), []) == [(path, 0)]


def test_several_changes_cannot_be_told_apart(home: Path) -> None:
    """None is taken, and the reason says how many there were."""
    watch = started(home)
    for session in IDS[:3]:
        write(home, session)
    assert watch.after(set(), []) == []
    assert watch.reason == "3 sessions changed, cannot tell which is this run's"


@pytest.mark.parametrize("touch", [lambda p: None, lambda p: p.touch(), lambda p: os.utime(p, (9e9, 9e9))])
def test_what_did_not_grow_is_not_the_runs(home: Path, touch: Callable[[Path], None]) -> None:
    """No change, a mere touch, or a time in the future: no usage."""
    path = write(home, IDS[0])
    watch = started(home)
    touch(path)
    assert (watch.after(set(), []), watch.reason, watch.found) == ([], None, set())


def test_an_old_time_on_a_new_file_does_not_matter(home: Path) -> None:
    """Copied with its old mtime (``cp -p``): it is new all the same."""
    watch = started(home)
    path = write(home, IDS[0])
    os.utime(path, (1e9, 1e9))
    assert watch.after(set(), []) == [(path, 0)]


def test_a_late_snapshot_still_tells_before_from_after(home: Path) -> None:
    """The child may have written before the snapshot: new files are new, and what was read at once counts for the cwd."""
    old = write(home, IDS[0], "old\n")
    time.sleep(0.02)
    early = {slug(CWD): {old.name: (4, old.stat().st_ctime_ns)}}
    start = time.time_ns() - 8_000_000
    write(home, IDS[0], "more\n")
    new = write(home, IDS[1], cwd="/new")
    watch = Watch(home, CWD, start, early)
    watch.snapshot()
    assert watch.after({IDS[0], IDS[1]}, []) == [(old, 4), (new, 0)]


def test_a_resumed_session_holds_if_it_changed(home: Path) -> None:
    """Older versions write a new session on --resume: then that one is the run's."""
    resumed = write(home, IDS[0], "old\n")
    watch = started(home)
    new = write(home, IDS[1])
    assert watch.after(set(), [], maybe=IDS[0]) == [(new, 0)]
    watch = started(home)
    write(home, IDS[0], "more\n")
    write(home, IDS[1])
    assert watch.after(set(), [], maybe=IDS[0]) == [(resumed, 4)]


def test_a_forks_parent_comes_along(home: Path) -> None:
    """With its whole size: nothing in it is new."""
    parent = write(home, IDS[0], "old\n")
    watch = started(home)
    fork = write(home, IDS[1])
    assert watch.newest() == IDS[0]
    assert watch.after(set(), [], parents=[IDS[0]]) == [(fork, 0), (parent, 4)]


def test_the_real_process_file_of_a_killed_run_names_its_session(home: Path) -> None:
    """Captured: SIGKILL left sessions/2885.json behind."""
    watch = started(home)
    shutil.copytree(CASES / "kill-sigkill-json" / "home" / ".claude", home, dirs_exist_ok=True)
    write(home, IDS[0])
    files = watch.after(set(), [2885])
    assert [path.stem for path, _ in files] == ["cada5f97-daaa-48fe-b2ea-ad451744eac0"]


def test_process_files_of_others_are_foreign(home: Path) -> None:
    """A living process that is not ours has its session: it is no candidate. A file from before the run is none of ours."""
    (home / "sessions").mkdir(parents=True)
    stale = home / "sessions" / "77.json"
    stale.write_text(json.dumps({"sessionId": IDS[5]}))
    watch = started(home)
    (home / "sessions" / f"{os.getpid()}.json").write_text(json.dumps({"sessionId": IDS[0]}))
    (home / "sessions" / "broken.json").write_text("{")
    assert watch.poll(nobody) == set()
    write(home, IDS[0])
    mine = write(home, IDS[1])
    assert watch.after(set(), [77]) == [(mine, 0)]


def test_several_sessions_of_one_process_are_all_the_runs(home: Path) -> None:
    """/clear goes on under a new id: both were seen."""
    watch = started(home)
    (home / "sessions").mkdir(parents=True)
    for session in IDS[:2]:
        (home / "sessions" / "5.json").write_text(json.dumps({"sessionId": session}))
        watch.poll(lambda pid: pid == 5)
        time.sleep(0.02)
    files = [write(home, session) for session in IDS[:2]]
    assert [path for path, _ in watch.after(set(), [])] == files


def test_a_run_of_no_known_cli_takes_nothing_on_suspicion(home: Path) -> None:
    """guess=False: only what is named counts."""
    watch = started(home)
    write(home, IDS[0])
    assert (watch.after(set(), [], guess=False), watch.reason) == ([], None)


def test_a_watch_survives_its_wrapper(home: Path) -> None:
    """``state`` goes through JSON and tells the same."""
    path = write(home, IDS[0], "old\n")
    watch = started(home)
    write(home, IDS[0], "more\n")
    restored = Watch.restored(json.loads(json.dumps(watch.state())))
    assert restored.after(set(), []) == watch.after(set(), []) == [(path, 4)]


def test_among_thousands_a_grown_recent_one_is_found(home: Path) -> None:
    """Only the newest are looked at again, and what a refresh saw while the run lived counts too."""
    for i in range(700):
        write(home, f"{i:08d}-1111-4000-8000-000000000000")
    time.sleep(0.02)
    recent = write(home, IDS[0], "old\n")
    watch = started(home)
    write(home, IDS[0], "new\n")
    assert watch.after(set(), []) == [(recent, 4)]
    oldest = home / "projects" / slug(CWD) / "00000000-1111-4000-8000-000000000000.jsonl"
    watch = started(home)
    write(home, oldest.stem, "new\n")
    watch.refresh()
    assert watch.after(set(), []) == [(oldest, 3)]


@pytest.mark.parametrize(("cwd", "name"), [("/home/dev/repo", "-home-dev-repo"), ("/a.b_c d/é", "-a-b-c-d--"), ("/😀", "---")])
def test_the_project_folder_is_the_cwd_with_dashes(cwd: str, name: str) -> None:
    """Per UTF-16 unit, as JavaScript does it."""
    assert slug(cwd) == name


def test_a_long_path_is_cut_and_hashed(home: Path) -> None:
    """Found by its first 200 characters."""
    cwd = "/" + "x" * 300
    watch = started(home, cwd)
    folder = home / "projects" / (slug(cwd)[:200] + "-abc123")
    folder.mkdir(parents=True)
    (folder / f"{IDS[0]}.jsonl").write_text("{}\n")
    write(home, IDS[1])
    assert [path.stem for path, _ in watch.after(set(), [])] == [IDS[0]]
