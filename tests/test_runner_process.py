"""``spendmeter run`` is the command itself to everyone around it: bytes, statuses, signals, descriptors, terminal."""

from __future__ import annotations

import hashlib
import os
import resource
import signal
import socket
import statistics
import subprocess
import time
from pathlib import Path

import pytest

from tests.fakecli.harness import Wrapper, alive, python, until

STATE = """
import os, signal, resource, sys
print(os.umask(0o22), os.getcwd(), os.nice(0), resource.getrlimit(resource.RLIMIT_NOFILE), resource.getrlimit(resource.RLIMIT_CORE))
print([s for s in range(1, 32) if s not in (9, 19) and signal.getsignal(s) == signal.SIG_IGN], signal.pthread_sigmask(signal.SIG_BLOCK, ()))
print(sorted(os.listdir('/proc/self/fd'), key=int), [line for line in open('/proc/self/status') if line.startswith(('SigIgn', 'SigBlk'))])
"""
COUNTER = """
import signal, sys, time
got = []
for s in map(int, sys.argv[1:]):
    signal.signal(s, lambda n, f: got.append(n))
print('ready', flush=True)
end = time.monotonic() + 60
while not got and time.monotonic() < end:
    time.sleep(0.01)
time.sleep(0.2)
print(got, flush=True)
"""
# Its child is not known to it any more after a signal: an npm launcher.
LAUNCHER = "import subprocess, sys; p = subprocess.Popen(['sleep', '60']); print(p.pid, flush=True); p.wait()"


@pytest.fixture
def wrapper(tmp_path: Path) -> Wrapper:
    return Wrapper(tmp_path)


def test_every_byte_arrives_in_order_with_the_exit_code(wrapper: Wrapper) -> None:
    """50 MB of all byte values in writes of odd sizes are the same, and so is the exit code."""
    code = """
import os
block = bytes(range(256)) * 41 + b'end'
for i in range(5000):
    os.write(1, b'%d:' % i); view = memoryview(block)
    while view: view = view[os.write(1, view):]
raise SystemExit(7)
"""
    bare = subprocess.run(python(code), stdout=subprocess.PIPE, check=False)
    wrapped = wrapper.run(*python(code))
    assert len(bare.stdout) > 50_000_000
    assert hashlib.sha256(wrapped.stdout).digest() == hashlib.sha256(bare.stdout).digest()
    assert (wrapped.returncode, wrapped.stderr) == (7, b"")


@pytest.mark.parametrize("target", ["pipe", "file"])
def test_merged_output_keeps_the_order_between_stdout_and_stderr(wrapper: Wrapper, tmp_path: Path, target: str) -> None:
    """With ``2>&1`` 2000 alternating writes arrive as they were made."""
    code = "import os\nfor i in range(1000): os.write(1, b'o%d\\n' % i); os.write(2, b'e%d\\n' % i)"
    expected = b"".join(b"o%d\ne%d\n" % (i, i) for i in range(1000))
    if target == "pipe":
        seen = wrapper.run(*python(code), stderr=subprocess.STDOUT).stdout
    else:
        with (tmp_path / "log").open("ab") as log:
            wrapper.run(*python(code), stdout=log, stderr=subprocess.STDOUT)
        seen = (tmp_path / "log").read_bytes()
    assert seen == expected


def test_stderr_is_the_callers_own(wrapper: Wrapper) -> None:
    """The child's descriptor 2 is the very file that the caller gave."""
    with Path(os.devnull).open("wb") as null:
        done = wrapper.run(*python("import os; s = os.fstat(2); print(s.st_dev, s.st_ino)"), stderr=null)
        s = os.fstat(null.fileno())
    assert done.stdout == b"%d %d\n" % (s.st_dev, s.st_ino)


def test_stdin_passes_and_nothing_of_it_is_taken(wrapper: Wrapper, tmp_path: Path) -> None:
    """The child reads what it wants of stdin; the rest stays for whoever comes next."""
    data = os.urandom(3_000_000)
    assert wrapper.run("cat", input=data).stdout == data
    (tmp_path / "lines").write_text("one\ntwo\n")
    with (tmp_path / "lines").open("rb") as lines:
        done = wrapper.run(*python("import os; print(os.read(0, 4))"), stdin=lines)
        assert (done.stdout, os.read(lines.fileno(), 9)) == (b"b'one\\n'\n", b"two\n")


@pytest.mark.parametrize("code", [0, 1, 3, 126, 255])
def test_exit_code_is_the_childs(wrapper: Wrapper, code: int) -> None:
    """Whatever it is."""
    assert wrapper.run("sh", "-c", f"exit {code}").returncode == code
    assert wrapper.only()["exit_code"] == code


