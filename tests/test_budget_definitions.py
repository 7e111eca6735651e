"""Facts about a budgets.yaml that changes while a daemon reads it."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from spendmeter.budgets import Budgets
from spendmeter.budgets.definitions import Definitions
from spendmeter.errors import ConfigError


def text(*names: str) -> str:
    """A file with budgets of these *names*."""
    return f"budgets: [{', '.join(f'{{name: {name}, period: day, limit_usd: 5}}' for name in names)}]\n"


def replaced(path: Path, content: str, at_ns: int | None = None) -> Path:
    """A new file in its place, as editors and ConfigMaps do it."""
    new = path.with_suffix(".new")
    new.write_text(content)
    if at_ns is not None:
        os.utime(new, ns=(at_ns, at_ns))
    return new.replace(path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A good file, written long ago."""
    return replaced(tmp_path / "budgets.yaml", text("a"), at_ns=10**18)


def names(definitions: Definitions) -> list[str]:
    """Of the budgets as they are now."""
    return [b.name for b in definitions.current().budgets]


def test_a_file_that_stays_is_read_once(path: Path) -> None:
    """The same object each time."""
    definitions = Definitions(path)
    assert definitions.current() is definitions.current()


@pytest.mark.parametrize("at_ns", [None, 10**18, 10**18 + 1])
def test_a_file_that_is_replaced_is_read_again(path: Path, at_ns: int | None) -> None:
    """Now, or by a file just as old and as long."""
    definitions = Definitions(path)
    assert names(definitions) == ["a"]
    replaced(path, text("b"), at_ns)
    assert names(definitions) == ["b"]


def test_a_change_within_one_tick_of_the_clock_is_seen(path: Path) -> None:
    """The same file, as long as before and of the same time: it is so young that it is read again."""
    definitions, now = Definitions(path), time.time_ns()
    for name in ("b", "c", "d"):
        path.write_text(text(name))
        os.utime(path, ns=(now, now))
        assert names(definitions) == [name]


def test_a_file_that_became_wrong_leaves_the_last_good_one(path: Path) -> None:
    """It says what is wrong until that is mended; a file that is gone is wrong too."""
    definitions = Definitions(path)
    assert (names(definitions), definitions.trouble) == (["a"], "")
    for _ in range(2):
        replaced(path, "budgets: [{name: a}]", at_ns=10**18)
        assert (names(definitions), definitions.trouble) == (["a"], f'{path}:1: a budget without "period"; write period: month')
    path.unlink()
    assert names(definitions) == ["a"]
    assert definitions.trouble.startswith(f"{path}: cannot be read (No such file or directory)")
    replaced(path, text("c"))
    assert (names(definitions), definitions.trouble) == (["c"], "")


def test_a_file_that_was_never_right_is_refused_until_it_is(path: Path) -> None:
    """Every call says what is wrong, whether it read the file again or not, and the first good content ends that."""
    definitions = Definitions(replaced(path, "budgets: 1", at_ns=10**18))
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"budgets\.yaml:1: "):
            definitions.current()
    replaced(path, text())
    assert names(definitions) == []


def test_no_path_is_no_budgets() -> None:
    """So that a daemon without budgets needs no case of its own."""
    assert Definitions(None).current() == Budgets()


def test_many_threads_see_whole_files_only(path: Path) -> None:
    """While the file is replaced, each thread gets one of its contents, never an older one after a newer, and all get the last."""
    definitions, ended = Definitions(path), threading.Event()
    seen: list[list[list[str]]] = [[], [], [], []]
    contents = [[f"a{n:02}", f"b{n:02}"] for n in range(50)]
    replaced(path, text(*contents[0]))

    def watch(mine: list[list[str]]) -> None:
        while not ended.is_set():
            mine.append(names(definitions))

    threads = [threading.Thread(target=watch, args=(mine,)) for mine in seen]
    for thread in threads:
        thread.start()
    for content in contents:
        replaced(path, text(*content))
        time.sleep(0.001)
    ended.set()
    for thread in threads:
        thread.join()
    assert all(x in contents for mine in seen for x in mine)
    assert all(mine == sorted(mine) for mine in seen)
    assert sum(map(len, seen)) > 0
    assert names(definitions) == contents[-1]
