"""Takes in the runs whose wrapper was killed, or whose ledger could not be written at the time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from spendmeter import config as settings
from spendmeter.errors import SpendmeterError
from spendmeter.runner.compose import finish_mark
from spendmeter.runner.finished import FinishedRun
from spendmeter.runner.procs import belongs
from spendmeter.runner.spool import Pending, from_json, pending_runs, set_aside, spool_dirs


def folders(ledger: str | None, config: str | None, env: Mapping[str, str]) -> list[Path]:
    """Spool folders of the ledger that *ledger*, *config* and *env* name; of the default one where the settings are wrong."""
    try:
        url = settings.load(config, ledger, env).ledger
    except SpendmeterError:
        url = ledger or env.get("SPENDMETER_LEDGER") or settings.default_ledger(env)
    return spool_dirs(url, env)


def is_pending(ledger: str | None = None, config: str | None = None) -> bool:
    """Whether ``recover`` might find anything to do."""
    return any(any(folder.iterdir()) for folder in folders(ledger, config, os.environ) if folder.is_dir())


def recover(ledger: str | None = None, config: str | None = None) -> list[object]:
    """Commits every pending run of the ledger; those whose child is still ending are left for the next time.

    Raises:
        SpendmeterError: the ledger cannot be written; what was not committed stays pending.
    """
    from spendmeter import ingest

    return take_in(folders(ledger, config, os.environ), lambda run: ingest.commit_run(ledger, config, run))


def take_in(folders: Iterable[Path], commit: Callable[[FinishedRun], object]) -> list[object]:
    """Hands every pending run in *folders* to *commit*, and removes those that it took; what it gave.

    *commit* raises ValueError for one that nobody will ever take, which is set aside, and any other error where there is no use
    in going on: that error is raised here, and the rest stays pending.
    """
    done: list[object] = []
    for folder in folders:
        for pending in pending_runs(folder):
            if _is_running(pending):
                pending.release()
                continue
            try:
                run = from_json(pending.data) if pending.is_finished else finish_mark(pending.data)
                done.append(commit(run))
            except ValueError:
                set_aside(pending.path)
                pending.release()
            except BaseException:
                pending.release()
                raise
            else:
                pending.remove()
    return done


def _is_running(pending: Pending) -> bool:
    pid = pending.data.get("child_pid")
    return not pending.is_finished and isinstance(pid, int) and belongs(pid, pending.data["run_id"])