@pytest.mark.parametrize("name", ["TERM", "KILL", "INT", "HUP", "QUIT", "SEGV", "ABRT", "USR1", "PIPE", "ALRM"])
def test_a_child_killed_by_a_signal_kills_us_by_the_same(wrapper: Wrapper, name: str) -> None:
    """Waiters see WIFSIGNALED with that signal, as with the bare command."""
    number = signal.Signals[f"SIG{name}"]
    done = wrapper.run("sh", "-c", f"ulimit -c 0; kill -{name} $$")
    assert done.returncode == -number
    assert (wrapper.only()["exit_code"], wrapper.only()["signal"]) == (None, number)


@pytest.mark.parametrize("name", ["TERM", "INT", "HUP", "QUIT", "USR1", "USR2", "ALRM", "WINCH", "CONT"])
def test_a_signal_to_us_reaches_the_child_once(wrapper: Wrapper, name: str) -> None:
    """Every signal that people send is passed on, once, and the child decides what comes of it."""
    number = signal.Signals[f"SIG{name}"]
    run = wrapper.start(*python(COUNTER, str(int(number))))
    assert run.stdout is not None
    assert run.stdout.readline() == b"ready\n"
    run.send_signal(number)
    assert run.communicate(timeout=60)[0] == b"[%d]\n" % number
    assert run.returncode == 0


@pytest.mark.parametrize("name", ["TERM", "INT", "HUP", "USR1"])
def test_a_signal_that_we_found_ignored_reaches_a_child_that_listens(wrapper: Wrapper, name: str) -> None:
    """``spendmeter run ... &`` in a script finds SIGINT ignored; a child that sets a handler of its own hears it as it would bare."""
    number = signal.Signals[f"SIG{name}"]
    run = wrapper.start(*python(COUNTER, str(int(number))), preexec_fn=lambda: signal.signal(number, signal.SIG_IGN))
    assert run.stdout is not None
    assert run.stdout.readline() == b"ready\n"
    run.send_signal(number)
    assert run.communicate(timeout=60)[0] == b"[%d]\n" % number
    assert run.returncode == 0


def test_a_signal_that_we_found_ignored_ends_neither_a_deaf_child_nor_us(wrapper: Wrapper) -> None:
    """``nohup spendmeter run``: a child without a handler goes on ignoring SIGHUP, and so do we."""
    run = wrapper.start("sh", "-c", "echo ready; sleep 1; echo done", preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    assert run.stdout is not None
    assert run.stdout.readline() == b"ready\n"
    run.send_signal(signal.SIGHUP)
    assert run.communicate(timeout=60)[0] == b"done\n"
    assert run.returncode == 0
    assert wrapper.only()["exit_code"] == 0


@pytest.mark.parametrize("name", ["TERM", "INT", "HUP", "QUIT"])
def test_an_ending_signal_reaches_the_whole_group(wrapper: Wrapper, name: str) -> None:
    """npm launchers leave the real child alive: it gets the signal too."""
    run = wrapper.start(*python(LAUNCHER), env={"PYTHONUNBUFFERED": "1"})
    assert run.stdout is not None
    grandchild = int(run.stdout.readline())
    number = signal.Signals[f"SIG{name}"]
    run.send_signal(number)
    run.communicate(timeout=60)
    until(lambda: not alive(grandchild))
    assert run.returncode in (-number, 1)  # Python as the launcher turns SIGINT into a KeyboardInterrupt, and dies of SIGINT


def test_sigkill_to_the_wrapper_ends_the_childs_group(wrapper: Wrapper) -> None:
    """Nobody goes on spending: launcher and real child get SIGTERM."""
    run = wrapper.start(*python("import os; print(os.getpid(), flush=True)\n" + LAUNCHER))
    assert run.stdout is not None
    child, grandchild = int(run.stdout.readline()), int(run.stdout.readline())
    run.kill()
    assert run.wait(timeout=60) == -signal.SIGKILL
    until(lambda: not alive(child) and not alive(grandchild))
    run.communicate()


def test_a_child_that_ignores_sigterm_is_killed_in_the_end(wrapper: Wrapper) -> None:
    """5 s after the wrapper's SIGKILL."""
    run = wrapper.start("sh", "-c", "trap '' TERM; echo $$; while :; do sleep 0.1; done")
    assert run.stdout is not None
    child = int(run.stdout.readline())
    run.kill()
    run.wait(timeout=60)
    assert alive(child)
    until(lambda: not alive(child), 9)
    run.communicate()


def test_stop_and_continue_are_mirrored(wrapper: Wrapper) -> None:
    """SIGTSTP stops child and wrapper, so a shell sees its job stopped; SIGCONT continues both."""
    script = "echo ready; read word; echo $word"
    run = wrapper.start("sh", "-c", script, stdin=subprocess.PIPE, process_group=0)  # in an orphaned group SIGTSTP stops nobody
    assert run.stdout is not None
    assert run.stdout.readline() == b"ready\n"
    os.kill(run.pid, signal.SIGTSTP)
    _, status = os.waitpid(run.pid, os.WUNTRACED)
    assert (os.WIFSTOPPED(status), os.WSTOPSIG(status)) == (True, signal.SIGTSTP)
    os.kill(run.pid, signal.SIGCONT)
    assert run.communicate(b"done\n", timeout=60) == (b"done\n", b"")
    assert run.returncode == 0


def test_the_child_finds_the_same_world(wrapper: Wrapper) -> None:
    """umask, cwd, nice, limits, ignored and blocked signals and descriptors are as with the bare command."""

    def before() -> None:
        os.umask(0o27)
        os.nice(1)
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, 300))
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})

    def start(argv: list[str]) -> bytes:
        left, right = socket.socketpair()
        with left, right:
            out = (left.fileno(), right.fileno())
            return subprocess.run(
                argv, env=wrapper.env, cwd=wrapper.cwd, stdout=subprocess.PIPE, pass_fds=out, preexec_fn=before, check=True
            ).stdout

    bare, wrapped = start(list(python(STATE))), start(wrapper.argv(*python(STATE)))
    assert wrapped == bare
    assert b"SigBlk:\\t0000000000000800" in bare


