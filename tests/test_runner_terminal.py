"""``spendmeter run`` on a terminal: the child has it, keys reach it once, and a shell's job control works."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import subprocess
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakecli.harness import CASES, CLAUDE, Wrapper, alive, python, until

KEYS = """
import os, signal, sys, time
got = []
for s in (signal.SIGINT, signal.SIGQUIT, signal.SIGWINCH):
    signal.signal(s, lambda n, f: got.append(int(n)))
print('tty', [os.isatty(fd) for fd in (0, 1, 2)], os.tcgetpgrp(0) == os.getpgrp(), flush=True)
while not got: time.sleep(0.01)
time.sleep(0.3)
print('got', got, flush=True)
"""


class Terminal:
    """A pseudo-terminal and the process that leads its session."""

    def __init__(self) -> None:
        self.master, self.slave = pty.openpty()
        self.seen = b""

    def start(self, argv: list[str], env: dict[str, str], cwd: Path, **kw: object) -> subprocess.Popen[bytes]:
        """Starts *argv* as leader of a session whose controlling terminal this is."""

        def lead() -> None:
            os.setsid()
            fcntl.ioctl(self.slave, termios.TIOCSCTTY, 0)

        io = {"stdin": self.slave, "stdout": self.slave, "stderr": self.slave} | kw
        return subprocess.Popen(argv, env=env, cwd=cwd, preexec_fn=lead, **io)  # type: ignore[call-overload,no-any-return] # noqa: PLW1509

    def expect(self, text: bytes, timeout_s: float = 10) -> bytes:
        """Reads until *text* has come; what came up to it."""
        end = time.monotonic() + timeout_s
        while text not in self.seen:
            ready = select.select([self.master], [], [], max(0, end - time.monotonic()))[0]
            assert ready, f"no {text!r} in {self.seen!r}"
            self.seen += os.read(self.master, 4096)
        before, _, self.seen = self.seen.partition(text)
        return before

    def send(self, data: bytes) -> None:
        """Types *data*."""
        os.write(self.master, data)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    made = Terminal()
    yield made
    os.close(made.master)
    os.close(made.slave)


@pytest.fixture
def wrapper(tmp_path: Path) -> Wrapper:
    return Wrapper(tmp_path)


def interactive_shell(wrapper: Wrapper, terminal: Terminal) -> subprocess.Popen[bytes]:
    """A bash at its prompt, which is ``ready> ``."""
    shell = terminal.start(["bash", "--norc", "--noprofile", "-i"], wrapper.env | {"PS1": "ready> "}, wrapper.cwd)
    terminal.expect(b"ready> ")
    terminal.send(b"stty -echo\n")
    terminal.expect(b"ready> ")
    return shell


def children_of(pid: int) -> bytes:
    """Command lines of the descendants of *pid*."""
    try:
        pids = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return b"\n".join(Path(f"/proc/{p}/cmdline").read_bytes() + b"\n" + children_of(int(p)) for p in pids)
    except OSError:
        return b""


@pytest.mark.parametrize(("key", "number"), [(b"\x03", signal.SIGINT), (b"\x1c", signal.SIGQUIT)])
def test_a_key_reaches_the_child_once(wrapper: Wrapper, terminal: Terminal, key: bytes, number: signal.Signals) -> None:
    """The child sees the terminal on all three descriptors and gets ctrl-C once."""
    run = terminal.start(wrapper.argv(*python(KEYS)), wrapper.env, wrapper.cwd)
    terminal.expect(b"tty [True, True, True] True")
    terminal.send(key)
    terminal.expect(b"got [%d]" % number)
    assert run.wait(timeout=60) == 0


def test_ctrl_c_reaches_a_child_whose_stdout_is_piped_once(wrapper: Wrapper, terminal: Terminal) -> None:
    """As in ``spendmeter run ... | tee log``: the child stays in the foreground group."""
    run = terminal.start(wrapper.argv(*python(KEYS)), wrapper.env, wrapper.cwd, stdout=subprocess.PIPE)
    assert run.stdout is not None
    assert run.stdout.readline() == b"tty [True, False, True] True\n"
    terminal.send(b"\x03")
    assert run.communicate(timeout=60)[0] == b"got [2]\n"


def test_a_new_window_size_reaches_the_child_once(wrapper: Wrapper, terminal: Terminal) -> None:
    """SIGWINCH comes from the terminal, not from us."""
    run = terminal.start(wrapper.argv(*python(KEYS)), wrapper.env, wrapper.cwd)
    terminal.expect(b"True\r\n")
    termios.tcsetwinsize(terminal.master, (40, 100))
    terminal.expect(b"got [28]")
    assert run.wait(timeout=60) == 0


def test_a_signal_by_kill_is_passed_on_in_the_foreground_too(wrapper: Wrapper, terminal: Terminal) -> None:
    """And reaches the real child behind a launcher."""
    code = "import subprocess; p = subprocess.Popen(['sleep', '60']); print('pid', p.pid, flush=True); p.wait()"
    run = terminal.start(wrapper.argv(*python(code)), wrapper.env, wrapper.cwd)
    terminal.expect(b"pid ")
    grandchild = int(terminal.expect(b"\r\n"))
    os.kill(run.pid, signal.SIGTERM)
    assert run.wait(timeout=60) == -signal.SIGTERM
    until(lambda: not alive(grandchild))


def test_sigkill_to_the_wrapper_ends_the_real_child_in_the_foreground_too(wrapper: Wrapper, terminal: Terminal) -> None:
    """There the run's processes are found by the run id in their environment."""
    code = "import subprocess; p = subprocess.Popen(['sleep', '60']); print('pid', p.pid, flush=True); p.wait()"
    outer = 'trap "" HUP; "$@" & wait $!; sleep 60'
    run = terminal.start(["sh", "-c", outer, "sh", *wrapper.argv(*python(code))], wrapper.env, wrapper.cwd)
    terminal.expect(b"pid ")
    grandchild = int(terminal.expect(b"\r\n"))
    ours = int(Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()[0])
    os.kill(ours, signal.SIGKILL)
    until(lambda: not alive(grandchild))
    assert run.poll() is None
    run.kill()
    run.wait()


