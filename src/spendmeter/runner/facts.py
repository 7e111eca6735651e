"""What is known of a run when its child starts."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping

from spendmeter.runner.args import Options
from spendmeter.runner.childenv import Trace
from spendmeter.runner.detect import Command
from spendmeter.runner.glance import Marks, file_time_ns


class Facts:
    """``start_ns`` is the file system's time, ``early`` what its cwd's transcripts were right after the child was forked."""

    def __init__(self, options: Options, command: Command, trace: Trace, run_id: str, cwd: str | None) -> None:
        self.run_id, self.options, self.command, self.trace, self.cwd = run_id, options, command, trace, cwd
        self.env: Mapping[str, str] = os.environ
        self.start_ns = file_time_ns()
        self.started_ms = time.time_ns() // 1_000_000
        self.early: dict[str, Marks] = {}