@pytest.mark.parametrize("closed", [0, 1, 2])
def test_a_closed_standard_descriptor_stays_closed(wrapper: Wrapper, tmp_path: Path, closed: int) -> None:
    """None of our own descriptors takes its place."""
    code = "import os, sys; open(sys.argv[1], 'w').write(str(sorted(os.listdir('/proc/self/fd'), key=int)))"
    seen = []
    for i, argv in enumerate((list(python(code, str(tmp_path / "0"))), wrapper.argv(*python(code, str(tmp_path / "1"))))):
        subprocess.run(["sh", "-c", f'exec {closed}<&-; exec "$@"', "sh", *argv], env=wrapper.env, check=True, capture_output=closed != 1)
        seen.append((tmp_path / str(i)).read_text())
    assert seen[0] == seen[1]


def test_the_reader_going_away_ends_the_child_as_usual(wrapper: Wrapper) -> None:
    """``run yes | head -1``: SIGPIPE, for the child and for us."""
    run = wrapper.start("yes", stderr=None)
    assert run.stdout is not None
    assert run.stdout.read(2) == b"y\n"
    run.stdout.close()
    assert run.wait(timeout=60) == -signal.SIGPIPE


def test_an_idle_child_learns_at_once_that_the_reader_has_gone(wrapper: Wrapper) -> None:
    """Its first write after that fails, as it would without us."""
    run = wrapper.start(*python("import os, time; os.write(1, b'a'); time.sleep(1); os.write(1, b'b'); os._exit(5)"))
    assert run.stdout is not None
    assert run.stdout.read(1) == b"a"
    run.stdout.close()
    assert run.wait(timeout=60) == 1  # Python ignores SIGPIPE and raises BrokenPipeError
    assert run.stderr is not None
    assert b"BrokenPipeError" in run.stderr.read()
    run.stderr.close()


@pytest.mark.alone
def test_a_grandchild_that_keeps_the_pipe_does_not_keep_us(wrapper: Wrapper) -> None:
    """We end with the child; what the grandchild prints later still arrives, and the reader's end comes with its end."""
    began = time.monotonic()
    run = wrapper.start("sh", "-c", "echo a; (sleep 3; echo b) & exit 4", stderr=None)
    assert run.wait(timeout=60) == 4
    assert time.monotonic() - began < 2.5
    assert run.stdout is not None
    assert run.stdout.read() == b"a\nb\n"
    run.stdout.close()


def test_a_noisy_grandchild_does_not_keep_us_either(wrapper: Wrapper) -> None:
    """Output without end after the child's own does not delay our end; when the reader goes, the grandchild meets SIGPIPE."""
    run = wrapper.start("sh", "-c", "yes & echo $!; exit 4", stderr=None)
    assert run.stdout is not None
    grandchild = int(next(line for line in run.stdout if line != b"y\n"))
    while run.poll() is None:
        run.stdout.read(1 << 16)
    assert run.returncode == 4
    run.stdout.close()
    until(lambda: not alive(grandchild))


def test_twenty_at_once_do_not_disturb_each_other(wrapper: Wrapper) -> None:
    """Each has its own output, exit code and record."""
    runs = [wrapper.start("sh", "-c", f"yes run{i} | head -c 100000; exit {i}", stderr=None) for i in range(20)]
    seen = [(run.communicate(timeout=120)[0], run.returncode) for run in runs]
    assert seen == [((f"run{i}\n" * 100000).encode()[:100000], i) for i in range(20)]
    assert sorted(r["exit_code"] for r in wrapper.committed()) == list(range(20))