def test_on_a_terminal_the_run_is_known_by_its_files(wrapper: Wrapper, terminal: Terminal) -> None:
    """Nothing is read from the terminal; the CLI's own files tell."""
    env = wrapper.env | {"FAKE_CASE": str(CASES / "json-subagent")}
    run = terminal.start(wrapper.argv(CLAUDE), env, wrapper.cwd)
    terminal.expect(b'"total_cost_usd"')
    assert run.wait(timeout=60) == 0
    committed = wrapper.only()
    assert (committed["sessions"], len(committed["files"])) == (["b2060b87-12a3-40e5-adf4-a1b7ec1b5312"], 2)


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_shell_can_stop_continue_and_interrupt_the_job(wrapper: Wrapper, terminal: Terminal, wrapped: bool) -> None:
    """ctrl-Z, ``fg``, ctrl-C and ``$?`` are as with the bare command."""
    shell = interactive_shell(wrapper, terminal)
    terminal.send(" ".join(wrapper.argv("sleep", "61") if wrapped else ["sleep", "61"]).encode() + b"\n")
    until(lambda: b"sleep\x0061" in children_of(shell.pid))
    time.sleep(0.3)
    terminal.send(b"\x1a")
    terminal.expect(b"Stopped")
    terminal.expect(b"ready> ")
    terminal.send(b"fg\n")
    terminal.expect(b"sleep 61")
    time.sleep(0.3)
    terminal.send(b"\x03")
    terminal.expect(b"ready> ")
    terminal.send(b"echo code=$?\n")
    terminal.expect(b"code=130")
    terminal.send(b"exit\n")
    shell.wait(timeout=60)


def test_a_background_job_that_is_brought_to_the_front_has_the_terminal(wrapper: Wrapper, terminal: Terminal) -> None:
    """It stops when it reads in the background; after ``fg`` it reads the line, and ctrl-C reaches it."""
    code = "import sys; line = sys.stdin.readline(); print('read', line, flush=True); import time; time.sleep(60)"
    (wrapper.cwd / "reader.py").write_text(code)
    shell = interactive_shell(wrapper, terminal)
    terminal.send(" ".join([*wrapper.argv("python3", "-S", "-E", "reader.py"), "&\n"]).encode())
    terminal.expect(b"ready> ")
    time.sleep(0.7)
    terminal.send(b"jobs\n")
    terminal.expect(b"Stopped")
    terminal.send(b"fg\n")
    time.sleep(0.3)
    terminal.send(b"hello\n")
    terminal.expect(b"read hello")
    terminal.send(b"\x03")
    terminal.expect(b"ready> ")
    terminal.send(b"echo code=$?\n")
    terminal.expect(b"code=130")
    terminal.send(b"exit\n")
    shell.wait(timeout=60)