@pytest.mark.alone
def test_output_is_passed_on_at_once(wrapper: Wrapper) -> None:
    """A line every 10 ms arrives within a few ms, also while the heavy parts load."""
    code = "import os, time\nfor i in range(100): os.write(1, b'%.6f\\n' % time.time()); time.sleep(0.01)"
    run = wrapper.start(*python(code), stderr=None)
    assert run.stdout is not None
    late_s = [time.time() - float(line) for line in run.stdout]
    run.communicate()
    assert len(late_s) == 100
    assert statistics.median(late_s) < 0.01


def test_a_slow_reader_slows_the_child(wrapper: Wrapper) -> None:
    """Nothing is hoarded: the child blocks on its pipe."""
    run = wrapper.start(*python("import os, time\nfor i in range(64): os.write(1, b'x' * 65536)\nos.write(2, b'through')"))
    assert run.stderr is not None
    os.set_blocking(run.stderr.fileno(), False)
    time.sleep(1)
    assert run.stderr.read() is None
    assert run.stdout is not None
    assert len(run.stdout.read()) == 64 * 65536
    run.wait(timeout=60)
    run.stdout.close()
    run.stderr.close()


def test_a_nonblocking_stdout_loses_nothing(wrapper: Wrapper) -> None:
    """A caller such as node may have made the pipe non-blocking."""
    r, w = os.pipe()
    os.set_blocking(w, False)
    run = wrapper.start("sh", "-c", "yes | head -c 1000000", stdout=w, stderr=None)
    os.close(w)
    time.sleep(0.5)
    with open(r, "rb") as reader:  # noqa: PTH123 - a descriptor
        assert reader.read() == b"y\n" * 500_000
    assert run.wait(timeout=60) == 0


@pytest.mark.parametrize(("command", "code"), [("nosuch-command", 127), ("./nosuch", 127), ("/", 126), ("./plain", 126), ("./bad", 127)])
def test_what_cannot_run_fails_as_in_a_shell(wrapper: Wrapper, command: str, code: int) -> None:
    """127 not found, 126 not executable, one line that says so, and no record."""
    (wrapper.cwd / "plain").write_text("echo hi\n")
    (wrapper.cwd / "bad").write_text("#!/no/such/interpreter\n")
    (wrapper.cwd / "bad").chmod(0o755)
    done = wrapper.run(command)
    assert (done.returncode, done.stdout) == (code, b"")
    assert done.stderr.startswith(b"spendmeter: run: " + command.encode())
    assert done.stderr.count(b"\n") == 1
    assert subprocess.run(["bash", "-c", command], cwd=wrapper.cwd, capture_output=True, check=False).returncode == code
    assert wrapper.committed() == []


def test_a_script_without_interpreter_goes_to_sh(wrapper: Wrapper) -> None:
    """As a shell does."""
    (wrapper.cwd / "script").write_text("echo from sh $1\n")
    (wrapper.cwd / "script").chmod(0o755)
    assert wrapper.run("./script", "x").stdout == b"from sh x\n"


def test_off_switch_executes_the_command_itself(wrapper: Wrapper) -> None:
    """SPENDMETER_OFF=1: same process, same environment, SIGPIPE not ignored."""
    run = wrapper.start(*python("import os; print(os.getpid(), 'TRACEPARENT' in os.environ)\n" + STATE), env={"SPENDMETER_OFF": "1"})
    out = run.communicate(timeout=60)[0]
    assert out.startswith(b"%d False\n" % run.pid)
    assert b"SigIgn:\\t0000000000001000" not in out
    assert wrapper.committed() == []


@pytest.mark.parametrize("limit", ["-n 8", "-v 120000"])
def test_tight_limits_do_not_break_the_run(wrapper: Wrapper, limit: str) -> None:
    """Without descriptors or memory for metering the command still runs, and no traceback of ours is seen."""
    script = f'ulimit {limit}; exec "$@"'
    done = subprocess.run(
        ["sh", "-c", script, "sh", *wrapper.argv("sh", "-c", "echo fine; exit 3")], env=wrapper.env, capture_output=True, check=False
    )
    assert (done.returncode, done.stdout) == (3, b"fine\n")
    assert b"src/spendmeter" not in done.stderr  # without memory the standard library itself logs a few lines


def test_no_process_is_left_behind(wrapper: Wrapper) -> None:
    """The guard goes when the run ends."""

    def mine() -> list[str]:
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                found += [path.parent.name] if str(wrapper.folder).encode() in path.read_bytes() else []
            except OSError:
                continue
        return found

    run = wrapper.start("sleep", "0.5")
    until(lambda: len(mine()) >= 2)
    run.communicate(timeout=60)
    until(lambda: not mine())
